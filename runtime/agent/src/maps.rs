//! What is mapped, from /proc/self/smaps (for the VmFlags; /proc/self/maps where a kernel has no smaps).
//!
//! Runs in the stopped program, before the fork: MADV_DONTFORK and MADV_WIPEONFORK memory would be missing in the child, and
//! private huge pages (hugetlb) may be taken from it at any moment after.
use crate::{
    sys::{self, Fd},
    text::{dec, hex, lines},
};
use alloc::{collections::BTreeMap, ffi::CString, format, string::String, vec::Vec};
use core::{
    ffi::CStr,
    sync::atomic::{AtomicI32, Ordering::Relaxed},
};
use slackwater_image::meta::{Backing, FileId, Range, Region, flag};

/// The mappings of this process.
#[derive(Default)]
pub struct Maps {
    /// What the image is made of.
    pub regions: Vec<Region>,
    /// The vdso's text.
    pub vdso: Range,
    /// Its data pages, all of them.
    pub vvar: Range,
}

/// VmFlags of Documentation/filesystems/proc.rst, and what they become.
const FLAGS: &[(&[u8; 2], u32)] = &[
    (b"gd", flag::GROWSDOWN),
    (b"nr", flag::NORESERVE),
    (b"dc", flag::DONTFORK),
    (b"wf", flag::WIPEONFORK),
    (b"dd", flag::DONTDUMP),
    (b"hg", flag::HUGEPAGE),
    (b"nh", flag::NOHUGEPAGE),
    (b"lo", flag::LOCKED),
    (b"lf", flag::ONFAULT),
    (b"mg", flag::MERGEABLE),
    (b"sr", flag::SEQUENTIAL),
    (b"rr", flag::RANDOM),
    (b"ht", flag::HUGETLB),
    (b"mw", flag::MAYWRITE),
    (b"sl", flag::SEALED),
];
/// Mappings of a device's own memory.
const DEVICE: &[&[u8; 2]] = &[b"io", b"pf"];

/// The first line of a mapping.
pub struct Header<'a> {
    /// Its place.
    pub range: Range,
    /// As in `rw-p`.
    pub perms: &'a [u8],
    offset: u64,
    dev: u64,
    /// The file's inode; 0: none.
    pub ino: u64,
    name: &'a [u8],
}

/// Reads one; None: it is something else.
pub fn header(line: &[u8]) -> Option<Header<'_>> {
    let mut parts = line.splitn(6, |&c| c == b' ');
    let (range, perms, offset, dev, ino) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let dash = range.iter().position(|&c| c == b'-')?;
    let colon = dev.iter().position(|&c| c == b':')?;
    // As stat(2) has it: makedev(3).
    let dev = libc::makedev(hex(&dev[..colon]) as u32, hex(&dev[colon + 1..]) as u32);
    Some(Header {
        range: Range { start: hex(&range[..dash]), end: hex(&range[dash + 1..]) },
        perms,
        offset: hex(offset),
        dev,
        ino: dec(ino),
        name: parts.next().unwrap_or(b"").trim_ascii_start(),
    })
}

/// Files that were asked for, by device, inode and name as a mapping shows it: a program may map a few of them thousands of
/// times in turn (UCX's shared memory, once more for each window).
type Known<'a> = BTreeMap<(u64, u64, &'a [u8]), FileId>;

fn file_id<'a>(h: &Header<'a>, known: &mut Known<'a>) -> FileId {
    const DELETED: &[u8] = b" (deleted)";
    if let Some(f) = known.get(&(h.dev, h.ino, h.name)) {
        return FileId { offset: h.offset, ..f.clone() };
    }
    let (name, mut deleted) = match h.name.strip_suffix(DELETED) {
        Some(n) => (n, true),
        None => (h.name, false),
    };
    let (mut size, mut mtime_ns) = (0, 0);
    let renamed = if deleted { shm_name(h) } else { None };
    deleted &= renamed.is_none();
    let name = renamed.as_deref().map_or(name, str::as_bytes);
    if !deleted {
        match CString::new(name).ok().and_then(|p| sys::stat(&p).ok()) {
            Some(st) => {
                size = st.st_size as u64;
                mtime_ns = st.st_mtime * 1_000_000_000 + st.st_mtime_nsec;
            }
            None => deleted = true,
        }
    }
    let path = String::from_utf8_lossy(name).into_owned();
    let f = FileId { path, deleted, dev: h.dev, ino: h.ino, size, mtime_ns, offset: h.offset };
    known.insert((h.dev, h.ino, h.name), f.clone());
    f
}

/// The name that shared memory goes by, which a mapping shows as deleted: sem_open(3) makes a semaphore under a name for the
/// moment, maps it, and links it to its own.
fn shm_name(h: &Header) -> Option<String> {
    const FOLDER: &CStr = c"/dev/shm";
    if !h.name.starts_with(b"/dev/shm/") || sys::stat(FOLDER).ok()?.st_dev != h.dev {
        return None;
    }
    let mut found = None;
    sys::each_in(FOLDER, |ino, name| {
        if ino == h.ino {
            found = core::str::from_utf8(name).ok().map(|name| format!("/dev/shm/{name}"));
        }
    })
    .ok()?;
    found
}

/// Is this mapping a piece of the verbs driver's user-space queue memory? It belongs to a device that will not exist after a
/// restart; the plugin that knows the device makes new ones.
fn is_verbs_device(name: &[u8]) -> bool {
    name.starts_with(b"/dev/infiniband/")
}

/// Was it attached by shmat(2)? The kernel calls the file behind a segment by its key, has it removed at once, and gives it
/// the segment's number for an inode (ipc/shm.c).
fn is_segment(h: &Header) -> bool {
    let key = h.name.strip_prefix(b"/SYSV").and_then(|n| n.strip_suffix(b" (deleted)"));
    libc::major(h.dev) == 0 && key.is_some_and(|k| k.len() == 8 && k.iter().all(u8::is_ascii_hexdigit))
}

/// What is left of a region without [start, end): the kernel merges a mapping of ours with a neighbour of its kind.
fn without(r: Region, start: u64, end: u64) -> impl Iterator<Item = Region> {
    let (s, e) = (r.range.start, r.range.end);
    let below = Range { start: s, end: e.min(start.max(s)) };
    let above = Range { start: s.max(end.min(e)), end: e };
    let whole = end <= s || start >= e;
    let (below, above) = if whole { (r.range, Range::default()) } else { (below, above) };
    [below, above].into_iter().filter(|x| x.end > x.start).map(move |range| Region { range, ..r.clone() })
}

/// Parses smaps (or maps). `ours` are ranges to be left out (the restorer's blob, scratch memory).
///
/// # Errors
/// A mapping of a device that nobody knows how to restore, by name; an AIO context's ring.
pub fn parse(text: &[u8], ours: &[(u64, u64)]) -> Result<Maps, String> {
    let mut maps = Maps::default();
    let mut known = Known::new();
    let mut current: Option<Region> = None;
    let mut device: Option<String> = None;
    let mut aio = false;
    for line in lines(text) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let has = |f: &[u8; 2]| flags.split(|&c| c == b' ').any(|x| x == f);
            if let Some(r) = &mut current {
                r.flags |= FLAGS.iter().filter(|(n, _)| has(n)).fold(0, |a, (_, b)| a | b);
                if DEVICE.iter().any(|f| has(f)) && r.flags & flag::CUTOUT == 0 {
                    device.get_or_insert_with(|| format!("{:?}", r.backing));
                }
            }
            continue;
        }
        // Header lines begin with lower-case hexadecimal and a dash; all others with a capital.
        if !line.first().is_some_and(|c| c.is_ascii_digit() || c.is_ascii_lowercase()) {
            continue;
        }
        maps.regions.extend(current.take());
        let Some(h) = header(line) else { continue };
        match h.name {
            b"[vsyscall]" => continue,
            b"[vdso]" => {
                maps.vdso = h.range;
                continue;
            }
            n if n.starts_with(b"[vvar") => {
                if maps.vvar.start == 0 {
                    maps.vvar = h.range;
                }
                maps.vvar.end = h.range.end;
                continue;
            }
            _ => {}
        }
        aio |= h.name.starts_with(b"/[aio]");
        let p = h.perms;
        let bit = |i: usize, c: u8, v: u32| if p.get(i) == Some(&c) { v } else { 0 };
        let prot = bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4);
        let shared = p.get(3) == Some(&b's');
        // All that can be said where a kernel has no smaps.
        let mut flags = if shared && prot & 2 != 0 { flag::MAYWRITE } else { 0 };
        let backing = if is_verbs_device(h.name) {
            flags |= flag::CUTOUT;
            Backing::Anon
        } else if shared {
            Backing::Shared(file_id(&h, &mut known))
        } else if h.ino != 0 {
            Backing::FilePrivate(file_id(&h, &mut known))
        } else {
            Backing::Anon
        };
        if shared && is_segment(&h) {
            flags |= flag::SYSV;
        }
        if h.name == b"[stack]" {
            flags |= flag::GROWSDOWN;
        }
        current = Some(Region { range: h.range, prot, flags, backing });
    }
    maps.regions.extend(current);
    for &(start, end) in ours {
        maps.regions = maps.regions.drain(..).flat_map(|r| without(r, start, end)).collect();
    }
    if aio {
        return Err(
            "the program has an AIO context (io_setup(2)): what it has under way cannot be seen; call io_destroy before the checkpoint"
                .into(),
        );
    }
    match device {
        Some(d) => Err(format!(
            "the program maps the memory of a device ({d}), which cannot be saved: close the device, or use a plugin that knows it"
        )),
        None => Ok(maps),
    }
}

/// From an open /proc/self/smaps or maps.
///
/// # Errors
/// As [`parse`].
pub fn read(fd: &Fd, ours: &[(u64, u64)]) -> Result<Vec<Region>, String> {
    let text = sys::read_all(fd).map_err(|e| format!("/proc/self/maps: {e}"))?;
    parse(&text, ours).map(|m| m.regions)
}

/// What a forked child has not, has as zeros, or may lose: where the pool of huge pages has none left when the program writes
/// to a private one, the kernel takes it from the child (`unmap_ref_private`, mm/hugetlb.c).
pub const FRAGILE: u32 = flag::DONTFORK | flag::WIPEONFORK | flag::HUGETLB;

/// Flags of locked memory.
const LOCKS: u32 = flag::LOCKED | flag::ONFAULT;

/// What a forked child cannot tell of the program's memory: [`FRAGILE`] ranges, those that are locked (mlock(2)), for locks are
/// not inherited, and System V segments, from which the child detaches at once.
#[derive(Default)]
pub struct Before(Vec<(Range, u32)>);

/// What mlockall(2) was told of memory to come.
static FUTURE: AtomicI32 = AtomicI32::new(0);

/// In the restored process: the kernel is told again.
pub fn lock_future() {
    let flags = FUTURE.load(Relaxed);
    if flags != 0 {
        // SAFETY: a number. A refusal (the limit is lower here) is ignored, as with what is locked already.
        _ = unsafe { sc!(mlockall, flags) };
    }
}

/// Asks. Walks all page tables, as smaps does: to be called before the program is stopped.
///
/// # Errors
/// As [`parse`].
pub fn before() -> Result<Before, String> {
    // mlockall(MCL_FUTURE) is seen by what is mapped anew.
    let fresh = sys::map_anonymous(4096, 0).map_or(0, |p| p as u64);
    let text = sys::read_file(c"/proc/self/smaps").unwrap_or_default();
    let regions = parse(&text, &[])?.regions;
    if fresh != 0 {
        let flags = regions.iter().find(|r| (r.range.start..r.range.end).contains(&fresh)).map_or(0, |r| r.flags);
        let onfault = if flags & flag::ONFAULT != 0 { libc::MCL_ONFAULT } else { 0 };
        FUTURE.store(if flags & flag::LOCKED != 0 { libc::MCL_FUTURE | onfault } else { 0 }, Relaxed);
        // SAFETY: mapped above.
        _ = unsafe { sc!(munmap, fresh, 4096) };
    }
    let regions = regions.into_iter();
    let kept = |r: &Region| if r.flags & flag::SYSV != 0 { r.flags } else { r.flags & (FRAGILE | LOCKS) };
    Ok(Before(regions.map(|r| (r.range, kept(&r))).filter(|r| r.1 != 0).collect()))
}

impl Before {
    /// What is known of a region, by itself and from before.
    pub fn flags(&self, r: &Region) -> u32 {
        // Both ascend, and there may be tens of thousands.
        let first = self.0.partition_point(|b| b.0.end <= r.range.start);
        let over = self.0[first..].iter().take_while(|b| b.0.start < r.range.end);
        over.fold(r.flags, |flags, b| flags | b.1)
    }

    /// Adds to regions that the child has looked at what it could not see.
    pub fn complete(&self, regions: &mut [Region]) {
        for r in regions {
            let unseen = if r.flags & flag::SYSV != 0 { u32::MAX } else { LOCKS };
            r.flags |= self.flags(r) & unseen;
        }
    }
}

/// In the child: does it have all of `regions` that were not `copied`? A program that registers memory all the time
/// (MADV_DONTFORK) may have made more invisible after [`before`] was asked.
///
/// # Errors
/// /proc is not there.
pub fn all_there(regions: &[Region], ours: &[(u64, u64)], copied: impl Fn(usize) -> bool) -> Result<bool, String> {
    let text = sys::read_file(c"/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
    let here = parse(&text, ours)?.regions;
    Ok(regions.iter().enumerate().all(|(i, r)| {
        let at = here.partition_point(|h| h.range.end <= r.range.start);
        copied(i) || here.get(at).is_some_and(|h| h.range.start <= r.range.start && r.range.end <= h.range.end)
    }))
}

/// In the child: completes `regions`, which were read from maps, with the flags that its own smaps shows. `copied` says
/// which were copied before the fork.
///
/// # Errors
/// A region that the child does not have, or has as zeros, though it was not copied: the program changed it in the moment
/// before it was stopped.
pub fn complete(regions: &mut [Region], here: &[Region], copied: impl Fn(usize) -> bool) -> Result<(), String> {
    for (i, r) in regions.iter_mut().enumerate() {
        // It may be part of a larger one there: a copy made for this checkpoint can merge with its neighbour.
        let at = here.partition_point(|h| h.range.end <= r.range.start);
        match here.get(at).filter(|h| h.range.start <= r.range.start && r.range.end <= h.range.end) {
            Some(h) if h.flags & flag::WIPEONFORK == 0 || copied(i) => r.flags |= h.flags,
            // The child has left it.
            None if copied(i) && r.flags & flag::SYSV != 0 => {}
            None if copied(i) => r.flags |= flag::DONTFORK | flag::MAYWRITE,
            _ => {
                return Err(format!(
                    "memory at {:#x} was made invisible to a forked child while the checkpoint began: take it again",
                    r.range.start
                ));
            }
        }
    }
    Ok(())
}

/// Shared mappings, with the flags that maps shows.
///
/// # Errors
/// /proc is not there.
pub fn shared() -> Result<Vec<Region>, String> {
    let text = sys::read_file(c"/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
    let is_shared = |l: &&[u8]| l.split(|&c| c == b' ').nth(1).is_some_and(|perms| perms.get(3) == Some(&b's'));
    let shared: Vec<u8> = lines(&text).filter(is_shared).flat_map(|l| [l, b"\n"].concat()).collect();
    let mut regions = parse(&shared, &[])?.regions;
    regions.retain(|r| matches!(r.backing, Backing::Shared(_)));
    Ok(regions)
}

/// Where the vdso and its data lie: (vdso, vvar).
///
/// # Errors
/// /proc is not there.
pub fn vdso() -> Result<(Range, Range), String> {
    let text = sys::read_file(c"/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
    let vdso_lines: Vec<u8> = lines(&text)
        .filter(|l| l.ends_with(b"]") && l.windows(2).any(|w| w == b"[v"))
        .flat_map(|l| [l, b"\n"].concat())
        .collect();
    let m = parse(&vdso_lines, &[])?;
    Ok((m.vdso, m.vvar))
}
