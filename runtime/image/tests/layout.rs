//! The bytes stand where `docs/image-format.md` says, read here by its tables alone; and they stay there.
mod common;
use common::*;
use slackwater_image::layout::{Codec, FORMAT};
use xxhash_rust::xxh3::xxh3_64;

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn sample() -> Vec<u8> {
    let mut random = Random(14);
    let mut memory = random.page();
    memory.extend(random.page());
    memory.extend([0; PAGE]);
    image(Codec::Raw, &[(0x7000, &memory, false)], &[("name", b"content")]).0
}

#[test]
fn as_documented() {
    let image = sample();
    assert_eq!(&image[..8], b"SLKIMG\r\n");
    let version = [8, 10, 12].map(|at| number(&image, at, 2));
    assert_eq!(version, [FORMAT.major, FORMAT.minor, FORMAT.patch].map(u64::from));
    assert_eq!(number(&image, 14, 2), if cfg!(target_arch = "x86_64") { 62 } else { 183 });
    assert_eq!((number(&image, 16, 4), number(&image, 20, 4)), (4096, 0));
    assert!(image[24..40].iter().chain(&image[48..PAGE]).all(|b| *b == 0));
    assert_eq!(number(&image, 40, 8), xxh3_64(&image[..40]));

    let footer = &image[image.len() - 48..];
    assert_eq!(&footer[..8], b"SLKEND\x1a\n");
    let (at, len) = (number(footer, 8, 8) as usize, number(footer, 16, 8) as usize);
    assert_eq!(at + len + 48, image.len());
    assert_eq!(number(footer, 24, 8), xxh3_64(&image[at..at + len]));
    assert_eq!(number(footer, 32, 8), image.len() as u64);
    assert_eq!(number(footer, 40, 8), xxh3_64(&footer[..40]));

    // Body: two raw pages, the section, and an index of a zero and a raw chunk, just before the directory.
    assert_eq!(&image[3 * PAGE..3 * PAGE + 7], b"content");
    let index = &image[at - 80..at];
    let entry = |e: &[u8]| [(0, 8), (8, 8), (24, 4), (28, 4), (32, 1), (33, 7)].map(|(at, len)| number(e, at, len));
    let mut entries = [entry(&index[..40]), entry(&index[40..])];
    entries.sort();
    assert_eq!(entries, [[0x7000, 4096, 2, 8192, 1, 0], [0x9000, 0, 1, 0, 0, 0]]);
    let raw = index.chunks(40).find(|e| e[32] == 1).expect("raw chunk");
    assert_eq!(number(raw, 16, 8), xxh3_64(&image[PAGE..3 * PAGE]));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn as_before() {
    let sum = xxh3_64(&sample());
    assert_eq!(
        sum, 0xd7e0_d528_7f1f_945a,
        "the bytes of an image have changed ({sum:#x}): step layout::FORMAT as docs/image-format.md says, then mend this sum"
    );
}
