//! x86-64: entry, system calls, thread start, and the memory functions that the compiler calls behind our back.
//!
//! # Safety
//! `unsafe` here is assembly; each item says what it expects.
use slackwater_restorer::plan::{Plan, ThreadPlan};

// The precompiled `core` has landing pads; nothing here unwinds.
core::arch::global_asm!(".globl rust_eh_personality", ".hidden rust_eh_personality", "rust_eh_personality: ud2");

core::arch::global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    ".hidden memcpy, memmove, memset, memcmp, bcmp",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jae 1f",
    "lea rdi, [rdi + rcx - 1]",
    "lea rsi, [rsi + rcx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "1: rep movsb",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "bcmp:",
    "memcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "2: test rcx, rcx",
    "jz 3f",
    "movzx eax, byte ptr [rdi]",
    "movzx r8d, byte ptr [rsi]",
    "inc rdi",
    "inc rsi",
    "dec rcx",
    "sub eax, r8d",
    "jz 2b",
    "3: ret",
);

const STACK: usize = 32 << 10;
#[repr(C, align(4096))]
struct Stack([u8; STACK]);
static mut STACK_MEM: Stack = Stack([0; STACK]);

/// Entry, jumped to by `restart` on its own stack with rdi = the plan: moves to our stack, for the old one will vanish.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn restorer_entry(_plan: *const Plan) -> ! {
    core::arch::naked_asm!(
        "lea rsp, [rip + {stack}]",
        "add rsp, {size}",
        "xor ebp, ebp",
        "call {run}",
        "ud2",
        stack = sym STACK_MEM, size = const STACK, run = sym crate::run,
    )
}

/// Raw system call.
///
/// # Safety
/// As the system call.
#[inline(always)]
pub unsafe fn syscall(n: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the caller vouches for the call; the clobbers are those of the kernel's calling convention.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") n as isize => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            out("rcx") _, out("r11") _, options(nostack)
        );
    }
    ret
}

/// System call numbers of asm-generic are not ours: these are x86-64's.
#[allow(missing_docs)]
pub mod nr {
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const PREAD64: usize = 17;
    pub const MREMAP: usize = 25;
    pub const MADVISE: usize = 28;
    pub const SHMAT: usize = 30;
    pub const MLOCK2: usize = 325;
    pub const PRCTL: usize = 157;
    pub const ARCH_PRCTL: usize = 158;
    pub const EXIT_GROUP: usize = 231;
    pub const EXIT: usize = 60;
    pub const CLONE3: usize = 435;
    pub const MSEAL: usize = 462;
}

const ARCH_SET_GS: u32 = 0x1001;
const ARCH_SET_FS: u32 = 0x1002;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x8_0000;

/// Makes thread `t` with its old id. The new thread never touches a stack before it has its own: registers alone carry
/// what it needs. Returns the kernel's answer.
///
/// # Safety
/// The memory that `t.sp` and `t.resume` point to is in place.
pub unsafe fn spawn(t: &ThreadPlan) -> isize {
    let tid = t.tid as u32;
    let args = CloneArgs {
        flags: THREAD_FLAGS,
        tls: t.fs,
        set_tid: &raw const tid as u64,
        set_tid_size: 1,
        ..Default::default()
    };
    let ret: isize;
    // SAFETY: in the parent this is one system call; the child leaves through `jmp` and shares our stack pointer
    // without using it.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "test r14, r14",
            "jz 3f",
            "mov eax, {arch_prctl}",
            "mov edi, {set_gs}",
            "mov rsi, r14",
            "syscall",
            "3: mov rsp, r12",
            "jmp r13",
            "2:",
            arch_prctl = const nr::ARCH_PRCTL, set_gs = const ARCH_SET_GS,
            inlateout("rax") nr::CLONE3 as isize => ret,
            in("rdi") &raw const args, in("rsi") size_of::<CloneArgs>(),
            in("r12") t.sp, in("r13") t.resume, in("r14") t.gs,
            out("rcx") _, out("r11") _,
        );
    }
    ret
}

/// Turns the calling thread into `t`.
///
/// # Safety
/// As [`spawn`]; the calling thread has id `t.tid`.
pub unsafe fn become_thread(t: &ThreadPlan) -> ! {
    // SAFETY: FS and GS are plain per-thread state; the jump leaves our stack for good.
    unsafe {
        syscall(nr::ARCH_PRCTL, [ARCH_SET_FS as usize, t.fs as usize, 0, 0, 0, 0]);
        if t.gs != 0 {
            syscall(nr::ARCH_PRCTL, [ARCH_SET_GS as usize, t.gs as usize, 0, 0, 0, 0]);
        }
        if t.resume == 0 {
            loop {
                syscall(nr::EXIT, [0; 6]);
            }
        }
        core::arch::asm!("mov rsp, {sp}", "jmp {ip}", sp = in(reg) t.sp, ip = in(reg) t.resume, options(noreturn))
    }
}
