//! On its own because the hook is the process's.

use std::sync::Mutex;

use wavry_credentials::redact;

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn a_panic_tells_its_place_and_no_value() {
    redact::on_panic(|panic| SAID.lock().unwrap().push(panic.to_string()));
    let panics: [fn(); 5] = [
        || panic!("the table is empty"),
        || panic!("no {}", String::from("s3cret")),
        || {
            std::hint::black_box(Err::<(), _>("s3cret")).unwrap();
        },
        || assert_eq!("s3cret".len(), 0, "s3cret"),
        || std::panic::panic_any(String::from("s3cret")),
    ];
    for panic in panics {
        assert!(std::panic::catch_unwind(panic).is_err());
    }
    let said = SAID.lock().unwrap();
    assert_eq!(said.len(), panics.len());
    for line in said.iter() {
        assert!(
            line.starts_with("panic at credentials/tests/panic.rs:"),
            "{line}"
        );
        assert!(!line.contains("s3cret"), "{line}");
    }
    assert!(said[0].ends_with(": the table is empty"), "{}", said[0]);
}
