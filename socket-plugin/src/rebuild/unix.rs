//! Unix stream and seqpacket sockets.
//!
//! Pairs without names come from socketpair(2); where an end has a name, a listener of that name (the program's own, or one for
//! the moment) makes the connection, so that getsockname(2) and getpeername(2) answer as before.
use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::identity::by;
use super::{Peers, Result, Work, os};
use crate::model::{Credentials, Message, Socket, State};
use crate::restore as options;

const BACKLOG: i32 = 128;

// SO_PEERCRED.
fn told(s: &Socket) -> Option<Credentials> {
    s.unix.as_ref()?.credentials
}

/// Has more than a family in its address.
pub fn named(address: &[u8]) -> bool {
    address.len() > 2
}

// The file of a path name, made absolute.
fn file(s: &Socket) -> Option<PathBuf> {
    let path = s.local.get(2..)?.split(|&b| b == 0).next().filter(|p| !p.is_empty())?;
    let cwd = s.unix.as_ref().map_or(&[][..], |u| &u.cwd);
    Some(Path::new(std::ffi::OsStr::from_bytes(cwd)).join(std::ffi::OsStr::from_bytes(path)))
}

// bind(2) takes a relative path from the working directory; the root of the tree has one thread.
fn within<T>(s: &Socket, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let cwd = s.unix.as_ref().map_or(&[][..], |u| &u.cwd);
    if cwd.is_empty() {
        return f();
    }
    let back = std::env::current_dir()?;
    std::env::set_current_dir(Path::new(std::ffi::OsStr::from_bytes(cwd)))?;
    let done = f();
    std::env::set_current_dir(back)?;
    done
}

/// Binds to the old name. A dead socket's file is replaced; a living one's is not.
pub fn bind(w: &mut Work<'_>, i: usize, fd: i32) -> Result<()> {
    let s = w.sockets[i];
    if !named(&s.local) {
        return Ok(());
    }
    let bound = within(s, || {
        let file = file(s);
        if let Some(file) = &file
            && std::fs::symlink_metadata(file).is_ok_and(|m| m.file_type().is_socket())
        {
            let probe = os::socket(libc::AF_UNIX, s.kind, 0, w.base)?;
            let alive = match os::connect(probe, &s.local) {
                Ok(()) => true,
                // Of another type, or with a full backlog: there is somebody.
                Err(e) => matches!(e.raw_os_error(), Some(libc::EPROTOTYPE | libc::EAGAIN)),
            };
            os::close(probe);
            if alive {
                return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
            }
            std::fs::remove_file(file)?;
        }
        os::bind(fd, &s.local)?;
        Ok(())
    });
    bound.map_err(|e| w.error(i, format!("binding a Unix socket to {}", show(&s.local)), e))
}

/// Listening sockets.
pub fn listeners(w: &mut Work<'_>) -> Result<()> {
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        let State::Listening { backlog } = s.state else { continue };
        if s.family != libc::AF_UNIX {
            continue;
        }
        let fd = os::socket(s.family, s.kind, 0, w.base).map_err(|e| w.error(i, "making a Unix socket", e))?;
        options::first(fd, s);
        bind(w, i, fd)?;
        by(told(s), || os::listen(fd, backlog)).map_err(|e| w.error(i, "listen", e))?;
        w.made[i] = Some(fd);
    }
    Ok(())
}

/// Connected ones.
pub fn connections(w: &mut Work<'_>, peers: &Peers) -> Result<()> {
    // One listener a name: the program's, else one for the moment.
    let mut listeners: HashMap<Vec<u8>, (i32, bool)> = HashMap::new();
    for (i, s) in w.sockets.iter().enumerate() {
        if s.family == libc::AF_UNIX
            && matches!(s.state, State::Listening { .. })
            && let Some(fd) = w.made[i]
        {
            listeners.insert(s.local.clone(), (fd, true));
        }
    }
    let mut temporary = Vec::new();
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        if s.family != libc::AF_UNIX || s.kind == libc::SOCK_DGRAM || w.made[i].is_some() {
            continue;
        }
        let fail = |w: &Work<'_>, e| w.error(i, "connecting a pair of Unix sockets", e);
        match (s.state, peers.of[i]) {
            (State::Connected, Some(j)) => {
                let other = w.sockets[j];
                let (a, b) = if named(&s.local) || named(&other.local) {
                    // The accepting end has the name that the other one knows.
                    let (server, client) = if named(&s.local) && other.peer == s.local { (i, j) } else { (j, i) };
                    match listener(w, server, &mut listeners, &mut temporary) {
                        Ok(listener) => {
                            let (c, a) = connect(w, client, server, listener).map_err(|e| fail(w, e))?;
                            if server == i { (a, c) } else { (c, a) }
                        }
                        Err(e) => {
                            w.warn(server, format!("{e}; the connection has no name now"));
                            by(told(s), || os::pair(s.kind, w.base)).map_err(|e| fail(w, e))?
                        }
                    }
                } else {
                    by(told(s), || os::pair(s.kind, w.base)).map_err(|e| fail(w, e))?
                };
                for (fd, socket) in [(a, s), (b, other)] {
                    options::first(fd, socket);
                }
                w.unfilled.push(Unfilled { reader: i, writer: b, close: false, shut: other.shut_write });
                w.unfilled.push(Unfilled { reader: j, writer: a, close: false, shut: s.shut_write });
                (w.made[i], w.made[j]) = (Some(a), Some(b));
            }
            // Not accepted yet: connected below. Peer outside or gone: broken, after what is unread.
            (State::Connected, None) if s.unix.as_ref().is_some_and(|u| u.peer == Some(0)) => {}
            (State::Connected | State::Ended { .. }, _) => {
                let (a, b) = by(told(s), || os::pair(s.kind, w.base)).map_err(|e| fail(w, e))?;
                options::first(a, s);
                // What a peer leaves unread when it closes is an error (ECONNRESET) at this end, behind what is unread here.
                if s.state == (State::Ended { error: true }) {
                    os::send(a, &[0], &[]).map_err(|e| fail(w, e))?;
                }
                w.unfilled.push(Unfilled { reader: i, writer: b, close: true, shut: false });
                w.made[i] = Some(a);
            }
            _ => {}
        }
    }
    for (fd, file) in temporary {
        os::close(fd);
        if let Some(file) = file {
            let _ = std::fs::remove_file(file);
        }
    }
    pending(w, &listeners)
}

// A listener of a socket's name.
fn listener(
    w: &mut Work<'_>,
    server: usize,
    listeners: &mut HashMap<Vec<u8>, (i32, bool)>,
    temporary: &mut Vec<(i32, Option<PathBuf>)>,
) -> Result<(i32, bool)> {
    let s = w.sockets[server];
    if let Some(&(fd, own)) = listeners.get(&s.local) {
        return Ok((fd, !own));
    }
    let fd = os::socket(libc::AF_UNIX, s.kind, 0, w.base).map_err(|e| w.error(server, "making a Unix socket", e))?;
    bind(w, server, fd)?;
    os::listen(fd, BACKLOG).map_err(|e| w.error(server, "listen", e))?;
    listeners.insert(s.local.clone(), (fd, false));
    let linked = s.unix.as_ref().is_some_and(|u| u.linked);
    temporary.push((fd, file(s).filter(|_| !linked)));
    Ok((fd, true))
}

// (client, accepted)
fn connect(
    w: &mut Work<'_>,
    client: usize,
    server: usize,
    (listener, temporary): (i32, bool),
) -> io::Result<(i32, i32)> {
    let (c, s) = (w.sockets[client], w.sockets[server]);
    let fd = os::socket(libc::AF_UNIX, c.kind, 0, w.base)?;
    bind(w, client, fd).map_err(|e| e.source)?;
    if temporary {
        // What the client is told of who listened: the last one counts.
        by(told(c), || os::listen(listener, BACKLOG))?;
    }
    by(told(s), || within(s, || os::connect(fd, &s.local)))?;
    Ok((fd, os::accept(listener, w.base)?))
}

// Clients that no accept(2) has taken yet, in the order in which they wait, with what they had sent, as far as that is known.
fn pending(w: &mut Work<'_>, listeners: &HashMap<Vec<u8>, (i32, bool)>) -> Result<()> {
    let order: Vec<u64> =
        w.sockets.iter().flat_map(|s| s.unix.iter().flat_map(|u| u.pending.iter().copied())).collect();
    let place = |s: &Socket| order.iter().position(|&ino| ino == s.ino).unwrap_or(usize::MAX);
    let waits = |w: &Work<'_>, i: usize| {
        let s = w.sockets[i];
        w.made[i].is_none() && s.family == libc::AF_UNIX && s.kind != libc::SOCK_DGRAM && s.state == State::Connected
    };
    for l in 0..w.sockets.len() {
        let s = w.sockets[l];
        for one in s.backlog.iter().filter(|_| s.family == libc::AF_UNIX) {
            match (0..w.sockets.len()).find(|&i| one.client != 0 && w.sockets[i].ino == one.client && waits(w, i)) {
                Some(i) => wait(w, i, listeners, &one.queue)?,
                None => {
                    // Its client has ended.
                    let fail =
                        |w: &Work<'_>, e| w.error(l, "connecting to it again what has sent something, and ended", e);
                    let fd = os::socket(s.family, s.kind, 0, w.base).map_err(|e| fail(w, e))?;
                    within(s, || os::connect(fd, &s.local)).map_err(|e| fail(w, e))?;
                    write(w, fd, l, &one.queue).map_err(|e| fail(w, e))?;
                    os::close(fd);
                }
            }
        }
    }
    let mut waiting: Vec<usize> = (0..w.sockets.len()).filter(|&i| waits(w, i)).collect();
    waiting.sort_by_key(|&i| place(w.sockets[i]));
    waiting.into_iter().try_for_each(|i| wait(w, i, listeners, &[]))
}

// Connects such a client.
fn wait(w: &mut Work<'_>, i: usize, listeners: &HashMap<Vec<u8>, (i32, bool)>, sent: &[Message]) -> Result<()> {
    let s = w.sockets[i];
    let fail = |w: &Work<'_>, e| w.error(i, format!("connecting again to {}", show(&s.peer)), e);
    let server = w.sockets.iter().find(|l| matches!(l.state, State::Listening { .. }) && l.local == s.peer).copied();
    let fd = match server {
        Some(server) if listeners.contains_key(&s.peer) => {
            let fd = os::socket(libc::AF_UNIX, s.kind, 0, w.base).map_err(|e| fail(w, e))?;
            bind(w, i, fd)?;
            within(server, || os::connect(fd, &s.peer)).map_err(|e| fail(w, e))?;
            fd
        }
        // Its server is outside.
        _ => {
            let (a, b) = os::pair(s.kind, w.base).map_err(|e| fail(w, e))?;
            os::close(b);
            a
        }
    };
    options::first(fd, s);
    write(w, fd, i, sent).map_err(|e| fail(w, e))?;
    for (shut, how) in [(s.shut_write, libc::SHUT_WR), (s.shut_read, libc::SHUT_RD)] {
        if shut {
            os::shutdown(fd, how).map_err(|e| fail(w, e))?;
        }
    }
    w.made[i] = Some(fd);
    Ok(())
}

/// A connection into which its unread bytes are still to be written.
pub struct Unfilled {
    /// Whose they are.
    reader: usize,
    /// The other end.
    writer: i32,
    /// It is closed afterwards.
    close: bool,
    /// It is shut for writing afterwards, which is the reader's SHUT_RD.
    shut: bool,
}

/// Writes what nobody has read yet, with the descriptors that were under way.
pub fn refill(w: &mut Work<'_>) -> Result<()> {
    for Unfilled { reader, writer, .. } in &w.unfilled {
        fill(w, *writer, *reader).map_err(|e| w.error(*reader, "an unread message of a Unix socket", e))?;
    }
    for one in std::mem::take(&mut w.unfilled) {
        if one.shut {
            os::shutdown(one.writer, libc::SHUT_WR).map_err(|e| w.error(one.reader, "shutdown", e))?;
        }
        if one.close {
            os::close(one.writer);
        }
    }
    Ok(())
}

// Writes what socket `i` has not read yet into its peer.
fn fill(w: &Work<'_>, peer: i32, i: usize) -> io::Result<()> {
    write(w, peer, i, &w.sockets[i].queue)
}

// Writes messages, in which descriptors are named as socket `i` does.
fn write(w: &Work<'_>, peer: i32, i: usize, queue: &[Message]) -> io::Result<()> {
    for message in queue {
        let mut rest = message.data.as_slice();
        let mut rights = w.rights(i, message)?;
        loop {
            match by(message.credentials, || os::send_with(peer, rest, &[], &rights)) {
                Ok(n) if n == rest.len() => break,
                Ok(n) => {
                    rest = &rest[n..];
                    rights.clear();
                }
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                    // The queue counts against the sender's buffer.
                    let now = crate::sys::getsockopt::<i32>(peer, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
                    options::grow(peer, libc::SO_SNDBUF, now);
                    let grown = crate::sys::getsockopt::<i32>(peer, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
                    if grown <= now {
                        return Err(io::Error::other(format!(
                            "{} unread bytes do not fit into a send buffer of {now} (sysctl net.core.wmem_max)",
                            rest.len()
                        )));
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// Files that had been removed, or renamed, while their sockets lived on.
pub fn unlink(w: &Work<'_>) {
    let linked: Vec<PathBuf> =
        w.sockets.iter().filter(|s| s.unix.as_ref().is_some_and(|u| u.linked)).filter_map(|s| file(s)).collect();
    for s in w.sockets {
        if s.family == libc::AF_UNIX
            && let Some(file) = file(s)
            && !linked.contains(&file)
        {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// A name for people.
pub fn show(address: &[u8]) -> String {
    let name = address.get(2..).unwrap_or(&[]);
    match name.split_first() {
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
        _ => String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
    }
}
