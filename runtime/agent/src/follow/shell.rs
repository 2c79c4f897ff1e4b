//! system(3) and popen(3): spawns inside the C library that do not come by our wrappers, so they are made here.
//!
//! What they are made of is posix_spawn(3) in its real form, announced like any other.
use super::{connected, gate::Birth, spawn};
use crate::spin::Spin;
use alloc::vec::Vec;
use core::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::{MaybeUninit, zeroed},
    ptr::null_mut,
};
use slackwater_hook::hook;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// A stream of popen(3).
struct Stream {
    file: usize,
    fd: c_int,
    pid: c_int,
}

/// What system(3) calls in several threads have in common, and the streams.
struct State {
    waiting: u32,
    actions: [MaybeUninit<libc::sigaction>; 2],
    streams: Vec<Stream>,
}

static SHARED: Spin<State> =
    Spin::new(State { waiting: 0, actions: [MaybeUninit::uninit(), MaybeUninit::uninit()], streams: Vec::new() });
const SIGNALS: [c_int; 2] = [libc::SIGINT, libc::SIGQUIT];

/// Before fork: nobody else is in the middle of a change.
pub fn lock() {
    SHARED.acquire();
}

/// After it.
pub fn unlock() {
    SHARED.release();
}

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    let _birth = Birth::enter();
    SHARED.with(f)
}

/// Spawns `/bin/sh -c command`.
///
/// # Safety
/// `command` is a C string; `actions` and `attributes` as posix_spawn's.
unsafe fn shell(command: *const c_char, actions: *const c_void, attributes: *const c_void) -> Result<c_int, c_int> {
    let path = c"/bin/sh";
    let argv = [c"sh".as_ptr(), c"-c".as_ptr(), command, core::ptr::null()];
    let mut pid = 0;
    // SAFETY: the caller's; argv outlives the call.
    let r = unsafe {
        spawn::spawned(
            || Some(path.into()),
            &raw mut pid,
            environ,
            |pid, envp| spawn::real::posix_spawn(pid, path.as_ptr(), actions, attributes, argv.as_ptr(), envp),
        )
    };
    if r == 0 { Ok(pid) } else { Err(r) }
}

fn wait(pid: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: `status` is ours.
    unsafe {
        while libc::waitpid(pid, &raw mut status, 0) != pid {
            if *libc::__errno_location() != libc::EINTR {
                return -1;
            }
        }
    }
    status
}

fn set_errno(errno: c_int) {
    // SAFETY: this thread's own errno.
    unsafe { *libc::__errno_location() = errno };
}

/// SIGINT and SIGQUIT are ignored while any thread is in system(3); which of them were not before.
unsafe fn ignore_signals() -> libc::sigset_t {
    // SAFETY: plain data, filled in below; the C library's functions on structs of ours.
    unsafe {
        let mut defaults: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut defaults);
        with(|s| {
            let mut ignore: libc::sigaction = zeroed();
            ignore.sa_sigaction = libc::SIG_IGN;
            for (signal, old) in SIGNALS.into_iter().zip(&mut s.actions) {
                if s.waiting == 0 {
                    libc::sigaction(signal, &raw const ignore, old.as_mut_ptr());
                }
                if (*old.as_ptr()).sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&raw mut defaults, signal);
                }
            }
            s.waiting += 1;
        });
        defaults
    }
}

fn listen_again() {
    with(|s| {
        s.waiting -= 1;
        if s.waiting == 0 {
            for (signal, old) in SIGNALS.into_iter().zip(&s.actions) {
                // SAFETY: saved by `ignore_signals`.
                unsafe { libc::sigaction(signal, old.as_ptr(), null_mut()) };
            }
        }
    });
}

hook! {
    unsafe fn system(command: *const c_char) -> c_int {
        if command.is_null() || !connected() {
            // SAFETY: as the program called it.
            return unsafe { real::system(command) };
        }
        // SAFETY: as system(3): structs of ours, filled by the C library.
        unsafe {
            let defaults = ignore_signals();
            let (mut block, mut old): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
            libc::sigemptyset(&raw mut block);
            libc::sigaddset(&raw mut block, libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const block, &raw mut old);
            let mut attributes: libc::posix_spawnattr_t = zeroed();
            libc::posix_spawnattr_init(&raw mut attributes);
            libc::posix_spawnattr_setsigdefault(&raw mut attributes, &raw const defaults);
            libc::posix_spawnattr_setsigmask(&raw mut attributes, &raw const old);
            let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
            libc::posix_spawnattr_setflags(&raw mut attributes, flags as _);
            let status = match shell(command, core::ptr::null(), (&raw const attributes).cast()) {
                Ok(pid) => wait(pid),
                // As if the shell had ended with 127.
                Err(_) => 127 << 8,
            };
            libc::posix_spawnattr_destroy(&raw mut attributes);
            let errno = *libc::__errno_location();
            listen_again();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, null_mut());
            set_errno(errno);
            status
        }
    }
    unsafe fn popen(command: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        if !connected() {
            // SAFETY: as the program called it.
            return unsafe { real::popen(command, mode) };
        }
        // SAFETY: as popen(3).
        unsafe {
            let letters = CStr::from_ptr(mode).to_bytes();
            let has = |c: u8| letters.contains(&c);
            if has(b'r') == has(b'w') || letters.iter().any(|c| !b"rwe".contains(c)) {
                set_errno(libc::EINVAL);
                return null_mut();
            }
            let mut fds = [0; 2];
            if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
                return null_mut();
            }
            let (ours, theirs, number) = if has(b'r') { (fds[0], fds[1], 1) } else { (fds[1], fds[0], 0) };
            let file = libc::fdopen(ours, if has(b'r') { c"r" } else { c"w" }.as_ptr());
            let mut actions: libc::posix_spawn_file_actions_t = zeroed();
            libc::posix_spawn_file_actions_init(&raw mut actions);
            libc::posix_spawn_file_actions_adddup2(&raw mut actions, theirs, number);
            // Streams of earlier calls are closed in the child, unless they lie where its own end goes.
            let mut others = [-1; 64];
            with(|s| others.iter_mut().zip(&s.streams).for_each(|(fd, stream)| *fd = stream.fd));
            for fd in others.into_iter().filter(|&fd| fd >= 0 && fd != number) {
                libc::posix_spawn_file_actions_addclose(&raw mut actions, fd);
            }
            let result = if file.is_null() {
                Err(*libc::__errno_location())
            } else {
                shell(command, (&raw const actions).cast(), core::ptr::null())
            };
            libc::posix_spawn_file_actions_destroy(&raw mut actions);
            libc::close(theirs);
            match result {
                Ok(pid) => {
                    if !has(b'e') {
                        libc::fcntl(ours, libc::F_SETFD, 0);
                    }
                    with(|s| {
                        s.streams.retain(|stream| stream.file != file as usize);
                        s.streams.push(Stream { file: file as usize, fd: ours, pid });
                    });
                    file
                }
                Err(errno) => {
                    if file.is_null() {
                        libc::close(ours);
                    } else {
                        libc::fclose(file);
                    }
                    set_errno(errno);
                    null_mut()
                }
            }
        }
    }
    unsafe fn pclose(file: *mut libc::FILE) -> c_int {
        let mut pid = None;
        with(|s| {
            s.streams.retain(|stream| {
                let it = stream.file == file as usize;
                if it {
                    pid = Some(stream.pid);
                }
                !it
            });
        });
        match pid {
            // SAFETY: as the program called it.
            None => unsafe { real::pclose(file) },
            Some(pid) => {
                // SAFETY: the stream is one of popen's, and now closed for good.
                unsafe { libc::fclose(file) };
                wait(pid)
            }
        }
    }
}
