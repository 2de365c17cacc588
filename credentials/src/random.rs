//! Random bytes from the operating system, through the generator of the library that TLS uses.

/// `N` bytes that nobody can guess.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// Fills `bytes` with what nobody can guess.
pub fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes)
        .expect("the operating system's random source does not fail once the process runs");
}
