//! Terminals: pty masters and slaves, the console, /dev/tty; other character devices go to `file::device`.
//!
//! What a slave's side has written and nobody has read can only be taken out and written again (tty_ioctl(4) has no peek),
//! which one process does while all stand ([`unread`]). What was written to a master: `typed`.
#![allow(unsafe_code)] // Reason: ioctls that no safe wrapper covers.
use alloc::{format, vec, vec::Vec};

use slackwater_socket::sys;

use super::{CaptureError, Result, file};
use crate::model::{Kind, Master, Terminal, Typed};

// <asm-generic/ioctls.h>; the libc crate lacks some of them on some targets.
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPKT: u64 = 0x8004_5438;
const TCGETS2: u64 = 0x802c_542a;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCGPTPEER: u64 = 0x5441;
const TCSETS2: u64 = 0x402c_542b;
const TCXONC: u64 = 0x540a;
/// Arguments of TCXONC: output stops, goes on.
const TCOOFF: usize = 0;
const TCOON: usize = 1;
/// Bytes that a line discipline holds (N_TTY_BUF_SIZE - 1, drivers/tty/n_tty.c); with fewer, the slave's side has room.
pub(super) const FULL: usize = 4095;
/// Between the two sides the kernel keeps buffers of a multiple of this many bytes, of which none is given up before all of it
/// has been moved on; greater ones waste room (drivers/tty/tty_buffer.c).
const PIECE: usize = 256;
/// How long a worker of the kernel may take to begin.
pub(super) const PATIENCE_NS: i64 = 10_000_000_000;
/// Size of struct termios2.
pub(super) const TERMIOS2: usize = 44;

/// What a character device is.
pub fn or_device(fd: i32, st: &libc::stat, link: Vec<u8>) -> Result<Kind> {
    let (major, minor) = (libc::major(st.st_rdev), libc::minor(st.st_rdev));
    match (major, minor) {
        // /dev/ptmx
        (5, 2) => {
            let number: u32 = sys::ioctl_get(fd, TIOCGPTN).map_err(|e| CaptureError::call(fd, "ioctl(TIOCGPTN)", e))?;
            Ok(Kind::Master(Master {
                number,
                locked: sys::ioctl_get::<i32>(fd, TIOCGPTLCK).unwrap_or(0) != 0,
                packet: sys::ioctl_get::<i32>(fd, TIOCGPKT).unwrap_or(0) != 0,
                modes: modes(fd),
                window: sys::ioctl_get(fd, TIOCGWINSZ).unwrap_or_default(),
                lost: 0,
                unread: Vec::new(),
                hangup: sys::poll_now(fd, 0).unwrap_or(0) & libc::POLLHUP != 0,
                typed: Typed::default(),
            }))
        }
        // /dev/tty and /dev/console; virtual consoles and serial lines; UNIX98 slaves.
        (5, 0 | 1) | (4, _) | (136..=143, _) | (204, _) | (229, _) => Ok(Kind::Terminal(Terminal {
            path: link,
            rdev: st.st_rdev,
            modes: modes(fd),
            window: sys::ioctl_get(fd, TIOCGWINSZ).unwrap_or_default(),
        })),
        _ => file::device(fd, st, link),
    }
}

// struct termios2; empty if the terminal hung up.
pub(super) fn modes(fd: i32) -> Vec<u8> {
    #[derive(Clone, Copy)]
    struct Termios2([u8; TERMIOS2]);
    impl Default for Termios2 {
        fn default() -> Self {
            Self([0; TERMIOS2])
        }
    }
    sys::ioctl_get::<Termios2>(fd, TCGETS2).map_or(Vec::new(), |t| t.0.to_vec())
}

/// Where objects are told apart by device and inode, this and [`name`] stand for a pty: /dev/ptmx is one inode for all.
/// No device has this number; `ipc::Class` has those above.
pub const PTYS: u64 = u64::MAX - 3;

/// See [`PTYS`]. `dev`: the file system of the master's /dev/ptmx.
pub fn name(dev: u64, number: u32) -> u64 {
    dev << 32 | u64::from(number)
}

/// The pty number of a slave.
pub fn slave_number(rdev: u64) -> Option<u32> {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    // UNIX98_PTY_SLAVE_MAJOR and the seven after it, 2^20 numbers in all since minors have 20 bits.
    (136..=143).contains(&major).then(|| (major - 136) * (1 << 20) + minor)
}

/// A master's slave, which does not wait.
pub(super) fn peer(fd: i32) -> sys::Result<sys::Owned> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    ioctl(fd, TIOCGPTPEER, flags as usize).map(|fd| sys::Owned(fd as i32))
}

pub(super) fn set_modes(fd: i32, modes: &[u8]) -> sys::Result<()> {
    // 44 bytes: struct termios2. Empty: the terminal had hung up.
    if modes.len() == TERMIOS2 { ioctl(fd, TCSETS2, modes.as_ptr() as usize).map(drop) } else { Ok(()) }
}

/// Takes what the slave's side has written and nobody has read, and writes it again. All processes stand.
pub fn unread(fd: i32, master: &mut Master) -> Result<()> {
    // (poll(2) waits until what was written a moment ago has come into the line discipline.)
    if poll(fd, libc::POLLIN)? & libc::POLLIN == 0 {
        return Ok(());
    }
    let waiting: i32 = sys::ioctl_get(fd, libc::FIONREAD).unwrap_or(0);
    // Each read of a master in packet mode begins with news that it takes away; a locked slave cannot be opened.
    let slave = if master.packet { None } else { peer(fd).ok() };
    // Output that was stopped by a ^S could only go on if it were started for good.
    let Some(slave) = slave.filter(|s| waiting as usize >= FULL || poll(s.0, libc::POLLOUT).is_ok_and(|r| r != 0))
    else {
        master.lost = waiting.max(0) as u32;
        return Ok(());
    };
    let failed = |what: &str, e| CaptureError::call(fd, what, e);
    let own = modes(slave.0);
    if own.len() == TERMIOS2 {
        // What was written has gone through output processing already: c_oflag is the second word.
        let mut raw = own.clone();
        raw[4] &= !(libc::OPOST as u8);
        set_modes(slave.0, &raw).map_err(|e| failed("ioctl(TCSETS2)", e))?;
    }
    let mut buffer = vec![0u8; FULL + 1];
    let taken = loop {
        match poll(fd, libc::POLLIN) {
            Ok(events) if events & libc::POLLIN == 0 => break Ok(()),
            Ok(_) => {}
            Err(e) => break Err(e),
        }
        match sys::read(fd, &mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => master.unread.extend_from_slice(&buffer[..n]),
            Err(e) => break Err(failed("reading a pty", e)),
        }
    };
    let put = put_back(fd, slave.0, &master.unread);
    set_modes(slave.0, &own).map_err(|e| failed("ioctl(TCSETS2)", e))?;
    taken.and(put)
}

fn put_back(fd: i32, slave: i32, mut left: &[u8]) -> Result<()> {
    let stopped = poll(slave, libc::POLLOUT)? & libc::POLLOUT == 0;
    if stopped {
        let started = ioctl(slave, TCXONC, TCOOFF).and_then(|_| ioctl(slave, TCXONC, TCOON));
        started.map_err(|e| CaptureError::call(fd, "ioctl(TCXONC)", e))?;
    }
    let done = write_all(slave, &mut left)
        .map_err(|e| CaptureError::new(fd, format!("{} bytes of a pty could not be put back: {e}", left.len())));
    if stopped {
        ioctl(slave, TCXONC, TCOOFF).map_err(|e| CaptureError::call(fd, "ioctl(TCXONC)", e))?;
    }
    done
}

/// Writes to a pty's slave, which does not wait, what there was room for before. `left`: what it has not taken yet.
pub(crate) fn write_all(slave: i32, left: &mut &[u8]) -> sys::Result<()> {
    let begin = sys::clock(libc::CLOCK_MONOTONIC)?;
    while !left.is_empty() {
        match sys::write(slave, &left[..left.len().min(PIECE)]) {
            Ok(n) => *left = &left[n..],
            // A worker of the kernel moves it on into the line discipline, and wakes nobody when it has.
            Err(sys::Errno(libc::EAGAIN)) if sys::clock(libc::CLOCK_MONOTONIC)? - begin < PATIENCE_NS => {
                sys::give_way()
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub(super) fn poll(fd: i32, events: i16) -> Result<i16> {
    sys::poll_now(fd, events).map_err(|e| CaptureError::call(fd, "poll", e))
}

fn ioctl(fd: i32, request: u64, value: usize) -> sys::Result<usize> {
    // SAFETY: a number, or, for TCSETS2, a whole struct termios2 of the caller's.
    unsafe { sys::call(libc::SYS_ioctl, [fd as usize, request as usize, value, 0, 0, 0]) }
}
