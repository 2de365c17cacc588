use wavry_credentials::secret::Secret;

#[derive(Debug)]
struct Config {
    password: Secret<String>,
}

fn main() {
    println!("{:?}", Config { password: Secret::new(String::new()) });
}
