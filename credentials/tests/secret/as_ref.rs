use wavry_credentials::secret::Secret;

fn bytes(value: &impl AsRef<[u8]>) -> &[u8] {
    value.as_ref()
}

fn main() {
    bytes(&Secret::new(vec![1u8]));
}
