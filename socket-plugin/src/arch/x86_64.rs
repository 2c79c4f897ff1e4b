//! The system call instruction of x86-64, and nothing else (System V ABI supplement, A.2.1: `rcx` and `r11` are lost).
use core::arch::asm;

/// Six-argument system call; a result in -4095..=-1 is a negated errno.
///
/// # Safety
/// As the system call itself: pointers among the arguments must be good for what the kernel does with them.
#[inline]
pub unsafe fn syscall6(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller answers for the arguments; the clobbers are those of the ABI.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}
