//! Threads that share less than POSIX says threads do.
//!
//! unshare(2) gives a thread a descriptor table, or a working directory and umask, of its own. An image has one of each for
//! a process: such a thread would come back with somebody else's, silently. So it is refused.
use crate::sys;
use alloc::{format, string::String};

/// `enum kcmp_type` of `<linux/kcmp.h>`.
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;

/// # Errors
/// The thread, what it has of its own, and what to do.
pub fn refuse(tids: &[i32]) -> Result<(), String> {
    // The leader's id may be that of a thread which has ended, and holds nothing any more.
    let Some((&first, others)) = tids.split_first() else { return Ok(()) };
    for &tid in others {
        for (kind, what, flag) in
            [(KCMP_FS, "a working directory", "CLONE_FS"), (KCMP_FILES, "a descriptor table", "CLONE_FILES")]
        {
            // SAFETY: no memory involved. A kernel without CONFIG_KCMP cannot say, and nobody else can.
            if unsafe { sc!(kcmp, first, tid, kind, 0, 0) }.is_ok_and(|order| order != 0) {
                return Err(format!(
                    "thread {tid} of process {} has {what} of its own (unshare({flag})), which cannot be saved: use a process instead",
                    sys::getpid()
                ));
            }
        }
    }
    Ok(())
}
