//! Socket calls without libc, which both who is stopped and who rebuilds makes.
#![allow(unsafe_code)] // Reason: system calls.
use alloc::{vec, vec::Vec};

use crate::rights;
use crate::sys::{self, Errno, Owned, Result, call};

/// bind(2).
pub fn bind(fd: i32, address: &[u8]) -> Result<()> {
    // SAFETY: readable for its length.
    unsafe { call(libc::SYS_bind, [fd as usize, address.as_ptr() as usize, address.len(), 0, 0, 0]) }.map(drop)
}

/// connect(2); a connection under way counts as made.
pub fn connect(fd: i32, address: &[u8]) -> Result<()> {
    // SAFETY: readable for its length.
    match unsafe { call(libc::SYS_connect, [fd as usize, address.as_ptr() as usize, address.len(), 0, 0, 0]) } {
        Err(e) if e != Errno(libc::EINPROGRESS) => Err(e),
        _ => Ok(()),
    }
}

/// listen(2).
pub fn listen(fd: i32, backlog: i32) -> Result<()> {
    // SAFETY: numbers.
    unsafe { call(libc::SYS_listen, [fd as usize, backlog as usize, 0, 0, 0, 0]) }.map(drop)
}

/// accept4(2) without waiting: the connection, non-blocking, and who made it.
pub fn accept(fd: i32) -> Result<(Owned, Vec<u8>)> {
    // The listener may be a blocking one.
    if sys::poll_now(fd, libc::POLLIN)? & libc::POLLIN == 0 {
        return Err(Errno(libc::EAGAIN));
    }
    let mut address = [0u8; 128];
    let mut length = address.len() as u32;
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as usize;
    let (at, size) = (address.as_mut_ptr() as usize, &raw mut length as usize);
    // SAFETY: `address` is writable for `length` bytes.
    let accepted = unsafe { call(libc::SYS_accept4, [fd as usize, at, size, flags, 0, 0]) }? as i32;
    Ok((Owned(accepted), address[..address.len().min(length as usize)].to_vec()))
}

/// shutdown(2).
pub fn shutdown(fd: i32, how: i32) -> Result<()> {
    // SAFETY: numbers.
    unsafe { call(libc::SYS_shutdown, [fd as usize, how as usize, 0, 0, 0, 0]) }.map(drop)
}

/// sendmsg(2) without waiting and without SIGPIPE, to where the socket is connected (`to` is empty) or to an address, with
/// descriptors (SCM_RIGHTS of unix(7)).
pub fn send(fd: i32, data: &[u8], to: &[u8], descriptors: &[i32], flags: i32) -> Result<usize> {
    let flags = (flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as usize;
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // struct cmsghdr: length (8 bytes), level, type, payload; of words, for its alignment.
    let length = size_of::<libc::cmsghdr>() + 4 * descriptors.len();
    let mut control = vec![0u64; length.div_ceil(8)];
    control[0] = length as u64;
    control[1] = (libc::SOL_SOCKET as u64) | (libc::SCM_RIGHTS as u64) << 32;
    for (n, fd) in descriptors.iter().enumerate() {
        control[2 + n / 2] |= u64::from(*fd as u32) << (32 * (n % 2));
    }
    // SAFETY: zero is a valid value for all fields of msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    if !to.is_empty() {
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len() as u32;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = length as _;
    }
    // SAFETY: all pointers in `message` are to live buffers of the lengths given, which are only read.
    unsafe { call(libc::SYS_sendmsg, [fd as usize, &raw const message as usize, flags, 0, 0, 0]) }
}

/// A message of at most so many bytes, and the descriptors that came with it, without waiting.
///
/// # Errors
/// There is none, as at the end.
pub fn receive(fd: i32, most: usize) -> Result<(Vec<u8>, Vec<Owned>)> {
    let mut text = vec![0u8; most];
    let got = rights::take(fd, &mut text, rights::ROOM, 0)?;
    text.truncate(got.length);
    if text.is_empty() { Err(Errno(libc::EAGAIN)) } else { Ok((text, got.descriptors)) }
}

/// Closes with a reset (SO_LINGER of no time).
pub fn reset(fd: Owned) {
    let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    let _ = sys::setsockopt_bytes(fd.0, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// May this process connect to the Unix socket of this path?
pub fn writable(path: &[u8]) -> bool {
    let path = sys::c_string(path);
    let at = path.as_ptr() as usize;
    let args = [libc::AT_FDCWD as usize, at, libc::W_OK as usize, libc::AT_EACCESS as usize, 0, 0];
    // SAFETY: a terminated path.
    unsafe { call(libc::SYS_faccessat2, args) }.is_ok()
}

/// Random bytes that nobody else knows.
pub fn secret() -> Result<[u8; 16]> {
    let mut out = [0u8; 16];
    // SAFETY: writable for its length.
    let n = unsafe { call(libc::SYS_getrandom, [out.as_mut_ptr() as usize, out.len(), 0, 0, 0, 0]) }?;
    if n == out.len() { Ok(out) } else { Err(Errno(libc::EAGAIN)) }
}

/// dup3(2).
pub fn dup_to(from: i32, to: i32, cloexec: bool) -> Result<()> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: numbers.
    unsafe { call(libc::SYS_dup3, [from as usize, to as usize, flags as usize, 0, 0, 0]) }.map(drop)
}
