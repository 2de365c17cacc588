use std::borrow::Borrow;

use wavry_credentials::secret::Secret;

fn main() {
    let secret = Secret::new(String::new());
    let _: &str = secret.borrow();
}
