//! Terminals: ptys whose master is in the computation are made anew, with the old number where it is free; other terminals
//! are the world outside.
use std::collections::BTreeMap;
use std::io;

use super::{Id, Prepared, Result, os, outside};
use crate::capture::{
    tty::{slave_number, write_all},
    typed,
};
use crate::model::{Kind, Master, Terminal};

const TCSETS2: u64 = 0x402c_542b;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCPKT: u64 = 0x5420;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGPTPEER: u64 = 0x5441;

/// /dev/tty: means another terminal in each session, so each process opens it itself.
pub fn is_controlling(terminal: &Terminal) -> bool {
    (libc::major(terminal.rdev), libc::minor(terminal.rdev)) == (5, 0)
}

/// All terminals of the computation.
pub fn all(p: &mut Prepared<'_>) -> Result<()> {
    let mut masters: BTreeMap<u32, i32> = BTreeMap::new();
    let groups = p.groups.iter();
    let mut wanted: Vec<(u32, Id, Master)> = groups
        .iter()
        .filter_map(|(lead, _)| match &p.open(*lead).kind {
            Kind::Master(master) => Some((master.number, *lead, master.clone())),
            _ => None,
        })
        .collect();
    wanted.sort_by_key(|(number, ..)| *number);
    for (number, lead, master) in wanted {
        let fd = make(p, lead, &master).map_err(|e| p.error(lead, format!("making pty {number}"), e))?;
        masters.insert(number, fd);
    }
    for (lead, _) in groups {
        let open = p.open(lead).clone();
        let Kind::Terminal(terminal) = &open.kind else { continue };
        let inside = slave_number(terminal.rdev).and_then(|n| masters.get(&n).copied());
        if let Some(master) = inside {
            let flags = open.flags & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_NOCTTY;
            let fd = os::ioctl(master, TIOCGPTPEER, flags as u64)
                .and_then(|fd| os::raise(fd, p.base))
                .map_err(|e| p.error(lead, "opening a pty's slave", e))?;
            p.made.insert(lead, fd);
            p.terminals.entry(terminal.rdev).or_insert(fd);
        } else if !is_controlling(terminal) {
            out(p, lead, terminal)?;
        }
    }
    for (number, fd) in &masters {
        type_again(p, *number, *fd)?;
    }
    // Locks last: a locked slave cannot be opened.
    for (lead, _) in p.groups.iter() {
        if let Kind::Master(Master { locked: true, .. }) = &p.open(lead).kind {
            os::ioctl_with(p.made[&lead], TIOCSPTLCK, &mut 1i32).map_err(|e| p.error(lead, "locking a pty", e))?;
        }
    }
    Ok(())
}

fn make(p: &mut Prepared<'_>, lead: Id, master: &Master) -> io::Result<i32> {
    // The kernel gives the lowest free number: lower ones are held until the old number comes up, or is passed.
    let mut passed = Vec::new();
    let flags = p.open(lead).flags & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_NOCTTY;
    let fd = loop {
        let fd = os::raise(os::open(b"/dev/ptmx", flags, 0)?, p.base)?;
        let mut number = 0u32;
        os::ioctl_with(fd, TIOCGPTN, &mut number)?;
        if number >= master.number || passed.len() >= 256 {
            if number != master.number {
                p.warn(lead, format!("/dev/pts/{} is taken here; the pty is /dev/pts/{number} now", master.number));
            }
            break fd;
        }
        passed.push(fd);
    };
    passed.into_iter().for_each(os::close);
    os::ioctl_with(fd, TIOCSPTLCK, &mut 0i32)?;
    set_modes(fd, &master.modes)?;
    os::ioctl_with(fd, TIOCSWINSZ, &mut master.window.clone())?;
    // One process had taken what its reader has not seen yet.
    let key = p.open(lead).dev;
    let all = p.tables.iter().flat_map(|(_, t)| &t.opens);
    let unread = all.filter(|o| o.dev == key).find_map(|o| match &o.kind {
        Kind::Master(m) if m.number == master.number && !m.unread.is_empty() => Some(&m.unread[..]),
        _ => None,
    });
    if unread.is_some() || master.hangup {
        fill(fd, &master.modes, unread.unwrap_or_default())?;
    }
    if master.packet {
        os::ioctl_with(fd, TIOCPKT, &mut 1i32)?;
    }
    if master.lost > 0 {
        p.warn(lead, format!("{} bytes written to the pty's slave and not read by its master are lost", master.lost));
    }
    p.made.insert(lead, fd);
    Ok(fd)
}

// Writes what had been typed; one process had taken it.
fn type_again(p: &mut Prepared<'_>, number: u32, fd: i32) -> Result<()> {
    let masters = p
        .tables
        .iter()
        .enumerate()
        .flat_map(|(t, (_, table))| table.opens.iter().enumerate().map(move |(i, o)| ((t, i), o)));
    let typed = masters.filter_map(|(id, open)| match &open.kind {
        Kind::Master(m) if m.number == number && (m.typed.lost > 0 || !m.typed.bytes.is_empty()) => Some((id, m)),
        _ => None,
    });
    let Some((id, master)) = typed.map(|(id, m)| (id, m.clone())).next() else { return Ok(()) };
    if master.typed.lost > 0 {
        p.warn(id, format!("{} bytes typed into the pty and not read by its slave are lost", master.typed.lost));
        return Ok(());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let done = os::ioctl(fd, TIOCGPTPEER, flags as u64).and_then(|slave| {
        let put = typed::put(fd, slave, &master.modes, &master.typed);
        os::close(slave);
        put.map_err(|e| io::Error::from_raw_os_error(e.0))
    });
    done.map_err(|e| p.error(id, "typing into a pty again", e))
}

// Writes what had been written to the slave. Where nobody opens it after this, the master sees that it hung up.
fn fill(master: i32, modes: &[u8], mut bytes: &[u8]) -> io::Result<()> {
    let slave = os::ioctl(master, TIOCGPTPEER, (libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK) as u64)?;
    // It has gone through output processing already: without OPOST of c_oflag, the second word.
    let mut raw = modes.to_vec();
    if let Some(flags) = raw.get_mut(4) {
        *flags &= !(libc::OPOST as u8);
    }
    let written = set_modes(slave, &raw)
        .and_then(|()| write_all(slave, &mut bytes).map_err(|e| io::Error::from_raw_os_error(e.0)));
    let result = written.and_then(|()| set_modes(slave, modes));
    os::close(slave);
    result
}

// A terminal outside: the restart's own, in the modes that the program had set.
fn out(p: &mut Prepared<'_>, lead: Id, terminal: &Terminal) -> Result<()> {
    let fd = match outside::follows(p, lead) {
        Some(number) => {
            p.leads_out.insert(lead);
            outside::standard(p, lead, number)
        }
        None => outside::terminal(p),
    };
    match fd {
        Some(fd) if os::is_terminal(fd) => {
            if let Err(e) = set_modes(fd, &terminal.modes) {
                p.warn(lead, format!("setting the terminal's modes: {e}"));
            }
            if !p.leads_out.contains(&lead) {
                let copy = os::copy(fd, p.base).map_err(|e| p.error(lead, "copying the terminal's descriptor", e))?;
                p.made.insert(lead, copy);
            }
        }
        Some(_) => {}
        None => {
            p.warn(
                lead,
                format!(
                    "the terminal {} is outside, and the restart has none: /dev/null stands for it",
                    String::from_utf8_lossy(&terminal.path)
                ),
            );
            let null = os::open(b"/dev/null", libc::O_RDWR, 0)
                .and_then(|fd| os::raise(fd, p.base))
                .map_err(|e| p.error(lead, "opening /dev/null", e))?;
            p.made.insert(lead, null);
        }
    }
    Ok(())
}

fn set_modes(fd: i32, modes: &[u8]) -> io::Result<()> {
    // 44 bytes: struct termios2. Empty: the terminal had hung up.
    if modes.len() != 44 {
        return Ok(());
    }
    os::ioctl_bytes(fd, TCSETS2, &mut modes.to_vec()).map(|_| ())
}
