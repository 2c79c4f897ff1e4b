//! Datagram sockets: Unix and UDP. Unread datagrams are sent again, each from the address it came from, before the receiver is
//! connected (for then it would take them from one sender only).
use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::identity::by;
use super::unix::named;
use super::{Peers, Result, Work, os, tcp};
use crate::address::Endpoint;
use crate::model::{Message, Socket, State};
use crate::restore as options;

/// Unix datagram sockets.
pub fn unix(w: &mut Work<'_>, peers: &Peers) -> Result<()> {
    let mine = |s: &Socket| s.family == libc::AF_UNIX && s.kind == libc::SOCK_DGRAM;
    let fail = |w: &Work<'_>, i: usize, e| w.error(i, "making a Unix datagram socket", e);
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        if !mine(s) || w.made[i].is_some() {
            continue;
        }
        // A pair without names can only come from socketpair(2).
        if let Some(j) = peers.of[i]
            && peers.of[j] == Some(i)
            && !named(&s.local)
            && !named(&w.sockets[j].local)
            && w.made[j].is_none()
        {
            let who = s.unix.as_ref().and_then(|unix| unix.credentials);
            let (a, b) = by(who, || os::pair(s.kind, w.base)).map_err(|e| fail(w, i, e))?;
            options::first(a, s);
            options::first(b, w.sockets[j]);
            (w.made[i], w.made[j]) = (Some(a), Some(b));
            continue;
        }
        let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| fail(w, i, e))?;
        options::first(fd, s);
        super::unix::bind(w, i, fd)?;
        w.made[i] = Some(fd);
    }
    Ok(())
}

/// Their unread datagrams, then their connections.
pub fn unix_queues(w: &mut Work<'_>, peers: &Peers) -> Result<()> {
    let mine = |s: &Socket| s.family == libc::AF_UNIX && s.kind == libc::SOCK_DGRAM;
    // Names -> sockets, to send from.
    let names: HashMap<&[u8], i32> = w
        .sockets
        .iter()
        .zip(&w.made)
        .filter_map(|(s, fd)| (mine(s) && named(&s.local)).then_some((s.local.as_slice(), (*fd)?)))
        .collect();
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        if !mine(s) {
            continue;
        }
        // Of a connected receiver only its peer's last datagrams can be more than the system's limit of unread ones
        // (net.unix.max_dgram_qlen): it is connected before they come. Not sooner, for then nobody else could send; nor again,
        // for that empties the queue.
        let peer = peers.of[i].map(|j| w.sockets[j].local.as_slice()).filter(|name| named(name));
        let others = s.queue.iter().rposition(|m| Some(m.from.as_slice()) != peer).map_or(0, |at| at + 1);
        for (at, m) in s.queue.iter().enumerate() {
            if at == others
                && s.state == State::Connected
                && let (Some(name), Some(fd)) = (peer, w.made[i])
                && os::name(fd, true).is_err()
            {
                os::connect(fd, name).map_err(|e| w.error(i, "connecting a Unix datagram socket", e))?;
            }
            let rights = w.rights(i, m).map_err(|e| w.error(i, "an unread datagram", e))?;
            let sent = if named(&s.local) {
                refill_unix(&names, m, &s.local, &rights, w.base)
            } else if let Some(peer) = peers.of[i].and_then(|j| w.made[j]) {
                send(peer, m, &[], &rights)
            } else {
                // An unnamed receiver whose peer is gone: what it has not read came through a pair.
                Err(io::Error::other("its sender is closed, and nobody else can send to a socket without a name"))
            };
            if let Err(e) = sent {
                return Err(w.error(i, format!("an unread datagram of {} bytes", m.data.len()), e));
            }
        }
    }
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        if !mine(s) || s.state != State::Connected {
            continue;
        }
        let Some(fd) = w.made[i] else { continue };
        if os::name(fd, true).is_err() {
            match peers.of[i].map(|j| w.sockets[j].local.clone()).filter(|name| named(name)) {
                Some(name) => os::connect(fd, &name).map_err(|e| w.error(i, "connecting a Unix datagram socket", e))?,
                None => w.warn(i, "the peer of a Unix datagram socket is outside or gone: it is not connected now"),
            }
        }
        if s.shut_write {
            let _ = os::shutdown(fd, libc::SHUT_WR);
        }
        if s.shut_read {
            let _ = os::shutdown(fd, libc::SHUT_RD);
        }
    }
    Ok(())
}

fn send(fd: i32, m: &Message, to: &[u8], rights: &[i32]) -> io::Result<()> {
    match by(m.credentials, || os::send_with(fd, &m.data, to, rights)) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EMSGSIZE | libc::EAGAIN)) => {
            let now = crate::sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
            options::grow(fd, libc::SO_SNDBUF, now + m.data.len() as i32);
            by(m.credentials, || os::send_with(fd, &m.data, to, rights)).map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

fn refill_unix(names: &HashMap<&[u8], i32>, m: &Message, to: &[u8], rights: &[i32], base: i32) -> io::Result<()> {
    if let Some(&fd) = names.get(m.from.as_slice()) {
        return send(fd, m, to, rights);
    }
    // The sender is gone, or has no name: one for the moment.
    let fd = os::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0, base)?;
    let path = m.from.get(2..).unwrap_or(&[]).split(|&b| b == 0).next().unwrap_or(&[]).to_vec();
    let path = Path::new(std::ffi::OsStr::from_bytes(&path));
    // The file that the sender left behind steps aside.
    let aside = path.with_extension("slackwater-aside");
    let stepped = !path.as_os_str().is_empty() && std::fs::rename(path, &aside).is_ok();
    let done = (|| {
        if named(&m.from) {
            os::bind(fd, &m.from)?;
        }
        send(fd, m, to, rights)
    })();
    os::close(fd);
    if !path.as_os_str().is_empty() && done.is_ok() {
        let _ = std::fs::remove_file(path);
    }
    if stepped {
        std::fs::rename(&aside, path)?;
    }
    done
}

/// UDP sockets.
pub fn udp(w: &mut Work<'_>) -> Result<()> {
    let mine = |s: &Socket| s.protocol == libc::IPPROTO_UDP && s.kind == libc::SOCK_DGRAM && s.family != libc::AF_UNIX;
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        if !mine(s) {
            continue;
        }
        let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| w.error(i, "making a UDP socket", e))?;
        options::first(fd, s);
        if Endpoint::parse(&s.local).is_some_and(|e| e.port != 0) {
            tcp::bind(w, i, fd, &s.local)?;
        }
        w.made[i] = Some(fd);
    }
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        let Some(fd) = w.made[i].filter(|_| mine(s)) else { continue };
        for m in &s.queue {
            if let Err(e) = refill_udp(w, i, fd, m) {
                w.warn(
                    i,
                    format!("an unread datagram of {} bytes from {} is lost: {e}", m.data.len(), tcp::show(&m.from)),
                );
            }
        }
    }
    for i in 0..w.sockets.len() {
        let s = w.sockets[i];
        let Some(fd) = w.made[i].filter(|_| mine(s)) else { continue };
        if s.state == State::Connected {
            os::connect(fd, &s.peer)
                .map_err(|e| w.error(i, format!("connecting a UDP socket to {}", tcp::show(&s.peer)), e))?;
        }
        if s.shut_read {
            let _ = os::shutdown(fd, libc::SHUT_RD);
        }
    }
    Ok(())
}

// From the address it came from: all sockets here allow a second one on their address until the options are set at the end.
fn refill_udp(w: &Work<'_>, i: usize, fd: i32, m: &Message) -> io::Result<()> {
    let s = w.sockets[i];
    let mut to = os::name(fd, false)?;
    if Endpoint::parse(&to).is_some_and(|e| e.is_any()) {
        // Bound to all addresses: the one by which the sender reaches it is its own.
        to = m.from.clone();
        to[2..4].copy_from_slice(&os::name(fd, false)?[2..4]);
    }
    let from = os::socket(s.family, s.kind, s.protocol, w.base)?;
    crate::sys::setsockopt(from, libc::SOL_SOCKET, crate::options::SO_REUSEADDR, 1)
        .map_err(|e| io::Error::from_raw_os_error(e.0))?;
    let done = os::bind(from, &m.from).and_then(|()| send(from, m, &to, &[]));
    os::close(from);
    done
}
