//! Requests: what makes them malformed, and what only makes them refused.

use wavry_proto::{
    h3::{
        code,
        frame::kind::{DATA, HEADERS},
    },
    varint,
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};

cases! {
    data_before_headers, "RFC 9114, 4.1":
        Ready, [Bi(data(b"x"))]
        => Connection(code::FRAME_UNEXPECTED);
    a_request_stream_without_a_byte, "RFC 9114, 4.1":
        Ready, [Bi(vec![]), Fin]
        => Stream(code::REQUEST_INCOMPLETE);
    a_request_stream_with_unknown_frames_only, "RFC 9114, 4.1":
        Ready, [Bi(frame(0x21, b"grease")), Fin]
        => Stream(code::REQUEST_INCOMPLETE);
    a_request_that_is_given_up, "RFC 9114, 4.1.1":
        Ready, [Bi(headers(&get())[..5].to_vec()), Reset]
        => Ignored;
    a_request_that_is_half_sent, "RFC 9114, 4.1":
        ReadyHasty, [Bi(headers(&session())[..9].to_vec())]
        => Stream(code::REQUEST_INCOMPLETE);
    a_frame_that_never_ends_before_a_request, "RFC 9114, 10.5":
        ReadyHasty, [Bi(cat(&[&frame_header(0x21, varint::MAX), b"grease"]))]
        => Stream(code::REQUEST_INCOMPLETE);
    headers_after_trailers, "RFC 9114, 4.1":
        Ready, [Bi(cat(&[&headers(&replaced(get(), ":method", "POST")), &data(b"x"), &headers(&[("a", "b")]), &headers(&[("a", "b")])]))]
        => Connection(code::FRAME_UNEXPECTED);
    data_after_trailers, "RFC 9114, 4.1":
        Ready, [Bi(cat(&[&headers(&replaced(get(), ":method", "POST")), &headers(&[("a", "b")]), &data(b"x")]))]
        => Connection(code::FRAME_UNEXPECTED);
    a_pseudo_header_in_trailers, "RFC 9114, 4.3":
        Ready, [Bi(cat(&[&headers(&replaced(get(), ":method", "POST")), &headers(&[(":path", "/")])])), Fin]
        => Stream(code::MESSAGE_ERROR);
    headers_in_a_session, "RFC 9114, 4.4":
        Session, [Connect(headers(&[("a", "b")]))]
        => Connection(code::FRAME_UNEXPECTED);

    a_header_block_over_the_limit, "RFC 9114, 4.2.2":
        Ready, [Bi(section(&fields(&[("x", &"y".repeat(20_000))])))]
        => Answer(431);
    a_header_block_that_grows_over_the_limit, "RFC 9114, 4.2.2":
        Ready, [Bi(section(&cat(&[&[0, 0], &[0xff, 85 - 63].repeat(300)])))]
        => Answer(431);
    a_header_block_of_a_length_that_nobody_has, "RFC 9114, 4.2.2":
        Ready, [Bi(frame_header(HEADERS, varint::MAX))]
        => Answer(431);

    a_field_name_in_upper_case, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(get(), "Accept", "x"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_field_name_with_a_blank, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(get(), "a b", "x"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_field_value_with_a_line_break, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(session(), "a", "b\r\nc: d")))]
        => Stream(code::MESSAGE_ERROR);
    a_field_value_with_a_nul, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(session(), "a", "b\0c")))]
        => Stream(code::MESSAGE_ERROR);
    a_connection_field, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(get(), "connection", "close"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_transfer_encoding_field, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(get(), "transfer-encoding", "chunked"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    an_upgrade_field, "RFC 9114, 4.5":
        Ready, [Bi(headers(&with(session(), "upgrade", "webtransport")))]
        => Stream(code::MESSAGE_ERROR);
    te_is_not_trailers, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(get(), "te", "gzip"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    te_is_trailers, "RFC 9114, 4.2":
        Ready, [Bi(headers(&with(get(), "te", "trailers"))), Fin]
        => Answer(404);

    a_pseudo_header_after_a_field, "RFC 9114, 4.3":
        Ready, [Bi(headers(&with(with(without(get(), ":path"), "a", "b"), ":path", "/"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_pseudo_header_twice, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&with(get(), ":path", "/"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    an_unknown_pseudo_header, "RFC 9114, 4.3":
        Ready, [Bi(headers(&with(session(), ":version", "3")))]
        => Stream(code::MESSAGE_ERROR);
    a_pseudo_header_of_responses, "RFC 9114, 4.3":
        Ready, [Bi(headers(&with(session(), ":status", "200")))]
        => Stream(code::MESSAGE_ERROR);
    no_method, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&without(get(), ":method"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    no_scheme, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&without(get(), ":scheme"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    no_path, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&without(get(), ":path"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    an_empty_path, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&replaced(get(), ":path", ""))), Fin]
        => Stream(code::MESSAGE_ERROR);
    no_authority, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&without(get(), ":authority"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    an_empty_authority, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&replaced(session(), ":authority", "")))]
        => Stream(code::MESSAGE_ERROR);
    authority_and_host_differ, "RFC 9114, 4.3.1":
        Ready, [Bi(headers(&with(session(), "host", "elsewhere.example")))]
        => Stream(code::MESSAGE_ERROR);
    a_request_without_a_field, "RFC 9114, 4.3.1":
        Ready, [Bi(section(&[0, 0]))]
        => Stream(code::MESSAGE_ERROR);
    connect_with_a_path, "RFC 9114, 4.4":
        Ready, [Bi(headers(&without(session(), ":protocol")))]
        => Stream(code::MESSAGE_ERROR);
    an_ordinary_connect, "RFC 9114, 4.4":
        Ready, [Bi(headers(&[(":method", "CONNECT"), (":authority", "a.example:443")]))]
        => Answer(405);
    extended_connect_without_a_scheme, "RFC 9220, 3":
        Ready, [Bi(headers(&without(session(), ":scheme")))]
        => Stream(code::MESSAGE_ERROR);
    extended_connect_without_a_path, "RFC 9220, 3":
        Ready, [Bi(headers(&without(session(), ":path")))]
        => Stream(code::MESSAGE_ERROR);
    a_protocol_without_connect, "RFC 9220, 3":
        Ready, [Bi(headers(&replaced(session(), ":method", "GET")))]
        => Stream(code::MESSAGE_ERROR);
    extended_connect_for_an_unknown_protocol, "RFC 9220, 3":
        Ready, [Bi(headers(&replaced(session(), ":protocol", "smoke-signals")))]
        => Answer(501);
    a_content_length_that_is_no_number, "RFC 9114, 4.1.2":
        Ready, [Bi(headers(&with(get(), "content-length", "+1"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    two_content_lengths, "RFC 9114, 4.1.2":
        Ready, [Bi(headers(&with(with(get(), "content-length", "1"), "content-length", "2"))), Fin]
        => Stream(code::MESSAGE_ERROR);
    less_content_than_its_length, "RFC 9114, 4.1.2":
        Ready, [Bi(cat(&[&headers(&with(get(), "content-length", "5")), &data(b"abc")])), Fin]
        => Stream(code::MESSAGE_ERROR);
    more_content_than_its_length, "RFC 9114, 4.1.2":
        Ready, [Bi(cat(&[&headers(&with(get(), "content-length", "2")), &frame(DATA, b"abc")])), Fin]
        => Stream(code::MESSAGE_ERROR);
}
