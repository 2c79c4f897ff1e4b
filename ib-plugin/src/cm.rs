//! rdma_cm, as far as it goes: event channels without ids are carried over, for UCX opens one in every process and never
//! uses it. Connection ids are not supported yet: while one exists the channel's descriptor is not claimed, and the
//! quiesce refuses the checkpoint.
//!
//! # Safety
//! Each wrapper forwards to the next definition of its name with the arguments it was given.
use crate::sync::Lock;
use alloc::{format, string::String, vec::Vec};
use core::ffi::{CStr, c_int, c_void};
use core::ptr::null_mut;
use slackwater_plugin::{Wrapper, next, protect_fd, unprotect_fd};

const VERSION: &CStr = c"RDMACM_1.0";

struct Known {
    /// Addresses of `rdma_cm_id`s.
    ids: Vec<usize>,
    /// Descriptors of event channels, and their file status flags at the checkpoint.
    channels: Vec<(c_int, c_int)>,
}

static KNOWN: Lock<Known> = Lock::new(Known { ids: Vec::new(), channels: Vec::new() });

/// The next definition of a function of librdmacm, which is loaded, for somebody calls it.
unsafe fn real<F: Copy>(own: usize, name: &CStr) -> Option<F> {
    let mut p = next(own, name, Some(VERSION));
    if p.is_null() && !slackwater_plugin::present() {
        p = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
    }
    (!p.is_null()).then(|| core::mem::transmute_copy(&p))
}

/// `rdma_create_event_channel(3)`.
pub(crate) unsafe extern "C" fn create_event_channel() -> *mut c_int {
    type F = unsafe extern "C" fn() -> *mut c_int;
    let Some(f) = real::<F>(create_event_channel as *const () as usize, c"rdma_create_event_channel") else { return null_mut() };
    let channel = f();
    if !channel.is_null() {
        let _w = Wrapper::enter();
        KNOWN.lock().channels.push((*channel, 0));
    }
    channel
}

/// `rdma_destroy_event_channel(3)`.
pub(crate) unsafe extern "C" fn destroy_event_channel(channel: *mut c_int) {
    type F = unsafe extern "C" fn(*mut c_int);
    if !channel.is_null() {
        let _w = Wrapper::enter();
        let fd = *channel;
        KNOWN.lock().channels.retain(|c| c.0 != fd);
        unprotect_fd(fd);
    }
    if let Some(f) = real::<F>(destroy_event_channel as *const () as usize, c"rdma_destroy_event_channel") {
        f(channel);
    }
}

unsafe fn made(id: *mut *mut c_void) {
    let _w = Wrapper::enter();
    KNOWN.lock().ids.push(*id as usize);
}

fn gone(id: *mut c_void) {
    let _w = Wrapper::enter();
    KNOWN.lock().ids.retain(|&i| i != id as usize);
}

/// `rdma_create_id(3)`.
pub(crate) unsafe extern "C" fn create_id(channel: *mut c_int, id: *mut *mut c_void, user: *mut c_void, ps: c_int) -> c_int {
    type F = unsafe extern "C" fn(*mut c_int, *mut *mut c_void, *mut c_void, c_int) -> c_int;
    let Some(f) = real::<F>(create_id as *const () as usize, c"rdma_create_id") else { return -1 };
    let ret = f(channel, id, user, ps);
    if ret == 0 {
        made(id);
    }
    ret
}

/// `rdma_destroy_id(3)`.
pub(crate) unsafe extern "C" fn destroy_id(id: *mut c_void) -> c_int {
    type F = unsafe extern "C" fn(*mut c_void) -> c_int;
    let Some(f) = real::<F>(destroy_id as *const () as usize, c"rdma_destroy_id") else { return -1 };
    gone(id);
    f(id)
}

/// `rdma_create_ep(3)`.
pub(crate) unsafe extern "C" fn create_ep(
    id: *mut *mut c_void,
    info: *mut c_void,
    pd: *mut c_void,
    init: *mut c_void,
) -> c_int {
    type F = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *mut c_void, *mut c_void) -> c_int;
    let Some(f) = real::<F>(create_ep as *const () as usize, c"rdma_create_ep") else { return -1 };
    let ret = f(id, info, pd, init);
    if ret == 0 {
        made(id);
    }
    ret
}

/// `rdma_destroy_ep(3)`.
pub(crate) unsafe extern "C" fn destroy_ep(id: *mut c_void) {
    type F = unsafe extern "C" fn(*mut c_void);
    gone(id);
    if let Some(f) = real::<F>(destroy_ep as *const () as usize, c"rdma_destroy_ep") {
        f(id);
    }
}

/// Claims the channels' descriptors, unless there is an id; before the runtime looks at descriptors.
pub(crate) fn suspended() {
    let mut known = KNOWN.lock();
    let idle = known.ids.is_empty();
    for (fd, flags) in &mut known.channels {
        if idle {
            // SAFETY: plain system call.
            *flags = unsafe { libc::fcntl(*fd, libc::F_GETFL) };
            protect_fd(*fd);
        } else {
            unprotect_fd(*fd);
        }
    }
}

/// Why there can be no checkpoint now.
pub(crate) fn refusal() -> Option<String> {
    let ids = KNOWN.lock().ids.len();
    (ids != 0).then(|| {
        format!(
            "the program has {ids} rdma_cm ids, which cannot be saved yet: it runs on; checkpoint it when it has none, or \
             have it connect its queue pairs itself (perftest without -R)"
        )
    })
}

/// The channels' descriptors.
pub(crate) fn descriptors() -> Vec<c_int> {
    KNOWN.lock().channels.iter().map(|c| c.0).collect()
}

/// Opens fresh channels under the old numbers, which are held. False: there is no rdma_cm here.
pub(crate) fn reopen() -> bool {
    let mut ok = true;
    for &(number, flags) in &KNOWN.lock().channels {
        // SAFETY: plain system calls.
        unsafe {
            let fd = libc::open(c"/dev/infiniband/rdma_cm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            ok &= fd >= 0 && libc::dup3(fd, number, libc::O_CLOEXEC) >= 0;
            libc::close(fd);
            if flags & libc::O_NONBLOCK != 0 {
                libc::fcntl(number, libc::F_SETFL, libc::O_NONBLOCK);
            }
        }
        protect_fd(number);
    }
    ok
}
