//! close(2) of descriptors that are ours.
//!
//! Where plugins are loaded, the checkpoint thread shares the program's descriptor table (elsewhere it has one of its own,
//! see `init`). Programs close "all descriptors" before they run another (Python's subprocess) or become a daemon, and would
//! take the connection to the coordinator along: to them there is no such descriptor.
use crate::conn;
use core::ffi::{c_int, c_uint};
use slackwater_hook::hook;

/// Calls `close` for each stretch between `first` and `last` in which nothing is ours.
fn around(first: c_uint, last: c_uint, mut close: impl FnMut(c_uint, c_uint) -> c_int) -> c_int {
    let mut from = first;
    while let Some(ours) = conn::next_own(from).filter(|&fd| fd <= last) {
        if from < ours && close(from, ours - 1) != 0 {
            return -1;
        }
        from = ours + 1;
        if from > last {
            return 0;
        }
    }
    close(from, last)
}

hook! {
    unsafe fn close(fd: c_int) -> c_int {
        if conn::is_own(fd) {
            // SAFETY: errno of this thread.
            unsafe { *libc::__errno_location() = libc::EBADF };
            return -1;
        }
        // SAFETY: as the program called it.
        unsafe { real::close(fd) }
    }

    unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        if first > last {
            // SAFETY: as the program called it: an error.
            return unsafe { real::close_range(first, last, flags) };
        }
        // SAFETY: as the program called it, in parts.
        around(first, last, |from, to| unsafe { real::close_range(from, to, flags) })
    }

    unsafe fn closefrom(first: c_int) {
        // SAFETY: as the program called it, in parts; before Linux 5.9 as a whole, the slow way.
        unsafe {
            if around(first.max(0) as c_uint, c_uint::MAX, |from, to| real::close_range(from, to, 0)) != 0 {
                real::closefrom(first);
            }
        }
    }
}
