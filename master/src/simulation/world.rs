//! The whole of it: who is connected with whom, what happens, and what must hold whatever does.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use tempfile::TempDir;
use wavry_credentials::{
    signer::sign,
    token::{Grounds, Scope, digest},
};
use wavry_proto::{
    control::{Role, Roster, Vouched},
    id::{Epoch, NodeId, PublicKey, ServiceName},
    token::{CLOCK_SKEW, Session as Claims, Validity},
};

use super::{
    Sabotage,
    chance::Chance,
    master::{IDENTITY_OVERLAP, Master, SUSPECT_AFTER},
    node::{GATEWAYS, MAX_AGE, NODES, Node, RegistrationToken, admission},
};

const SUBJECTS: [&str; 3] = ["ann", "bob", "eve"];
const START: u64 = 1_900_000_000;

/// What happens.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A node gets a new identity, a registration token and an empty disk.
    Provision(usize),
    Start(usize),
    Crash(usize),
    /// It dies instead of the write after so many.
    CrashAfter(usize, u32),
    Cut(usize),
    Mend(usize),
    /// Its wall clock is so far from the time.
    Skew(usize, i64),
    MasterSkew(i64),
    MasterAway,
    MasterBack,
    /// One of two processes dies.
    MasterDies,
    /// Another begins.
    MasterJoins,
    RotateKey,
    Compromise,
    OrderRotation(usize),
    RevokeNode(usize),
    RevokeSubject(usize),
    /// A token for each subject, good for so many seconds.
    Issue(u64),
    Open(usize),
    /// Somebody offers a node a roster of long ago.
    Replay(usize),
    /// Somebody brings a registration token that a node used.
    Reuse(usize),
    /// Seconds.
    Pass(u64),
}

impl Event {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        let node = chance.below(NODES);
        match chance.below(100) {
            0..=3 => Self::Provision(node),
            4..=20 => Self::Start(node),
            21..=22 => Self::Crash(node),
            23..=25 => Self::CrashAfter(node, u32::try_from(chance.below(5)).unwrap()),
            26..=28 => Self::Cut(node),
            29..=36 => Self::Mend(node),
            37..=39 => Self::Skew(node, i64::try_from(chance.below(600)).unwrap() - 300),
            40 => Self::MasterSkew(i64::try_from(chance.below(40)).unwrap() - 20),
            41 => Self::MasterAway,
            42 => Self::MasterDies,
            43..=47 => Self::MasterBack,
            48..=50 => Self::MasterJoins,
            51..=52 => Self::RotateKey,
            53 => Self::Compromise,
            54..=57 => Self::OrderRotation(node),
            58..=59 => Self::RevokeNode(node),
            60..=61 => Self::RevokeSubject(chance.below(SUBJECTS.len())),
            62..=67 => Self::Issue(60 + chance.next() % 540),
            68..=79 => Self::Open(chance.below(GATEWAYS.end)),
            80..=81 => Self::Replay(node),
            82 => Self::Reuse(node),
            83..=90 => Self::Pass(1 + chance.next() % 30),
            91..=97 => Self::Pass(30 + chance.next() % 400),
            _ => Self::Pass(1000 + chance.next() % 4000),
        }
    }
}

/// An invariant that does not hold.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) invariant: &'static str,
    how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.how)
    }
}

/// A session token.
struct Issued {
    token: String,
    subject: usize,
    iat: u64,
    exp: u64,
    /// Epoch of the roster when it was issued, where the key that signed it had not been published before.
    known_from: Epoch,
    is_revoked: bool,
}

/// A mesh connection. What each side proved, and the registration that the other saw with it.
struct Link {
    gateway: usize,
    relay: usize,
    gateway_proved: (PublicKey, u64),
    relay_proved: (PublicKey, u64),
    is_retired: bool,
    sessions: Vec<Session>,
}

struct Session {
    issued: usize,
    grounds: Grounds,
    exp: u64,
}

pub(super) struct World {
    now: u64,
    master: Master,
    master_since: u64,
    nodes: Vec<Node>,
    links: Vec<Link>,
    sabotage: Option<Sabotage>,
    pub(super) broken: Option<Broken>,
    _directory: TempDir,

    // What whoever looks on knows.
    tokens: Vec<Issued>,
    /// From which epoch on the key that signs is known, if it was not published before it signed.
    key_known_from: Epoch,
    registration_tokens: u64,
    /// Who used a registration token.
    used: HashMap<String, (NodeId, PublicKey)>,
    last_used: Vec<(RegistrationToken, NodeId, Role)>,
    /// Registrations that are over: their node was revoked, or registered anew.
    over: HashSet<(NodeId, u64)>,
    /// Keys that left the roster.
    gone: HashSet<PublicKey>,
    listed: HashSet<PublicKey>,
    /// When another key than this one spoke for its node.
    left: HashMap<PublicKey, u64>,
    contents: HashMap<Epoch, Roster>,
    /// The newest roster that any master showed.
    shown: Epoch,
    /// Signed rosters, oldest first.
    history: Vec<String>,
}

impl World {
    pub(super) async fn new(sabotage: Option<Sabotage>) -> Self {
        // In memory where there is such a place: it is not power cuts that this is about.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.unwrap();
        let mut master = Master::new(directory.path().join("master.sqlite"), sabotage);
        master.start(START).await;
        Self {
            now: START,
            master,
            master_since: START,
            nodes: (0..NODES).map(|n| Node::new(n, sabotage)).collect(),
            links: Vec::new(),
            sabotage,
            broken: None,
            _directory: directory,
            tokens: Vec::new(),
            key_known_from: Epoch(0),
            registration_tokens: 0,
            used: HashMap::new(),
            last_used: Vec::new(),
            over: HashSet::new(),
            gone: HashSet::new(),
            listed: HashSet::new(),
            left: HashMap::new(),
            contents: HashMap::new(),
            shown: Epoch(0),
            history: Vec::new(),
        }
    }

    fn breaks(&mut self, invariant: &'static str, how: impl fmt::Display) {
        let how = format!("at {} s, {how}", self.now - START);
        self.broken.get_or_insert(Broken { invariant, how });
    }

    pub(super) async fn step(&mut self, event: Event, chance: &mut Chance) {
        let mut passes = 1;
        self.master.turn(chance, self.now).await;
        match event {
            Event::Provision(node) => {
                self.registration_tokens += 1;
                let token = RegistrationToken {
                    jti: self.registration_tokens.to_string(),
                    issued_at: self.master.time(self.now).unwrap_or(self.now),
                };
                self.drop_links_of(node);
                self.nodes[node].provision(token, chance);
            }
            Event::Start(node) => {
                if let Err(wrong) = self.nodes[node].start(self.now) {
                    self.breaks(wrong, format!("node {node}"));
                }
            }
            Event::Crash(node) => self.nodes[node].crash(),
            Event::CrashAfter(node, writes) => self.nodes[node].dies_after = Some(writes),
            Event::Cut(node) => self.nodes[node].is_cut = true,
            Event::Mend(node) => self.nodes[node].is_cut = false,
            Event::Skew(node, seconds) => self.nodes[node].skew = seconds,
            Event::MasterSkew(seconds) => self.master.skew = seconds,
            Event::MasterAway => self.master.crash().await,
            Event::MasterBack if self.master.running.is_none() => {
                self.master.start(self.now).await;
                self.master_since = self.now;
            }
            Event::MasterBack => {}
            Event::MasterDies => self.master.crash_one(self.now).await,
            Event::MasterJoins => self.master.start_another(self.now).await,
            Event::RotateKey => self.master.rotate_key(false, self.now).await,
            Event::Compromise => self.compromise().await,
            Event::OrderRotation(node) => {
                let id = self.nodes[node].id.clone();
                self.master.order_rotation(&id, self.now).await;
            }
            Event::RevokeNode(node) => self.revoke_node(node).await,
            Event::RevokeSubject(subject) => {
                let revoked = self
                    .master
                    .revoke_subject(SUBJECTS[subject], self.now)
                    .await;
                if let Some(through) = revoked {
                    let of_subject = self.tokens.iter_mut().filter(|t| t.subject == subject);
                    for token in of_subject.filter(|token| token.iat <= through) {
                        token.is_revoked = true;
                    }
                }
            }
            Event::Issue(ttl) => self.issue(ttl).await,
            Event::Open(gateway) => {
                self.open(gateway);
            }
            Event::Replay(node) => {
                if !self.history.is_empty() {
                    let old = self.history[chance.below(self.history.len())].clone();
                    self.nodes[node].offer(&old, &[], self.now);
                }
            }
            Event::Reuse(node) => self.reuse(node, chance).await,
            Event::Pass(seconds) => passes = seconds,
        }
        let slices = passes.min(8);
        for slice in 0..slices {
            self.now += passes * (slice + 1) / slices - passes * slice / slices;
            self.tick(passes / slices, chance).await;
        }
    }

    async fn compromise(&mut self) {
        if self.master.running.is_none() {
            return;
        }
        self.master.rotate_key(true, self.now).await;
        for token in &mut self.tokens {
            token.is_revoked = true;
        }
        let roster = &self.master.running.as_ref().unwrap().roster;
        self.key_known_from = roster.epoch;
    }

    async fn revoke_node(&mut self, node: usize) {
        let id = self.nodes[node].id.clone();
        let registration = self.registration(&id);
        if self.master.revoke_node(&id, self.now).await {
            self.over.insert((id, registration.unwrap()));
        }
    }

    /// Which registration the master has of a node.
    fn registration(&self, id: &NodeId) -> Option<u64> {
        let roster = &self.master.running.as_ref()?.roster;
        roster.node(id).map(|node| node.registration)
    }

    async fn issue(&mut self, ttl: u64) {
        let Some(iat) = self.master.time(self.now) else {
            return;
        };
        let cluster = self.master.cluster.clone();
        let running = self.master.running.as_ref().unwrap();
        for (subject, name) in SUBJECTS.iter().enumerate() {
            let exp = iat + ttl;
            let claims = Claims {
                jti: String::new(),
                sub: (*name).to_owned(),
                sid: None,
                claims: serde_json::Map::new(),
                validity: Validity { iat, nbf: iat, exp },
            };
            let scope = Scope {
                cluster: &cluster,
                audience: "echo",
                binding: &[],
            };
            // Within the skew of clocks after a revocation, new tokens hold as little as old ones.
            let revoked = &running.roster.revoked;
            let is_revoked = revoked
                .iter()
                .any(|r| r.subject == digest(name) && iat <= r.through);
            self.tokens.push(Issued {
                token: sign(running.signing(), &claims, scope).await.unwrap(),
                subject,
                iat,
                exp,
                known_from: self.key_known_from,
                is_revoked,
            });
        }
        let last = self.tokens.len().saturating_sub(18);
        // Sessions name tokens by number: the oldest are only emptied.
        for token in &mut self.tokens[..last] {
            token.token.clear();
        }
    }

    async fn reuse(&mut self, node: usize, chance: &mut Chance) {
        if self.last_used.is_empty() || self.master.running.is_none() {
            return;
        }
        let (token, id, role) = self.last_used[node % self.last_used.len()].clone();
        let key = PublicKey(chance.bytes());
        let stolen = admission(&token, id, role, key);
        if self.master.register(stolen, self.now).await.is_ok() {
            self.breaks("a registration token serves twice", token.jti);
        }
    }

    /// Opens a session at a gateway with the newest token that holds there; whether there is one now.
    pub(super) fn open(&mut self, gateway: usize) -> bool {
        let (now, service) = (self.now, service());
        let time = self.nodes[gateway].time_secs(now);
        let Some(standing) = self.nodes[gateway].standing(now) else {
            return false;
        };
        let cluster = self.master.cluster.clone();
        let holding = self
            .tokens
            .iter()
            .enumerate()
            .rev()
            .find_map(|(at, issued)| {
                let verified = standing.verify(&issued.token, &cluster, &service, time);
                Some((at, verified.ok()?.1))
            });
        let Some((issued, grounds)) = holding else {
            return false;
        };
        let exits: Vec<_> = self.nodes[gateway]
            .acts_on(now)
            .into_iter()
            .flat_map(|roster| roster.exits(&service).map(|node| node.id.clone()))
            .collect();
        for exit in exits {
            let relay = self.nodes.iter().position(|node| node.id == exit).unwrap();
            if let Some(link) = self.link(gateway, relay) {
                let exp = self.tokens[issued].exp;
                self.links[link].sessions.push(Session {
                    issued,
                    grounds,
                    exp,
                });
                return true;
            }
        }
        false
    }

    pub(super) fn sessions(&self) -> usize {
        self.links.iter().map(|link| link.sessions.len()).sum()
    }

    /// A connection that takes sessions, dialled if there is none.
    fn link(&mut self, gateway: usize, relay: usize) -> Option<usize> {
        let between = |link: &Link| (link.gateway, link.relay) == (gateway, relay);
        let at = self.links.iter().position(|l| between(l) && !l.is_retired);
        if at.is_some() {
            return at;
        }
        let gateway_proved = self.proves(gateway, relay)?;
        let relay_proved = self.proves(relay, gateway)?;
        self.links.push(Link {
            gateway,
            relay,
            gateway_proved,
            relay_proved,
            is_retired: false,
            sessions: Vec::new(),
        });
        Some(self.links.len() - 1)
    }

    /// The key that a node shows, and the registration that another sees with it; `None` where that one does
    /// not know it.
    fn proves(&mut self, node: usize, to: usize) -> Option<(PublicKey, u64)> {
        let shown = self.nodes[node].running.as_ref()?.shown;
        let id = self.nodes[node].id.clone();
        let roster = self.nodes[to].acts_on(self.now)?;
        let listed = roster.node_by_key(&shown).filter(|node| node.id == id)?;
        Some((shown, listed.registration))
    }

    fn drop_links_of(&mut self, node: usize) {
        self.links
            .retain(|link| link.gateway != node && link.relay != node);
    }

    async fn tick(&mut self, length: u64, chance: &mut Chance) {
        for node in 0..NODES {
            self.master.turn(chance, self.now).await;
            self.look_at_what_is_shown();
            let before = self.registration(&self.nodes[node].id);
            let (now, master) = (self.now, &mut self.master);
            let contact = self.nodes[node].contact(master, now, chance).await;
            if let Some((token, key)) = contact.registered {
                self.registered(node, token, key, before);
            }
            if let Some(key) = contact.left {
                self.left.insert(key, self.now);
            }
        }
        self.master.keep(self.now).await;
        // What the master did hears who waits for it.
        for node in 0..NODES {
            self.master.turn(chance, self.now).await;
            self.look_at_what_is_shown();
            let (now, master) = (self.now, &mut self.master);
            self.nodes[node].contact(master, now, chance).await;
        }
        self.look_at_rosters(length);
        self.look_at_nodes();
        self.carry();
        self.look_at_links();
        self.look_at_tokens();
    }

    fn registered(
        &mut self,
        node: usize,
        token: RegistrationToken,
        key: PublicKey,
        before: Option<u64>,
    ) {
        let jti = token.jti.clone();
        let id = self.nodes[node].id.clone();
        let by = (id.clone(), key);
        if self
            .used
            .insert(jti.clone(), by.clone())
            .is_some_and(|was| was != by)
        {
            self.breaks("a registration token serves twice", &jti);
        }
        let after = self.registration(&id);
        if let Some(before) = before
            && after != Some(before)
        {
            self.over.insert((id.clone(), before));
        }
        let role = match GATEWAYS.contains(&node) {
            true => Role::Gateway,
            false => Role::Relay,
        };
        self.last_used.push((token, id, role));
    }

    /// Nodes act on the rosters that they have now.
    fn carry(&mut self) {
        let nodes = &self.nodes;
        let is_there = |n: usize| nodes[n].running.is_some();
        self.links
            .retain(|link| is_there(link.gateway) && is_there(link.relay));
        for at in (0..self.links.len()).rev() {
            let link = &self.links[at];
            let (gateway, relay) = (link.gateway, link.relay);
            let sides = [
                (gateway, relay, link.relay_proved),
                (relay, gateway, link.gateway_proved),
            ];
            for (side, peer, (key, registration)) in sides {
                let id = self.nodes[peer].id.clone();
                let vouched = match self.nodes[side].acts_on(self.now) {
                    Some(roster) => roster.vouches(&id, &key, registration),
                    None => Vouched::Not,
                };
                let vouched = match (self.sabotage, vouched) {
                    (Some(Sabotage::KeepsTheRevoked), Vouched::Not) => Vouched::Wholly,
                    (Some(Sabotage::ClosesTheRotated), Vouched::ForSessions) => Vouched::Not,
                    (_, vouched) => vouched,
                };
                match vouched {
                    Vouched::Wholly => {}
                    Vouched::ForSessions => self.links[at].is_retired = true,
                    Vouched::Not => {
                        let is_over = self.over.contains(&(id.clone(), registration));
                        if !is_over && self.nodes[side].acts_on(self.now).is_some() {
                            let how = format!("node {side} closes its connection with {id}");
                            self.breaks("a rotation drops sessions", how);
                        }
                        self.links.remove(at);
                        break;
                    }
                }
            }
            // The node's own identity has changed: what it dialled is dialled anew.
            if let Some(link) = self.links.get_mut(at)
                && let Some(running) = &self.nodes[link.gateway].running
                && (link.gateway, link.relay) == (gateway, relay)
                && running.shown != link.gateway_proved.0
            {
                link.is_retired = true;
            }
        }
        let (now, service) = (self.now, service());
        for gateway in GATEWAYS {
            let time = self.nodes[gateway].time_secs(now);
            let Some(standing) = self.nodes[gateway].standing(now) else {
                continue;
            };
            let looks = self.sabotage != Some(Sabotage::SessionsStay);
            for link in self.links.iter_mut().filter(|l| l.gateway == gateway) {
                link.sessions.retain(|session| {
                    time < session.exp && (!looks || standing.holds(&service, &session.grounds))
                });
            }
        }
        self.links
            .retain(|link| !(link.is_retired && link.sessions.is_empty()));
    }

    // What must hold.

    /// Whether a node was revoked, or another registered in its place: nobody waits for it to hear anything.
    fn is_over(&mut self, node: usize) -> bool {
        let id = self.nodes[node].id.clone();
        let own = self.nodes[node].acts_on(self.now);
        let registration = own.and_then(|r| r.node(&id)).map(|node| node.registration);
        registration.is_some_and(|registration| self.over.contains(&(id, registration)))
    }

    /// Whether a node hears of what the master knows.
    fn hears(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        self.master.running.is_some()
            && node.running.is_some()
            && !node.is_cut
            && node.heard == self.now
    }

    /// What a master shows to who asks it: nothing older than what any has shown.
    fn look_at_what_is_shown(&mut self) {
        let Some(running) = &self.master.running else {
            return;
        };
        let (epoch, shown) = (running.roster.epoch, self.shown);
        if epoch < shown {
            self.breaks(
                "a master shows what is old",
                format!("{epoch} after {shown}"),
            );
        }
        self.shown = shown.max(epoch);
    }

    /// What the master publishes.
    fn look_at_rosters(&mut self, length: u64) {
        let Some(running) = &self.master.running else {
            return;
        };
        let (roster, token) = (running.roster.clone(), running.token.clone());
        if self.history.last() != Some(&token) {
            self.history.push(token);
        }
        let content = Roster {
            issued_at: 0,
            ..roster.clone()
        };
        let before = self.contents.insert(roster.epoch, content.clone());
        if before.is_some_and(|before| before != content) {
            self.breaks("an epoch has one content", roster.epoch);
        }
        let listed: HashSet<_> = roster.nodes.iter().flat_map(|n| &n.keys).copied().collect();
        if let Some(back) = listed.intersection(&self.gone).next().copied() {
            self.breaks("a key that left the roster comes back", back);
        }
        let gone = self.listed.difference(&listed).copied();
        self.gone.extend(gone);
        self.listed.clone_from(&listed);

        for node in 0..NODES {
            let Some(listed) = roster.node(&self.nodes[node].id) else {
                continue;
            };
            let heard = self.nodes[node].heard.max(self.master_since);
            if !listed.services.is_empty() && self.now - heard >= SUSPECT_AFTER {
                let silent = self.now - heard;
                self.breaks(
                    "an exit that is silent",
                    format!("node {node}, for {silent} s"),
                );
            }
            for key in &listed.keys {
                // The master has looked since the overlap's end, by whatever its clock shows.
                let since = self.left.get(key).copied().unwrap_or(self.now);
                let over = since + IDENTITY_OVERLAP + 2 * length + 50;
                if self.now > over && self.now > self.master_since + 50 {
                    self.breaks("an identity outlives its overlap", format!("node {node}"));
                }
            }
        }
    }

    /// What nodes act on, and by which keys they know each other.
    fn look_at_nodes(&mut self) {
        let now = self.now;
        for node in 0..NODES {
            // The clock is looked at, whatever it shows.
            self.nodes[node].time_secs(now);
            let latest = self.nodes[node].latest;
            let Some(roster) = self.nodes[node].acts_on(now) else {
                continue;
            };
            let (epoch, issued_at) = (roster.epoch, roster.issued_at);
            if epoch < self.nodes[node].newest_epoch {
                self.breaks("an epoch goes back", format!("node {node} to {epoch}"));
            }
            self.nodes[node].newest_epoch = epoch;
            if latest >= issued_at + MAX_AGE {
                let how = format!("node {node}, for {} s", latest - issued_at);
                self.breaks("acts on a roster that is too old", how);
            }
        }
        for node in 0..NODES {
            for peer in (0..NODES).filter(|peer| *peer != node) {
                let Some(shown) = self.nodes[node].running.as_ref().map(|r| r.shown) else {
                    continue;
                };
                if self.is_over(peer) {
                    continue;
                }
                let id = self.nodes[node].id.clone();
                let own = self.nodes[node]
                    .acts_on(now)
                    .and_then(|r| r.node(&id).cloned());
                let theirs = self.nodes[peer]
                    .acts_on(now)
                    .and_then(|r| r.node(&id).cloned());
                if let (Some(own), Some(theirs)) = (own, theirs)
                    && own.registration == theirs.registration
                    && !theirs.keys.contains(&shown)
                {
                    let how = format!("by {id} to node {peer}");
                    self.breaks("an identity that a peer does not know is shown", how);
                }
            }
        }
    }

    fn look_at_links(&mut self) {
        let mut found = None;
        for link in &self.links {
            let ids = [link.gateway, link.relay].map(|n| self.nodes[n].id.clone());
            let [gateway, relay] = ids;
            let over_at = |id, proved: (PublicKey, u64)| self.over.contains(&(id, proved.1));
            if (over_at(relay, link.relay_proved) && self.hears(link.gateway))
                || (over_at(gateway, link.gateway_proved) && self.hears(link.relay))
            {
                let how = format!("between {} and {}", link.gateway, link.relay);
                found = Some(("a connection with a revoked node", how));
            }
            for session in &link.sessions {
                if self.tokens[session.issued].is_revoked && self.hears(link.gateway) {
                    let how = format!("at gateway {}", link.gateway);
                    found = Some(("a session that was revoked", how));
                }
            }
        }
        if let Some((invariant, how)) = found {
            self.breaks(invariant, how);
        }
    }

    /// Which tokens open sessions.
    fn look_at_tokens(&mut self) {
        let (now, service) = (self.now, service());
        let (cluster, of_master) = (self.master.cluster.clone(), self.master.time(now));
        let of_master = of_master.unwrap_or(now);
        let mut found = None;
        for gateway in GATEWAYS {
            let time = self.nodes[gateway].time_secs(now);
            let latest = self.nodes[gateway].latest;
            let Some(standing) = self.nodes[gateway].standing(now) else {
                continue;
            };
            let hears = self.hears(gateway);
            let epoch = self.nodes[gateway].newest_epoch;
            for issued in self.tokens.iter().filter(|issued| !issued.token.is_empty()) {
                let verified = standing.verify(&issued.token, &cluster, &service, time);
                let has_expired = latest >= issued.exp;
                let holds = time < issued.exp
                    && of_master < issued.exp
                    && issued.iat <= time + CLOCK_SKEW
                    && !issued.is_revoked
                    && epoch >= issued.known_from;
                let how = format!("at gateway {gateway}, {:?}", verified.as_ref().err());
                match verified {
                    Ok(_) if has_expired => found = Some(("what expired holds again", how)),
                    Ok(_) if issued.is_revoked && hears => {
                        found = Some(("a token that was revoked holds", how));
                    }
                    Err(_) if holds => found = Some(("a token that holds is refused", how)),
                    _ => {}
                }
            }
        }
        if let Some((invariant, how)) = found {
            self.breaks(invariant, how);
        }
    }
}

fn service() -> ServiceName {
    "echo".parse().unwrap()
}
