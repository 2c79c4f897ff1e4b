//! What has been written to a pty's master, "typed", and not been read by the slave's side: whole lines, ends of file (^D)
//! between them, and the beginning of a line that is not a line yet; or, where there are no lines (ICANON is off), bytes.
//!
//! Nobody can look at it. So one process reads it by a slave of its own, and writes it to the master again: in modes in which
//! nothing of it acts, is echoed or is translated a second time, but lines end where they ended. Characters that would end one
//! elsewhere are quoted, as ^V does it.
//!
//! Rules: all processes stand; somebody else has the slave open, for the last to close it would hang up the master. IXON stays as it
//! is if it can: to take it away starts output that ^S has stopped, and is news in packet mode.
use super::tty::{FULL, PATIENCE_NS, TERMIOS2, modes, peer, poll, set_modes, write_all};
use super::{CaptureError, Result};
use crate::model::Typed;
use alloc::{vec, vec::Vec};
use slackwater_socket::sys::{self, Errno};

// struct termios2 of <asm-generic/termbits.h>: where its flags and characters are, and which of them matter.
const IFLAG: usize = 0;
const LFLAG: usize = 12;
const CC: usize = 17;
const NCCS: usize = 19;
const IXON: u32 = 0o2000;
const IXOFF: u32 = 0o10000;
const IUTF8: u32 = 0o40000;
const ICANON: u32 = 0o2;
const NOFLSH: u32 = 0o200;
const TOSTOP: u32 = 0o400;
const IEXTEN: u32 = 0o100_000;
const EXTPROC: u32 = 0o200_000;
const VEOF: usize = 4;
const VMIN: usize = 6;
const VSTART: usize = 8;
const VSTOP: usize = 9;
const VEOL: usize = 11;
const VLNEXT: usize = 15;
const VEOL2: usize = 16;
/// What quotes, and what ends a file, while bytes are put back.
const QUOTE: u8 = 0x16;
const END: u8 = 0x04;
/// A line discipline that is as full as this may have kept something back.
const ENOUGH: usize = FULL - 256;

/// Where objects are told apart by device and inode, this and its number stand for a pty's slave. No device has it; see `tty::PTYS`.
pub const SLAVES: u64 = u64::MAX - 4;

/// A slave's modes.
#[derive(Clone)]
struct Modes(Vec<u8>);

impl Modes {
    fn flags(&self, at: usize) -> u32 {
        self.0[at..at + 4].iter().rev().fold(0, |word, b| word << 8 | u32::from(*b))
    }

    fn set(&mut self, at: usize, flags: u32) {
        self.0[at..at + 4].copy_from_slice(&flags.to_le_bytes());
    }

    fn lines(&self) -> bool {
        self.flags(LFLAG) & ICANON != 0
    }

    /// The character `n`; None: there is none.
    fn character(&self, n: usize) -> Option<u8> {
        Some(self.0[CC + n]).filter(|&c| c != 0)
    }

    /// Which characters end a line.
    fn ends_line(&self, c: u8) -> bool {
        let second = self.character(VEOL2).filter(|_| self.flags(LFLAG) & IEXTEN != 0);
        c == b'\n' || Some(c) == self.character(VEOL) || Some(c) == second
    }

    /// Do ^S and ^Q act?
    fn flow(&self, c: u8) -> bool {
        let is = |n| Some(c) == self.character(n);
        self.flags(IFLAG) & IXON != 0 && (is(VSTART) || is(VSTOP))
    }

    /// In which nothing acts but, where there are lines, their ends, [`QUOTE`] and [`END`].
    fn inert(&self, lines: bool) -> Self {
        let mut out = self.clone();
        let second = self.0[CC + VEOL2];
        out.set(IFLAG, self.flags(IFLAG) & (IXON | IXOFF | IUTF8));
        out.set(LFLAG, self.flags(LFLAG) & (NOFLSH | TOSTOP) | if lines { ICANON | IEXTEN } else { 0 });
        for n in (0..NCCS).filter(|n| ![VSTART, VSTOP, VEOL].contains(n)) {
            out.0[CC + n] = 0;
        }
        if lines {
            (out.0[CC + VLNEXT], out.0[CC + VEOF]) = (QUOTE, END);
            if self.flags(LFLAG) & IEXTEN != 0 {
                out.0[CC + VEOL2] = second;
            }
        } else {
            out.0[CC + VMIN] = 1;
        }
        out
    }
}

/// Takes it, and writes it again.
pub fn take(fd: i32) -> Result<Typed> {
    // A locked slave cannot be opened.
    let Ok(slave) = peer(fd) else { return Ok(Typed::default()) };
    let own = Modes(modes(slave.0));
    if own.0.len() != TERMIOS2 {
        return Ok(Typed::default());
    }
    let waiting = counted(slave.0);
    // Who handles input elsewhere (EXTPROC) gets it as it came.
    if waiting > ENOUGH || own.flags(LFLAG) & EXTPROC != 0 {
        return Ok(Typed { lost: waiting as u32, ..Typed::default() });
    }
    let failed = |e| CaptureError::call(fd, "reading what was typed into a pty", e);
    let mut lines = Vec::new();
    let mut rest = Vec::new();
    // The last read(2), which finds nothing, has waited for the kernel to move on what is under way, in the program's modes.
    let mut taken = if own.lines() { read_all(slave.0, |line| lines.push(line.to_vec())) } else { Ok(()) };
    if own.lines() && taken.is_ok() {
        taken = set_modes(slave.0, &own.inert(false).0);
    }
    let taken = taken.and_then(|()| read_all(slave.0, |part| rest.extend_from_slice(part)));
    let typed = encode(&own, &lines, &rest);
    let put = put(fd, slave.0, &own.0, &typed);
    taken.and(put).map(|()| typed).map_err(failed)
}

/// Each read(2) that finds something.
fn read_all(slave: i32, mut found: impl FnMut(&[u8])) -> sys::Result<()> {
    let mut buffer = vec![0u8; FULL + 1];
    // As many ends of file as there is room for; a read(2) without MIN and TIME finds 0 bytes for ever.
    for _ in 0..FULL {
        match sys::read(slave, &mut buffer) {
            Ok(0) if !Modes(modes(slave)).lines() => break,
            Ok(n) => found(&buffer[..n]),
            Err(Errno(libc::EAGAIN)) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn encode(own: &Modes, lines: &[Vec<u8>], rest: &[u8]) -> Typed {
    if !own.lines() {
        return Typed { bytes: rest.to_vec(), tail: 0, counted: rest.len() as u32, lost: 0 };
    }
    let mut out = Typed::default();
    let quoted = |out: &mut Vec<u8>, text: &[u8]| {
        for &c in text {
            if own.ends_line(c) || own.flow(c) || matches!(c, QUOTE | END) {
                out.push(QUOTE);
            }
            out.push(c);
        }
    };
    let mut last = 0;
    for line in lines {
        let (text, end) = match line.split_last() {
            Some((&c, text)) if own.ends_line(c) => (text, c),
            _ => (&line[..], END),
        };
        quoted(&mut out.bytes, text);
        // Ends of file behind it count for nothing, so they go with it.
        if !line.is_empty() {
            last = out.bytes.len();
        }
        out.bytes.push(end);
        out.counted += line.len() as u32;
    }
    quoted(&mut out.bytes, rest);
    out.tail = (out.bytes.len() - last) as u32;
    out
}

/// Writes it to the master, of whose slave `own` are the modes.
pub(crate) fn put(master: i32, slave: i32, own: &[u8], typed: &Typed) -> sys::Result<()> {
    if own.len() != TERMIOS2 {
        return Ok(());
    }
    let own = Modes(own.to_vec());
    let done = if typed.bytes.is_empty() { Ok(()) } else { write(master, slave, &own, typed) };
    set_modes(slave, &own.0).and(done)
}

fn write(master: i32, slave: i32, own: &Modes, typed: &Typed) -> sys::Result<()> {
    let mut inert = own.inert(own.lines());
    if !own.lines() && typed.bytes.iter().any(|&c| own.flow(c)) {
        inert.set(IFLAG, inert.flags(IFLAG) & !IXON);
    }
    set_modes(slave, &inert.0)?;
    let (mut first, mut tail) = typed.bytes.split_at(typed.bytes.len().saturating_sub(typed.tail as usize));
    write_all(master, &mut first)?;
    // In one piece, so that the kernel takes it at once: when the last line counts, all of it has come.
    while !tail.is_empty() {
        tail = &tail[sys::write(master, tail)?..];
    }
    // (poll(2) waits for what is under way, where nothing has come.)
    poll(slave, libc::POLLIN).map_err(|_| Errno(libc::EIO))?;
    let begin = sys::clock(libc::CLOCK_MONOTONIC)?;
    while counted(slave) != typed.counted as usize {
        if sys::clock(libc::CLOCK_MONOTONIC)? - begin > PATIENCE_NS {
            return Err(Errno(libc::ETIMEDOUT));
        }
        sys::give_way();
    }
    Ok(())
}

/// FIONREAD: bytes, or those of whole lines.
fn counted(slave: i32) -> usize {
    sys::ioctl_get::<i32>(slave, libc::FIONREAD).unwrap_or(0).max(0) as usize
}
