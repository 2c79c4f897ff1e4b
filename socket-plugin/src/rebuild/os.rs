//! Socket calls of the rebuilding side, on plain numbers: most become the program's, see `slackwater-objects`.
#![allow(unsafe_code)] // Reason: system calls.
use crate::sys::{Errno, Owned};
use crate::waiting::calls;
use std::io::{Error, ErrorKind, Result};

fn error(e: Errno) -> Error {
    Error::from_raw_os_error(e.0)
}

fn check(r: i64) -> Result<i64> {
    if r < 0 { Err(Error::last_os_error()) } else { Ok(r) }
}

/// socket(2), close-on-exec and non-blocking, at a number from `base` on.
pub fn socket(family: i32, kind: i32, protocol: i32, base: i32) -> Result<i32> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: numbers.
    raise(check(unsafe { libc::socket(family, kind, protocol) } as i64)? as i32, base)
}

/// socketpair(2) of Unix sockets, as above.
pub fn pair(kind: i32, base: i32) -> Result<(i32, i32)> {
    let mut ends = [0; 2];
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: two ints.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } as i64)?;
    Ok((raise(ends[0], base)?, raise(ends[1], base)?))
}

fn raise(fd: i32, base: i32) -> Result<i32> {
    // SAFETY: numbers; the low one is ours.
    let high = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, base) } as i64)?;
    close(fd);
    Ok(high as i32)
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: a number; the callers close only what they made.
    unsafe { libc::close(fd) };
}

/// bind(2).
pub fn bind(fd: i32, address: &[u8]) -> Result<()> {
    calls::bind(fd, address).map_err(error)
}

/// connect(2); a connection under way counts as made.
pub fn connect(fd: i32, address: &[u8]) -> Result<()> {
    calls::connect(fd, address).map_err(error)
}

/// listen(2).
pub fn listen(fd: i32, backlog: i32) -> Result<()> {
    calls::listen(fd, backlog).map_err(error)
}

/// accept4(2), at a number from `base` on; waits for at most ten seconds.
pub fn accept(fd: i32, base: i32) -> Result<i32> {
    wait(fd, libc::POLLIN)?;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for.
    raise(check(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) } as i64)? as i32, base)
}

/// poll(2) for at most ten seconds: what came.
pub fn wait(fd: i32, events: i16) -> Result<i16> {
    wait_for(fd, events, 10_000)
}

/// poll(2) for at most so many milliseconds: what came.
pub fn wait_for(fd: i32, events: i16, milliseconds: i32) -> Result<i16> {
    let mut p = libc::pollfd { fd, events, revents: 0 };
    loop {
        // SAFETY: one pollfd.
        match check(unsafe { libc::poll(&mut p, 1, milliseconds) } as i64) {
            Ok(0) => return Err(Error::from(ErrorKind::TimedOut)),
            Ok(_) => return Ok(p.revents),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// sendto(2) without waiting and without SIGPIPE; an empty address: send(2).
pub fn send(fd: i32, data: &[u8], to: &[u8]) -> Result<usize> {
    send_as(fd, data, to, 0)
}

/// As [`send`], with flags.
pub fn send_as(fd: i32, data: &[u8], to: &[u8], flags: i32) -> Result<usize> {
    calls::send(fd, data, to, &[], flags).map_err(error)
}

/// Takes the urgent byte (MSG_OOB of recv(2)), which has arrived.
pub fn receive_urgent(fd: i32) -> Result<()> {
    let mut byte = [0u8; 1];
    // SAFETY: one writable byte.
    let got = unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), 1, libc::MSG_OOB | libc::MSG_DONTWAIT) };
    check(got as i64).map(|_| ())
}

/// As [`send`], with descriptors (SCM_RIGHTS of unix(7)); at least one byte must go into a stream.
pub fn send_with(fd: i32, data: &[u8], to: &[u8], descriptors: &[i32]) -> Result<usize> {
    calls::send(fd, data, to, descriptors, 0).map_err(error)
}

/// shutdown(2).
pub fn shutdown(fd: i32, how: i32) -> Result<()> {
    calls::shutdown(fd, how).map_err(error)
}

/// getsockname(2) and getpeername(2).
pub fn name(fd: i32, peer: bool) -> Result<Vec<u8>> {
    let mut out = vec![0u8; 128];
    let mut length = out.len() as u32;
    let address = out.as_mut_ptr().cast();
    // SAFETY: `out` is writable for `length` bytes.
    let r = unsafe {
        if peer { libc::getpeername(fd, address, &mut length) } else { libc::getsockname(fd, address, &mut length) }
    };
    check(r as i64)?;
    out.truncate(length as usize);
    Ok(out)
}

/// Closes with a reset (SO_LINGER of no time).
pub fn reset(fd: i32) {
    calls::reset(Owned(fd));
}
