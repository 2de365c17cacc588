//! The API as OpenAPI, for people and tools. What is mounted where is data, so the paths of engines and
//! auth methods are described at the mounts that they have by custom.

use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Ref,
    RefOr, Required, Response, ResponseBuilder, ResponsesBuilder,
    path::{HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::{ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type},
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::{MAX_BODY, MAX_MESSAGE_BODY};
use crate::keyvault::policy::DEFAULT_TEXT;

/// Who may send a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Anyone,
    Holder,
}
use Who::{Anyone, Holder};

/// One operation: method, path below `/v1`, what it does, who may, members of its body as `name:kind`
/// ([`member`]) with `*` behind those that must be there, and what is given when it is done: a status.
type Row = (
    HttpMethod,
    &'static str,
    &'static str,
    Who,
    &'static str,
    u16,
);

use HttpMethod::{Delete, Get, Patch, Post};

const ROWS: &[Row] = &[
    (
        Post,
        "/auth",
        "Log in; the credentials tell the method",
        Anyone,
        "role_id:text secret_id:text jwt:text role:name token:text method:=approle|kubernetes|cert|bootstrap",
        200,
    ),
    (Get, "/secret/{path}", "Read a secret", Holder, "", 200),
    (
        Post,
        "/secret/{path}",
        "Write a secret",
        Holder,
        "value:string",
        200,
    ),
    (
        Delete,
        "/secret/{path}",
        "Delete a secret's latest version",
        Holder,
        "",
        204,
    ),
    (
        Get,
        "/secret/data/{path}",
        "Read a version of a secret",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/secret/data/{path}",
        "Write a version of a secret",
        Holder,
        "data:object* options:object",
        200,
    ),
    (
        Patch,
        "/secret/data/{path}",
        "Merge a patch into the latest version (RFC 7396)",
        Holder,
        "data:object* options:object",
        200,
    ),
    (
        Delete,
        "/secret/data/{path}",
        "Delete the latest version softly",
        Holder,
        "",
        204,
    ),
    (
        Post,
        "/secret/delete/{path}",
        "Delete versions softly",
        Holder,
        "versions:numbers*",
        204,
    ),
    (
        Post,
        "/secret/undelete/{path}",
        "Bring versions back",
        Holder,
        "versions:numbers*",
        204,
    ),
    (
        Post,
        "/secret/destroy/{path}",
        "Destroy versions",
        Holder,
        "versions:numbers*",
        204,
    ),
    (
        Get,
        "/secret/metadata/{path}",
        "Read what is known of a secret",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/secret/metadata/{path}",
        "Set what is known of a secret",
        Holder,
        "max_versions:count cas_required:boolean delete_version_after:duration custom_metadata:texts",
        204,
    ),
    (
        Delete,
        "/secret/metadata/{path}",
        "Destroy a secret with all its versions",
        Holder,
        "",
        204,
    ),
    (
        Get,
        "/secret/subkeys/{path}",
        "Read the names in a secret without its values",
        Holder,
        "",
        200,
    ),
    (
        Get,
        "/secret/config",
        "Read the settings of all secrets",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/secret/config",
        "Set the settings of all secrets",
        Holder,
        "max_versions:count cas_required:boolean delete_version_after:duration",
        204,
    ),
    (
        Post,
        "/auth/approle/login",
        "Log in with a role-id and a secret-id",
        Anyone,
        "role_id:text* secret_id:text",
        200,
    ),
    (
        Post,
        "/auth/kubernetes/login",
        "Log in with a service account's JWT",
        Anyone,
        "role:name* jwt:text*",
        200,
    ),
    (
        Post,
        "/auth/cert/login",
        "Log in with a client certificate",
        Anyone,
        "name:name",
        200,
    ),
    (
        Post,
        "/auth/bootstrap/login",
        "Log in with a bootstrap token",
        Anyone,
        "token:text*",
        200,
    ),
    (
        Post,
        "/auth/token/create",
        "Make a token",
        Holder,
        "policies:names ttl:duration explicit_max_ttl:duration period:duration num_uses:count display_name:name renewable:boolean no_parent:boolean meta:texts",
        200,
    ),
    (
        Get,
        "/auth/token/lookup-self",
        "What is known of the token that asks",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/auth/token/lookup",
        "What is known of a token",
        Holder,
        "token:text*",
        200,
    ),
    (
        Post,
        "/auth/token/renew-self",
        "Make the token that asks last longer",
        Holder,
        "increment:duration",
        200,
    ),
    (
        Post,
        "/auth/token/revoke-self",
        "End the token that asks",
        Holder,
        "",
        204,
    ),
    (
        Post,
        "/auth/token/revoke-accessor",
        "End a token by its accessor",
        Holder,
        "accessor:text*",
        204,
    ),
    (
        Get,
        "/sys/init",
        "Whether it was initialised",
        Anyone,
        "",
        200,
    ),
    (
        Get,
        "/sys/seal-status",
        "Whether it is sealed",
        Anyone,
        "",
        200,
    ),
    (
        Get,
        "/sys/health",
        "Whether it can be used, as a status: 200, 501, 503",
        Anyone,
        "",
        200,
    ),
    (Get, "/sys/leader", "That it is the leader", Anyone, "", 200),
    (
        Post,
        "/sys/unseal",
        "Bring a share of the master key",
        Anyone,
        "key:text reset:boolean",
        200,
    ),
    (Get, "/sys/mounts", "List engines", Holder, "", 200),
    (
        Post,
        "/sys/mounts/{path}",
        "Mount an engine: kv or transit",
        Holder,
        "type:=kv|kv-v2|transit* description:string options:texts config:object",
        204,
    ),
    (
        Delete,
        "/sys/mounts/{path}",
        "Unmount an engine and destroy what it kept",
        Holder,
        "",
        204,
    ),
    (Get, "/sys/auth", "List auth methods", Holder, "", 200),
    (
        Post,
        "/sys/auth/{path}",
        "Enable an auth method: approle, kubernetes, cert or bootstrap",
        Holder,
        "type:=approle|kubernetes|cert|bootstrap* description:string config:object",
        204,
    ),
    (
        Delete,
        "/sys/auth/{path}",
        "Disable an auth method",
        Holder,
        "",
        204,
    ),
    (
        Post,
        "/sys/remount",
        "Move an engine",
        Holder,
        "from:name* to:name*",
        204,
    ),
    (
        Get,
        "/sys/policies/acl/{name}",
        "Read a policy",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/sys/policies/acl/{name}",
        "Write a policy",
        Holder,
        "policy:policy*",
        204,
    ),
    (
        Delete,
        "/sys/policies/acl/{name}",
        "Delete a policy",
        Holder,
        "",
        204,
    ),
    (
        Post,
        "/sys/capabilities-self",
        "What the token that asks may do at paths",
        Holder,
        "paths:paths*",
        200,
    ),
    (Get, "/sys/audit", "List audit logs", Holder, "", 200),
    (
        Post,
        "/sys/audit-hash/{path}",
        "What stands in the audit log for an identifier",
        Holder,
        "input:text*",
        200,
    ),
    (
        Post,
        "/sys/wrapping/unwrap",
        "Exchange a wrapping token for its answer, once",
        Anyone,
        "token:text",
        200,
    ),
    (
        Post,
        "/sys/wrapping/lookup",
        "What is known of a wrapping token",
        Anyone,
        "token:text",
        200,
    ),
    (
        Post,
        "/sys/wrapping/rewrap",
        "Exchange a wrapping token for a new one",
        Anyone,
        "token:text",
        200,
    ),
    (
        Get,
        "/sys/internal/ui/mounts/{path}",
        "Which engine answers a path",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/transit/keys/{name}",
        "Make a key: aes256-gcm96 or ed25519",
        Holder,
        "type:=aes256-gcm96|ed25519",
        200,
    ),
    (
        Get,
        "/transit/keys/{name}",
        "What is known of a key",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/transit/keys/{name}/rotate",
        "Add a version to a key",
        Holder,
        "",
        200,
    ),
    (
        Post,
        "/transit/encrypt/{name}",
        "Encrypt",
        Holder,
        "plaintext:base64* associated_data:base64 key_version:count",
        200,
    ),
    (
        Post,
        "/transit/decrypt/{name}",
        "Decrypt",
        Holder,
        "ciphertext:made* associated_data:base64",
        200,
    ),
    (
        Post,
        "/transit/rewrap/{name}",
        "Encrypt anew under the latest version",
        Holder,
        "ciphertext:made* associated_data:base64",
        200,
    ),
    (
        Post,
        "/transit/datakey/plaintext/{name}",
        "Make a key for the holder's own use",
        Holder,
        "bits:=128|256|512",
        200,
    ),
    (
        Post,
        "/transit/sign/{name}",
        "Sign",
        Holder,
        "input:base64* key_version:count",
        200,
    ),
    (
        Post,
        "/transit/verify/{name}",
        "Check a signature",
        Holder,
        "input:base64* signature:made*",
        200,
    ),
];

/// The document.
pub fn document() -> OpenApi {
    let mut paths = PathsBuilder::new();
    for (method, path, summary, who, members, status) in ROWS {
        let operation = operation(path, summary, *who, members, *status);
        let item = PathItem::new(method.clone(), operation);
        paths = paths.path(format!("/v1{path}"), item);
    }
    let components = ComponentsBuilder::new()
        .security_scheme(
            TOKEN,
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Vault-Token"))),
        )
        .security_scheme(
            BEARER,
            SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
        )
        .schemas_from_iter(schemas())
        .build();
    let info = InfoBuilder::new()
        .title("Wavry KeyVault")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(format!(
            "Two dialects over one core: HashiCorp Vault's HTTP API, and two endpoints for units that \
             only fetch secrets. Bodies are JSON of {MAX_BODY} bytes at most, {MAX_MESSAGE_BODY} where a message is \
             to be signed. Names, paths and durations \
             have further forms, as Vault has them."
        )))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components))
        .build()
}

const TOKEN: &str = "token";
const BEARER: &str = "bearer";

fn operation(path: &str, summary: &str, who: Who, members: &str, status: u16) -> Operation {
    let tag = path.split('/').nth(1).unwrap_or_default();
    let mut operation = OperationBuilder::new().summary(Some(summary)).tag(tag);
    if let Some((_, parameter)) = path.split_once('{') {
        let name = parameter.split('}').next().unwrap_or_default();
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(member(match name {
                    "path" => "path",
                    _ => "name",
                }))),
        );
    }
    if who == Holder {
        let none: [String; 0] = [];
        operation = operation
            .security(SecurityRequirement::new(TOKEN, none.clone()))
            .security(SecurityRequirement::new(BEARER, none));
    }
    if !members.is_empty() {
        let mut object = ObjectBuilder::new();
        for text in members.split(' ') {
            let (name, kind) = text.split_once(':').unwrap_or((text, "string"));
            let required = kind.ends_with('*');
            object = object.property(name, member(kind.trim_end_matches('*')));
            if required {
                object = object.required(name);
            }
        }
        let content = Content::new(Some(RefOr::T(Schema::Object(object.build()))));
        operation = operation.request_body(Some(
            RequestBodyBuilder::new()
                .content("application/json", content)
                .build(),
        ));
    }
    let done = match status {
        204 => described("Done"),
        // Vault has an answer of its own form for each of these.
        _ if path.starts_with("/sys/") => with("Done", object()),
        _ => with("Done", RefOr::Ref(Ref::from_schema_name(ENVELOPE))),
    };
    let mut responses = ResponsesBuilder::new().response(status.to_string(), done);
    for (status, text) in REFUSALS {
        let errors = RefOr::Ref(Ref::from_schema_name(ERRORS));
        responses = responses.response(status, with(text, errors));
    }
    operation.responses(responses.build()).build()
}

const ENVELOPE: &str = "Envelope";
const ERRORS: &str = "Errors";
const REFUSALS: [(&str, &str); 10] = [
    ("400", "Not such a request"),
    ("403", "Not permitted"),
    ("404", "Nothing there"),
    ("405", "The path does not take the method"),
    ("408", "The body did not come in time"),
    ("413", "The body is too long"),
    ("429", "Too many logins; Retry-After says when"),
    ("500", "By a fault of the KeyVault"),
    ("501", "Not initialised (health)"),
    ("503", "Sealed, or not on record; try again"),
];

fn described(text: &str) -> Response {
    ResponseBuilder::new().description(text).build()
}

fn with(text: &str, schema: RefOr<Schema>) -> Response {
    ResponseBuilder::new()
        .description(text)
        .content("application/json", Content::new(Some(schema)))
        .build()
}

/// What answers and refusals look like.
fn schemas() -> [(&'static str, RefOr<Schema>); 2] {
    let nullable = |kind| SchemaType::from_iter([kind, Type::Null]);
    let of = |kind: SchemaType| ObjectBuilder::new().schema_type(kind).build();
    let envelope = ObjectBuilder::new()
        .property("request_id", member("text"))
        .property("lease_id", member("string"))
        .property("renewable", member("boolean"))
        .property("lease_duration", member("count"))
        .property("data", of(nullable(Type::Object)))
        .property("wrap_info", of(nullable(Type::Object)))
        .property("auth", of(nullable(Type::Object)))
        .property("warnings", of(nullable(Type::Array)))
        .required("request_id");
    let errors = ObjectBuilder::new()
        .property("errors", member("strings"))
        .required("errors");
    [
        (ENVELOPE, RefOr::T(Schema::Object(envelope.build()))),
        (ERRORS, RefOr::T(Schema::Object(errors.build()))),
    ]
}

/// The least that is a policy in HCL; [`read`](crate::keyvault::policy::Policy::read) takes all of them, and JSON.
const POLICY: &str = r#"^path "[a-z]{1,16}/[a-z]{1,16}" \{ capabilities = \["(create|read|update|delete|list)"\] \}$"#;

/// What there may be in a member, by the word for it: `=a|b` for one of these, else a kind of text, number,
/// list or object. All of it is taken; more is, too, as durations in Vault's other forms.
fn member(kind: &str) -> RefOr<Schema> {
    let typed = |kind| ObjectBuilder::new().schema_type(SchemaType::Type(kind));
    let text = |pattern: &str| typed(Type::String).pattern(Some(pattern));
    let list = |of: RefOr<Schema>| {
        let list = ArrayBuilder::new().items(of);
        RefOr::T(Schema::Array(
            list.min_items(Some(1)).max_items(Some(16)).build(),
        ))
    };
    let object = match kind {
        "numbers" => return list(member("number")),
        "names" => return list(member("name")),
        "paths" => return list(member("path")),
        "strings" => {
            let strings = ArrayBuilder::new().items(member("string"));
            return RefOr::T(Schema::Array(strings.build()));
        }
        "object" => typed(Type::Object),
        "texts" => typed(Type::Object).additional_properties(Some(member("string"))),
        "boolean" => typed(Type::Boolean),
        "count" => typed(Type::Integer).minimum(Some(0)).maximum(Some(1000)),
        "number" => typed(Type::Integer).minimum(Some(1)).maximum(Some(1000)),
        "duration" => text("^[1-9][0-9]{0,2}[smh]$"),
        "base64" => text("^([A-Za-z0-9+/]{4}){1,64}$"),
        "made" => text("^vault:v[1-9][0-9]{0,2}:([A-Za-z0-9+/]{4}){1,64}$"),
        "name" => text("^[a-z0-9][a-z0-9-]{0,31}$"),
        "path" => text("^[a-z0-9][a-z0-9-]{0,31}(/[a-z0-9][a-z0-9-]{0,31}){0,3}$"),
        "policy" => text(POLICY).examples([serde_json::json!(DEFAULT_TEXT)]),
        "text" => text("^[!-~]{1,128}$"),
        words if words.starts_with('=') => {
            let words = words[1..].split('|');
            let values = words.map(|word| match word.parse::<u32>() {
                Ok(number) => serde_json::json!(number),
                Err(_) => serde_json::json!(word),
            });
            let values: Vec<_> = values.collect();
            let kind = match values.iter().all(serde_json::Value::is_number) {
                true => Type::Integer,
                false => Type::String,
            };
            typed(kind).enum_values(Some(values))
        }
        _ => typed(Type::String),
    };
    RefOr::T(Schema::Object(object.build()))
}

fn object() -> RefOr<Schema> {
    member("object")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_in_the_document_once() {
        let document = serde_json::to_value(document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations: usize = paths
            .values()
            .map(|item| item.as_object().map_or(0, serde_json::Map::len))
            .sum();
        assert_eq!(operations, ROWS.len());
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let write = &paths["/v1/secret/data/{path}"]["post"];
        let body = &write["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(body["required"][0], "data");
        assert_eq!(write["security"].as_array().unwrap().len(), 2);
        let done = &write["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(done["$ref"], "#/components/schemas/Envelope");
        let envelope = &document["components"]["schemas"]["Envelope"];
        assert!(envelope["properties"]["auth"].is_object());
        let key = &paths["/v1/transit/datakey/plaintext/{name}"]["post"];
        let bits =
            &key["requestBody"]["content"]["application/json"]["schema"]["properties"]["bits"];
        assert_eq!(bits["enum"], serde_json::json!([128, 256, 512]));
    }
}
