//! Terminals: pty masters and slaves, the console, /dev/tty; other character devices go to `file::device`.
use alloc::vec::Vec;

use slackwater_socket::sys;

use super::{CaptureError, Result, file};
use crate::model::{Kind, Master, Terminal};

// <asm-generic/ioctls.h>; the libc crate lacks some of them on some targets.
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPKT: u64 = 0x8004_5438;
const TCGETS2: u64 = 0x802c_542a;
const TIOCGWINSZ: u64 = 0x5413;
/// Size of struct termios2.
const TERMIOS2: usize = 44;

/// What a character device is.
pub fn or_device(fd: i32, st: &libc::stat, link: Vec<u8>) -> Result<Kind> {
    let (major, minor) = (libc::major(st.st_rdev), libc::minor(st.st_rdev));
    match (major, minor) {
        // /dev/ptmx
        (5, 2) => {
            let number: u32 = sys::ioctl_get(fd, TIOCGPTN).map_err(|e| CaptureError::call(fd, "ioctl(TIOCGPTN)", e))?;
            let unread: i32 = sys::ioctl_get(fd, libc::FIONREAD).unwrap_or(0);
            Ok(Kind::Master(Master {
                number,
                locked: sys::ioctl_get::<i32>(fd, TIOCGPTLCK).unwrap_or(0) != 0,
                packet: sys::ioctl_get::<i32>(fd, TIOCGPKT).unwrap_or(0) != 0,
                modes: modes(fd),
                window: sys::ioctl_get(fd, TIOCGWINSZ).unwrap_or_default(),
                unread: unread.max(0) as u32,
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
fn modes(fd: i32) -> Vec<u8> {
    #[derive(Clone, Copy)]
    struct Termios2([u8; TERMIOS2]);
    impl Default for Termios2 {
        fn default() -> Self {
            Self([0; TERMIOS2])
        }
    }
    sys::ioctl_get::<Termios2>(fd, TCGETS2).map_or(Vec::new(), |t| t.0.to_vec())
}
