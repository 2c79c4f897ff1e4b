//! Capture of one socket, by asking and peeking.
//!
//! [`flow`]: what has yet to arrive; [`queue`]: what nobody has read. Rules: no byte is received or sent on the program's sockets; SO_PEEK_OFF, the one thing that is changed, is put back.
#![allow(unsafe_code)] // Reason: getsockname.
use alloc::{format, string::String, vec::Vec};

use crate::diag::Diag;
use crate::known;
use crate::model::{Credentials, Socket, State, Tcp, Unix};
use crate::sys::{self, Errno, Owned};

mod flow;
mod queue;

pub(crate) use flow::push;
#[cfg(feature = "rebuild")]
pub(crate) use flow::widen;
pub use flow::{quiet, settle};
pub(crate) use queue::receive;
pub use queue::under_way;

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
    let (family, kind, protocol, ino, widened, saved) = (s.family, s.kind, s.protocol, s.ino, s.widened, s.saved);
    let backlog = core::mem::take(&mut s.backlog);
    *s = Socket { family, kind, protocol, ino, widened, saved, backlog, ..Socket::default() };
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
        return queue::unix_queue(fd, s, name);
    }
    if s.kind == libc::SOCK_DGRAM {
        let (messages, before) = queue::messages(fd, s.ino, false, name)?;
        queue::keep_peek_offset(s, before);
        s.queue = messages;
        return Ok(());
    }
    if s.state == State::Connected
        && !s.saved
        && s.tcp.is_some_and(|tcp| tcp.written > 0)
        && let Some(unread) = diag.waiting(&s.peer, &s.local).map_err(|e| failed("sock_diag", e))?
    {
        return Err(Refusal::passing(format!(
            "a TCP connection that its server has not accepted yet already holds {unread} bytes, which nobody can read before \
             that"
        )));
    }
    queue::stream(fd, s, diag)
}

// As much of struct tcp_info (<linux/tcp.h>) as is looked at; zeros where the kernel knows less.
pub(crate) fn tcp_info(fd: i32) -> sys::Result<[u8; 256]> {
    let mut info = [0u8; 256];
    sys::getsockopt_into(fd, libc::IPPROTO_TCP, 11 /* TCP_INFO */, &mut info).map(|_| info)
}

pub(crate) fn failed(what: &str, e: Errno) -> String {
    format!("{what} failed with {e}")
}

// getsockname(2) and getpeername(2).
pub(crate) fn name(fd: i32, call: libc::c_long) -> sys::Result<Vec<u8>> {
    let mut out = [0u8; 128];
    let mut length = out.len() as u32;
    // SAFETY: `out` is writable for `length` bytes.
    unsafe { sys::call(call, [fd as usize, out.as_mut_ptr() as usize, &raw mut length as usize, 0, 0, 0]) }?;
    Ok(out[..out.len().min(length as usize)].to_vec())
}

// (reading is shut, an error waits)
pub(crate) fn shut(fd: i32) -> (bool, bool) {
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
