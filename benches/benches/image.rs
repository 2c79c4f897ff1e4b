//! The image's inner loops, a chunk (256 KiB) at a time: what a checkpoint's speed is made of.
#![allow(missing_docs, reason = "criterion's macros define undocumented items")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use slackwater_image::{checksum::checksum, codec, layout::Codec};
use std::hint::black_box;

const CHUNK: usize = 256 << 10;

fn random() -> Vec<u8> {
    let mut x = 88_172_645_463_325_252_u64;
    let mut words = std::iter::from_fn(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        Some(x.to_ne_bytes())
    });
    words.by_ref().take(CHUNK / 8).flatten().collect()
}

fn text() -> Vec<u8> {
    (0_u32..)
        .flat_map(|i| format!("line {i}: the tide turns at {}\n", i * 37 % 1440).into_bytes())
        .take(CHUNK)
        .collect()
}

fn image(c: &mut Criterion) {
    let mut group = c.benchmark_group("image");
    group.throughput(Throughput::Bytes(CHUNK as u64)).sample_size(20);
    let (zeros, random, text) = (vec![0; CHUNK], random(), text());
    group.bench_function("zero scan", |b| b.iter(|| codec::is_zero(black_box(&zeros))));
    group.bench_function("checksum", |b| b.iter(|| checksum(black_box(&random))));
    for (name, data) in [("random", &random), ("text", &text)] {
        for (label, kind) in [("lz4", Codec::Lz4), ("zstd", Codec::Zstd)] {
            if let Ok(mut compressor) = codec::Compressor::new(kind) {
                group.bench_with_input(BenchmarkId::new(label, name), data, |b, data| {
                    b.iter(|| compressor.compress(black_box(data)).map(|(_, stored)| stored.len()));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, image);
criterion_main!(benches);
