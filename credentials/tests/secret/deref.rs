use wavry_credentials::secret::Secret;

fn main() {
    let secret = Secret::new(vec![1u8]);
    let _: &Vec<u8> = &*secret;
}
