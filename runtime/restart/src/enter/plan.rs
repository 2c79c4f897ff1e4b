//! The plan: which system calls rebuild this process, in which order. Pure, but for [`content`].
//!
//! Order: our vdso steps aside; everything that is not the blob or the vdso goes; the vdso takes its place; all regions are
//! mapped (writable where there is something to put in); content is read; protections, advice and locks as they were;
//! descriptors of ours are closed.
use super::{
    Entry,
    hole::{self, Here},
    segments,
    vdso::{self, Vdso},
};
use anyhow::{Context, Result, bail};
use slackwater_image::{
    layout::{Chunk, Codec},
    meta::{Backing, Range, Region, flag},
    reader::Reader,
};
use slackwater_restorer::plan::{KernelSigAction, Op, ThreadPlan, op};
use std::{
    fs::File,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd},
    os::unix::fs::FileExt,
};

const PAGE: u64 = 4096;
const READ: u64 = libc::PROT_READ as u64;
const WRITE: u64 = libc::PROT_WRITE as u64;
const NO_FD: u64 = u64::MAX;
/// Reads of at least this length are worth a madvise(MADV_POPULATE_WRITE) before: one call instead of a fault a page.
const POPULATE: u64 = 64 << 10;

/// Where the pages of compressed chunks are: (memory file, offset of each chunk in it by index).
#[derive(Debug, Default)]
pub struct Content {
    file: Option<RawFd>,
    offsets: std::collections::HashMap<usize, u64>,
}

/// Unpacks compressed chunks into a memory file: the restorer only reads.
pub fn content(image: &Reader) -> Result<Content> {
    let packed = |c: &Chunk| !matches!(c.codec, Codec::Raw | Codec::Zero);
    if !image.chunks().iter().any(packed) {
        return Ok(Content::default());
    }
    // SAFETY: the name is a C string; the descriptor is new.
    #[allow(unsafe_code)]
    let file = unsafe {
        let fd = libc::memfd_create(c"slackwater-content".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("memfd_create");
        }
        File::from_raw_fd(fd)
    };
    let mut out = Content::default();
    let (mut at, mut pages) = (0, Vec::new());
    for (i, _) in image.chunks().iter().enumerate().filter(|(_, c)| packed(c)) {
        image.read_chunk(i, &mut pages)?;
        file.write_all_at(&pages, at).context("memory for unpacked pages")?;
        out.offsets.insert(i, at);
        at += pages.len() as u64;
    }
    out.file = Some(file.into_raw_fd());
    Ok(out)
}

/// All but the blob's own addresses.
#[derive(Debug)]
pub struct Draft {
    /// Steps before memory comes back; `unmap` steps are added by the one who knows where the blob is.
    pub aside: Vec<Op>,
    /// Where the vdso waits, and where the blob must not be.
    pub hop: Range,
    /// Steps after everything is unmapped.
    pub ops: Vec<Op>,
    /// Bytes to be laid into the blob, and the index in `ops` of the `COPY` that wants their address.
    pub copies: Vec<(usize, Vec<u8>)>,
    /// Threads, leader last.
    pub threads: Vec<ThreadPlan>,
    /// PR_SET_MM_MAP.
    pub mm_words: [u64; 11],
    /// New auxv.
    pub auxv: Vec<u8>,
    /// Descriptor of the executable.
    pub exe_fd: Option<RawFd>,
    /// Signals 1 to 64.
    pub sigactions: [KernelSigAction; 64],
    /// Where the agent wants its note.
    pub restart_info_at: u64,
    /// What the restored process occupies.
    pub taken: Vec<Range>,
}

fn new(code: u64, range: Range) -> Op {
    Op { code, addr: range.start, len: range.end - range.start, fd: NO_FD, ..Op::default() }
}

/// Has any chunk pages in this range? `chunks` ascend by address.
fn has_content(chunks: &[Chunk], range: Range) -> bool {
    let first = chunks.partition_point(|c| c.vaddr + u64::from(c.pages) * PAGE <= range.start);
    chunks.get(first).is_some_and(|c| c.vaddr < range.end)
}

fn map(index: usize, r: &Region, entry: &Entry) -> Result<Op> {
    let fixed = libc::MAP_FIXED_NOREPLACE as u64;
    let mut flags = fixed;
    for (bit, f) in [
        (flag::GROWSDOWN, libc::MAP_GROWSDOWN),
        (flag::NORESERVE, libc::MAP_NORESERVE),
        (flag::HUGETLB, libc::MAP_HUGETLB),
    ] {
        if r.flags & bit != 0 {
            flags |= f as u64;
        }
    }
    let mut o = new(op::MAP, r.range);
    let file = match &r.backing {
        Backing::Anon => {
            o.flags = flags | (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            None
        }
        Backing::FilePrivate(f) => {
            o.flags = flags | libc::MAP_PRIVATE as u64;
            Some(f)
        }
        Backing::Shared(f) => {
            o.flags = flags | libc::MAP_SHARED as u64;
            Some(f)
        }
    };
    if let Some(f) = file {
        let fd = entry
            .region_fds
            .get(&index)
            .with_context(|| format!("{} is mapped at {:#x}, and could not be opened", f.path, r.range.start))?;
        o.fd = *fd as u64;
        o.offset = f.offset;
    }
    Ok(o)
}

fn advice(r: &Region) -> impl Iterator<Item = Op> + '_ {
    [
        (flag::DONTFORK, libc::MADV_DONTFORK),
        (flag::WIPEONFORK, libc::MADV_WIPEONFORK),
        (flag::DONTDUMP, libc::MADV_DONTDUMP),
        (flag::MERGEABLE, libc::MADV_MERGEABLE),
        (flag::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (flag::RANDOM, libc::MADV_RANDOM),
    ]
    .into_iter()
    .filter(|(bit, _)| r.flags & bit != 0)
    .map(|(_, advice)| Op { arg: advice as u64, ..new(op::ADVISE, r.range) })
}

/// Huge page advice comes before the content, or it would be too late.
fn early_advice(r: &Region) -> impl Iterator<Item = Op> + '_ {
    [(flag::HUGEPAGE, libc::MADV_HUGEPAGE), (flag::NOHUGEPAGE, libc::MADV_NOHUGEPAGE)]
        .into_iter()
        .filter(|(bit, _)| r.flags & bit != 0)
        .map(|(_, advice)| Op { arg: advice as u64, ..new(op::ADVISE, r.range) })
}

fn memory(entry: &Entry, content: &Content, ops: &mut Vec<Op>) -> Result<()> {
    let chunks = entry.image.chunks();
    let image_fd = entry.image.file().as_raw_fd() as u64;
    let mut protect = Vec::new();
    for (i, r) in entry.regions.iter().enumerate() {
        let prot = u64::from(r.prot);
        let segment = segments::of(r, entry.segments);
        let writable = !matches!(r.backing, Backing::Shared(_)) || r.flags & flag::MAYWRITE != 0;
        let first = if has_content(chunks, r.range) && writable { prot | READ | WRITE } else { prot };
        if first != prot {
            protect.push(Op { arg: prot, ..new(op::PROTECT, r.range) });
        }
        match segment {
            // It is attached already.
            Some(_) => ops.push(Op { arg: first, ..new(op::PROTECT, r.range) }),
            None => ops.push(Op { arg: first, ..map(i, r, entry)? }),
        }
        ops.extend(early_advice(r));
    }
    for (i, c) in chunks.iter().enumerate() {
        let range = Range { start: c.vaddr, end: c.vaddr + u64::from(c.pages) * PAGE };
        let read = |fd, offset| Op { fd, offset, ..new(op::READ, range) };
        match c.codec {
            Codec::Zero => ops.push(new(op::ZERO, range)),
            codec => {
                if range.end - range.start >= POPULATE {
                    ops.push(new(op::POPULATE, range));
                }
                ops.push(match codec {
                    Codec::Raw => read(image_fd, c.offset),
                    _ => {
                        let at = content.offsets.get(&i).context("a chunk was not unpacked")?;
                        read(content.file.map_or(NO_FD, |f| f as u64), *at)
                    }
                });
            }
        }
    }
    ops.extend(protect);
    for r in entry.regions {
        ops.extend(advice(r));
        if r.flags & flag::LOCKED != 0 {
            let flags = if r.flags & flag::ONFAULT != 0 { u64::from(libc::MLOCK_ONFAULT) } else { 0 };
            ops.push(Op { flags, ..new(op::LOCK, r.range) });
        }
        if r.flags & flag::SEALED != 0 {
            ops.push(new(op::SEAL, r.range));
        }
    }
    let mut close: Vec<RawFd> = entry.region_fds.values().copied().collect();
    close.push(entry.image.file().as_raw_fd());
    close.extend(content.file);
    close.sort_unstable();
    close.dedup();
    ops.extend(close.into_iter().map(|fd| Op { code: op::CLOSE, fd: fd as u64, ..Op::default() }));
    Ok(())
}

/// Does this kernel's address space reach that far? (The guest's ends at 512 GiB.)
fn check_reach(regions: &[Region]) -> Result<()> {
    let Some(last) = regions.last() else { bail!("the image has no memory") };
    let at = last.range.end - PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping of one page at a place where nothing is (or the kernel says EEXIST), unmapped at once.
    #[allow(unsafe_code)]
    unsafe {
        let p = libc::mmap(at as *mut _, PAGE as usize, libc::PROT_NONE, flags, -1, 0);
        if p != libc::MAP_FAILED {
            libc::munmap(p, PAGE as usize);
        } else if std::io::Error::last_os_error().raw_os_error() != Some(libc::EEXIST) {
            bail!(
                "the program's memory reaches up to {:#x}, beyond this kernel's address space: restart on a kernel with as large a one",
                last.range.end
            );
        }
    }
    Ok(())
}

/// Makes the draft.
pub fn draft(entry: &Entry, content: &Content, here: &Here, vdso: &Vdso) -> Result<Draft> {
    let p = entry.process;
    check_reach(entry.regions)?;
    let mut taken: Vec<Range> = entry.regions.iter().map(|r| r.range).collect();
    taken.extend([p.vdso, p.vvar]);
    taken.extend(&here.mapped);
    let group = here.vdso_group();
    let hop_start = hole::find((group.end - group.start).max(PAGE), &taken, here.top)?;
    let hop = Range { start: hop_start, end: hop_start + (group.end - group.start) };
    let moved =
        |part: &Range, to: u64| Op { addr: part.start - group.start + to, arg: part.start, ..new(op::MOVE, *part) };
    let aside = here.vdso_parts.iter().map(|part| moved(part, hop.start)).collect();
    let (mut ops, mut copies) = (Vec::new(), Vec::new());
    match vdso {
        Vdso::Leave => {}
        Vdso::Move { to } => {
            ops.extend(here.vdso_parts.iter().map(|part| {
                let waiting = part.start - group.start + hop.start;
                Op { arg: waiting, ..moved(part, *to) }
            }));
        }
        Vdso::Forward { at, patches } => {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            ops.push(Op { arg: READ | WRITE, flags: flags as u64, ..new(op::MAP, *at) });
            let text = vdso::forwarded(&p.vdso_content, patches, here.vdso.start - group.start + hop.start);
            copies.push((ops.len(), text));
            ops.push(new(op::COPY, *at));
            ops.push(Op { arg: READ | libc::PROT_EXEC as u64, ..new(op::PROTECT, *at) });
        }
    }
    segments::attach(entry, &hop, here.top, &mut taken, &mut ops)?;
    memory(entry, content, &mut ops)?;
    let mut threads: Vec<ThreadPlan> = entry
        .threads
        .iter()
        .map(|t| ThreadPlan { sp: t.sp, resume: t.resume, fs: t.fs, gs: t.gs, tid: t.tid as u64 })
        .collect();
    threads.sort_by_key(|t| t.tid == p.pid as u64);
    if threads.last().is_none_or(|t| t.tid != p.pid as u64) {
        bail!("the image has no leading thread");
    }
    let mut sigactions = [KernelSigAction::default(); 64];
    for (to, a) in sigactions.iter_mut().zip(&p.sigactions) {
        to.words = [a.handler, a.flags, a.restorer, a.mask];
    }
    let m = &p.mm;
    Ok(Draft {
        aside,
        hop,
        ops,
        copies,
        threads,
        mm_words: [
            m.start_code,
            m.end_code,
            m.start_data,
            m.end_data,
            m.start_brk,
            m.brk,
            m.start_stack,
            m.arg_start,
            m.arg_end,
            m.env_start,
            m.env_end,
        ],
        auxv: p.auxv.clone(),
        exe_fd: entry.exe_fd,
        sigactions,
        restart_info_at: p.restart_info,
        taken,
    })
}
