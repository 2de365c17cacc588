//! Leaking a secret does not compile. On its own because it builds the crate a second time.

#[test]
fn a_secret_has_no_textual_form_no_copy_and_no_comparison() {
    trybuild::TestCases::new().compile_fail("tests/secret/*.rs");
}
