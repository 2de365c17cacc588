//! A gateway without a public name.

mod support;

use support::{cluster::Cluster, output, plain, stderr, wavry};

#[tokio::test]
async fn a_gateway_signs_for_itself_and_tells_of_the_hash_in_use_and_the_next() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let table = "[gateway.self_signed]\nnames = [\"localhost\", \"127.0.0.1\"]\n";
    cluster.obtain_certificate(table, "127.0.0.1:0".parse().unwrap());
    let cluster = cluster.start();
    let state = cluster.directory().join("edge/state");

    let printed = |arguments: &[&str]| {
        let mut command = wavry(arguments);
        command.arg("--state-dir").arg(&state);
        let printed = output(command);
        assert!(printed.status.success(), "{}", stderr(&printed));
        String::from_utf8(printed.stdout).unwrap()
    };
    let hashes = printed(&["cert", "hashes"]);
    let hashes: Vec<_> = hashes.lines().collect();
    assert_eq!(hashes.len(), 2);
    let listed = printed(&["cert", "list"]);
    assert!(hashes.iter().all(|hash| listed.contains(hash)), "{listed}");
    let listed: serde_json::Value =
        serde_json::from_str(&printed(&["cert", "list", "--json"])).unwrap();
    assert_eq!(listed[0]["source"], "self-signed");
    assert_eq!(listed[0]["names"][0], "localhost");

    let url = cluster.url("echo");
    let probe = |hashes: &[&str]| {
        let mut command = wavry(&["probe", &url, "--duration", "1s"]);
        for hash in hashes {
            command.args(["--certificate-hash", hash]);
        }
        output(command).status.success()
    };
    assert!(probe(&hashes));
    assert!(probe(&hashes[..1]));
    assert!(!probe(&hashes[1..]), "the next one is in use already");

    let gateway = url
        .strip_prefix("https://")
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let address = gateway.replace("localhost", "127.0.0.1").parse().unwrap();
    let chain = state.join("self-signed/pairs/00000001/chain.pem");
    let path = "/.well-known/wavry/certificate-hashes";
    let (status, told) = plain::ask(&chain, address, "GET", path, &[]).await;
    assert_eq!(status, 200);
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let told: Vec<_> = told["hashes"].as_array().unwrap().iter().collect();
    assert_eq!(told.len(), 2);
    for (told, hash) in told.iter().zip(&hashes) {
        assert_eq!(told["value"], **hash);
    }
    let metrics = cluster.metrics("gateway");
    for line in [
        "wavry_credentials_self_signed_certificates_total{outcome=\"made\"} 2",
        "wavry_credentials_self_signed_turn_timestamp_seconds",
        "wavry_gateway_certificate_expiry_timestamp_seconds{name=\"localhost\",source=\"self\",issuer=\"",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}
