//! TCP's urgent byte (tcp(7), MSG_OOB): a peek ends at its mark, and without SO_OOBINLINE the byte is not among the others.
use alloc::vec;
use alloc::{format, vec::Vec};

use crate::capture::{Refusal, failed, receive};
use crate::model::Urgent;
use crate::options::{SO_OOBINLINE, SO_PEEK_OFF};
use crate::sys;

const SIOCATMARK: u64 = 0x8905;

/// The next byte is the marked one, or, where that is not in line, the one behind it.
pub fn at_mark(fd: i32) -> bool {
    sys::ioctl_get::<i32>(fd, SIOCATMARK).unwrap_or(0) != 0
}

/// The `total` bytes that nobody has read, of a connection in which there is a mark. `plain` are in front of the mark, where it is
/// not in line.
///
/// # Errors
/// Bytes behind the mark that this kernel lets nobody look at (before Linux 6.10).
pub fn take(fd: i32, total: usize, plain: usize) -> Result<(Vec<u8>, Urgent), Refusal> {
    let inline = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_OOBINLINE).unwrap_or(0) != 0;
    let front = at_mark(fd);
    let mut data = vec![0u8; total];
    // At the mark a peek goes on, for nothing has been copied yet.
    let at = match (front, inline) {
        (true, _) => 0,
        (false, true) => receive(fd, &mut data, libc::MSG_PEEK).map_err(|e| failed("peeking", e))?,
        (false, false) => part(fd, &mut data[..plain], 0)?,
    };
    let mut byte = [0u8; 1];
    let read = !inline && receive(fd, &mut byte, libc::MSG_PEEK | libc::MSG_OOB).is_err();
    let Some(rest) = total.checked_sub(at + usize::from(!inline)) else {
        return Err(Refusal::passing(format!("of {total} unread bytes {at} are in front of an urgent mark")));
    };
    part(fd, &mut data[at..at + rest], at)?;
    data.truncate(at + rest);
    if inline {
        byte[0] = data.get(at).copied().unwrap_or(0);
    }
    Ok((data, Urgent { at: at as u64, byte: byte[0], inline, read }))
}

// Peeks at exactly this part of the queue.
fn part(fd: i32, out: &mut [u8], at: usize) -> Result<usize, Refusal> {
    if out.is_empty() {
        return Ok(0);
    }
    let offset = |at| sys::setsockopt(fd, libc::SOL_SOCKET, SO_PEEK_OFF, at);
    if at > 0 && offset(at as i32).is_err() {
        return Err(Refusal::passing(
            "a TCP connection has unread bytes on both sides of its urgent mark, and this kernel (before Linux 6.10) lets nobody \
             look behind the mark before the program has read what is in front of it",
        ));
    }
    let got = receive(fd, out, libc::MSG_PEEK);
    if at > 0 {
        let _ = offset(-1);
    }
    match got {
        Ok(n) if n == out.len() => Ok(n),
        other => Err(Refusal::from(format!("of {} unread bytes from {at} on peeking gave {other:?}", out.len()))),
    }
}

/// What is sent in one go, and the flags.
pub fn runs<'a>(data: &'a [u8], urgent: Option<&'a Urgent>) -> Vec<(&'a [u8], i32)> {
    let Some(urgent) = urgent else { return vec![(data, 0)] };
    let (before, behind) = data.split_at((urgent.at as usize).min(data.len()));
    let behind = if urgent.inline { behind.get(1..).unwrap_or(&[]) } else { behind };
    vec![(before, 0), (core::slice::from_ref(&urgent.byte), libc::MSG_OOB), (behind, 0)]
}
