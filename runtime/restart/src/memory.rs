//! What lies behind mappings: files, and memory that processes share.
//!
//! Shared memory is one object for all who map it, so it is made once, in init, and inherited; private mappings of files are
//! opened in each process. A private mapping needs the very file that was mapped, for pages that the program had not touched
//! are not in the image: the file at its path, or, if that is another one by now, the copy in the file store. Deleted files
//! are not needed at all (the image has all of their pages).
use crate::Options;
use anyhow::{Context, Result, anyhow, bail};
use slackwater_image::meta::{Backing, FileId, Region, WHOLE_SHARED, flag};
use slackwater_image::store;
use slackwater_objects::rebuild::Prepared;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Shared memory objects by old device and inode.
#[derive(Debug, Default)]
pub struct SharedObjects {
    made: BTreeMap<(u64, u64), OwnedFd>,
    /// Open for reading alone, for those who had it so.
    read_only: BTreeMap<(u64, u64), OwnedFd>,
    /// System V segments: size in bytes by number.
    segments: BTreeMap<i32, u64>,
}

/// What one object is, over all regions that map it.
struct Wanted<'a> {
    id: &'a FileId,
    end: u64,
    writes: bool,
    /// Somebody may not write to it, nor ask for it by mprotect(2); all may not.
    readers: bool,
    only_readers: bool,
    huge: bool,
    /// Parts whose content is in the image.
    saved: Vec<(u64, u64)>,
}

impl Wanted<'_> {
    /// Is all of the file in the image, so that it can be made again?
    fn is_whole(&self) -> bool {
        let mut saved = self.saved.clone();
        saved.sort_unstable();
        let reach = saved.iter().fold(0, |reach, &(start, end)| if start <= reach { reach.max(end) } else { reach });
        self.id.size <= WHOLE_SHARED && reach >= self.id.size
    }
}

fn wanted<'a>(all: impl Iterator<Item = &'a Region>) -> BTreeMap<(u64, u64), Wanted<'a>> {
    let mut objects: BTreeMap<(u64, u64), Wanted<'a>> = BTreeMap::new();
    for r in all {
        let Backing::Shared(id) = &r.backing else { continue };
        let o = objects.entry((id.dev, id.ino)).or_insert(Wanted {
            id,
            end: 0,
            writes: false,
            readers: false,
            only_readers: true,
            huge: false,
            saved: Vec::new(),
        });
        let end = id.offset + (r.range.end - r.range.start);
        o.end = o.end.max(end).max(id.size);
        if r.flags & flag::MAYWRITE != 0 {
            o.saved.push((id.offset, end));
        }
        o.readers |= r.flags & flag::MAYWRITE == 0;
        o.only_readers &= r.flags & flag::MAYWRITE == 0;
        o.writes |= r.prot & 2 != 0;
        o.huge |= r.flags & flag::HUGETLB != 0;
    }
    objects
}

/// The System V segment behind a region.
pub fn segment(r: &Region) -> Option<i32> {
    match &r.backing {
        Backing::Shared(id) if r.flags & flag::SYSV != 0 => i32::try_from(id.ino).ok(),
        _ => None,
    }
}

/// System V segments in huge pages.
pub fn huge_segments<'a>(regions: impl Iterator<Item = &'a Region>) -> Vec<i32> {
    regions.filter(|r| r.flags & flag::HUGETLB != 0).filter_map(segment).collect()
}

/// Is this a name in memory (tmpfs), which does not outlive the machine?
fn is_volatile(path: &str) -> bool {
    path.starts_with("/dev/shm/")
}

impl SharedObjects {
    /// Before descriptors are prepared: names in /dev/shm. Each is made anew and takes the place of the old one, for a file
    /// that is there may be in use by another copy of this very computation.
    /// They get the owner that the old one has, or, where that is gone, the user of the first process in `owners`.
    pub fn names<'a>(regions: impl Iterator<Item = &'a Region>, owners: &Owners, options: &Options) -> Result<Self> {
        let mut made = BTreeMap::new();
        for (key, o) in wanted(regions) {
            if o.id.deleted || !is_volatile(&o.id.path) {
                continue;
            }
            let path = options.map(&o.id.path);
            let file = replace(&path, o.id.size, owners.0.get(&key).copied())
                .with_context(|| format!("making shared memory {} again", path.display()))?;
            made.insert(key, file.into());
        }
        Ok(Self { made, ..Self::default() })
    }

    /// After descriptors are prepared: everything else that is shared.
    pub fn rest<'a>(
        &mut self,
        regions: impl Iterator<Item = &'a Region>,
        prepared: &Prepared<'_>,
        segments: &BTreeMap<i32, u64>,
        options: &Options,
    ) -> Result<()> {
        self.segments.clone_from(segments);
        // Those are attached, not mapped.
        let mapped = regions.filter(|r| segment(r).is_none_or(|id| !segments.contains_key(&id)));
        for (key, o) in wanted(mapped) {
            if self.made.contains_key(&key) {
                continue;
            }
            let fd = match prepared.inode(key.0, key.1) {
                Some(fd) => duplicate(fd)?,
                None if o.id.deleted => {
                    memory(&o).with_context(|| format!("making shared memory {} again", o.id.path))?
                }
                None => {
                    let file = named(&o, !o.only_readers, options)?;
                    if o.readers && !o.only_readers {
                        self.read_only.insert(key, named(&o, false, options)?);
                    }
                    file
                }
            };
            self.made.insert(key, fd);
        }
        Ok(())
    }

    /// System V segments, which are attached: size in bytes by number.
    pub const fn segments(&self) -> &BTreeMap<i32, u64> {
        &self.segments
    }

    /// The object behind a region; none behind what is attached.
    pub fn of(&self, region: &Region) -> Option<RawFd> {
        let Backing::Shared(id) = &region.backing else { return None };
        let key = (id.dev, id.ino);
        let read_only = self.read_only.get(&key).filter(|_| region.flags & flag::MAYWRITE == 0);
        read_only.or_else(|| self.made.get(&key)).map(AsRawFd::as_raw_fd)
    }
}

#[allow(unsafe_code)] // a number is borrowed
fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as `Prepared` lives, and is borrowed for one call.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?)
}

/// Who is likely to own a shared object: user and group of the first process that maps it, by old device and inode.
#[derive(Debug, Default)]
pub struct Owners(BTreeMap<(u64, u64), (u32, u32)>);

impl Owners {
    /// A process and what it maps; parents come first.
    pub fn add<'a>(&mut self, user: (u32, u32), regions: impl Iterator<Item = &'a Region>) {
        for region in regions {
            if let Backing::Shared(id) = &region.backing {
                self.0.entry((id.dev, id.ino)).or_insert(user);
            }
        }
    }
}

fn replace(path: &Path, size: u64, owner: Option<(u32, u32)>) -> std::io::Result<File> {
    let temporary = path.with_file_name(format!(".slackwater-{}-{size}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let old = fs::metadata(path).ok();
    let mode = old.as_ref().map_or(0o600, |m| m.mode() & 0o777);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&temporary)?;
    file.set_len(size)?;
    if let Some((user, group)) = old.map(|m| (m.uid(), m.gid())).or(owner) {
        // Without privilege there is but one owner.
        let _ = std::os::unix::fs::fchown(&file, Some(user), Some(group));
    }
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok(file)
}

/// Memory without a name: shared anonymous memory, memfds that no descriptor holds, System V segments.
#[allow(unsafe_code)] // memfd_create(2), mmap(2)
fn memory(o: &Wanted<'_>) -> std::io::Result<OwnedFd> {
    let name = std::ffi::CString::new(o.id.path.rsplit(['/', ':']).next().unwrap_or("shared")).unwrap_or_default();
    let flags = libc::MFD_CLOEXEC | if o.huge { libc::MFD_HUGETLB } else { 0 };
    // SAFETY: a new descriptor, which nobody else owns.
    let fd = unsafe {
        let fd = crate::sys::check(libc::memfd_create(name.as_ptr(), flags))?;
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    let file = File::from(fd);
    file.set_len(o.end)?;
    Ok(file.into())
}

/// A file (or device) that several may map.
fn named(o: &Wanted<'_>, write: bool, options: &Options) -> Result<OwnedFd> {
    let path = options.map(&o.id.path);
    // For writing if at all possible, where mprotect(2) may ask for it later.
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOCTTY).open(&path);
    let file = open(write)
        .or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound if o.is_whole() => again(&path, o.id.size),
            _ if o.writes => Err(e),
            _ => open(false),
        })
        .with_context(|| format!("{} was mapped as shared memory, and cannot be opened now; put it back, or name another with --map-path OLD=NEW", path.display()))?;
    let meta = file.metadata()?;
    if meta.is_file() && meta.len() < o.id.size {
        bail!(
            "{} was mapped as shared memory with {} bytes, and has {} now; put it back",
            path.display(),
            o.id.size,
            meta.len()
        );
    }
    Ok(file.into())
}

/// A small file whose directory went away with its session (MPI's launchers keep such): its content comes from the image.
fn again(path: &Path, size: u64) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(size)?;
    Ok(file)
}

/// Files that are not what they were, and are taken from the file store instead.
#[derive(Debug, Default)]
pub struct Stored {
    /// By the name in the store.
    paths: BTreeMap<String, PathBuf>,
    /// For each of them one line for the user.
    pub warnings: Vec<String>,
}

impl Stored {
    /// Looks at all files behind private mappings, before any process is made.
    ///
    /// # Errors
    /// One is not what it was, and the store does not have it.
    pub fn find<'a>(regions: impl Iterator<Item = &'a Region>, options: &Options) -> Result<Self> {
        let mut stored = Self::default();
        let mut seen = BTreeSet::new();
        for r in regions {
            let Backing::FilePrivate(id) = &r.backing else { continue };
            if id.deleted || !seen.insert(store::name(id)) {
                continue;
            }
            let Err(changed) = unchanged(id, options) else { continue };
            let copy = store::path(&std::path::absolute(&options.dir)?, id);
            if same(&copy, id).is_err() {
                return Err(changed);
            }
            stored.warnings.push(format!(
                "{} is not the file that it was at the checkpoint: its copy {} is used",
                id.path,
                copy.display()
            ));
            stored.paths.insert(store::name(id), copy);
        }
        Ok(stored)
    }

    fn open(&self, id: &FileId, options: &Options) -> Result<OwnedFd> {
        match self.paths.get(&store::name(id)) {
            Some(copy) => same(copy, id),
            None => unchanged(id, options),
        }
    }
}

/// Opens the files behind private mappings. One descriptor per file; for each region (by index) the one to map.
pub fn private_files(
    regions: &[Region],
    stored: &Stored,
    options: &Options,
) -> Result<(Vec<Option<RawFd>>, Vec<OwnedFd>)> {
    let mut open: BTreeMap<&str, OwnedFd> = BTreeMap::new();
    let mut files = Vec::with_capacity(regions.len());
    for r in regions {
        let Backing::FilePrivate(id) = &r.backing else {
            files.push(None);
            continue;
        };
        if id.deleted {
            files.push(None);
            continue;
        }
        if !open.contains_key(id.path.as_str()) {
            open.insert(&id.path, stored.open(id, options)?);
        }
        files.push(open.get(id.path.as_str()).map(AsRawFd::as_raw_fd));
    }
    Ok((files, open.into_values().collect()))
}

/// Opens a file that must be what it was.
fn unchanged(id: &FileId, options: &Options) -> Result<OwnedFd> {
    same(&options.map(&id.path), id)
}

/// Opens `path`, which must be the file that `id` describes.
fn same(path: &Path, id: &FileId) -> Result<OwnedFd> {
    let advice = "the program's memory holds only those of its pages that it had changed: put the old file back (same content and modification time), or name its copy with --map-path OLD=NEW";
    let file = File::open(path).map_err(|e| {
        anyhow!("{} was mapped at the checkpoint, and cannot be opened now: {e}; {advice}", path.display())
    })?;
    let meta = file.metadata().with_context(|| format!("{}", path.display()))?;
    let mtime = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    if !meta.is_file() {
        return Ok(file.into());
    }
    if meta.len() != id.size {
        bail!(
            "{} has changed since the checkpoint: it had {} bytes and has {}; {advice}",
            path.display(),
            id.size,
            meta.len()
        );
    }
    if mtime != id.mtime_ns {
        bail!(
            "{} has changed since the checkpoint: it was modified at {} ns since the epoch, and now at {mtime}; {advice}",
            path.display(),
            id.mtime_ns
        );
    }
    Ok(file.into())
}
