//! The API as OpenAPI, for people and tools. What is mounted where is data, so the paths of engines and
//! auth methods are described at the mounts that they have by custom.

use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
    RefOr, Required, ResponseBuilder, ResponsesBuilder,
    path::{HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::{ObjectBuilder, Schema, SchemaType, Type},
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::MAX_BODY;

/// Who may send a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Anyone,
    Holder,
}
use Who::{Anyone, Holder};

/// One operation: method, path below `/v1`, what it does, who may, members of its body as `name:type`
/// with `*` behind those that must be there, and what is given when it is done: a status.
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
        "role_id:string secret_id:string jwt:string role:string token:string method:string",
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
        "versions:array*",
        204,
    ),
    (
        Post,
        "/secret/undelete/{path}",
        "Bring versions back",
        Holder,
        "versions:array*",
        204,
    ),
    (
        Post,
        "/secret/destroy/{path}",
        "Destroy versions",
        Holder,
        "versions:array*",
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
        "max_versions:integer cas_required:boolean delete_version_after:string custom_metadata:object",
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
        "max_versions:integer cas_required:boolean delete_version_after:string",
        204,
    ),
    (
        Post,
        "/auth/approle/login",
        "Log in with a role-id and a secret-id",
        Anyone,
        "role_id:string* secret_id:string",
        200,
    ),
    (
        Post,
        "/auth/kubernetes/login",
        "Log in with a service account's JWT",
        Anyone,
        "role:string* jwt:string*",
        200,
    ),
    (
        Post,
        "/auth/cert/login",
        "Log in with a client certificate",
        Anyone,
        "name:string",
        200,
    ),
    (
        Post,
        "/auth/bootstrap/login",
        "Log in with a bootstrap token",
        Anyone,
        "token:string*",
        200,
    ),
    (
        Post,
        "/auth/token/create",
        "Make a token",
        Holder,
        "policies:array ttl:string explicit_max_ttl:string period:string num_uses:integer display_name:string renewable:boolean no_parent:boolean meta:object",
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
        "token:string*",
        200,
    ),
    (
        Post,
        "/auth/token/renew-self",
        "Make the token that asks last longer",
        Holder,
        "increment:string",
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
        "accessor:string*",
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
        "key:string reset:boolean",
        200,
    ),
    (Get, "/sys/mounts", "List engines", Holder, "", 200),
    (
        Post,
        "/sys/mounts/{path}",
        "Mount an engine: kv or transit",
        Holder,
        "type:string* description:string options:object config:object",
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
        "type:string* description:string config:object",
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
        "from:string* to:string*",
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
        "policy:string*",
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
        "paths:array*",
        200,
    ),
    (Get, "/sys/audit", "List audit logs", Holder, "", 200),
    (
        Post,
        "/sys/audit-hash/{path}",
        "What stands in the audit log for an identifier",
        Holder,
        "input:string*",
        200,
    ),
    (
        Post,
        "/sys/wrapping/unwrap",
        "Exchange a wrapping token for its answer, once",
        Anyone,
        "token:string",
        200,
    ),
    (
        Post,
        "/sys/wrapping/lookup",
        "What is known of a wrapping token",
        Anyone,
        "token:string",
        200,
    ),
    (
        Post,
        "/sys/wrapping/rewrap",
        "Exchange a wrapping token for a new one",
        Anyone,
        "token:string",
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
        "type:string",
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
        "plaintext:string* associated_data:string key_version:integer",
        200,
    ),
    (
        Post,
        "/transit/decrypt/{name}",
        "Decrypt",
        Holder,
        "ciphertext:string* associated_data:string",
        200,
    ),
    (
        Post,
        "/transit/rewrap/{name}",
        "Encrypt anew under the latest version",
        Holder,
        "ciphertext:string* associated_data:string",
        200,
    ),
    (
        Post,
        "/transit/datakey/plaintext/{name}",
        "Make a key for the holder's own use",
        Holder,
        "bits:integer",
        200,
    ),
    (
        Post,
        "/transit/sign/{name}",
        "Sign",
        Holder,
        "input:string* key_version:integer",
        200,
    ),
    (
        Post,
        "/transit/verify/{name}",
        "Check a signature",
        Holder,
        "input:string* signature:string*",
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
        .build();
    let info = InfoBuilder::new()
        .title("Wavry KeyVault")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(format!(
            "Two dialects over one core: HashiCorp Vault's HTTP API, and two endpoints for units that \
             only fetch secrets. Bodies are JSON of {MAX_BODY} bytes at most."
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
                .schema(Some(member("string"))),
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
    let response = |text: &str| ResponseBuilder::new().description(text).build();
    let responses = ResponsesBuilder::new()
        .response(status.to_string(), response("Done"))
        .response("400", response("Not such a request"))
        .response("403", response("Not permitted"))
        .response("404", response("Nothing there"))
        .response("405", response("The path does not take the method"))
        .response("413", response("The body is too long"))
        .response("429", response("Too many logins; Retry-After says when"))
        .response("501", response("Not initialised (health)"))
        .response("503", response("Sealed, or not on record; try again"))
        .build();
    operation.responses(responses).build()
}

fn member(kind: &str) -> RefOr<Schema> {
    let kind = match kind {
        "object" => Type::Object,
        "array" => Type::Array,
        "integer" => Type::Integer,
        "boolean" => Type::Boolean,
        _ => Type::String,
    };
    RefOr::T(Schema::Object(
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(kind))
            .build(),
    ))
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
    }
}
