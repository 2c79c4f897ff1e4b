//! Before a stop: memory that a fork would take long to copy the page tables of is gathered into huge pages, while the
//! program runs (madvise(2), MADV_COLLAPSE, Linux 6.1). fork(2), which freezes memory while the program stands, takes 25 ms for
//! a GiB of small pages, and less than one for huge ones.
//!
//! Rules:
//! - Nothing that the program can read changes, and no memory is taken that it has not: only blocks of which each page is
//!   there, and nobody else's, are gathered. What the program changes meanwhile the kernel keeps in order.
//! - Advice is followed: not where the program wants no huge pages, merged pages, or a child to see nothing.
//! - A courtesy: on any error the rest stays as it is, and the stop takes longer.
use crate::{
    maps,
    pages::PAGE,
    sys::{self, Errno, Fd},
    text::{dec, lines},
};
use alloc::vec::Vec;

/// A huge page of x86-64, in bytes.
const HUGE: u64 = 2 << 20;
/// As much in small pages is worth the trouble: some 3 ms of a stop.
const WORTH: u64 = 128 << 20;
/// So many huge pages by one call: some milliseconds, in which the checkpoint thread hears nothing.
const AT_ONCE: u64 = 4;
/// After so many calls in a row that gather nothing there is no use in going on: memory is too scattered, or too short.
const GIVE_UP: u32 = 8;
const MADV_COLLAPSE: i32 = 25;

/// VmFlags (Documentation/filesystems/proc.rst) of memory that is left alone: no huge pages wanted, hugetlbfs, not in a child, empty
/// in a child, merged with equal pages, a stack, a device's, watched by userfaultfd.
const NOT: [&[u8]; 11] = [b"nh", b"ht", b"dc", b"wf", b"mg", b"gd", b"io", b"pf", b"um", b"uw", b"ui"];

/// Private anonymous mappings with small pages in them, and how many bytes of these, from /proc/self/smaps.
fn candidates(smaps: &[u8]) -> (Vec<(u64, u64)>, u64) {
    let (mut found, mut small) = (Vec::new(), 0);
    let mut range = None;
    let (mut anonymous, mut huge, mut lazy) = (0, 0, 0);
    for line in lines(smaps) {
        if line.first().is_some_and(|c| c.is_ascii_digit() || c.is_ascii_lowercase()) {
            (anonymous, huge, lazy) = (0, 0, 0);
            range = maps::header(line).filter(|h| h.perms.get(3) == Some(&b'p') && h.ino == 0).map(|h| h.range);
            continue;
        }
        let kib = |name: &[u8]| line.strip_prefix(name).map(|rest| dec(rest.trim_ascii()) << 10);
        anonymous = kib(b"Anonymous:").unwrap_or(anonymous);
        huge = kib(b"AnonHugePages:").unwrap_or(huge);
        // It would not be given back when memory is short.
        lazy = kib(b"LazyFree:").unwrap_or(lazy);
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let not = flags.split(|&c| c == b' ').any(|flag| NOT.contains(&flag));
            if let Some(range) = range.take().filter(|_| !not && lazy == 0 && anonymous >= huge + HUGE) {
                found.push((range.start, range.end));
                small += anonymous - huge;
            }
        }
    }
    (found, small)
}

/// Is each page of the block at `at` in memory, anonymous, and mapped by this process alone?
fn is_whole(pagemap: &Fd, at: u64) -> bool {
    /// Documentation/admin-guide/mm/pagemap.rst: 63 present, 61 file page or shared anonymous, 56 mapped once.
    const MASK: u64 = 1 << 63 | 1 << 61 | 1 << 56;
    const OURS: u64 = 1 << 63 | 1 << 56;
    let mut entries = [0u64; (HUGE / PAGE) as usize];
    // SAFETY: writable for its length.
    let n = unsafe { sc!(pread64, pagemap.0, entries.as_mut_ptr(), size_of_val(&entries), at / PAGE * 8) };
    n == Ok(size_of_val(&entries)) && entries.iter().all(|e| e & MASK == OURS)
}

/// Gathers, until all is done or `enough` says so, which is asked every few milliseconds.
pub fn gather(mut enough: impl FnMut() -> bool) {
    let Ok(smaps) = sys::read_file(c"/proc/self/smaps") else { return };
    let (found, small) = candidates(&smaps);
    if small < WORTH {
        return;
    }
    let Ok(pagemap) = sys::open(c"/proc/self/pagemap", libc::O_RDONLY, 0) else { return };
    let mut failures = 0;
    for (start, end) in found {
        let mut at = start.next_multiple_of(HUGE);
        while at + HUGE <= end {
            if enough() || failures == GIVE_UP {
                return;
            }
            let mut to = at;
            while to + HUGE <= end && to < at + AT_ONCE * HUGE && is_whole(&pagemap, to) {
                to += HUGE;
            }
            if to == at {
                at += HUGE;
                continue;
            }
            // SAFETY: no byte changes, whatever is mapped there by now.
            match unsafe { sc!(madvise, at, to - at, MADV_COLLAPSE) } {
                Ok(_) => failures = 0,
                // The kernel does not know it, or the program wants no huge pages at all (PR_SET_THP_DISABLE).
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => return,
                // Some of it is pinned or in use just now, or there was no huge page to be had.
                Err(_) => failures += 1,
            }
            at = to;
        }
    }
}
