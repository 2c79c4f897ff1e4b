//! Connections that wait to be accepted, and hold bytes already: taken apart and made again.
//!
//! The kernel lets nobody look at such bytes before accept(2), and nobody can put back what was accepted. So, where the server
//! does not accept for long, one process that has the listener accepts all that wait there, takes what they hold, makes each of
//! them again from its client's side, in order, and sends the bytes once more. Then nothing has changed but that the bytes are known.
//!
//! A TCP client is disconnected in place (AF_UNSPEC of connect(2)): it stays what it was to its program, to epoll sets and to others
//! who share it. A Unix client cannot be; its process makes a new socket, and has it for the old one when all is done.
//!
//! Rules: all processes of the computation stand; nothing is accepted before it is certain that all clients are the
//! computation's, or closed; once it has been, no error ends the work before each connection is made again.
use alloc::{format, string::String, vec::Vec};

use crate::capture::name;
use crate::diag::Diag;
use crate::model::{Ended, Message, Socket, State, Urgent, Waiting};
use crate::sys::{self, Errno, Owned};

pub mod calls;
mod tcp;
mod unix;

pub use unix::{succeed, successor};

/// What waits at a listener.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Inodes of the clients' sockets, in no order for TCP; 0: closed.
    pub clients: Vec<u64>,
    /// How many, with those that nobody finds any more: of TCP, the ones that were reset.
    count: usize,
    // Of TCP, in the order of `clients`: (here, client).
    ends: Vec<(Vec<u8>, Vec<u8>)>,
    /// Some hold bytes. (Of Unix sockets their clients know.)
    pub holds: bool,
}

/// A client that takes part: the inode of its socket, and that socket; of Unix the one that is to take its place.
#[derive(Debug)]
pub struct Client {
    /// Inode.
    pub ino: u64,
    /// Socket.
    pub fd: Owned,
}

/// What waits at the listener, if all of it could be made again as far as the listener knows.
///
/// # Errors
/// The kernel does not answer.
pub fn look(fd: i32, s: &Socket, diag: &Diag) -> sys::Result<Option<Queue>> {
    match s.state {
        State::Listening { .. } if s.family == libc::AF_UNIX => Ok(unix::look(s)),
        State::Listening { .. } if s.tcp.is_some() => tcp::look(fd, s, diag),
        _ => Ok(None),
    }
}

/// Does anything wait there that nobody but the listener's process could save: what closed clients have sent?
pub fn left_behind(fd: i32, s: &Socket, diag: &Diag) -> bool {
    look(fd, s, diag).ok().flatten().is_some_and(|queue| queue.holds && queue.clients.contains(&0))
}

/// Takes apart what waits at the listener, and makes it again. None: nothing was done, for somebody has come, or is not among
/// `clients`. Copies of descriptors that were under way are given to `close`.
///
/// # Errors
/// A connection that was not to be had again, in words: it is broken.
pub fn renew(
    fd: i32,
    s: &Socket,
    queue: &Queue,
    clients: &[Client],
    diag: &Diag,
    close: &mut dyn FnMut(Owned),
) -> Result<Option<Vec<Waiting>>, String> {
    // A Unix client that several processes have would need one successor for all.
    let most = if s.family == libc::AF_UNIX { 1 } else { usize::MAX };
    let known = |ino: u64| (1..=most).contains(&clients.iter().filter(|client| client.ino == ino).count());
    if !queue.clients.iter().all(|ino| *ino == 0 || known(*ino)) {
        return Ok(None);
    }
    if s.family == libc::AF_UNIX {
        unix::renew(fd, s, queue, clients, diag, close)
    } else {
        tcp::renew(fd, s, queue, clients, diag)
    }
}

/// Has it a peer?
pub fn is_connected(fd: i32) -> bool {
    name(fd, libc::SYS_getpeername).is_ok()
}

// Nobody of the computation did.
const TAKEN: &str = "a process outside the computation accepts connections at this listener, too";

// Accepts all of the queue before anything else: what comes now comes behind. And why that is not all of it.
fn accept_all(fd: i32, count: usize) -> (Vec<(Owned, Vec<u8>)>, Option<String>) {
    let all: Vec<_> = (0..count).map_while(|_| calls::accept(fd).ok()).collect();
    let failed = (all.len() < count).then(|| TAKEN.into());
    (all, failed)
}

// Who holds the client; None: it is closed.
fn held(clients: &[Client], ino: u64) -> Option<&Client> {
    clients.iter().find(|client| client.ino == ino && ino != 0)
}

// Sends all of it without waiting for a reader. The queues had room for it before.
pub(crate) fn send_all(fd: i32, data: &[u8], descriptors: &[i32], flags: i32) -> sys::Result<()> {
    let (mut rest, mut descriptors) = (data, descriptors);
    let mut before = 0;
    loop {
        match calls::send(fd, rest, &[], descriptors, flags) {
            Ok(n) if n >= rest.len() => return Ok(()),
            Ok(n) => (rest, descriptors) = (&rest[n..], &[]),
            Err(Errno(libc::EAGAIN)) => {
                let now = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, crate::options::SO_SNDBUF)?;
                if now <= before {
                    return Err(Errno(libc::ENOBUFS));
                }
                before = now;
                grow(fd, now.saturating_add(rest.len() as i32));
            }
            Err(e) => return Err(e),
        }
    }
}

// A larger send buffer (of about twice `size`), which counts as fixed by nobody but who had fixed it.
fn grow(fd: i32, size: i32) {
    use crate::options::{SO_BUF_LOCK, SO_SNDBUF};
    let locks = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_BUF_LOCK);
    // SO_SNDBUFFORCE 32: needs CAP_NET_ADMIN.
    if sys::setsockopt(fd, libc::SOL_SOCKET, 32, size).is_err() {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_SNDBUF, size);
    }
    if let Ok(locks) = locks {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_BUF_LOCK, locks);
    }
}

fn broken(address: &str, e: Errno) -> String {
    format!(
        "a connection {address} that its server has not accepted yet could not be made again: {e}; it is broken now"
    )
}
