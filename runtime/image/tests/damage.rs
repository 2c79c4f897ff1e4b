//! Damaged and hostile images give an error that says what, where and what to do: never a panic, never a huge allocation.
mod common;
#[path = "common/reseal.rs"]
mod reseal;
use common::*;
use proptest::prelude::*;
use slackwater_image::{
    checksum::checksum,
    layout::{CHUNK_LEN, Chunk, Codec, Directory, FOOTER_LEN, Footer, IndexBlock},
    meta,
    reader::Reader,
};
use std::{fs::File, os::unix::fs::FileExt};

/// An image as of a small program: compressed, raw and zero chunks, filling, several sections.
fn realistic(codec: Codec) -> Vec<u8> {
    let threads: Vec<meta::Thread> = (0..4).map(|tid| meta::Thread { tid, ..Default::default() }).collect();
    let threads = postcard::to_allocvec(&threads).expect("postcard");
    let (heap, data, stack) = (memory(300, 5), memory(60, 6), memory(20, 7));
    let runs = [(0x5555_0000_0000, &*heap, true), (0x5655_0000_0000, &*data, false), (0x7ffd_0000_0000, &*stack, true)];
    let (bytes, summary) = image(codec, &runs, &[(meta::SECTION_THREADS, &threads), ("plugin:socket", &[7; 999])]);
    assert!(summary.raw_pages > 20 && summary.compressed_pages > 20 && summary.zero_pages > 5, "{summary:?}");
    bytes
}

/// Opens, verifies, and reads everything; an error's text must be whole.
fn use_all(file: File) -> Result<(), String> {
    let look = || {
        let reader = Reader::open(file)?;
        reader.verify(1)?;
        let mut out = Vec::new();
        for i in 0..reader.chunks().len() {
            reader.read_chunk(i, &mut out)?;
        }
        Ok(())
    };
    look().map_err(|e: slackwater_image::error::ImageError| {
        let text = e.to_string();
        assert!(std::error::Error::source(&e).is_none(), "who prints the chain would say it twice: {text}");
        assert!(text.starts_with("image (open file): ") && text.contains("; "), "{text}");
        text
    })
}

#[test]
fn ten_thousand_flips_and_truncations() {
    flips_and_truncations(Codec::Lz4, 9_000);
    flips_and_truncations(Codec::Zstd, 1_000);
}

fn flips_and_truncations(codec: Codec, times: u64) {
    let whole = realistic(codec);
    let file = file(&whole);
    use_all(file.try_clone().expect("descriptor")).expect("whole");
    let mut random = Random(0x51ac);
    for i in 0..times {
        let length = whole.len() as u64;
        if i % 10 == 9 {
            let cut = random.below(length);
            file.set_len(cut).expect("truncate");
            let found = use_all(file.try_clone().expect("descriptor"));
            assert!(found.is_err(), "cut to {cut} of {length} bytes and nobody saw it");
            file.set_len(length).expect("extend");
            file.write_all_at(&whole[cut as usize..], cut).expect("mend");
        } else {
            // Every other one in the tables at the end, where there is most to go wrong.
            let at = if i % 2 == 0 { random.below(length) } else { length - 1 - random.below(4096) };
            let bit = random.below(8);
            file.write_all_at(&[whole[at as usize] ^ (1 << bit)], at).expect("flip");
            let found = use_all(file.try_clone().expect("descriptor"));
            assert!(found.is_err(), "bit {bit} of byte {at} (of {length}) flipped and nobody saw it");
            file.write_all_at(&whole[at as usize..=at as usize], at).expect("mend");
        }
    }
    use_all(file).expect("mended");
}

#[test]
fn every_bit_outside_of_the_chunks_is_checked() {
    let page = Random(8).page();
    let (whole, _) = image(Codec::Raw, &[(0x1000, &page, true), (0x9000, &[0; PAGE], false)], &[("a", b"content")]);
    let file = file(&whole);
    for at in (0..whole.len()).filter(|at| !(PAGE + 16..2 * PAGE - 16).contains(at)) {
        for bit in 0..8 {
            file.write_all_at(&[whole[at] ^ (1 << bit)], at as u64).expect("flip");
            let found = use_all(file.try_clone().expect("descriptor"));
            assert!(found.is_err(), "bit {bit} of byte {at} flipped and nobody saw it");
        }
        file.write_all_at(&whole[at..=at], at as u64).expect("mend");
    }
}

#[test]
fn the_error_names_the_first_bad_chunk() {
    let mut random = Random(9);
    let memory: Vec<u8> = (0..4096).flat_map(|_| random.page()).collect();
    let (mut bytes, _) = image(Codec::Raw, &[(0x4000_0000, &memory, true)], &[]);
    // Two bad chunks of four: the error names the first of them.
    bytes[PAGE + (5 << 20)] ^= 1;
    bytes[PAGE + (13 << 20)] ^= 1;
    for threads in [0, 1, 2, 8] {
        let error = open(&bytes).verify(threads).expect_err("damaged").to_string();
        assert!(
            error.contains("chunk 1 (memory at 0x40400000, 1024 pages, 4194304 bytes at file offset 4198400)"),
            "{error}"
        );
        assert!(error.contains("--generation N"), "{error}");
    }
    let reader = open(&bytes);
    let mut out = Vec::new();
    reader.read_chunk(0, &mut out).expect("good");
    assert!(reader.read_chunk(1, &mut out).is_err() && reader.read_chunk(4, &mut out).is_err());
}

/// A change of a directory.
type Change = Box<dyn FnOnce(&mut Directory)>;

/// An image of these parts with right checksums everywhere: what only a hostile hand makes.
fn forged(body: &[u8], chunks: &[Chunk], directory: impl FnOnce(&mut Directory)) -> Vec<u8> {
    let (header, _) = image(Codec::Raw, &[], &[]);
    let mut out = header[..PAGE].to_vec();
    out.extend_from_slice(body);
    let entries: Vec<u8> = chunks.iter().flat_map(Chunk::encode).collect();
    let block = IndexBlock { offset: out.len() as u64, count: chunks.len() as u32, checksum: checksum(&entries) };
    let mut dir = Directory { sections: Vec::new(), index: vec![block] };
    directory(&mut dir);
    out.extend(entries);
    let dir = postcard::to_allocvec(&dir).expect("postcard");
    let footer = Footer {
        directory: out.len() as u64,
        directory_len: dir.len() as u64,
        directory_sum: checksum(&dir),
        file_len: (out.len() + dir.len() + FOOTER_LEN) as u64,
    };
    out.extend(dir);
    out.extend(footer.encode());
    out
}

#[test]
fn hostile_images_are_refused() {
    let body = Random(10).page();
    let good = Chunk {
        vaddr: 0x1000,
        pages: 1,
        codec: Codec::Raw,
        offset: PAGE as u64,
        stored: PAGE as u32,
        checksum: checksum(&body),
    };
    use_all(file(&forged(&body, &[good], |_| {}))).expect("the forger's tool works");
    let lz4 = Chunk { codec: Codec::Lz4, pages: 64, ..good };
    let zero = Chunk { codec: Codec::Zero, offset: 0, stored: 0, checksum: 0, ..good };
    for (chunks, why) in [
        (vec![Chunk { vaddr: 0x1001, ..good }], "not that of a page"),
        (vec![Chunk { vaddr: u64::MAX - 4095, ..good }], "not that of a page"),
        (vec![Chunk { pages: 0, stored: 0, ..good }], "number of pages"),
        (vec![Chunk { pages: u32::MAX, ..zero }], "number of pages"),
        (vec![Chunk { pages: 1025, ..zero }], "number of pages"),
        (vec![Chunk { stored: 100, ..zero }], "zero chunk has content"),
        (vec![Chunk { pages: 2, ..good }], "not as long as its pages"),
        (vec![Chunk { offset: 4097, ..good }], "does not begin at a page"),
        (vec![Chunk { offset: u64::MAX - 4095, ..good }], "outside of the file's body"),
        (vec![Chunk { offset: 0, ..good }], "outside of the file's body"),
        (vec![Chunk { offset: 3 * PAGE as u64, ..good }], "outside of the file's body"),
        (vec![good, good], "over another part"),
        (vec![good, Chunk { pages: 2, ..zero }], "the same memory"),
        (vec![zero], "bytes before it belong to nothing"),
        (vec![Chunk { pages: 65, ..lz4 }], "too many pages"),
        (vec![Chunk { pages: 1, ..lz4 }], "out of bounds"),
        (vec![lz4], "no LZ4 block of that length"),
        (vec![Chunk { codec: Codec::Zstd, ..lz4 }], "no zstd frame of that length"),
        (vec![], "out of bounds"),
    ] {
        let error = use_all(file(&forged(&body, &chunks, |_| {}))).expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
    }
    let sections = |n: usize| {
        move |d: &mut Directory| {
            d.sections = (0..n)
                .map(|i| slackwater_image::layout::SectionEntry {
                    name: format!("{i}"),
                    offset: 2 * PAGE as u64,
                    len: 0,
                    checksum: checksum(b""),
                })
                .collect();
        }
    };
    use_all(file(&forged(&body, &[good], sections(4096)))).expect("as many as are allowed");
    let cases: [(&str, Change); 7] = [
        ("4096 are allowed", Box::new(sections(4097))),
        ("two sections have one name", Box::new(move |d| (sections(2)(d), d.sections[1].name = "0".into()).1)),
        ("a section is out of bounds", Box::new(move |d| (sections(1)(d), d.sections[0].len = u64::MAX).1)),
        ("a section is out of bounds", Box::new(move |d| (sections(1)(d), d.sections[0].name = "x".repeat(256)).1)),
        ("outside of the file's body", Box::new(move |d| (sections(1)(d), d.sections[0].offset = u64::MAX).1)),
        ("a block of the index is out of bounds", Box::new(|d| d.index[0].count = u32::MAX)),
        ("over another part", Box::new(|d| d.index = vec![d.index[0]; 2])),
    ];
    for (why, change) in cases {
        let error = use_all(file(&forged(&body, &[good], change))).expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn a_sparse_giant_is_refused_at_once() {
    // 1 TiB of hole, and a footer that says all of it is directory, or body.
    let (whole, _) = image(Codec::Raw, &[], &[]);
    for (directory, why) in [(PAGE as u64, "out of bounds"), ((1 << 40) - FOOTER_LEN as u64 - 4, "does not")] {
        let file = tempfile::tempfile().expect("file");
        file.set_len(1 << 40).expect("hole");
        file.write_all_at(&whole[..PAGE], 0).expect("write");
        let at = (1 << 40) - FOOTER_LEN as u64;
        let footer = Footer { directory, directory_len: at - directory, directory_sum: 1, file_len: 1 << 40 };
        file.write_all_at(&footer.encode(), at).expect("write");
        let error = use_all(file).expect_err("refused");
        assert!(error.contains(why), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// As a fuzzer would: changes behind the checksums, which are made right again, so that all decoders see them.
    #[test]
    fn nothing_behind_the_checksums_panics(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        whole in Just(forged(&memory(3, 11), &[], |_| {})),
        entries in proptest::collection::vec(any::<[u8; CHUNK_LEN]>(), 0..4),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        // Chunks with near-sensible numbers.
        let chunks: Vec<Chunk> = entries.iter().enumerate().map(|(i, e)| Chunk {
            vaddr: u64::from(e[0] & 7) << 12,
            pages: u32::from(e[1] & 3),
            codec: [Codec::Zero, Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(e[2] & 3)],
            offset: (PAGE * (1 + i % 3)) as u64 + u64::from(e[3] & 1),
            stored: if e[4] & 1 == 0 { u32::from(e[1] & 3) * PAGE as u32 } else { u32::from(e[5]) },
            checksum: checksum(&e[..usize::from(e[6] & 1)]),
        }).collect();
        let mut body = memory(3, 11);
        for (at, byte) in &edits {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        let chunks: Vec<Chunk> = chunks.into_iter().map(|c| {
            let from = (c.offset as usize).saturating_sub(PAGE).min(body.len());
            let to = (from + c.stored as usize).min(body.len());
            Chunk { checksum: if c.codec == Codec::Zero { 0 } else { checksum(&body[from..to]) }, ..c }
        }).collect();
        let _ = use_all(file(&forged(&body, &chunks, |_| {})));

        // A directory of arbitrary bytes.
        let mut bytes = whole[..PAGE].to_vec();
        let directory = bytes.len() as u64;
        bytes.extend(&tail);
        let footer = Footer {
            directory,
            directory_len: tail.len() as u64,
            directory_sum: checksum(&tail),
            file_len: (bytes.len() + FOOTER_LEN) as u64,
        };
        bytes.extend(footer.encode());
        let _ = use_all(file(&bytes));

        // And a whole image with some bytes changed anywhere, or in its tables.
        for tables in [false, true] {
            let mut bytes = small();
            let from = if tables { bytes.len() * 3 / 4 } else { 0 };
            for (at, byte) in &edits {
                let at = from + at.index(bytes.len() - from);
                bytes[at] = *byte;
            }
            reseal::reseal(&mut bytes);
            let _ = use_all(file(&bytes));
        }
    }
}

#[test]
fn a_resealed_image_is_whole() {
    let mut bytes = small();
    reseal::reseal(&mut bytes);
    assert_eq!(bytes, small());
    // A changed page behind right checksums is nobody's to notice.
    bytes[PAGE + 7] ^= 1;
    assert!(use_all(file(&bytes)).is_err());
    reseal::reseal(&mut bytes);
    use_all(file(&bytes)).expect("whole again");
}

fn small() -> Vec<u8> {
    let pages = memory(8, 12);
    image(Codec::Lz4, &[(0x10_000, &pages, false)], &[("a", b"one"), ("b", b"two")]).0
}
