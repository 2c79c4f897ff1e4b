//! Writing the image, in the forked child (or in the stopped program, `--sync`).
//!
//! Rules: scratch memory only; no lock; the one error path is the returned text.
use crate::{
    freeze::{Copy, Facts, Files},
    pages::{Kind, PAGE, Pagemap},
    sys::{Errno, Fd},
};
use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use slackwater_image::{
    layout::Codec,
    meta::{Backing, Region, SECTION_PROCESS, SECTION_REGIONS, SECTION_THREADS, flag},
    writer::{Options, Sink, Writer},
};

/// Largest piece handed to the writer at once.
const PIECE: u64 = 4 << 20;
/// Buffer for memory that cannot be read in place.
const BOUNCE: usize = 1 << 20;

/// The disk is given work after so many bytes, so that fsync(2) at the end has little left to wait for.
const WRITEBACK: u64 = 16 << 20;

/// The image, and up to where the disk has been given work.
struct File<'a>(&'a Fd, u64);

impl Sink for File<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            // SAFETY: readable for its length.
            match unsafe { sc!(pwrite64, self.0.0, rest.as_ptr(), rest.len(), offset as usize + done) } {
                Ok(0) => return Err(libc::ENOSPC),
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into_raw()),
            }
        }
        let end = offset + bytes.len() as u64;
        if end >= self.1 + WRITEBACK {
            // Begins to write and does not wait; what it cannot do, fsync does.
            // SAFETY: a descriptor of ours.
            _ = unsafe { sc!(sync_file_range, self.0.0, self.1, end - self.1, libc::SYNC_FILE_RANGE_WRITE) };
            self.1 = end;
        }
        Ok(())
    }
}

struct Saver<'a> {
    writer: Writer<File<'a>>,
    pagemap: Pagemap<'a>,
    memory: &'a Fd,
    bounce: Vec<u8>,
    cutouts: &'a [(u64, u64)],
    /// Bytes of memory that the image stands for.
    content: u64,
}

impl Saver<'_> {
    /// Pages that lie at `from` in this process and belong at `vaddr`.
    fn in_place(&mut self, vaddr: u64, from: u64, len: u64, drop_zero: bool) -> Result<(), String> {
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PIECE);
            // SAFETY: mapped, readable, and nobody changes it: this process has one thread, or the program stands.
            let bytes = unsafe { core::slice::from_raw_parts((from + done) as *const u8, n as usize) };
            self.writer.pages(vaddr + done, bytes, drop_zero).map_err(|e| e.to_string())?;
            done += n;
        }
        self.content += len;
        Ok(())
    }

    /// The same through /proc/self/mem, for memory without PROT_READ and files that may end before their mapping: what
    /// cannot be read is left out.
    fn by_copy(&mut self, start: u64, end: u64, drop_zero: bool) -> Result<(), String> {
        let mut at = start;
        while at < end {
            let want = ((end - at) as usize).min(self.bounce.len());
            // SAFETY: writable for want.
            match unsafe { sc!(pread64, self.memory.0, self.bounce.as_mut_ptr(), want, at) } {
                Ok(n) if n as u64 >= PAGE => {
                    let n = n as u64 / PAGE * PAGE;
                    let bytes = &self.bounce[..n as usize];
                    self.writer.pages(at, bytes, drop_zero).map_err(|e| e.to_string())?;
                    self.content += n;
                    at += n;
                }
                Ok(_) | Err(Errno::EIO | Errno::EFAULT) => at += PAGE,
                Err(e) => return Err(format!("memory at {at:#x} cannot be read: {e}")),
            }
        }
        Ok(())
    }

    fn run(&mut self, start: u64, end: u64, readable: bool, drop_zero: bool) -> Result<(), String> {
        // Without the parts that plugins cut out.
        let mut at = start;
        while at < end {
            let cut = self.cutouts.iter().filter(|c| c.1 > at && c.0 < end).min_by_key(|c| c.0).copied();
            let stop = cut.map_or(end, |c| c.0.max(at));
            if stop > at {
                if readable {
                    self.in_place(at, at, stop - at, drop_zero)?;
                } else {
                    self.by_copy(at, stop, drop_zero)?;
                }
            }
            at = cut.map_or(end, |c| c.1.max(at));
        }
        Ok(())
    }

    fn region(&mut self, r: &Region, copy: Option<&Copy>) -> Result<(), String> {
        if r.flags & flag::CUTOUT != 0 {
            return Ok(());
        }
        let live_file = match &r.backing {
            Backing::Anon => false,
            Backing::FilePrivate(f) | Backing::Shared(f) => !f.deleted,
        };
        if matches!(r.backing, Backing::Shared(_)) && r.flags & flag::MAYWRITE == 0 {
            return Ok(());
        }
        if let Some(c) = copy {
            for &(vaddr, from, len) in &c.runs {
                self.in_place(vaddr, from, len, !live_file)?;
            }
            return Ok(());
        }
        let (start, end) = (r.range.start, r.range.end);
        // Our own stack and statics change while they are saved: a checksum of them in place would not fit.
        let marker = 0u8;
        let restless = [&raw const marker as u64, crate::arena::statics()].iter().any(|a| (start..end).contains(a));
        let readable = r.prot & 1 != 0 && !restless;
        match &r.backing {
            Backing::Shared(_) => Ok(()),
            Backing::FilePrivate(f) if f.deleted => self.by_copy(start, end, true),
            backing => {
                let kind = if *backing == Backing::Anon { Kind::Anon } else { Kind::FilePrivate };
                let mut runs: Vec<(u64, u64)> = Vec::new();
                self.pagemap.runs::<String>(start, end, kind, |s, e| {
                    runs.push((s, e));
                    Ok(())
                })?;
                runs.into_iter().try_for_each(|(s, e)| self.run(s, e, readable, kind == Kind::Anon))
            }
        }
    }
}

/// A mapping of a file that is gone is memory and nothing else from here on.
fn as_saved(r: &Region) -> Region {
    match &r.backing {
        Backing::FilePrivate(f) if f.deleted => Region { backing: Backing::Anon, ..r.clone() },
        _ => r.clone(),
    }
}

/// Writes and syncs the image: (its length, bytes of memory it stands for).
///
/// # Errors
/// What failed and what to do; the file is incomplete then and no reader takes it.
pub fn write(facts: &Facts, regions: &[Region], copies: &[Copy], files: &Files) -> Result<(u64, u64), String> {
    let codec = match facts.codec {
        1 => Codec::Lz4,
        _ => Codec::Raw,
    };
    let options = Options { codec, page_size: PAGE as u32 };
    let mut s = Saver {
        writer: Writer::new(File(&facts.image, 0), options).map_err(|e| e.to_string())?,
        pagemap: Pagemap::new(&files.pagemap),
        memory: &files.memory,
        bounce: vec![0; BOUNCE],
        cutouts: &facts.cutouts,
        content: 0,
    };
    for (i, r) in regions.iter().enumerate() {
        s.region(r, copies.binary_search_by_key(&i, |c| c.region).ok().map(|at| &copies[at]))?;
    }
    let saved: Vec<Region> = regions.iter().map(as_saved).collect();
    let fail = |e: slackwater_image::writer::WriteError| e.to_string();
    s.writer.section_of(SECTION_PROCESS, &facts.process).map_err(fail)?;
    s.writer.section_of(SECTION_THREADS, &facts.threads).map_err(fail)?;
    s.writer.section_of(SECTION_REGIONS, &saved).map_err(fail)?;
    for (name, content) in &facts.sections {
        s.writer.section(name, content).map_err(fail)?;
    }
    let summary = s.writer.finish().map_err(fail)?;
    // SAFETY: a descriptor of ours.
    unsafe { sc!(fsync, facts.image.0) }.map_err(|e| format!("the image cannot be made durable: {e}"))?;
    Ok((summary.bytes, s.content))
}
