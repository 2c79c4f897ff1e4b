//! System V shared memory (shmget(2)): made again with the ids that programs hold, in an IPC namespace of the restart's own.
//!
//! Init makes each segment, attaches it and, if the program had marked it for destruction, marks it again: Linux lets others
//! attach such a segment by its id as long as somebody has it, and init has it to the end. The restorer attaches it in each
//! process with shmat(2), so that shmdt(2) knows it. Rule: what cannot be made so becomes memory without an id, by the caller.
#![allow(unsafe_code)]
use crate::sys;
use slackwater_image::meta::FileId;
use std::fs;
use std::io::{self, Error};

/// The kernel's name of a segment in maps begins so; its key follows in hexadecimal, and its inode is its id.
const NAME: &str = "/SYSV";

/// Is this a segment whose attributes are in the image?
pub fn is(id: &FileId) -> bool {
    id.path.starts_with(NAME) && id.deleted && id.size > 0 && id.mtime_ns != 0
}

/// An IPC namespace of our own, where no id is taken.
pub fn separate() -> io::Result<()> {
    // SAFETY: no pointers.
    sys::check(unsafe { libc::unshare(libc::CLONE_NEWIPC) }).map(drop)
}

/// Makes it, attached here. It is owned by whoever restarts.
pub fn make(id: &FileId) -> io::Result<i32> {
    let number = i32::try_from(id.ino).map_err(|_| Error::from_raw_os_error(libc::ERANGE))?;
    let mode = i32::try_from(id.mtime_ns).unwrap_or(0o600);
    let key = id.path.get(NAME.len()..).and_then(|k| u32::from_str_radix(k, 16).ok()).unwrap_or(0);
    fs::write("/proc/sys/kernel/shm_next_id", number.to_string())?;
    let size = id.size as usize;
    // SAFETY: system calls without memory of ours, and a mapping where nothing is.
    unsafe {
        let made = libc::shmget(key as i32, size, libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777));
        let made = i32::try_from(sys::check(made)?).unwrap_or(-1);
        let at = libc::shmat(made, core::ptr::null(), 0);
        if at as isize == -1 || made != number {
            let error = Error::last_os_error();
            libc::shmctl(made, libc::IPC_RMID, core::ptr::null_mut());
            return Err(error);
        }
        if mode & SHM_DEST != 0 {
            sys::check(libc::shmctl(made, libc::IPC_RMID, core::ptr::null_mut()))?;
        }
    }
    Ok(number)
}

/// In the mode of a segment that goes with its last user (`<linux/shm.h>`).
const SHM_DEST: i32 = 0o1000;
