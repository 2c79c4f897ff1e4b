//! Connections that hold bytes and wait to be accepted for long, taken apart and made again (`slackwater_socket::waiting`), where
//! clients and listener may be several processes'.
//!
//! Four steps, between which all processes have done the one before: who has a listener binds a mailbox, and tells which clients
//! it wants to see ([`Step::Ask`]); these send it their socket, of TCP, or the one that is to take its place, of Unix
//! ([`Step::Lend`]); it does the work, and tells which are done ([`Step::Renew`]); clients take that over ([`Step::Take`]).
//!
//! Rules: what one process has to wait for another's answer for is not begun: whatever fails between two steps, the connections
//! are as they were, or made again ([`end`]). A mailbox takes nothing from who does not know its secret.
use alloc::{format, vec::Vec};

use slackwater_socket::diag::Diag;
use slackwater_socket::model::Socket;
use slackwater_socket::sys::{self, Owned};
use slackwater_socket::waiting::{self, Client, Queue, calls};

use super::{CaptureError, Result, fdinfo, flight, keys, watch};
use crate::model::{Kind, Open, Table};

/// What is under way between the steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// It was done, or tried.
    pub tried: bool,
    /// Own listeners: place in [`Table::opens`], mailbox, its secret.
    boxes: Vec<(usize, i32, Vec<u8>)>,
    /// Own TCP clients that take part.
    lent: Vec<usize>,
    /// Own Unix clients, and what is to take their place.
    successors: Vec<(usize, i32)>,
}

/// See the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Listeners.
    Ask,
    /// Clients.
    Lend,
    /// Listeners.
    Renew,
    /// Clients.
    Take,
}

/// All of them, in their order.
pub const STEPS: [Step; 4] = [Step::Ask, Step::Lend, Step::Renew, Step::Take];

/// What was told to all in a step: (key, value).
pub type Told = Vec<(Vec<u8>, Vec<u8>)>;

const SECRET: usize = 16;
/// Sockets in one message (SCM_MAX_FD is 253).
const AT_ONCE: usize = 128;

fn key(what: u8, ino: u64) -> Vec<u8> {
    let mut out = Vec::from([what]);
    out.extend_from_slice(&ino.to_ne_bytes());
    out
}

fn is_stream(open: &Open) -> bool {
    matches!(&open.kind, Kind::Socket(s) if matches!(s.kind, libc::SOCK_STREAM | libc::SOCK_SEQPACKET))
}

/// What is to be asked before this step: what others told in earlier ones.
pub fn questions(table: &Table, step: Step) -> Vec<Vec<u8>> {
    let ino = |at: usize| table.opens[at].ino;
    match step {
        Step::Lend => table.opens.iter().filter(|open| is_stream(open)).map(|open| key(b'm', open.ino)).collect(),
        Step::Take => {
            let successors = table.exchange.successors.iter().map(|(at, _)| *at);
            table.exchange.lent.iter().copied().chain(successors).map(|at| key(b'd', ino(at))).collect()
        }
        Step::Ask | Step::Renew => Vec::new(),
    }
}

/// Does a step; `answers` are those to [`questions`]. Whether another step is wanted, and what all are to be told.
///
/// # Errors
/// A connection is broken now, or the kernel does not answer.
pub fn step(table: &mut Table, step: Step, answers: &[Option<Vec<u8>>]) -> Result<(bool, Told)> {
    let failed = |e| CaptureError::call(-1, "opening a sock_diag(7) socket", e);
    let diag = Diag::new().map_err(failed)?;
    table.exchange.tried = true;
    match step {
        Step::Ask => Ok(ask(table, &diag)),
        Step::Lend => Ok((lend(table, answers, &diag), Vec::new())),
        Step::Renew => renew(table, &diag),
        Step::Take => {
            take(table, answers);
            Ok((false, Vec::new()))
        }
    }
}

// What waits at a listener of this process's, if it could be made again.
fn look(open: &mut Open, diag: &Diag) -> Option<Queue> {
    let fd = open.fd;
    // SO_ACCEPTCONN 30.
    let listens = is_stream(open) && sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, 30).is_ok_and(|yes| yes != 0);
    let Kind::Socket(socket) = &mut open.kind else { return None };
    if !listens || slackwater_socket::describe(fd, socket, diag).is_err() {
        return None;
    }
    waiting::look(fd, socket, diag).ok().flatten()
}

fn ask(table: &mut Table, diag: &Diag) -> (bool, Told) {
    let mut told = Vec::new();
    let exchange = &mut table.exchange;
    for (at, open) in table.opens.iter_mut().enumerate() {
        let Some(queue) = look(open, diag) else { continue };
        let mut address: Vec<u8> = (libc::AF_UNIX as u16).to_ne_bytes().into();
        address.extend_from_slice(format!("\0slackwater-backlog-{}", open.ino).as_bytes());
        // Of several processes that have the listener, the first gets the name.
        let bound = sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK, 0).and_then(|fd| {
            calls::bind(fd.0, &address)?;
            calls::listen(fd.0, 4096)?;
            Ok((fd, calls::secret()?))
        });
        let Ok((fd, secret)) = bound else { continue };
        exchange.boxes.push((at, fd.0, secret.into()));
        core::mem::forget(fd);
        let value = [&secret[..], &address].concat();
        let clients = queue.clients.iter().filter(|ino| **ino != 0);
        told.extend(clients.map(|ino| (key(b'm', *ino), value.clone())));
    }
    (!exchange.boxes.is_empty(), told)
}

// A client, as it is sent to a mailbox: inode, whether it has sent anything, socket.
type Item = (u64, bool, i32);

fn lend(table: &mut Table, answers: &[Option<Vec<u8>>], diag: &Diag) -> bool {
    let mut letters: Vec<(&[u8], Vec<Item>)> = Vec::new();
    let streams = table.opens.iter_mut().enumerate().filter(|(_, open)| is_stream(open));
    for ((at, open), answer) in streams.zip(answers) {
        let (Some(to), fd) = (answer, open.fd) else { continue };
        let Kind::Socket(socket) = &mut open.kind else { continue };
        if slackwater_socket::describe(fd, socket, diag).is_err() {
            continue;
        }
        let item = if socket.family == libc::AF_UNIX {
            let Ok(Some((new, holds))) = waiting::successor(fd, socket, diag) else { continue };
            table.exchange.successors.push((at, new.0));
            let item = (open.ino, holds, new.0);
            core::mem::forget(new);
            item
        } else {
            table.exchange.lent.push(at);
            (open.ino, true, fd)
        };
        match letters.iter_mut().find(|(other, _)| other == to) {
            Some((_, items)) => items.push(item),
            None => letters.push((to, Vec::from([item]))),
        }
    }
    for (to, items) in &letters {
        // Who gets less than it wants does nothing.
        let _ = send(to, items);
    }
    !letters.is_empty() || !table.exchange.boxes.is_empty()
}

fn send(to: &[u8], items: &[Item]) -> sys::Result<()> {
    let (secret, address) = to.split_at_checked(SECRET).ok_or(sys::Errno(libc::EINVAL))?;
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK, 0)?;
    calls::connect(socket.0, address)?;
    for part in items.chunks(AT_ONCE) {
        let mut text = secret.to_vec();
        for (ino, holds, _) in part {
            text.extend_from_slice(&ino.to_ne_bytes());
            text.push(u8::from(*holds));
        }
        let fds: Vec<i32> = part.iter().map(|(.., fd)| *fd).collect();
        calls::send(socket.0, &text, &[], &fds, 0)?;
    }
    Ok(())
}

// All that lies in a mailbox, and whether any of it has sent something.
fn collect(mailbox: i32, secret: &[u8]) -> (Vec<Client>, bool) {
    let (mut out, mut holds) = (Vec::new(), false);
    while let Ok((sender, _)) = calls::accept(mailbox) {
        while let Ok((text, fds)) = calls::receive(sender.0, SECRET + AT_ONCE * 9) {
            let Some(items) = text.strip_prefix(secret).filter(|items| !items.is_empty()) else { break };
            for (item, fd) in items.chunks_exact(9).zip(fds) {
                let ino = item[..8].try_into().map_or(0, u64::from_ne_bytes);
                holds |= item[8] != 0;
                out.push(Client { ino, fd });
            }
        }
    }
    (out, holds)
}

fn renew(table: &mut Table, diag: &Diag) -> Result<(bool, Told)> {
    let (mut told, mut failed) = (Vec::new(), None);
    let boxes = core::mem::take(&mut table.exchange.boxes);
    let any = !boxes.is_empty() || !table.exchange.lent.is_empty() || !table.exchange.successors.is_empty();
    let known: Vec<_> = keys(table).collect();
    for (at, mailbox, secret) in boxes {
        let (clients, sent) = collect(mailbox, &secret);
        drop(Owned(mailbox));
        let open = &mut table.opens[at];
        let Some(queue) = look(open, diag) else { continue };
        let Kind::Socket(socket) = &mut open.kind else { continue };
        let of_unix = socket.family == libc::AF_UNIX;
        if !(queue.holds || of_unix && sent) {
            continue;
        }
        let mut close = |copy| flight::close(copy, &known);
        match waiting::renew(open.fd, socket, &queue, &clients, diag, &mut close) {
            Ok(Some(backlog)) => {
                let held = queue.clients.iter().filter(|ino| **ino != 0);
                told.extend(held.map(|ino| (key(b'd', *ino), Vec::new())));
                socket.backlog = backlog;
            }
            Ok(None) => {}
            Err(reason) => failed = Some(CaptureError::new(open.fd, reason)),
        }
    }
    // A process that has a new socket here takes it over all the same.
    failed.map_or(Ok((any, told)), Err)
}

fn take(table: &mut Table, answers: &[Option<Vec<u8>>]) {
    let lent = core::mem::take(&mut table.exchange.lent);
    let successors = core::mem::take(&mut table.exchange.successors);
    let (of_tcp, of_unix) = answers.split_at(lent.len().min(answers.len()));
    for (at, _) in lent.into_iter().zip(of_tcp).filter(|(_, done)| done.is_some()) {
        if let Kind::Socket(socket) = &mut table.opens[at].kind {
            socket.saved = true;
        }
    }
    for ((at, new), done) in successors.into_iter().zip(of_unix) {
        succeed(table, at, Owned(new), done.is_some());
    }
}

/// Can a listening socket be saved as it is? `tried`: what waits there has been taken apart, as far as that is possible.
///
/// # Errors
/// It may be possible later.
pub fn check(fd: i32, socket: &Socket, tried: bool, diag: &Diag) -> Result<()> {
    let reason = if socket.backlog.iter().any(|one| one.unsaved) {
        "descriptors (SCM_RIGHTS), or a byte out of band (MSG_OOB), are under way in a Unix connection that its server has not accepted yet"
    } else if !tried && waiting::left_behind(fd, socket, diag) {
        "a client has sent something and closed its connection, which its server has not accepted yet"
    } else {
        return Ok(());
    };
    Err(CaptureError { passing: true, ..CaptureError::new(fd, reason) })
}

/// Ends what was begun, at whatever step: before the program runs.
pub fn end(table: &mut Table) {
    let exchange = core::mem::take(&mut table.exchange);
    table.exchange.tried = exchange.tried;
    exchange.boxes.into_iter().for_each(|(_, mailbox, _)| drop(Owned(mailbox)));
    for (at, new) in exchange.successors {
        succeed(table, at, Owned(new), false);
    }
}

// Puts the new socket where the old one was, if that connection was made again.
fn succeed(table: &mut Table, at: usize, new: Owned, saved: bool) {
    if !waiting::is_connected(new.0) {
        return;
    }
    let (fd, old) = (table.opens[at].fd, (table.opens[at].dev, table.opens[at].ino));
    let numbers: Vec<(i32, bool)> =
        table.descriptors.iter().filter(|d| d.open as usize == at).map(|d| (d.fd, d.cloexec)).collect();
    waiting::succeed(fd, new.0);
    let mut watched = Vec::new();
    for open in table.opens.iter().filter(|open| matches!(open.kind, Kind::Epoll { .. })) {
        let all = watch::epoll(&fdinfo::read(open.fd).unwrap_or_default());
        watched.extend(all.into_iter().filter(|w| w.target == old).map(|w| (open.fd, w)));
    }
    for (epoll, w) in &watched {
        // One whose number is something else now goes with the old socket.
        if numbers.iter().any(|(number, _)| *number == w.fd) {
            let _ = sys::epoll_ctl(*epoll, libc::EPOLL_CTL_DEL, w.fd, 0, 0);
        }
    }
    for (number, cloexec) in &numbers {
        let _ = calls::dup_to(new.0, *number, *cloexec);
    }
    for (epoll, w) in &watched {
        if numbers.iter().any(|(number, _)| *number == w.fd) {
            let _ = sys::epoll_ctl(*epoll, libc::EPOLL_CTL_ADD, w.fd, w.events, w.data);
        } else if sys::fcntl(w.fd, libc::F_GETFD, 0).is_err() && calls::dup_to(new.0, w.fd, true).is_ok() {
            let _ = sys::epoll_ctl(*epoll, libc::EPOLL_CTL_ADD, w.fd, w.events, w.data);
            sys::close(w.fd);
        }
    }
    if let Ok(st) = sys::fstat(new.0) {
        table.opens[at].ino = st.st_ino;
        if let Kind::Socket(socket) = &mut table.opens[at].kind {
            socket.ino = st.st_ino;
            socket.saved = saved;
        }
    }
}
