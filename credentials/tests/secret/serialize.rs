use wavry_credentials::secret::Secret;

fn main() {
    let _ = serde_json::to_string(&Secret::new(vec![1u8]));
}
