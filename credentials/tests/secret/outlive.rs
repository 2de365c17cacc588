use wavry_credentials::secret::Secret;

fn main() {
    let secret = Secret::new(vec![1u8]);
    let bytes = secret.expose();
    drop(secret);
    let _ = bytes.len();
}
