//! Compressing calls no malloc: in the agent, a stopped thread may hold its lock.
//!
//! This program defines malloc and its kin itself, so that calls from C (zstd) and from Rust are counted alike.
use slackwater_image::{codec::Compressor, layout::Codec, writer::Options, writer::Writer};
use std::{cell::Cell, ffi::c_void};

thread_local! {
    /// Calls of this thread. Const and without a destructor: reading it allocates nothing.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    count();
    // SAFETY: glibc's own malloc under its other name.
    unsafe { __libc_malloc(size) }
}

#[unsafe(no_mangle)]
extern "C" fn calloc(n: usize, size: usize) -> *mut c_void {
    count();
    // SAFETY: as above.
    unsafe { __libc_calloc(n, size) }
}

#[unsafe(no_mangle)]
extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    count();
    // SAFETY: as above; `old` came from there.
    unsafe { __libc_realloc(old, size) }
}

#[unsafe(no_mangle)]
extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> i32 {
    count();
    // SAFETY: as above; the caller gives a place for the pointer.
    unsafe {
        *out = __libc_memalign(align, size);
        if (*out).is_null() { 12 } else { 0 }
    }
}

fn calls(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

#[test]
fn compressing_does_not_allocate() {
    assert!(calls(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(100)))) > 0, "the counter counts");
    let block: Vec<u8> = (0..256u32 << 10).map(|i| (i / 100 * 7) as u8).collect();
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        let mut compressor = Compressor::new(codec).expect("codec");
        for len in [4096, 16 << 10, 64 << 10, 200_704, 256 << 10] {
            let n = calls(|| {
                let done = compressor.compress(&block[..len]);
                assert_eq!(done.map(|(c, _)| c), (codec != Codec::Raw).then_some(codec));
            });
            assert_eq!(n, 0, "{codec}, {len} bytes");
        }
    }
}

#[test]
fn the_writer_allocates_no_more_for_more_memory() {
    struct Nothing;
    impl slackwater_image::writer::Sink for Nothing {
        fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), i32> {
            Ok(())
        }
    }
    let page = [7u8; 4096];
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        let mut writer = Writer::new(Nothing, Options { codec, page_size: 4096 }).expect("writer");
        // One chunk each.
        let mut save =
            |range: std::ops::Range<u64>| range.for_each(|i| writer.pages(i << 13, &page, true).expect("pages"));
        // Until a block of the index has had its full size once; from then on, only the directory may grow.
        save(0..17_000);
        let n = calls(|| save(17_000..27_000));
        assert!(n <= 2, "{codec}: {n} allocations for 10,000 chunks");
    }
}
