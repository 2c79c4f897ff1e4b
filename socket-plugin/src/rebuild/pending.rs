//! TCP clients that wait to be accepted, or to be connected to a listener of the computation.
use std::collections::HashSet;
use std::io;

use super::{Peers, Result, Work, os, tcp};
use crate::address::Endpoint;
use crate::model::{Ended, State, Waiting};
use crate::restore as options;
use crate::urgent;

/// Makes them; those whose connection is made already first, for they fill its backlog: in the order in which they wait, with what
/// they had sent, as far as that is known.
pub fn all(w: &mut Work<'_>, peers: &Peers) -> Result<()> {
    let mut done = HashSet::new();
    for l in 0..w.sockets.len() {
        let listener = w.sockets[l];
        if listener.tcp.is_none() {
            continue;
        }
        for waiting in &listener.backlog {
            let held = |i: &usize| w.sockets[*i].ino == waiting.client && w.sockets[*i].tcp.is_some();
            match (0..w.sockets.len()).find(held).filter(|_| waiting.client != 0) {
                Some(i) => {
                    let fd = connect(w, i)?;
                    send(fd, waiting).map_err(|e| fail(w, i, e))?;
                    done.insert(i);
                    shut(w, i, fd)?;
                }
                None => closed(w, l, waiting).map_err(|e| {
                    w.error(
                        l,
                        format!(
                            "connecting {} to it again, which has sent something, and ended",
                            tcp::show(&waiting.ends.0)
                        ),
                        e,
                    )
                })?,
            }
        }
    }
    let (made, wanted): (Vec<_>, Vec<_>) = (0..w.sockets.len()).partition(|&i| w.sockets[i].state == State::Connected);
    for i in made.into_iter().chain(wanted) {
        let s = w.sockets[i];
        let waits = matches!(s.state, State::Connected | State::Connecting);
        if s.tcp.is_none() || !waits || w.made[i].is_some() || peers.outside[i] || Endpoint::parse(&s.peer).is_none() {
            continue;
        }
        let fd = connect(w, i)?;
        shut(w, i, fd)?;
    }
    Ok(())
}

fn fail(w: &Work<'_>, i: usize, e: io::Error) -> super::RebuildError {
    let s = w.sockets[i];
    w.error(i, format!("connecting {} to {} again", tcp::show(&s.local), tcp::show(&s.peer)), e)
}

// Where the listener of this address is now.
fn server(w: &Work<'_>, to: &[u8]) -> Vec<u8> {
    let Some(at) = Endpoint::parse(to) else { return to.to_vec() };
    let listener = (0..w.sockets.len()).find(|&l| tcp::listens_for(w.sockets[l], &at)).and_then(|l| w.made[l]);
    let now = listener.and_then(|l| os::name(l, false).ok()).and_then(|name| Endpoint::parse(&name));
    let mut address = to.to_vec();
    address[2..4].copy_from_slice(&now.map_or(at.port, |now| now.port).to_be_bytes());
    address
}

// From its old address: by bind(2), or, where others have connections from that port, too, without.
fn from(fresh: impl Fn() -> io::Result<i32>, from: &[u8], to: &[u8]) -> io::Result<i32> {
    let attempt = |connect: &dyn Fn(i32) -> io::Result<()>| {
        let fd = fresh()?;
        connect(fd).map(|()| fd).inspect_err(|_| os::close(fd))
    };
    attempt(&|fd| os::bind(fd, from).and_then(|()| os::connect(fd, to)))
        .or_else(|_| attempt(&|fd| tcp::from_port(fd, from, to)))
}

fn connect(w: &mut Work<'_>, i: usize) -> Result<i32> {
    let s = w.sockets[i];
    let to = server(w, &s.peer);
    let fresh = |w: &Work<'_>| -> Result<i32> {
        let fd = os::socket(s.family, s.kind, s.protocol, w.base).map_err(|e| fail(w, i, e))?;
        options::first(fd, s);
        Ok(fd)
    };
    let fd = match from(|| fresh(w).map_err(|e| e.source), &s.local, &to) {
        Ok(fd) => fd,
        Err(_) => {
            let fd = fresh(w)?;
            tcp::bind(w, i, fd, &s.local)?;
            os::connect(fd, &to).map_err(|e| fail(w, i, e))?;
            fd
        }
    };
    // A listener that has no room for it yet: it connects on.
    if s.state == State::Connected {
        os::wait(fd, libc::POLLOUT).map_err(|e| fail(w, i, e))?;
    }
    w.made[i] = Some(fd);
    Ok(fd)
}

fn shut(w: &Work<'_>, i: usize, fd: i32) -> Result<()> {
    if w.sockets[i].shut_write {
        os::shutdown(fd, libc::SHUT_WR).map_err(|e| fail(w, i, e))?;
    }
    if w.sockets[i].shut_read && w.sockets[i].state == State::Connected {
        os::shutdown(fd, libc::SHUT_RD).map_err(|e| fail(w, i, e))?;
    }
    Ok(())
}

// One that nobody has any more: it sends, and ends as it had.
fn closed(w: &mut Work<'_>, l: usize, waiting: &Waiting) -> io::Result<()> {
    let (from, to) = &waiting.ends;
    let server = server(w, to);
    let at = |address: &[u8]| Endpoint::parse(address).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
    let (from, to) = (at(from)?, at(&server)?);
    let family = from.family();
    let base = w.base;
    let fresh = || {
        let fd = os::socket(family, libc::SOCK_STREAM, 0, base)?;
        let _ = crate::sys::setsockopt(fd, libc::SOL_SOCKET, crate::options::SO_REUSEADDR, 1);
        Ok(fd)
    };
    let (from, to) = (from.address(family), to.address(family));
    let fd = match self::from(fresh, &from, &to) {
        Ok(fd) => fd,
        Err(e) => {
            w.warn(l, format!("a client that waits there comes from another port than {} now: {e}", tcp::show(&from)));
            let fd = fresh()?;
            os::connect(fd, &to)?;
            fd
        }
    };
    os::wait(fd, libc::POLLOUT)?;
    send(fd, waiting)?;
    if waiting.ended == Some(Ended::Reset) {
        os::reset(fd)
    } else {
        os::close(fd)
    }
    Ok(())
}

fn send(fd: i32, waiting: &Waiting) -> io::Result<()> {
    for message in &waiting.queue {
        for (run, flags) in
            urgent::runs(&message.data, waiting.urgent.as_ref()).into_iter().filter(|run| !run.0.is_empty())
        {
            crate::waiting::send_all(fd, run, &[], flags).map_err(|e| io::Error::from_raw_os_error(e.0))?;
        }
    }
    Ok(())
}
