use wavry_credentials::secret::Secret;

fn main() {
    let secret = Secret::new(String::new());
    tracing::info!(secret, "read");
}
