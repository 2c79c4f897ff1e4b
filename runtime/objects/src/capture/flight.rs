//! Descriptors under way in Unix sockets (SCM_RIGHTS of unix(7)), sent and not received yet.
//!
//! A peek gives copies of them. The first, of [`find`], is kept while the processes stand: what it is has to be compared with the
//! descriptors of others, and described like any. When the queue's bytes are taken, [`name`] finds the copies of a second peek
//! among what is known then. Rules: all copies are closed before the program runs; closing one must not cost the program a lock.
use alloc::vec::Vec;
use core::mem::forget;

use slackwater_socket::Refusal;
use slackwater_socket::sys::{self, Owned};

use super::{CaptureError, Result, backlog, describe, fdinfo, keys};
use crate::model::{Kind, Lock, LockClass, Open, Table};

type Key = (i32, u64, u64);

/// Adds what is under way to the table, also what is under way in sockets that are.
pub fn find(table: &mut Table) -> Result<()> {
    let mut at = 0;
    while at < table.opens.len() {
        let fd = table.opens[at].fd;
        if let Kind::Socket(socket) = &table.opens[at].kind
            && socket.family == libc::AF_UNIX
            && anything(fd)
        {
            let mut known: Vec<Key> = keys(table).collect();
            let (mut fresh, mut failed) = (Vec::new(), None);
            let seen = slackwater_socket::under_way(fd, socket, &mut |copy| {
                let found = position(&copy, &known).map_err(|e| Refusal { reason: e.reason, passing: false })?;
                if let Some(found) = found {
                    close(copy, &known);
                    return Ok(found as u32);
                }
                match sys::fstat(copy.0)
                    .map_err(|e| CaptureError::call(fd, "fstat", e))
                    .and_then(|st| describe(copy.0, &st))
                {
                    Ok(Open { kind: Kind::Pid { .. }, .. }) => {
                        close(copy, &known);
                        return Err(Refusal {
                            reason: "a pidfd is under way in this Unix socket (SCM_RIGHTS), and not received yet"
                                .into(),
                            passing: true,
                        });
                    }
                    Ok(mut open) => {
                        own_locks(&mut open);
                        known.push((copy.0, open.dev, open.ino));
                        fresh.push(open);
                        // It is the table's now.
                        forget(copy);
                    }
                    Err(e) => {
                        close(copy, &known);
                        failed = Some(e);
                    }
                }
                Ok(0)
            });
            table.copies.extend(fresh.iter().map(|open| open.fd));
            table.opens.extend(fresh);
            if let Some(e) = failed {
                return Err(CaptureError { fd, ..e });
            }
            seen.map_err(|e| CaptureError { passing: e.passing, ..CaptureError::new(fd, e.reason) })?;
        }
        at += 1;
    }
    Ok(())
}

// A queue is not looked at without need: a peek at a datagram of no bytes is the last. Before Linux 5.8 the kernel does not tell.
fn anything(fd: i32) -> bool {
    sys::poll_now(fd, libc::POLLIN).unwrap_or(libc::POLLIN) & libc::POLLIN != 0
        && fdinfo::read(fd).map_or(true, |text| fdinfo::number(&text, "scm_fds") != Some(0))
}

/// Which of what is known a descriptor that is under way is.
pub fn name(copy: Owned, known: &[Key]) -> core::result::Result<u32, Refusal> {
    let found = position(&copy, known);
    close(copy, known);
    match found {
        Ok(Some(at)) => Ok(at as u32),
        Ok(None) => Err(Refusal {
            reason:
                "descriptors (SCM_RIGHTS) were sent through this Unix socket while the processes were being stopped"
                    .into(),
            passing: true,
        }),
        Err(e) => Err(Refusal { reason: e.reason, passing: false }),
    }
}

/// The locks of the process are not the description's: others of its descriptors have them.
pub fn own_locks(open: &mut Open) {
    open.locks.retain(|lock| lock.class != LockClass::Posix);
}

/// Closes the copies, and whatever else is the runtime's. After `survey`, when all processes' descriptors have been compared, and before the program runs.
pub fn release(table: &mut Table) {
    backlog::end(table);
    let copies = core::mem::take(&mut table.copies);
    let held: Vec<Key> = keys(table).filter(|(fd, ..)| !copies.contains(fd)).collect();
    for fd in copies {
        close(Owned(fd), &held);
    }
}

fn position(copy: &Owned, known: &[Key]) -> Result<Option<usize>> {
    let st = sys::fstat(copy.0).map_err(|e| CaptureError::call(copy.0, "fstat", e))?;
    let pid = sys::getpid();
    for (at, &(fd, dev, ino)) in known.iter().enumerate() {
        if (dev, ino) == (st.st_dev, st.st_ino)
            && sys::kcmp_file(pid, fd, copy.0).map_err(|e| CaptureError::call(copy.0, "kcmp", e))? == 0
        {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Closing any descriptor of a file drops the POSIX locks that the process has on it (fcntl(2)): they are taken again by another.
pub fn close(copy: Owned, held: &[Key]) {
    let Ok(st) = sys::fstat(copy.0) else { return };
    let locks = match st.st_mode & libc::S_IFMT {
        libc::S_IFREG => fdinfo::read(copy.0).map(|text| fdinfo::locks(&text)).unwrap_or_default(),
        _ => Vec::new(),
    };
    let number = copy.0;
    drop(copy);
    for lock in locks.iter().filter(|lock| lock.class == LockClass::Posix) {
        let same = held.iter().filter(|&&(fd, dev, ino)| fd != number && (dev, ino) == (st.st_dev, st.st_ino));
        for &(fd, ..) in same {
            if take(fd, lock).is_ok() {
                break;
            }
        }
    }
}

fn take(fd: i32, lock: &Lock) -> sys::Result<i32> {
    // struct flock: type, whence (two bytes each), padding, start, length, pid, padding.
    let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as u64 & 0xffff;
    let length = lock.end.map_or(0, |end| end - lock.start + 1);
    let mut range = [kind, lock.start, length, 0];
    sys::fcntl_with(fd, libc::F_SETLK, &mut range)
}
