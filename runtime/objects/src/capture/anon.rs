//! Anonymous inodes: eventfd, timerfd, signalfd, epoll, inotify, pidfd; everything else is refused by name.
use alloc::{format, vec::Vec};

use slackwater_socket::sys;

use super::{CaptureError, Result, fdinfo, watch};
use crate::model::{Kind, Timer};

/// What `anon_inode:[NAME]` is.
pub fn describe(fd: i32, link: &[u8]) -> Result<Kind> {
    let name = link.strip_prefix(b"anon_inode:").unwrap_or(link);
    let name = name.strip_prefix(b"[").and_then(|n| n.strip_suffix(b"]")).unwrap_or(name);
    let info = fdinfo::read(fd)?;
    let strange =
        |what: &str| CaptureError::new(fd, format!("{what}: this kernel's /proc/self/fdinfo does not describe it"));
    match name {
        // "[eventfd]"; an id may follow the name inside fdinfo, not here.
        b"eventfd" => {
            let count = fdinfo::value(&info, "eventfd-count").and_then(sys::hex).ok_or_else(|| strange("eventfd"))?;
            let semaphore = fdinfo::number(&info, "eventfd-semaphore").map(|v| v != 0);
            Ok(Kind::Event { count, semaphore })
        }
        b"timerfd" => timer(&info).map(Kind::Timer).ok_or_else(|| strange("timerfd")),
        b"signalfd" => {
            let mask = fdinfo::value(&info, "sigmask").and_then(sys::hex).ok_or_else(|| strange("signalfd"))?;
            Ok(Kind::Signal { mask })
        }
        b"eventpoll" => Ok(Kind::Epoll { watched: watch::epoll(&info) }),
        b"inotify" | b"inotify]" => Ok(Kind::Inotify { watches: watch::inotify(fd, &info)? }),
        b"pidfd" => pid(&info).ok_or_else(|| strange("pidfd")),
        b"io_uring" => Err(CaptureError::new(
            fd,
            "an io_uring: its rings are shared with the kernel and cannot be saved; close it before the checkpoint (many \
             libraries fall back to epoll, e.g. UV_USE_IO_URING=0)",
        )),
        other => Err(CaptureError::new(
            fd,
            format!("{} cannot be brought back by a restart; close it before the checkpoint", sys::lossy(other)),
        )),
    }
}

fn timer(info: &[u8]) -> Option<Timer> {
    Some(Timer {
        clock: fdinfo::number(info, "clockid")? as i32,
        ticks: fdinfo::number(info, "ticks")?,
        // Shown in octal, with a leading zero.
        flags: i32::from_str_radix(core::str::from_utf8(fdinfo::value(info, "settime flags")?).ok()?, 8).ok()?,
        remaining_ns: time(fdinfo::value(info, "it_value")?)?,
        interval_ns: time(fdinfo::value(info, "it_interval")?)?,
    })
}

// `(seconds, nanoseconds)`
fn time(text: &[u8]) -> Option<u64> {
    let text = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let comma = text.iter().position(|&b| b == b',')?;
    let seconds = sys::decimal(text[..comma].trim_ascii())?;
    Some(seconds * 1_000_000_000 + sys::decimal(text[comma + 1..].trim_ascii())?)
}

/// From a pidfd's fdinfo.
pub fn pid(info: &[u8]) -> Option<Kind> {
    // -1: it has ended and was reaped; 0: it lives in a pid namespace that is not ours.
    let pid: Vec<u8> = fdinfo::value(info, "Pid")?.to_vec();
    Some(Kind::Pid { pid: sys::decimal(&pid).map(|p| p as i32).filter(|&p| p > 0) })
}
