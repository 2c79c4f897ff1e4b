//! Files: those with a name are opened again, those without are made again from the image.
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::{Files, Id, Prepared, RebuildError, Result, os};
use crate::model::{Contents, File, Kind};

/// Status flags that open(2) takes again; O_CREAT, O_EXCL, O_TRUNC and O_NOCTTY are not kept by the kernel.
const REOPEN: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_SYNC
    | libc::O_DSYNC;

/// Deleted files and memfds, once an inode, in the root of the tree.
pub fn nameless(p: &mut Prepared<'_>) -> Result<()> {
    for (lead, _) in p.groups.iter() {
        let open = p.open(lead).clone();
        let Kind::File(file) = &open.kind else { continue };
        if !file.deleted || p.made.contains_key(&lead) {
            continue;
        }
        let key = (open.dev, open.ino);
        let inode = match p.inodes.get(&key) {
            Some(&fd) => fd,
            None => {
                // The process that saw the inode first has its bytes; any of its descriptions may.
                let saved = p.tables.iter().flat_map(|(_, t)| &t.opens).find_map(|o| match &o.kind {
                    Kind::File(f) if (o.dev, o.ino) == key => f.contents.as_ref(),
                    _ => None,
                });
                let fd = make(p, lead, file, saved)?;
                p.inodes.insert(key, fd);
                fd
            }
        };
        let flags = open.flags & REOPEN;
        let fd = os::reopen(inode, flags)
            .and_then(|fd| os::raise(fd, p.base))
            .map_err(|e| p.error(lead, format!("opening {} made from the image", show(&file.path)), e))?;
        os::seek(fd, file.offset).map_err(|e| p.error(lead, "setting the offset", e))?;
        p.made.insert(lead, fd);
    }
    Ok(())
}

// A file without a name, with these bytes.
fn make(p: &mut Prepared<'_>, id: Id, file: &File, saved: Option<&Contents>) -> Result<i32> {
    let fd = match file.memfd {
        Some(memfd) => {
            let mut flags = if memfd.seals == 1 { 0 } else { libc::MFD_ALLOW_SEALING };
            if let Some(huge) = memfd.huge {
                flags |= libc::MFD_HUGETLB | huge << 26;
            }
            os::memfd(&file.path, flags)
        }
        None => {
            let path = p.options.map(&file.path);
            let folder = Path::new(std::ffi::OsStr::from_bytes(&path)).parent().unwrap_or(Path::new("/")).to_owned();
            let in_folder =
                |folder: &Path| os::open(folder.as_os_str().as_bytes(), libc::O_TMPFILE | libc::O_RDWR, 0o600);
            in_folder(&folder).or_else(|e| {
                p.warn(
                    id,
                    format!(
                        "{} was deleted while open; its folder cannot take it ({e}), it is kept in memory",
                        show(&path)
                    ),
                );
                os::memfd(b"slackwater", 0)
            })
        }
    }
    .and_then(|fd| os::raise(fd, p.base))
    .map_err(|e| p.error(id, format!("making {} again", show(&file.path)), e))?;
    fill(fd, file, saved).map_err(|e| p.error(id, format!("writing {} from the image", show(&file.path)), e))?;
    if let Some(memfd) = file.memfd
        && memfd.seals > 1
    {
        os::fcntl(fd, 1033 /* F_ADD_SEALS */, memfd.seals).map_err(|e| p.error(id, "sealing a memfd", e))?;
    }
    Ok(fd)
}

fn fill(fd: i32, file: &File, saved: Option<&Contents>) -> io::Result<()> {
    os::truncate(fd, file.size)?;
    for (offset, bytes) in saved.iter().flat_map(|s| &s.extents) {
        os::write_at(fd, bytes, *offset)?;
    }
    // Who may not give files away restarts what it could make itself. (Before the mode: it takes set-user-ID off.)
    if os::owner(fd)? != file.owner {
        let _ = os::chown(fd, file.owner);
    }
    os::chmod(fd, file.mode)
}

/// A file that has a name.
pub fn named(p: &mut Prepared<'_>, id: Id, file: &File, flags: i32) -> Result<i32> {
    let path = p.options.map(&file.path);
    let policy = p.options.files;
    let flags = flags & REOPEN;
    let (member, number) = (p.tables[id.0].0, p.open(id).fd);
    let error = |what: String, source: Option<io::Error>| RebuildError { member, fd: number, what, source };
    let opened = os::open(&path, flags, 0).or_else(|e| match e.raw_os_error() {
        // Only a file's owner may ask for O_NOATIME.
        Some(libc::EPERM) if flags & libc::O_NOATIME != 0 => os::open(&path, flags & !libc::O_NOATIME, 0),
        _ => Err(e),
    });
    let fd = match opened {
        Ok(fd) => fd,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) && file.contents.is_some() && policy != Files::Fail => {
            parents(&path).map_err(|e| error(format!("making the folder of {}", show(&path)), Some(e)))?;
            let made = os::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600)
                .map_err(|e| error(format!("making {} again", show(&path)), Some(e)))?;
            fill(made, file, file.contents.as_ref()).map_err(|e| error(format!("writing {}", show(&path)), Some(e)))?;
            os::close(made);
            os::open(&path, flags, 0).map_err(|e| error(format!("opening {}", show(&path)), Some(e)))?
        }
        // The process will not come back: what is read of one that has ended is ESRCH, as before.
        Err(e) if gone(&e) && policy != Files::Fail && of_a_process(&path).is_some() => {
            p.warn(id, format!("{} is gone: it stands for a process that has ended", show(&path)));
            dead(&path).map_err(|e| error(format!("opening {}", show(&path)), Some(e)))?
        }
        Err(e) => {
            let hint = match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) if path.starts_with(b"/dev/infiniband/") => {
                    ": the program uses RDMA, and there is none here; restart it where `ibv_devices` lists a device"
                }
                Some(libc::ENOENT) => " (is it elsewhere? --map-path OLD=NEW)",
                _ => "",
            };
            return Err(error(format!("opening {}{hint}", show(&path)), Some(e)));
        }
    };
    let meta = std::fs::metadata(format!("/proc/self/fd/{fd}"));
    if let Ok(meta) = meta {
        use std::os::unix::fs::MetadataExt;
        let changed = meta.size() != file.size || meta.mtime() * 1_000_000_000 + meta.mtime_nsec() != file.mtime_ns;
        // /proc and /sys files have no size and a time of their own.
        if changed && meta.is_file() && policy == Files::Fail && meta.size() + file.size > 0 {
            return Err(error(format!("{} has changed since the checkpoint (--files=fail)", show(&path)), None));
        }
        if changed && policy == Files::Restore && flags & libc::O_ACCMODE != libc::O_RDONLY {
            let done = match &file.contents {
                Some(contents) => fill(fd, file, Some(contents)),
                None if meta.size() > file.size => os::truncate(fd, file.size),
                None => Ok(()),
            };
            done.map_err(|e| error(format!("restoring {}", show(&path)), Some(e)))?;
        }
        let gap = meta.size() < file.size && (meta.size() as i64) < file.offset;
        if gap && policy != Files::Fail {
            p.warn(
                id,
                format!("{} is shorter than at the checkpoint: {} bytes, then {}", show(&path), meta.size(), file.size),
            );
        }
    }
    if file.offset != 0 {
        os::seek(fd, file.offset).map_err(|e| p.error(id, format!("setting the offset in {}", show(&path)), e))?;
    }
    Ok(fd)
}

/// A directory. One in a place for temporary files that is gone by now is made again; one that had been removed while it was
/// open, for the moment.
pub fn directory(p: &mut Prepared<'_>, id: Id, path: &[u8], offset: i64, deleted: bool) -> Result<i32> {
    let mapped = p.options.map(path);
    let name = Path::new(std::ffi::OsStr::from_bytes(&mapped)).to_owned();
    let open = || os::open(&mapped, libc::O_RDONLY | libc::O_DIRECTORY, 0);
    let fd = if deleted {
        in_removed_folder(&name, open)
    } else {
        if temporary(&mapped) {
            let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&name);
        }
        open()
    };
    let fd = match fd {
        Err(e) if gone(&e) && p.options.files != Files::Fail && of_a_process(&mapped).is_some() => {
            p.warn(id, format!("{} is gone: it stands for a process that has ended", show(&mapped)));
            return dead(&mapped).map_err(|e| p.error(id, format!("opening {}", show(&mapped)), e));
        }
        other => other,
    };
    let fd = fd.map_err(|e| p.error(id, format!("opening the directory {}", show(&mapped)), e))?;
    if offset != 0 && !deleted {
        os::seek(fd, offset).map_err(|e| p.error(id, format!("setting the offset in {}", show(&mapped)), e))?;
    }
    Ok(fd)
}

/// Runs `visit` while a folder that had been removed is there, with what is missing above it: the removal of a whole tree may
/// have been under way. Then what was made is removed again.
///
/// # Errors
/// Those of `visit`, or of making the folder.
pub fn in_removed_folder<T>(folder: &Path, visit: impl Fn() -> io::Result<T>) -> io::Result<T> {
    /// Another process may take the same folder away before this one is in it.
    const TRIES: u32 = 1000;
    let mut tries = 0;
    loop {
        let missing: Vec<&Path> = folder.ancestors().take_while(|a| !a.exists()).collect();
        let made: Vec<&Path> = missing.into_iter().rev().filter(|folder| make_folder(folder).is_ok()).collect();
        let result = visit();
        for folder in made.into_iter().rev() {
            // One in which another process has made a folder is that one's to remove.
            let _ = std::fs::remove_dir(folder);
        }
        tries += 1;
        match result {
            Err(e) if gone(&e) && tries < TRIES => {}
            result => return result,
        }
    }
}

/// There is no such file, or no such process.
fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// What follows the number in /proc/NUMBER and below.
fn of_a_process(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(b"/proc/")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    (digits > 0 && (rest.len() == digits || rest[digits] == b'/')).then(|| &rest[digits..])
}

/// The same of a process that has ended since it was opened.
fn dead(path: &[u8]) -> io::Result<i32> {
    let rest = of_a_process(path).unwrap_or_default();
    os::of_the_dead(|child| {
        let base = format!("/proc/{child}").into_bytes();
        os::open(&[&base, rest].concat(), libc::O_RDONLY, 0)
            // A thread, or a descriptor, which the child has not.
            .or_else(|_| os::open(&[&base[..], b"/stat"].concat(), libc::O_RDONLY, 0))
    })
}

/// Is it in a place whose files are kept in the image because they may be gone?
fn temporary(path: &[u8]) -> bool {
    crate::capture::file::VOLATILE.iter().any(|(place, _)| path.starts_with(place))
}

// For the user alone.
fn make_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

/// Makes the folders above a path, for the user alone.
pub fn parents(path: &[u8]) -> io::Result<()> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    path.parent().map_or(Ok(()), |folder| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder))
}

/// A path for people.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_process() {
        assert_eq!(of_a_process(b"/proc/12"), Some(&b""[..]));
        assert_eq!(of_a_process(b"/proc/12/task/13/stat"), Some(&b"/task/13/stat"[..]));
        for other in [&b"/proc/meminfo"[..], b"/proc/12x", b"/proc/", b"/proc/self/stat", b"/tmp/12"] {
            assert_eq!(of_a_process(other), None);
        }
    }

    #[test]
    fn the_dead_answer_esrch() {
        for path in [&b"/proc/1/stat"[..], b"/proc/1/fdinfo/4000", b"/proc/1/task/1/stat"] {
            let fd = dead(path).expect("a file");
            let read = os::read(fd, &mut [0; 64]);
            os::close(fd);
            assert_eq!(read.expect_err("it lives").raw_os_error(), Some(libc::ESRCH), "{}", show(path));
        }
    }
}
