//! Capsules and datagrams.

use wavry_proto::{
    h3::{code, frame::kind::DATA},
    varint,
    webtransport::capsule::{CLOSE_SESSION, DATAGRAM, DRAIN_SESSION},
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};

/// Each byte in a DATA frame of its own, among unknown frames.
fn crumbs(content: &[u8]) -> Vec<u8> {
    let crumb = |byte: &u8| cat(&[&data(&[*byte]), &frame(0x21, b"grease"), &data(b"")]);
    content.iter().flat_map(crumb).collect()
}

cases! {
    capsules_of_unknown_types, "RFC 9297, 3.2":
        Session, [Connect(data(&cat(&[&capsule(0x17, &[1; 2000]), &capsule(0x29 * 9 + 0x17, b""), &close(7, "")]))), Fin]
        => Closed;
    a_capsule_of_a_length_that_nobody_has, "RFC 9297, 3.2":
        Session, [Connect(data(&cat(&[&integers(&[0x17, varint::MAX]), &[1; 2000]])))]
        => Ignored;
    a_capsule_is_cut_off_by_the_end_of_its_stream, "RFC 9297, 3.3":
        Session, [Connect(data(&close(7, "bye")[..8])), Fin]
        => Stream(code::MESSAGE_ERROR);
    an_unknown_capsule_is_cut_off_by_the_end_of_its_stream, "RFC 9297, 3.3":
        Session, [Connect(data(&integers(&[0x17, 100]))), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_capsule_s_type_is_cut_off_by_the_end_of_its_stream, "RFC 9297, 3.3":
        Session, [Connect(data(&[0x68])), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_close_in_crumbs, "RFC 9297, 3.2":
        Session, [Connect(crumbs(&close(7, "in many frames"))), Fin]
        => Closed;
    a_close_without_a_code, "RFC 9297, 3.3":
        Session, [Connect(data(&capsule(CLOSE_SESSION, &[0; 3])))]
        => Stream(code::MESSAGE_ERROR);
    a_reason_of_1024_bytes, "draft, 6":
        Session, [Connect(data(&close_with(&[b'x'; 1024]))), Fin]
        => Closed;
    a_reason_of_1025_bytes, "draft, 6":
        Session, [Connect(data(&close_with(&[b'x'; 1025])))]
        => Stream(code::MESSAGE_ERROR);
    a_reason_that_is_not_utf_8, "draft, 6":
        Session, [Connect(data(&close_with(b"\xc3\x28")))]
        => Stream(code::MESSAGE_ERROR);
    a_reason_that_is_cut_within_a_character, "draft, 6":
        Session, [Connect(data(&close_with("wavé".as_bytes().split_last().unwrap().1)))]
        => Stream(code::MESSAGE_ERROR);
    data_after_a_close, "draft, 6":
        Session, [Connect(data(&cat(&[&close(7, "bye"), b"\0"])))]
        => Stream(code::MESSAGE_ERROR);
    another_frame_of_data_after_a_close, "draft, 6":
        Session, [Connect(cat(&[&data(&close(7, "bye")), &data(&close(8, "again"))])), Fin]
        => Stream(code::MESSAGE_ERROR);
    a_drain_that_is_not_empty, "draft, 4.7":
        Session, [Connect(data(&capsule(DRAIN_SESSION, b"x")))]
        => Stream(code::MESSAGE_ERROR);
    a_drain_again_and_again, "draft, 4.7":
        Session, [Connect(data(&capsule(DRAIN_SESSION, b"").repeat(100)))]
        => Ignored;
    a_datagram_by_capsule_that_no_packet_holds, "RFC 9297, 3.5":
        Session, [Connect(data(&cat(&[&capsule(DATAGRAM, &[0; 65_536]), &close(7, "")]))), Fin]
        => Closed;
    an_end_without_a_close, "draft, 6":
        Session, [Connect(frame(DATA, b"")), Fin]
        => Closed;
    a_session_that_is_reset, "draft, 6":
        Session, [Connect(data(&close(7, "bye")[..8])), Reset]
        => Stream(code::REQUEST_CANCELLED);

    a_datagram_without_a_byte, "RFC 9297, 2.1":
        Ready, [Datagram(vec![])]
        => Connection(code::DATAGRAM_ERROR);
    a_datagram_that_ends_within_its_id, "RFC 9297, 2.1":
        Ready, [Datagram(vec![0xc0, 0, 0])]
        => Connection(code::DATAGRAM_ERROR);
    a_datagram_for_a_stream_that_cannot_be, "RFC 9297, 2.1":
        Ready, [Datagram(integers(&[varint::MAX / 4 + 1]))]
        => Connection(code::DATAGRAM_ERROR);
    a_datagram_for_a_stream_that_was_not_granted, "RFC 9297, 2.1":
        Ready, [Datagram(integers(&[varint::MAX / 4]))]
        => Connection(code::ID_ERROR);
    a_datagram_for_a_session_not_yet_asked_for, "RFC 9297, 2.1":
        Ready, [Datagram(integers(&[5]))]
        => Ignored;
    a_datagram_for_a_session_that_is_over, "RFC 9297, 2.1":
        Session, [Connect(data(&close(7, ""))), Fin, Ended, Datagram(cat(&[&integers(&[1]), b"late"]))]
        => Ignored;
    a_datagram_without_a_payload, "RFC 9297, 2.1":
        Session, [Datagram(integers(&[1]))]
        => Ignored;
}
