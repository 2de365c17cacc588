use wavry_credentials::secret::Secret;

fn copy<T: Clone>(value: &T) -> T {
    value.clone()
}

fn main() {
    copy(&Secret::new(vec![1u8]));
}
