//! What is written is what is read.
mod common;
use common::*;
use proptest::prelude::*;
use slackwater_image::{
    layout::{Codec, MAX_CHUNK},
    meta,
    reader::Reader,
    writer::{Sink, WriteError, Writer},
};
use std::collections::BTreeMap;

/// All pages of an image by address.
fn pages(reader: &Reader) -> BTreeMap<u64, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut out = Vec::new();
    for (i, chunk) in reader.chunks().iter().enumerate() {
        reader.read_chunk(i, &mut out).expect("chunk");
        assert_eq!(out.len(), chunk.pages as usize * PAGE);
        for (n, page) in out.chunks(PAGE).enumerate() {
            let old = all.insert(chunk.vaddr + (n * PAGE) as u64, page.to_vec());
            assert!(old.is_none(), "a page twice");
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn all_pages_come_back(
        seed in any::<u64>(),
        // Lengths of the runs, gaps between them, whether zero pages are dropped.
        runs in proptest::collection::vec((0usize..400, 0u64..3, any::<bool>()), 0..12),
        codec in prop::sample::select(vec![Codec::Raw, Codec::Lz4, Codec::Zstd]),
    ) {
        let content: Vec<Vec<u8>> = runs.iter().enumerate().map(|(i, r)| memory(r.0, seed ^ i as u64)).collect();
        let mut at = 0x7000_0000_0000;
        let mut input = Vec::new();
        let mut expected = BTreeMap::new();
        let mut dropped = 0;
        for (bytes, (_, gap, drop)) in content.iter().zip(&runs) {
            at += gap * PAGE as u64;
            input.push((at, bytes.as_slice(), *drop));
            for page in bytes.chunks(PAGE) {
                if *drop && page.iter().all(|b| *b == 0) {
                    dropped += 1;
                } else {
                    expected.insert(at, page.to_vec());
                }
                at += PAGE as u64;
            }
        }
        let (bytes, summary) = image(codec, &input, &[("a", b"1"), ("empty", b"")]);
        let reader = open(&bytes);
        prop_assert_eq!(pages(&reader), expected.clone());
        prop_assert_eq!(reader.section_bytes("a").expect("section"), b"1");
        prop_assert_eq!(reader.section_bytes("empty").expect("section"), b"");
        prop_assert_eq!(summary.bytes, bytes.len() as u64);
        prop_assert_eq!(summary.dropped_pages, dropped);
        prop_assert_eq!(summary.chunks, reader.chunks().len() as u64);
        let kept = summary.raw_pages + summary.compressed_pages + summary.zero_pages;
        prop_assert_eq!(kept, expected.len() as u64);
        prop_assert_eq!(reader.verify(2).expect("whole").bytes, summary.bytes);
    }
}

#[test]
fn runs_that_follow_one_another_become_one_chunk() {
    let mut random = Random(1);
    let bytes: Vec<u8> = (0..2500).flat_map(|_| random.page()).collect();
    let calls: Vec<(u64, &[u8], bool)> =
        bytes.chunks(256 * PAGE).enumerate().map(|(i, c)| ((i * 256 * PAGE) as u64, c, true)).collect();
    let (image, _) = image(Codec::Raw, &calls, &[]);
    let reader = open(&image);
    let chunks = reader.chunks();
    assert_eq!(
        chunks.iter().map(|c| c.stored as usize).collect::<Vec<_>>(),
        [MAX_CHUNK, MAX_CHUNK, 2500 * PAGE - 2 * MAX_CHUNK]
    );
    assert!(chunks.windows(2).all(|c| c[0].joins(&c[1], PAGE as u32)), "one read takes all: {chunks:?}");
    assert!(chunks.iter().all(|c| c.offset % PAGE as u64 == 0));
}

#[test]
fn what_lies_between_parts_chunks() {
    let page = Random(2).page();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    writer.pages(0x1000, &page, true).expect("pages");
    writer.section("between", b"x").expect("section");
    writer.pages(0x2000, &page, true).expect("pages");
    // Not adjacent in memory, though in the file.
    writer.pages(0x4000, &page, true).expect("pages");
    writer.finish().expect("finish");
    let reader = open(&bytes);
    let chunks = reader.chunks();
    assert_eq!(chunks.len(), 3);
    assert!(!chunks[0].joins(&chunks[1], PAGE as u32) && !chunks[1].joins(&chunks[2], PAGE as u32));
    assert_eq!(chunks[2].offset, chunks[1].offset + PAGE as u64);
}

#[test]
fn zeros_cost_nothing() {
    let zeros = vec![0; 64 << 20];
    let (dropped, summary) = image(Codec::Raw, &[(0x1000_0000, &zeros, true)], &[]);
    assert_eq!((summary.chunks, summary.dropped_pages), (0, 16_384));
    assert!(dropped.len() < 8192, "{}", dropped.len());
    let (kept, summary) = image(Codec::Raw, &[(0x1000_0000, &zeros, false)], &[]);
    assert_eq!((summary.chunks, summary.zero_pages), (16, 16_384));
    assert!(kept.len() < 8192, "{}", kept.len());
    assert!(pages(&open(&kept)).values().all(|p| p.iter().all(|b| *b == 0)));

    // Known to the caller without reading: 1 GiB.
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    writer.zero_pages(1 << 40, 1 << 18).expect("zero pages");
    assert_eq!(writer.finish().expect("finish").chunks, 256);
    open(&bytes).verify(0).expect("whole");
}

#[test]
fn many_chunks_take_bounded_memory_of_the_writer_and_come_back() {
    // 70,000 chunks: five blocks of the index, four of them in the middle of the file.
    let page = Random(3).page();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    for i in 0..70_000u64 {
        // From high to low: the reader sorts.
        writer.pages((70_000 - i) * 2 * PAGE as u64, &page, true).expect("pages");
    }
    let summary = writer.finish().expect("finish");
    assert_eq!(summary.chunks, 70_000);
    let reader = open(&bytes);
    assert!(reader.chunks().is_sorted_by_key(|c| c.vaddr));
    assert_eq!(reader.verify(2).expect("whole").chunks, 70_000);
}

#[test]
fn meta_sections_come_back() {
    let regions: Vec<meta::Region> = (0..65_000)
        .map(|i| meta::Region {
            range: meta::Range { start: i * 0x2000, end: i * 0x2000 + 0x1000 },
            prot: 3,
            flags: 0,
            backing: meta::Backing::Anon,
        })
        .collect();
    let process = meta::Process { pid: 7, exe: "/bin/true".into(), ..Default::default() };
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    writer.section_of(meta::SECTION_PROCESS, &process).expect("section");
    writer.section_of(meta::SECTION_REGIONS, &regions).expect("section");
    writer.finish().expect("finish");
    let reader = open(&bytes);
    assert_eq!(reader.section::<meta::Process>(meta::SECTION_PROCESS).expect("process"), process);
    assert_eq!(reader.section::<Vec<meta::Region>>(meta::SECTION_REGIONS).expect("regions"), regions);
    let error = reader.section::<Vec<meta::Thread>>(meta::SECTION_PROCESS).expect_err("other type").to_string();
    assert!(error.contains("section \"process\" does not decode"), "{error}");
    let error = reader.section::<u8>("nothing").expect_err("no such section").to_string();
    assert!(error.contains("no section \"nothing\""), "{error}");
}

/// Takes so many bytes, then the disk is full.
struct Full(u64);

impl Sink for Full {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        if offset + bytes.len() as u64 > self.0 { Err(28) } else { Ok(()) }
    }
}

#[test]
fn a_full_disk_is_an_error_and_stays_one() {
    let content = memory(1000, 4);
    for room in [0, 100, 5000, 1 << 20, 2 << 20] {
        let mut writer = Writer::new(Full(room), options(Codec::Lz4)).expect("the header is buffered");
        let mut first = None;
        for i in 0..8u64 {
            if let Err(e) = writer.pages(i << 32, &content, true) {
                assert_eq!(*first.get_or_insert(e), e);
            }
        }
        let last = writer.finish().expect_err("no room");
        assert!(matches!(last, WriteError::Sink { errno: 28, .. }), "{last}");
        assert!(first.is_none_or(|f| f == last));
        assert!(last.to_string().contains("no space is left"), "{last}");
    }
}

#[test]
fn misuse_is_an_error() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    assert!(matches!(writer.pages(0x1001, &[0; PAGE], true), Err(WriteError::Pages { vaddr: 0x1001, .. })));
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    assert!(matches!(writer.pages(0x1000, &[0; 100], true), Err(WriteError::Pages { len: 100, .. })));
    let mut writer = Writer::new(&mut bytes, options(Codec::Raw)).expect("writer");
    writer.section("a", b"").expect("section");
    assert!(matches!(writer.section("a", b""), Err(WriteError::Section(_))));
    assert!(Writer::new(&mut bytes, options(Codec::Zero)).is_err());
}
