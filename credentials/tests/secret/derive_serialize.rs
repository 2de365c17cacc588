use wavry_credentials::secret::Secret;

#[derive(serde::Serialize)]
struct Config {
    password: Secret<String>,
}

fn main() {
    let _ = Config { password: Secret::new(String::new()) };
}
