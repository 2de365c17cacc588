use wavry_credentials::secret::Secret;

struct Password(String);

fn main() {
    let _ = Secret::new(Password(String::new()));
}
