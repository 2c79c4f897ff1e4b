//! TCP sockets.
//!
//! A pair is connected again through a listener for the moment on the one end's old address, with the other end bound to its
//! own: both addresses are as before. Where an address is not to be had here (another host, another copy running), loopback and
//! a free port stand for it, with a warning. A peer outside the computation comes back as a reset.
use std::collections::HashMap;
use std::io;

use super::{Peers, Result, Work, os};
use crate::address::Endpoint;
use crate::capture::widen;
use crate::model::{Socket, State, Tcp};
use crate::options::{SO_BUF_LOCK, SO_RCVBUF, SO_SNDBUF, int};
use crate::restore as options;
use crate::sys;

const BACKLOG: i32 = 1024;

/// Whether `l` listens where a connection to `to` arrives.
pub fn listens_for(l: &Socket, to: &Endpoint) -> bool {
    l.tcp.is_some()
        && matches!(l.state, State::Listening { .. })
        && Endpoint::parse(&l.local).is_some_and(|e| e.port == to.port && (e.is_any() || e.ip == to.ip))
}

// Loopback and any port, in the family of `address`, IPv4-mapped if it was.
fn elsewhere(address: &[u8]) -> Vec<u8> {
    let mut out = address.to_vec();
    out[2..4].fill(0);
    match Endpoint::parse(address) {
        Some(e) if e.family() == libc::AF_INET && address.len() >= 28 => out[20..24].copy_from_slice(&[127, 0, 0, 1]),
        Some(e) if e.family() == libc::AF_INET => out[4..8].copy_from_slice(&[127, 0, 0, 1]),
        _ => {
            out[8..24].fill(0);
            out[23] = 1;
        }
    }
    out
}

/// Binds to the old address, or near it, and says so.
pub fn bind(w: &mut Work<'_>, i: usize, fd: i32, address: &[u8]) -> Result<()> {
    let Err(first) = os::bind(fd, address) else { return Ok(()) };
    // The address is not this host's: the old port on loopback; the port is taken: any other.
    let mut same_port = elsewhere(address);
    same_port[2..4].copy_from_slice(&address[2..4]);
    let mut same_address = address.to_vec();
    same_address[2..4].fill(0);
    let tries = if first.raw_os_error() == Some(libc::EADDRNOTAVAIL) {
        [same_port, elsewhere(address)]
    } else {
        [same_address, elsewhere(address)]
    };
    for other in tries {
        if os::bind(fd, &other).is_ok() {
            let now = os::name(fd, false).unwrap_or(other);
            w.warn(
                i,
                format!("the address {} is not to be had here ({first}); it is {} now", show(address), show(&now)),
            );
            return Ok(());
        }
    }
    Err(w.error(i, format!("binding to {}", show(address)), first))
}

/// Connected ones, and those whose connection has ended.
pub fn connections(w: &mut Work<'_>, peers: &Peers) -> Result<()> {
    let mut listeners: HashMap<Vec<u8>, i32> = HashMap::new();
    // Those without an end here first: while somebody listens at a port, nobody else is bound to it.
    let (pairs, alone): (Vec<_>, Vec<_>) = (0..w.sockets.len()).partition(|&i| peers.of[i].is_some());
    for i in alone.into_iter().chain(pairs) {
        let s = w.sockets[i];
        let Some(tcp) = s.tcp else { continue };
        if w.made[i].is_some() {
            continue;
        }
        let fail =
            |w: &Work<'_>, e| w.error(i, format!("connecting {} and {} again", show(&s.local), show(&s.peer)), e);
        match (s.state, peers.of[i]) {
            (State::Connected, Some(j)) => {
                let other = w.sockets[j];
                under_way(w, i, s, other)?;
                under_way(w, j, other, s)?;
                let (server, client) = if accepted(s) || !accepted(other) { (i, j) } else { (j, i) };
                let listener = listener(w, server, &mut listeners)?;
                let (c, a) = connect(w, client, Some(server), listener)?;
                (w.made[server], w.made[client]) = (Some(a), Some(c));
                let (a, b) = if server == i { (a, c) } else { (c, a) };
                fill(b, a, s).map_err(|e| fail(w, e))?;
                fill(a, b, other).map_err(|e| fail(w, e))?;
                for (fd, socket, peer) in [(a, s, other), (b, other, s)] {
                    shut(fd, socket, peer.shut_write).map_err(|e| fail(w, e))?;
                }
            }
            // A client that nobody has accepted yet: see `pending`.
            (State::Connected, None) if !peers.outside[i] && !Tcp::fin_arrived(tcp.state) => {}
            (State::Connected | State::Ended { .. }, _) => {
                let a = broken(w, i, peers.outside[i] || s.state == State::Ended { error: true })?;
                w.made[i] = Some(a);
            }
            // To a listener of the computation: see `pending`.
            (State::Connecting, _) if connects_inside(w.sockets, s) => {}
            (State::Connecting, _) => {
                // To the outside: it fails.
                let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| fail(w, e))?;
                options::first(fd, s);
                let _ = bind(w, i, fd, &s.local);
                let listener = refusing(s).map_err(|e| fail(w, e))?;
                let _ = os::connect(fd, &listener);
                w.made[i] = Some(fd);
            }
            _ => {}
        }
    }
    listeners.into_values().for_each(os::close);
    Ok(())
}

// Which end was accepted: the kernel keeps the SYN's hop limit in what is the multicast hop limit of a socket that connected (1).
fn accepted(s: &Socket) -> bool {
    let hops = |level, name| int(s, level, name).is_some_and(|hops| hops != 1);
    match Endpoint::parse(&s.peer) {
        Some(e) if e.family() == libc::AF_INET6 => hops(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
        _ => hops(libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    }
}

// An address at which nobody listens: a port that was free a moment ago.
fn refusing(s: &Socket) -> io::Result<Vec<u8>> {
    let fd = os::socket(s.family, s.kind, s.protocol, 3)?;
    os::bind(fd, &elsewhere(&s.local))?;
    let name = os::name(fd, false)?;
    os::close(fd);
    Ok(name)
}

// All that was written must have been seen by the other end's peek.
fn under_way(w: &Work<'_>, i: usize, s: &Socket, peer: &Socket) -> Result<()> {
    let (Some(from), Some(to)) = (s.tcp, peer.tcp) else { return Ok(()) };
    if from.written > to.arrived {
        let bytes = from.written - to.arrived;
        let what = format!(
            "{bytes} bytes from {} to {} were still under way when the checkpoint was taken",
            show(&s.local),
            show(&s.peer)
        );
        return Err(w.error(i, what, io::Error::other("they are in no image")));
    }
    Ok(())
}

// One listener an address, for the moment.
fn listener(w: &mut Work<'_>, server: usize, listeners: &mut HashMap<Vec<u8>, i32>) -> Result<i32> {
    let s = w.sockets[server];
    if let Some(&fd) = listeners.get(&s.local) {
        return Ok(fd);
    }
    let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| w.error(server, "making a TCP socket", e))?;
    // Whatever else the end has, e.g. SO_REUSEPORT and IPV6_V6ONLY, matters for the bind.
    options::first(fd, s);
    bind(w, server, fd, &s.local)?;
    os::listen(fd, BACKLOG).map_err(|e| w.error(server, "listen", e))?;
    listeners.insert(s.local.clone(), fd);
    Ok(fd)
}

// (client, accepted)
fn connect(w: &mut Work<'_>, client: usize, server: Option<usize>, listener: i32) -> Result<(i32, i32)> {
    let c = w.sockets[client];
    let fail =
        |w: &Work<'_>, e| w.error(client, format!("connecting {} and {} again", show(&c.local), show(&c.peer)), e);
    let to = os::name(listener, false).map_err(|e| fail(w, e))?;
    let to = Endpoint::parse(&to).map_or(to, |e| e.address(c.family));
    let inherited = server.and_then(|server| options::for_one(listener, w.sockets[server]));
    let mut fd = os::socket(c.family, c.kind, c.protocol, w.base).map_err(|e| fail(w, e))?;
    options::first(fd, c);
    let mut done = os::bind(fd, &c.local).and_then(|()| os::connect(fd, &to));
    if done.is_err() {
        // One of those that `leftovers` could not end may forbid the bind, but not always the connection.
        os::close(fd);
        fd = os::socket(c.family, c.kind, c.protocol, w.base).map_err(|e| fail(w, e))?;
        options::first(fd, c);
        done = from_port(fd, &c.local, &to);
    }
    if done.is_err() {
        os::close(fd);
        fd = os::socket(c.family, c.kind, c.protocol, w.base).map_err(|e| fail(w, e))?;
        options::first(fd, c);
        bind(w, client, fd, &c.local)?;
        os::connect(fd, &to).map_err(|e| fail(w, e))?;
    }
    let mine = os::name(fd, false).map_err(|e| fail(w, e))?;
    // A stranger may have connected in between.
    let accepted = loop {
        let accepted = os::accept(listener, w.base).map_err(|e| fail(w, e))?;
        let peer = os::name(accepted, true).unwrap_or_default();
        if Endpoint::parse(&peer) == Endpoint::parse(&mine) {
            break accepted;
        }
        os::reset(accepted);
    };
    options::not_for(listener, inherited);
    os::wait(fd, libc::POLLOUT).map_err(|e| fail(w, e))?;
    if let Some(server) = server {
        options::first(accepted, w.sockets[server]);
    }
    Ok((fd, accepted))
}

/// Connects from a port without bind(2): the kernel then looks at the connection as a whole, and takes over one that is in
/// TIME_WAIT (IP_LOCAL_PORT_RANGE: Linux 6.3).
pub fn from_port(fd: i32, local: &[u8], to: &[u8]) -> io::Result<()> {
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let port = i32::from(u16::from_be_bytes([local[2], local[3]]));
    let set =
        |name, value| sys::setsockopt(fd, libc::IPPROTO_IP, name, value).map_err(|e| io::Error::from_raw_os_error(e.0));
    set(IP_BIND_ADDRESS_NO_PORT, 1)?;
    set(IP_LOCAL_PORT_RANGE, port << 16 | port)?;
    let mut address = local.to_vec();
    address[2..4].fill(0);
    os::bind(fd, &address)?;
    let done = os::connect(fd, to);
    set(IP_LOCAL_PORT_RANGE, 0)?;
    set(IP_BIND_ADDRESS_NO_PORT, 0)?;
    done
}

// A connection that has ended, or whose peer is not to be had: unread bytes, then its end or a reset.
fn broken(w: &mut Work<'_>, i: usize, reset: bool) -> Result<i32> {
    let s = w.sockets[i];
    let fail = |w: &Work<'_>, e| w.error(i, format!("making the broken connection to {}", show(&s.peer)), e);
    let listener = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| fail(w, e))?;
    // The peer's address, if it is this host's: getpeername(2) may still be asked.
    let _ = sys::setsockopt(listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    if s.peer.is_empty() || os::bind(listener, &s.peer).is_err() {
        os::bind(listener, &elsewhere(&s.local)).map_err(|e| fail(w, e))?;
    }
    os::listen(listener, 8).map_err(|e| fail(w, e))?;
    let (a, b) = connect(w, i, None, listener)?;
    os::close(listener);
    fill(b, a, s).map_err(|e| fail(w, e))?;
    if reset {
        // All must have arrived: a reset throws away what is still to be sent.
        arrived(b, a).map_err(|e| fail(w, e))?;
        os::reset(b);
        os::wait(a, libc::POLLRDHUP).map_err(|e| fail(w, e))?;
    } else {
        os::shutdown(b, libc::SHUT_WR).map_err(|e| fail(w, e))?;
        os::wait(a, libc::POLLRDHUP).map_err(|e| fail(w, e))?;
        if s.shut_write || matches!(s.state, State::Ended { .. }) {
            os::shutdown(a, libc::SHUT_WR).map_err(|e| fail(w, e))?;
        }
        os::close(b);
    }
    Ok(a)
}

// Waits, for a bounded number of looks, until all that was written to `from` is in the queue of `to`. Counters tell; the
// acknowledgement itself may be delayed.
fn arrived(from: i32, to: i32) -> io::Result<()> {
    let counters =
        |fd| sys::getsockopt_bytes(fd, libc::IPPROTO_TCP, 11, 512).map_or((0, 0), |info| crate::tcp_counters(&info));
    for _ in 0..10_000 {
        if counters(from).0 <= counters(to).1 {
            return Ok(());
        }
        let _ = widen(to);
        crate::capture::push(from);
    }
    Err(io::Error::from(io::ErrorKind::TimedOut))
}

// Writes what `s` (which is `reader`) has not read yet into its peer.
fn fill(writer: i32, reader: i32, s: &Socket) -> io::Result<()> {
    let (mut grown, mut stuck) = (false, 0u32);
    // Room for all of it before the first byte comes: a window that closes on the way opens by the sender's timer.
    let unread: usize = s.queue.iter().map(|m| m.data.len()).sum();
    if unread > 16 * 1024 {
        let _ = widen(reader);
    }
    let urgent = s.tcp.and_then(|tcp| tcp.urgent);
    for message in &s.queue {
        for (mut rest, flags) in crate::urgent::runs(&message.data, urgent.as_ref()) {
            while !rest.is_empty() {
                match os::send_as(writer, rest, &[], flags) {
                    Ok(n) => (rest, stuck) = (&rest[n..], if grown { stuck } else { 0 }),
                    Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                        let _ = widen(reader);
                        stuck += 1;
                        if stuck == 100 {
                            // Neither window nor buffer suffice: larger ones, for the moment.
                            grown = true;
                            options::grow(reader, SO_RCVBUF, (rest.len() as i32).saturating_mul(2));
                            options::grow(writer, SO_SNDBUF, (rest.len() as i32).saturating_mul(2));
                        } else if stuck > 100 && stuck.is_multiple_of(100) {
                            os::wait(writer, libc::POLLOUT)?;
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }
    // Into the reader's queue as far as the window allows, where the next capture finds it at once.
    if !s.queue.is_empty() {
        let _ = arrived(writer, reader);
    }
    if urgent.is_some_and(|urgent| urgent.read) {
        os::receive_urgent(reader)?;
    }
    if grown {
        // Back to the kernel's own tuning; `options::last` fixes what the program had fixed.
        for fd in [writer, reader] {
            let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_BUF_LOCK, 0);
        }
    }
    Ok(())
}

fn shut(fd: i32, s: &Socket, peer_shut_write: bool) -> io::Result<()> {
    if s.shut_write {
        os::shutdown(fd, libc::SHUT_WR)?;
    }
    // Reading is shut by the peer's FIN, too; that comes by itself.
    if s.shut_read && !peer_shut_write {
        os::shutdown(fd, libc::SHUT_RD)?;
    }
    Ok(())
}

/// Listening sockets; after the connections, whose ports are theirs.
pub fn listeners(w: &mut Work<'_>) -> Result<()> {
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        let State::Listening { backlog } = s.state else { continue };
        if s.tcp.is_none() {
            continue;
        }
        let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| w.error(i, "making a TCP socket", e))?;
        options::first(fd, s);
        bind(w, i, fd, &s.local)?;
        os::listen(fd, backlog).map_err(|e| w.error(i, "listen", e))?;
        w.made[i] = Some(fd);
    }
    Ok(())
}

fn connects_inside(sockets: &[&Socket], s: &Socket) -> bool {
    Endpoint::parse(&s.peer).is_some_and(|to| sockets.iter().any(|l| listens_for(l, &to)))
}

/// An address for people.
pub fn show(address: &[u8]) -> String {
    let Some(e) = Endpoint::parse(address) else { return "(none)".into() };
    let ip = std::net::Ipv6Addr::from(e.ip);
    match ip.to_ipv4_mapped() {
        Some(v4) => format!("{v4}:{}", e.port),
        None => format!("[{ip}]:{}", e.port),
    }
}
