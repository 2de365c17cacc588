use wavry_credentials::bearer::Token;

fn main() {
    println!("{:?}", Token::new(String::new()));
}
