//! Virtual addresses: what the program knows its internet sockets' addresses as, where a restart could not give them these.
//!
//! A restart that makes a socket under another address (another host, another copy running) notes the old one by the
//! socket's cookie (SO_COOKIE), which nobody else ever has. The agent's wrappers of getsockname(2), getpeername(2) and
//! connect(2) look there, and so does the next capture, so that the next restart tries the address of the beginning again.
//!
//! Rule: the list is written while nobody else runs (in the constructor, or while all threads stand), and only read otherwise.
#![allow(unsafe_code)] // Reason: a list of our own, for code that may use no library's.
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::*};

use crate::address::Endpoint;
use crate::sys;

const SO_COOKIE: i32 = 57;
/// `struct sockaddr_in6`, the longer one.
const NAME: usize = 28;
const RECORD: usize = 8 + 3 * NAME;

/// A socket that has other addresses than it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// SO_COOKIE.
    pub cookie: u64,
    /// What getsockname(2) is to answer.
    pub local: Vec<u8>,
    /// What getpeername(2) is to answer; empty: it has no peer.
    pub peer: Vec<u8>,
    /// Where it is: the kernel's getsockname(2).
    pub now: Vec<u8>,
}

struct List {
    some: AtomicBool,
    list: UnsafeCell<Vec<Known>>,
}
// SAFETY: see the head.
unsafe impl Sync for List {}
static LIST: List = List { some: AtomicBool::new(false), list: UnsafeCell::new(Vec::new()) };

/// Whether any socket has another address: else nobody need look.
#[inline]
pub fn any() -> bool {
    LIST.some.load(Relaxed)
}

fn all() -> &'static [Known] {
    // SAFETY: nobody writes while others look.
    unsafe { &*LIST.list.get() }
}

/// Which socket it is, for as long as this kernel runs; None: none.
pub fn cookie(fd: i32) -> Option<u64> {
    sys::getsockopt::<u64>(fd, libc::SOL_SOCKET, SO_COOKIE).ok()
}

/// What the program knows of this socket.
pub fn of(fd: i32) -> Option<&'static Known> {
    if !any() {
        return None;
    }
    let cookie = cookie(fd)?;
    all().iter().find(|known| known.cookie == cookie)
}

/// Where to connect to instead of `to`: what listened there, or had that address, is elsewhere now. As [`Endpoint::raw`].
pub fn instead(to: &[u8]) -> Option<([u8; 28], usize)> {
    if !any() {
        return None;
    }
    let family = i32::from(u16::from_ne_bytes(to.get(..2)?.try_into().ok()?));
    let wanted = Endpoint::parse(to)?;
    let ends = |known: &Known| Some((Endpoint::parse(&known.local)?, Endpoint::parse(&known.now)?));
    let listener = all().iter().filter(|known| known.peer.is_empty()).filter_map(ends).find(|(old, _)| *old == wanted);
    let moved = || all().iter().filter_map(ends).find(|(old, now)| old.ip == wanted.ip && now.ip != old.ip);
    let now = match listener {
        Some((_, now)) => now,
        None => Endpoint { port: wanted.port, ..moved()?.1 },
    };
    // An IPv4 socket cannot be told an IPv6 address.
    (now.family() == wanted.family()).then(|| now.raw(family))
}

/// The list as bytes, for [`load`].
pub fn bytes(list: &[Known]) -> Vec<u8> {
    let mut out = Vec::with_capacity(list.len() * RECORD);
    for known in list {
        out.extend_from_slice(&known.cookie.to_ne_bytes());
        for name in [&known.local, &known.peer, &known.now] {
            let mut padded = [0u8; NAME];
            let length = name.len().min(NAME);
            padded[..length].copy_from_slice(&name[..length]);
            out.extend_from_slice(&padded);
        }
    }
    out
}

/// Takes a list over.
///
/// # Safety
/// Nobody else runs that might look.
pub unsafe fn load(bytes: &[u8]) {
    // By its family; 0 is none.
    let name = |at: &[u8]| match i32::from(u16::from_ne_bytes([at[0], at[1]])) {
        libc::AF_INET => at[..16].to_vec(),
        libc::AF_INET6 => at[..NAME].to_vec(),
        _ => Vec::new(),
    };
    let known = |record: &[u8]| Known {
        cookie: u64::from_ne_bytes(record[..8].try_into().unwrap_or_default()),
        local: name(&record[8..]),
        peer: name(&record[8 + NAME..]),
        now: name(&record[8 + 2 * NAME..]),
    };
    let list: Vec<Known> = bytes.chunks_exact(RECORD).map(known).collect();
    LIST.some.store(!list.is_empty(), Relaxed);
    // SAFETY: the caller's.
    unsafe { *LIST.list.get() = list };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(ip: [u8; 4], port: u16) -> Vec<u8> {
        let mut out = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        out.extend(port.to_be_bytes());
        out.extend(ip);
        out.resize(16, 0);
        out
    }

    #[test]
    fn what_is_noted_is_found() {
        let listener =
            Known { cookie: 7, local: four([10, 0, 0, 1], 80), peer: Vec::new(), now: four([127, 0, 0, 1], 8080) };
        let client = Known {
            cookie: 8,
            local: four([10, 0, 0, 1], 5),
            peer: four([10, 0, 0, 1], 80),
            now: four([127, 0, 0, 1], 5),
        };
        // SAFETY: one thread looks.
        unsafe { load(&bytes(&[listener.clone(), client.clone()])) };
        assert_eq!(all(), [listener, client]);
        let instead = |to: &[u8]| instead(to).map(|(bytes, length)| bytes[..length].to_vec());
        assert_eq!(instead(&four([10, 0, 0, 1], 80)), Some(four([127, 0, 0, 1], 8080)));
        assert_eq!(instead(&four([10, 0, 0, 1], 99)), Some(four([127, 0, 0, 1], 99)));
        assert_eq!(instead(&four([10, 0, 0, 2], 80)), None);
        // SAFETY: as above.
        unsafe { load(&[]) };
        assert!(!any() && instead(&four([10, 0, 0, 1], 80)).is_none());
    }
}
