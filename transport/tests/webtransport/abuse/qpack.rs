//! Field sections and QPACK streams, where no dynamic table was granted.

use wavry_proto::h3::{
    code,
    stream::{QPACK_DECODER, QPACK_ENCODER},
};

use super::{
    cases,
    run::run,
    script::{Expected::*, Start::*, Step::*, *},
};

/// A sound field section, and then this.
fn sound_and(bytes: &[u8]) -> Vec<u8> {
    section(&cat(&[&fields(&get()), bytes]))
}

cases! {
    a_section_that_needs_an_insertion, "RFC 9204, 4.5.1.1":
        Ready, [Bi(section(&[0x02, 0x00, 0x80]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    a_negative_base, "RFC 9204, 4.5.1.2":
        Ready, [Bi(section(&[0x00, 0x80, 0xd1]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    an_indexed_line_of_the_dynamic_table, "RFC 9204, 4.5.2":
        Ready, [Bi(sound_and(&[0x80]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    a_post_base_line, "RFC 9204, 4.5.3":
        Ready, [Bi(sound_and(&[0x10]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    a_name_of_the_dynamic_table, "RFC 9204, 4.5.4":
        Ready, [Bi(sound_and(&[0x40, 0x01, b'x']))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    a_post_base_name, "RFC 9204, 4.5.5":
        Ready, [Bi(sound_and(&[0x00, 0x01, b'x']))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    an_index_past_the_static_table, "RFC 9204, 3.1":
        Ready, [Bi(sound_and(&[0xff, 99 - 63]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    an_integer_that_overflows, "RFC 9204, 4.1.1":
        Ready, [Bi(sound_and(&cat(&[&[0xff], &[0xff; 10], &[0x01]])))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    a_string_past_the_end, "RFC 9204, 4.1.2":
        Ready, [Bi(sound_and(&[0x23, b'a', b'b', b'c', 0x05, b'x']))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    huffman_padding_of_zeroes, "RFC 9204, 4.1.2":
        Ready, [Bi(sound_and(&[0x21, b'a', 0x81, 0x00]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    huffman_padding_of_a_whole_octet, "RFC 9204, 4.1.2":
        Ready, [Bi(sound_and(&[0x21, b'a', 0x82, 0x07, 0xff]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    huffman_end_of_string, "RFC 9204, 4.1.2":
        Ready, [Bi(sound_and(&[0x21, b'a', 0x84, 0xff, 0xff, 0xff, 0xff]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);
    a_section_without_its_prefix, "RFC 9204, 4.5.1":
        Ready, [Bi(section(&[]))]
        => Connection(code::QPACK_DECOMPRESSION_FAILED);

    the_encoder_says_that_it_uses_no_table, "RFC 9204, 4.3.1":
        Ready, [Uni(typed(QPACK_ENCODER, &[0x20, 0x20]))]
        => Ignored;
    the_encoder_sets_a_capacity_over_the_limit, "RFC 9204, 4.3.1":
        Ready, [Uni(typed(QPACK_ENCODER, &[0x3f, 0xe1, 0x1f]))]
        => Connection(code::QPACK_ENCODER_STREAM_ERROR);
    the_encoder_inserts_into_a_table_without_room, "RFC 9204, 3.2.2":
        Ready, [Uni(typed(QPACK_ENCODER, &[0xc1, 0x01, b'/']))]
        => Connection(code::QPACK_ENCODER_STREAM_ERROR);
    the_encoder_duplicates_what_is_not_there, "RFC 9204, 4.3.4":
        Ready, [Uni(typed(QPACK_ENCODER, &[0x00]))]
        => Connection(code::QPACK_ENCODER_STREAM_ERROR);
    the_decoder_cancels_a_stream, "RFC 9204, 4.4.2":
        Ready, [Uni(typed(QPACK_DECODER, &[0x44, 0x7f, 0x80, 0x01]))]
        => Ignored;
    the_decoder_acknowledges_what_was_not_sent, "RFC 9204, 4.4.1":
        Ready, [Uni(typed(QPACK_DECODER, &[0x80]))]
        => Connection(code::QPACK_DECODER_STREAM_ERROR);
    the_decoder_counts_what_was_not_inserted, "RFC 9204, 4.4.3":
        Ready, [Uni(typed(QPACK_DECODER, &[0x01]))]
        => Connection(code::QPACK_DECODER_STREAM_ERROR);
    the_decoder_counts_nothing, "RFC 9204, 4.4.3":
        Ready, [Uni(typed(QPACK_DECODER, &[0x00]))]
        => Connection(code::QPACK_DECODER_STREAM_ERROR);
}
