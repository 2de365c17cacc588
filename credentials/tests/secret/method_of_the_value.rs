use wavry_credentials::secret::Secret;

fn main() {
    let _ = Secret::new(String::new()).as_bytes();
}
