//! The report of `slackwater inspect`.
mod common;
use common::*;
use slackwater_image::{
    inspect::Report,
    layout::Codec,
    meta::{self, Backing, FileId, Process, Range, Region, Thread, flag},
    writer::Writer,
};

fn whole() -> Vec<u8> {
    let region = |start, pages: u64, backing, flags| Region {
        range: Range { start, end: start + pages * PAGE as u64 },
        prot: 3,
        flags,
        backing,
    };
    let file = FileId { path: "/lib/x\x1b[2Jy.so".into(), deleted: true, offset: 4096, ..Default::default() };
    let regions = vec![
        region(0x10_000, 16, Backing::Anon, flag::NORESERVE | flag::GROWSDOWN),
        // Its neighbour: one chunk spans both.
        region(0x20_000, 4, Backing::FilePrivate(file), 0),
        region(0x100_000, 1 << 28, Backing::Shared(FileId::default()), 0),
    ];
    let mut name = [0; 16];
    name[..6].copy_from_slice(b"worker");
    let threads = vec![Thread { tid: 41, name, sp: 0x7ffd_1000, pending: vec![vec![0; 128]], ..Default::default() }];
    let process = Process { pid: 41, exe: "/bin/worker".into(), uids: [1000; 3], ..Default::default() };
    let mut random = Random(13);
    let pages: Vec<u8> = (0..18).flat_map(|_| random.page()).collect();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(Codec::Lz4)).expect("writer");
    writer.pages(0x10_000, &pages, true).expect("pages");
    writer.pages(0x22_000, &[0; PAGE], false).expect("pages");
    writer.pages(0x100_000, &[7; 2 * PAGE], true).expect("pages");
    writer.section_of(meta::SECTION_PROCESS, &process).expect("section");
    writer.section_of(meta::SECTION_THREADS, &threads).expect("section");
    writer.section_of(meta::SECTION_REGIONS, &regions).expect("section");
    writer.section(meta::SECTION_OBJECTS, &[0; 5000]).expect("section");
    writer.finish().expect("finish");
    bytes
}

#[test]
fn a_whole_image_is_reported() {
    let report = Report::new(&open(&whole()), Some(2));
    assert_eq!((report.verified, report.problems.len()), (Some(true), 0), "{:?}", report.problems);
    assert_eq!(report.memory, 21 * PAGE as u64);
    let page = PAGE as u64;
    let parts: Vec<_> = report.regions.iter().map(|r| (r.size / page, r.saved / page, r.zero / page)).collect();
    assert_eq!(parts, [(16, 16, 0), (4, 2, 1), (1 << 28, 2, 0)]);
    let codecs: Vec<_> = report.codecs.iter().map(|c| (c.codec.as_str(), c.chunks, c.memory / page)).collect();
    assert_eq!(codecs, [("zero", 1, 1), ("raw", 1, 18), ("lz4", 1, 2)]);

    let json: serde_json::Value = serde_json::to_value(&report).expect("json");
    assert_eq!(json["regions"][0]["start"], "0x10000");
    assert_eq!(json["regions"][0]["flags"], serde_json::json!(["growsdown", "noreserve"]));
    assert_eq!(json["regions"][1]["prot"], "rw-p");
    assert_eq!(json["regions"][2]["prot"], "rw-s");
    assert_eq!(json["process"]["uid"], 1000);
    assert_eq!(json["threads"][0]["name"], "worker");
    assert_eq!(
        json["sections"][3],
        serde_json::json!({"name": "objects", "offset": report.sections[3].offset, "bytes": 5000})
    );

    let table = report.table(2);
    for line in [
        "all checksums fit",
        "objects",
        "4.9 KiB",
        "1.0 TiB",
        "/lib/x?[2Jy.so (deleted)",
        "... and 1 more",
        "41  worker",
    ] {
        let shown = if line == "1.0 TiB" { report.table(9) } else { table.clone() };
        assert!(shown.contains(line), "{line}:\n{shown}");
    }
    assert!(!table.contains('\x1b'));
}

#[test]
fn a_damaged_image_is_reported_as_far_as_it_goes() {
    let mut bytes = whole();
    bytes[PAGE + 5000] ^= 4;
    assert_eq!(Report::new(&open(&bytes), None).verified, None);
    let report = Report::new(&open(&bytes), Some(1));
    assert_eq!(report.verified, Some(false));
    assert!(report.problems[0].contains("chunk 0 (memory at 0x10000"), "{:?}", report.problems);
    assert_eq!(report.regions.len(), 3);
    assert!(report.table(9).contains("DAMAGED"));

    let (bytes, _) = image(Codec::Raw, &[], &[(meta::SECTION_PROCESS, b"\xff")]);
    let report = Report::new(&open(&bytes), Some(0));
    assert_eq!((report.verified, report.problems.len()), (Some(true), 3), "{:?}", report.problems);
    assert!(report.process.is_none());
}
