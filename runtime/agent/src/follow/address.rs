//! getsockname(2), getpeername(2) and connect(2), after a restart under other addresses: the program is told those that it
//! knows, and what it connects to by an old one is found where it is now (`slackwater_objects::known`). Otherwise each costs one load.
use crate::{init, sys};
use alloc::ffi::CString;
use core::ffi::c_int;
use libc::{sockaddr, socklen_t};
use slackwater_hook::hook;
use slackwater_objects::known;
use slackwater_protocol::names;

/// Reads what `restart` has noted. In the constructor, and in a restored process while all threads stand.
pub fn load() {
    let Some(config) = init::config() else { return };
    let path = alloc::format!("{}/{}", config.folder, names::FILE_NAMES);
    let bytes = CString::new(path).ok().and_then(|path| sys::read_file(&path).ok()).unwrap_or_default();
    // SAFETY: the program's threads stand, or there are none yet.
    unsafe { known::load(&bytes) };
}

/// As the kernel hands out an address.
unsafe fn answer(name: &[u8], out: *mut sockaddr, room: c_int, length: *mut socklen_t) {
    let n = name.len().min(usize::try_from(room).unwrap_or(0));
    // SAFETY: the kernel has just written there, by the same length.
    unsafe {
        out.cast::<u8>().copy_from_nonoverlapping(name.as_ptr(), n);
        *length = name.len() as socklen_t;
    }
}

hook! {
    unsafe fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
        if !known::any() {
            // SAFETY: arguments as the program gave them.
            return unsafe { real::getsockname(fd, address, length) };
        }
        // SAFETY: as the kernel would read it; of a wrong pointer the kernel makes EFAULT below.
        let room = if length.is_null() { 0 } else { unsafe { *length as c_int } };
        // SAFETY: arguments as the program gave them.
        let result = unsafe { real::getsockname(fd, address, length) };
        if result == 0 && let Some(known) = known::of(fd) {
            // SAFETY: the kernel has just written there.
            unsafe { answer(&known.local, address, room, length) };
        }
        result
    }

    unsafe fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
        if !known::any() {
            // SAFETY: arguments as the program gave them.
            return unsafe { real::getpeername(fd, address, length) };
        }
        // SAFETY: as above.
        let room = if length.is_null() { 0 } else { unsafe { *length as c_int } };
        // SAFETY: arguments as the program gave them.
        let result = unsafe { real::getpeername(fd, address, length) };
        if result == 0 && let Some(known) = known::of(fd).filter(|known| !known.peer.is_empty()) {
            // SAFETY: the kernel has just written there.
            unsafe { answer(&known.peer, address, room, length) };
        }
        result
    }

    unsafe fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
        if known::any() && !address.is_null() && (16..=128).contains(&length) {
            // SAFETY: as the kernel would read it.
            let wanted = unsafe { core::slice::from_raw_parts(address.cast::<u8>(), length as usize) };
            if let Some((now, length)) = known::instead(wanted) {
                // SAFETY: an address of our own.
                return unsafe { real::connect(fd, now.as_ptr().cast(), length as socklen_t) };
            }
        }
        // SAFETY: arguments as the program gave them.
        unsafe { real::connect(fd, address, length) }
    }
}
