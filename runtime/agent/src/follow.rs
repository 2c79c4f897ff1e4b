//! Following: whatever the program forks, spawns or becomes is part of the computation.
//!
//! A *birth* (a fork, a spawn, an exec) is announced to the coordinator before it happens, so that no generation passes it
//! by, and it never overlaps with the stopping of threads ([`gate`]): a checkpoint that is asked for in the middle of one
//! is taken right after it. Environment variables carry the agent over exec, cleared environments included ([`env`]); a
//! program that cannot take the agent in (static, set-uid) runs outside, with one line on stderr ([`target`]).
//!
//! Rules: between [`gate::Birth::enter`] and its end the thread is not stopped and takes no signals, so the arena and the
//! connection may be used; while the C library's own function runs, the signal mask is the program's. errno is the C
//! library's when a wrapper returns.
pub mod address;
pub mod clone;
pub mod close;
pub mod env;
pub mod exec;
pub mod fork;
pub mod gate;
pub mod shell;
pub mod spawn;
pub mod target;
pub mod thread;
pub mod watch;

use crate::{conn, init, sys};
use alloc::format;
use core::ffi::CStr;
use slackwater_protocol::message::FromProcess;
use target::Target;

/// Is this process part of a computation? (A child that was made without us, and shares our memory or has a copy, is not.)
fn connected() -> bool {
    conn::connected() && init::pid() == sys::getpid()
}

/// A random number, not 0.
fn token() -> u64 {
    let mut bytes = [0; 8];
    sys::random(&mut bytes);
    u64::from_ne_bytes(bytes) | 1
}

/// Tells the coordinator. False: it is gone; births go on without it.
fn say(message: &FromProcess) -> bool {
    conn::with(|c| c.send(message)).is_ok()
}

/// mpirun that starts its daemons on other hosts: one line for each, and it goes on.
fn leaves_host(path: &CStr) {
    let is =
        |path: &[u8], names: &[&str]| names.iter().any(|n| path.rsplit(|b| *b == b'/').next() == Some(n.as_bytes()));
    if is(path.to_bytes(), &["ssh", "rsh"])
        && let Ok(own) = sys::read_link(c"/proc/self/exe")
        && is(own.as_bytes(), &["orterun", "prterun", "mpiexec.hydra", "hydra_pmi_proxy"])
    {
        sys::complain(&format!(
            "{own} starts daemons on another host: what runs there is outside the computation, and will not be in its \
             checkpoints; one host is what slackwater checkpoints"
        ));
    }
}

/// May the program at `path` be announced? If it cannot take the agent in, says so.
fn will_join(path: Option<&CStr>) -> bool {
    if let Some(path) = path {
        leaves_host(path);
    }
    let mut target = path.map_or(Target::Unknown, target::examine);
    if !matches!(target, Target::Outside(_)) && !env::library_readable() {
        target = Target::Outside("runs as a user who cannot read libslackwater.so");
    }
    match target {
        Target::Inside | Target::Unknown => true,
        Target::Outside(why) => {
            let path = path.unwrap_or_default().to_string_lossy();
            sys::complain(&format!(
                "{path} {why}: it runs outside the computation, and will not be in its checkpoints"
            ));
            false
        }
    }
}

/// The program's errno, over what we do ourselves (raw system calls leave it alone, plugins' hooks may not).
fn keep_errno<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: this thread's own errno.
    unsafe {
        let errno = *libc::__errno_location();
        let r = f();
        *libc::__errno_location() = errno;
        r
    }
}
