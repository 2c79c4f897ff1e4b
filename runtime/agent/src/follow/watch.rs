//! inotify_add_watch(2) and mq_notify(3): where the path led, and what comes with the signal, is written down, for the kernel
//! will not tell (see `slackwater_objects::watched`).
use super::{connected, gate::Birth, keep_errno};
use crate::sys;
use core::ffi::{CStr, c_char, c_int};
use libc::sigevent;
use slackwater_hook::hook;
use slackwater_objects::watched;

hook! {
    unsafe fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int {
        // SAFETY: arguments as the program gave them.
        let wd = unsafe { real::inotify_add_watch(fd, path, mask) };
        if wd >= 0 && connected() {
            // As in a birth, the arena is ours, and nobody is stopped.
            let birth = Birth::enter();
            let link = if mask & libc::IN_DONT_FOLLOW != 0 { libc::O_NOFOLLOW } else { 0 };
            keep_errno(|| {
                // SAFETY: the kernel has just taken it as a path.
                if let Ok(opened) = sys::open(unsafe { CStr::from_ptr(path) }, libc::O_PATH | libc::O_CLOEXEC | link, 0) {
                    watched::remember(opened.0);
                }
            });
            drop(birth);
        }
        wd
    }

    unsafe fn mq_notify(queue: c_int, event: *const sigevent) -> c_int {
        // A checkpoint between the call and the note would find the notification, and the value of the one before.
        // (libc makes a thread for those by thread; it must not have our mask.)
        // SAFETY: libc reads it, too.
        let signal = !event.is_null() && unsafe { (*event).sigev_notify } != libc::SIGEV_THREAD;
        let birth = (signal && connected()).then(Birth::enter);
        // SAFETY: arguments as the program gave them.
        let result = unsafe { real::mq_notify(queue, event) };
        if result == 0 && !event.is_null() && connected() {
            let birth = birth.unwrap_or_else(Birth::enter);
            keep_errno(|| {
                // SAFETY: libc has just read it.
                let event = unsafe { &*event };
                watched::remember_notice(queue, event.sigev_notify, event.sigev_value.sival_ptr as u64);
            });
            drop(birth);
        }
        result
    }
}
