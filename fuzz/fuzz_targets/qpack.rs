//! A field section that was decoded is within its bound and survives our encoder; and so does the
//! session request in it. A QPACK stream is judged the same however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::{
    h3::{
        huffman, message,
        qpack::{
            self,
            stream::{DecoderStream, EncoderStream},
        },
    },
    session,
    webtransport::request::{self, Asked},
};

const MAX_SIZE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = huffman::decode(data) {
        assert!(text.len() <= data.len() * 8 / 5);
        assert_eq!(huffman::decode(&huffman::encode(&text)), Ok(text));
    }

    let (mut encoder, mut decoder) = (EncoderStream, DecoderStream::default());
    let cut = data.chunks(1).try_for_each(|byte| encoder.push(byte));
    assert_eq!(cut, EncoderStream.push(data));
    let cut = data.chunks(1).try_for_each(|byte| decoder.push(byte));
    assert_eq!(cut, DecoderStream::default().push(data));

    let Ok(fields) = qpack::decode(data, MAX_SIZE) else {
        return;
    };
    let size = |field: &qpack::Field| field.name.len() + field.value.len() + 32;
    assert!(fields.iter().map(size).sum::<usize>() <= MAX_SIZE);
    let mut section = Vec::new();
    qpack::encode(
        fields
            .iter()
            .map(|field| (&field.name[..], &field.value[..])),
        &mut section,
    );
    assert_eq!(qpack::decode(&section, MAX_SIZE).as_ref(), Ok(&fields));

    if let Ok(head) = message::Response::from_fields(fields.clone()) {
        let again = message::Response::from_fields(head.to_fields());
        assert_eq!(again.as_ref(), Ok(&head));
        request::response(head, &[]);
    }
    let Ok(head) = message::Request::from_fields(fields) else {
        return;
    };
    assert_eq!(
        message::Request::from_fields(head.to_fields()).as_ref(),
        Ok(&head)
    );
    if let Ok(Asked::Session { request, .. }) = Asked::new(head) {
        let again = Asked::new(request::head(&request));
        let Ok(Asked::Session { request: again, .. }) = again else {
            panic!("our own request was not taken: {again:?}");
        };
        let known = |request: &session::Request| {
            (
                request.authority.clone(),
                request.path.clone(),
                request.origin.clone(),
                request.subprotocols.clone(),
            )
        };
        assert_eq!(known(&again), known(&request));
    }
});
