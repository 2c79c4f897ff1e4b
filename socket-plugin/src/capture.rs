//! Capture of one socket, by asking and peeking.
//!
//! Rules: no byte is received or sent on the program's sockets; SO_PEEK_OFF, the one thing that is changed, is put back.
#![allow(unsafe_code)] // Reason: recvmsg and getsockname.
use alloc::{format, string::String, vec, vec::Vec};

use crate::diag::Diag;
use crate::known;
use crate::model::{Credentials, Message, Socket, State, Tcp, Unix};
use crate::options::SO_PEEK_OFF;
use crate::rights;
use crate::sys::{self, Errno, Owned};
use crate::urgent;

/// Why a socket cannot be checkpointed.
pub type Result<T> = core::result::Result<T, String>;

/// Why a socket's bytes cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In words.
    pub reason: String,
    /// It passes when the program runs on.
    pub passing: bool,
}

impl Refusal {
    pub(crate) fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), passing: true }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, passing: false }
    }
}

const MSG_TRUNC: i32 = 0x20;
/// How often it is tried to get the turn at a queue: seconds.
const TURNS: u32 = 10_000_000;
/// As much as is peeked at in one call, of a stream; more than most datagrams have.
const PART: usize = 64 * 1024;

/// What kind of socket it is: what never changes, by as few calls as that takes, for there may be thousands. None: it is a
/// socket's place in the file system (open(2), O_PATH), and no socket.
///
/// # Errors
/// A socket that no restart could bring back, in words.
pub fn recognise(fd: i32, ino: u64) -> Result<Option<Socket>> {
    let ask = |name| sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, name);
    let option = |name| ask(name).map_err(|e| failed("getsockopt", e));
    let family = match ask(39 /* SO_DOMAIN */) {
        Err(Errno(libc::EBADF)) => return Ok(None),
        family => family.map_err(|e| failed("getsockopt", e))?,
    };
    let (kind, protocol) = (option(3 /* SO_TYPE */)?, option(38 /* SO_PROTOCOL */)?);
    let s = Socket { family, kind, protocol, ino, ..Socket::default() };
    match (s.family, s.kind, s.protocol) {
        (libc::AF_UNIX, ..) => {}
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => {}
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {}
        (libc::AF_NETLINK, ..) => {}
        (libc::AF_PACKET, ..) | (_, libc::SOCK_RAW, _) => {
            return Err(
                "a raw or packet socket cannot be brought back by a restart; close it before the checkpoint".into()
            );
        }
        (family, kind, protocol) => {
            return Err(format!(
                "a socket of family {family}, type {kind}, protocol {protocol} cannot be brought back by a restart; close it before the checkpoint"
            ));
        }
    }
    Ok(Some(s))
}

/// Where the recognised socket is in its life: addresses, state. Its options and unread bytes are [`fill`]'s.
///
/// # Errors
/// The kernel does not answer.
pub fn describe(fd: i32, s: &mut Socket, diag: &Diag) -> Result<()> {
    let (family, kind, protocol, ino, widened) = (s.family, s.kind, s.protocol, s.ino, s.widened);
    *s = Socket { family, kind, protocol, ino, widened, ..Socket::default() };
    s.local = name(fd, libc::SYS_getsockname).map_err(|e| failed("getsockname", e))?;
    s.peer = name(fd, libc::SYS_getpeername).unwrap_or_default();
    match s.family {
        libc::AF_UNIX => unix(fd, s, diag)?,
        libc::AF_NETLINK => {}
        _ if s.kind == libc::SOCK_STREAM => tcp(fd, s, diag)?,
        _ => {
            if !s.peer.is_empty() {
                s.state = State::Connected;
            }
            (s.shut_read, _) = shut(fd);
        }
    }
    Ok(())
}

/// Names a descriptor that is under way in a Unix socket, given a copy of it (which is the caller's to close).
pub type Name<'a> = &'a mut dyn FnMut(Owned) -> core::result::Result<u32, Refusal>;

/// Takes options and unread bytes.
///
/// # Errors
/// Bytes that cannot be taken without receiving them, in words.
pub fn fill(fd: i32, s: &mut Socket, diag: &Diag, name: Name<'_>) -> core::result::Result<(), Refusal> {
    s.known = known::of(fd).map(|known| (known.local.clone(), known.peer.clone()));
    s.options = diag.options(fd, s);
    if let Some(size) = s.widened.take() {
        // The program's own.
        let name = (libc::SOL_SOCKET, crate::options::SO_RCVBUF);
        s.options.retain(|(level, n, _)| (*level, *n) != name);
        s.options.push((name.0, name.1, size.to_ne_bytes().to_vec()));
    }
    if matches!(s.state, State::Listening { .. } | State::Connecting) || s.family == libc::AF_NETLINK {
        return Ok(());
    }
    if s.family == libc::AF_UNIX {
        return unix_queue(fd, s, name);
    }
    if s.kind == libc::SOCK_DGRAM {
        let (queue, before) = messages(fd, s.ino, false, name)?;
        keep_peek_offset(s, before);
        s.queue = queue;
        return Ok(());
    }
    if s.state == State::Connected
        && s.tcp.is_some_and(|tcp| tcp.written > 0)
        && let Some(unread) = diag.waiting(&s.peer, &s.local).map_err(|e| failed("sock_diag", e))?
    {
        return Err(Refusal::passing(format!(
            "a TCP connection that its server has not accepted yet already holds {unread} bytes, which nobody can read before \
             that"
        )));
    }
    stream(fd, s, diag)
}

/// Whether all that was written to this TCP connection, in both directions, has arrived at its other end, as far as
/// that is on this host. What the peer's full window keeps back is helped along by widening this side's window.
///
/// In the `first` round only this side's direction is looked at, by one call if all is acknowledged: the other end looks at its
/// own, but where nobody holds it any more: it was closed, and still sends. If that is not enough, somebody wants another round,
/// and in that all is looked at.
pub fn quiet(fd: i32, s: &mut Socket, diag: &Diag, first: bool) -> bool {
    if s.protocol != libc::IPPROTO_TCP {
        return true;
    }
    // Of one that is not connected this is 0, or an error.
    let unacknowledged = sys::ioctl_get::<i32>(fd, 0x5411 /* SIOCOUTQ */).unwrap_or(0);
    if first && unacknowledged == 0 && !diag.closing().is_ok_and(|closing| !closing.is_empty()) {
        return true;
    }
    if describe(fd, s, diag).is_err() || s.state != State::Connected {
        return true;
    }
    let (written, arrived) = own_counters(fd);
    match diag.tcp(&s.peer, &s.local) {
        Ok(Some(peer)) => {
            if peer.written > arrived {
                let fixed = widen(fd);
                s.widened = s.widened.or(fixed);
            }
            if written > peer.arrived {
                push(fd);
            }
            // The end of the stream arrives like a byte.
            let end = !Tcp::fin_unacknowledged(peer.state) || s.tcp.is_some_and(|tcp| Tcp::fin_arrived(tcp.state));
            peer.written <= arrived && written <= peer.arrived && end
        }
        // The peer is on another host, or gone.
        _ => unacknowledged == 0,
    }
}

/// Takes back what [`quiet`] changed, but for the size of a receive buffer: the peer may send as much as it has been promised by
/// now, and what finds no room is dropped until its timers send it again (segments as long as loopback's for ever: Linux 6.16
/// takes none that is longer than what is free). Such a buffer is as large as it has become from now on, and fixed again.
pub fn settle(fd: i32, s: &mut Socket) {
    use crate::options::SO_BUF_LOCK;
    if s.widened.is_some() {
        let locks = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_BUF_LOCK, locks | 2);
    }
}

/// Lets the receive window grow as far as the system allows (tcp(7), tcp_rmem): SO_RCVLOWAT does that without fixing the
/// buffer's size for ever, as SO_RCVBUF would. A peek then makes the kernel tell the sender. A size that the program fixed is
/// unlocked (Linux 5.14): it is the answer.
pub(crate) fn widen(fd: i32) -> Option<i32> {
    use crate::options::{SO_BUF_LOCK, SO_RCVBUF, SO_RCVLOWAT};
    let get = |name| sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, name).ok();
    let set = |name, value| {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, name, value);
    };
    let (low, size, locks) = (get(SO_RCVLOWAT)?, get(SO_RCVBUF)?, get(SO_BUF_LOCK).unwrap_or(0));
    let fixed = locks & 2 != 0;
    if fixed {
        set(SO_BUF_LOCK, locks & !2);
    }
    set(SO_RCVLOWAT, i32::MAX / 2);
    set(SO_RCVLOWAT, low);
    nudge(fd);
    fixed.then_some(size)
}

/// Sends what Nagle's algorithm, or TCP_CORK, holds back for an acknowledgement that may be delayed by 40 ms.
pub(crate) fn push(fd: i32) {
    let Ok(old) = sys::getsockopt::<i32>(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY) else { return };
    let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, old);
}

// Peeks at one byte, at which the kernel reconsiders the receive window.
fn nudge(fd: i32) {
    let mut part = [0u8; 1];
    let _ = receive(fd, &mut part, libc::MSG_PEEK);
}

fn own_counters(fd: i32) -> (u64, u64) {
    tcp_info(fd).map_or((0, 0), |info| crate::tcp_counters(&info))
}

// As much of struct tcp_info (<linux/tcp.h>) as is looked at; zeros where the kernel knows less.
fn tcp_info(fd: i32) -> sys::Result<[u8; 256]> {
    let mut info = [0u8; 256];
    sys::getsockopt_into(fd, libc::IPPROTO_TCP, 11 /* TCP_INFO */, &mut info).map(|_| info)
}

pub(crate) fn failed(what: &str, e: Errno) -> String {
    format!("{what} failed with {e}")
}

// getsockname(2) and getpeername(2).
fn name(fd: i32, call: libc::c_long) -> sys::Result<Vec<u8>> {
    let mut out = [0u8; 128];
    let mut length = out.len() as u32;
    // SAFETY: `out` is writable for `length` bytes.
    unsafe { sys::call(call, [fd as usize, out.as_mut_ptr() as usize, &raw mut length as usize, 0, 0, 0]) }?;
    Ok(out[..out.len().min(length as usize)].to_vec())
}

// (reading is shut, an error waits)
fn shut(fd: i32) -> (bool, bool) {
    let revents = sys::poll_now(fd, libc::POLLRDHUP).unwrap_or(0);
    (revents & libc::POLLRDHUP != 0, revents & libc::POLLERR != 0)
}

fn tcp(fd: i32, s: &mut Socket, diag: &Diag) -> Result<()> {
    let info = tcp_info(fd).map_err(|e| failed("getsockopt(TCP_INFO)", e))?;
    let state = info[0];
    let (written, arrived) = crate::tcp_counters(&info);
    s.tcp = Some(Tcp { state, written, arrived, urgent: None });
    let (shut_read, error) = shut(fd);
    s.shut_read = shut_read;
    s.shut_write = Tcp::fin_sent(state);
    s.state = match state {
        // Of a listening socket, tcpi_sacked (offset 28) is the backlog.
        10 => State::Listening { backlog: i32::from_ne_bytes([info[28], info[29], info[30], info[31]]) },
        2 => {
            // getpeername(2) does not tell yet.
            s.peer = diag.connecting(s.family, &s.local, s.ino).map_err(|e| failed("sock_diag", e))?;
            State::Connecting
        }
        // A fresh socket hangs up too, but has not shut down reading.
        7 if !shut_read && !error => State::Idle,
        7 => State::Ended { error },
        _ => State::Connected,
    };
    Ok(())
}

fn unix(fd: i32, s: &mut Socket, diag: &Diag) -> Result<()> {
    let facts = diag
        .unix(s.ino)
        .map_err(|e| failed("sock_diag", e))?
        .ok_or("the kernel's sock_diag does not know this Unix socket (module unix_diag?)")?;
    let mut unix = Unix { peer: facts.peer.map(u64::from), ..Unix::default() };
    s.shut_read = facts.shutdown & 1 != 0;
    s.shut_write = facts.shutdown & 2 != 0;
    s.state = match facts.state {
        10 => State::Listening { backlog: facts.backlog as i32 },
        // Being somebody's peer makes a datagram socket "established", too; it is connected if it has a peer itself.
        _ if s.kind == libc::SOCK_DGRAM => {
            if facts.peer.is_some() {
                State::Connected
            } else {
                State::Idle
            }
        }
        // A closed peer has no inode any more, as one that waits to be accepted has none yet; but it has shut both ways.
        1 if matches!(facts.peer, None | Some(0)) && facts.shutdown == 3 => State::Ended { error: shut(fd).1 },
        1 => State::Connected,
        _ => State::Idle,
    };
    unix.credentials = sys::getsockopt_bytes(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12)
        .ok()
        .and_then(|bytes| Credentials::parse(&bytes));
    unix.pending = facts.pending.into_iter().map(u64::from).collect();
    // A path name: does the file with which it was bound still go by it?
    let path = s.local.get(2..).unwrap_or(&[]);
    let path = path.split(|&b| b == 0).next().unwrap_or(&[]);
    if !path.is_empty() {
        if let Some((dev, ino)) = facts.file
            && let Ok(st) = sys::stat(path)
        {
            unix.linked = st.st_ino as u32 == ino && st.st_dev == libc::makedev(dev >> 20, dev & 0xf_ffff);
        }
        if path[0] != b'/' {
            unix.cwd = sys::readlink(b"/proc/self/cwd").unwrap_or_default();
        }
    }
    s.unix = Some(unix);
    Ok(())
}

fn unix_queue(fd: i32, s: &mut Socket, name: Name<'_>) -> core::result::Result<(), Refusal> {
    // One that waits to be accepted cannot be peeked into; its peer knows whether something lies there.
    if s.state == State::Connected && s.unix.as_ref().is_some_and(|u| u.peer == Some(0)) {
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

// Peeks at everything, message by message, by way of SO_PEEK_OFF; what that was, if anything had to be looked at.
fn messages(
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

// The program's own, as it was found by who had the turn: among the options may be what another process peeked from.
fn keep_peek_offset(s: &mut Socket, before: Option<i32>) {
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

pub(crate) fn receive(fd: i32, out: &mut [u8], flags: i32) -> sys::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: `out` is writable for its length; no address is asked for.
    unsafe { sys::call(libc::SYS_recvfrom, [fd as usize, out.as_mut_ptr() as usize, out.len(), flags as usize, 0, 0]) }
}

// A TCP queue can be peeked at in one go, unless there is an urgent byte in it: sock_diag(7) counts that, and what is behind it.
fn stream(fd: i32, s: &mut Socket, diag: &Diag) -> core::result::Result<(), Refusal> {
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
