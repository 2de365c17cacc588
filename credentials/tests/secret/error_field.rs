use wavry_credentials::secret::Secret;

#[derive(Debug, thiserror::Error)]
#[error("wrong password {0}")]
struct Wrong(Secret<String>);

fn main() {
    println!("{}", Wrong(Secret::new(String::new())));
}
