use super::*;

fn header(bytes: &[u8]) -> Result<BlockHeader> {
    BlockHeader::decode(bytes.first_chunk().unwrap())
}

#[test]
fn headers_round_trip() {
    let mut bytes = Vec::new();
    BlockHeader::encode_piece(&mut bytes, 3, "pages-1.img", 8 << 20, 4 << 20);
    assert_eq!(
        header(&bytes).unwrap(),
        BlockHeader::Piece {
            number: 3,
            name_bytes: 11,
            offset: 8 << 20,
            length_bytes: 4 << 20
        }
    );
    assert_eq!(
        decode_name(&bytes[PIECE_HEADER_BYTES..]).unwrap(),
        "pages-1.img"
    );
    bytes.clear();
    BlockHeader::encode_end(&mut bytes, 9);
    assert_eq!(bytes.len(), PIECE_HEADER_BYTES);
    assert_eq!(header(&bytes).unwrap(), BlockHeader::End { number: 9 });
}

#[test]
fn impossible_pieces_are_refused() {
    for (name, offset, length) in [
        ("", 0, 1),
        ("a", 1, 1),
        ("a", 0, PIECE_BYTES as u32 + 1),
        ("a", u64::MAX - PIECE_BYTES + 1, 1),
    ] {
        let mut bytes = Vec::new();
        BlockHeader::encode_piece(&mut bytes, 0, name, offset, length);
        assert!(header(&bytes).is_err(), "{name:?} {offset} {length}");
    }
    for tag in [0, 3, 255] {
        let mut bytes = [0; PIECE_HEADER_BYTES];
        bytes[0] = tag;
        assert!(header(&bytes).is_err());
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [
        "",
        ".",
        "..",
        "../a",
        "/a",
        "a/b",
        "a\0b",
        ".hidden",
        "dump.log",
        "\u{fffd}/",
    ] {
        assert!(decode_name(name.as_bytes()).is_err(), "{name:?}");
    }
    assert!(decode_name(&[0xff]).is_err());
}

#[test]
fn chunks_round_trip_and_impossible_ones_are_refused() {
    let chunk = |encoding, raw_bytes, wire_bytes| {
        let mut bytes = Vec::new();
        let chunk = Chunk {
            encoding,
            raw_bytes,
            wire_bytes,
        };
        chunk.encode(&mut bytes);
        Chunk::decode(bytes.first_chunk().unwrap(), 1000).map(|decoded| assert_eq!(decoded, chunk))
    };
    chunk(Encoding::Plain, 1000, 1000).unwrap();
    chunk(Encoding::Zeros, 1000, 0).unwrap();
    chunk(Encoding::Zstd, 1000, 999).unwrap();
    chunk(Encoding::Gzip, 2, 1).unwrap();
    for (encoding, raw_bytes, wire_bytes) in [
        (Encoding::Plain, 0, 0),
        (Encoding::Plain, 1001, 1001),
        (Encoding::Plain, 10, 9),
        (Encoding::Zeros, 10, 1),
        (Encoding::Zstd, 10, 0),
        (Encoding::Zstd, 10, 10),
        (Encoding::Gzip, 10, u32::MAX as usize),
    ] {
        assert!(
            chunk(encoding, raw_bytes, wire_bytes).is_err(),
            "{encoding:?} {raw_bytes} {wire_bytes}"
        );
    }
    let mut unknown = [0; CHUNK_HEADER_BYTES];
    unknown[0] = 4;
    unknown[4] = 1;
    unknown[8] = 1;
    assert!(Chunk::decode(&unknown, 1000).is_err());
}

/// Any bytes are decoded or refused, and every decoded number stays within its bounds.
#[test]
fn any_bytes_get_an_answer() {
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).unwrap();
    let mut state = xxhash_rust::xxh3::xxh3_64(&seed);
    for _ in 0..200_000 {
        let mut bytes = [0_u8; PIECE_HEADER_BYTES];
        for byte in &mut bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Half of them are small, so that the deeper checks are reached.
            *byte = (state >> 56) as u8 & if state >> 32 & 1 == 0 { 3 } else { 0xff };
        }
        if let Ok(BlockHeader::Piece {
            offset,
            length_bytes,
            ..
        }) = BlockHeader::decode(&bytes)
        {
            assert!(offset + u64::from(length_bytes) <= i64::MAX as u64);
        }
        let left_bytes = bytes[0] as usize * 1000;
        if let Ok(chunk) = Chunk::decode(bytes.first_chunk().unwrap(), left_bytes) {
            assert!(chunk.raw_bytes <= left_bytes && chunk.wire_bytes <= CHUNK_BYTES);
        }
        let _ = decode_name(&bytes);
    }
}
