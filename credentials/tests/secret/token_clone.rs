use wavry_credentials::bearer::Token;

fn main() {
    let _ = Token::new(String::new()).clone();
}
