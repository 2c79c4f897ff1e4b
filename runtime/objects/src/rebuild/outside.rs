//! What stands for the world outside the computation: the restart command's own standard descriptors and terminal.
//!
//! Rule: a descriptor numbered 0, 1 or 2 whose other end is outside becomes the restart's own of that number; another
//! descriptor of such a description follows it (1 for what can be written, else 0).
use std::io;

use super::{Id, Prepared, os};

/// The restart's own descriptors, at high numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside {
    standard: [Option<i32>; 3],
    terminal: Option<i32>,
}

impl Outside {
    /// Keeps copies of them from number `base` on.
    pub fn find(base: i32) -> io::Result<Self> {
        let mut out = Self::default();
        for fd in 0..3 {
            match os::copy(fd, base) {
                Ok(copy) => out.standard[fd as usize] = Some(copy),
                Err(e) if e.raw_os_error() == Some(libc::EBADF) => {}
                Err(e) => return Err(e),
            }
        }
        out.terminal = match os::open(b"/dev/tty", libc::O_RDWR | libc::O_NOCTTY, 0) {
            Ok(fd) => Some(os::raise(fd, base)?),
            Err(_) => out.standard.into_iter().flatten().find(|&fd| os::is_terminal(fd)),
        };
        Ok(out)
    }
}

/// The restart's own descriptor for number `fd` of the description `id`, if its group has a standard number.
pub fn standard(p: &Prepared<'_>, id: Id, fd: i32) -> Option<i32> {
    let null = || os::open(b"/dev/null", libc::O_RDWR, 0).and_then(|n| os::raise(n, p.base)).ok();
    let number = if (0..3).contains(&fd) { fd } else { follows(p, id)? };
    p.outside.standard[number as usize].or_else(null)
}

/// The standard number that a description of the outside world goes by; None: it has none.
pub fn follows(p: &Prepared<'_>, id: Id) -> Option<i32> {
    let lead = p.groups.lead(id);
    let mut has = [false; 3];
    for at in &p.groups.of(lead).ids {
        for d in &p.tables[at.0].1.descriptors {
            if d.open as usize == at.1 && (0..3).contains(&d.fd) {
                has[d.fd as usize] = true;
            }
        }
    }
    let readable = p.open(id).flags & libc::O_ACCMODE != libc::O_WRONLY;
    let order = if readable { [0, 1, 2] } else { [1, 2, 0] };
    order.into_iter().find(|&n| has[n as usize])
}

/// The restart's terminal, for a terminal that goes by no standard number.
pub fn terminal(p: &Prepared<'_>) -> Option<i32> {
    p.outside.terminal
}
