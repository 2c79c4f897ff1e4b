//! exec(3): the process becomes another program, which joins as the same process.
use super::{connected, env, gate::Birth, keep_errno, say, target, token, will_join};
use crate::{plugins, plugins::Event, sys};
use alloc::{ffi::CString, vec::Vec};
use core::ffi::{CStr, c_char, c_int};
use slackwater_hook::hook;
use slackwater_protocol::message::FromProcess;

type Strings = *const *const c_char;

unsafe extern "C" {
    static environ: Strings;
}

/// Becomes another program by `real`, which is given the environment; returns only if that fails.
///
/// # Safety
/// `envp` as execve's.
unsafe fn become_program(
    find: impl FnOnce() -> Option<CString>,
    envp: Strings,
    real: impl FnOnce(Strings) -> c_int,
) -> c_int {
    if !connected() {
        return real(envp);
    }
    let birth = Birth::enter();
    keep_errno(|| plugins::tell(Event::Preexec));
    if !will_join(find().as_deref()) {
        let r = birth.as_program(|| real(envp));
        keep_errno(|| plugins::tell(Event::ExecFailed));
        return r;
    }
    let token = token();
    let announced = say(&FromProcess::Exec { token });
    // SAFETY: the caller's.
    let environment = unsafe { env::inject(envp, token, Some(sys::getpid())) };
    let r = birth.as_program(|| real(environment.as_ptr()));
    keep_errno(|| {
        plugins::tell(Event::ExecFailed);
        if announced {
            say(&FromProcess::Unexpect { token });
        }
    });
    r
}

hook! {
    unsafe fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
        // SAFETY: arguments as the program gave them.
        unsafe { become_program(|| Some(CStr::from_ptr(path).into()), envp, |envp| real::execve(path, argv, envp)) }
    }
    unsafe fn execv(path: *const c_char, argv: Strings) -> c_int {
        // SAFETY: arguments as the program gave them.
        unsafe { execve(path, argv, environ) }
    }
    unsafe fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
        // SAFETY: arguments as the program gave them. The PATH is that of this process, as execvpe(3) has it.
        unsafe {
            become_program(|| target::search(CStr::from_ptr(file), environ), envp, |envp| real::execvpe(file, argv, envp))
        }
    }
    unsafe fn execvp(file: *const c_char, argv: Strings) -> c_int {
        // SAFETY: arguments as the program gave them.
        unsafe { execvpe(file, argv, environ) }
    }
    unsafe fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int {
        // SAFETY: arguments as the program gave them.
        unsafe { become_program(|| Some(target::descriptor_path(fd)), envp, |envp| real::fexecve(fd, argv, envp)) }
    }
    unsafe fn execveat(dir: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int) -> c_int {
        let find = || {
            // SAFETY: the program's.
            let path = unsafe { CStr::from_ptr(path) };
            (dir == libc::AT_FDCWD || path.to_bytes().starts_with(b"/")).then(|| path.into())
        };
        // SAFETY: arguments as the program gave them.
        unsafe { become_program(find, envp, |envp| real::execveat(dir, path, argv, envp, flags)) }
    }
}

/// The arguments of a variadic call, as the naked stubs find them: those in registers after the first, and those on the stack.
struct Arguments {
    registers: *const *const c_char,
    stack: *const *const c_char,
    next: usize,
}

impl Arguments {
    /// # Safety
    /// One more argument was really passed.
    unsafe fn next(&mut self) -> *const c_char {
        let i = self.next;
        self.next += 1;
        // SAFETY: the caller's.
        unsafe { if i < REGISTERS { *self.registers.add(i) } else { *self.stack.add(i - REGISTERS) } }
    }

    /// All up to the NULL, with it.
    unsafe fn list(&mut self) -> Vec<*const c_char> {
        // In a birth: nobody is stopped while the arena is ours.
        let _birth = Birth::enter();
        let mut all = Vec::new();
        loop {
            // SAFETY: the list ends with NULL by contract (exec(3)).
            let p = unsafe { self.next() };
            all.push(p);
            if p.is_null() {
                return all;
            }
        }
    }
}

/// A Rust function may overwrite its arguments' stack slots, which belong to the caller of a variadic function: so these are
/// naked stubs that hand on where the arguments lie.
macro_rules! variadic {
    ($($name:ident => $f:ident;)*) => { $(
        /// exec(3).
        #[cfg(target_arch = "x86_64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "lea rax, [rsp + 8]",
                "push r9", "push r8", "push rcx", "push rdx", "push rsi",
                "mov rsi, rsp",
                "mov rdx, rax",
                "call {f}",
                "add rsp, 40",
                "ret", f = sym $f)
        }
        /// exec(3).
        #[cfg(target_arch = "aarch64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "mov x9, sp",
                "stp x29, x30, [sp, #-80]!",
                "mov x29, sp",
                "stp x1, x2, [sp, #16]", "stp x3, x4, [sp, #32]", "stp x5, x6, [sp, #48]", "str x7, [sp, #64]",
                "add x1, sp, #16",
                "mov x2, x9",
                "bl {f}",
                "ldp x29, x30, [sp], #80",
                "ret", f = sym $f)
        }
    )* };
}

const REGISTERS: usize = if cfg!(target_arch = "x86_64") { 5 } else { 7 };

variadic! {
    execl => list;
    execlp => list_path;
    execle => list_environment;
}

unsafe extern "C" fn list(path: *const c_char, registers: Strings, stack: Strings) -> c_int {
    // SAFETY: from the stub.
    unsafe {
        let argv = Arguments { registers, stack, next: 0 }.list();
        let r = execve(path, argv.as_ptr(), environ);
        release(argv);
        r
    }
}

unsafe extern "C" fn list_path(file: *const c_char, registers: Strings, stack: Strings) -> c_int {
    // SAFETY: from the stub.
    unsafe {
        let argv = Arguments { registers, stack, next: 0 }.list();
        let r = execvpe(file, argv.as_ptr(), environ);
        release(argv);
        r
    }
}

unsafe extern "C" fn list_environment(path: *const c_char, registers: Strings, stack: Strings) -> c_int {
    // SAFETY: from the stub; the environment follows the NULL.
    unsafe {
        let mut arguments = Arguments { registers, stack, next: 0 };
        let argv = arguments.list();
        let envp = arguments.next().cast();
        let r = execve(path, argv.as_ptr(), envp);
        release(argv);
        r
    }
}

/// The arena is used in births alone.
fn release(argv: Vec<*const c_char>) {
    let _birth = Birth::enter();
    drop(argv);
}
