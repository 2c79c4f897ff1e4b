//! fork(2) and what is made of it.
//!
//! vfork(2) is a fork here: its child would run on the parent's memory and stack, where no second agent can live.
use super::{connected, gate::Birth, keep_errno, say, shell, token};
use crate::{
    arena, conn, init, membership, plugins,
    plugins::Event,
    relay, stop,
    sys::{self, complain},
};
use alloc::format;
use core::ffi::{c_char, c_int, c_void};
use slackwater_hook::{elf, hook, thread::per_thread};
use slackwater_objects::watched;
use slackwater_protocol::message::FromProcess;

/// Forks by `real`, as a birth.
pub fn born(real: impl FnOnce() -> c_int) -> c_int {
    if !connected() {
        return real();
    }
    let mut birth = Birth::enter();
    let event = |event| _ = plugins::dispatch(event, 0, membership::member(), 0);
    event(Event::Prefork);
    let token = token();
    let announced = say(&FromProcess::Expect { token });
    // Whoever holds one of these in another thread would be missing in the child.
    plugins::lock();
    conn::lock();
    shell::lock();
    watched::lock();
    arena::lock();
    let pid = real();
    arena::unlock();
    watched::unlock();
    shell::unlock();
    conn::unlock();
    plugins::unlock();
    keep_errno(|| match pid {
        0 => {
            birth.alone();
            // SAFETY: this thread's own block; its id is another now.
            unsafe {
                (*per_thread()).stop_requested = 0;
                (*per_thread()).tid = 0;
            }
            stop::after_fork();
            conn::after_fork();
            relay::after_fork();
            event(Event::PostforkChild);
            if announced && let Err(e) = init::start(token) {
                complain(&format!("this child is not part of the computation and will not be in its checkpoints: {e}"));
            }
        }
        pid => {
            if announced {
                let born = if pid > 0 { FromProcess::Born { token, pid } } else { FromProcess::Unexpect { token } };
                say(&born);
            }
            event(Event::PostforkParent);
        }
    });
    drop(birth);
    pid
}

hook! {
    unsafe fn fork() -> c_int {
        // SAFETY: as the program called it.
        born(|| unsafe { real::fork() })
    }
    unsafe fn __fork() -> c_int {
        // SAFETY: as the program called it.
        born(|| unsafe { real::fork() })
    }
    unsafe fn vfork() -> c_int {
        // SAFETY: a fork does all that vfork promises.
        born(|| unsafe { real::fork() })
    }
    unsafe fn __vfork() -> c_int {
        // SAFETY: as above.
        born(|| unsafe { real::fork() })
    }
    #[allow(non_snake_case)] // its name in glibc
    unsafe fn _Fork() -> c_int {
        // SAFETY: as the program called it (it runs no atfork handlers).
        born(|| unsafe { real::_Fork() })
    }
    unsafe fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
        // SAFETY: as daemon(3): its own fork does not come by here.
        unsafe {
            match fork() {
                -1 => return -1,
                0 => {}
                _ => loop {
                    _ = sc!(exit_group, 0);
                },
            }
            if libc::setsid() == -1 {
                return -1;
            }
            if nochdir == 0 {
                _ = sc!(chdir, c"/".as_ptr());
            }
            if noclose == 0
                && let Ok(null) = sys::open(c"/dev/null", libc::O_RDWR, 0)
            {
                for fd in 0..3 {
                    _ = sc!(dup2, null.0, fd);
                }
                if null.0 <= 2 {
                    core::mem::forget(null);
                }
            }
            0
        }
    }
    unsafe fn forkpty(master: *mut c_int, name: *mut c_char, modes: *const c_void, window: *const c_void) -> c_int {
        type Open = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_char, *const c_void, *const c_void) -> c_int;
        type Login = unsafe extern "C" fn(c_int) -> c_int;
        // In libutil before glibc 2.34: wherever forkpty is, these are too.
        let (Some(open), Some(login)) = (elf::first(c"openpty", None), elf::first(c"login_tty", None)) else {
            // SAFETY: as the program called it.
            return unsafe { real::forkpty(master, name, modes, window) };
        };
        // SAFETY: functions of the C library by their documented types.
        unsafe {
            let open = core::mem::transmute::<usize, Open>(open);
            let login = core::mem::transmute::<usize, Login>(login);
            let (mut m, mut s) = (-1, -1);
            if open(&raw mut m, &raw mut s, name, modes, window) == -1 {
                return -1;
            }
            let pid = fork();
            match pid {
                -1 => keep_errno(|| {
                    _ = sc!(close, m);
                    _ = sc!(close, s);
                }),
                0 => {
                    _ = sc!(close, m);
                    if login(s) != 0 {
                        loop {
                            _ = sc!(exit_group, 1);
                        }
                    }
                }
                _ => {
                    *master = m;
                    _ = sc!(close, s);
                }
            }
            pid
        }
    }
}
