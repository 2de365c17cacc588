use wavry_credentials::secret::Secret;

fn main() {
    let _ = std::mem::take(&mut Secret::new(vec![1u8]));
}
