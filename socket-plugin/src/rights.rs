//! recvmsg(2) that peeks, with the descriptors that come along (SCM_RIGHTS of unix(7)).
//!
//! Rule: whatever a peek installs is owned by its result, and so closed again.
#![allow(unsafe_code)] // Reason: recvmsg, and ancillary data.
use alloc::{vec, vec::Vec};

use crate::model::Credentials;
use crate::sys::{self, Errno, Owned, Result};

const MSG_CTRUNC: i32 = 8;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
/// Room for all that may come: 253 descriptors (SCM_MAX_FD), credentials, a label, time stamps.
pub const ROOM: usize = 4096;

/// What was peeked at.
#[derive(Debug, Default)]
pub struct Peeked {
    /// Bytes; of a datagram, of all of it if MSG_TRUNC was given.
    pub length: usize,
    /// Sender's address.
    pub from: Vec<u8>,
    /// There is more ancillary data than fits.
    pub cut: bool,
    /// Copies of the descriptors under way.
    pub descriptors: Vec<Owned>,
    /// The sender.
    pub credentials: Option<Credentials>,
}

/// Of a run of stream bytes whose last message has descriptors: how many are before that message. `run` is as long as the run.
///
/// A peek gives such a run in one piece, and the descriptors even if it is for a part of it; but a message that does not fit into
/// memory ends it. So the last byte has a place in a page that nobody can write.
pub fn before(fd: i32, run: &mut [u8]) -> Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at a place of the kernel's choice.
    let page =
        unsafe { sys::call(libc::SYS_mmap, [0, 4096, libc::PROT_NONE as usize, flags as usize, usize::MAX, 0]) }?;
    let mut parts = [
        libc::iovec { iov_base: run.as_mut_ptr().cast(), iov_len: run.len().saturating_sub(1) },
        libc::iovec { iov_base: core::ptr::without_provenance_mut(page), iov_len: 1 },
    ];
    // SAFETY: zero is a valid value for all fields of msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = 2;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel checks each part; the first is live and writable.
    let got =
        unsafe { sys::call(libc::SYS_recvmsg, [fd as usize, &raw mut message as usize, flags as usize, 0, 0, 0]) };
    // SAFETY: the mapping above, of which nobody else knows.
    let _ = unsafe { sys::call(libc::SYS_munmap, [page, 4096, 0, 0, 0, 0]) };
    match got {
        Err(Errno(libc::EFAULT)) => Ok(0),
        other => other,
    }
}

/// Peeks without waiting, with so much room for ancillary data.
pub fn peek(fd: i32, buffer: &mut [u8], room: usize, flags: i32) -> Result<Peeked> {
    take(fd, buffer, room, flags | libc::MSG_PEEK)
}

/// As [`peek`], of what is ours: it is received.
pub fn take(fd: i32, buffer: &mut [u8], room: usize, flags: i32) -> Result<Peeked> {
    let mut from = [0u8; 128];
    // Of words, for the alignment of cmsghdr.
    let mut control = vec![0u64; room.div_ceil(8)];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zero is a valid value for all fields of msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = from.len() as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if room > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = room as _;
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: all pointers in `message` are to live buffers of the lengths given.
    let length =
        unsafe { sys::call(libc::SYS_recvmsg, [fd as usize, &raw mut message as usize, flags as usize, 0, 0, 0]) }?;
    let mut out = Peeked {
        length,
        from: from[..(message.msg_namelen as usize).min(from.len())].to_vec(),
        cut: message.msg_flags & MSG_CTRUNC != 0,
        ..Peeked::default()
    };
    let mut bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(if room > 0 { message.msg_controllen as usize } else { 0 });
    let int = |at: usize| bytes.get(at..at + 4).map_or(0, |b| i32::from_ne_bytes(b.try_into().unwrap_or_default()));
    // struct cmsghdr: length (8 bytes), level, type, payload.
    let mut at = 0;
    while at + size_of::<libc::cmsghdr>() <= bytes.len() {
        let length = int(at) as usize;
        if length < size_of::<libc::cmsghdr>() {
            break;
        }
        if (int(at + 8), int(at + 12)) == (libc::SOL_SOCKET, SCM_RIGHTS) {
            out.descriptors.extend((at + 16..(at + length).min(bytes.len())).step_by(4).map(|at| Owned(int(at))));
        }
        if (int(at + 8), int(at + 12)) == (libc::SOL_SOCKET, SCM_CREDENTIALS) {
            out.credentials = Credentials::parse(bytes.get(at + 16..).unwrap_or(&[]));
        }
        at += length.next_multiple_of(8);
    }
    Ok(out)
}
