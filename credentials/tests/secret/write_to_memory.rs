use wavry_credentials::secret::Secret;

fn main() {
    Secret::new(vec![1u8]).write_to(&mut Vec::new());
}
