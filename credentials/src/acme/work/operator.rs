//! What operators ask for, done between attempts: nothing of it races with an order.

use std::time::Duration;

use instant_acme::RevocationRequest;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Machine, Reason, Storage, Time, Trouble, Work, attempt::ACTION, since_epoch};
use crate::{
    acme::request::{self, Request, Ticket},
    cert,
};

/// How often requests are looked for.
const PACE: Duration = Duration::from_secs(1);

impl<S: Storage> Work<S> {
    /// Takes the requests that wait. The answer to a wish for a certificate waits for what comes of it.
    /// Gives how long there is until they are looked for again.
    pub(super) async fn attend(&mut self, machine: &mut Machine) -> Duration {
        let Some(inbox) = self.inbox.clone() else {
            return Duration::MAX;
        };
        let next = machine.next_attempt();
        if self.told_next != Some(next) {
            let inbox = inbox.clone();
            let told = tokio::task::spawn_blocking(move || inbox.tell_next(next));
            // Not while the runtime shuts down.
            let _ = told.await;
            self.told_next = Some(next);
        }
        if !inbox.has_news(&mut self.inbox_seen) && self.wishes.is_empty() {
            return PACE;
        }
        let taken = tokio::task::spawn_blocking(move || inbox.take()).await;
        for (ticket, request) in taken.unwrap_or_default() {
            if self.wishes.iter().any(|wish| wish.is_of(&ticket)) {
                continue;
            }
            tracing::info!(?request, "an operator asks");
            match request {
                Request::Renew { now } => self.renew(machine, ticket, now),
                Request::Revoke {
                    certificate,
                    reason,
                } => self.revoke(machine, ticket, &certificate, reason).await,
            }
        }
        PACE
    }

    fn renew(&mut self, machine: &mut Machine, ticket: Ticket, at_once: bool) {
        machine.want(at_once);
        let begin = machine.next_attempt();
        match begin <= since_epoch() {
            true => self.wishes.push(ticket),
            false => ticket.answer(
                false,
                format!(
                    "it is renewed at {}: authorities that failed are left alone until then",
                    shown(begin)
                ),
            ),
        }
    }

    async fn revoke(
        &mut self,
        machine: &mut Machine,
        ticket: Ticket,
        certificate: &str,
        reason: request::Reason,
    ) {
        let revoked = timeout(ACTION, self.revoke_in_time(certificate, reason)).await;
        let revoked =
            revoked.unwrap_or_else(|_| Err(Trouble::new(Reason::Timeout, "took too long")));
        let in_use = self.leaf.as_ref().map(|leaf| hex::encode(cert::hash(leaf)));
        let is_newest = in_use.as_deref() == Some(certificate);
        match revoked {
            Ok(()) => {
                tracing::warn!(certificate, ?reason, "revoked");
                let then = match is_newest {
                    true => "; another one is asked for, with another key",
                    false => "",
                };
                ticket.answer(true, format!("it holds no more{then}"));
            }
            Err(trouble) => {
                tracing::error!(certificate, error = trouble.said, "not revoked");
                ticket.answer(false, trouble.said);
                return;
            }
        }
        if is_newest {
            machine.want(true);
        }
    }

    async fn revoke_in_time(
        &self,
        certificate: &str,
        reason: request::Reason,
    ) -> Result<(), Trouble> {
        let unknown = |said: &str| Trouble::new(Reason::Refused, said);
        let hash = hex::decode(certificate).ok();
        let hash = hash.and_then(|hash| <[u8; 32]>::try_from(hash).ok());
        let found = match hash {
            Some(hash) => self.storage.find(&hash).await,
            None => None,
        };
        let (pair, issued) =
            found.ok_or_else(|| unknown("the gateway does not keep that certificate"))?;
        let authority = self.authority_named(&issued.authority).ok_or_else(|| {
            unknown("the authority that issued it is none of gateway.acme.authorities")
        })?;
        let account = self.account(authority).await?;
        let client = &self.authorities.clients[authority];
        client.take_noted();
        let request = RevocationRequest {
            certificate: pair.leaf(),
            reason: Some(reason.code()),
        };
        match account.revoke(&request).await {
            Err(error) if !super::failure::is_about_revoked(&error) => {
                Err(Trouble::of(error, client))
            }
            _ => Ok(()),
        }
    }

    /// Answers those who wait for a certificate. `failed`: what the last authority said; nothing if there is one.
    pub(super) fn answer_wishes(&mut self, failed: Option<&str>) {
        for ticket in self.wishes.drain(..) {
            match failed {
                None => ticket.answer(true, "a new certificate is in use".to_owned()),
                Some(said) => ticket.answer(false, said.to_owned()),
            }
        }
    }
}

fn shown(at: Time) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let format = time::format_description::well_known::Rfc3339;
    time.and_then(|time| time.format(&format).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}
