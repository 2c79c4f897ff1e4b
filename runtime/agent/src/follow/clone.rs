//! clone(2) in the ways that libc offers: `clone`, and `syscall` with the numbers that make a process or another program.
//!
//! A child that shares nothing with its parent is a fork by another name, and one that would run on the parent's memory until it
//! has become another program (CLONE_VM with CLONE_VFORK) is a fork here, as vfork(2) is. Threads are handed on as they
//! are, and so is a child that shares memory, files or handlers with its parent or begins in other namespaces: no restart can make such
//! a one, so a checkpoint that finds it is refused (see `children`).
//!
//! Rules: the child is made by the bare system call on the caller's own (copied) stack, so that it comes out of here as a fork
//! does, and goes to the stack that the program gave it at the very end. glibc's `clone` runs no atfork handlers either.
use super::{connected, exec, fork, gate::Birth};
use crate::sys;
use core::ffi::{c_char, c_int, c_long, c_ulong, c_void};
use slackwater_hook::{hook, thread::per_thread};

/// What makes a child more than a fork.
const BEYOND: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
const VFORK: u64 = libc::CLONE_VFORK as u64;

/// `flags` of the fork that does what these ask for; None: no fork does.
fn as_fork(flags: u64) -> Option<u64> {
    let borrowed = if flags & VFORK != 0 { VFORK | libc::CLONE_VM as u64 } else { 0 };
    let flags = flags & !borrowed;
    (connected() && flags & BEYOND == 0).then_some(flags)
}

/// `struct clone_args` of clone3(2): its first 64 bytes, which each kernel that has the call takes.
const FLAGS: usize = 0;
const STACK: usize = 5;
/// All of it that any kernel knows, and more, in words.
const MOST: usize = 32;

/// The result of a system call as libc gives it.
fn told(result: Result<usize, syscalls::Errno>) -> c_int {
    match result {
        Ok(pid) => pid as c_int,
        Err(e) => {
            // SAFETY: this thread's own errno.
            unsafe { *libc::__errno_location() = e.into_raw() };
            -1
        }
    }
}

/// fork(2) by clone(2), as a birth.
///
/// # Safety
/// As clone(2), with what [`as_fork`] leaves of the flags.
unsafe fn clone_fork(flags: u64, parent: usize, child: usize) -> c_int {
    // SAFETY: the caller's; no stack: the child has a copy of this one.
    fork::born(|| told(unsafe { sc!(clone, flags, 0, parent, child, 0) }))
}

/// The same by clone3(2); None: it is no fork.
///
/// # Safety
/// As clone3(2).
unsafe fn clone3_fork(args: *const u64, size: usize) -> Option<c_int> {
    let words = size / 8;
    if args.is_null() || words <= STACK || words > MOST || !size.is_multiple_of(8) {
        return None;
    }
    let mut copy = [0u64; MOST];
    // SAFETY: `size` bytes are there, by the call's contract.
    unsafe { core::ptr::copy_nonoverlapping(args, copy.as_mut_ptr(), words) };
    copy[FLAGS] = as_fork(copy[FLAGS]).filter(|_| copy[STACK] == 0)?;
    // SAFETY: as the caller's, but for the flags.
    Some(fork::born(|| told(unsafe { sc!(clone3, copy.as_ptr(), size) })))
}

/// Is the calling thread the last one of the program's? With it the process ends; the checkpoint thread would outlive it.
fn last() -> bool {
    if !connected() {
        return false;
    }
    let _birth = Birth::enter();
    sys::numbers_in(c"/proc/self/task").is_ok_and(|tids| tids.len() == 2)
}

/// Runs `function(argument)` on the stack that ends at `stack`, and ends the process with what it returns.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn go_to(function: *const c_void, argument: *mut c_void, stack: *mut c_void) -> ! {
    core::arch::naked_asm!(
        "and rdx, -16",
        "mov rsp, rdx",
        "xor ebp, ebp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "mov edi, eax",
        // exit_group(2): the checkpoint thread ends with it.
        "mov eax, 231",
        "syscall",
        "ud2"
    )
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn go_to(function: *const c_void, argument: *mut c_void, stack: *mut c_void) -> ! {
    core::arch::naked_asm!(
        "and x2, x2, #-16",
        "mov sp, x2",
        "mov x29, xzr",
        "mov x9, x0",
        "mov x0, x1",
        "blr x9",
        // exit_group(2)
        "mov x8, #94",
        "svc #0",
        "brk #1"
    )
}

/// Word of the thread's block: the number that it has called syscall(2) with, and one; 0: it has not.
const CALLING: usize = 1;

/// Where it lies: the calling thread's own word.
fn calling() -> *mut usize {
    // SAFETY: the thread's own block.
    unsafe { &raw mut (*per_thread()).agent[CALLING] }
}

/// Which call this thread, which was stopped inside of libc's `syscall`, has made: its caller is our wrapper, whose code does not
/// tell.
pub fn called() -> Option<u32> {
    // SAFETY: as above; a handler of the program that came in between puts back what it found.
    u32::try_from(unsafe { calling().read_volatile() }).ok()?.checked_sub(1)
}

hook! {
    unsafe fn clone(function: *const c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int {
        match as_fork(u64::from(flags as u32)) {
            Some(flags) if !function.is_null() && !stack.is_null() => {
                // SAFETY: as the program called it; the child leaves this stack for the program's.
                unsafe {
                    let pid = clone_fork(flags, parent as usize, child as usize);
                    if pid == 0 {
                        go_to(function, argument, stack)
                    }
                    pid
                }
            }
            // SAFETY: as the program called it.
            _ => unsafe { real::clone(function, stack, flags, argument, parent, tls, child) },
        }
    }
    unsafe fn __clone(function: *const c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int {
        // SAFETY: as the program called it.
        unsafe { clone(function, stack, flags, argument, parent, tls, child) }
    }
    unsafe fn syscall(number: c_long, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong, e: c_ulong, f: c_ulong) -> c_long {
        // SAFETY: the arguments of the call of that number, as the program gave them.
        unsafe {
            match number {
                #[cfg(target_arch = "x86_64")]
                libc::SYS_fork | libc::SYS_vfork if let Some(flags) = as_fork(libc::SIGCHLD as u64) => {
                    return c_long::from(clone_fork(flags, 0, 0));
                }
                libc::SYS_clone if b == 0 && let Some(flags) = as_fork(a) => {
                    // The words for the thread id are the third and, but on x86-64, the fifth argument.
                    let child = if cfg!(target_arch = "x86_64") { d } else { e };
                    return c_long::from(clone_fork(flags, c as usize, child as usize));
                }
                libc::SYS_clone3 if let Some(pid) = clone3_fork(a as *const u64, b as usize) => return c_long::from(pid),
                libc::SYS_exit if last() => _ = sc!(exit_group, a),
                libc::SYS_execve => {
                    return c_long::from(exec::execve(a as *const c_char, b as *const _, c as *const _));
                }
                libc::SYS_execveat => {
                    let (path, argv, envp) = (b as *const c_char, c as *const _, d as *const _);
                    return c_long::from(exec::execveat(a as c_int, path, argv, envp, e as c_int));
                }
                _ => {}
            }
            let word = calling();
            let outer = word.read();
            word.write_volatile((number as usize).wrapping_add(1));
            let result = real::syscall(number, a, b, c, d, e, f);
            word.write_volatile(outer);
            result
        }
    }
}
