use wavry_credentials::secret::Secret;

fn main() {
    println!("{:x}", Secret::new([1u8; 32]));
}
