use super::*;
use crate::keyvault::policy::{DEFAULT_TEXT, MAX_RULES, MAX_TEXT};
use proptest::prelude::*;
use wavry_credentials::secret::Secret;

fn acl(texts: &[&str]) -> Acl {
    let policies: Vec<_> = texts
        .iter()
        .map(|text| Arc::new(Policy::parse(text).unwrap()))
        .collect();
    Acl::new(&policies, &Identity::default())
}

fn allows(acl: &Acl, operation: Operation, path: &str) -> bool {
    allows_with(acl, operation, path, None, None)
}

fn allows_with(
    acl: &Acl,
    operation: Operation,
    path: &str,
    parameters: Option<&str>,
    wrap_ttl: Option<u64>,
) -> bool {
    let parameters =
        parameters.map(|text| Json::new(Secret::new(text.as_bytes().to_vec())).unwrap());
    acl.allows(&Request {
        operation,
        path: &Canonical::parse(path).unwrap(),
        sudo: false,
        parameters: parameters.as_ref(),
        wrap_ttl: wrap_ttl.map(Duration::from_secs),
    })
}

#[test]
fn what_no_rule_names_is_denied() {
    for acl in [
        acl(&[]),
        acl(&[""]),
        acl(&["{}"]),
        acl(&[r#"path "a/b" { capabilities = [] }"#]),
    ] {
        for operation in [Operation::Read, Operation::List, Operation::Update] {
            assert!(!allows(&acl, operation, "a/b"));
        }
        assert_eq!(acl.capabilities("a/b"), ["deny"]);
    }
}

#[test]
fn hcl_and_json_say_the_same() {
    let hcl = Policy::parse(
        r#"
        # a comment
        path "secret/data/{{identity.entity.name}}/*" {
          capabilities = ["create", "read"]
          allowed_parameters = { "data" = [], options = ["a", 1, true] }
          denied_parameters { bad = [] }
          required_parameters = ["data"]
          min_wrapping_ttl = "1m"
          max_wrapping_ttl = 90
        }
        path "sys" { policy = "deny" }
        "#,
    );
    let json = Policy::parse(
        r#"{"path": [{"/secret/data/{{identity.entity.name}}/*": {
            "capabilities": ["create", "read"],
            "allowed_parameters": {"data": [], "options": ["a", 1, true]},
            "denied_parameters": {"bad": []}, "required_parameters": ["DATA"],
            "min_wrapping_ttl": 60, "max_wrapping_ttl": "1m30s"}},
            {"sys": {"policy": "deny"}}]}"#,
    );
    assert_eq!(hcl.unwrap(), json.unwrap());
}

#[test]
fn the_closest_rule_decides_alone_and_a_deny_wins() {
    let acl = acl(&[
        r#"path "secret/*" { capabilities = ["read", "list", "update"] }
           path "secret/runtime/+" { capabilities = ["read"] }
           path "secret/build/*" { capabilities = ["deny"] }"#,
        r#"path "secret/runtime/db" { capabilities = ["update"] }
           path "secret/build/*" { capabilities = ["read"] }"#,
    ]);
    assert!(allows(&acl, Operation::Update, "secret/other"));
    assert!(allows(&acl, Operation::Read, "secret/runtime/api"));
    assert!(!allows(&acl, Operation::Update, "secret/runtime/api"));
    assert!(allows(&acl, Operation::Update, "secret/runtime/db"));
    assert!(!allows(&acl, Operation::Read, "secret/runtime/db"));
    assert!(!allows(&acl, Operation::Read, "secret/build/key"));
    assert_eq!(acl.capabilities("secret/build/key"), ["deny"]);
    assert_eq!(acl.capabilities("secret/x"), ["list", "read", "update"]);
}

#[test]
fn policies_with_the_same_pattern_add_up() {
    let acl = acl(&[
        "path \"a/*\" {\n capabilities = [\"read\"]\n max_wrapping_ttl = \"1h\"\n}",
        r#"path "a/*" { capabilities = ["update"] }"#,
    ]);
    assert_eq!(acl.capabilities("a/b"), ["read", "update"]);
    // The bound of one holds for both.
    assert!(!allows(&acl, Operation::Read, "a/b"));
    assert!(allows_with(&acl, Operation::Read, "a/b", None, Some(3600)));
    assert!(!allows_with(&acl, Operation::Read, "a/b", None, Some(3601)));
}

#[test]
fn lists_are_found_with_and_without_the_slash_at_the_end() {
    for rule in [
        "secret/metadata",
        "secret/metadata/",
        "secret/meta*",
        "secret/+",
    ] {
        let acl = acl(&[&format!(r#"path "{rule}" {{ capabilities = ["list"] }}"#)]);
        assert!(allows(&acl, Operation::List, "secret/metadata/"), "{rule}");
    }
    let acl = acl(&[r#"path "secret/metadata" { capabilities = ["read"] }"#]);
    assert!(!allows(&acl, Operation::Read, "secret/metadata/"));
}

#[test]
fn what_is_kept_for_administrators_needs_sudo_as_well() {
    let path = Canonical::parse("sys/rotate").unwrap();
    let asks = |acl: &Acl| {
        acl.allows(&Request {
            operation: Operation::Update,
            path: &path,
            sudo: true,
            parameters: None,
            wrap_ttl: None,
        })
    };
    assert!(!asks(&acl(&[
        r#"path "sys/*" { capabilities = ["update"] }"#
    ])));
    assert!(!asks(&acl(&[
        r#"path "sys/*" { capabilities = ["sudo"] }"#
    ])));
    assert!(asks(&acl(&[
        r#"path "sys/*" { capabilities = ["update", "sudo"] }"#
    ])));
    assert!(asks(&Acl::root()));
}

#[test]
fn parameters_are_held_to_their_rules() {
    let with = |rule: &str, parameters: &str| {
        let text = format!("path \"a\" {{\n capabilities = [\"update\"]\n {rule}\n}}");
        allows_with(
            &acl(&[&text]),
            Operation::Update,
            "a",
            Some(parameters),
            None,
        )
    };
    let allowed = r#"allowed_parameters = { "ttl" = ["1h", "2*"], "name" = [] }"#;
    assert!(with(allowed, r#"{"ttl": "1h", "NAME": "x"}"#));
    assert!(with(allowed, r#"{"ttl": "24h"}"#));
    assert!(with(allowed, "{}"));
    assert!(!with(allowed, r#"{"ttl": "3h"}"#));
    assert!(!with(allowed, r#"{"other": 1}"#));
    assert!(!with(allowed, "[]"));
    let any_other = r#"allowed_parameters = { "ttl" = ["1h"], "*" = [] }"#;
    assert!(with(any_other, r#"{"other": 1}"#));
    assert!(!with(any_other, r#"{"ttl": "3h"}"#));
    let denied = r#"denied_parameters = { "policies" = ["root", "*admin*"] }"#;
    assert!(with(denied, r#"{"policies": "web"}"#));
    assert!(!with(denied, r#"{"Policies": "root"}"#));
    assert!(!with(denied, r#"{"policies": "the-admins"}"#));
    assert!(!with(r#"denied_parameters = { "*" = [] }"#, r#"{"x": 1}"#));
    let required = r#"required_parameters = ["reason"]"#;
    assert!(with(required, r#"{"Reason": ""}"#));
    assert!(!with(required, "{}"));
}

#[test]
fn malformed_policies_are_refused_with_line_and_column_and_without_their_text() {
    for (text, line, column) in [
        (
            "path \"a\" {\n  capabilities = [\"read\", \"s3cret\"]\n}",
            2,
            18,
        ),
        ("path \"a\" {\n  capabilities = [\"read\"\n}", 3, 1),
        ("\n\n  s3cret = 1", 3, 3),
        ("path \"a\" {\n  s3cret = 1\n}", 2, 3),
        ("path \"a/+*\" {}", 1, 1),
        ("path \"a/{{s3cret}}\" {}", 1, 1),
        ("path \"a\" {\n policy = \"s3cret\"\n}", 2, 11),
        ("path \"a\" {\n min_wrapping_ttl = \"s3cret\"\n}", 2, 21),
        ("path \"a\" {\n allowed_parameters = [\"s3cret\"]\n}", 2, 23),
        (
            "{\"path\": {\"a\": {\n\"capabilities\": [\"s3cret\"]}}}",
            2,
            25,
        ),
        ("{\"path\": {\"a\": {\n\"s3cret\": 1}}}", 2, 8),
        ("{\"path\": {\"a\": {\n", 2, 1),
        ("{\"s3cret\": 1}", 1, 9),
    ] {
        let error = Policy::parse(text).unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        assert_eq!(
            (error.line, error.column),
            (line, column),
            "{text}: {error}"
        );
    }
}

#[test]
fn policies_have_a_largest_size() {
    let rules = |count: usize| {
        let rule = |i| format!("path \"{i}\" {{\n}}\n");
        (0..count).map(rule).collect::<String>()
    };
    assert!(Policy::parse(&rules(MAX_RULES)).is_ok());
    assert!(Policy::parse(&rules(MAX_RULES + 1)).is_err());
    assert!(Policy::parse(&"#".repeat(MAX_TEXT + 1)).is_err());
    let nested = format!("a = {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(Policy::parse(&nested).is_err());
    assert!(Policy::parse(&format!("{{\"path\":{}", "[".repeat(20_000))).is_err());
}

#[test]
fn the_default_policy_lets_a_token_look_at_itself_only() {
    let acl = acl(&[DEFAULT_TEXT]);
    assert!(allows(&acl, Operation::Read, "auth/token/lookup-self"));
    assert!(allows(&acl, Operation::Update, "auth/token/renew-self"));
    assert!(allows(&acl, Operation::Update, "auth/token/revoke-self"));
    assert!(!allows(&acl, Operation::Update, "auth/token/lookup"));
    assert!(!allows(&acl, Operation::Update, "auth/token/create"));
    assert!(!allows(&acl, Operation::Read, "secret/data/a"));
}

#[test]
fn units_reach_their_own_paths_only() {
    let text = r#"path "secret/data/{{identity.entity.metadata.environment}}/{{identity.entity.name}}/*" {
        capabilities = ["read"]
    }"#;
    let policies = [Arc::new(Policy::parse(text).unwrap())];
    let unit = |name: &str, environment: &str| {
        let identity = Identity {
            name: name.to_owned(),
            metadata: [("environment".to_owned(), environment.to_owned())].into(),
            mount: "m".to_owned(),
        };
        Acl::new(&policies, &identity)
    };
    let (web, batch) = (unit("web", "prod"), unit("batch", "test"));
    assert!(allows(&web, Operation::Read, "secret/data/prod/web/db"));
    assert!(!allows(&web, Operation::Read, "secret/data/test/web/db"));
    assert!(!allows(&web, Operation::Read, "secret/data/prod/batch/db"));
    assert!(allows(&batch, Operation::Read, "secret/data/test/batch/db"));
    assert!(!allows(
        &unit("*", "prod"),
        Operation::Read,
        "secret/data/prod/*/db"
    ));
}

#[test]
fn the_policies_of_a_deployment_keep_runtime_builds_and_people_apart() {
    macro_rules! deployed {
        ($name:literal) => {{
            let text = include_str!(concat!("../../../../../deploy/keyvault/", $name, ".hcl"));
            let identity = Identity {
                name: "web".to_owned(),
                metadata: [("environment".to_owned(), "production".to_owned())].into(),
                mount: "m".to_owned(),
            };
            Acl::new(&[Arc::new(Policy::parse(text).unwrap())], &identity)
        }};
    }
    const RUNTIME: &str = "secret/data/wavry/production/runtime/database";
    const BUILD: &str = "secret/data/wavry/production/build/registry";
    const ELSEWHERE: &str = "secret/data/wavry/test/runtime/database";
    use Operation::{Create, Delete, List, Read, Update};
    let all = [Create, Delete, List, Read, Update];
    let may = |acl: &Acl, path: &str| -> Vec<Operation> {
        let operations = all.iter().copied();
        operations.filter(|one| allows(acl, *one, path)).collect()
    };

    let runtime = deployed!("runtime");
    assert_eq!(may(&runtime, RUNTIME), [Read]);
    assert_eq!(may(&runtime, BUILD), []);
    assert_eq!(may(&runtime, ELSEWHERE), []);

    let build = deployed!("build");
    assert_eq!(may(&build, BUILD), [Read]);
    assert_eq!(may(&build, RUNTIME), []);

    let rotator = deployed!("rotator");
    for path in [RUNTIME, BUILD, ELSEWHERE] {
        assert_eq!(may(&rotator, path), [Create, Update]);
    }
    assert_eq!(may(&rotator, "sys/policies/acl/runtime"), []);

    let administrator = deployed!("administrator");
    for path in [RUNTIME, BUILD, ELSEWHERE] {
        assert_eq!(may(&administrator, path), []);
    }
    // Nor is there a way round: another policy, or a token or secret-id that has one.
    for path in [
        "sys/policies/acl/runtime",
        "auth/token/create",
        "auth/approle/role/web",
        "auth/approle/role/web/secret-id",
    ] {
        assert!(!allows(&administrator, Update, path), "{path}");
        assert!(!allows(&administrator, Create, path), "{path}");
    }
    assert!(allows(&administrator, Update, "auth/token/revoke-accessor"));
}

proptest! {
    #[test]
    fn arbitrary_policies_never_panic(text in ".{0,200}|[a-z{}\"=\\[\\]\n ,*+/]{0,80}") {
        let _ = Policy::parse(&text);
        let _ = Policy::parse(&format!("path \"{text}\" {{\n capabilities = [\"read\"]\n}}"));
        let _ = Policy::parse(&format!("{{\"path\": {{\"a\": {text}}}}}"));
    }

    /// Whatever else is granted, a deny on the same pattern leaves nothing.
    #[test]
    fn a_deny_on_the_same_pattern_always_wins(
        path in "[a-c]{1,3}(/[a-c]{1,3}){0,2}",
        pattern in "[a-c]{1,3}(/([a-c]{1,3}|\\+)){0,2}(/[a-c]?\\*)?",
        others in proptest::collection::vec("create|read|update|delete|list|sudo|patch", 1..5),
    ) {
        let granted = format!("path \"{pattern}\" {{ capabilities = {others:?} }}");
        let denied = format!("path \"{pattern}\" {{ capabilities = [\"deny\"] }}");
        let acl = acl(&[&granted, &denied]);
        for operation in [Operation::Read, Operation::List, Operation::Create, Operation::Update, Operation::Delete] {
            prop_assert!(!allows(&acl, operation, &path));
        }
    }

    /// A rule never grants anything at a path that its pattern does not fit.
    #[test]
    fn nothing_is_granted_beside_the_pattern(
        path in "[a-c]{1,3}(/[a-c]{1,3}){0,3}",
        prefix in "[a-c]{1,3}(/[a-c]{1,3}){0,2}",
    ) {
        let acl = acl(&[&format!("path \"{prefix}/*\" {{ capabilities = [\"read\"] }}")]);
        let below = path.starts_with(&format!("{prefix}/"));
        prop_assert_eq!(allows(&acl, Operation::Read, &path), below);
    }
}
