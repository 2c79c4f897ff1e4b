//! Capture of one socket, by asking and peeking.
//!
//! Rules: no byte is received or sent on the program's sockets; SO_PEEK_OFF, the one thing that is changed, is put back.
#![allow(unsafe_code)] // Reason: recvmsg and getsockname.
use alloc::{format, string::String, vec, vec::Vec};

use crate::diag::Diag;
use crate::model::{Message, Socket, State, Tcp, Unix};
use crate::sys::{self, Errno};

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
    fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), passing: true }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, passing: false }
    }
}

const SO_PEEK_OFF: i32 = 42;
const SO_PASSCRED: i32 = 16;
const MSG_CTRUNC: i32 = 8;
const MSG_TRUNC: i32 = 0x20;
/// As much as is peeked at in one call, of a stream; more than most datagrams have.
const PART: usize = 64 * 1024;

/// What kind of socket it is: what never changes, by as few calls as that takes, for there may be thousands.
///
/// # Errors
/// A socket that no restart could bring back, in words.
pub fn recognise(fd: i32, ino: u64) -> Result<Socket> {
    let option = |name| sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, name).map_err(|e| failed("getsockopt", e));
    let s = Socket {
        family: option(39 /* SO_DOMAIN */)?,
        kind: option(3 /* SO_TYPE */)?,
        protocol: option(38 /* SO_PROTOCOL */)?,
        ino,
        ..Socket::default()
    };
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
    Ok(s)
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
        _ if s.kind == libc::SOCK_STREAM => tcp(fd, s)?,
        _ => {
            if !s.peer.is_empty() {
                s.state = State::Connected;
            }
            (s.shut_read, _) = shut(fd);
        }
    }
    Ok(())
}

/// Takes options and unread bytes.
///
/// # Errors
/// Bytes that cannot be taken without receiving them, in words.
pub fn fill(fd: i32, s: &mut Socket, diag: &Diag) -> core::result::Result<(), Refusal> {
    s.options = diag.options(fd, s);
    if matches!(s.state, State::Listening { .. } | State::Connecting) || s.family == libc::AF_NETLINK {
        return Ok(());
    }
    if s.family == libc::AF_UNIX {
        return unix_queue(fd, s);
    }
    if s.kind == libc::SOCK_DGRAM {
        s.queue = messages(fd, false)?;
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
    Ok(stream(fd, s)?)
}

/// Whether all that was written to this TCP connection, in both directions, has arrived at its other end, as far as
/// that is on this host. What the peer's full window keeps back is helped along by widening this side's window.
///
/// In the `first` round only this side's direction is looked at, by one call if all is acknowledged: the other end looks at its
/// own. If that is not enough, somebody wants another round, and in that all is looked at.
pub fn quiet(fd: i32, s: &mut Socket, diag: &Diag, first: bool) -> bool {
    if s.protocol != libc::IPPROTO_TCP {
        return true;
    }
    // Of one that is not connected this is 0, or an error.
    let unacknowledged = sys::ioctl_get::<i32>(fd, 0x5411 /* SIOCOUTQ */).unwrap_or(0);
    if first && unacknowledged == 0 {
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
            peer.written <= arrived && written <= peer.arrived
        }
        // The peer is on another host, or gone.
        _ => unacknowledged == 0,
    }
}

/// Takes back what [`quiet`] changed. Not before all is quiet: what arrives then finds no room, and comes again much later.
pub fn settle(fd: i32, s: &mut Socket) {
    if let Some(size) = s.widened.take() {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, crate::options::SO_RCVBUF, size / 2);
    }
}

/// Lets the receive window grow as far as the system allows (tcp(7), tcp_rmem): SO_RCVLOWAT does that without fixing the
/// buffer's size for ever, as SO_RCVBUF would. A peek then makes the kernel tell the sender. A size that the program fixed is
/// unlocked (Linux 5.14): it is the answer, and to be set again when all has arrived.
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
    sys::getsockopt_bytes(fd, libc::IPPROTO_TCP, 11 /* TCP_INFO */, 512)
        .map_or((0, 0), |info| crate::tcp_counters(&info))
}

fn failed(what: &str, e: Errno) -> String {
    format!("{what} failed with {e}")
}

// getsockname(2) and getpeername(2).
fn name(fd: i32, call: libc::c_long) -> sys::Result<Vec<u8>> {
    let mut out = vec![0u8; 128];
    let mut length = out.len() as u32;
    // SAFETY: `out` is writable for `length` bytes.
    unsafe { sys::call(call, [fd as usize, out.as_mut_ptr() as usize, &raw mut length as usize, 0, 0, 0]) }?;
    out.truncate(length as usize);
    Ok(out)
}

// (reading is shut, an error waits)
fn shut(fd: i32) -> (bool, bool) {
    let revents = sys::poll_now(fd, libc::POLLRDHUP).unwrap_or(0);
    (revents & libc::POLLRDHUP != 0, revents & libc::POLLERR != 0)
}

fn tcp(fd: i32, s: &mut Socket) -> Result<()> {
    let info = sys::getsockopt_bytes(fd, libc::IPPROTO_TCP, 11, 512).map_err(|e| failed("getsockopt(TCP_INFO)", e))?;
    let state = info.first().copied().unwrap_or(7);
    let (written, arrived) = crate::tcp_counters(&info);
    s.tcp = Some(Tcp { state, written, arrived });
    let (shut_read, error) = shut(fd);
    s.shut_read = shut_read;
    s.shut_write = Tcp::fin_sent(state);
    s.state = match state {
        // Of a listening socket, tcpi_sacked (offset 28) is the backlog.
        10 => State::Listening { backlog: i32::from_ne_bytes([info[28], info[29], info[30], info[31]]) },
        2 => State::Connecting,
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

fn unix_queue(fd: i32, s: &mut Socket) -> core::result::Result<(), Refusal> {
    // One that waits to be accepted cannot be peeked into; its peer knows whether something lies there.
    if s.state == State::Connected && s.unix.as_ref().is_some_and(|u| u.peer == Some(0)) {
        let out: i32 = sys::ioctl_get(fd, 0x5411 /* SIOCOUTQ */).unwrap_or(0);
        if out > 0 {
            return Err(Refusal::passing(
                "a Unix connection that its server has not accepted yet already holds data, which nobody can read before that",
            ));
        }
    }
    s.queue = messages(fd, s.kind == libc::SOCK_STREAM)?;
    Ok(())
}

// Peeks at everything, message by message, by way of SO_PEEK_OFF.
fn messages(fd: i32, stream: bool) -> core::result::Result<Vec<Message>, Refusal> {
    if sys::poll_now(fd, libc::POLLIN).unwrap_or(libc::POLLIN) & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    let before = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap_or(-1);
    sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, 0).map_err(|e| failed("setsockopt(SO_PEEK_OFF)", e))?;
    let result = peek_all(fd, stream);
    let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, before);
    result
}

fn peek_all(fd: i32, stream: bool) -> core::result::Result<Vec<Message>, Refusal> {
    let passes_credentials = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_PASSCRED).unwrap_or(0) != 0;
    let mut out: Vec<Message> = Vec::new();
    let queued: i32 = sys::ioctl_get(fd, libc::FIONREAD).unwrap_or(0);
    let mut buffer = vec![0u8; (queued.max(0) as usize).clamp(1, PART)];
    loop {
        let mut from = [0u8; 128];
        // Room for credentials and nothing more: descriptors in flight then show as truncation, and are not installed.
        let mut control = [0u8; 32];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: zero is a valid value for all fields of msghdr.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_name = from.as_mut_ptr().cast();
        message.msg_namelen = from.len() as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if passes_credentials {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = control.len() as _;
        }
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | if stream { 0 } else { MSG_TRUNC };
        // SAFETY: all pointers in `message` are to live buffers of the lengths given.
        let n = match unsafe {
            sys::call(libc::SYS_recvmsg, [fd as usize, &raw mut message as usize, flags as usize, 0, 0, 0])
        } {
            Ok(n) => n,
            Err(Errno(libc::EAGAIN | libc::ENOTCONN | libc::EINVAL)) => break,
            Err(e) => return Err(failed("peeking at a socket's queue", e).into()),
        };
        if message.msg_flags & MSG_CTRUNC != 0 {
            return Err(Refusal::passing(
                "descriptors (SCM_RIGHTS) are under way in this Unix socket and not received yet",
            ));
        }
        if stream && n == 0 {
            break;
        }
        if n > buffer.len() {
            // A datagram larger than the buffer was peeked at; the offset stands inside it now.
            buffer = vec![0u8; n];
            let passed: usize = out.iter().map(|m| m.data.len()).sum();
            sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, passed as i32)
                .map_err(|e| failed("setsockopt(SO_PEEK_OFF)", e))?;
            continue;
        }
        // The end of a sequence of packets reads as one of no bytes.
        if n == 0 && message.msg_namelen == 0 && shut(fd).0 {
            break;
        }
        let data = buffer[..n].to_vec();
        match out.last_mut() {
            Some(last) if stream => last.data.extend_from_slice(&data),
            _ => out.push(Message { data, from: from[..(message.msg_namelen as usize).min(128)].to_vec() }),
        }
    }
    Ok(out)
}

fn receive(fd: i32, out: &mut [u8], flags: i32) -> sys::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: `out` is writable for its length; no address is asked for.
    unsafe { sys::call(libc::SYS_recvfrom, [fd as usize, out.as_mut_ptr() as usize, out.len(), flags as usize, 0, 0]) }
}

// A TCP queue can be peeked at in one go.
fn stream(fd: i32, s: &mut Socket) -> Result<()> {
    let queued: i32 = sys::ioctl_get(fd, libc::FIONREAD).unwrap_or(0);
    if queued <= 0 {
        return Ok(());
    }
    let before = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap_or(-1);
    if before >= 0 {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, -1);
    }
    let mut data = vec![0u8; queued as usize];
    let got = receive(fd, &mut data, libc::MSG_PEEK);
    if before >= 0 {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, before);
    }
    match got {
        Ok(n) if n == data.len() => {}
        other => return Err(format!("of {queued} unread bytes peeking gave {other:?} (urgent data is not supported)")),
    }
    s.queue = vec![Message { data, from: Vec::new() }];
    Ok(())
}
