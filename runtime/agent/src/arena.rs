//! The agent's own heap: mappings of ours, never the program's malloc.
//!
//! Rules: usable while the program stands still, so it is used by the checkpoint thread, and by the program's threads only
//! inside `wrapper_enter`/`exit` (where they are not stopped); a spin lock keeps these apart. While an image is written
//! ([`Scratch`]) allocations come from a mapping which is not part of the image, and are never freed: the arena's own pages
//! must not change between the first and the last page that is saved.
use crate::sys;
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::*},
};

/// Size classes: powers of two from 16 bytes to 64 KiB; larger ones are mappings of their own.
const CLASSES: usize = 13;
const LARGE: usize = 64 << 10;
const BLOCK: usize = 1 << 20;
/// Address space (not memory) for a scratch arena; less where the program has a limit (RLIMIT_AS).
const SCRATCH: [usize; 4] = [1 << 30, 256 << 20, 64 << 20, 16 << 20];

struct Inner {
    free: [*mut u8; CLASSES],
    bump: *mut u8,
    left: usize,
}

/// The global allocator.
pub struct Arena {
    lock: AtomicBool,
    inner: UnsafeCell<Inner>,
    scratch: AtomicUsize,
    scratch_end: AtomicUsize,
}

// SAFETY: `inner` is only touched under `lock`.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena {
    lock: AtomicBool::new(false),
    inner: UnsafeCell::new(Inner { free: [null_mut(); CLASSES], bump: null_mut(), left: 0 }),
    scratch: AtomicUsize::new(0),
    scratch_end: AtomicUsize::new(0),
};

fn class(layout: &Layout) -> usize {
    let size = layout.size().max(layout.align()).max(16).next_power_of_two();
    size.trailing_zeros() as usize - 4
}

impl Arena {
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        while self.lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            core::hint::spin_loop();
        }
        // SAFETY: the lock is ours.
        let r = f(unsafe { &mut *self.inner.get() });
        self.lock.store(false, Release);
        r
    }

    fn scratch_alloc(&self, layout: &Layout) -> *mut u8 {
        let size = layout.size().max(1);
        let mut at = self.scratch.load(Relaxed);
        loop {
            let start = at.next_multiple_of(layout.align());
            if start + size > self.scratch_end.load(Relaxed) {
                return null_mut();
            }
            match self.scratch.compare_exchange_weak(at, start + size, Relaxed, Relaxed) {
                Ok(_) => return start as *mut u8,
                Err(now) => at = now,
            }
        }
    }
}

// SAFETY: blocks of a class are at least as large and aligned as asked (classes are powers of two inside page-aligned blocks).
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.scratch.load(Relaxed) != 0 {
            return self.scratch_alloc(&layout);
        }
        if layout.size() > LARGE || layout.align() > 4096 {
            return sys::map_anonymous(layout.size(), 0).unwrap_or(null_mut());
        }
        let c = class(&layout);
        self.with(|i| {
            let head = i.free[c];
            if !head.is_null() {
                // SAFETY: a free block's first word is the next one.
                i.free[c] = unsafe { head.cast::<*mut u8>().read() };
                return head;
            }
            let size = 16usize << c;
            let skip = i.bump.align_offset(size.min(4096));
            if i.left < size + skip {
                let Ok(p) = sys::map_anonymous(BLOCK, 0) else { return null_mut() };
                i.bump = p;
                i.left = BLOCK;
            } else {
                // SAFETY: inside the block.
                i.bump = unsafe { i.bump.add(skip) };
                i.left -= skip;
            }
            let p = i.bump;
            // SAFETY: inside the block.
            i.bump = unsafe { p.add(size) };
            i.left -= size;
            p
        })
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        if self.scratch.load(Relaxed) != 0 {
            return;
        }
        if layout.size() > LARGE || layout.align() > 4096 {
            // SAFETY: a mapping of its own.
            _ = unsafe { sc!(munmap, p, layout.size()) };
            return;
        }
        let c = class(&layout);
        self.with(|i| {
            // SAFETY: the block is ours again; it has room for a pointer.
            unsafe { p.cast::<*mut u8>().write(i.free[c]) };
            i.free[c] = p;
        });
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        if layout.size() > LARGE && new > LARGE && layout.align() <= 4096 && self.scratch.load(Relaxed) == 0 {
            // SAFETY: a mapping of its own; the kernel moves it.
            return unsafe { sc!(mremap, p, layout.size(), new, libc::MREMAP_MAYMOVE) }
                .map_or(null_mut(), |q| q as *mut u8);
        }
        // SAFETY: alloc, copy, free, as the trait says.
        unsafe {
            let q = self.alloc(Layout::from_size_align_unchecked(new, layout.align()));
            if !q.is_null() {
                core::ptr::copy_nonoverlapping(p, q, layout.size().min(new));
                self.dealloc(p, layout);
            }
            q
        }
    }
}

/// While this lives, allocations come from a mapping of their own that is not in the image.
pub struct Scratch {
    start: usize,
    len: usize,
}

impl Scratch {
    /// Reserves the mapping; call before the list of regions is made, or leave [`Scratch::range`] out of it.
    pub fn reserve() -> sys::Result<Self> {
        let mut result = Err(sys::Errno::ENOMEM);
        for len in SCRATCH {
            result = sys::map_anonymous(len, libc::MAP_NORESERVE).map(|p| Self { start: p as usize, len });
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// From now on.
    pub fn enter(&self) {
        ARENA.scratch_end.store(self.start + self.len, Relaxed);
        ARENA.scratch.store(self.start, Relaxed);
    }

    /// Its place.
    pub fn range(&self) -> (u64, u64) {
        (self.start as u64, (self.start + self.len) as u64)
    }

    /// Back to the ordinary arena (also called first of all in a restarted process, whose image says "scratch").
    pub fn leave() {
        ARENA.scratch.store(0, Relaxed);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        Self::leave();
        // SAFETY: ours, and nothing points into it any more.
        _ = unsafe { sc!(munmap, self.start, self.len) };
    }
}

/// An address among this library's variables.
pub fn statics() -> u64 {
    &raw const ARENA as u64
}

/// Before fork: no other thread is in the middle of an allocation.
pub fn lock() {
    while ARENA.lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
        core::hint::spin_loop();
    }
}

/// After it, in parent and child.
pub fn unlock() {
    ARENA.lock.store(false, Release);
}

/// Allocates for plugins (`slackwater_alloc`).
pub fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: as the trait.
    unsafe { ARENA.alloc(layout) }
}

/// Frees for plugins.
///
/// # Safety
/// From [`alloc`] with the same layout.
pub unsafe fn free(p: *mut u8, layout: Layout) {
    // SAFETY: the caller's.
    unsafe { ARENA.dealloc(p, layout) }
}
