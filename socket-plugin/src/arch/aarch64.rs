//! The system call instruction of AArch64, and nothing else.
use core::arch::asm;

/// Six-argument system call; a result in -4095..=-1 is a negated errno.
///
/// # Safety
/// As the system call itself: pointers among the arguments must be good for what the kernel does with them.
#[inline]
pub unsafe fn syscall6(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller answers for the arguments.
    unsafe {
        asm!("svc 0", in("x8") nr, inlateout("x0") a[0] as isize => result, in("x1") a[1], in("x2") a[2],
            in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}
