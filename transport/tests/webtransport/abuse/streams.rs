//! Streams and their types.

use wavry_proto::h3::{
    code,
    frame::kind,
    stream::{CONTROL, PUSH, QPACK_DECODER, QPACK_ENCODER},
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};

cases! {
    a_control_stream_begins_with_goaway, "RFC 9114, 6.2.1":
        Silent, [Uni(typed(CONTROL, &frame(kind::GOAWAY, &[0])))]
        => Connection(code::MISSING_SETTINGS);
    a_control_stream_begins_with_an_unknown_frame, "RFC 9114, 6.2.1":
        Silent, [Uni(typed(CONTROL, &frame(0x21, b"grease")))]
        => Connection(code::MISSING_SETTINGS);
    a_control_stream_begins_with_data, "RFC 9114, 6.2.1":
        Silent, [Uni(typed(CONTROL, &data(b"x")))]
        => Connection(code::MISSING_SETTINGS);
    a_second_control_stream, "RFC 9114, 6.2.1":
        Ready, [Uni(typed(CONTROL, b""))]
        => Connection(code::STREAM_CREATION_ERROR);
    a_second_control_stream_with_settings, "RFC 9114, 6.2.1":
        Ready, [Uni(control(&[]))]
        => Connection(code::STREAM_CREATION_ERROR);
    the_control_stream_is_ended, "RFC 9114, 6.2.1":
        Ready, [Control(frame(0x21, b"")), Fin]
        => Connection(code::CLOSED_CRITICAL_STREAM);
    the_control_stream_is_reset, "RFC 9114, 6.2.1":
        Ready, [Control(frame(0x21, b"")), Reset]
        => Connection(code::CLOSED_CRITICAL_STREAM);
    the_control_stream_is_ended_before_settings, "RFC 9114, 6.2.1":
        Silent, [Uni(typed(CONTROL, b"")), Fin]
        => Connection(code::CLOSED_CRITICAL_STREAM);
    the_server_s_control_stream_is_stopped, "RFC 9114, 6.2.1":
        Ready, [Stop(CONTROL)]
        => Connection(code::CLOSED_CRITICAL_STREAM);
    a_push_stream_from_a_client, "RFC 9114, 6.2.2":
        Ready, [Uni(typed(PUSH, &[0]))]
        => Connection(code::STREAM_CREATION_ERROR);
    a_stream_of_an_unknown_type, "RFC 9114, 6.2":
        Ready, [Uni(typed(0x1337, b"anything"))]
        => Stream(code::STREAM_CREATION_ERROR);
    a_stream_of_a_reserved_type, "RFC 9114, 6.2.3":
        Ready, [Uni(typed(0x1f * 1_000_000 + 0x21, b"grease"))]
        => Stream(code::STREAM_CREATION_ERROR);
    a_stream_that_ends_before_its_type, "RFC 9114, 6.2":
        Ready, [Uni(vec![]), Fin]
        => Ignored;
    a_stream_that_ends_within_its_type, "RFC 9114, 6.2":
        Ready, [Uni(vec![0x40]), Fin]
        => Ignored;
    a_stream_that_is_reset_before_its_type, "RFC 9114, 6.2":
        Ready, [Uni(vec![0x80]), Reset]
        => Ignored;
    a_stream_type_in_more_bytes_than_needed, "RFC 9114, 6.2":
        Silent, [Uni(cat(&[&[0x80, 0, 0, CONTROL as u8], &frame(kind::SETTINGS, &[0x21, 0]), &data(b"")]))]
        => Connection(code::FRAME_UNEXPECTED);

    a_second_qpack_encoder_stream, "RFC 9204, 4.2":
        Ready, [Uni(typed(QPACK_ENCODER, b"")), Uni(typed(QPACK_ENCODER, b""))]
        => Connection(code::STREAM_CREATION_ERROR);
    a_second_qpack_decoder_stream, "RFC 9204, 4.2":
        Ready, [Uni(typed(QPACK_DECODER, b"")), Uni(typed(QPACK_DECODER, b""))]
        => Connection(code::STREAM_CREATION_ERROR);
    the_qpack_encoder_stream_is_ended, "RFC 9204, 4.2":
        Ready, [Uni(typed(QPACK_ENCODER, b"")), Fin]
        => Connection(code::CLOSED_CRITICAL_STREAM);
    the_qpack_decoder_stream_is_reset, "RFC 9204, 4.2":
        Ready, [Uni(typed(QPACK_DECODER, b"\x40")), Meanwhile, Reset]
        => Connection(code::CLOSED_CRITICAL_STREAM);
}
