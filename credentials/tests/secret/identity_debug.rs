use wavry_credentials::{identity::Identity, token::SigningKey};

fn main() {
    println!("{:?}", Identity::generate());
    println!("{:?}", SigningKey::generate());
}
