//! A small saved process, and helpers to write and open it.
#![allow(dead_code)]
use slackwater_image::{
    layout::Codec,
    reader::Reader,
    writer::{Options, Summary, Writer},
};
use std::{fs::File, io::Write};

/// Page size of the tests.
pub const PAGE: usize = 4096;

/// Pseudo-random numbers that are the same each time (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn page(&mut self) -> Vec<u8> {
        (0..PAGE / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// Pages like those of a program: random, text, sparse and zero ones.
pub fn memory(pages: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = Vec::with_capacity(pages * PAGE);
    let mut kind = 0;
    for _ in 0..pages {
        if random.below(6) == 0 {
            kind = random.below(4);
        }
        match kind {
            0 => out.extend(random.page()),
            1 => out.extend((0..PAGE).map(|i| b"all work and no play "[i % 21])),
            2 => {
                let mut page = vec![0; PAGE];
                page[PAGE - 1] = 1;
                out.extend(page);
            }
            _ => out.extend(vec![0; PAGE]),
        }
    }
    out
}

pub fn options(codec: Codec) -> Options {
    Options { codec, page_size: PAGE as u32 }
}

/// Opens bytes as an image.
pub fn open(bytes: &[u8]) -> Reader {
    Reader::open(file(bytes)).expect("a whole image")
}

/// An unnamed file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(bytes).expect("write");
    file
}

/// An image of runs (address, bytes, drop_zero).
pub fn image(codec: Codec, runs: &[(u64, &[u8], bool)], sections: &[(&str, &[u8])]) -> (Vec<u8>, Summary) {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, options(codec)).expect("writer");
    for (vaddr, run, drop) in runs {
        writer.pages(*vaddr, run, *drop).expect("pages");
    }
    for (name, content) in sections {
        writer.section(name, content).expect("section");
    }
    let summary = writer.finish().expect("finish");
    (bytes, summary)
}
