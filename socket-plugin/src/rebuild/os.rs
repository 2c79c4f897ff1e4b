//! Socket calls of the rebuilding side, on plain numbers: most become the program's, see `slackwater-objects`.
#![allow(unsafe_code)] // Reason: system calls.
use std::io::{Error, ErrorKind, Result};

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
    // SAFETY: readable for its length.
    check(unsafe { libc::bind(fd, address.as_ptr().cast(), address.len() as u32) } as i64).map(|_| ())
}

/// connect(2); a connection under way counts as made.
pub fn connect(fd: i32, address: &[u8]) -> Result<()> {
    // SAFETY: readable for its length.
    match check(unsafe { libc::connect(fd, address.as_ptr().cast(), address.len() as u32) } as i64) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(()),
    }
}

/// listen(2).
pub fn listen(fd: i32, backlog: i32) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::listen(fd, backlog) } as i64).map(|_| ())
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
    let address = if to.is_empty() { std::ptr::null() } else { to.as_ptr().cast() };
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: both are readable for their lengths.
    check(unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, address, to.len() as u32) } as i64)
        .map(|n| n as usize)
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
    if descriptors.is_empty() {
        return send(fd, data, to);
    }
    let payload: Vec<u8> = descriptors.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    // SAFETY: a computation on a number.
    let room = unsafe { libc::CMSG_SPACE(payload.len() as u32) } as usize;
    let mut control = vec![0u64; room.div_ceil(8)];
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: zero is a valid value for all fields of msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = if to.is_empty() { std::ptr::null_mut() } else { to.as_ptr().cast_mut().cast() };
    message.msg_namelen = to.len() as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = room as _;
    // SAFETY: `control` is aligned, and has room for one header and the payload; sendmsg writes to nothing.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(payload.len() as u32) as _;
        std::ptr::copy_nonoverlapping(payload.as_ptr(), libc::CMSG_DATA(header), payload.len());
        libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    check(sent as i64).map(|n| n as usize)
}

/// shutdown(2).
pub fn shutdown(fd: i32, how: i32) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::shutdown(fd, how) } as i64).map(|_| ())
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
    let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    let _ = crate::sys::setsockopt_bytes(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    close(fd);
}
