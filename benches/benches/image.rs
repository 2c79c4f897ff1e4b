//! The image's inner loops, a chunk (256 KiB) at a time: what a checkpoint's speed is made of. Copying the same chunk is
//! what each is measured against; the ratios are printed at the end.
#![allow(missing_docs, reason = "criterion's macros define undocumented items")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use slackwater_image::{checksum::checksum, codec, layout::Codec};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

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
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let (zeros, random, text) = (vec![0; CHUNK], random(), text());
    let mut copy = vec![0; CHUNK];
    group.bench_function("copy", |b| b.iter(|| copy.copy_from_slice(black_box(&random))));
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

/// Nanoseconds a chunk, the least of many.
fn least(mut f: impl FnMut()) -> f64 {
    let once = |f: &mut dyn FnMut()| {
        let before = Instant::now();
        f();
        before.elapsed().as_secs_f64() * 1e9
    };
    (0..200).map(|_| once(&mut f)).fold(f64::INFINITY, f64::min)
}

/// Each loop beside a copy of its chunk.
#[allow(clippy::print_stdout, reason = "a program that prints a table")]
fn ratios(_: &mut Criterion) {
    let (zeros, random, text, mut to) = (vec![0; CHUNK], random(), text(), vec![0; CHUNK]);
    let copy = least(|| to.copy_from_slice(black_box(&random)));
    let print = |what: &str, ns: f64| {
        println!("{what:<22}{:>10.2} GB/s{:>9.2} times a copy", CHUNK as f64 / ns, ns / copy);
    };
    print("copy", copy);
    print("zero scan", least(|| _ = black_box(codec::is_zero(black_box(&zeros)))));
    print("checksum", least(|| _ = black_box(checksum(black_box(&random)))));
    for (name, data) in [("random", &random), ("text", &text)] {
        for (label, kind) in [("lz4", Codec::Lz4), ("zstd", Codec::Zstd)] {
            if let Ok(mut compressor) = codec::Compressor::new(kind) {
                let compress = || _ = black_box(compressor.compress(black_box(data)).map(|(_, stored)| stored.len()));
                print(&format!("{label} {name}"), least(compress));
            }
        }
    }
}

criterion_group!(benches, image, ratios);
criterion_main!(benches);
