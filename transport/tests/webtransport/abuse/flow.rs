//! Flow control of a session. The raw client grants 2³⁰ bytes and 1,000 streams of each kind at first.

use wavry_proto::{
    h3::code,
    varint,
    webtransport::{
        capsule::{
            DATA_BLOCKED, MAX_DATA, MAX_STREAM_DATA, MAX_STREAMS_BIDI, MAX_STREAMS_UNI,
            STREAM_DATA_BLOCKED, STREAMS_BLOCKED_UNI,
        },
        code::FLOW_CONTROL_ERROR,
    },
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};

cases! {
    limits_that_grow, "draft, 5.6":
        Session, [Connect(data(&cat(&[&limit(MAX_DATA, 1 << 31), &limit(MAX_DATA, varint::MAX), &limit(MAX_STREAMS_BIDI, 1001), &limit(MAX_STREAMS_UNI, 1 << 60)])))]
        => Ignored;
    a_limit_on_data_that_shrinks, "draft, 5.6.4":
        Session, [Connect(data(&limit(MAX_DATA, 1)))]
        => Stream(FLOW_CONTROL_ERROR);
    a_limit_on_data_that_stays, "draft, 5.6.4":
        Session, [Connect(data(&limit(MAX_DATA, 1 << 31).repeat(2)))]
        => Stream(FLOW_CONTROL_ERROR);
    a_limit_on_streams_that_shrinks, "draft, 5.6.2":
        Session, [Connect(data(&limit(MAX_STREAMS_BIDI, 999)))]
        => Stream(FLOW_CONTROL_ERROR);
    a_limit_of_more_streams_than_there_can_be, "draft, 5.6.2":
        Session, [Connect(data(&limit(MAX_STREAMS_UNI, (1 << 60) + 1)))]
        => Stream(FLOW_CONTROL_ERROR);
    blocked_by_a_limit_of_more_streams_than_there_can_be, "draft, 5.6.3":
        Session, [Connect(data(&limit(STREAMS_BLOCKED_UNI, (1 << 60) + 1)))]
        => Stream(FLOW_CONTROL_ERROR);
    blocked_by_any_limit_on_data, "draft, 5.6.5":
        Session, [Connect(data(&cat(&[&limit(DATA_BLOCKED, 0), &limit(DATA_BLOCKED, varint::MAX)])))]
        => Ignored;
    a_limit_on_one_stream_s_data, "draft, 5.4":
        Session, [Connect(data(&capsule(MAX_STREAM_DATA, &[0, 1])))]
        => Stream(code::MESSAGE_ERROR);
    blocked_by_a_limit_on_one_stream_s_data, "draft, 5.4":
        Session, [Connect(data(&capsule(STREAM_DATA_BLOCKED, &[0, 1])))]
        => Stream(code::MESSAGE_ERROR);
    a_limit_without_a_number, "RFC 9297, 3.3":
        Session, [Connect(data(&capsule(MAX_DATA, b"")))]
        => Stream(code::MESSAGE_ERROR);
    a_limit_with_more_than_a_number, "RFC 9297, 3.3":
        Session, [Connect(data(&capsule(MAX_DATA, &[0x3f, 0])))]
        => Stream(code::MESSAGE_ERROR);
    limits_in_a_draft_that_has_none, "draft, 5.1":
        Older, [Connect(data(&cat(&[&limit(MAX_DATA, 1), &limit(MAX_DATA, 1), &capsule(MAX_STREAM_DATA, b"")])))]
        => Ignored;
}
