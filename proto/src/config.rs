//! What the configuration of every role has in common: how it says what is wrong with it.

/// Configuration that cannot be acted on. It never repeats a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Invalid {
    /// The key, relative to its table, as in `services[0].hosts[1]`.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Invalid {
    /// `problem` with the value of `key`; it must not hold the value.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

/// The value of a key that has no default.
pub fn required<T>(key: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(key, "is needed"))
}

/// Refuses zero.
pub fn at_least_one(key: &str, value: u64) -> Result<(), Invalid> {
    match value {
        0 => Err(Invalid::new(key, "must be at least 1")),
        _ => Ok(()),
    }
}
