use wavry_credentials::secret::Secret;

fn main() {
    let _ = Secret::new(vec![1u8]) < Secret::new(vec![1u8]);
}
