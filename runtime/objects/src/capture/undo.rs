//! What SEM_UNDO (semop(2)) gives back or takes away when this process ends.
//!
//! The kernel shows these adjustments to nobody, but it bounds them: an operation with SEM_UNDO that would take one out of
//! -32,768 to 32,767 fails with ERANGE (ipc/sem.c). So it is asked by arrays of operations of which the last can never be
//! done: nothing changes, nobody is woken, and the error says whether the bound was met before. Two such calls tell that a whole
//! set has no adjustment, which is the rule; else bisection finds each. What is asked is the kernel's own account, whatever
//! way it came about: threads, execve(2), SETVAL by others, system calls that went past the C library.
//!
//! A restarted process takes its adjustments on by pairs of operations that leave the values alone.
//!
//! Rules: all processes of the computation stand, for the values must.
#![allow(unsafe_code)] // Reason: system calls that no safe wrapper covers.
use alloc::{vec, vec::Vec};
use slackwater_socket::sys::{self, Errno};

const GETVAL: usize = 12;
const SEM_UNDO: i16 = 0x1000;
const NOWAIT: i16 = libc::IPC_NOWAIT as i16;
/// Highest value, and adjustment (SEMVMX, SEMAEM).
const MOST: i32 = 32767;
/// How many semaphores are asked about at once: no more than SEMOPM (500) operations.
const AT_ONCE: usize = 64;

/// An adjustment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undo {
    /// The set's number.
    pub set: i32,
    /// Which of its semaphores.
    pub semaphore: u16,
    /// What is added to its value when the process ends.
    pub adjustment: i32,
}

/// struct sembuf.
#[derive(Clone, Copy)]
#[repr(C)]
struct Operation {
    semaphore: u16,
    by: i16,
    flags: i16,
}

/// For numbers from -32,768 to 32,767.
const fn op(semaphore: usize, by: i32, flags: i16) -> Operation {
    Operation { semaphore: semaphore as u16, by: by as i16, flags: flags | NOWAIT }
}

fn semop(set: i32, operations: &[Operation]) -> sys::Result<()> {
    let args = [set as usize, operations.as_ptr() as usize, operations.len(), 0, 0, 0];
    // SAFETY: as many struct sembuf as told.
    unsafe { sys::call(libc::SYS_semop, args) }.map(drop)
}

/// Is the adjustment of a semaphore below `limit` (-32,767 to 0)? First its value goes to 0, for it must not leave its own bounds.
fn below(n: usize, value: u16, limit: i32, out: &mut Vec<Operation>) {
    let by = limit + MOST + 1;
    let first = by.min(MOST);
    if value > 0 {
        out.push(op(n, -i32::from(value), 0));
    }
    out.push(op(n, first, SEM_UNDO));
    if by > first {
        out.extend([op(n, -first, 0), op(n, by - first, SEM_UNDO)]);
    }
}

/// Is it above `limit` (0 to 32,766)? The value goes to the highest first.
fn above(n: usize, value: u16, limit: i32, out: &mut Vec<Operation>) {
    let up = MOST - i32::from(value);
    if up > 0 {
        out.push(op(n, up, 0));
    }
    out.push(op(n, limit - MOST, SEM_UNDO));
}

type Question = fn(usize, u16, i32, &mut Vec<Operation>);

/// Does one of these semaphores (their places) say yes?
fn ask(set: i32, values: &[u16], places: core::ops::Range<usize>, question: Question, limit: i32) -> sys::Result<bool> {
    let mut operations = Vec::new();
    for n in places.clone() {
        question(n, values[n], limit, &mut operations);
    }
    // No value is that high.
    operations.push(op(places.start, -MOST - 1, 0));
    match semop(set, &operations) {
        Err(Errno(libc::ERANGE)) => Ok(true),
        Err(Errno(libc::EAGAIN)) | Ok(()) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The one semaphore's adjustment, which is not 0.
fn measure(set: i32, values: &[u16], n: usize) -> sys::Result<i32> {
    let one = |question, limit| ask(set, values, n..n + 1, question, limit);
    if one(below, 0)? {
        let (mut low, mut high) = (-MOST - 1, -1);
        while low < high {
            let middle = high - (high - low) / 2;
            if one(below, middle)? { high = middle - 1 } else { low = middle }
        }
        return Ok(low);
    }
    let (mut low, mut high) = (0, MOST);
    while low < high {
        let middle = low + (high - low) / 2;
        if one(above, middle)? { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// Adjustments of this process in a set whose values are these.
///
/// # Errors
/// The kernel's: the set is gone, or not ours to change.
pub fn find(set: i32, values: &[u16]) -> sys::Result<Vec<Undo>> {
    let mut out = Vec::new();
    let mut step = AT_ONCE;
    let mut at = 0;
    while at < values.len() {
        let places = at..(at + step).min(values.len());
        let all = |question| ask(set, values, places.clone(), question, 0);
        match all(below).and_then(|some| Ok(some || all(above)?)) {
            // A low limit of operations in a call (/proc/sys/kernel/sem).
            Err(Errno(libc::E2BIG)) if step > 1 => {
                step = 1;
                continue;
            }
            Err(e) => return Err(e),
            Ok(false) => {}
            Ok(true) => {
                for n in places.clone() {
                    let adjustment = measure(set, values, n)?;
                    if adjustment != 0 {
                        out.push(Undo { set, semaphore: n as u16, adjustment });
                    }
                }
            }
        }
        at = places.end;
    }
    Ok(out)
}

/// In a process that has been restarted: ends it, the same is given back as if it had not been.
///
/// # Errors
/// The kernel's.
pub fn take_on(undos: &[Undo]) -> sys::Result<()> {
    for undo in undos {
        let (set, n) = (undo.set, usize::from(undo.semaphore));
        let mut left = undo.adjustment;
        while left != 0 {
            // SAFETY: GETVAL takes no pointer.
            let value = unsafe { sys::call(libc::SYS_semctl, [set as usize, n, GETVAL, 0, 0, 0]) }? as i32;
            // Down and up, or up and down, so that the value keeps its bounds; half of what there is fits for certain.
            let part = left.abs().min(value.max(MOST - value));
            let undone = -left.signum() * part;
            let pair = vec![op(n, undone, SEM_UNDO), op(n, -undone, 0)];
            let down_first = value >= part;
            let ordered = if down_first == (undone < 0) { pair } else { pair.into_iter().rev().collect() };
            semop(set, &ordered)?;
            left += undone;
        }
    }
    Ok(())
}
