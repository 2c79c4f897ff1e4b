//! x86-64: context switch, signal return, interrupted system calls, CPU features.
//!
//! # Safety
//! `unsafe` here is assembly or a walk through the kernel's signal frame; each item says what it expects.
use super::again;
use crate::asleep::Asleep;
use alloc::{vec, vec::Vec};
use core::ffi::c_void;

/// Where a thread can be picked up again.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Context {
    /// Stack pointer; the callee-saved registers lie there.
    pub sp: u64,
    /// The resume label.
    pub resume: u64,
}

/// Saves the callee-saved registers, MXCSR and the x87 control word on the stack, their place in `context`, and calls
/// `f(arg)`. Returns what `f` returns, or, in a restarted process, 1: the restorer enters at the label. To the compiler this
/// is an ordinary call that returns once in either history.
///
/// # Safety
/// `context` is valid until the call returns; `f` never returns 1 by itself.
#[unsafe(naked)]
pub unsafe extern "C" fn with_context(
    _context: *mut Context,
    _f: unsafe extern "C" fn(*mut c_void) -> usize,
    _arg: *mut c_void,
) -> usize {
    core::arch::naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rdi], rsp",
        "lea rax, [rip + 2f]",
        "mov [rdi + 8], rax",
        "mov rax, rsi",
        "mov rdi, rdx",
        "call rax",
        "jmp 3f",
        "2:",
        "mov eax, 1",
        "3:",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret"
    )
}

/// The trampoline that the kernel returns to after a handler (SA_RESTORER).
///
/// # Safety
/// Only the kernel enters it.
#[unsafe(naked)]
pub unsafe extern "C" fn sigreturn() {
    core::arch::naked_asm!("mov eax, 15", "syscall", "ud2")
}

/// fork(2) by the bare system call, sharing the descriptor table (of which nothing need be copied), with no signal to the
/// parent at exit: the program cannot wait for the child by accident.
///
/// # Safety
/// The child has one thread and must only use raw system calls and our own memory.
pub unsafe fn fork_sharing_files() -> isize {
    const CLONE_FILES: usize = 0x400;
    // SAFETY: clone without CLONE_VM: the child has its own copy of the stack.
    let r = unsafe { syscalls::raw_syscall!(syscalls::Sysno::clone, CLONE_FILES, 0, 0, 0, 0) };
    r as isize
}

/// A thread by the bare system call, with `tls` as its FS base, which runs `f` on the stack that ends at `stack`, and ends.
/// Returns the kernel's answer.
///
/// # Safety
/// `stack` and `tls` are memory of its own; `f` calls nothing of libc.
#[unsafe(naked)]
pub unsafe extern "C" fn bare_thread(_stack: usize, _tls: usize, _f: extern "C" fn()) -> isize {
    // CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS
    core::arch::naked_asm!(
        "mov r9, rdx",
        "mov r8, rsi",
        "mov rsi, rdi",
        "mov edi, {flags}",
        "xor edx, edx",
        "xor r10d, r10d",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "xor ebp, ebp",
        "call r9",
        "xor edi, edi",
        "mov eax, 60",
        "syscall",
        "ud2",
        "2: ret",
        flags = const 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x8_0000,
    )
}

/// Calls `f(argument)` on the stack that ends at `top` (a multiple of 16), where [`leave_stack`] finds the way back.
///
/// # Safety
/// The stack is memory of its own, and one thread's at a time.
#[unsafe(naked)]
pub unsafe extern "C" fn on_stack(_top: usize, _f: unsafe extern "C" fn(*mut c_void), _argument: *mut c_void) {
    core::arch::naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi - 8], rsp",
        "lea rsp, [rdi - 16]",
        "mov rbx, rdi",
        "mov rdi, rdx",
        "call rsi",
        "mov rsp, [rbx - 8]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret"
    )
}

/// Out of the middle of what [`on_stack`] called, as if that had returned.
///
/// # Safety
/// The calling thread is inside `on_stack` with this `top`.
#[unsafe(naked)]
pub unsafe extern "C" fn leave_stack(_top: usize) -> ! {
    core::arch::naked_asm!(
        "mov rsp, [rdi - 8]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret"
    )
}

/// Makes a TLS block for [`bare_thread`] whose thread pointer is `at`: what the ABI wants at the thread pointer (its own
/// address, twice), and the calling thread's stack and pointer guards.
///
/// # Safety
/// `at` has zeroed memory of its own on both sides: as much below as libraries have initial-exec variables.
pub unsafe fn make_tls(at: usize) {
    let here: usize;
    // SAFETY: the thread pointer's first word is its own address (ELF TLS ABI, x86-64); offsets of glibc's tcbhead_t.
    unsafe {
        core::arch::asm!("mov {}, fs:[0]", out(reg) here, options(nostack, readonly));
        let put = |offset: usize, value: usize| ((at + offset) as *mut usize).write(value);
        put(0, at);
        put(0x10, at);
        for guard in [0x28, 0x30] {
            put(guard, ((here + guard) as *const usize).read());
        }
    }
}

/// Registers of an interrupted thread, in the signal frame.
pub struct Frame(*mut libc::ucontext_t);

const EINTR: i64 = 4;
/// `syscall`
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// System calls that return EINTR after a handler even with SA_RESTART (signal(7)) and can be entered again with the same
/// arguments: the time-outs of select(2), pselect6(2) and ppoll(2) are updated in place by the kernel.
const AGAIN: &[u32] = &[
    7,   // poll
    23,  // select
    270, // pselect6
    271, // ppoll
    232, // epoll_wait
    281, // epoll_pwait
    441, // epoll_pwait2
    35,  // nanosleep
    230, // clock_nanosleep
    202, // futex
    449, // futex_waitv
    455, // futex_wait
    426, // io_uring_enter
    128, // rt_sigtimedwait
    130, // rt_sigsuspend
    34,  // pause
    65,  // semop
    220, // semtimedop
    69,  // msgsnd
    70,  // msgrcv
    208, // io_getevents
    333, // io_pgetevents
    45,  // recvfrom with SO_RCVTIMEO
    47,  // recvmsg
    299, // recvmmsg
    44,  // sendto
    46,  // sendmsg
    43,  // accept
    288, // accept4
    42,  // connect
    0,   // read on such a socket, inotify, ...
    1,   // write
    19,  // readv
    20,  // writev
    61,  // wait4
    247, // waitid
    72,  // fcntl(F_SETLKW)
    73,  // flock
    243, // mq_timedreceive
    242, // mq_timedsend
];

impl Frame {
    /// # Safety
    /// `ucontext` is the third argument of a signal handler that is still running.
    pub unsafe fn new(ucontext: *mut c_void) -> Self {
        Self(ucontext.cast())
    }

    fn greg(&mut self, i: i32) -> &mut i64 {
        // SAFETY: `new`'s contract.
        unsafe { &mut (*self.0).uc_mcontext.gregs[i as usize] }
    }

    /// A register.
    pub fn get(&mut self, i: i32) -> u64 {
        *self.greg(i) as u64
    }

    /// Sets a register.
    pub fn set(&mut self, i: i32, value: u64) {
        *self.greg(i) = value as i64;
    }

    /// Blocked signals to which the thread returns.
    pub fn mask(&self) -> u64 {
        // SAFETY: `new`'s contract; the kernel's sigset is the first 8 bytes.
        unsafe { (&raw const (*self.0).uc_sigmask).cast::<u64>().read() }
    }

    /// The system call that our signal made return EINTR, if there is one that can be entered again, and is not ours already.
    ///
    /// Where [`Asleep`] does not know, the number is read from the code before the `syscall` instruction (`mov eax, imm32` is
    /// how compilers and libc load it); where it is loaded in another way the program sees EINTR.
    pub fn interrupted(&mut self, asleep: &Asleep) -> Option<u32> {
        if *self.greg(libc::REG_RAX) != -EINTR {
            return None;
        }
        let (pc, sp, first) = (self.get(libc::REG_RIP), self.get(libc::REG_RSP), self.get(libc::REG_RDI));
        asleep.number(pc, sp, first).or_else(|| number_in_code(pc as usize, sp as usize)).filter(|n| AGAIN.contains(n))
    }

    /// Has the interrupted call entered again, if it is `interrupted` or was ours.
    ///
    /// It was interrupted at `interrupted_ns`, `slept_ns` after it had begun; `restarted`: this is a restored process.
    pub fn restart_syscall(&mut self, interrupted: Option<u32>, interrupted_ns: u64, slept_ns: u64, restarted: bool) {
        if *self.greg(libc::REG_RAX) != -EINTR || again::again(self, restarted) {
            return;
        }
        let Some(n) = interrupted else { return };
        if !again::begin(self, n.into(), interrupted_ns, slept_ns, restarted) {
            *self.greg(libc::REG_RAX) = i64::from(n);
            *self.greg(libc::REG_RIP) -= SYSCALL.len() as i64;
        }
    }
}

/// The number of the system call whose instruction ends at `rip`, with stack pointer `rsp`, as far as the code tells.
fn number_in_code(rip: usize, rsp: usize) -> Option<u32> {
    /// `mov r9, [rsp + 8]`, `syscall`: the end of syscall(2) in glibc, which has no frame.
    const LIBC_SYSCALL: [u8; 7] = [0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05];
    // SAFETY: the thread executed the bytes just before rip; a page boundary is not crossed downwards by more than
    // the function that it runs in (text segments start on a page, with at least a header before the first code).
    let code = unsafe { core::slice::from_raw_parts((rip - 26) as *const u8, 26) };
    if code[24..26] != SYSCALL {
        return None;
    }
    if code[19..] == LIBC_SYSCALL {
        if let Some(number) = crate::follow::clone::called() {
            return Some(number);
        }
        // SAFETY: the return address; the bytes before it are the call, on the same page of code as the rest that is looked at.
        return unsafe {
            let back = *(rsp as *const usize);
            let len = (back & 0xfff).min(64);
            let before = core::slice::from_raw_parts((back - len) as *const u8, len);
            // The nearest `mov edi, imm32`.
            let loads = before.windows(5).rev().filter(|w| w[0] == 0xbf);
            loads.map(|w| u32::from_le_bytes([w[1], w[2], w[3], w[4]])).find(|n| AGAIN.contains(n))
        };
    }
    // The nearest load of eax before it.
    for at in (0..=19).rev() {
        if code[at] == 0xb8 && (at == 0 || code[at - 1] & 0xf0 != 0x40) {
            let n = u32::from_le_bytes([code[at + 1], code[at + 2], code[at + 3], code[at + 4]]);
            if n < 600 {
                return Some(n);
            }
        }
        // `xor eax, eax`: read(2)
        if code[at] == 0x31 && code[at + 1] == 0xc0 && at >= 17 {
            return Some(0);
        }
    }
    None
}

/// XCR0: register state that is enabled.
pub(super) fn xcr0() -> u64 {
    if core::arch::x86_64::__cpuid(1).ecx & (1 << 27) == 0 {
        return 0;
    }
    let (lo, hi): (u32, u32);
    // SAFETY: OSXSAVE is set, so the instruction exists.
    unsafe { core::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// What the image needs of the CPU: XCR0 and CPUID leaves 1 (ecx, edx), 7.0 (ebx, ecx, edx).
pub fn cpu_features() -> Vec<u64> {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    let (one, seven) = (__cpuid(1), __cpuid_count(7, 0));
    vec![
        xcr0(),
        u64::from(one.ecx) << 32 | u64::from(one.edx),
        u64::from(seven.ebx) << 32 | u64::from(seven.ecx),
        u64::from(seven.edx),
    ]
}
