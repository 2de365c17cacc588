use wavry_credentials::secret::Secret;

#[derive(serde::Deserialize)]
struct Config {
    password: Secret<String>,
}

fn main() {
    let _: Config = serde_json::from_str("{}").unwrap();
}
