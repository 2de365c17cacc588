//! How the KeyVault is unsealed.

use serde::{Deserialize, Serialize};

/// Where the master key comes from. It is kept in the clear: it is needed before the key is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Config {
    /// From a file or another source of secrets, at each start.
    Key,
    /// From shares that people hold (Shamir).
    Shares {
        /// How many there are.
        count: u8,
        /// How many make the key.
        threshold: u8,
    },
}
