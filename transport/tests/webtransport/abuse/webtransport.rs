//! Sessions and their streams.

use wavry_proto::{
    h3::{code, frame::kind, settings::id},
    varint,
    webtransport::{
        code::{BUFFERED_STREAM_REJECTED, SESSION_GONE},
        stream::{BI, UNI},
    },
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};
use crate::raw;

cases! {
    a_session_is_asked_for_before_the_settings, "draft, 3.1":
        Silent, [Bi(headers(&session())), Uni(control(&raw::SETTINGS)), Beside]
        => Ignored;
    a_session_is_asked_for_without_settings, "draft, 3.1":
        SilentHasty, [Bi(headers(&session()))]
        => Connection(code::NO_ERROR);
    a_session_that_is_not_https, "draft, 3.2":
        Ready, [Bi(headers(&replaced(session(), ":scheme", "http")))]
        => Stream(code::MESSAGE_ERROR);

    a_client_of_the_newest_draft_takes_no_datagrams, "draft, 3.1":
        Silent, [Uni(control(&[(id::WT_ENABLED, 1)])), Bi(headers(&session()))]
        => Stream(code::MESSAGE_ERROR);
    a_second_session_without_flow_control, "draft, 5.1":
        Silent, [Uni(control(&[(id::WT_ENABLED, 1), (id::H3_DATAGRAM, 1)])), Beside, Bi(headers(&session()))]
        => Stream(code::REQUEST_REJECTED);
    more_sessions_than_there_may_be, "draft, 5.2":
        Silent, [Uni(control(&[(id::WEBTRANSPORT_DRAFT02, 1), (id::H3_DATAGRAM, 1)])), Beside, Bi(headers(&session()))]
        => Answer(429);

    a_unidirectional_stream_of_a_server_s_stream, "draft, 4":
        Ready, [Uni(wt_uni(1, b"x"))]
        => Connection(code::ID_ERROR);
    a_unidirectional_stream_of_a_unidirectional_one, "draft, 4":
        Ready, [Uni(wt_uni(2, b"x"))]
        => Connection(code::ID_ERROR);
    a_bidirectional_stream_of_a_server_s_stream, "draft, 4":
        Ready, [Bi(wt_bi(1, b"x"))]
        => Connection(code::ID_ERROR);
    a_bidirectional_stream_of_a_unidirectional_one, "draft, 4":
        Ready, [Bi(wt_bi(3, b"x"))]
        => Connection(code::ID_ERROR);
    a_session_id_in_more_bytes_than_needed, "draft, 4":
        Session, [Uni(cat(&[&[0x40, UNI as u8], &[0xc0, 0, 0, 0, 0, 0, 0, 4], b"x"])), Fin]
        => Ignored;

    a_unidirectional_stream_of_no_session, "draft, 4.6":
        ReadyHasty, [Uni(wt_uni(40, b"x"))]
        => Stream(BUFFERED_STREAM_REJECTED);
    a_bidirectional_stream_of_no_session, "draft, 4.6":
        ReadyHasty, [Bi(wt_bi(40, b"x"))]
        => Stream(BUFFERED_STREAM_REJECTED);
    a_stream_of_an_impossibly_late_session, "draft, 4.6":
        ReadyHasty, [Uni(wt_uni(varint::MAX - 3, b"x"))]
        => Stream(BUFFERED_STREAM_REJECTED);
    a_unidirectional_stream_of_a_session_that_is_over, "draft, 6":
        Session, [Connect(data(&close(7, ""))), Fin, Ended, Uni(wt_uni(4, b"late"))]
        => Stream(SESSION_GONE);
    a_bidirectional_stream_of_a_session_that_is_over, "draft, 6":
        Session, [Connect(data(&close(7, ""))), Fin, Ended, Bi(wt_bi(4, b"late"))]
        => Stream(SESSION_GONE);
    a_stream_of_a_session_that_ends, "draft, 6":
        Session, [Bi(wt_bi(4, b"x")), Connect(data(&close(7, ""))), Fin, Ended, More(b"y".to_vec())]
        => Stream(SESSION_GONE);

    a_stream_type_that_is_half_sent, "RFC 9114, 6.2":
        ReadyHasty, [Uni(vec![0x40])]
        => Stream(code::REQUEST_INCOMPLETE);
    a_session_id_that_is_half_sent, "draft, 4.2":
        ReadyHasty, [Uni(cat(&[&integers(&[UNI]), &[0xc0, 0]]))]
        => Stream(code::REQUEST_INCOMPLETE);
    a_session_id_that_does_not_come, "draft, 4.3":
        ReadyHasty, [Bi(integers(&[BI]))]
        => Stream(code::REQUEST_INCOMPLETE);
    a_signal_value_that_is_half_sent, "draft, 4.3":
        ReadyHasty, [Bi(vec![0x40])]
        => Stream(code::REQUEST_INCOMPLETE);

    a_signal_value_after_a_frame, "draft, 4.3":
        Ready, [Bi(cat(&[&frame(0x21, b""), &wt_bi(0, b"x")]))]
        => Connection(code::FRAME_ERROR);
    a_signal_value_in_a_session, "draft, 4.3":
        Session, [Connect(wt_bi(0, b"x"))]
        => Connection(code::FRAME_ERROR);
    a_signal_value_on_the_control_stream, "draft, 4.3":
        Ready, [Control(frame(kind::WEBTRANSPORT_STREAM, b"x"))]
        => Connection(code::FRAME_ERROR);
}
