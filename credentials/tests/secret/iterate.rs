use wavry_credentials::secret::Secret;

fn main() {
    for _ in Secret::new(vec![1u8]) {}
}
