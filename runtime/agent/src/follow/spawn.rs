//! posix_spawn(3): the child shares our memory until it has become another program, so it has no agent before that.
use super::{connected, env, gate::Birth, keep_errno, say, target, token, will_join};
use core::ffi::{CStr, c_char, c_int, c_void};
use slackwater_hook::hook;
use slackwater_protocol::message::FromProcess;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// Spawns by `real`, which is given where to put the pid, and the environment. `find`: the program, to be looked at.
///
/// # Safety
/// `pid_out` is NULL or writable; `envp` as posix_spawn's.
pub unsafe fn spawned(
    find: impl FnOnce() -> Option<alloc::ffi::CString>,
    pid_out: *mut c_int,
    envp: *const *const c_char,
    real: impl FnOnce(*mut c_int, *const *const c_char) -> c_int,
) -> c_int {
    let mut pid = 0;
    let place = if pid_out.is_null() { &raw mut pid } else { pid_out };
    if !connected() {
        return real(place, envp);
    }
    let birth = Birth::enter();
    if !will_join(find().as_deref()) {
        return birth.as_program(|| real(place, envp));
    }
    let token = token();
    let announced = say(&FromProcess::Expect { token });
    // SAFETY: the caller's.
    let environment = unsafe { env::inject(envp, token, None) };
    let r = birth.as_program(|| real(place, environment.as_ptr()));
    keep_errno(|| {
        if announced {
            // SAFETY: written by the C library.
            let pid = unsafe { *place };
            say(&if r == 0 { FromProcess::Born { token, pid } } else { FromProcess::Unexpect { token } });
        }
    });
    r
}

hook! {
    unsafe fn posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *const c_char, envp: *const *const c_char) -> c_int {
        // SAFETY: arguments as the program gave them.
        unsafe {
            spawned(|| Some(CStr::from_ptr(path).into()), pid, envp, |pid, envp| {
                real::posix_spawn(pid, path, actions, attributes, argv, envp)
            })
        }
    }
    unsafe fn posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *const c_char, envp: *const *const c_char) -> c_int {
        // SAFETY: arguments as the program gave them.
        unsafe {
            spawned(|| target::search(CStr::from_ptr(file), environ), pid, envp, |pid, envp| {
                real::posix_spawnp(pid, file, actions, attributes, argv, envp)
            })
        }
    }
}
