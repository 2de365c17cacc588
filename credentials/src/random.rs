//! Random bytes from the operating system, through the TLS provider's generator.

use rustls::crypto::aws_lc_rs;

/// `N` bytes that nobody can guess.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// Fills `bytes` with what nobody can guess.
pub fn fill(bytes: &mut [u8]) {
    aws_lc_rs::default_provider()
        .secure_random
        .fill(bytes)
        .expect("the operating system's random source does not fail once the process runs");
}
