//! The registry at work: the store, who is heard of, and the signed roster that is served.

mod certificates;
mod current;
mod fleet;
mod identities;
mod keys;
mod lease;
mod signed;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
pub(crate) use wavry_credentials::clock::unix_time;
use wavry_credentials::{
    audit::Event,
    cert,
    token::{KeySet, Rejected, Scope},
};
use wavry_proto::{
    control::{Node, Revocation, Role, Roster, Service},
    id::{ClusterName, NodeId, PublicKey, ServiceName, SubjectDigest},
    token::NodeRequest,
};

use crate::{
    audit_sink,
    authority::{self, Authorities},
    identity::{self, Lives},
    keys::Pace,
    metrics as names,
    presence::{Presence, Report, State, Whereabouts},
    problem::Refusal,
    provision::Issue,
    ring::Ring,
    signing::Custody,
    store::{
        self, Admission, Announcement, Done, Move, Order, RegisterError, RevokeError, Snapshot,
        Store,
    },
};

pub(crate) use signed::Signed;

/// How long an answer waits for its line in the audit log.
const AUDIT_DEADLINE: Duration = Duration::from_secs(2);

/// Store, presence and roster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    /// Has the keys that sign.
    custody: Custody,
    authority: Option<authority::Config>,
    /// Who vouches for the certificates of nodes.
    vouching: cert::Authorities,
    cluster: ClusterName,
    times: Times,
    presence: Mutex<Presence>,
    /// Held while the store is written, so that presence and store change in the same order.
    writing: tokio::sync::Mutex<()>,
    published: watch::Sender<Arc<Published>>,
    signed: watch::Sender<Signed>,
    /// Whether what is so could be signed when that was last tried.
    signs: watch::Sender<bool>,
    /// When leases could not be signed, if that was so when they were last asked for.
    unsigned_leases: Mutex<Option<Instant>>,
    /// The revision of what gateways share.
    fleet: watch::Sender<u64>,
    /// Told when a gateway has taken some of it in.
    acknowledged: watch::Sender<()>,
    /// Told after each line of the audit log.
    audited: watch::Sender<()>,
    /// When the newest look at what other masters wrote began.
    looked: tokio::sync::Mutex<Instant>,
    /// Whether such looks succeed.
    is_current: watch::Sender<bool>,
}

/// When what was heard counts as old.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// A node not heard for so long is suspect.
    pub(crate) suspect_after: Duration,
    /// And for so long, gone.
    pub(crate) gone_after: Duration,
    /// A roster is signed anew when it is so old.
    pub(crate) roster_refresh: Duration,
    /// How long keys stay in each part of their life.
    pub(crate) pace: Pace,
    /// How long the parts of a rotation of a node's identity take.
    pub(crate) identity_pace: identity::Pace,
}

/// What is so now: whom the master lets in, and what it tells operators.
pub(crate) struct Published {
    /// What the next roster says.
    pub(crate) roster: Roster,
    /// The keys, of which one signs it.
    ring: Arc<Ring>,
    /// The authorities, of which one signs certificates.
    pub(crate) authorities: Arc<Authorities>,
    /// Every key of every node.
    node_keys: KeySet,
    /// The identities of every node, ordered by id.
    identities: Vec<Lives>,
}

impl Registry {
    /// Serves what the store holds.
    pub(crate) async fn new(
        store: Store,
        custody: Custody,
        cluster: ClusterName,
        times: Times,
        authority: Option<authority::Config>,
    ) -> Result<Self, store::Error> {
        let now = Instant::now();
        let store::State {
            snapshot,
            keys,
            authorities,
        } = store.state().await?;
        let authorities = Arc::new(Authorities::of(authorities, &custody));
        let (_, revision) = store.versions().await?;
        let ring = Arc::new(Ring::of(keys, &custody)?);
        let nodes = snapshot.nodes.iter().map(|node| node.id.clone());
        let presence = Presence::new(nodes, now);
        let first = Arc::new(Published::new(snapshot, ring, authorities, &cluster));
        let vouching = cert::Authorities::default();
        vouching.replace(authority::certificates(&first.roster.authorities.trusted));
        first.report();
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                custody,
                authority,
                vouching,
                cluster,
                times,
                presence: Mutex::new(presence),
                writing: tokio::sync::Mutex::new(()),
                published: watch::Sender::new(first),
                signed: watch::Sender::new(Signed::none()),
                signs: watch::Sender::new(true),
                unsigned_leases: Mutex::default(),
                fleet: watch::Sender::new(revision),
                acknowledged: watch::Sender::new(()),
                audited: watch::Sender::new(()),
                looked: tokio::sync::Mutex::new(now),
                is_current: watch::Sender::new(true),
            }),
        })
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.shared.cluster
    }

    /// The keys that sign.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        self.shared.published.borrow().ring.clone()
    }

    /// The roster and its successors.
    pub(crate) fn published(&self) -> watch::Receiver<Arc<Published>> {
        self.shared.published.subscribe()
    }

    /// The node that a bearer token speaks for, on the connection with this exporter, and the key by which
    /// it does.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        exporter: &[u8],
        now: u64,
    ) -> Result<(NodeId, PublicKey), Refusal> {
        match self.speaks_for(token, exporter, now) {
            // It may have registered with another master a moment ago.
            Err(Refusal::UnknownNode) if self.shared.store.is_shared() => {
                self.catch_up().await?;
                self.speaks_for(token, exporter, now)
            }
            known => known,
        }
    }

    fn speaks_for(
        &self,
        token: &str,
        exporter: &[u8],
        now: u64,
    ) -> Result<(NodeId, PublicKey), Refusal> {
        let published = self.shared.published.borrow().clone();
        let scope = Scope {
            cluster: &self.shared.cluster,
            audience: "master",
            binding: exporter,
        };
        let request: NodeRequest = match published.node_keys.verify(token, scope, now) {
            Err(Rejected::UnknownKey) => return Err(Refusal::UnknownNode),
            other => other?,
        };
        // Some node signed this. That the node is the one it names, its own keys have to say.
        let node = published
            .roster
            .node(&request.sub)
            .ok_or(Refusal::UnknownNode)?;
        let mut refused = Refusal::UnknownNode;
        for key in &node.keys {
            match KeySet::from_public_keys(&[*key]).verify::<NodeRequest>(token, scope, now) {
                Ok(_) => return Ok((request.sub, *key)),
                Err(rejected) => refused = rejected.into(),
            }
        }
        Err(refused)
    }

    /// Registers a node. Once begun it ends, whether or not the caller waits for it.
    pub(crate) async fn register(&self, admission: Admission, now: u64) -> Result<(), Refusal> {
        self.detached(move |shared| async move {
            let written = timeout(AUDIT_DEADLINE, async {
                let writing = shared.writing.lock().await;
                let written = shared.store.register(&admission, now).await?;
                Ok::<_, RegisterError>((writing, written))
            });
            // Out of time, the transaction is undone: neither node nor audit line is there. A server may
            // have committed it nevertheless when the deadline struck in the middle of that.
            let written = written.await;
            match &written {
                Ok(Ok(_)) => count_line("written"),
                Err(_) | Ok(Err(RegisterError::Store(_))) => count_line("failed"),
                Ok(Err(_)) => {}
            }
            let (_writing, written) = written.unwrap_or(Err(store::Error::TooSlow.into()))?;
            shared.audited.send_replace(());
            shared.presence().wrote(
                &admission.node,
                admission.announcement,
                written.revision,
                Instant::now(),
            );
            shared.publish(written.changed).await?;
            Ok(())
        })
        .await
    }

    /// Takes a node out of the cluster for good; nodes are told at once.
    pub(crate) async fn revoke_node(&self, node: NodeId, order: Order) -> Result<(), Refusal> {
        let revoked = self.carry_out(async move |shared| {
            let revoked = shared.store.revoke_node(&node, unix_time(), &order).await?;
            if !revoked.is_repeated {
                shared.presence().forget(&node);
                metrics::counter!(names::REVOCATIONS, "kind" => "node").increment(1);
                tracing::warn!(%node, "node revoked");
            }
            Ok::<_, RevokeError>(revoked)
        });
        revoked.await.map(|revoked| revoked.outcome)
    }

    /// Has a node be elsewhere, or take another share; nodes are told at once.
    pub(crate) async fn place_node(
        &self,
        node: NodeId,
        to: Move,
        order: Order,
    ) -> Result<(), Refusal> {
        let placed =
            self.carry_out(async move |shared| shared.store.place_node(&node, &to, &order).await);
        placed.await.map(|placed| placed.outcome)
    }

    /// Has no lease of a node's flows hold that was signed until now; nodes are told at once.
    pub(crate) async fn revoke_leases(&self, node: NodeId, order: Order) -> Result<(), Refusal> {
        let revoked =
            self.carry_out(async move |shared| shared.store.revoke_leases(&node, &order).await);
        if !revoked.await?.is_repeated {
            metrics::counter!(names::REVOCATIONS, "kind" => "leases").increment(1);
        }
        Ok(())
    }

    /// Makes a service or changes it; nodes are told at once. Whether it is new.
    pub(crate) async fn put_service(
        &self,
        service: Service,
        order: Order,
    ) -> Result<bool, Refusal> {
        let put =
            self.carry_out(async move |shared| shared.store.put_service(&service, &order).await);
        put.await.map(|put| put.outcome)
    }

    /// Takes a service away; nodes are told at once.
    pub(crate) async fn delete_service(
        &self,
        name: ServiceName,
        order: Order,
    ) -> Result<(), Refusal> {
        let deleted =
            self.carry_out(async move |shared| shared.store.delete_service(&name, &order).await);
        deleted.await.map(|deleted| deleted.outcome)
    }

    /// Makes the session tokens of a subject worthless; gateways are told at once.
    pub(crate) async fn revoke_subject(
        &self,
        service: Option<ServiceName>,
        subject: SubjectDigest,
        order: Order,
    ) -> Result<Revocation, Refusal> {
        let revoked = self.carry_out(async move |shared| {
            let (store, now) = (&shared.store, unix_time());
            let revoked = store.revoke_subject(service.as_ref(), subject, now, &order);
            revoked.await
        });
        let revoked = revoked.await?;
        if !revoked.is_repeated {
            metrics::counter!(names::REVOCATIONS, "kind" => "subject").increment(1);
        }
        Ok(revoked.outcome)
    }

    /// Puts on record what a token says that is to be signed; gives what it says, which is what was said
    /// before where it was asked for before.
    pub(crate) async fn issue(&self, issue: Issue, order: Order) -> Result<Issue, Refusal> {
        let issued = self.carry_out(async move |shared| shared.store.issue(issue, &order).await);
        issued.await.map(|issued| issued.outcome)
    }

    /// Has the store carry out what an operator ordered, within the time that an answer may wait for its
    /// audit line, and serves what came of it.
    async fn carry_out<T, E, F, Fut>(&self, order: F) -> Result<Done<T>, Refusal>
    where
        F: FnOnce(Arc<Shared>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Done<T>, E>> + Send + 'static,
        T: Send + 'static,
        E: Into<Refusal> + From<store::Error> + Send + 'static,
    {
        let done = self
            .detached(move |shared| async move {
                let written = timeout(AUDIT_DEADLINE, async {
                    let writing = shared.writing.lock().await;
                    Ok::<_, E>((writing, order(shared.clone()).await?))
                });
                let (_writing, mut done) = shared.audited(written.await)?;
                shared.publish(done.changed.take()).await?;
                Ok(done)
            })
            .await?;
        // Another master may have done it a moment ago.
        if done.is_repeated {
            self.catch_up().await?;
        }
        Ok(done)
    }

    /// Writes a line of the audit log; once this returned, it is durable.
    pub(crate) async fn audit(&self, event: Event) -> Result<(), Refusal> {
        self.detached(move |shared| async move {
            let written = timeout(AUDIT_DEADLINE, async {
                let _writing = shared.writing.lock().await;
                shared.store.audit(&event).await
            });
            let written = written.await.unwrap_or(Err(store::Error::TooSlow));
            count_line(if written.is_ok() { "written" } else { "failed" });
            shared.audited.send_replace(());
            Ok(written?)
        })
        .await
    }

    /// Copies the audit log to a sink, as long as it is polled.
    pub(crate) fn copy_audit_to(
        &self,
        sink: audit_sink::Config,
    ) -> impl Future<Output = ()> + use<> {
        let news = self.shared.audited.subscribe();
        audit_sink::follow(self.shared.store.clone(), sink, news)
    }

    /// Takes a heartbeat. One that says nothing new costs no write.
    pub(crate) async fn heartbeat(
        &self,
        node: NodeId,
        said: Announcement,
        report: Report,
    ) -> Result<(), Refusal> {
        {
            let mut presence = self.shared.presence();
            presence.told(&node, report);
            if presence.is_old_news(&node, &said, Instant::now()) {
                return Ok(());
            }
        }
        self.detached(move |shared| async move {
            let _writing = shared.writing.lock().await;
            let written = shared.store.heartbeat(&node, &said).await?;
            let now = Instant::now();
            shared.presence().wrote(&node, said, written.revision, now);
            shared.publish(written.changed).await?;
            Ok(())
        })
        .await
    }

    /// Every registered node and what is known of its whereabouts, ordered by id.
    pub(crate) fn nodes(&self) -> Vec<(Node, Option<Whereabouts>)> {
        let roster = self.shared.published.borrow().roster.nodes.clone();
        let (presence, now) = (self.shared.presence(), Instant::now());
        let gone_after = self.shared.times.gone_after;
        let nodes = roster.into_iter();
        nodes
            .map(|node| {
                let whereabouts = presence.of(&node.id, gone_after, now);
                (node, whereabouts)
            })
            .collect()
    }

    /// What is due as time passes: takes the services from nodes that were not heard for too long,
    /// signs a roster anew that has become old, and counts nodes by how they do.
    pub(crate) async fn keep(&self) {
        self.look_for_silence().await;
        self.turn_keys().await;
        self.turn_authorities().await;
        self.retire_identities().await;
        self.refresh_roster().await;
        self.report_nodes();
    }

    async fn refresh_roster(&self) {
        let shared = &self.shared;
        let (epoch, issued_at) = {
            let roster = &shared.published.borrow().roster;
            (roster.epoch, roster.issued_at)
        };
        let age = unix_time().saturating_sub(issued_at);
        if Duration::from_secs(age) < shared.times.roster_refresh {
            return;
        }
        let _writing = shared.writing.lock().await;
        let renewed = match shared.store.renew(Some(epoch)).await {
            Ok(snapshot) => shared.publish(Some(snapshot)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the roster could not be renewed");
        }
    }

    fn report_nodes(&self) {
        let nodes = self.nodes();
        for role in Role::ALL {
            for state in State::ALL {
                let of_both = |(node, whereabouts): &&(Node, Option<Whereabouts>)| {
                    node.role == role && whereabouts.as_ref().is_some_and(|w| w.state == state)
                };
                let count = nodes.iter().filter(of_both).count();
                metrics::gauge!(names::NODES, "role" => role.as_str(), "state" => state.as_str())
                    .set(count as f64);
            }
        }
    }

    async fn look_for_silence(&self) {
        let shared = &self.shared;
        let _writing = shared.writing.lock().await;
        let now = Instant::now();
        let heard = shared.presence().untold(now);
        match shared.store.share(&heard).await {
            Ok(Some(known)) => shared.presence().learn(known, now),
            Ok(None) => {}
            // Whom others hear is not known, so nobody is taken to be silent.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                return tracing::error!(error, "who was heard could not be shared");
            }
        }
        let silent = shared
            .presence()
            .take_silent(shared.times.suspect_after, now);
        if silent.is_empty() {
            return;
        }
        let noted = match shared.store.silence(&silent).await {
            Ok(changed) => shared.publish(changed).await,
            Err(error) => {
                shared.presence().put_back(&silent);
                Err(error)
            }
        };
        match noted {
            Ok(()) => {
                for node in &silent {
                    tracing::warn!(%node, "node fell silent");
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "silent nodes could not be noted");
            }
        }
    }

    /// Closes the store.
    pub(crate) async fn close(&self) {
        self.shared.store.close().await;
    }

    /// Refuses a node that is not registered.
    pub(crate) fn is_registered(&self, node: &NodeId) -> Result<(), Refusal> {
        let published = self.shared.published.borrow();
        let known = published.roster.node(node).is_some();
        known.then_some(()).ok_or(Refusal::UnknownNode)
    }

    /// Runs a write apart from the request that wants it: a client that goes away between commit
    /// and publication must not leave an old roster being served.
    async fn detached<F, Fut, T>(&self, write: F) -> Result<T, Refusal>
    where
        F: FnOnce(Arc<Shared>) -> Fut,
        Fut: Future<Output = Result<T, Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        match tokio::spawn(write(self.shared.clone())).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Refusal::Leaving),
            },
        }
    }
}

impl Shared {
    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the audit line of a write, which is `Err` where it took too long: then the transaction is
    /// undone, and neither the change nor its line is there.
    fn audited<T, E: Into<Refusal> + From<store::Error>>(
        &self,
        written: Result<Result<T, E>, tokio::time::error::Elapsed>,
    ) -> Result<T, Refusal> {
        let written = written.unwrap_or_else(|_| Err(store::Error::TooSlow.into()));
        let written = written.map_err(E::into);
        match &written {
            Ok(_) => count_line("written"),
            Err(Refusal::NotAudited(_) | Refusal::Internal(_)) => count_line("failed"),
            Err(_) => {}
        }
        self.audited.send_replace(());
        written
    }

    /// Publishes what a change has led to, with the keys that it may have changed.
    async fn publish(&self, changed: Option<Snapshot>) -> Result<(), store::Error> {
        let Some(snapshot) = changed else {
            return Ok(());
        };
        let before = self.published.borrow().clone();
        let shown = (&before.roster.token_keys, &before.roster.roster_keys);
        // Its own change or another master's.
        if shown != (&snapshot.token_keys, &snapshot.roster_keys)
            || before.roster.authorities != snapshot.authorities
        {
            return self.reload().await;
        }
        let (ring, authorities) = (before.ring.clone(), before.authorities.clone());
        self.serve(Published::new(snapshot, ring, authorities, &self.cluster));
        Ok(())
    }

    /// Serves a roster, unless a newer one is served.
    fn serve(&self, next: Published) {
        self.published.send_if_modified(|current| {
            let is_newer = next.roster.epoch > current.roster.epoch;
            if is_newer {
                let (epoch, nodes) = (next.roster.epoch, next.roster.nodes.len());
                tracing::info!(%epoch, nodes, "roster changed");
                next.report();
                let trusted = &next.roster.authorities.trusted;
                if *trusted != current.roster.authorities.trusted {
                    self.vouching.replace(authority::certificates(trusted));
                }
                *current = Arc::new(next);
            }
            is_newer
        });
    }
}

impl Published {
    fn new(
        snapshot: Snapshot,
        ring: Arc<Ring>,
        authorities: Arc<Authorities>,
        cluster: &ClusterName,
    ) -> Self {
        let keys: Vec<_> = snapshot
            .nodes
            .iter()
            .flat_map(|n| &n.keys)
            .copied()
            .collect();
        let identities = snapshot.identities.clone();
        let roster = snapshot.into_roster(cluster.clone(), unix_time());
        Self {
            ring,
            authorities,
            node_keys: KeySet::from_public_keys(&keys),
            identities,
            roster,
        }
    }

    fn report(&self) {
        metrics::gauge!(names::ROSTER_EPOCH).set(self.roster.epoch.0 as f64);
        metrics::gauge!(names::SERVICES).set(self.roster.services.len() as f64);
    }
}

fn count_line(outcome: &'static str) {
    metrics::counter!(names::AUDIT_LINES, "outcome" => outcome).increment(1);
}
