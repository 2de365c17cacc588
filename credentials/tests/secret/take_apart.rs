use wavry_credentials::secret::Secret;

fn main() {
    let Secret { pages, .. } = Secret::new(vec![1u8]);
}
