//! Servers that break the rules, against our client.

use wavry_proto::{
    h3::{
        code,
        frame::kind::*,
        settings::id,
        stream::{CONTROL, PUSH, QPACK_DECODER, QPACK_ENCODER},
    },
    webtransport::code::{ALPN_ERROR, BUFFERED_STREAM_REJECTED, REQUIREMENTS_NOT_MET},
};

use super::{
    cases,
    script::{Expected::*, Start::*, Step::*, *},
    server::{NEWEST, run},
};

/// Settings of the newest draft but for one.
fn without_setting(id: u64) -> Vec<(u64, u64)> {
    NEWEST.into_iter().filter(|(i, _)| *i != id).collect()
}

fn status(status: &'static str) -> Vec<u8> {
    headers(&[(":status", status)])
}

cases! {
    a_server_s_control_stream_begins_with_goaway, "RFC 9114, 6.2.1":
        Silent, [Uni(typed(CONTROL, &frame(GOAWAY, &[0])))]
        => Connection(code::MISSING_SETTINGS);
    a_server_ends_its_control_stream, "RFC 9114, 6.2.1":
        Silent, [Uni(control(&super::server::SETTINGS)), Fin]
        => Connection(code::CLOSED_CRITICAL_STREAM);
    a_server_opens_a_second_control_stream, "RFC 9114, 6.2.1":
        Session, [Uni(typed(CONTROL, b""))]
        => Connection(code::STREAM_CREATION_ERROR);
    a_server_sends_a_reserved_setting, "RFC 9114, 7.2.4.1":
        Silent, [Uni(control(&[(0x03, 1)]))]
        => Connection(code::SETTINGS_ERROR);
    a_server_enables_an_unknown_kind_of_webtransport, "draft, 3.1":
        Silent, [Uni(control(&[(id::H3_DATAGRAM, 1), (id::WT_ENABLED, 2)]))]
        => Connection(code::SETTINGS_ERROR);
    a_server_takes_no_extended_connect, "draft, 3.1":
        Silent, [Uni(control(&without_setting(id::ENABLE_CONNECT_PROTOCOL)))]
        => Connection(REQUIREMENTS_NOT_MET);
    a_server_takes_no_datagrams, "draft, 3.1":
        Silent, [Uni(control(&without_setting(id::H3_DATAGRAM)))]
        => Connection(REQUIREMENTS_NOT_MET);
    a_subprotocol_that_was_not_offered, "draft, 3.3":
        Silent, [Uni(control(&NEWEST)), Connect(headers(&[(":status", "200"), ("wt-protocol", "\"x\"")]))]
        => Connection(ALPN_ERROR);
    a_server_sends_max_push_id, "RFC 9114, 7.2.7":
        Session, [Control(frame(MAX_PUSH_ID, &[1]))]
        => Connection(code::FRAME_UNEXPECTED);
    a_server_sends_priority_update, "RFC 9218, 7.2":
        Session, [Control(frame(PRIORITY_UPDATE, b"\x00u=1"))]
        => Connection(code::FRAME_UNEXPECTED);
    a_server_cancels_a_push, "RFC 9114, 7.2.3":
        Session, [Control(frame(CANCEL_PUSH, &[0]))]
        => Connection(code::ID_ERROR);
    a_server_s_goaway_shrinks, "RFC 9114, 5.2":
        Session, [Control(cat(&[&frame(GOAWAY, &[8]), &frame(GOAWAY, &[4])]))]
        => Ignored;
    a_server_s_goaway_grows, "RFC 9114, 5.2":
        Session, [Control(cat(&[&frame(GOAWAY, &[4]), &frame(GOAWAY, &[8])]))]
        => Connection(code::ID_ERROR);
    a_server_s_goaway_is_not_about_requests, "RFC 9114, 5.2":
        Session, [Control(frame(GOAWAY, &[3]))]
        => Connection(code::ID_ERROR);
    a_server_uses_a_dynamic_table, "RFC 9204, 3.2.2":
        Session, [Uni(typed(QPACK_ENCODER, &[0xc1, 0x01, b'/']))]
        => Connection(code::QPACK_ENCODER_STREAM_ERROR);
    a_server_acknowledges_what_was_not_sent, "RFC 9204, 4.4.1":
        Session, [Uni(typed(QPACK_DECODER, &[0x80]))]
        => Connection(code::QPACK_DECODER_STREAM_ERROR);

    a_push_stream, "RFC 9114, 4.6":
        Session, [Uni(typed(PUSH, &[0]))]
        => Connection(code::ID_ERROR);
    a_push_promise, "RFC 9114, 7.2.5":
        Ready, [Connect(frame(PUSH_PROMISE, &cat(&[&[0], &fields(&get())])))]
        => Connection(code::ID_ERROR);
    a_request_from_a_server, "RFC 9114, 6.1":
        Session, [Bi(headers(&get()))]
        => Connection(code::STREAM_CREATION_ERROR);
    a_server_s_stream_of_an_impossible_session, "draft, 4":
        Session, [Bi(wt_bi(1, b"x"))]
        => Connection(code::ID_ERROR);
    a_server_s_stream_of_a_session_that_was_not_asked_for, "draft, 4.6":
        ReadyHasty, [Connect(status("200")), Bi(wt_bi(40, b"x"))]
        => Stream(BUFFERED_STREAM_REJECTED);
    a_server_s_stream_of_an_unknown_type, "RFC 9114, 6.2":
        Session, [Uni(typed(0x1337, b"x"))]
        => Stream(code::STREAM_CREATION_ERROR);
    a_server_s_datagram_is_cut_off, "RFC 9297, 2.1":
        Session, [Datagram(vec![0x80])]
        => Connection(code::DATAGRAM_ERROR);

    data_before_an_answer, "RFC 9114, 4.1":
        Ready, [Connect(data(b"x"))]
        => Connection(code::FRAME_UNEXPECTED);
    an_answer_without_a_status, "RFC 9114, 4.3.2":
        Ready, [Connect(headers(&[("a", "b")]))]
        => Connection(code::MESSAGE_ERROR);
    an_answer_with_two_statuses, "RFC 9114, 4.3.2":
        Ready, [Connect(headers(&[(":status", "200"), (":status", "200")]))]
        => Connection(code::MESSAGE_ERROR);
    an_answer_with_a_pseudo_header_of_requests, "RFC 9114, 4.3":
        Ready, [Connect(headers(&[(":status", "200"), (":path", "/")]))]
        => Connection(code::MESSAGE_ERROR);
    an_answer_with_a_name_in_upper_case, "RFC 9114, 4.2":
        Ready, [Connect(headers(&[(":status", "200"), ("Server", "x")]))]
        => Connection(code::MESSAGE_ERROR);
    an_answer_of_101, "RFC 9114, 4.5":
        Ready, [Connect(cat(&[&status("101"), &status("200")]))]
        => Connection(code::MESSAGE_ERROR);
    interim_answers, "RFC 9114, 4.1":
        Ready, [Connect(cat(&[&status("100"), &status("103"), &frame(0x21, b""), &status("200")]))]
        => Ignored;
    an_interim_answer_with_content, "RFC 9114, 4.1":
        Ready, [Connect(cat(&[&status("103"), &data(b"x")]))]
        => Connection(code::FRAME_UNEXPECTED);
    a_redirection_is_not_followed, "draft, 3.2":
        Ready, [Connect(headers(&[(":status", "302"), ("location", "https://localhost/")])), Fin]
        => Answer(302);
    an_answer_that_is_cut_off, "RFC 9114, 7.1":
        Ready, [Connect(status("200")[..3].to_vec()), Fin]
        => Connection(code::FRAME_ERROR);
    an_answer_with_a_dynamic_reference, "RFC 9204, 4.5.1.1":
        Ready, [Connect(section(&[0x02, 0, 0x80]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    trailers_of_an_answer_in_a_session, "RFC 9114, 4.4":
        Session, [Connect(headers(&[("a", "b")]))]
        => Connection(code::FRAME_UNEXPECTED);
    settings_in_an_answer, "RFC 9114, 7.2.4":
        Ready, [Connect(frame(SETTINGS, b""))]
        => Connection(code::FRAME_UNEXPECTED);
}
