//! Rebuild of sockets, in the root of the restarting tree, before the program runs anywhere.
//!
//! Each pair of connected sockets is connected anew, over the old addresses where they are to be had, and what was unread is
//! written in again from the other end, so that every byte is there exactly once. Rules: everything is made at numbers
//! from `base` on, non-blocking (the installer sets the program's flags); connections come before listeners, so that no
//! stranger can be accepted; options that would disturb the work are set at the end.
use std::collections::HashMap;
use std::fmt;
use std::io;

use crate::address::Endpoint;
use crate::known::{self, Known};
use crate::model::{Message, Socket, State, Tcp};
use crate::restore as options;

mod datagram;
mod identity;
mod leftovers;
mod os;
mod pending;
mod tcp;
mod unix;

/// Why a socket could not be rebuilt.
#[derive(Debug)]
pub struct RebuildError {
    /// Which, in the order given.
    pub index: usize,
    /// What was being done.
    pub what: String,
    /// Why it failed.
    pub source: io::Error,
}

impl fmt::Display for RebuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for RebuildError {}

/// What was made.
#[derive(Debug, Default)]
pub struct Made {
    /// A descriptor each, in the order given.
    pub fds: Vec<i32>,
    /// What is not quite as it was: (which, in words).
    pub warnings: Vec<(usize, String)>,
    /// Sockets that have other addresses than the program knows.
    pub known: Vec<Known>,
}

type Result<T> = std::result::Result<T, RebuildError>;

/// Finds the descriptor for which a name in a message's `rights` stands: (index of the socket, name, descriptors of the sockets).
pub type Rights<'a> = &'a dyn Fn(usize, u32, &[Option<i32>]) -> Option<i32>;

struct Work<'a> {
    sockets: &'a [&'a Socket],
    base: i32,
    made: Vec<Option<i32>>,
    warnings: Vec<(usize, String)>,
    rights: Rights<'a>,
    // Unix connections whose unread bytes come when all is made, for descriptors may come with them.
    unfilled: Vec<unix::Unfilled>,
}

impl Work<'_> {
    fn error(&self, index: usize, what: impl Into<String>, source: io::Error) -> RebuildError {
        RebuildError { index, what: what.into(), source }
    }

    // What came with a message of socket `i`.
    fn rights(&self, i: usize, m: &Message) -> io::Result<Vec<i32>> {
        let find = |&name: &u32| {
            (self.rights)(i, name, &self.made)
                .ok_or_else(|| io::Error::other("a descriptor that was under way with it could not be made"))
        };
        m.rights.iter().map(find).collect()
    }

    fn warn(&mut self, index: usize, what: impl Into<String>) {
        self.warnings.push((index, what.into()));
    }
}

/// Who is whose peer.
#[derive(Debug, Default)]
pub struct Peers {
    /// The other end, if it is in the computation.
    pub of: Vec<Option<usize>>,
    /// Connected to somebody outside the computation.
    pub outside: Vec<bool>,
}

/// Finds the ends of each connection: Unix sockets by inode, TCP by addresses.
pub fn peers(sockets: &[&Socket]) -> Peers {
    let by_ino: HashMap<u64, usize> = sockets.iter().enumerate().map(|(i, s)| (s.ino, i)).collect();
    let by_ends: HashMap<(Endpoint, Endpoint), usize> =
        sockets.iter().enumerate().filter_map(|(i, s)| Some((ends(s)?, i))).collect();
    let mut out = Peers { of: vec![None; sockets.len()], outside: vec![false; sockets.len()] };
    for (i, s) in sockets.iter().enumerate() {
        if s.state != State::Connected {
            continue;
        }
        if let Some(unix) = &s.unix {
            let peer = unix.peer.filter(|&ino| ino != 0);
            out.of[i] = peer.and_then(|ino| by_ino.get(&ino).copied());
            out.outside[i] = peer.is_some() && out.of[i].is_none();
        } else if let Some((local, peer)) = ends(s) {
            out.of[i] = by_ends.get(&(peer, local)).copied().filter(|&j| j != i);
            let listening = || sockets.iter().any(|l| tcp::listens_for(l, &peer));
            out.outside[i] = out.of[i].is_none() && !s.tcp.is_some_and(|t| Tcp::fin_arrived(t.state)) && !listening();
        }
    }
    out
}

/// Both ends of a connection, for people.
pub fn show(s: &Socket) -> String {
    match ends(s) {
        Some(_) => format!("from {} to {}", tcp::show(&s.local), tcp::show(&s.peer)),
        None if unix::named(&s.peer) => format!("to the Unix socket {}", unix::show(&s.peer)),
        None if unix::named(&s.local) => {
            format!("of the Unix socket {} to a client without a name", unix::show(&s.local))
        }
        None => "to a Unix socket without a name".into(),
    }
}

// (local, peer) of a TCP connection.
fn ends(s: &Socket) -> Option<(Endpoint, Endpoint)> {
    s.tcp?;
    Some((Endpoint::parse(&s.local)?, Endpoint::parse(&s.peer)?))
}

/// Makes all sockets.
///
/// # Errors
/// The first that cannot be made, and why.
pub fn all(sockets: &[&Socket], base: i32, rights: Rights<'_>) -> Result<Made> {
    // What was as a fresh socket has it is in no image, but the new socket may have something else by then.
    let mut fresh = HashMap::new();
    let complete: Vec<Socket> = sockets
        .iter()
        .map(|s| {
            let key = (s.family, s.kind, s.protocol, s.state == State::Connected);
            let fresh = fresh.entry(key).or_insert_with(|| crate::options::fresh(s));
            let (local, peer) = s.known.clone().unwrap_or_else(|| (s.local.clone(), s.peer.clone()));
            Socket { options: crate::options::complete(s, fresh), local, peer, ..(*s).clone() }
        })
        .collect();
    // Ends are found by the kernel's addresses; then all that follows goes by the program's.
    let peers = peers(sockets);
    let sockets: &[&Socket] = &complete.iter().collect::<Vec<_>>();
    let mut w =
        Work { sockets, base, made: vec![None; sockets.len()], warnings: Vec::new(), rights, unfilled: Vec::new() };
    let tcp = sockets.iter().filter(|s| s.tcp.is_some());
    let names = tcp.flat_map(|s| s.backlog.iter().map(|one| &one.ends.0).chain([&s.local]));
    leftovers::clear(&names.filter_map(|name| Some(Endpoint::parse(name)?.port)).filter(|&p| p != 0).collect(), base);
    unix::listeners(&mut w)?;
    unix::connections(&mut w, &peers)?;
    tcp::connections(&mut w, &peers)?;
    tcp::listeners(&mut w)?;
    pending::all(&mut w, &peers)?;
    datagram::unix(&mut w, &peers)?;
    datagram::udp(&mut w)?;
    for i in 0..sockets.len() {
        if w.made[i].is_none() {
            let fd = idle(&mut w, i)?;
            w.made[i] = Some(fd);
        }
    }
    // Now that all is there which may be under way in a queue.
    unix::refill(&mut w)?;
    datagram::unix_queues(&mut w, &peers)?;
    unix::unlink(&w);
    for (i, s) in sockets.iter().enumerate() {
        options::last(w.made[i].unwrap_or(-1), s);
    }
    let fds: Vec<i32> = w.made.into_iter().map(|fd| fd.unwrap_or(-1)).collect();
    let known = fds.iter().zip(sockets).filter_map(|(&fd, s)| moved(fd, s)).collect();
    Ok(Made { fds, warnings: w.warnings, known })
}

// What the program is to be told of a socket that is not where it was.
fn moved(fd: i32, s: &Socket) -> Option<Known> {
    let was = Endpoint::parse(&s.local)?;
    let now = os::name(fd, false).ok()?;
    let peer = os::name(fd, true).ok().filter(|_| !s.peer.is_empty());
    let same = Endpoint::parse(&now) == Some(was)
        && peer.as_ref().is_none_or(|peer| Endpoint::parse(peer) == Endpoint::parse(&s.peer));
    if same || was.port == 0 {
        return None;
    }
    Some(Known {
        cookie: known::cookie(fd)?,
        local: s.local.clone(),
        peer: peer.map_or_else(Vec::new, |_| s.peer.clone()),
        now,
    })
}

// Not connected; bound perhaps. Netlink sockets, too.
fn idle(w: &mut Work<'_>, i: usize) -> Result<i32> {
    let s = w.sockets[i];
    let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| w.error(i, "making a socket", e))?;
    options::first(fd, s);
    if s.family == libc::AF_NETLINK {
        // struct sockaddr_nl: family, pad, pid, groups. The port id may be another process's now.
        let mut address = s.local.clone();
        let bound = address.iter().skip(2).any(|&b| b != 0);
        if bound && os::bind(fd, &address).is_err() && address.len() >= 8 {
            address[4..8].fill(0);
            os::bind(fd, &address).map_err(|e| w.error(i, "binding a netlink socket", e))?;
            w.warn(i, "a netlink socket has another port id now");
        }
    } else if Endpoint::parse(&s.local).is_some_and(|e| e.port != 0) {
        tcp::bind(w, i, fd, &s.local)?;
    } else if s.family == libc::AF_UNIX {
        unix::bind(w, i, fd)?;
    }
    Ok(fd)
}
