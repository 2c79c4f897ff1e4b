//! Pipes and FIFOs: capacity, and unread bytes by tee(2) into a pipe of our own.
use alloc::{format, vec, vec::Vec};

use slackwater_socket::sys;

use super::{CaptureError, Result};
use crate::model::{Kind, Pipe};

/// One end, without its bytes.
pub fn describe(fd: i32, flags: i32, link: Vec<u8>) -> Result<Kind> {
    let capacity =
        sys::fcntl(fd, libc::F_GETPIPE_SZ, 0).map_err(|e| CaptureError::call(fd, "fcntl(F_GETPIPE_SZ)", e))?;
    let revents = sys::poll_now(fd, 0).map_err(|e| CaptureError::call(fd, "poll", e))?;
    // A read end whose writers are all gone shows POLLHUP, a write end without readers POLLERR.
    let gone = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => libc::POLLHUP,
        libc::O_WRONLY => libc::POLLERR,
        _ => 0,
    };
    let path = (!link.starts_with(b"pipe:[")).then_some(link);
    Ok(Kind::Pipe(Pipe { path, capacity: capacity as u32, unread: Vec::new(), hangup: revents & gone != 0 }))
}

/// Copies the unread bytes; they stay in the pipe.
pub fn unread(fd: i32, pipe: &mut Pipe) -> Result<()> {
    let queued: i32 = sys::ioctl_get(fd, libc::FIONREAD).map_err(|e| CaptureError::call(fd, "ioctl(FIONREAD)", e))?;
    if queued <= 0 {
        return Ok(());
    }
    // Packet mode on the copy keeps packet boundaries: the mark travels with each buffer.
    let (from, to) = sys::pipe2(libc::O_NONBLOCK | libc::O_CLOEXEC).map_err(|e| CaptureError::call(fd, "pipe", e))?;
    let grown = sys::fcntl(to.0, libc::F_SETPIPE_SZ, pipe.capacity as usize);
    let copied = sys::tee(fd, to.0, pipe.capacity.max(queued as u32) as usize);
    if copied != Ok(queued as usize) {
        return Err(CaptureError::new(
            fd,
            format!(
                "of {queued} unread bytes in a pipe tee(2) copied {copied:?} (copy's size: {grown:?}); see /proc/sys/fs/pipe-user-pages-soft"
            ),
        ));
    }
    let mut left = queued as usize;
    while left > 0 {
        let mut part = vec![0u8; left];
        let n = sys::read(from.0, &mut part).map_err(|e| CaptureError::call(fd, "reading a pipe's copy", e))?;
        if n == 0 {
            break;
        }
        part.truncate(n);
        pipe.unread.push(part);
        left -= n;
    }
    Ok(())
}
