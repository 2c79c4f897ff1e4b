//! What nobody has read yet, peeked at.
#![allow(unsafe_code)] // Reason: bind(2) and recvfrom(2).
use alloc::{format, vec, vec::Vec};

use super::{Name, Refusal, Result, failed, shut};
use crate::diag::Diag;
use crate::model::{Message, Socket, State, Tcp};
use crate::options::SO_PEEK_OFF;
use crate::rights;
use crate::sys::{self, Errno, Owned};
use crate::urgent;

const MSG_TRUNC: i32 = 0x20;
/// How often it is tried to get the turn at a queue: seconds.
const TURNS: u32 = 10_000_000;
/// As much as is peeked at in one call, of a stream; more than most datagrams have.
const PART: usize = 64 * 1024;

/// That of a Unix stream or sequence of packets.
pub fn unix_queue(fd: i32, s: &mut Socket, name: Name<'_>) -> core::result::Result<(), Refusal> {
    // One that waits to be accepted cannot be peeked into; its peer knows whether something lies there.
    if s.state == State::Connected && !s.saved && s.unix.as_ref().is_some_and(|u| u.peer == Some(0)) {
        let out: i32 = sys::ioctl_get(fd, 0x5411 /* SIOCOUTQ */).unwrap_or(0);
        if out > 0 {
            return Err(Refusal::passing(
                "a Unix connection that its server has not accepted yet already holds data, which nobody can read before that",
            ));
        }
    }
    let (queue, before) = messages(fd, s.ino, s.kind == libc::SOCK_STREAM, name)?;
    keep_peek_offset(s, before);
    s.queue = queue;
    Ok(())
}

/// Hands copies of the descriptors that are under way in this socket's queue to `name`, and nothing else: for who wants to know
/// of them before [`fill`].
///
/// # Errors
/// Those of `name`, or a kernel that does not answer.
pub fn under_way(fd: i32, s: &Socket, name: Name<'_>) -> core::result::Result<(), Refusal> {
    if s.family != libc::AF_UNIX {
        return Ok(());
    }
    messages(fd, s.ino, s.kind == libc::SOCK_STREAM, name).map(|_| ())
}

/// Peeks at everything, message by message, by way of SO_PEEK_OFF; what that was, if anything had to be looked at.
pub fn messages(
    fd: i32,
    ino: u64,
    stream: bool,
    name: Name<'_>,
) -> core::result::Result<(Vec<Message>, Option<i32>), Refusal> {
    if sys::poll_now(fd, libc::POLLIN).unwrap_or(libc::POLLIN) & libc::POLLIN == 0 {
        return Ok((Vec::new(), None));
    }
    let _turn = turn(ino)?;
    let before = peek_from(fd, 0)?;
    let result = peek_all(fd, stream, name);
    let _ = peek_from(fd, before);
    Ok((result?, Some(before)))
}

// Where a peek begins from now on, and did until now.
fn peek_from(fd: i32, offset: i32) -> Result<i32> {
    let before = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap_or(-1);
    if before != offset {
        sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset).map_err(|e| failed("setsockopt(SO_PEEK_OFF)", e))?;
    }
    Ok(before)
}

/// The program's own, as it was found by who had the turn: among the options may be what another process peeked from.
pub fn keep_peek_offset(s: &mut Socket, before: Option<i32>) {
    let Some(before) = before else { return };
    s.options.retain(|(level, name, _)| (*level, *name) != (libc::SOL_SOCKET, SO_PEEK_OFF));
    if before >= 0 {
        s.options.push((libc::SOL_SOCKET, SO_PEEK_OFF, before.to_ne_bytes().to_vec()));
    }
}

// SO_PEEK_OFF is the socket's, and several processes that share it look at its queue at the same time: one after the other. Who
// has the abstract name (unix(7)) of this socket's queue has the turn.
fn turn(ino: u64) -> core::result::Result<Owned, Refusal> {
    let name = format!("\0slackwater-queue-{ino}");
    let mut address: Vec<u8> = (libc::AF_UNIX as u16).to_ne_bytes().into();
    address.extend_from_slice(name.as_bytes());
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(|e| failed("socket", e))?;
    for _ in 0..TURNS {
        // SAFETY: `address` is readable for its length.
        match unsafe {
            sys::call(libc::SYS_bind, [socket.0 as usize, address.as_ptr() as usize, address.len(), 0, 0, 0])
        } {
            Ok(_) => return Ok(socket),
            Err(Errno(libc::EADDRINUSE)) => sys::give_way(),
            Err(e) => return Err(failed("bind", e).into()),
        }
    }
    Err(Refusal::passing("another process has been looking at this socket's queue for long"))
}

fn peek_all(fd: i32, stream: bool, name: Name<'_>) -> core::result::Result<Vec<Message>, Refusal> {
    let flags = if stream { 0 } else { MSG_TRUNC };
    let back_to = |at| {
        sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, at as i32).map_err(|e| failed("setsockopt(SO_PEEK_OFF)", e))
    };
    // A process that does not stand yet may receive what this one looks at.
    let moved = |e| {
        Refusal::passing(format!(
            "descriptors (SCM_RIGHTS) under way in this Unix socket were received meanwhile ({e})"
        ))
    };
    let mut out: Vec<Message> = Vec::new();
    let queued = sys::ioctl_get::<i32>(fd, libc::FIONREAD).unwrap_or(0).max(0) as usize;
    // A byte out of band (unix(7), Linux 5.15) is counted, but is no part of the stream, and nobody can see where it stands in it.
    if stream && queued > 0 && receive(fd, &mut [0u8; 1], libc::MSG_PEEK | libc::MSG_OOB).is_ok() {
        return Err(Refusal::passing("a byte sent out of band (MSG_OOB) waits unread in this Unix socket"));
    }
    let mut buffer = vec![0u8; queued.clamp(1, PART)];
    let (mut passed, mut failure) = (0, None);
    // Of a stream SIOCINQ counts all that is unread. To look behind that would take an error that waits there for the program
    // (ECONNRESET: the peer was closed with unread bytes).
    while !stream || passed < queued {
        // No room for ancillary data: if there is any, it shows as cut off, and no descriptor is installed.
        let seen = match rights::peek(fd, &mut buffer, 0, flags) {
            Ok(seen) => seen,
            Err(Errno(libc::EAGAIN | libc::ENOTCONN | libc::EINVAL)) => break,
            // Datagrams wait behind an error (of a peer that is gone), and nobody can look past it.
            Err(e) if !stream && failure.is_none() => {
                failure = Some(e);
                continue;
            }
            Err(e) => return Err(failed("peeking at a socket's queue", e).into()),
        };
        if stream && seen.length == 0 {
            break;
        }
        // A datagram larger than the buffer was peeked at: the offset stands inside it now. Of a stream, all of what descriptors
        // came with must be seen, for it ends where its sender's message ended.
        let wanted = if stream && seen.cut { queued - passed.min(queued) } else { seen.length };
        if wanted > buffer.len() {
            buffer = vec![0u8; wanted];
            back_to(passed)?;
            continue;
        }
        // The end of a sequence of packets reads as one of no bytes.
        if seen.length == 0 && seen.from.is_empty() && shut(fd).0 {
            break;
        }
        let mut boundary = 0;
        let mut names = Vec::new();
        let mut credentials = None;
        if seen.cut {
            back_to(passed)?;
            let again = rights::peek(fd, &mut buffer, rights::ROOM, flags).map_err(moved)?;
            if again.length != seen.length {
                return Err(moved(Errno(libc::EAGAIN)));
            }
            if again.cut {
                return Err(Refusal::passing(
                    "descriptors (SCM_RIGHTS) are under way in this Unix socket, and the limit of open files leaves no room to look at them",
                ));
            }
            credentials = again.credentials;
            if stream && !again.descriptors.is_empty() {
                back_to(passed)?;
                boundary = rights::before(fd, &mut buffer[..seen.length]).map_err(moved)?;
                back_to(passed + seen.length)?;
            }
            for descriptor in again.descriptors {
                names.push(name(descriptor)?);
            }
        }
        passed += seen.length;
        let (first, second) = buffer[..seen.length].split_at(boundary);
        if !first.is_empty() || stream && names.is_empty() {
            let data = if names.is_empty() { second } else { first };
            match out.last_mut() {
                Some(last) if stream && last.rights.is_empty() && last.credentials == credentials => {
                    last.data.extend_from_slice(data);
                }
                _ => out.push(Message { data: data.to_vec(), credentials, ..Message::default() }),
            }
            if names.is_empty() {
                continue;
            }
        }
        out.push(Message { data: second.to_vec(), from: seen.from, rights: names, credentials });
    }
    Ok(out)
}

/// recv(2) without waiting.
pub fn receive(fd: i32, out: &mut [u8], flags: i32) -> sys::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: `out` is writable for its length; no address is asked for.
    unsafe { sys::call(libc::SYS_recvfrom, [fd as usize, out.as_mut_ptr() as usize, out.len(), flags as usize, 0, 0]) }
}

/// A TCP queue can be peeked at in one go, unless there is an urgent byte in it: sock_diag(7) counts that, and what is behind it.
pub fn stream(fd: i32, s: &mut Socket, diag: &Diag) -> core::result::Result<(), Refusal> {
    let Some(tcp) = s.tcp else { return Ok(()) };
    let plain = sys::ioctl_get::<i32>(fd, libc::FIONREAD).unwrap_or(0).max(0) as usize;
    if plain == 0 && sys::poll_now(fd, libc::POLLIN | libc::POLLPRI).unwrap_or(0) & (libc::POLLIN | libc::POLLPRI) == 0
    {
        return Ok(());
    }
    let known = diag.tcp(&s.local, &s.peer).map_err(|e| failed("sock_diag", e))?;
    // A FIN that has arrived counts as one.
    let fin = usize::from(Tcp::fin_arrived(tcp.state));
    let total = known.map_or(plain, |facts| (facts.unread as usize).saturating_sub(fin));
    let mut data = vec![0u8; plain];
    let marked = plain != total || urgent::at_mark(fd);
    let got = if marked || plain == 0 { Ok(0) } else { receive(fd, &mut data, libc::MSG_PEEK) };
    let (data, urgent) = if !marked && got == Ok(total) {
        (data, None)
    } else {
        let turn = turn(s.ino)?;
        let before = peek_from(fd, -1)?;
        let taken = urgent::take(fd, total, plain);
        let _ = peek_from(fd, before);
        drop(turn);
        keep_peek_offset(s, Some(before));
        let (data, urgent) = taken?;
        (data, Some(urgent))
    };
    if let Some(tcp) = &mut s.tcp {
        tcp.urgent = urgent;
    }
    if !data.is_empty() || urgent.is_some() {
        s.queue = vec![Message { data, ..Message::default() }];
    }
    Ok(())
}
