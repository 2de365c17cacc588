use std::sync::{Arc, Mutex};

use axum::{Json, Router, http::HeaderMap, routing::post};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::{
    keyvault::{
        call::{Auth, Refusal},
        world::World,
    },
    registry::unix_time,
};

const LOGIN: &str = "auth/kubernetes/login";

/// A cluster's key for service accounts.
struct Cluster(KeyPair);

impl Cluster {
    fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    fn pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// ES256 (RFC 7518, section 3.4): two numbers of 32 bytes, which DER writes otherwise.
    fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&json!({"alg": "ES256"})), part(claims));
        let der = self.0.sign(message.as_bytes()).unwrap();
        let mut rest = &der[2..];
        let mut signature = Vec::new();
        for _ in 0..2 {
            let (length, number) = (usize::from(rest[1]), &rest[2..]);
            let number = &number[..length];
            rest = &rest[2 + length..];
            let digits = number.strip_prefix(&[0]).unwrap_or(number);
            signature.extend(vec![0; 32 - digits.len()]);
            signature.extend(digits);
        }
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn claims(namespace: &str, name: &str) -> Value {
    json!({
        "iss": "https://kubernetes.default.svc", "aud": ["wavry"], "exp": unix_time() + 600,
        "nbf": unix_time(), "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": "uid-1"}},
    })
}

async fn world(config: Value) -> World {
    let world = World::new().await;
    world.enable("kubernetes").await;
    world
        .root()
        .post("auth/kubernetes/config", config)
        .await
        .unwrap();
    let role = json!({
        "bound_service_account_names": ["web"], "bound_service_account_namespaces": "prod,stage-*",
        "audience": "wavry", "policies": "web", "ttl": "10m", "alias_name_source": "serviceaccount_name",
    });
    world
        .root()
        .post("auth/kubernetes/role/web", role)
        .await
        .unwrap();
    world
}

async fn login(world: &World, jwt: &str) -> Result<Auth, Refusal> {
    world
        .stranger()
        .token(LOGIN, json!({"role": "web", "jwt": jwt}))
        .await
}

async fn with_keys(cluster: &Cluster) -> World {
    world(json!({"kubernetes_host": "https://192.0.2.1:6443", "pem_keys": [cluster.pem()]})).await
}

#[tokio::test]
async fn a_pod_logs_in_with_the_jwt_of_its_service_account() {
    let cluster = Cluster::new();
    let world = with_keys(&cluster).await;
    for namespace in ["prod", "stage-1"] {
        let auth = login(&world, &cluster.sign(&claims(namespace, "web")))
            .await
            .unwrap();
        assert_eq!(auth.policies, ["default", "web"]);
        assert_eq!(auth.lease_duration.as_secs(), 600);
        assert_eq!(auth.metadata["service_account_namespace"], namespace);
    }
    let log = world.log().await;
    assert!(log.iter().any(|event| event.actor == "kubernetes/prod.web"));
    // The form of secrets that are not projected.
    let older = json!({
        "iss": "kubernetes/serviceaccount", "aud": "wavry", "exp": unix_time() + 600,
        "kubernetes.io/serviceaccount/namespace": "prod",
        "kubernetes.io/serviceaccount/service-account.name": "web",
        "kubernetes.io/serviceaccount/service-account.uid": "uid-1",
    });
    assert!(login(&world, &cluster.sign(&older)).await.is_ok());
}

#[tokio::test]
async fn what_does_not_hold_is_denied_alike() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let world = with_keys(&cluster).await;
    let with = |change: Value| {
        let mut all = claims("prod", "web");
        all.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        cluster.sign(&all)
    };
    for jwt in [
        other.sign(&claims("prod", "web")),
        cluster.sign(&claims("prod", "batch")),
        cluster.sign(&claims("test", "web")),
        cluster.sign(&claims("prod/x", "web")),
        with(json!({"aud": ["other"]})),
        with(json!({"aud": null})),
        with(json!({"exp": unix_time() - 1})),
        with(json!({"exp": null})),
        with(json!({"nbf": unix_time() + 600})),
        with(json!({"kubernetes.io": null})),
        "not a jwt".to_owned(),
        "x".repeat(100_000),
    ] {
        let refusal = login(&world, &jwt).await.err().unwrap();
        assert!(matches!(refusal, Refusal::Denied), "{jwt}: {refusal}");
    }
    let unknown = json!({"role": "unknown", "jwt": cluster.sign(&claims("prod", "web"))});
    let refusal = world.stranger().token(LOGIN, unknown).await.err().unwrap();
    assert!(matches!(refusal, Refusal::Denied));
}

#[tokio::test]
async fn the_issuer_is_looked_at_where_that_is_asked_for() {
    let cluster = Cluster::new();
    let world = with_keys(&cluster).await;
    let jwt = cluster.sign(&claims("prod", "web"));
    for (issuer, holds) in [("https://kubernetes.default.svc", true), ("bob", false)] {
        let config = json!({
            "kubernetes_host": "https://192.0.2.1:6443", "pem_keys": [cluster.pem()],
            "issuer": issuer, "disable_iss_validation": false,
        });
        world
            .root()
            .post("auth/kubernetes/config", config)
            .await
            .unwrap();
        assert_eq!(login(&world, &jwt).await.is_ok(), holds, "{issuer}");
    }
}

#[tokio::test]
async fn settings_and_roles_that_mean_nothing_are_refused() {
    let world = World::new().await;
    world.enable("kubernetes").await;
    for config in [
        json!({}),
        json!({"kubernetes_host": "http://192.0.2.1"}),
        json!({"kubernetes_host": "https://user@192.0.2.1"}),
        json!({"kubernetes_host": "https://192.0.2.1", "pem_keys": ["x"]}),
        json!({"kubernetes_host": "https://192.0.2.1", "jwks": "{}"}),
        json!({"kubernetes_host": "https://192.0.2.1", "disable_local_ca_jwt": true}),
    ] {
        let refusal = world
            .root()
            .post("auth/kubernetes/config", config.clone())
            .await;
        assert!(matches!(refusal, Err(Refusal::Invalid(_))), "{config}");
    }
    for role in [
        json!({}),
        json!({"bound_service_account_names": "web"}),
        json!({"bound_service_account_names": "*", "bound_service_account_namespaces": "*", "alias_name_source": "x"}),
        json!({"bound_service_account_names": "*", "bound_service_account_namespaces": "*", "policies": "root"}),
    ] {
        let refusal = world
            .root()
            .post("auth/kubernetes/role/web", role.clone())
            .await;
        assert!(matches!(refusal, Err(Refusal::Invalid(_))), "{role}");
    }
    assert!(matches!(
        world.root().get("auth/kubernetes/config").await,
        Err(Refusal::Absent)
    ));
}

/// The bearer and the body of each request.
type Asked = Arc<Mutex<Vec<(Option<String>, Value)>>>;

/// What an API server was asked, and a TLS address that answers as one.
struct ApiServer {
    address: String,
    authority: String,
    asked: Asked,
}

/// Nothing real can be had for tests, so this speaks TokenReview as its reference has it.
async fn api_server(status: Value) -> ApiServer {
    let asked = Asked::default();
    let record = asked.clone();
    let review = move |headers: HeaderMap, Json(body): Json<Value>| async move {
        let bearer = headers
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        record.lock().unwrap().push((bearer, body.clone()));
        Json(json!({"apiVersion": body["apiVersion"], "kind": "TokenReview", "status": status}))
    };
    let router = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review));
    let key = KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper_util::service::TowerToHyperService::new(router);
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await;
            });
        }
    });
    let body = STANDARD.encode(certificate.der());
    ApiServer {
        address,
        authority: format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"),
        asked,
    }
}

fn reviewed(namespace: &str, audiences: Value) -> Value {
    json!({
        "authenticated": true, "audiences": audiences,
        "user": {"username": format!("system:serviceaccount:{namespace}:web"), "uid": "uid-1"},
    })
}

#[tokio::test]
async fn the_cluster_is_asked_where_its_keys_are_not_known() {
    let server = api_server(reviewed("prod", json!(["wavry"]))).await;
    let config = json!({
        "kubernetes_host": server.address, "kubernetes_ca_cert": server.authority,
        "token_reviewer_jwt": "the-reviewer",
    });
    let world = world(config).await;
    let shown = world.root().get("auth/kubernetes/config").await.unwrap();
    assert_eq!(shown["token_reviewer_jwt_set"], true);
    assert!(!shown.to_string().contains("the-reviewer"));
    let jwt = Cluster::new().sign(&claims("prod", "web"));
    let auth = login(&world, &jwt).await.unwrap();
    assert_eq!(auth.metadata["service_account_uid"], "uid-1");
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].0.as_deref(), Some("Bearer the-reviewer"));
    assert_eq!(
        asked[0].1["spec"],
        json!({"token": jwt, "audiences": ["wavry"]})
    );
    // Of accounts that the role does not admit, the cluster is shown nothing.
    for (namespace, name) in [("test", "web"), ("prod", "batch")] {
        assert!(
            login(&world, &Cluster::new().sign(&claims(namespace, name)))
                .await
                .is_err()
        );
    }
    assert_eq!(server.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn only_the_clusters_yes_for_this_account_and_audience_lets_in() {
    for status in [
        json!({"authenticated": false}),
        json!({"error": "expired"}),
        reviewed("test", json!(["wavry"])),
        reviewed("prod", json!(["other"])),
        reviewed("prod", json!([])),
        json!({"authenticated": true, "audiences": ["wavry"], "user": {"username": "admin", "uid": "uid-1"}}),
    ] {
        let server = api_server(status.clone()).await;
        let config =
            json!({"kubernetes_host": server.address, "kubernetes_ca_cert": server.authority});
        let world = world(config).await;
        let refusal = login(&world, &Cluster::new().sign(&claims("prod", "web")))
            .await
            .err()
            .unwrap();
        assert!(matches!(refusal, Refusal::Denied), "{status}: {refusal}");
    }
}

#[tokio::test]
async fn a_cluster_that_cannot_be_asked_or_is_not_trusted_lets_nobody_in() {
    let server = api_server(reviewed("prod", json!(["wavry"]))).await;
    let other = api_server(json!({})).await;
    let jwt = Cluster::new().sign(&claims("prod", "web"));
    for config in [
        json!({"kubernetes_host": server.address, "kubernetes_ca_cert": other.authority}),
        json!({"kubernetes_host": server.address, "kubernetes_ca_cert": "-----BEGIN CERTIFICATE-----\\n..."}),
        json!({"kubernetes_host": "https://127.0.0.1:1", "kubernetes_ca_cert": server.authority}),
    ] {
        let world = world(config.clone()).await;
        let refusal = login(&world, &jwt).await.err().unwrap();
        assert!(
            matches!(refusal, Refusal::Internal(_)),
            "{config}: {refusal}"
        );
    }
    assert!(server.asked.lock().unwrap().is_empty());
}
