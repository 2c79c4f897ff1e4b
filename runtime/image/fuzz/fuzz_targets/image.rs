//! Any bytes as an image: as they are, and with the checksums made right. Nothing may panic, and no memory may be taken by
//! a number in the file alone (run with `-rss_limit_mb=512`).
#![no_main]
use libfuzzer_sys::{Corpus, fuzz_target};
use rustix::fs::{MemfdFlags, memfd_create};
use slackwater_image::{inspect::Report, layout::Codec, reader::Reader, writer::Options, writer::Writer};
use std::{fs::File, io::Write, sync::LazyLock};

#[path = "../../tests/common/reseal.rs"]
mod reseal;

/// A small whole image: what the input is laid over, for libFuzzer finds a checksum or a page of zeros only by chance.
static WHOLE: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [Codec::Lz4, Codec::Zstd].map(whole));

fn whole(codec: Codec) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, Options { codec, page_size: 4096 }).expect("writer");
    let mut page = vec![0u8; 4096];
    page.iter_mut().enumerate().for_each(|(i, b)| *b = (i * i >> 3) as u8);
    let text: Vec<u8> = b"slack water ".iter().copied().cycle().take(8192).collect();
    writer.pages(0x1000, &page, true).expect("pages");
    writer.pages(0x4000, &text, true).expect("pages");
    writer.pages(0x9000, &[0; 8192], false).expect("pages");
    writer.section("process", &[0; 300]).expect("section");
    writer.section("threads", b"\x01\x02\x03").expect("section");
    writer.section("regions", b"\x00").expect("section");
    writer.finish().expect("finish");
    bytes
}

fn look(bytes: &[u8]) {
    let mut file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("memfd"));
    file.write_all(bytes).expect("write");
    let Ok(reader) = Reader::open(file) else { return };
    let report = Report::new(&reader, Some(1));
    let _ = report.table(10);
    let mut out = Vec::new();
    for i in 0..reader.chunks().len() {
        let _ = reader.read_chunk(i, &mut out);
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    look(data);
    // (offset from the end, byte) pairs over the whole image: the tables stand at its end.
    let mut bytes = WHOLE[data.len() % 2].clone();
    for edit in data.chunks_exact(3) {
        let back = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
        let at = bytes.len() - 1 - back;
        bytes[at] = edit[2];
    }
    look(&bytes);
    reseal::reseal(&mut bytes);
    look(&bytes);
    Corpus::Keep
});
