use wavry_credentials::secret::Secret;

fn main() {
    let _ = Secret::new(vec![1u8]) == vec![1u8];
}
