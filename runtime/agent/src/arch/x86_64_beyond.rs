//! Register state which the kernel's signal frame does not hold.
//!
//! A kernel for x86-64 saves in a frame all that the processor has, and says so there. User-Mode Linux ends with AVX: what a handler
//! does to the rest of AVX-512 stays done, and glibc's memcpy(3), which ours calls, uses it. (Linear algebra in such a guest
//! came out wrong, once in a thousand systems.) Then the handler keeps the rest itself.
//!
//! # Safety
//! Instructions that save and restore registers which code of ours, built for x86-64 without AVX, does not use.
use super::x86_64::xcr0;
use crate::sys;
use core::{arch::asm, ffi::c_void};

/// UC_FP_XSTATE of `uc_flags`: there is more than what FXSAVE writes.
const EXTENDED: u64 = 1;
/// FP_XSTATE_MAGIC1, and where it is: then the frame says what it has, which is everything.
const MAGIC: (usize, u32) = (464, 0x4650_5853);
/// State components of AVX-512 (Intel SDM volume 1, 13.1): masks, upper halves, upper registers.
const AVX512: u64 = 0xe0;
/// More than they take in the standard format of XSAVE, from its beginning.
const ROOM: usize = 4096;

/// What was kept.
pub struct Beyond(*mut c_void);

impl Beyond {
    /// Keeps what the frame of a running handler lacks; to be called before anything that may call into libc.
    ///
    /// # Safety
    /// `ucontext` is the third argument of that handler.
    pub unsafe fn keep(ucontext: *const libc::ucontext_t) -> Self {
        // SAFETY: the caller's word; the kernel lets it point to at least 512 bytes.
        let said = unsafe {
            let state = (*ucontext).uc_mcontext.fpregs.cast::<u8>();
            (*ucontext).uc_flags & EXTENDED != 0
                && !state.is_null()
                && state.add(MAGIC.0).cast::<u32>().read_unaligned() == MAGIC.1
        };
        if said || xcr0() & AVX512 != AVX512 {
            return Self(core::ptr::null_mut());
        }
        let Ok(area) = sys::map_anonymous(ROOM, 0) else { return Self(core::ptr::null_mut()) };
        // SAFETY: a page of zeros of our own; the processor has these components, and writes less than that.
        unsafe { asm!("xsave64 [{}]", in(reg) area, in("eax") AVX512 as u32, in("edx") 0, options(nostack)) };
        Self(area.cast())
    }

    /// Puts it back: the last thing that the handler does.
    pub fn put_back(self) {
        if self.0.is_null() {
            return;
        }
        // SAFETY: what `keep` wrote, in this process or in the one that was saved; no code of ours uses these registers.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) self.0, in("eax") AVX512 as u32, in("edx") 0, options(nostack));
            _ = sc!(munmap, self.0, ROOM);
        }
    }
}
