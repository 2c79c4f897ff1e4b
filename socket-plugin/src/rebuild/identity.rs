//! SO_PEERCRED and SCM_CREDENTIALS of unix(7): the kernel notes who makes a connection, or sends. So that is done by a process with
//! the number, the user and the group of whom it noted before, which then ends: its number is the restored process's.
//!
//! The process shares all memory and descriptors, and the caller stands meanwhile (vfork), so it may do whatever the caller could.
//! Rule: the caller has one thread. Where the number cannot be had (no privilege, or it is taken) the new one is noted.
#![allow(unsafe_code)] // Reason: clone, and identities of one thread.
use std::fs;

use crate::model::Credentials;

const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
const STACK: usize = 1 << 18;

struct Job<F, R> {
    who: Credentials,
    f: Option<F>,
    result: Option<R>,
}

/// Does `f` as that process.
pub fn by<R>(who: Option<Credentials>, f: impl FnOnce() -> R) -> R {
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    let Some(who) = who.filter(|who| who.pid > 1 && who.pid != own) else { return f() };
    let Ok(before) = fs::read_to_string(LAST_PID) else { return f() };
    if fs::write(LAST_PID, (who.pid - 1).to_string()).is_err() {
        return f();
    }
    let mut job = Job { who, f: Some(f), result: None };
    run(&mut job);
    let _ = fs::write(LAST_PID, before.trim());
    match job {
        Job { result: Some(result), .. } => result,
        Job { f: Some(f), .. } => f(),
        // It has begun, and cannot end without a result: a panic ends all.
        Job { .. } => unreachable!("a job without a result"),
    }
}

fn run<F: FnOnce() -> R, R>(job: &mut Job<F, R>) {
    extern "C" fn child<F: FnOnce() -> R, R>(job: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the caller's, who stands.
        let job = unsafe { &mut *job.cast::<Job<F, R>>() };
        // SAFETY: bare calls, for glibc's would change the caller's user, too.
        unsafe {
            if job.who.gid != libc::getegid() {
                libc::syscall(libc::SYS_setresgid, -1, job.who.gid, -1);
            }
            if job.who.uid != libc::geteuid() {
                libc::syscall(libc::SYS_setresuid, -1, job.who.uid, -1);
            }
        }
        job.result = job.f.take().map(|f| f());
        0
    }
    // Words, for the alignment.
    let mut stack = vec![0u128; STACK / 16];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    // SAFETY: the stack is its own and lives until it has ended; the caller stands until then.
    unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast();
        let pid = libc::clone(child::<F, R>, top, flags, (&raw mut *job).cast());
        if pid > 0 {
            // It ends without a signal.
            libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
            // Another user makes all that shares the memory unreadable in /proc.
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
    }
}
