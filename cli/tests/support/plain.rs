//! Requests that ask for no session, over HTTP/3.

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::BytesMut;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::time::timeout;
use wavry_credentials::cert::{Trust, client_config};
use wavry_proto::{
    h3::{
        ALPN,
        frame::{self, Message, MessageDecoder, kind},
        message, qpack,
        settings::Settings,
        stream,
    },
    varint,
};
use wavry_transport::session::Header;

use super::DEADLINE;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// What a gateway answers: status and content.
pub(crate) async fn ask(
    ca_file: &Path,
    gateway: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, Vec<u8>) {
    let mut tls = client_config(&Trust::Authorities(ca_file.into())).unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = endpoint.connect_with(config, gateway, "127.0.0.1").unwrap();
    let asked = async {
        let connection = connecting.await.unwrap();
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&hello()).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let request = message::Request {
            method: method.to_owned(),
            scheme: Some("https".to_owned()),
            authority: gateway.to_string(),
            path: Some(path.to_owned()),
            protocol: None,
            headers: headers
                .iter()
                .map(|(name, value)| Header {
                    name: (*name).to_owned(),
                    value: (*value).to_owned(),
                })
                .collect(),
        };
        send.write_all(&head(&request)).await.unwrap();
        send.finish().unwrap();
        read(&recv.read_to_end(MAX_ANSWER).await.unwrap())
    };
    timeout(DEADLINE, asked).await.expect("an answer")
}

/// The beginning of the control stream.
fn hello() -> BytesMut {
    let mut hello = BytesMut::new();
    varint::put(&mut hello, stream::CONTROL);
    let mut settings = Vec::new();
    Settings::webtransport(1, 16 * 1024).encode(&mut settings);
    frame::put(&mut hello, kind::SETTINGS, &settings);
    hello
}

fn head(request: &message::Request) -> BytesMut {
    let fields = request.to_fields();
    let lines = fields
        .iter()
        .map(|field| (&field.name[..], &field.value[..]));
    let mut section = Vec::new();
    qpack::encode(lines, &mut section);
    let mut head = BytesMut::new();
    frame::put(&mut head, kind::HEADERS, &section);
    head
}

fn read(answer: &[u8]) -> (u16, Vec<u8>) {
    let mut decoder = MessageDecoder::responses(MAX_ANSWER);
    decoder.push(answer);
    let Ok(Some(Message::Headers(section))) = decoder.next() else {
        panic!("no head in {answer:x?}");
    };
    let fields = qpack::decode(&section, MAX_ANSWER).unwrap();
    let mut content = Vec::new();
    while let Some(Message::Data(data)) = decoder.next().unwrap() {
        content.extend_from_slice(&data);
    }
    let head = message::Response::from_fields(fields).unwrap();
    (head.status, content)
}
