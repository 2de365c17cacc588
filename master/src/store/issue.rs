//! Tokens that operators have signed: they are on record before they are.

use wavry_credentials::audit::{Event, Key};

use super::{
    Error, Store,
    once::{Begun, Done, Order, Outcome},
};
use crate::provision::Issue;

impl Outcome for Issue {
    fn name_in(&self, event: &mut Event, audit: &Key) {
        event.token = event.secret.replace(audit.identifier(self.id()));
    }
}

impl Store {
    /// Puts a token on record. What it says is kept, and it is not.
    pub async fn issue(&self, issue: Issue, order: &Order) -> Result<Done<Issue>, Error> {
        match self.begin(order).await? {
            Begun::New(change) => change.conclude(&self.audit, order, issue, &[]).await,
            Begun::Before(done) => Ok(done),
        }
    }
}
