//! Frames: their order, their layout, and where they may be.

use wavry_proto::{
    h3::{code, frame::kind::*, settings::id, stream::CONTROL},
    varint,
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};

/// More settings than anybody has, none of which means anything.
fn many_settings() -> Vec<(u64, u64)> {
    (0..100).map(|n| (0x1f * n + 0x21, n)).collect()
}

cases! {
    data_on_the_control_stream, "RFC 9114, 7.2.1":
        Ready, [Control(frame(DATA, b"x"))]
        => Connection(code::FRAME_UNEXPECTED);
    headers_on_the_control_stream, "RFC 9114, 7.2.2":
        Ready, [Control(headers(&get()))]
        => Connection(code::FRAME_UNEXPECTED);
    push_promise_on_the_control_stream, "RFC 9114, 7.2.5":
        Ready, [Control(frame(PUSH_PROMISE, &[0, 0, 0]))]
        => Connection(code::FRAME_UNEXPECTED);
    priority_of_http_2_on_the_control_stream, "RFC 9114, 7.2.8":
        Ready, [Control(frame(0x02, &[0; 5]))]
        => Connection(code::FRAME_UNEXPECTED);
    ping_of_http_2_on_the_control_stream, "RFC 9114, 7.2.8":
        Ready, [Control(frame(0x06, &[0; 8]))]
        => Connection(code::FRAME_UNEXPECTED);
    window_update_of_http_2_on_the_control_stream, "RFC 9114, 7.2.8":
        Ready, [Control(frame(0x08, &[0; 4]))]
        => Connection(code::FRAME_UNEXPECTED);
    continuation_of_http_2_on_the_control_stream, "RFC 9114, 7.2.8":
        Ready, [Control(frame(0x09, b""))]
        => Connection(code::FRAME_UNEXPECTED);
    priority_of_http_2_on_a_request_stream, "RFC 9114, 7.2.8":
        Ready, [Bi(frame(0x02, &[0; 5]))]
        => Connection(code::FRAME_UNEXPECTED);
    ping_of_http_2_on_a_request_stream, "RFC 9114, 7.2.8":
        Ready, [Bi(frame(0x06, &[0; 8]))]
        => Connection(code::FRAME_UNEXPECTED);
    window_update_of_http_2_in_a_session, "RFC 9114, 7.2.8":
        Session, [Connect(frame(0x08, &[0; 4]))]
        => Connection(code::FRAME_UNEXPECTED);
    continuation_of_http_2_in_a_session, "RFC 9114, 7.2.8":
        Session, [Connect(frame(0x09, b""))]
        => Connection(code::FRAME_UNEXPECTED);
    frames_of_reserved_types_on_the_control_stream, "RFC 9114, 7.2.8":
        Ready, [Control(cat(&[&frame(0x21, b"grease"), &frame(0x1f * 77 + 0x21, &[0; 3000])]))]
        => Ignored;
    frames_of_unknown_types_before_a_request, "RFC 9114, 9":
        Ready, [Bi(cat(&[&frame(0x1337, &[7; 3000]), &frame(0x21, b""), &headers(&get())])), Fin]
        => Answer(404);

    cancel_push_of_what_was_never_pushed, "RFC 9114, 7.2.3":
        Ready, [Control(frame(CANCEL_PUSH, &[0]))]
        => Connection(code::ID_ERROR);
    cancel_push_on_a_request_stream, "RFC 9114, 7.2.3":
        Ready, [Bi(frame(CANCEL_PUSH, &[0]))]
        => Connection(code::FRAME_UNEXPECTED);
    cancel_push_without_an_id, "RFC 9114, 7.1":
        Ready, [Control(frame(CANCEL_PUSH, b""))]
        => Connection(code::FRAME_ERROR);
    push_promise_from_a_client, "RFC 9114, 7.2.5":
        Ready, [Bi(frame(PUSH_PROMISE, &[0, 0, 0]))]
        => Connection(code::FRAME_UNEXPECTED);
    max_push_id_grows, "RFC 9114, 7.2.7":
        Ready, [Control(cat(&[&frame(MAX_PUSH_ID, &[3]), &frame(MAX_PUSH_ID, &[3]), &frame(MAX_PUSH_ID, &[0x40, 99])]))]
        => Ignored;
    max_push_id_shrinks, "RFC 9114, 7.2.7":
        Ready, [Control(cat(&[&frame(MAX_PUSH_ID, &[3]), &frame(MAX_PUSH_ID, &[2])]))]
        => Connection(code::ID_ERROR);
    max_push_id_on_a_request_stream, "RFC 9114, 7.2.7":
        Ready, [Bi(frame(MAX_PUSH_ID, &[3]))]
        => Connection(code::FRAME_UNEXPECTED);
    max_push_id_with_more_than_an_id, "RFC 9114, 7.1":
        Ready, [Control(frame(MAX_PUSH_ID, &[3, 3]))]
        => Connection(code::FRAME_ERROR);
    max_push_id_that_ends_within_its_id, "RFC 9114, 7.1":
        Ready, [Control(frame(MAX_PUSH_ID, &[0x80, 0]))]
        => Connection(code::FRAME_ERROR);
    goaway_of_a_client_shrinks, "RFC 9114, 5.2":
        Ready, [Control(cat(&[&frame(GOAWAY, &[9]), &frame(GOAWAY, &[9]), &frame(GOAWAY, &[1])]))]
        => Ignored;
    goaway_grows, "RFC 9114, 5.2":
        Ready, [Control(cat(&[&frame(GOAWAY, &[4]), &frame(GOAWAY, &[8])]))]
        => Connection(code::ID_ERROR);
    goaway_on_a_request_stream, "RFC 9114, 7.2.6":
        Ready, [Bi(frame(GOAWAY, &[0]))]
        => Connection(code::FRAME_UNEXPECTED);
    goaway_in_a_session, "RFC 9114, 7.2.6":
        Session, [Connect(frame(GOAWAY, &[0]))]
        => Connection(code::FRAME_UNEXPECTED);
    goaway_without_an_id, "RFC 9114, 7.1":
        Ready, [Control(frame(GOAWAY, b""))]
        => Connection(code::FRAME_ERROR);
    goaway_longer_than_an_id, "RFC 9114, 7.1":
        Ready, [Control(frame_header(GOAWAY, varint::MAX))]
        => Connection(code::FRAME_ERROR);
    a_frame_is_cut_off_by_the_end_of_its_stream, "RFC 9114, 7.1":
        Ready, [Bi(headers(&get())[..9].to_vec()), Fin]
        => Connection(code::FRAME_ERROR);
    a_frame_s_length_is_cut_off_by_the_end_of_its_stream, "RFC 9114, 7.1":
        Ready, [Bi(vec![HEADERS as u8]), Fin]
        => Connection(code::FRAME_ERROR);
    a_frame_s_type_is_cut_off_by_the_end_of_its_stream, "RFC 9114, 7.1":
        Ready, [Bi(vec![0xc0]), Fin]
        => Connection(code::FRAME_ERROR);
    an_unknown_frame_is_cut_off_by_the_end_of_its_stream, "RFC 9114, 7.1":
        Ready, [Bi(frame_header(0x21, 100)), Fin]
        => Connection(code::FRAME_ERROR);
    data_is_cut_off_by_the_end_of_a_session, "RFC 9114, 7.1":
        Session, [Connect(frame_header(DATA, 100)), Fin]
        => Connection(code::FRAME_ERROR);

    settings_twice, "RFC 9114, 7.2.4":
        Ready, [Control(frame(SETTINGS, b""))]
        => Connection(code::FRAME_UNEXPECTED);
    settings_on_a_request_stream, "RFC 9114, 7.2.4":
        Ready, [Bi(frame(SETTINGS, b""))]
        => Connection(code::FRAME_UNEXPECTED);
    settings_in_a_session, "RFC 9114, 7.2.4":
        Session, [Connect(frame(SETTINGS, b""))]
        => Connection(code::FRAME_UNEXPECTED);
    a_setting_twice, "RFC 9114, 7.2.4":
        Silent, [Uni(control(&[(id::MAX_FIELD_SECTION_SIZE, 5), (id::MAX_FIELD_SECTION_SIZE, 5)]))]
        => Connection(code::SETTINGS_ERROR);
    a_setting_that_is_cut_off, "RFC 9114, 7.1":
        Silent, [Uni(typed(CONTROL, &frame(SETTINGS, &[id::MAX_FIELD_SECTION_SIZE as u8, 0x40])))]
        => Connection(code::FRAME_ERROR);
    enable_push_of_http_2, "RFC 9114, 7.2.4.1":
        Silent, [Uni(control(&[(0x02, 0)]))]
        => Connection(code::SETTINGS_ERROR);
    max_concurrent_streams_of_http_2, "RFC 9114, 7.2.4.1":
        Silent, [Uni(control(&[(0x03, 100)]))]
        => Connection(code::SETTINGS_ERROR);
    initial_window_size_of_http_2, "RFC 9114, 7.2.4.1":
        Silent, [Uni(control(&[(0x04, 65_535)]))]
        => Connection(code::SETTINGS_ERROR);
    max_frame_size_of_http_2, "RFC 9114, 7.2.4.1":
        Silent, [Uni(control(&[(0x05, 16_384)]))]
        => Connection(code::SETTINGS_ERROR);
    settings_that_nobody_knows, "RFC 9114, 7.2.4.1":
        Silent, [Uni(control(&[(0x21, 1), (id::H3_DATAGRAM, 1), (0x1f * 9 + 0x21, varint::MAX), (varint::MAX, 0), (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 9)])), Beside]
        => Ignored;
    more_settings_than_anybody_has, "RFC 9114, 10.5":
        Silent, [Uni(control(&many_settings()))]
        => Connection(code::EXCESSIVE_LOAD);
    settings_of_a_length_that_nobody_needs, "RFC 9114, 10.5":
        Silent, [Uni(typed(CONTROL, &frame_header(SETTINGS, varint::MAX)))]
        => Connection(code::EXCESSIVE_LOAD);
    h3_datagram_is_neither_0_nor_1, "RFC 9297, 2.1.1":
        Silent, [Uni(control(&[(id::H3_DATAGRAM, 2)]))]
        => Connection(code::SETTINGS_ERROR);
    enable_connect_protocol_is_neither_0_nor_1, "RFC 9220, 3":
        Silent, [Uni(control(&[(id::ENABLE_CONNECT_PROTOCOL, 2)]))]
        => Connection(code::SETTINGS_ERROR);

    priority_update_of_a_request, "RFC 9218, 7.2":
        Ready, [Control(cat(&[&frame(PRIORITY_UPDATE, b"\x00u=1, i"), &frame(PRIORITY_UPDATE, b"\x40\x40"), &frame(PRIORITY_UPDATE, b"\x04\xff\x00")]))]
        => Ignored;
    priority_update_of_what_is_no_request, "RFC 9218, 7.2":
        Ready, [Control(frame(PRIORITY_UPDATE, b"\x03u=1"))]
        => Connection(code::ID_ERROR);
    priority_update_of_a_push, "RFC 9218, 7.2":
        Ready, [Control(frame(PRIORITY_UPDATE_PUSH, b"\x00u=1"))]
        => Connection(code::ID_ERROR);
    priority_update_on_a_request_stream, "RFC 9218, 7.2":
        Ready, [Bi(frame(PRIORITY_UPDATE, b"\x00u=1"))]
        => Connection(code::FRAME_UNEXPECTED);
}
