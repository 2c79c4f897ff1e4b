//! Fills the file store ([`slackwater_image::store`]): after a commit, each file that is privately mapped by one of the
//! generation's processes is copied once, on a thread of its own, so that nobody waits.
//!
//! Rules: what gets a name in the store is whole, synced, and a copy of the very version that was mapped (size and
//! modification time, before and after); the store never takes the last of a disk; what cannot be copied is told once and
//! harms nothing: a restart then needs the file itself.
use crate::server::log;
use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};
use slackwater_image::{
    manifest::Manifest,
    meta::{Backing, FileId, Region, SECTION_REGIONS},
    reader::Reader,
    store,
};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread::JoinHandle,
};

/// Larger files are stored only where the file system can share their blocks (reflink), in bytes: a program that maps its
/// data privately shall not see it copied.
const MAX_COPY: u64 = 1 << 30;

/// The thread that fills the store.
#[derive(Debug)]
pub(crate) struct Filler {
    generations: mpsc::Sender<PathBuf>,
    thread: JoinHandle<()>,
}

impl Filler {
    /// Starts it for the computation in `dir`.
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let (generations, queue) = mpsc::channel::<PathBuf>();
        let mut store = Store { folder: dir.join(store::FOLDER), seen: BTreeSet::new() };
        let work = move || {
            store.clean();
            for generation in queue {
                store.keep(&generation);
            }
        };
        let thread = std::thread::Builder::new().name("files".into()).spawn(work)?;
        Ok(Self { generations, thread })
    }

    /// To be told of each generation that is committed, in their order.
    pub(crate) fn sender(&self) -> mpsc::Sender<PathBuf> {
        self.generations.clone()
    }

    /// Returns when all is copied that it has been told of.
    pub(crate) fn finish(self) {
        drop(self.generations);
        drop(self.thread.join());
    }
}

struct Store {
    folder: PathBuf,
    /// Names of those that are in the store, or of which it is known that they cannot be.
    seen: BTreeSet<String>,
}

impl Store {
    /// Removes what a coordinator left that was killed at work. One that still is at work holds a lock.
    fn clean(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.to_string_lossy().ends_with(store::NEW)
                && let Ok(file) = File::open(&path)
                && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn keep(&mut self, generation: &Path) {
        // One that `--keep` has removed in the meantime is not worth a word.
        let Ok(manifest) = Manifest::read(generation) else { return };
        let bytes: u64 = manifest.members.iter().map(|m| m.bytes).sum();
        let (mut copied, mut size) = (0, 0);
        for member in &manifest.members {
            let regions = Reader::open_path(&generation.join(&member.file))
                .and_then(|reader| reader.section::<Vec<Region>>(SECTION_REGIONS));
            let Ok(regions) = regions else { continue };
            for region in regions {
                let Backing::FilePrivate(id) = region.backing else { continue };
                if id.deleted || !self.seen.insert(store::name(&id)) {
                    continue;
                }
                // The folder may be removed while it is being copied into.
                if fs::symlink_metadata(generation).is_err() {
                    return;
                }
                match self.copy(&id, bytes) {
                    Ok(true) => (copied, size) = (copied + 1, size + id.size),
                    Ok(false) => {}
                    Err(error) => log(&format!(
                        "{} is not in the file store ({error}): it must stay unchanged for a restart of {}",
                        id.path,
                        generation.display()
                    )),
                }
            }
        }
        if copied > 0 {
            let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
            log(&format!("file store: {copied} files of {} copied, {size} bytes", generation.display()));
        }
    }

    /// Copies one file; false: there was nothing to do. `reserve`: bytes that must stay free on the disk.
    fn copy(&self, id: &FileId, reserve: u64) -> io::Result<bool> {
        let folder = self.folder.parent().unwrap_or(&self.folder);
        let name = store::path(folder, id);
        if fs::symlink_metadata(&name).is_ok() || !fs::metadata(&id.path)?.is_file() {
            return Ok(false);
        }
        let from = File::open(&id.path)?;
        check(&from, id)?;
        match fs::DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let New { file: to, temporary } = New::create(&self.folder, &name)?;
        let fill = || -> io::Result<()> {
            rustix::fs::flock(&to, FlockOperation::NonBlockingLockExclusive)?;
            if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
                let disk = rustix::fs::fstatvfs(&to)?;
                if id.size > MAX_COPY {
                    return Err(io::Error::other("it is too large to be copied"));
                }
                if disk.f_bavail * disk.f_frsize < id.size + 2 * reserve {
                    return Err(Errno::NOSPC.into());
                }
                // copy_file_range(2), where it can be used.
                io::copy(&mut &from, &mut &to)?;
            }
            check(&from, id)?;
            let nanos = 1_000_000_000;
            let at = Timespec { tv_sec: id.mtime_ns.div_euclid(nanos), tv_nsec: id.mtime_ns.rem_euclid(nanos) };
            rustix::fs::futimens(&to, &Timestamps { last_access: at, last_modification: at })?;
            check(&to, id)?;
            to.sync_all()?;
            match &temporary {
                Some(temporary) => fs::rename(temporary, &name),
                None => publish(&to, &name),
            }
        };
        fill().inspect_err(|_| drop(temporary.as_ref().map(fs::remove_file))).map(|()| true)
    }
}

/// A file that is being filled.
struct New {
    file: File,
    /// Its name, where the file system knows no file without one.
    temporary: Option<PathBuf>,
}

impl New {
    /// Without a name where that can be (`O_TMPFILE` of open(2)): whoever copies the computation's folder meets nothing
    /// that goes away under his hands.
    fn create(folder: &Path, name: &Path) -> io::Result<Self> {
        match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok(Self { file: file.into(), temporary: None }),
            // EISDIR: a kernel or file system that has never heard of it.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let mut temporary = name.to_owned().into_os_string();
        temporary.push(format!(".{}{}", std::process::id(), store::NEW));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, temporary: Some(temporary.into()) })
    }
}

/// Gives a file without a name its name. That another coordinator of the folder was first is as good: the copies are equal.
fn publish(file: &File, name: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, own, CWD, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Is the open file the version that was mapped?
fn check(file: &File, id: &FileId) -> io::Result<()> {
    let now = file.metadata()?;
    let mtime = now.mtime().saturating_mul(1_000_000_000).saturating_add(now.mtime_nsec());
    if (now.len(), mtime) == (id.size, id.mtime_ns) { Ok(()) } else { Err(io::Error::other("it has changed already")) }
}
