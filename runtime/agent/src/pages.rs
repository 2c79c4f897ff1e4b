//! Which pages of a region are to be saved: what pagemap says is there, by PAGEMAP_SCAN (Linux 6.7) where the kernel has
//! it, by reading /proc/self/pagemap otherwise. Sparse reservations cost nothing either way but the walk of their page
//! tables.
use crate::sys::{self, Errno, Fd};
use alloc::{format, string::String};

/// Bytes of a page on x86-64.
pub const PAGE: u64 = 4096;

/// What counts as content of a region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pages of anonymous memory that were ever written.
    Anon,
    /// Pages of a private file mapping that differ from the file.
    FilePrivate,
}

/// Answers where there is content.
pub struct Pagemap<'a> {
    fd: &'a Fd,
    scan: bool,
}

const PAGEMAP_SCAN: usize = 0xc060_6610;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const PFNZERO: u64 = 1 << 5;

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

impl<'a> Pagemap<'a> {
    /// From an open /proc/self/pagemap; it shows the process that opened it.
    pub fn new(fd: &'a Fd) -> Self {
        let mut p = Self { fd, scan: true };
        p.scan = p.scan_once(PAGE, 2 * PAGE, Kind::Anon, &mut [[0; 3]; 1]).is_ok();
        p
    }

    fn scan_once(&self, start: u64, end: u64, kind: Kind, out: &mut [[u64; 3]]) -> sys::Result<(usize, u64)> {
        // Pages of the zero page count as absent in anonymous memory; in a private file mapping what is not the file's
        // is ours.
        let not = if kind == Kind::Anon { PFNZERO } else { FILE };
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            vec: out.as_mut_ptr() as u64,
            vec_len: out.len() as u64,
            max_pages: 0,
            category_inverted: not,
            category_mask: not,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: PRESENT | SWAPPED,
        };
        // SAFETY: arg is struct pm_scan_arg; vec has room for vec_len struct page_region.
        let n = unsafe { sc!(ioctl, self.fd.0, PAGEMAP_SCAN, &raw mut arg) }?;
        Ok((n, arg.walk_end))
    }

    /// Calls `f(start, end)` for each run of content in [start, end), ascending.
    ///
    /// # Errors
    /// Those of `f`, and a pagemap that cannot be read.
    pub fn runs<E: From<String>>(
        &self,
        start: u64,
        end: u64,
        kind: Kind,
        mut f: impl FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let bad = |e: Errno| E::from(format!("/proc/self/pagemap at {start:#x}: {e}"));
        if self.scan {
            // On the stack: this is called for each region, and scratch memory is never given back.
            let mut out = [[0u64; 3]; 512];
            let mut at = start;
            let mut held: Option<(u64, u64)> = None;
            while at < end {
                let (n, walked) = self.scan_once(at, end, kind, &mut out).map_err(bad)?;
                for r in &out[..n] {
                    match &mut held {
                        Some(h) if h.1 == r[0] => h.1 = r[1],
                        _ => {
                            if let Some((s, e)) = held.replace((r[0], r[1])) {
                                f(s, e)?;
                            }
                        }
                    }
                }
                at = if walked > at { walked } else { end };
            }
            return held.map_or(Ok(()), |(s, e)| f(s, e));
        }
        self.runs_by_reading(start, end, kind, f)
    }

    fn runs_by_reading<E: From<String>>(
        &self,
        start: u64,
        end: u64,
        kind: Kind,
        mut f: impl FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        const BATCH: u64 = 1 << 11;
        let mut entries = [0u64; BATCH as usize];
        let mut held: Option<(u64, u64)> = None;
        let mut at = start;
        while at < end {
            let want = ((end - at) / PAGE).min(BATCH);
            // SAFETY: writable for its length.
            let n = unsafe { sc!(pread64, self.fd.0, entries.as_mut_ptr(), want * 8, at / PAGE * 8) }
                .map_err(|e| E::from(format!("/proc/self/pagemap at {at:#x}: {e}")))?;
            if n == 0 {
                break;
            }
            for (i, e) in entries[..n / 8].iter().enumerate() {
                // Documentation/admin-guide/mm/pagemap.rst: 63 present, 62 swapped, 61 file page or shared anonymous.
                let there = e >> 62 != 0 && (kind == Kind::Anon || e >> 61 & 1 == 0);
                let page = at + i as u64 * PAGE;
                match (&mut held, there) {
                    (Some(h), true) if h.1 == page => h.1 += PAGE,
                    (_, true) => {
                        if let Some((s, e)) = held.replace((page, page + PAGE)) {
                            f(s, e)?;
                        }
                    }
                    _ => {}
                }
            }
            at += (n / 8) as u64 * PAGE;
        }
        held.map_or(Ok(()), |(s, e)| f(s, e))
    }
}
