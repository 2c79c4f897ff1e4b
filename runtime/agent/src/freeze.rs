//! Freezing memory: what is shared is copied, then a fork keeps the rest as it is at this instant (copy-on-write), and the
//! child writes the image while the program goes on.
//!
//! Rules: from [`Scratch::enter`] on, the arena must not change (its pages are part of the image), so every allocation
//! between here and the end of the image is scratch memory, and nothing that lies there may be seen by the restored
//! process: it returns from `with_context` in the caller, below whose frame all of this happens.
use crate::{
    arch,
    arena::Scratch,
    conn::{self, move_high},
    maps,
    pages::{Kind, PAGE, Pagemap},
    save, shared,
    sys::{self, Errno, Fd},
};
use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::ffi::CStr;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use slackwater_image::meta::{self, Backing, Region, WHOLE_SHARED, flag};
use slackwater_protocol::message::SharedRange;

/// What goes into the image besides memory; in the arena.
pub struct Facts {
    /// The process.
    pub process: meta::Process,
    /// Its threads: leader first, checkpoint thread last.
    pub threads: Vec<meta::Thread>,
    /// Named sections: objects, plugins.
    pub sections: Vec<(String, Vec<u8>)>,
    /// Parts of shared memory that other processes save.
    pub elsewhere: Vec<SharedRange>,
    /// Ranges left out by plugins.
    pub cutouts: Vec<(u64, u64)>,
    /// What is to be known of memory that a forked child cannot tell, as of just before the stop.
    pub before: maps::Before,
    /// Open for writing, empty.
    pub image: Fd,
    /// Codec number of the image format; see [`save::write`].
    pub codec: u8,
    /// Write now instead of forking.
    pub sync: bool,
    /// Tells the coordinator how the writing ended.
    pub report: fn(Written) -> Result<(), String>,
}

/// (image bytes, bytes of memory that it stands for), or why it could not be written.
pub type Written = Result<(u64, u64), String>;

/// How the writing ended; shared with the child.
#[repr(C)]
pub struct Outcome {
    /// 0 not yet, 1 well, 2 with `text`.
    pub state: AtomicU32,
    /// Length of the image.
    pub bytes: AtomicU64,
    /// Bytes of memory it stands for.
    pub memory: AtomicU64,
    text_len: AtomicU32,
    text: [u8; 1024],
    /// 1 when the child has told the coordinator.
    told: AtomicU32,
    /// 1 when the child has a descriptor table of its own; 2 when it does not see all of the memory, and ends.
    ready: AtomicU32,
    /// 1 when all processes have gone on: see [`YIELD_NS`].
    go: AtomicU32,
}

/// For how long the child leaves the processor to processes that stand still and wait for others to be frozen: it begins
/// to write when all have gone on, or after so many nanoseconds (one that was stopped by ^Z is told nothing).
const YIELD_NS: u64 = 250_000_000;

impl Outcome {
    fn report(&mut self, result: Written) {
        match result {
            Ok((bytes, memory)) => {
                self.bytes.store(bytes, Relaxed);
                self.memory.store(memory, Relaxed);
                self.state.store(1, Release);
            }
            Err(e) => {
                let n = e.len().min(self.text.len());
                self.text[..n].copy_from_slice(&e.as_bytes()[..n]);
                self.text_len.store(n as u32, Relaxed);
                self.state.store(2, Release);
            }
        }
    }

    fn result(&self) -> Written {
        match self.state.load(Acquire) {
            1 => Ok((self.bytes.load(Relaxed), self.memory.load(Relaxed))),
            2 => {
                let text = &self.text[..self.text_len.load(Relaxed) as usize];
                Err(String::from_utf8_lossy(text).into_owned())
            }
            _ => Err("the process that wrote the image ended early: is memory short?".to_string()),
        }
    }
}

/// The child that writes.
struct Child {
    pid: i32,
    pidfd: Fd,
}

/// How memory was frozen.
enum Frozen {
    /// The image is written.
    Written,
    /// A child has it.
    Forked(Child),
}

/// An image that is being written.
pub struct Writing {
    child: Option<Child>,
    outcome: *mut Outcome,
    /// Why it was not forked; empty: it was.
    pub note: String,
}

impl Writing {
    /// Readable when the child has ended; None: it is done already.
    pub fn poll_fd(&self) -> Option<i32> {
        self.child.as_ref().map(|c| c.pidfd.0)
    }

    /// What is still to be told to the coordinator: (image bytes, memory bytes), or why the image could not be written.
    /// None: the child has told it. Waits for the child.
    pub fn finish(self) -> Option<Written> {
        let mut status = 0i32;
        if let Some(c) = &self.child {
            const WALL: usize = 0x4000_0000;
            // SAFETY: status is an int.
            while unsafe { sc!(wait4, c.pid, &raw mut status, WALL, 0) } == Err(Errno::EINTR) {}
        }
        // SAFETY: mapped in `freeze`, shared with the child, which has ended.
        let o = unsafe { &*self.outcome };
        let result = o.result();
        let told = o.told.load(Acquire) == 1;
        // SAFETY: ours.
        _ = unsafe { sc!(munmap, self.outcome, size_of::<Outcome>()) };
        (!told).then_some(result)
    }

    /// All processes have gone on: the child may take the processor.
    pub fn go(&self) {
        // SAFETY: mapped in `freeze`, until `finish`.
        let o = unsafe { &*self.outcome };
        o.go.store(1, Release);
        sys::futex_wake_shared(&o.go);
    }

    /// Ends the child; the image is not wanted any more.
    pub fn cancel(self) {
        if let Some(c) = &self.child {
            // SAFETY: our own child, not yet waited for.
            _ = unsafe { sc!(kill, c.pid, libc::SIGKILL) };
        }
        _ = self.finish();
    }
}

/// Views of the calling process's own memory.
pub struct Files {
    /// /proc/self/mem.
    pub memory: Fd,
    /// /proc/self/pagemap.
    pub pagemap: Fd,
    /// /proc/self/smaps, or maps where a walk of all page tables would take too long, or there is no smaps.
    pub maps: Fd,
}

impl Files {
    fn open(flags: bool) -> Result<Self, String> {
        let open =
            |path: &CStr| sys::open(path, libc::O_RDONLY, 0).map_err(|e| format!("{}: {e}", path.to_string_lossy()));
        let maps = match flags {
            true => open(c"/proc/self/smaps").or_else(|_| open(c"/proc/self/maps"))?,
            false => open(c"/proc/self/maps")?,
        };
        Ok(Self { memory: open(c"/proc/self/mem")?, pagemap: open(c"/proc/self/pagemap")?, maps })
    }
}

/// Content of a region as it was at the snapshot, where a forked child would see it change or not at all.
pub struct Copy {
    /// Index of the region.
    pub region: usize,
    /// (address in the program, address of the copy, length), ascending.
    pub runs: Vec<(u64, u64, u64)>,
}

/// Must this region be copied before the program goes on? (Whether a shared one can be written to is known only later.)
fn needs_copy(r: &Region, before: &maps::Before) -> bool {
    r.flags & flag::CUTOUT == 0 && (matches!(r.backing, Backing::Shared(_)) || before.flags(r) & maps::FRAGILE != 0)
}

/// Runs of pages of a shared mapping that are in memory (mincore(2): the object's pages, whoever touched them).
fn resident((start, end): (u64, u64)) -> Vec<(u64, u64)> {
    const STEP: u64 = 1 << 30;
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut at = start;
    let mut bits: Vec<u8> = vec![0; ((end - start).min(STEP) / PAGE) as usize];
    while at < end {
        let len = (end - at).min(STEP);
        // SAFETY: bits has a byte for each page.
        let ok = unsafe { sc!(mincore, at, len, bits.as_mut_ptr()) }.is_ok();
        for i in 0..len / PAGE {
            if !ok || bits[i as usize] & 1 != 0 {
                let page = at + i * PAGE;
                match out.last_mut() {
                    Some(l) if l.1 == page => l.1 += PAGE,
                    _ => out.push((page, page + PAGE)),
                }
            }
        }
        at += len;
    }
    out
}

fn copy_region(
    region: usize,
    r: &Region,
    huge: bool,
    files: &Files,
    elsewhere: &[SharedRange],
) -> Result<Copy, String> {
    let runs = match &r.backing {
        // A file that a restart may have to make again needs all of its pages; of other memory, those that are there.
        Backing::Shared(f) if !f.deleted && f.size <= WHOLE_SHARED && !f.path.starts_with("/dev/") => {
            // Beyond its end there are none, whatever is mapped.
            let end = r.range.start + f.size.saturating_sub(f.offset).next_multiple_of(PAGE);
            let clipped = shared::without(r, elsewhere).into_iter().map(|(s, e)| (s, e.min(end)));
            clipped.filter(|(s, e)| s < e).collect()
        }
        // Of huge pages mincore(2) tells only those that this process has touched (mm/mincore.c), and not what others have.
        Backing::Shared(_) if huge => shared::without(r, elsewhere),
        Backing::Shared(_) => shared::without(r, elsewhere).into_iter().flat_map(resident).collect(),
        backing => {
            let kind = if *backing == Backing::Anon { Kind::Anon } else { Kind::FilePrivate };
            let mut runs = Vec::new();
            Pagemap::new(&files.pagemap).runs::<String>(r.range.start, r.range.end, kind, |s, e| {
                runs.push((s, e));
                Ok(())
            })?;
            runs
        }
    };
    let mut copy = Copy { region, runs: Vec::new() };
    for (start, end) in runs {
        let len = (end - start) as usize;
        let to = sys::map_anonymous(len, libc::MAP_NORESERVE)
            .map_err(|e| format!("{len} bytes for a copy of shared memory at {start:#x}: {e}; try --sync"))?;
        let mut done = 0;
        while done < len {
            // SAFETY: `to` is writable for len.
            match unsafe { sc!(pread64, files.memory.0, to.add(done), len - done, start as usize + done) } {
                Ok(n) if n > 0 => done += n,
                // Beyond the end of the file, or without access: there is no content.
                _ => done = (done + 1).next_multiple_of(PAGE as usize),
            }
        }
        copy.runs.push((start, to as u64, len as u64));
    }
    Ok(copy)
}

fn unmap_copies(copies: &[Copy]) {
    for &(_, at, len) in copies.iter().flat_map(|c| &c.runs) {
        // SAFETY: ours.
        _ = unsafe { sc!(munmap, at, len) };
    }
}

/// None: the child does not see all memory that it should write, for more is fragile than `before` says.
fn freeze_inner(
    facts: &Facts,
    before: &maps::Before,
    scratch: (u64, u64),
    outcome: *mut Outcome,
) -> Result<Option<Frozen>, String> {
    let ours = [scratch, (outcome as u64, outcome as u64 + PAGE)];
    let files = Files::open(facts.sync)?;
    let mut regions = maps::read(&files.maps, &ours)?;
    let mut copies = Vec::new();
    let mut elsewhere = facts.elsewhere.clone();
    for (i, r) in regions.iter().enumerate().filter(|(_, r)| needs_copy(r, before)) {
        let huge = before.flags(r) & flag::HUGETLB != 0;
        copies.push(copy_region(i, r, huge, &files, &elsewhere)?);
        // What this process maps twice is saved once as well.
        let saved = shared::range(r).filter(|s| s.write && !elsewhere.contains(s));
        elsewhere.extend(saved);
    }
    if facts.sync {
        let result = save::write(facts, &regions, &copies, &files);
        unmap_copies(&copies);
        // SAFETY: mapped by the caller.
        unsafe { (*outcome).report(result) };
        return Ok(Some(Frozen::Written));
    }
    drop(files);
    // SAFETY: the child uses raw system calls, scratch memory and what was captured.
    let pid = unsafe { arch::fork_sharing_files() };
    if pid == 0 {
        // SAFETY: shared with the parent.
        let o = unsafe { &mut *outcome };
        let copied = |i| copies.binary_search_by_key(&i, |c: &Copy| c.region).is_ok();
        // The program has not gone on yet: from now on what it closes is closed, and what it detaches is detached (a System V
        // segment's number of attachments is to be seen; each was copied).
        for (_, r) in regions.iter().enumerate().filter(|(i, r)| r.flags & flag::SYSV != 0 && copied(*i)) {
            // SAFETY: nothing here looks at the program's memory there any more.
            _ = unsafe { sc!(munmap, r.range.start, r.range.end - r.range.start) };
        }
        let own = sys::own_table(&mut [facts.image.0, conn::descriptor_in_child()]);
        let all = maps::all_there(&regions, &ours, copied).unwrap_or(true);
        o.ready.store(if all { 1 } else { 2 }, Release);
        sys::futex_wake_shared(&o.ready);
        if !all {
            loop {
                // SAFETY: ends this process alone.
                _ = unsafe { sc!(exit_group, 0) };
            }
        }
        let until = sys::now_ns() + YIELD_NS;
        while o.go.load(Acquire) == 0 && sys::now_ns() < until {
            sys::futex_wait_shared(&o.go, 0, until.saturating_sub(sys::now_ns()));
        }
        let own = own.map_err(|e| format!("a descriptor table of its own for the process that writes the image: {e}"));
        o.report(own.and_then(|()| Files::open(true)).map(ManuallyDrop::new).and_then(|f| {
            let here = maps::read(&f.maps, &ours)?;
            maps::complete(&mut regions, &here, copied)?;
            before.complete(&mut regions);
            save::write(facts, &regions, &copies, &f)
        }));
        // Our parent may have ended meanwhile (a short-lived process): this process tells the coordinator itself, on
        // the connection that it shares.
        if (facts.report)(o.result()).is_ok() {
            o.told.store(1, Release);
        }
        loop {
            // SAFETY: ends this process alone.
            _ = unsafe { sc!(exit_group, 0) };
        }
    }
    unmap_copies(&copies);
    if pid < 0 {
        return Err(format!("fork for the snapshot failed with errno {}: memory is short; try --sync", -pid));
    }
    // SAFETY: our child.
    let pidfd = match unsafe { sc!(pidfd_open, pid, 0) }.and_then(|fd| move_high(fd as i32)) {
        Ok(fd) => Fd(fd),
        Err(e) => {
            // SAFETY: our child.
            _ = unsafe { sc!(kill, pid, libc::SIGKILL) };
            return Err(format!("pidfd_open: {e} (Linux 5.3 or later is needed)"));
        }
    };
    // SAFETY: shared with the child.
    let o = unsafe { &*outcome };
    while o.ready.load(Acquire) == 0 && !sys::readable(pidfd.0, 0) {
        sys::futex_wait_shared(&o.ready, 0, 10_000_000);
    }
    if o.ready.swap(0, AcqRel) == 2 {
        // SAFETY: our child, which ends at once.
        while unsafe {
            sc!(wait4, pid, 0, 0x4000_0000 /* __WALL */, 0)
        } == Err(Errno::EINTR)
        {}
        return Ok(None);
    }
    Ok(Some(Frozen::Forked(Child { pid: pid as i32, pidfd })))
}

/// Freezes memory. Call it through `with_context`, so that the image knows where the checkpoint thread goes on.
///
/// # Errors
/// Nothing has been frozen; the program can go on.
pub fn freeze(facts: &Facts) -> Result<Writing, String> {
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping of a page.
    let outcome = unsafe { sc!(mmap, 0, PAGE, libc::PROT_READ | libc::PROT_WRITE, shared, -1i64 as usize, 0) }
        .map_err(|e| format!("mmap: {e}"))? as *mut Outcome;
    let scratch = Scratch::reserve().map_err(|e| format!("mmap: {e}"))?;
    let attempt = |before: &maps::Before| {
        scratch.enter();
        let result = freeze_inner(facts, before, scratch.range(), outcome);
        Scratch::leave();
        result
    };
    let mut result = attempt(&facts.before);
    if matches!(result, Ok(None)) {
        // Now that the program stands still the answer lasts.
        result = maps::before().and_then(|before| attempt(&before));
    }
    let result = result.and_then(|frozen| {
        frozen.ok_or_else(|| "a forked child does not see all of the memory: try --sync".to_string())
    });
    // From here on the arena again; what lies in scratch memory is copied out and forgotten, not dropped.
    let result = match result {
        Ok(frozen) => {
            let child = match frozen {
                Frozen::Written => None,
                Frozen::Forked(child) => Some(child),
            };
            let note = if facts.sync { "written while stopped" } else { "" }.to_string();
            Ok(Writing { child, outcome, note })
        }
        Err(e) => {
            let copy = e.as_str().to_string();
            core::mem::forget(e);
            // SAFETY: ours.
            _ = unsafe { sc!(munmap, outcome, PAGE) };
            Err(copy)
        }
    };
    drop(scratch);
    result
}
