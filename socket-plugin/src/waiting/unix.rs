//! Those of Unix stream and seqpacket sockets.
use alloc::{string::String, vec::Vec};

use super::tcp;
use super::{Client, Ended, Owned, Queue, Socket, Waiting, accept_all, broken, calls, held, send_all};
use crate::capture::{self, Refusal};
use crate::diag::Diag;
use crate::model::State;
use crate::options::SO_REUSEADDR;
use crate::restore;
use crate::sys::{self, Errno};
use crate::urgent;

pub fn look(s: &Socket) -> Option<Queue> {
    let unix = s.unix.as_ref().filter(|unix| !unix.pending.is_empty())?;
    // By which name it is to be connected to again.
    let path = s.local.get(2..).unwrap_or(&[]);
    let reachable = match path.first() {
        None => false,
        Some(0) => true,
        Some(_) => unix.linked && calls::writable(path.split(|&b| b == 0).next().unwrap_or(&[])),
    };
    let clients = unix.pending.clone();
    // What a closed one may have sent nobody knows.
    reachable.then(|| Queue { count: clients.len(), holds: clients.contains(&0), clients, ends: Vec::new() })
}

/// The new socket `new` goes where `old` was: flags, owner, and the option that it could not have before it was connected.
pub fn succeed(old: i32, new: i32) {
    // F_GETOWN_EX 16, F_SETOWN_EX 15 (struct f_owner_ex), F_GETSIG 11, F_SETSIG 10.
    let mut owner = [0i32; 2];
    if sys::fcntl_with(old, 16, &mut owner).is_ok() && owner[1] != 0 {
        let _ = sys::fcntl_with(new, 15, &mut owner);
    }
    if let Ok(signal) = sys::fcntl(old, 11, 0) {
        let _ = sys::fcntl(new, 10, signal as usize);
    }
    if let Ok(flags) = sys::fcntl(old, libc::F_GETFL, 0) {
        let _ = sys::fcntl(new, libc::F_SETFL, flags as usize);
    }
    if let Ok(value) = sys::getsockopt::<i32>(old, libc::SOL_SOCKET, libc::SO_PASSCRED) {
        let _ = sys::setsockopt(new, libc::SOL_SOCKET, libc::SO_PASSCRED, value);
    }
}

/// A new socket in place of a client that waits to be accepted, and whether that one has sent anything. None: it does not wait, or
/// has a name, which only one socket can have.
pub fn successor(fd: i32, s: &Socket, diag: &Diag) -> sys::Result<Option<(Owned, bool)>> {
    let waits = s.state == State::Connected && s.unix.as_ref().is_some_and(|unix| unix.peer == Some(0));
    if !waits || s.local.len() > 2 {
        return Ok(None);
    }
    let new = sys::socket(s.family, s.kind | libc::SOCK_NONBLOCK, s.protocol)?;
    let mut options = Socket { options: diag.options(fd, s), family: s.family, kind: s.kind, ..Socket::default() };
    // It would be given a name as it connects.
    options.options.retain(|(level, name, _)| (*level, *name) != (libc::SOL_SOCKET, libc::SO_PASSCRED));
    restore::first(new.0, &options);
    sys::setsockopt(new.0, libc::SOL_SOCKET, SO_REUSEADDR, 0)?;
    restore::last(new.0, &options);
    let out: i32 = sys::ioctl_get(fd, 0x5411 /* SIOCOUTQ */).unwrap_or(0);
    Ok(Some((new, out > 0)))
}

pub fn renew(
    fd: i32,
    s: &Socket,
    queue: &Queue,
    clients: &[Client],
    diag: &Diag,
    close: &mut dyn FnMut(Owned),
) -> Result<Option<Vec<Waiting>>, String> {
    let now = diag.unix(s.ino).ok().flatten();
    if now.is_none_or(|now| now.pending.iter().map(|ino| u64::from(*ino)).ne(queue.clients.iter().copied())) {
        return Ok(None);
    }
    let mut out = Vec::new();
    let (all, mut failed) = accept_all(fd, queue.count);
    for ((accepted, _), &ino) in all.into_iter().zip(&queue.clients) {
        let client = held(clients, ino);
        let mut rights = Vec::new();
        let made = drain(accepted.0, ino, diag, &mut rights).map_err(|e| failed = failed.take().or(Some(e.reason)));
        let sent = made.map(|waiting| (again(client.map(|client| client.fd.0), s, &waiting, &rights), waiting.0));
        let any = !rights.is_empty();
        rights.into_iter().for_each(&mut *close);
        let Ok((sent, mut waiting)) = sent else { continue };
        if let Err(e) = sent {
            failed.get_or_insert(broken("of Unix sockets", e));
        }
        // It is that one's peer from now on.
        waiting.client = client.and_then(|client| sys::fstat(client.fd.0).ok()).map_or(0, |st| st.st_ino);
        waiting.unsaved |= any;
        out.push(waiting);
    }
    failed.map_or(Ok(Some(out)), Err)
}

// What the client has sent, and what is shut of its end: (reading, writing). Descriptors that came along go to `rights`, and by their
// place there.
fn drain(fd: i32, ino: u64, diag: &Diag, rights: &mut Vec<Owned>) -> Result<(Waiting, (bool, bool)), Refusal> {
    let st = sys::fstat(fd).map_err(|e| capture::failed("fstat", e))?;
    let mut s = capture::recognise(fd, st.st_ino)?.unwrap_or_default();
    capture::describe(fd, &mut s, diag)?;
    let shut = (s.shut_write, s.shut_read);
    let ended = (ino == 0).then_some(Ended::Closed);
    if s.kind == libc::SOCK_STREAM && capture::receive(fd, &mut [0u8; 1], libc::MSG_PEEK | libc::MSG_OOB).is_ok() {
        // Nobody can look behind such a byte, but it can be received, and what follows.
        let (waiting, _) = tcp::drain(fd, None, true);
        return Ok((Waiting { client: ino, ended, unsaved: true, ..waiting }, shut));
    }
    capture::fill(fd, &mut s, diag, &mut |copy| {
        rights.push(copy);
        Ok(rights.len() as u32 - 1)
    })?;
    Ok((Waiting { client: ino, ended, queue: s.queue, ..Waiting::default() }, shut))
}

fn again(
    client: Option<i32>,
    s: &Socket,
    (waiting, (shut_read, shut_write)): &(Waiting, (bool, bool)),
    rights: &[Owned],
) -> sys::Result<()> {
    let own;
    let fd = match client {
        Some(fd) => fd,
        None => {
            own = sys::socket(s.family, s.kind | libc::SOCK_NONBLOCK, s.protocol)?;
            own.0
        }
    };
    calls::connect(fd, &s.local)?;
    for message in &waiting.queue {
        let rights: Vec<i32> = message.rights.iter().filter_map(|&at| rights.get(at as usize)).map(|fd| fd.0).collect();
        if rights.len() < message.rights.len() {
            return Err(Errno(libc::EBADF));
        }
        for (run, flags) in urgent::runs(&message.data, waiting.urgent.as_ref()) {
            // Packets may be empty.
            if !run.is_empty() || s.kind == libc::SOCK_SEQPACKET {
                send_all(fd, run, &rights, flags)?;
            }
        }
    }
    if client.is_some() && *shut_write {
        calls::shutdown(fd, libc::SHUT_WR)?;
    }
    if client.is_some() && *shut_read {
        calls::shutdown(fd, libc::SHUT_RD)?;
    }
    Ok(())
}
