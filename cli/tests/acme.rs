//! A gateway that obtains its certificate from a real authority.

#[path = "../../credentials/tests/pebble/mod.rs"]
mod pebble;
mod support;

use std::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

use pebble::{Pebble, Setup, free_address};
use support::{DEADLINE, cluster::Cluster, http_get, output, stderr, wavry};

#[test]
fn a_gateway_alone_obtains_its_certificate_and_is_ready_once_it_has_it() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let (listen, ops) = (free_address(), free_address());
    let pebble = Pebble::start(&Setup {
        validates_at: listen.port(),
        external: false,
        variables: &[],
    });
    // It takes connections and says nothing; for as long as it is there, there is no certificate.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ca_file = pebble.ca_file();
    let table = format!(
        "[gateway.acme]\nnames = [\"gateway.example\", \"127.0.0.1\"]\nterms_of_service_agreed = true\n\
         listen = \"{listen}\"\n\
         [[gateway.acme.authorities]]\nname = \"silent\"\ndirectory = \"https://{}/\"\nca_file = {ca_file:?}\n\
         [[gateway.acme.authorities]]\nname = \"pebble\"\ndirectory = \"{}\"\nca_file = {ca_file:?}\n",
        silent.local_addr().unwrap(),
        pebble.url(),
    );
    cluster.obtain_certificate(&table, ops);
    let cluster = std::thread::scope(|scope| {
        let starting = scope.spawn(|| cluster.start());
        let deadline = Instant::now() + DEADLINE;
        for address in [ops, listen] {
            while TcpStream::connect(address).is_err() {
                assert!(Instant::now() < deadline, "nobody listens at {address}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let (status, _) = http_get(&format!("http://{ops}/readyz"));
        assert_eq!(status, 503, "ready without a certificate");
        let (status, _) = http_get(&format!("http://{listen}/.well-known/acme-challenge/x"));
        assert_eq!(status, 404);
        drop(silent);
        starting.join().unwrap()
    });
    let (status, _) = http_get(&format!("http://{ops}/readyz"));
    assert_eq!(status, 200);
    let root = pebble.root();
    let url = cluster.url("echo");
    let probed = output(wavry(&[
        "probe",
        &url,
        "--ca",
        root.to_str().unwrap(),
        "--duration",
        "1s",
    ]));
    assert!(probed.status.success(), "{}", stderr(&probed));
    let metrics = cluster.metrics("gateway");
    for line in [
        "wavry_credentials_acme_attempts_total{authority=\"silent\",outcome=\"unreachable\"} 1",
        "wavry_credentials_acme_attempts_total{authority=\"pebble\",outcome=\"issued\"} 1",
        "wavry_credentials_acme_challenge_connections_total{type=\"http-01\",outcome=\"answered\"}",
        "wavry_gateway_certificate_expiry_timestamp_seconds{name=\"gateway.example\",source=\"acme\"}",
        "wavry_credentials_acme_last_success_timestamp_seconds",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}
