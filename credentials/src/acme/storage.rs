//! Where a certificate's affairs are kept, who may order one, and who answers for its names: the machine's
//! surroundings, of which there are three kinds.
//!
//! A gateway alone has a [`directory`](super::directory), or keeps its secrets in a [`keyvault`](super::keyvault): nobody
//! else orders, and its own listener answers. In a [`fleet`](super::fleet) the master keeps what all share.

use std::time::Duration;

use instant_acme::AccountCredentials;

use super::{challenge::Answered, demand::Pace, schedule::Record, work::failure::Trouble};
use crate::{
    cert::{self, Pair, pairs::Issued},
    key::acme::CertificateKey,
    secret::Secret,
};

/// The affairs of one certificate.
pub(super) trait Storage: Send + Sync + 'static {
    /// The newest pair that is kept here, and its origin.
    fn newest(&self) -> impl Future<Output = Option<(Pair, Issued)>> + Send;

    /// The pair whose certificate has this SHA-256, if it is kept here.
    fn find(&self, hash: &[u8; 32]) -> impl Future<Output = Option<(Pair, Issued)>> + Send {
        async {
            let newest = self.newest().await;
            newest.filter(|(pair, _)| cert::hash(pair.leaf()) == *hash)
        }
    }

    /// How authorities have fared, as far as is known before [`take`](Self::take).
    fn record(&self) -> Record;

    /// Asks for the right to order this certificate.
    fn take(&self) -> impl Future<Output = Result<Taken, Trouble>> + Send;

    /// Counts the first certificate of a host among those of all hosts; how long to wait where there were too
    /// many. Who has the right calls it.
    fn charge(&self, pace: Pace) -> impl Future<Output = Result<Option<Duration>, Trouble>> + Send;

    /// Keeps the right for as long as it is polled; returns when it is lost.
    fn keep(&self) -> impl Future<Output = ()> + Send;

    /// Gives the right back, with what is known of the authorities. Answers are taken down.
    fn give_back(&self, record: &Record) -> impl Future<Output = ()> + Send;

    /// Writes down how authorities have fared. Who has the right calls it, before they are asked for anything.
    fn write_record(&self, record: &Record) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Writes down an order that was placed, for whoever has to go on with it.
    fn write_pending(&self, pending: &Pending) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Puts answers up everywhere that the authority may ask; returns when they are.
    fn put_up(&self, answers: Vec<Answered>) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Keeps a pair that was issued and checked; its order is done with.
    fn write_pair(
        &self,
        chain: &str,
        key: Secret<Vec<u8>>,
        issued: &Issued,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Waits for a pair that somebody else obtained. Cancel safe: one that was not returned is waited for again.
    fn newer(&self) -> impl Future<Output = (Pair, Issued)> + Send;

    /// The account with the authority `name` at `directory`. `None`: the caller makes one, and
    /// [writes](Self::write_account) it; nobody else does meanwhile.
    fn account(
        &self,
        name: &str,
        directory: &str,
    ) -> impl Future<Output = Result<Option<AccountCredentials>, Trouble>> + Send;

    /// Keeps an account.
    fn write_account(
        &self,
        name: &str,
        account: &AccountCredentials,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Forgets an account that its authority does not know.
    fn forget_account(&self, name: &str) -> impl Future<Output = ()> + Send;
}

/// What came of asking for the right to order.
pub(super) enum Taken {
    /// It is ours.
    Ours(Box<Left>),
    /// Somebody else has it; worth another question after this time.
    Elsewhere(Duration),
}

/// What whoever had the right before has left.
#[derive(Default)]
pub(super) struct Left {
    /// How authorities have fared, where others know better than this process.
    pub(super) record: Option<Record>,
    /// An order that was placed, and not brought to its end.
    pub(super) pending: Option<Pending>,
    /// A pair that is newer than what was heard of.
    pub(super) pair: Option<(Pair, Issued)>,
}

/// An order under way.
pub(super) struct Pending {
    /// The name of its authority.
    pub(super) authority: String,
    /// Where the authority has it (RFC 8555, section 7.4).
    pub(super) url: String,
    /// The key of the certificate.
    pub(super) key: CertificateKey,
}
