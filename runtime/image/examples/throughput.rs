//! Prints how fast images are checksummed, written and verified on this machine, best of five:
//! `cargo run --release -p slackwater-image --example throughput [FOLDER]` (default: /dev/shm).
#![allow(clippy::print_stdout)]
use slackwater_image::{
    checksum::checksum,
    codec::is_zero,
    layout::Codec,
    reader::Reader,
    writer::{Options, Sink, Writer},
};
use std::{fs::File, hint::black_box, path::PathBuf, time::Instant};

const LEN: usize = 512 << 20;
const PAGE: usize = 4096;

/// Takes everything and keeps nothing: what the writer itself costs.
struct Nothing;

impl Sink for Nothing {
    fn write_at(&mut self, _: u64, bytes: &[u8]) -> Result<(), i32> {
        black_box(bytes);
        Ok(())
    }
}

fn best(what: &str, mut work: impl FnMut()) {
    let seconds = (0..5)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    println!("{what:<52} {:6.2} GB/s", LEN as f64 / seconds / 1e9);
}

fn write<S: Sink>(sink: S, codec: Codec, memory: &[u8], drop_zero: bool) -> u64 {
    let mut writer = Writer::new(sink, Options { codec, page_size: PAGE as u32 }).expect("writer");
    for (i, run) in memory.chunks(1 << 20).enumerate() {
        writer.pages((i << 20) as u64, run, drop_zero).expect("pages");
    }
    writer.finish().expect("finish").bytes
}

fn main() {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from).join("throughput.img");
    let mut state = 1u64;
    let random: Vec<u8> = (0..LEN / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    // Numbers as programs hold them: eight bytes, the upper ones mostly zero.
    let numbers: Vec<u8> = random.chunks_exact(8).flat_map(|c| [c[0], c[1], c[2] & 3, 0, 0, 0, 0, 0]).collect();
    let zeros = vec![0u8; LEN];

    best("checksum, 256 KiB at a time", || {
        random.chunks(256 << 10).for_each(|c| {
            black_box(checksum(c));
        });
    });
    best("zero test, zeros", || assert!(zeros.chunks(PAGE).all(is_zero)));
    best("zero test, random", || assert!(!random.chunks(PAGE).any(is_zero)));
    best("copy, 1 MiB at a time", {
        let mut out = vec![0; 1 << 20];
        let random = &random;
        move || random.chunks(1 << 20).for_each(|c| black_box(&mut out).copy_from_slice(c))
    });
    for (name, memory) in [("random", &random), ("numbers", &numbers), ("zeros", &zeros)] {
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            best(&format!("write to nowhere, {codec}, {name}"), || {
                black_box(write(Nothing, codec, memory, true));
            });
        }
    }
    for (name, memory) in [("random", &random), ("numbers", &numbers)] {
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            let mut bytes = 0;
            best(&format!("write to {}, {codec}, {name}", path.display()), || {
                bytes = write(File::create(&path).expect("create"), codec, memory, true);
            });
            let reader = Reader::open_path(&path).expect("open");
            for threads in [1, 2] {
                best(&format!("verify on {threads} threads (size of memory), {codec}, {name}"), || {
                    reader.verify(threads).expect("whole");
                });
            }
            let mut out = Vec::new();
            best(&format!("read all chunks, {codec}, {name}"), || {
                for i in 0..reader.chunks().len() {
                    reader.read_chunk(i, &mut out).expect("chunk");
                }
            });
            println!("    {bytes} bytes for {LEN}");
        }
    }
    std::fs::remove_file(&path).expect("remove");
}
