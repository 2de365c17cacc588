use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::keyvault::{
    call::{Auth, Operation, Refusal},
    world::{World, auth},
};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, "units");
        params.subject_alt_names.push(SanType::DnsName(
            format!("{name}.example").try_into().unwrap(),
        ));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.0).unwrap().der().clone()
    }
}

async fn login(
    world: &World,
    name: &str,
    chain: Vec<CertificateDer<'static>>,
) -> Result<Auth, Refusal> {
    let ask = world.stranger();
    let mut call = ask.call(
        Operation::Update,
        "auth/cert/login",
        Some(&json!({"name": name})),
    );
    call.peer_certificates = chain;
    auth(world.vault.handle(call).await)
}

async fn put(world: &World, name: &str, body: Value) {
    world
        .root()
        .post(&format!("auth/cert/certs/{name}"), body)
        .await
        .unwrap();
}

async fn world() -> World {
    let world = World::new().await;
    world.enable("cert").await;
    world
}

#[tokio::test]
async fn a_certificate_of_the_roles_authority_logs_in_and_another_does_not() {
    let world = world().await;
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    put(
        &world,
        "web",
        json!({"certificate": ours.pem(), "token_policies": "web"}),
    )
    .await;
    let chain = vec![ours.issue("web-1", |_| ())];
    for name in ["web", ""] {
        let auth = login(&world, name, chain.clone()).await.unwrap();
        assert_eq!(auth.policies, ["default", "web"]);
        assert_eq!(auth.metadata["common_name"], "web-1");
    }
    let refused = [
        ("web", vec![theirs.issue("web-1", |_| ())]),
        ("other", chain.clone()),
        ("web", Vec::new()),
        ("web", vec![CertificateDer::from(vec![1, 2, 3])]),
    ];
    for (name, chain) in refused {
        let refusal = login(&world, name, chain).await.err().unwrap();
        assert_eq!(refusal.to_string(), super::WRONG);
    }
}

#[tokio::test]
async fn an_expired_certificate_does_not_log_in_nor_one_for_servers() {
    let world = world().await;
    let ours = Authority::new("ours");
    let expired = ours.issue("web-1", |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let server = ours.issue("web-1", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    put(&world, "web", json!({"certificate": ours.pem()})).await;
    for chain in [expired.clone(), server] {
        assert!(login(&world, "web", vec![chain]).await.is_err());
    }
    // Trusted by itself, it expires all the same.
    let pem = |der: &CertificateDer<'_>| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            STANDARD.encode(der)
        )
    };
    put(&world, "itself", json!({"certificate": pem(&expired)})).await;
    assert!(login(&world, "itself", vec![expired]).await.is_err());
    let good = ours.issue("web-1", |_| ());
    put(&world, "itself", json!({"certificate": pem(&good)})).await;
    assert!(login(&world, "itself", vec![good.clone()]).await.is_ok());
    assert!(
        login(&world, "itself", vec![ours.issue("web-1", |_| ())])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn names_are_held_to_those_that_the_role_allows() {
    let world = world().await;
    let ours = Authority::new("ours");
    let chain = vec![ours.issue("web-1", |_| ())];
    for (field, fits, does_not) in [
        ("allowed_common_names", "web-*", "batch-*"),
        ("allowed_names", "*.example", "other"),
        ("allowed_dns_sans", "web-1.example", "web-1"),
        ("allowed_organizational_units", "un*", "others"),
    ] {
        for (glob, allowed) in [(fits, true), (does_not, false)] {
            put(
                &world,
                "web",
                json!({"certificate": ours.pem(), field: [glob]}),
            )
            .await;
            let done = login(&world, "web", chain.clone()).await.is_ok();
            assert_eq!(done, allowed, "{field} {glob}");
        }
        put(&world, "web", json!({"certificate": ours.pem(), field: []})).await;
    }
    for field in ["allowed_email_sans", "allowed_uri_sans"] {
        put(
            &world,
            "web",
            json!({"certificate": ours.pem(), field: ["*"]}),
        )
        .await;
        assert!(
            login(&world, "web", chain.clone()).await.is_err(),
            "{field}"
        );
        put(&world, "web", json!({"certificate": ours.pem(), field: []})).await;
    }
}

#[tokio::test]
async fn what_is_no_certificate_makes_no_role() {
    let world = world().await;
    for pem in [
        "",
        "x",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let refusal = world
            .root()
            .post("auth/cert/certs/web", json!({"certificate": pem}))
            .await;
        assert!(matches!(refusal, Err(Refusal::Invalid(_))), "{pem}");
    }
}
