//! Those of TCP.
use alloc::{string::String, vec, vec::Vec};

use super::{
    Client, Ended, Errno, Message, Owned, Queue, Socket, Urgent, Waiting, accept_all, broken, calls, held, send_all,
};
use crate::address::Endpoint;
use crate::capture::{name, push, receive, shut, tcp_info};
use crate::diag::Diag;
use crate::model::Tcp;
use crate::options::{SO_OOBINLINE, SO_PEEK_OFF, SO_REUSEADDR};
use crate::{sys, urgent};

/// Bytes that a client has sent arrive within microseconds; those of one whose segment was lost after 0.2 s.
const PATIENCE_NS: i64 = 20_000_000_000;
/// A reset arrives at once, but for the kernel's own threads, which may be behind.
const RESET_NS: i64 = 2_000_000_000;
const SO_ERROR: i32 = 4;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;

// Of a listening socket tcpi_unacked (offset 24) is how many wait.
fn count(fd: i32) -> sys::Result<usize> {
    tcp_info(fd).map(|info| u32::from_ne_bytes([info[24], info[25], info[26], info[27]]) as usize)
}

pub fn look(fd: i32, s: &Socket, diag: &Diag) -> sys::Result<Option<Queue>> {
    let count = count(fd)?;
    if count == 0 {
        return Ok(None);
    }
    let Some(all) = diag.backlog(&s.local)? else { return Ok(None) };
    let mut queue = Queue { count, ..Queue::default() };
    for (here, there, unread) in all {
        let (here, there) = (here.address(here.family()), there.address(there.family()));
        let client = diag.tcp(&there, &here)?.map_or(0, |client| u64::from(client.inode));
        if client == 0 && !is_here(&there) {
            return Ok(None);
        }
        queue.holds |= unread > 0;
        queue.clients.push(client);
        queue.ends.push((here, there));
    }
    Ok(Some(queue))
}

// Whether a socket could have this address.
fn is_here(address: &[u8]) -> bool {
    let Some(at) = Endpoint::parse(address) else { return false };
    let any_port = Endpoint { port: 0, ..at };
    let fd = sys::socket(at.family(), libc::SOCK_STREAM, 0);
    fd.is_ok_and(|fd| calls::bind(fd.0, &any_port.address(at.family())).is_ok())
}

pub fn renew(
    fd: i32,
    s: &Socket,
    queue: &Queue,
    clients: &[Client],
    diag: &Diag,
) -> Result<Option<Vec<Waiting>>, String> {
    // Who has come since is behind those that were counted, but may be a stranger.
    let same = |now: &Queue| now.count == queue.count && now.ends == queue.ends && now.clients == queue.clients;
    if !look(fd, s, diag).is_ok_and(|now| now.is_some_and(|now| same(&now))) {
        return Ok(None);
    }
    let mut out = Vec::new();
    let mut taken = Vec::new();
    let (all, mut failed) = accept_all(fd, queue.count);
    for (accepted, there) in all {
        let here = name(accepted.0, libc::SYS_getsockname).unwrap_or_else(|_| s.local.clone());
        let ino = queue.ends.iter().position(|(_, client)| Endpoint::parse(client) == Endpoint::parse(&there));
        let ino = ino.map_or(0, |at| queue.clients[at]);
        let client = held(clients, ino);
        let (mut waiting, complete) = drain(accepted.0, client.map(|client| client.fd.0), false);
        waiting.client = ino;
        waiting.ends = (there, here);
        if let Err(e) = complete {
            failed.get_or_insert(broken("of TCP", e));
        }
        taken.push((accepted, client, waiting));
    }
    for (accepted, client, waiting) in taken {
        let made = match client {
            Some(client) => again(client.fd.0, accepted, &waiting),
            None => in_its_place(accepted, &waiting),
        };
        if let Err(e) = made {
            failed.get_or_insert(broken("of TCP", e));
        }
        out.push(waiting);
    }
    failed.map_or(Ok(Some(out)), Err)
}

/// All that the client has sent, and how it ended; `all`: what is there is all.
pub fn drain(fd: i32, client: Option<i32>, all: bool) -> (Waiting, sys::Result<()>) {
    let written = client.and_then(|fd| tcp_info(fd).ok()).map(|info| (crate::tcp_counters(&info).0, info[0]));
    let inline = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_OOBINLINE).unwrap_or(0) != 0;
    let mut out = Waiting::default();
    let (mut data, mut buffer) = (Vec::new(), vec![0u8; 64 * 1024]);
    let begin = sys::clock(libc::CLOCK_MONOTONIC).unwrap_or(0);
    let complete = loop {
        if out.urgent.is_none() && urgent::at_mark(fd) {
            let mut byte = [0u8; 1];
            // In line it is the next byte, and stays where it is.
            let flags = if inline { libc::MSG_PEEK } else { libc::MSG_OOB };
            if receive(fd, &mut byte, flags) == Ok(1) {
                out.urgent = Some(Urgent { at: data.len() as u64, byte: byte[0], inline, read: false });
            }
        }
        let beside = u64::from(out.urgent.is_some() && !inline);
        match receive(fd, &mut buffer, 0) {
            Ok(0) => {
                out.ended = client.is_none().then_some(Ended::Closed);
                break Ok(());
            }
            Ok(n) => data.extend_from_slice(&buffer[..n]),
            Err(Errno(libc::EAGAIN)) => {
                let complete = |(written, state)| !Tcp::fin_sent(state) && data.len() as u64 + beside >= written;
                if all || written.is_some_and(complete) {
                    break Ok(());
                }
                client.iter().for_each(|fd| push(*fd));
                if sys::clock(libc::CLOCK_MONOTONIC).unwrap_or(i64::MAX) - begin > PATIENCE_NS {
                    break Err(Errno(libc::ETIMEDOUT));
                }
                sys::give_way();
            }
            Err(_) => {
                out.ended = Some(Ended::Reset);
                break Ok(());
            }
        }
    };
    if !data.is_empty() || out.urgent.is_some() {
        out.queue.push(Message { data, ..Message::default() });
    }
    (out, complete)
}

// Of a client that is there: disconnected, and connected again.
fn again(fd: i32, accepted: Owned, waiting: &Waiting) -> sys::Result<()> {
    let flags = sys::fcntl(fd, libc::F_GETFL, 0)?;
    let peek = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_PEEK_OFF);
    let (shut_read, _) = shut(fd);
    let shut_write = tcp_info(fd).is_ok_and(|info| Tcp::fin_sent(info[0]));
    // No signal for what happens now, and no waiting.
    let quiet = (flags | libc::O_NONBLOCK) & !libc::O_ASYNC;
    sys::fcntl(fd, libc::F_SETFL, quiet as usize)?;
    let made = disconnect(fd)
        .and_then(|()| {
            calls::reset(accepted);
            connect_from(fd, &waiting.ends.0, &waiting.ends.1)
        })
        .and_then(|()| send_again(fd, waiting));
    if shut_write {
        let _ = calls::shutdown(fd, libc::SHUT_WR);
    }
    if shut_read {
        let _ = calls::shutdown(fd, libc::SHUT_RD);
    }
    if let Ok(peek) = peek {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, peek);
    }
    let _ = sys::fcntl(fd, libc::F_SETFL, flags as usize);
    made
}

// As if it had never been connected; it leaves an error behind, which is not the program's.
fn disconnect(fd: i32) -> sys::Result<()> {
    let mut nowhere = [0u8; 16];
    nowhere[..2].copy_from_slice(&(libc::AF_UNSPEC as u16).to_ne_bytes());
    calls::connect(fd, &nowhere)?;
    let _ = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_ERROR);
    Ok(())
}

// From the old port. One that the program had not chosen has been given back, and is chosen by a range of one (Linux 6.3).
fn connect_from(fd: i32, from: &[u8], to: &[u8]) -> sys::Result<()> {
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let (Some(from), Some(to)) = (Endpoint::parse(from), Endpoint::parse(to)) else { return Err(Errno(libc::EINVAL)) };
    let family = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, 39 /* SO_DOMAIN */)?;
    let range = |range: u32| sys::setsockopt(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range as i32);
    let before = sys::getsockopt::<u32>(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE).unwrap_or(0);
    let connect = || {
        calls::connect(fd, &to.address(family))?;
        connected(fd)
    };
    let is = || name(fd, libc::SYS_getsockname).is_ok_and(|now| Endpoint::parse(&now) == Some(from));
    let port = u32::from(from.port);
    let ranged = range(port << 16 | port).is_ok();
    let begin = sys::clock(libc::CLOCK_MONOTONIC)?;
    let mut done = Err(Errno(libc::EADDRNOTAVAIL));
    if ranged {
        loop {
            done = connect();
            // The old connection is gone when its reset has come.
            let busy = matches!(done, Err(Errno(libc::EADDRNOTAVAIL | libc::EADDRINUSE)));
            if !busy || sys::clock(libc::CLOCK_MONOTONIC)? - begin > RESET_NS {
                break;
            }
            sys::give_way();
        }
        let _ = range(before);
    }
    if done.is_err() || !is() {
        let _ = disconnect(fd);
        let reuse = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_REUSEADDR).unwrap_or(0);
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_REUSEADDR, 1);
        let _ = calls::bind(fd, &from.address(family));
        done = connect();
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_REUSEADDR, reuse);
    }
    done
}

fn connected(fd: i32) -> sys::Result<()> {
    let begin = sys::clock(libc::CLOCK_MONOTONIC)?;
    loop {
        match tcp_info(fd)?[0] {
            // TCP_SYN_SENT.
            2 if sys::clock(libc::CLOCK_MONOTONIC)? - begin < PATIENCE_NS => sys::give_way(),
            2 => return Err(Errno(libc::ETIMEDOUT)),
            7 => return Err(Errno(sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_ERROR)?)),
            _ => return Ok(()),
        }
    }
}

// A client that nobody holds: one for the moment, which ends as the old one did.
fn in_its_place(accepted: Owned, waiting: &Waiting) -> sys::Result<()> {
    // The old one, which may still wait for the end from here, is gone with this.
    calls::reset(accepted);
    let (from, to) = &waiting.ends;
    let family = Endpoint::parse(from).ok_or(Errno(libc::EINVAL))?.family();
    let fd = sys::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    let any_port = Endpoint::parse(from).map(|from| Endpoint { port: 0, ..from }.address(family)).unwrap_or_default();
    sys::setsockopt(fd.0, libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
    calls::bind(fd.0, &any_port)?;
    connect_from(fd.0, from, to)?;
    send_again(fd.0, waiting)?;
    if waiting.ended == Some(Ended::Reset) {
        calls::reset(fd);
    }
    Ok(())
}

fn send_again(fd: i32, waiting: &Waiting) -> sys::Result<()> {
    for message in &waiting.queue {
        for (run, flags) in urgent::runs(&message.data, waiting.urgent.as_ref()) {
            if !run.is_empty() {
                send_all(fd, run, &[], flags)?;
            }
        }
    }
    Ok(())
}
