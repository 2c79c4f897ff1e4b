//! What plugin authors call.
//!
//! # Safety
//! Every call goes through a slot of [`crate::abi`], with pointers that are valid for the duration of the call, as the
//! header demands.
use crate::abi::{Info, Plugin, Query, slot};
use alloc::vec::Vec;
use core::ffi::{CStr, c_void};

/// The runtime did not take the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRegistered {
    /// No runtime in this process (the library was preloaded without `slackwater launch`).
    NoRuntime,
    /// The runtime speaks another version of the interface.
    Abi,
}

/// True when a runtime is in this process.
pub fn present() -> bool {
    slot::slackwater_slot_register().is_some()
}

/// Registers event hooks; call it from the library's constructor.
pub fn register(plugin: &'static Plugin) -> Result<(), NotRegistered> {
    let f = slot::slackwater_slot_register().ok_or(NotRegistered::NoRuntime)?;
    // SAFETY: 'static, and laid out as the header says.
    if unsafe { f(plugin) } == 0 { Ok(()) } else { Err(NotRegistered::Abi) }
}

/// Publishes a value; any process can query it from the next round on. In hooks only. False: refused (not in a round).
pub fn publish(scope: &CStr, key: &[u8], value: &[u8]) -> bool {
    slot::slackwater_slot_publish().is_some_and(|f| {
        // SAFETY: both slices live through the call.
        unsafe { f(scope.as_ptr(), key.as_ptr().cast(), key.len(), value.as_ptr().cast(), value.len()) == 0 }
    })
}

/// Queries values, in the order of `keys`; None within: nobody published it. None: the exchange failed. In hooks only.
pub fn query(scope: &CStr, keys: &[&[u8]]) -> Option<Vec<Option<Vec<u8>>>> {
    let f = slot::slackwater_slot_query()?;
    let mut queries: Vec<Query> = keys
        .iter()
        .map(|k| Query { key: k.as_ptr().cast(), key_len: k.len(), value: core::ptr::null_mut(), value_len: 0 })
        .collect();
    // SAFETY: keys and queries live through the call.
    if unsafe { f(scope.as_ptr(), queries.as_mut_ptr(), queries.len()) } != 0 {
        return None;
    }
    let free = slot::slackwater_slot_free();
    Some(
        queries
            .iter()
            .map(|q| {
                if q.value.is_null() {
                    return None;
                }
                // SAFETY: the runtime gave value_len bytes here, which are ours now.
                let value = unsafe { core::slice::from_raw_parts(q.value.cast::<u8>(), q.value_len) }.to_vec();
                if let Some(free) = free {
                    // SAFETY: slackwater_alloc()ed by the runtime with alignment 1, not used again.
                    unsafe { free(q.value, q.value_len, 1) };
                }
                Some(value)
            })
            .collect(),
    )
}

/// While it lives the thread is not stopped: it parks when the last one drops. Nests. Never block while holding one.
#[derive(Debug)]
pub struct Wrapper(());

impl Wrapper {
    /// Marks the thread as inside a wrapper.
    #[inline(always)]
    pub fn enter() -> Self {
        if let Some(f) = slot::slackwater_slot_enter() {
            // SAFETY: no precondition.
            unsafe { f() };
        }
        Self(())
    }
}

impl Drop for Wrapper {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(f) = slot::slackwater_slot_exit() {
            // SAFETY: pairs with the enter of this value.
            unsafe { f() };
        }
    }
}

/// The next definition of a symbol after that of the object which holds the address `own`; null: there is none (or no runtime).
pub fn next(own: usize, symbol: &CStr, version: Option<&CStr>) -> *mut c_void {
    let version = version.map_or(core::ptr::null(), CStr::as_ptr);
    // SAFETY: strings live through the call.
    slot::slackwater_slot_next()
        .map_or(core::ptr::null_mut(), |f| unsafe { f(own as *const c_void, symbol.as_ptr(), version) })
}

/// Makes a descriptor the plugin's own: the runtime neither saves nor restores it.
pub fn protect_fd(fd: i32) {
    if let Some(f) = slot::slackwater_slot_protect() {
        // SAFETY: no precondition.
        unsafe { f(fd) };
    }
}

/// Takes [`protect_fd`] back.
pub fn unprotect_fd(fd: i32) {
    if let Some(f) = slot::slackwater_slot_unprotect() {
        // SAFETY: no precondition.
        unsafe { f(fd) };
    }
}

/// Leaves memory out of the image; it comes back as zero pages. False: refused.
pub fn cutout(address: usize, length: usize) -> bool {
    // SAFETY: the runtime only notes the range.
    slot::slackwater_slot_cutout().is_some_and(|f| unsafe { f(address as *mut c_void, length) == 0 })
}

/// Writes a hook's error message, cut to what fits and ended by a zero byte.
pub fn report(info: &mut Info, message: &str) {
    if info.error.is_null() || info.error_len == 0 {
        return;
    }
    let n = message.len().min(info.error_len - 1);
    // SAFETY: the runtime gave error_len bytes at error; n + 1 of them are written.
    unsafe {
        core::ptr::copy_nonoverlapping(message.as_ptr(), info.error.cast::<u8>(), n);
        *info.error.add(n) = 0;
    }
}
