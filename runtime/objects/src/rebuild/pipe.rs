//! Pipes and FIFOs: once an inode, filled with what was unread before anybody can read.
//!
//! A pipe of which the computation holds one side only, though the other was open somewhere, leads outside: as a standard
//! descriptor it becomes the restart's own; else it comes back broken, after the unread bytes (EOF, or EPIPE).
use std::collections::BTreeMap;
use std::io;

use super::{Id, Prepared, Result, os, outside};
use crate::model::{Kind, Pipe};

#[derive(Default)]
struct Ends {
    groups: Vec<Id>,
    unread: Vec<Vec<u8>>,
    reader: bool,
    writer: bool,
    hangup: bool,
}

/// All pipes and FIFOs of the computation.
pub fn all(p: &mut Prepared<'_>) -> Result<()> {
    let mut inodes: BTreeMap<(u64, u64), Ends> = BTreeMap::new();
    for (lead, _) in p.groups.iter() {
        let open = p.open(lead);
        let Kind::Pipe(_) = &open.kind else { continue };
        let ends = inodes.entry((open.dev, open.ino)).or_default();
        let access = open.flags & libc::O_ACCMODE;
        ends.reader |= access != libc::O_WRONLY;
        ends.writer |= access != libc::O_RDONLY;
        ends.groups.push(lead);
    }
    // Bytes and hang-up may stand in any process's view.
    for open in p.tables.iter().flat_map(|(_, t)| &t.opens) {
        if let Kind::Pipe(pipe) = &open.kind
            && let Some(ends) = inodes.get_mut(&(open.dev, open.ino))
        {
            ends.hangup |= pipe.hangup;
            if ends.unread.is_empty() {
                ends.unread = pipe.unread.clone();
            }
        }
    }
    for ends in inodes.into_values() {
        let lead = ends.groups[0];
        let Kind::Pipe(pipe) = p.open(lead).kind.clone() else { continue };
        // A FIFO that waits for its first writer must not see one come and go.
        if let Some(path) = &pipe.path
            && ends.unread.is_empty()
            && !ends.writer
            && !ends.hangup
        {
            waiting(p, &ends, path, pipe.capacity).map_err(|e| p.error(lead, "opening a FIFO", e))?;
            continue;
        }
        let whole = ends.reader && ends.writer;
        let leads_out = !whole && !ends.hangup && pipe.path.is_none();
        if leads_out {
            for &group in &ends.groups {
                if outside::follows(p, group).is_some() {
                    p.leads_out.insert(group);
                }
            }
        }
        make(p, &ends, &pipe).map_err(|e| p.error(lead, "making a pipe", e))?;
    }
    Ok(())
}

fn waiting(p: &mut Prepared<'_>, ends: &Ends, path: &[u8], capacity: u32) -> io::Result<()> {
    let path = p.options.map(path);
    for &group in &ends.groups {
        // The installer takes O_NONBLOCK off again.
        let open = || os::open(&path, libc::O_RDONLY | libc::O_NONBLOCK, 0);
        let fd = match open() {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                super::file::parents(&path)?;
                os::make_fifo(&path, 0o600)?;
                open()?
            }
            other => other?,
        };
        let fd = os::raise(fd, p.base)?;
        let _ = os::fcntl(fd, libc::F_SETPIPE_SZ, capacity as i32);
        p.made.insert(group, fd);
    }
    Ok(())
}

fn make(p: &mut Prepared<'_>, ends: &Ends, pipe: &Pipe) -> io::Result<()> {
    let base = p.base;
    let (reader, writer) = match &pipe.path {
        None => {
            let (reader, writer) = os::pipe()?;
            (os::raise(reader, base)?, os::raise(writer, base)?)
        }
        Some(path) => {
            let path = p.options.map(path);
            let both = match os::open(&path, libc::O_RDWR | libc::O_NONBLOCK, 0) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    super::file::parents(&path)?;
                    os::make_fifo(&path, 0o600)?;
                    os::open(&path, libc::O_RDWR | libc::O_NONBLOCK, 0)?
                }
                other => other?,
            };
            let both = os::raise(both, base)?;
            (both, os::copy(both, base)?)
        }
    };
    if os::fcntl(writer, libc::F_SETPIPE_SZ, pipe.capacity as i32).is_err() {
        let lead = ends.groups[0];
        p.warn(lead, format!("a pipe of {} bytes is not permitted here (/proc/sys/fs/pipe-max-size)", pipe.capacity));
    }
    let mut queued = 0i32;
    os::ioctl_with(reader, libc::FIONREAD, &mut queued)?;
    // A FIFO that a process outside still holds may have kept its bytes.
    if queued == 0 {
        let packets = ends.groups.iter().any(|&g| {
            let flags = p.open(g).flags;
            flags & libc::O_DIRECT != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
        });
        if packets {
            os::fcntl(writer, libc::F_SETFL, libc::O_DIRECT | libc::O_NONBLOCK)?;
        }
        for part in &ends.unread {
            let mut rest = part.as_slice();
            while !rest.is_empty() {
                let n = os::write(writer, rest)?;
                rest = &rest[n..];
            }
        }
    }
    // The two ends themselves are used once each; further descriptions are opened. A blocking open of one side waits for
    // the other: both are open here.
    let mut ends_left = if pipe.path.is_none() { [Some(reader), Some(writer)] } else { [None, None] };
    for &group in &ends.groups {
        let flags = p.open(group).flags & (libc::O_ACCMODE | libc::O_NONBLOCK);
        let end = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => ends_left[0].take(),
            libc::O_WRONLY => ends_left[1].take(),
            _ => None,
        };
        let fd = match (end, &pipe.path) {
            (Some(end), _) => os::copy(end, base)?,
            (None, Some(path)) => os::raise(os::open(&p.options.map(path), flags, 0)?, base)?,
            (None, None) => os::raise(os::reopen(reader, flags)?, base)?,
        };
        p.made.insert(group, fd);
    }
    os::close(reader);
    os::close(writer);
    Ok(())
}
