//! The C interface of `slackwater.h`, and the calls of plugins' hooks.
//!
//! Hooks run on the checkpoint thread (fork hooks on the forking one). What they publish is kept here until the round's
//! answer takes it along; queries go to the coordinator at once, for the checkpoint thread owns the connection then.
use crate::{arena, checkpoint, sys};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    alloc::Layout,
    cell::UnsafeCell,
    ffi::{CStr, c_char, c_int, c_void},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::*},
};
use slackwater_hook::{elf, thread};
use slackwater_protocol::message::Entry;

const ABI: u32 = 1;

/// `enum slackwater_event`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Event {
    /// The program still runs.
    Presuspend = 0,
    /// This process stands.
    Suspended = 1,
    /// All stand.
    Quiesce = 2,
    /// All are quiet.
    Save = 3,
    /// About to go on.
    Resume = 4,
    /// Restored.
    Restart = 5,
    /// All are rebuilt.
    Restarted = 6,
    /// About to fork.
    Prefork = 7,
    /// Forked, parent.
    PostforkParent = 8,
    /// Forked, child.
    PostforkChild = 9,
}

impl Event {
    /// These go to plugins in the opposite order of registration.
    fn reversed(self) -> bool {
        matches!(self, Self::Resume | Self::Restart | Self::Restarted | Self::PostforkParent | Self::PostforkChild)
    }
}

/// `struct slackwater_info`.
#[repr(C)]
pub struct Info {
    size: u32,
    event: u32,
    round: u32,
    members: u32,
    member: u64,
    generation: u64,
    error: *mut c_char,
    error_len: usize,
}

/// `struct slackwater_plugin`.
#[repr(C)]
pub struct Plugin {
    abi: u32,
    size: u32,
    name: *const c_char,
    event: Option<unsafe extern "C" fn(*mut c_void, *mut Info) -> c_int>,
    user: *mut c_void,
}

/// `struct slackwater_query`.
#[repr(C)]
pub struct Query {
    key: *const u8,
    key_len: usize,
    value: *mut u8,
    value_len: usize,
}

struct State {
    plugins: Vec<&'static Plugin>,
    publish: Vec<Entry>,
    cutouts: Vec<(u64, u64)>,
    protected: Vec<i32>,
}

/// Registered plugins and what they left with us.
struct Shared {
    lock: AtomicBool,
    state: UnsafeCell<State>,
}

// SAFETY: `state` is only touched under `lock`, inside the wrapper guard, so that no holder is ever stopped.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared {
    lock: AtomicBool::new(false),
    state: UnsafeCell::new(State {
        plugins: Vec::new(),
        publish: Vec::new(),
        cutouts: Vec::new(),
        protected: Vec::new(),
    }),
};
static MEMBERS: AtomicU64 = AtomicU64::new(1);

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    thread::guarded(|| {
        while SHARED.lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            core::hint::spin_loop();
        }
        // SAFETY: the lock is ours.
        let r = f(unsafe { &mut *SHARED.state.get() });
        SHARED.lock.store(false, Release);
        r
    })
}

/// Calls every plugin's hook. True: one of them wants another round.
///
/// # Errors
/// The first plugin's message; the others are still called for the events that set things right again.
pub fn dispatch(event: Event, round: u32, member: u64, generation: u64) -> Result<bool, String> {
    let mut plugins = with(|s| s.plugins.clone());
    if event.reversed() {
        plugins.reverse();
    }
    let (mut again, mut failure) = (false, None);
    for p in plugins {
        let Some(hook) = p.event else { continue };
        let mut error = [0u8; 1024];
        let mut info = Info {
            size: size_of::<Info>() as u32,
            event: event as u32,
            round,
            members: MEMBERS.load(Relaxed) as u32,
            member,
            generation,
            error: error.as_mut_ptr().cast(),
            error_len: error.len(),
        };
        // SAFETY: the plugin's own hook and user pointer; info outlives the call.
        let r = unsafe { hook(p.user, &raw mut info) };
        match r {
            0 => {}
            1 => again = true,
            _ => {
                let text = CStr::from_bytes_until_nul(&error).map(|c| c.to_string_lossy().into_owned());
                let text = text.unwrap_or_default();
                // SAFETY: checked at registration to be a C string.
                let name = unsafe { CStr::from_ptr(p.name) }.to_string_lossy();
                failure.get_or_insert(format!("plugin {name}: {text}"));
                if !event.reversed() {
                    break;
                }
            }
        }
    }
    failure.map_or(Ok(again), Err)
}

/// Has any plugin registered? (Plugins are preloaded behind this library, so their constructors run before ours.)
pub fn any() -> bool {
    with(|s| !s.plugins.is_empty())
}

/// What the plugins published since the last call.
pub fn take_published() -> Vec<Entry> {
    with(|s| core::mem::take(&mut s.publish))
}

/// Ranges that plugins left out of the image.
pub fn cutouts() -> Vec<(u64, u64)> {
    with(|s| s.cutouts.clone())
}

/// Descriptors that belong to plugins.
pub fn protected() -> Vec<i32> {
    with(|s| s.protected.clone())
}

/// Before fork: no other thread is in the middle of a change.
pub fn lock() {
    while SHARED.lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
        core::hint::spin_loop();
    }
}

/// After it, in parent and child.
pub fn unlock() {
    SHARED.lock.store(false, Release);
}

/// Registers a plugin.
///
/// # Safety
/// As in the header: `plugin` lives as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_plugin_register(plugin: *const Plugin) -> c_int {
    // SAFETY: the caller's.
    let Some(p) = (unsafe { plugin.as_ref() }) else { return -1 };
    if p.abi != ABI || (p.size as usize) < size_of::<Plugin>() || p.name.is_null() {
        sys::complain("a plugin speaks another version of slackwater.h and is left out");
        return -1;
    }
    with(|s| s.plugins.push(p));
    0
}

/// # Safety
/// `p` is readable for `n` bytes.
unsafe fn bytes(p: *const c_void, n: usize) -> Vec<u8> {
    if n == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's.
    unsafe { core::slice::from_raw_parts(p.cast::<u8>(), n) }.to_vec()
}

/// Publishes a value.
///
/// # Safety
/// Pointers are readable for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_publish(
    scope: *const c_char,
    key: *const c_void,
    key_len: usize,
    value: *const c_void,
    value_len: usize,
) -> c_int {
    // SAFETY: the caller's.
    let entry = unsafe {
        Entry {
            scope: CStr::from_ptr(scope).to_string_lossy().to_string(),
            key: bytes(key, key_len),
            value: bytes(value, value_len),
        }
    };
    with(|s| s.publish.push(entry));
    0
}

/// Asks for published values; 0, or -1 when the coordinator is out of reach.
///
/// # Safety
/// `queries` points to `n` of them, with readable keys.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_query(scope: *const c_char, queries: *mut Query, n: usize) -> c_int {
    if n == 0 {
        return 0;
    }
    // SAFETY: the caller's.
    let (scope, queries) =
        unsafe { (CStr::from_ptr(scope).to_string_lossy().to_string(), core::slice::from_raw_parts_mut(queries, n)) };
    // SAFETY: the caller's.
    let keys = queries.iter().map(|q| (scope.clone(), unsafe { bytes(q.key.cast(), q.key_len) })).collect();
    let Ok(values) = checkpoint::query(keys) else { return -1 };
    for (q, v) in queries.iter_mut().zip(values) {
        (q.value, q.value_len) = (core::ptr::null_mut(), 0);
        if let Some(v) = v {
            q.value_len = v.len();
            q.value = arena::alloc(layout(v.len().max(1), 1));
            if q.value.is_null() {
                return -1;
            }
            // SAFETY: just allocated with this length.
            unsafe { core::ptr::copy_nonoverlapping(v.as_ptr(), q.value, v.len()) };
        }
    }
    0
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align.max(1).next_power_of_two()).unwrap_or(Layout::new::<u8>())
}

/// The checkpoint thread's heap. NULL when memory is short.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_alloc(size: usize, align: usize) -> *mut c_void {
    thread::guarded(|| arena::alloc(layout(size.max(1), align))).cast()
}

/// Frees.
///
/// # Safety
/// From `slackwater_alloc` with the same size and alignment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_free(p: *mut c_void, size: usize, align: usize) {
    if !p.is_null() {
        // SAFETY: the caller's.
        thread::guarded(|| unsafe { arena::free(p.cast(), layout(size.max(1), align)) });
    }
}

/// From here on the calling thread is not stopped.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_wrapper_enter() {
    thread::wrapper_enter();
}

/// The end of it.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_wrapper_exit() {
    thread::wrapper_exit();
}

/// The next definition of a symbol.
///
/// # Safety
/// `symbol` and `version` (or NULL) are C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_next(
    own_address: *const c_void,
    symbol: *const c_char,
    version: *const c_char,
) -> *mut c_void {
    // SAFETY: the caller's.
    let (symbol, version) =
        unsafe { (CStr::from_ptr(symbol), if version.is_null() { None } else { Some(CStr::from_ptr(version)) }) };
    elf::next(own_address as usize, symbol, version).unwrap_or(0) as *mut c_void
}

/// A descriptor that is the plugin's own.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_protect_fd(fd: c_int) {
    with(|s| {
        if !s.protected.contains(&fd) {
            s.protected.push(fd);
        }
    });
}

/// No longer.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_unprotect_fd(fd: c_int) {
    with(|s| s.protected.retain(|&x| x != fd));
}

/// Leaves whole pages out of the image; -1 if they are none.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_cutout(address: *mut c_void, length: usize) -> c_int {
    let start = address as u64;
    if !start.is_multiple_of(4096) || !length.is_multiple_of(4096) || length == 0 {
        return -1;
    }
    with(|s| s.cutouts.push((start, start + length as u64)));
    0
}

/// Takes a checkpoint and waits for it: 0 committed, 1 restarted from it, -1 failed.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_checkpoint() -> c_int {
    checkpoint::from_program()
}

/// How many processes the computation has (told by the coordinator's rounds).
pub fn set_members(n: u64) {
    MEMBERS.store(n, Relaxed);
}
