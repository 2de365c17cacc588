//! From a credential's source to its user.
//!
//! * [`secret`]: the type every secret lives in; it has no textual form.
//! * [`acme`]: certificates that are obtained and renewed by themselves.
//! * [`audit`]: the log of what was done with credentials.
//! * [`bearer`]: tokens as their holders present them.
//! * [`source`]: the one door through which a secret is read, and files are written.
//! * [`identity`]: a node's Ed25519 key, and the TLS of the mesh.
//! * [`signer`]: keys that sign tokens, at hand or in a vault.
//! * [`token`]: PASETO v4.public, signed and verified by purpose.
//! * [`cert`]: certificates — store, resolver, and a development authority.
//! * [`clock`]: the time that tokens are checked against.
//! * [`key`]: private and symmetric keys, and what is done with them.
//! * [`master`]: the way to the master.
//! * [`membership`]: a node's place in a cluster: registration, heartbeats, the roster it watches.
//! * [`process`]: what keeps a process's memory to itself.
//! * [`redact`]: the backstop that takes secrets out of text.
//! * [`random`]: bytes that nobody can guess.
//! * [`metrics`]: what this crate counts.

pub mod acme;
pub mod audit;
pub mod bearer;
pub mod cert;
pub mod clock;
mod exchange;
pub mod identity;
pub mod key;
pub mod master;
pub mod membership;
pub mod metrics;
pub mod process;
pub mod random;
pub mod redact;
pub mod secret;
pub mod signer;
pub mod source;
pub mod token;
