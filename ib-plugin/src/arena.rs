//! The one reserved range of addresses in which everything of ours lives: shadow objects, rings, tables, soaked
//! messages, and all that `alloc` allocates.
//!
//! Why: the program's malloc may be locked by a stopped thread, and "is this object ours?" must be a range check.
//! Memory comes in powers of two from a bump pointer, and goes back to a free list of its size; the range is reserved
//! without swap accounting when it is first used, so a program that uses no verbs pays nothing.
//!
//! # Safety
//! A free block's first word links the list. Blocks are aligned to their size, up to a page.
use crate::sync::Lock;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Bytes reserved. Soaked messages are the only large thing that lives here.
const RESERVED: usize = 8 << 30;
const CLASSES: usize = 34;

/// Where the range begins, once it is reserved.
static BASE: AtomicUsize = AtomicUsize::new(0);

struct Heap {
    next: usize,
    end: usize,
    free: [*mut u8; CLASSES],
}

// SAFETY: the pointers are blocks that nobody else refers to.
unsafe impl Send for Heap {}

static HEAP: Lock<Heap> = Lock::new(Heap { next: 0, end: 0, free: [null_mut(); CLASSES] });

/// True for addresses of our own objects.
#[cfg(test)]
fn ours<T>(p: *const T) -> bool {
    let base = BASE.load(Ordering::Relaxed);
    base != 0 && (p as usize).wrapping_sub(base) < RESERVED
}

/// Held over fork, so that the child finds the heap in order.
pub(crate) fn before_fork() {
    HEAP.acquire();
}

/// In parent and child.
pub(crate) fn after_fork() {
    HEAP.release();
}

/// Anonymous memory that costs nothing until it is touched; null on failure.
pub(crate) fn reserve(bytes: usize) -> *mut u8 {
    // SAFETY: a fresh mapping; nothing else is touched. Raw, for mmap(2) may be a hook of another library.
    let p = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            0usize,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0usize,
        )
    };
    if p == -1 { null_mut() } else { p as *mut u8 }
}

fn class(layout: &Layout) -> usize {
    layout.size().max(layout.align()).max(32).next_power_of_two().trailing_zeros() as usize
}

/// The allocator behind `alloc` in this library.
#[derive(Debug)]
pub(crate) struct Arena;

// SAFETY: blocks are disjoint, at least as large and as aligned as asked (alignments above a page are refused), and
// stay valid until freed.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let c = class(&layout);
        if c >= CLASSES || layout.align() > 4096 {
            return null_mut();
        }
        let mut heap = HEAP.lock();
        let head = heap.free[c];
        if !head.is_null() {
            // SAFETY: a free block of ours; its first word is the link.
            heap.free[c] = unsafe { head.cast::<*mut u8>().read() };
            return head;
        }
        if heap.end == 0 {
            let base = reserve(RESERVED) as usize;
            if base == 0 {
                return null_mut();
            }
            (heap.next, heap.end) = (base, base + RESERVED);
            BASE.store(base, Ordering::Relaxed);
        }
        let size = 1usize << c;
        let at = heap.next.next_multiple_of(size.min(4096));
        if at + size > heap.end {
            return null_mut();
        }
        heap.next = at + size;
        at as *mut u8
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        let c = class(&layout);
        let mut heap = HEAP.lock();
        // SAFETY: the block is ours alone now.
        unsafe { p.cast::<*mut u8>().write(heap.free[c]) };
        heap.free[c] = p;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_disjoint_aligned_and_ours() {
        let arena = Arena;
        let mut blocks = std::vec::Vec::new();
        for i in 0..2000usize {
            let layout = Layout::from_size_align(i % 700 + 1, 1 << (i % 8)).unwrap();
            // SAFETY: the layout is not empty.
            let p = unsafe { arena.alloc(layout) };
            assert!(ours(p) && (p as usize).is_multiple_of(layout.align()));
            // SAFETY: size() bytes are ours.
            unsafe { p.write_bytes(i as u8, layout.size()) };
            blocks.push((p, layout, i as u8));
        }
        for &(p, layout, tag) in &blocks {
            // SAFETY: written above.
            let bytes = unsafe { core::slice::from_raw_parts(p, layout.size()) };
            assert!(bytes.iter().all(|&b| b == tag), "a block was overwritten by another");
        }
        for (p, layout, _) in blocks {
            // SAFETY: allocated above, once.
            unsafe { arena.dealloc(p, layout) };
        }
        let on_stack = 0u8;
        assert!(!ours(&raw const on_stack));
    }
}
