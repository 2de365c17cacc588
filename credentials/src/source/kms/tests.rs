//! What is sent to KMS, and what is made of its answers.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn config(variables: &[(&str, &str)]) -> Result<Config, Failure> {
    Config::from_variables(&|variable: &str| {
        let set = variables.iter().find(|(name, _)| *name == variable);
        set.map(|(_, value)| OsString::from(value))
    })
}

fn answered(status: u16, body: &str, key: Option<&str>) -> Result<Secret<Vec<u8>>, Failure> {
    let body = Secret::new(body.as_bytes().to_vec());
    let status = StatusCode::from_u16(status).unwrap();
    plaintext("master_key", status, &body, key)
}

fn refused(status: u16, body: &str, key: Option<&str>) -> String {
    answered(status, body, key).err().unwrap().to_string()
}

#[test]
fn a_request_names_the_secret_that_the_ciphertext_is_to_be() {
    let body = decrypt("master_key", b" AQID\n", Some("k")).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let expected = json!({
        "CiphertextBlob": "AQID",
        "EncryptionContext": {"wavry:secret": "master_key"},
        "KeyId": "k",
    });
    assert_eq!(body, expected);
    let body: Value = serde_json::from_slice(&decrypt("a", b"AQID", None).unwrap()).unwrap();
    assert_eq!(body.get("KeyId"), None);
}

#[test]
fn what_is_no_ciphertext_is_not_sent() {
    let longest = STANDARD.encode([7; MAX_CIPHERTEXT]);
    assert!(decrypt("a", longest.as_bytes(), None).is_ok());
    let longer = STANDARD.encode([7; MAX_CIPHERTEXT + 1]);
    for text in [
        &b""[..],
        b"\n",
        b"AQI",
        b"AQ\"D",
        b"\xff",
        longer.as_bytes(),
    ] {
        let failure = decrypt("a", text, None).err().unwrap();
        assert!(matches!(failure, Failure::Ciphertext), "{failure}");
    }
}

#[test]
fn the_plaintext_of_an_answer_is_the_secret_if_the_key_is_the_one_expected() {
    let answer = format!(r#"{{"KeyId":"{ARN}","Plaintext":"czNjcmV0","EncryptionAlgorithm":"X"}}"#);
    for key in [
        None,
        Some(ARN),
        Some("1234abcd-12ab-34cd-56ef-1234567890ab"),
    ] {
        assert!(answered(200, &answer, key).unwrap().matches(b"s3cret"));
    }
    for other in ["1234abcd", "ab", "arn:aws:kms:eu-central-1:1:key/x"] {
        let failure = answered(200, &answer, Some(other)).err().unwrap();
        assert!(matches!(failure, Failure::OtherKey), "{failure}");
    }
}

#[test]
fn an_answer_without_a_plaintext_is_refused_and_not_repeated() {
    for body in [
        "",
        "{}",
        r#"{"Plaintext":"canary!"}"#,
        r#"{"Plaintext":{"canary":1}}"#,
        r#"{"Plaintext":"czNj","Plaintext":"canary"}"#,
        "canary",
    ] {
        let text = refused(200, body, None);
        assert!(text.contains("cannot be read: line 1"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
    assert!(refused(200, r#"{"Plaintext":"czNj"}"#, Some(ARN)).contains("cannot be read"));
}

#[test]
fn a_refusal_says_which_error_it_is_and_what_that_means_here() {
    let of = |name: &str| {
        refused(
            400,
            &format!(r#"{{"__type":"{name}","message":"canary"}}"#),
            None,
        )
    };
    for (name, meaning) in [
        ("DisabledException", "its key is disabled"),
        ("com.amazonaws.kms#DisabledException", "its key is disabled"),
        (
            "InvalidCiphertextException",
            "the context of secret master_key",
        ),
        ("IncorrectKeyException", "WAVRY_AWS_KMS_KEY"),
        ("AccessDeniedException", "kms:Decrypt"),
        (
            "ThrottlingException",
            "400 Bad Request: ThrottlingException",
        ),
        ("canary of 5ome, content", "it does not say why"),
    ] {
        let text = of(name);
        assert!(text.contains(meaning), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
    assert!(
        refused(503, "<html>canary", None)
            .ends_with("503 Service Unavailable: it does not say why")
    );
}

#[test]
fn variables_that_are_wanted_or_wrong_are_named() {
    let both = [(REGION, "eu-central-1"), (ACCESS_KEY_ID, "AKIDEXAMPLE")];
    let with = |more: &[(&str, &str)]| config(&[&both[..], more].concat());
    let endpoint = |config: Config| config.endpoint().map(|uri| uri.to_string());
    let url = endpoint(with(&[]).unwrap()).unwrap();
    assert_eq!(url, "https://kms.eu-central-1.amazonaws.com/");
    assert!(matches!(
        config(&both[..1]),
        Err(Failure::NotSet(ACCESS_KEY_ID))
    ));
    assert!(matches!(config(&both[1..]), Err(Failure::NotSet(REGION))));
    for (variable, value) in [
        (REGION, "eu/central"),
        (ACCESS_KEY_ID, "a b"),
        (KEY, "alias/x"),
        (KEY, "a b"),
    ] {
        let refused = config(&[&[(variable, value)], &both[..]].concat());
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains(variable), "{refused}");
    }
    for url in ["x", "https://u@h", "https://h/path", "https://h?q"] {
        let config = with(&[(URL, url)]).unwrap();
        assert!(
            matches!(endpoint(config), Err(Failure::Setting(URL))),
            "{url}"
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_answers_and_files_are_read_or_refused(
        status in 200u16..600,
        bytes: Vec<u8>,
        name: String,
        key: Option<String>,
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Secret::new(bytes.clone());
        let _ = plaintext(&name, status, &answer, key.as_deref());
        let object = json!({"__type": name, "KeyId": name, "Plaintext": name}).to_string();
        let answer = Secret::new(object.into_bytes());
        let _ = plaintext(&name, status, &answer, key.as_deref());
        let _ = decrypt(&name, &bytes, key.as_deref());
    }
}
