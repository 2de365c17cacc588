use std::collections::HashSet;

use wavry_credentials::secret::Secret;

fn main() {
    HashSet::new().insert(Secret::new(vec![1u8]));
}
