//! One object, made by the process that will hold it (or by the root, if several will).
use std::io;

use super::{Id, Prepared, Result, file, os, outside, tty};
use crate::model::{Kind, Timer, Watch};

const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

/// Makes the description `id` at a high number. Status flags that several kinds share are set here, except O_ASYNC, which
/// waits for its owner.
pub fn one(p: &mut Prepared<'_>, id: Id) -> Result<i32> {
    let open = p.open(id).clone();
    let failed = |p: &Prepared<'_>, what: &str, e: io::Error| p.error(id, what, e);
    let fd = match &open.kind {
        Kind::File(f) => file::named(p, id, f, open.flags)?,
        Kind::Directory { path, offset, deleted } => file::directory(p, id, path, *offset, *deleted)?,
        Kind::Place { path } => {
            let flags = libc::O_PATH | open.flags & (libc::O_NOFOLLOW | libc::O_DIRECTORY);
            let path = p.options.map(path);
            os::open(&path, flags, 0).map_err(|e| failed(p, &format!("opening {}", file::show(&path)), e))?
        }
        Kind::Device { path, offset, .. } => {
            let path = p.options.map(path);
            let flags =
                open.flags & (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND | libc::O_DIRECT | libc::O_SYNC);
            let fd = os::open(&path, flags, 0).map_err(|e| failed(p, &format!("opening {}", file::show(&path)), e))?;
            if *offset != 0 {
                os::seek(fd, *offset).map_err(|e| failed(p, "setting a device's offset", e))?;
            }
            fd
        }
        Kind::Event { count, semaphore } => {
            event(*count, semaphore.unwrap_or(false)).map_err(|e| failed(p, "making an eventfd", e))?
        }
        Kind::Timer(timer) => {
            self::timer(timer, p.tables[id.0].1.realtime_ns).map_err(|e| failed(p, "making a timerfd", e))?
        }
        Kind::Signal { mask } => os::signalfd(*mask).map_err(|e| failed(p, "making a signalfd", e))?,
        Kind::Epoll { .. } => os::epoll().map_err(|e| failed(p, "making an epoll set", e))?,
        Kind::Inotify { watches } => inotify(p, watches).map_err(|e| failed(p, "making an inotify instance", e))?,
        Kind::Pid { pid } => {
            // PIDFD_NONBLOCK is O_NONBLOCK, PIDFD_THREAD is O_EXCL.
            let flags = (open.flags & (libc::O_NONBLOCK | libc::O_EXCL)) as u32;
            match pid.map(|pid| os::pidfd(pid, flags)) {
                Some(Err(e)) if e.raw_os_error() == Some(libc::ESRCH) => {
                    let pid = pid.unwrap_or_default();
                    p.warn(id, format!("its process {pid} was outside of the computation: it has ended"));
                    os::dead_pidfd()
                }
                Some(other) => other,
                None => os::dead_pidfd(),
            }
            .map_err(|e| failed(p, &format!("opening a pidfd of process {pid:?}"), e))?
        }
        Kind::Terminal(terminal) if tty::is_controlling(terminal) => {
            let flags = open.flags & (libc::O_ACCMODE | libc::O_NONBLOCK);
            match os::open(b"/dev/tty", flags, 0) {
                Ok(fd) => fd,
                Err(e) => match outside::terminal(p) {
                    Some(fd) => os::copy(fd, p.base).map_err(|e| failed(p, "copying the terminal's descriptor", e))?,
                    None => {
                        p.warn(id, format!("there is no controlling terminal ({e}); /dev/null stands for it"));
                        os::open(b"/dev/null", flags, 0).map_err(|e| failed(p, "opening /dev/null", e))?
                    }
                },
            }
        }
        // Made by `prepare` for all processes.
        Kind::Pipe(_) | Kind::Master(_) | Kind::Terminal(_) | Kind::Socket(_) | Kind::MessageQueue(_) => {
            return Err(failed(p, "not prepared in the root", io::Error::from_raw_os_error(libc::EBADF)));
        }
    };
    os::raise(fd, p.base).map_err(|e| failed(p, "moving a descriptor out of the way", e))
}

fn event(count: u64, semaphore: bool) -> io::Result<i32> {
    let fd = os::eventfd(semaphore)?;
    if count > 0 {
        os::write(fd, &count.to_ne_bytes())?;
    }
    Ok(fd)
}

fn timer(timer: &Timer, captured_realtime_ns: i64) -> io::Result<i32> {
    let fd = os::timerfd(timer.clock)?;
    // A periodic timer that expired is only set off again when it is read: it stands at 0 with ticks to be read.
    let remaining = match (timer.remaining_ns, timer.interval_ns, timer.ticks) {
        (0, interval, 1..) => interval,
        (remaining, ..) => remaining,
    };
    // CLOCK_REALTIME 0, CLOCK_REALTIME_ALARM 8: an absolute time of day stays one; other clocks begin anew with a boot.
    let absolute = timer.flags & libc::TFD_TIMER_ABSTIME != 0 && matches!(timer.clock, 0 | 8);
    if remaining > 0 {
        let (flags, value) = if absolute {
            (timer.flags, captured_realtime_ns as u64 + remaining)
        } else {
            (timer.flags & !(libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET), remaining)
        };
        os::arm(fd, flags, value, timer.interval_ns)?;
    }
    if timer.ticks > 0 && os::ioctl_with(fd, TFD_IOC_SET_TICKS, &mut timer.ticks.clone()).is_err() {
        // A kernel without CONFIG_CHECKPOINT_RESTORE: one expiration, at once, stands for all.
        os::arm(fd, 0, 1, timer.interval_ns)?;
    }
    Ok(fd)
}

fn inotify(p: &Prepared<'_>, watches: &[Watch]) -> io::Result<i32> {
    let fd = os::inotify()?;
    for watch in watches {
        let path = p.options.map(&watch.path);
        // Watch descriptors are given in ascending order: made and removed until the old number comes up.
        loop {
            let wd = os::inotify_add(fd, &path, watch.mask & !(libc::IN_MASK_ADD | libc::IN_MASK_CREATE))?;
            if wd >= watch.wd {
                break;
            }
            os::inotify_remove(fd, wd)?;
        }
    }
    // What the removals left: IN_IGNORED.
    let mut drain = [0u8; 4096];
    while os::read(fd, &mut drain).is_ok_and(|n| n > 0) {}
    Ok(fd)
}
