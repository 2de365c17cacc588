//! What goes on with the master: registration, heartbeats, and following the roster.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use rustls_pki_types::CertificateDer;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use wavry_proto::{
    control::{
        self, Challenge, Heard, Heartbeat, IdentityTask, Register, Registered, Roster,
        possession_message,
    },
    id::{Epoch, NodeId, PublicKey, ServiceName},
    token::{MAX_ROSTER_LEN, NodeRequest, Validity},
};

use super::{
    Error,
    certificate::{self, Certificates},
    kept::Kept,
    metrics as names,
    record::Record,
    retry::Attempts,
    roster,
    trust::Trust,
};
use crate::{
    bearer,
    cert::{self, Member, Pair},
    clock::{since_epoch, unix_time},
    identity::{Identity, Shown},
    master::{Ask, Client, Connection, Failure},
    secret::Secret,
    token::Scope,
};

/// What the background work shares.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) shown: Shown,
    pub(super) record: Record,
    trust: Trust,
    services: Vec<ServiceName>,
    kept: Kept,
    pub(super) said: watch::Sender<Said>,
    pub(super) sessions: AtomicU64,
    /// Changes when a master turns out not to answer.
    unanswered: watch::Sender<()>,
    /// Of the certificate that is shown.
    certificate: watch::Sender<Option<ShownCertificate>>,
    /// Changes when a master refuses it, or wants one.
    certificate_refused: watch::Sender<()>,
}

/// What is known of the certificate that the node shows.
#[derive(Clone)]
pub(super) struct ShownCertificate {
    certificate: CertificateDer<'static>,
    /// From when it holds.
    pub(super) from: SystemTime,
    /// Until when.
    pub(super) until: SystemTime,
    /// The registration that it is for.
    pub(super) registration: u64,
}

impl ShownCertificate {
    /// Whether it is by one that is trusted.
    pub(super) fn is_signed_by(&self, authorities: &control::Authorities) -> bool {
        let trusted = authorities.trusted.iter();
        let trusted = trusted.filter_map(|text| STANDARD.decode(text).ok());
        let vouching = cert::Authorities::default();
        vouching.replace(trusted.map(Into::into));
        let own = std::slice::from_ref(&self.certificate);
        // While it holds: that it expires is no question of who signed it.
        vouching.member(own, self.from).is_ok()
    }
}

/// What the node tells of itself; the master hears of a change at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) transit: Vec<SocketAddr>,
    pub(super) attached: Vec<NodeId>,
    pub(super) draining: bool,
}

/// Pause between heartbeats until the master has said how long it should be.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// A heartbeat is answered from memory, or after a write that takes 2 s at most. With the pause before it
/// and a connection to a master that stalls (5 s), the next master hears of the node within `suspect_after`.
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(3);
/// The master holds a request for a newer roster for 25 s; the rest is for the way.
const ROSTER_DEADLINE: Duration = Duration::from_secs(35);
/// Asked for without an epoch, it is sent at once; the longest in this time is 7 Mbit/s.
const FIRST_ROSTER_DEADLINE: Duration = Duration::from_secs(10);
/// Where a master tells which of its keys followed which.
const SUCCESSION: &str = "/.well-known/wavry/succession";
/// How long a request's token is good.
const REQUEST_LIFETIME: u64 = 60;

impl Link {
    pub(super) fn new(
        client: Client,
        shown: Shown,
        record: Record,
        trust: Trust,
        services: Vec<ServiceName>,
        kept: Kept,
    ) -> Self {
        Self {
            client,
            shown,
            record,
            trust,
            services,
            kept,
            said: watch::Sender::default(),
            sessions: AtomicU64::new(0),
            unanswered: watch::Sender::default(),
            certificate: watch::Sender::default(),
            certificate_refused: watch::Sender::default(),
        }
    }

    /// Shows a certificate of this node's from now on.
    pub(super) fn show(&self, pair: Pair) {
        let shown = Member::of(pair.leaf()).map(|member| ShownCertificate {
            certificate: pair.leaf().clone(),
            from: pair.not_before(),
            until: pair.not_after(),
            registration: member.registration,
        });
        self.client.show(pair);
        self.certificate.send_replace(shown);
    }

    /// The certificate that is shown.
    pub(super) fn shown_certificate(&self) -> Option<ShownCertificate> {
        self.certificate.borrow().clone()
    }

    /// Changes when a master refuses the certificate, or wants one.
    pub(super) fn certificate_refused(&self) -> watch::Receiver<()> {
        self.certificate_refused.subscribe()
    }

    /// Shows no certificate any more that a master refuses.
    pub(super) fn heed(&self, failure: &Failure) {
        if failure.is_about_certificate() {
            self.client.hide_certificate();
            self.certificate.send_replace(None);
            self.certificate_refused.send_replace(());
        }
    }

    /// The `authorization` of one request on this connection.
    pub(super) fn authorization(&self, connection: &Connection) -> String {
        let now = unix_time();
        let request = NodeRequest {
            sub: self.record.node_id.clone(),
            validity: Validity {
                iat: now,
                nbf: now,
                exp: now + REQUEST_LIFETIME,
            },
        };
        let scope = Scope {
            cluster: &self.record.cluster,
            audience: "master",
            binding: &connection.exporter,
        };
        let present = self.shown.present();
        format!("Bearer {}", present.signing.sign(&request, scope))
    }

    /// Asks for a roster newer than `held`, and keeps it; `None` when there was none while the master
    /// waited.
    async fn newer_roster(
        &self,
        connection: &mut Connection,
        held: Epoch,
    ) -> Result<Option<Roster>, Failure> {
        let path = format!("/v1/roster?after={held}");
        let least = Epoch(held.0.saturating_add(1));
        self.roster(connection, &path, least, ROSTER_DEADLINE).await
    }

    /// Asks for a roster of epoch `least` or a later one, and keeps it.
    async fn roster(
        &self,
        connection: &mut Connection,
        path: &str,
        least: Epoch,
        deadline: Duration,
    ) -> Result<Option<Roster>, Failure> {
        let authorization = self.authorization(connection);
        let answer = connection
            .ask(Ask {
                authorization: Some(&authorization),
                deadline,
                max_answer: MAX_ROSTER_LEN,
                ..Ask::get(path)
            })
            .await?;
        if answer.status != StatusCode::OK {
            return Ok(None);
        }
        let mut pinned = self.trust.pinned();
        let mut roster = pinned.accept(&answer.body, least, unix_time());
        if matches!(roster, Err("unknown_key")) {
            // Keys have changed, perhaps several times, since the node last heard of the master.
            let succession = connection.ask(Ask::get(SUCCESSION)).await?;
            if pinned.follow(&read::<Vec<String>>(&succession.body)?, unix_time()) {
                roster = pinned.accept(&answer.body, least, unix_time());
            }
        }
        let roster = roster.map_err(Failure::Roster)?;
        self.trust.take_over(&self.record, &roster).await;
        self.kept.write(answer.body.to_vec()).await;
        Ok(Some(roster))
    }

    async fn heartbeat(
        &self,
        connection: &mut Connection,
        said: &Said,
        epoch: Epoch,
    ) -> Result<Heard, Failure> {
        let heartbeat = Heartbeat {
            addresses: said.addresses.clone(),
            transit: said.transit.clone(),
            attached: said.attached.clone(),
            services: self.services.clone(),
            sessions: self.sessions.load(Ordering::Relaxed),
            epoch,
            draining: said.draining,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let authorization = self.authorization(connection);
        let mut ask = Ask::post("/v1/nodes/heartbeat", json(&heartbeat)?);
        ask.authorization = Some(&authorization);
        ask.deadline = HEARTBEAT_DEADLINE;
        read(&connection.ask(ask).await?.body)
    }
}

/// Registers `identity`, which is `provisioned` or followed it, waiting for a master that cannot be reached.
pub(super) async fn register(
    client: &Client,
    identity: &Identity,
    provisioned: PublicKey,
    token: &Secret<Vec<u8>>,
    services: &[ServiceName],
) -> Result<Record, Error> {
    let not_a_token = || Error::Invalid("secret registration_token is not a token".to_owned());
    let token = bearer::Token::read(token).map_err(|_| not_a_token())?;
    let id = token.id().ok_or_else(not_a_token)?;
    let mut attempts = Attempts::at("register");
    loop {
        match try_register(client, identity, &token, &id, services).await {
            Ok(registered) => {
                tracing::info!(node = %registered.node_id, cluster = %registered.cluster, "registered");
                return Ok(Record {
                    public_key: provisioned,
                    node_id: registered.node_id,
                    cluster: registered.cluster,
                    roster_keys: registered.roster_keys,
                });
            }
            Err(failure) => {
                let pause = attempts.failed(&failure);
                if failure.is_final() {
                    return Err(failure.into());
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn try_register(
    client: &Client,
    identity: &Identity,
    token: &bearer::Token,
    token_id: &str,
    services: &[ServiceName],
) -> Result<Registered, Failure> {
    let mut connection = client.connect().await?;
    let registered = register_over(&mut connection, identity, token, token_id, services).await;
    if registered
        .as_ref()
        .is_err_and(|failure| !failure.is_final())
    {
        client.go_on_from(&connection);
    }
    registered
}

async fn register_over(
    connection: &mut Connection,
    identity: &Identity,
    token: &bearer::Token,
    token_id: &str,
    services: &[ServiceName],
) -> Result<Registered, Failure> {
    let answer = connection
        .ask(Ask::post("/v1/nodes/challenge", Vec::new()))
        .await?;
    let Challenge { nonce } = read(&answer.body)?;
    let message = possession_message(token_id, &nonce, &connection.exporter);
    let mut request = Register {
        token: String::new(),
        public_key: identity.public_key(),
        nonce,
        signature: hex::encode(identity.sign(&message)),
        addresses: Vec::new(),
        services: services.to_vec(),
    };
    token.put_in(&mut request);
    let ask = Ask::post("/v1/nodes/register", json(&request)?);
    read(&connection.ask(ask).await?.body)
}

/// The first roster, and the connection it came by: the master's, or, where no master answers, the
/// one that was kept, if it is younger than `max_age`. No roster is older than the kept one.
pub(super) async fn first_roster(
    link: &Link,
    max_age: Duration,
    certificates: &mut Certificates,
) -> Result<(Roster, Option<Connection>), Error> {
    let kept = link.kept.read(&link.trust.pinned(), unix_time());
    if let Some(kept) = &kept {
        link.client.trust(&kept.authorities);
    }
    certificates.show_kept(link);
    let least = kept.as_ref().map(|roster| roster.epoch).unwrap_or_default();
    let mut attempts = Attempts::at("roster");
    loop {
        let attempt = async {
            let mut connection = link.client.connect().await?;
            let asked = link.roster(&mut connection, "/v1/roster", least, FIRST_ROSTER_DEADLINE);
            match asked.await {
                Ok(Some(roster)) => Ok((roster, connection)),
                // It wants a certificate, which the next connection shows.
                Err(failure) if failure.is_about_certificate() => {
                    link.heed(&failure);
                    let Err(error) = certificates.renew(link, &mut connection).await else {
                        return Err(Failure::Broken);
                    };
                    // Another master may have an authority that signs.
                    link.client.go_on_from(&connection);
                    Err(match error {
                        certificate::Error::Master(failure) => failure,
                        _ => Failure::Malformed,
                    })
                }
                not_one => {
                    link.client.go_on_from(&connection);
                    Err(not_one.err().unwrap_or(Failure::Malformed))
                }
            }
        };
        let pause = match attempt.await {
            Ok((roster, connection)) => {
                report(&roster);
                return Ok((roster, Some(connection)));
            }
            Err(failure) => {
                let pause = attempts.failed(&failure);
                if failure.is_final() {
                    return Err(failure.into());
                }
                pause
            }
        };
        if let Some(kept) = &kept
            && !roster::is_too_old(kept, max_age, since_epoch())
        {
            tracing::warn!("no master answers; this node starts from the roster that it kept");
            report(kept);
            return Ok((kept.clone(), None));
        }
        tokio::time::sleep(pause).await;
    }
}

/// Follows the roster until the receivers' side ends this task. A request that a master holds looks the same
/// as one to a master that is gone; so it is made anew whenever the master leaves a heartbeat unanswered.
pub(super) async fn follow_roster(
    link: Arc<Link>,
    mut open: Option<Connection>,
    newest: watch::Sender<Arc<Roster>>,
) {
    let mut attempts = Attempts::at("roster");
    let mut unanswered = link.unanswered.subscribe();
    loop {
        let held = newest.borrow().epoch;
        unanswered.mark_unchanged();
        let asking = over_connection(&link, &mut open, async |link, connection| {
            link.newer_roster(connection, held).await
        });
        let asked = tokio::select! {
            asked = asking => asked,
            // The sender is the link's own.
            _ = unanswered.changed() => Err(Failure::Broken),
        };
        match asked {
            Ok(Some(roster)) => {
                attempts.succeeded();
                report(&roster);
                newest.send_replace(Arc::new(roster));
            }
            Ok(None) => attempts.succeeded(),
            Err(failure) => {
                tokio::time::sleep(attempts.failed(&failure)).await;
            }
        }
    }
}

/// Sends heartbeats: at the master's interval, and at once when there is something to tell.
pub(super) async fn send_heartbeats(
    link: Arc<Link>,
    roster: watch::Receiver<Arc<Roster>>,
    farewell: watch::Sender<bool>,
    task: watch::Sender<Option<IdentityTask>>,
    master: watch::Sender<bool>,
) {
    let mut attempts = Attempts::at("heartbeat");
    let mut open = None;
    let mut news = link.said.subscribe();
    loop {
        let said = news.borrow_and_update().clone();
        let epoch = roster.borrow().epoch;
        let chosen = link.client.chosen();
        let heard = over_connection(&link, &mut open, async |link, connection| {
            link.heartbeat(connection, &said, epoch).await
        })
        .await;
        let mut is_unanswered = link.client.chosen() != chosen;
        let answers = heard.as_ref().is_ok_and(|heard| heard.signs);
        master.send_if_modified(|was| std::mem::replace(was, answers) != answers);
        let pause = match heard {
            Ok(heard) => {
                attempts.succeeded();
                metrics::gauge!(names::MASTER_UP).set(1.0);
                if said.draining {
                    farewell.send_replace(true);
                }
                task.send_if_modified(|task| {
                    let is_news = *task != heard.identity;
                    *task = heard.identity;
                    is_news
                });
                Duration::from_millis(heard.interval_ms)
                    .clamp(HEARTBEAT_INTERVAL / 100, HEARTBEAT_INTERVAL * 30)
            }
            Err(failure) => {
                metrics::gauge!(names::MASTER_UP).set(0.0);
                is_unanswered |= failure.is_of_the_connection();
                attempts.failed(&failure)
            }
        };
        if is_unanswered {
            link.unanswered.send_replace(());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = news.changed() => if changed.is_err() { return },
        }
    }
}

/// Does a request on the open connection, or on a new one; after a failure none is open, and the next one
/// is to another master.
pub(super) async fn over_connection<T>(
    link: &Link,
    open: &mut Option<Connection>,
    request: impl AsyncFnOnce(&Link, &mut Connection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut connection = match open.take() {
        Some(connection) if link.client.is_of_use(&connection) => connection,
        _ => link.client.connect().await?,
    };
    match request(link, &mut connection).await {
        Ok(answer) => {
            *open = Some(connection);
            Ok(answer)
        }
        Err(failure) => {
            link.heed(&failure);
            link.client.go_on_from(&connection);
            Err(failure)
        }
    }
}

fn report(roster: &Roster) {
    metrics::gauge!(names::ROSTER_EPOCH).set(roster.epoch.0 as f64);
    metrics::gauge!(names::ROSTER_ISSUED).set(roster.issued_at as f64);
    tracing::info!(epoch = %roster.epoch, nodes = roster.nodes.len(), "roster");
}

pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|_| Failure::Malformed)
}

pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|_| Failure::Malformed)
}
