//! Placing the restorer and jumping into it.
//!
//! # Safety
//! The blob is laid out in a fresh mapping: the restorer's segments, then the plan and what it points to. The jump is the
//! last thing this program does.
#![allow(unsafe_code)]
use super::{hole, hole::Here, plan::Draft};
use anyhow::{Context, Result, bail, ensure};
use slackwater_image::meta::Range;
use slackwater_restorer::plan::{KernelMmMap, Op, Plan, RestartInfo, ThreadPlan, op};

static RESTORER: &[u8] = include_bytes!(env!("RESTORER"));
const PAGE: u64 = 4096;
const R_X86_64_RELATIVE: u64 = 8;

struct Elf {
    bytes: &'static [u8],
}

struct Segment {
    kind: u64,
    offset: u64,
    vaddr: u64,
    file_len: u64,
    len: u64,
}

impl Elf {
    fn u64(&self, at: u64) -> u64 {
        let at = at as usize;
        self.bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
    }

    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let (phoff, count) = (self.u64(32), self.u64(56) & 0xffff);
        (0..count).map(move |i| {
            let at = phoff + i * 56;
            Segment {
                kind: self.u64(at) & 0xffff_ffff,
                offset: self.u64(at + 8),
                vaddr: self.u64(at + 16),
                file_len: self.u64(at + 32),
                len: self.u64(at + 40),
            }
        })
    }

    fn span(&self) -> u64 {
        self.segments().filter(|s| s.kind == 1).map(|s| s.vaddr + s.len).max().unwrap_or(0).next_multiple_of(PAGE)
    }

    /// Copies the segments to `base` and relocates them.
    ///
    /// # Safety
    /// `base` is writable for `span` bytes.
    unsafe fn load(&self, base: u64) -> Result<()> {
        for s in self.segments().filter(|s| s.kind == 1) {
            let from = &self.bytes[s.offset as usize..(s.offset + s.file_len) as usize];
            // SAFETY: inside the span.
            unsafe { ((base + s.vaddr) as *mut u8).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        }
        for s in self.segments().filter(|s| s.kind == 2) {
            let (mut rela, mut size) = (0, 0);
            for at in (s.offset..s.offset + s.file_len).step_by(16) {
                match self.u64(at) {
                    7 => rela = self.u64(at + 8),
                    8 => size = self.u64(at + 8),
                    _ => {}
                }
            }
            for at in (rela..rela + size).step_by(24) {
                // .rela.dyn lies in the first segment, where file offset and address are the same.
                let (place, kind, addend) = (self.u64(at), self.u64(at + 8), self.u64(at + 16));
                ensure!(kind == R_X86_64_RELATIVE, "the embedded restorer has a relocation of type {kind}");
                // SAFETY: inside the span.
                unsafe { *((base + place) as *mut u64) = base + addend };
            }
        }
        Ok(())
    }
}

/// Takes space from the blob's end.
struct Layout {
    at: u64,
}

impl Layout {
    fn take(&mut self, len: usize) -> u64 {
        let start = self.at.next_multiple_of(64);
        self.at = start + len as u64;
        start
    }
}

unsafe fn put<T: Copy>(at: u64, items: &[T]) {
    // SAFETY: the caller laid the blob out for it.
    unsafe { (at as *mut T).copy_from_nonoverlapping(items.as_ptr(), items.len()) };
}

fn rseq_off() {
    unsafe extern "C" {
        #[link_name = "__rseq_offset"]
        static RSEQ_OFFSET: isize;
        #[link_name = "__rseq_size"]
        static RSEQ_SIZE: u32;
    }
    // SAFETY: glibc's own constants; unregistering the area that glibc registered for this thread.
    unsafe {
        if RSEQ_SIZE == 0 {
            return;
        }
        let fs: usize;
        core::arch::asm!("mov {}, fs:[0]", out(reg) fs, options(nostack, readonly));
        let area = fs.wrapping_add_signed(RSEQ_OFFSET);
        for len in [32u32, RSEQ_SIZE.next_multiple_of(32), 64, 128] {
            if libc::syscall(libc::SYS_rseq, area, len, 1, 0x5305_3053u32) == 0 {
                return;
            }
        }
    }
}

/// Never returns.
pub fn jump(mut draft: Draft, mut info: RestartInfo, here: &Here) -> Result<std::convert::Infallible> {
    let elf = Elf { bytes: RESTORER };
    // Three unmap steps at most.
    let ops_len = draft.aside.len() + draft.ops.len() + 3;
    let mut sizes = Layout { at: elf.span() };
    let plan_at = sizes.take(size_of::<Plan>());
    let ops_at = sizes.take(ops_len * size_of::<Op>());
    let threads_at = sizes.take(draft.threads.len() * size_of::<ThreadPlan>());
    let auxv_at = sizes.take(draft.auxv.len());
    let copies_at: Vec<u64> = draft.copies.iter().map(|(_, b)| sizes.take(b.len())).collect();
    let total = sizes.at.next_multiple_of(PAGE);
    let mut taken = draft.taken.clone();
    taken.push(draft.hop);
    let base = hole::find(total, &taken, here.top)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: a new mapping where nothing is.
    let p = unsafe { libc::mmap(base as *mut _, total as usize, prot, flags, -1, 0) };
    if p as u64 != base {
        bail!("the restorer's place at {base:#x} is taken: {}", std::io::Error::last_os_error());
    }
    let blob = Range { start: base, end: base + total };
    // SAFETY: the blob is mapped writable for `total`, and everything put into it was laid out above.
    unsafe {
        elf.load(base).context("loading the restorer")?;
        for (at, (index, bytes)) in copies_at.iter().zip(&draft.copies) {
            put(base + at, bytes);
            draft.ops[*index].arg = base + at;
        }
        put(base + auxv_at, &draft.auxv);
        put(base + threads_at, &draft.threads);
        let mut ops = draft.aside;
        // Everything of ours lies below `top`, but may have grown since we looked; the stack is the highest.
        let mut islands = [blob, draft.hop];
        islands.sort_by_key(|r| r.start);
        let mut from = 0;
        for island in islands.iter().chain([&Range { start: here.top, end: here.top }]) {
            if island.start > from {
                ops.push(Op { code: op::UNMAP, addr: from, len: island.start - from, ..Op::default() });
            }
            from = island.end.next_multiple_of(PAGE);
        }
        ops.extend(&draft.ops);
        put(base + ops_at, &ops);
        info.blob = [blob.start, blob.end];
        let plan = Plan {
            ops: (base + ops_at) as *const Op,
            ops_len: ops.len() as u64,
            threads: (base + threads_at) as *const ThreadPlan,
            threads_len: draft.threads.len() as u64,
            mm: KernelMmMap {
                words: draft.mm_words,
                auxv: base + auxv_at,
                auxv_size: draft.auxv.len() as u32,
                exe_fd: draft.exe_fd.map_or(u32::MAX, |fd| fd as u32),
            },
            sigactions: draft.sigactions,
            restart_info_at: draft.restart_info_at,
            restart_info: info,
        };
        put(base + plan_at, &[plan]);
        let entry = base + elf.u64(24);
        // glibc registered an rseq area for this thread, in memory that is about to vanish.
        rseq_off();
        core::mem::transmute::<u64, extern "C" fn(u64) -> !>(entry)(base + plan_at)
    }
}
