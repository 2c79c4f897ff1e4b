//! Setting options again, on a new socket: only what differs from what it has by itself.
use crate::model::Socket;
use crate::multicast::{self, MCAST_JOIN_GROUP};
use crate::options::{SO_BUF_LOCK, SO_LINGER, SO_PEEK_OFF, SO_RCVBUF, SO_RCVLOWAT, SO_REUSEADDR, SO_SNDBUF, int};
use crate::sys;

const SOCKET: i32 = libc::SOL_SOCKET;
const TCP_CORK: i32 = 3;

// Set when all is done, for they would disturb the refilling.
fn late(level: i32, name: i32) -> bool {
    matches!(
        (level, name),
        (SOCKET, SO_REUSEADDR | SO_LINGER | SO_PEEK_OFF | SO_RCVLOWAT | SO_BUF_LOCK) | (libc::IPPROTO_TCP, TCP_CORK)
    )
}

/// Before bind, connect and refilling. Addresses may be bound twice until `last`.
pub fn first(fd: i32, s: &Socket) {
    let _ = sys::setsockopt(fd, SOCKET, SO_REUSEADDR, 1);
    for (level, name, value) in &s.options {
        if late(*level, *name) {
            continue;
        }
        if *level == SOCKET && (*name == SO_SNDBUF || *name == SO_RCVBUF) {
            // A small window would make refilling wait for timers. Where nothing is to be refilled it is small from the first.
            let idle = s.queue.is_empty() && *name == SO_RCVBUF;
            if s.tcp.is_none() || idle || int(s, SOCKET, *name) > sys::getsockopt::<i32>(fd, SOCKET, *name).ok() {
                buffer(fd, s, *name);
            }
            continue;
        }
        if *name == MCAST_JOIN_GROUP && matches!(*level, libc::IPPROTO_IP | libc::IPPROTO_IPV6) {
            join(fd, *level, value);
            continue;
        }
        set(fd, *level, *name, value);
    }
}

// On the old interface, or, where that is none, on the one that the kernel would take.
fn join(fd: i32, level: i32, group: &[u8]) {
    let mut any = group.to_vec();
    any[..4].fill(0);
    for group in [group, &any] {
        let plain = &group[..group.len().min(multicast::PLAIN)];
        if sys::setsockopt_bytes(fd, level, MCAST_JOIN_GROUP, plain).is_ok() {
            if group.len() > multicast::PLAIN {
                let _ = sys::setsockopt_bytes(fd, level, multicast::MCAST_MSFILTER, group);
            }
            return;
        }
    }
}

/// After everything.
pub fn last(fd: i32, s: &Socket) {
    // Refilling may have needed larger buffers than the program's. A receive buffer stays as large as it is: the peer may send
    // as much as it has been promised, and what finds no room then is dropped until its timers send it again.
    if s.tcp.is_some() {
        buffer(fd, s, SO_SNDBUF);
        if int(s, SOCKET, SO_RCVBUF) > sys::getsockopt::<i32>(fd, SOCKET, SO_RCVBUF).ok() {
            buffer(fd, s, SO_RCVBUF);
        }
    }
    for (level, name, value) in &s.options {
        if late(*level, *name) {
            set(fd, *level, *name, value);
        }
    }
}

fn set(fd: i32, level: i32, name: i32, value: &[u8]) {
    // What cannot be read cannot be compared; what is as it should be is left alone.
    if sys::getsockopt_bytes(fd, level, name, 32).is_ok_and(|now| now != value) {
        let _ = sys::setsockopt_bytes(fd, level, name, value);
    }
}

// A size that the program fixed; others the kernel tunes itself.
fn buffer(fd: i32, s: &Socket, name: i32) {
    let bit = if name == SO_SNDBUF { 1 } else { 2 };
    let fixed = match int(s, SOCKET, SO_BUF_LOCK) {
        Some(locks) => locks & bit != 0,
        // A kernel before 5.14 does not say; TCP's sizes then look fixed when they are not.
        None => s.tcp.is_none(),
    };
    let Some(size) = int(s, SOCKET, name) else { return };
    if fixed && sys::getsockopt::<i32>(fd, SOCKET, name) != Ok(size) {
        grow(fd, name, size / 2);
    }
}

/// Before a connection comes in on `listener` that is to be `s`: the receive buffer that `s` has, if the program fixed it and
/// nothing is to be refilled. What to give back to [`not_for`].
#[cfg(feature = "rebuild")]
pub fn for_one(listener: i32, s: &Socket) -> Option<i32> {
    let before = sys::getsockopt::<i32>(listener, SOCKET, SO_RCVBUF).ok()?;
    if s.queue.is_empty() {
        buffer(listener, s, SO_RCVBUF);
    }
    (sys::getsockopt::<i32>(listener, SOCKET, SO_RCVBUF) != Ok(before)).then_some(before)
}

/// Takes [`for_one`] back.
#[cfg(feature = "rebuild")]
pub fn not_for(listener: i32, before: Option<i32>) {
    if let Some(size) = before {
        grow(listener, SO_RCVBUF, size / 2);
        let _ = sys::setsockopt(listener, SOCKET, SO_BUF_LOCK, 0);
    }
}

/// Sets a buffer size (half of what is read back), beyond the system's limit if permitted.
pub fn grow(fd: i32, name: i32, half: i32) {
    // SO_SNDBUFFORCE 32, SO_RCVBUFFORCE 33: need CAP_NET_ADMIN.
    let force = if name == SO_SNDBUF { 32 } else { 33 };
    if sys::setsockopt(fd, SOCKET, force, half).is_err() {
        let _ = sys::setsockopt(fd, SOCKET, name, half);
    }
}
