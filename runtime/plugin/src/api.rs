//! What plugin authors call.
//!
//! # Safety
//! Every call goes through a slot of [`crate::abi`], with pointers that are valid for the duration of the call, as the
//! header demands.
use crate::abi::{Event, Ids, Info, Plugin, Query, Status, Verdict, slot};
use alloc::{string::String, vec::Vec};
use core::ffi::{CStr, c_int, c_void};

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

impl Plugin {
    /// The descriptor of a plugin whose hook is `event`, usually a `static`; [`plugin!`](crate::plugin) makes both. `events`: bits
    /// ([`Event::bit`]), or 0 for all.
    pub const fn new(name: &'static CStr, event: Hook, events: u64) -> Self {
        Self {
            abi: crate::abi::ABI,
            size: size_of::<Self>() as u32,
            name: name.as_ptr(),
            event,
            user: core::ptr::null_mut(),
            events,
        }
    }
}

/// An event hook as the runtime calls it.
pub type Hook = unsafe extern "C" fn(*mut c_void, *mut Info) -> c_int;

/// What a hook made by [`plugin!`](crate::plugin) does: calls `f` with the event, and turns an error into the checkpoint's message.
///
/// # Safety
/// `info` is the runtime's.
pub unsafe fn call(info: *mut Info, f: fn(Event, &mut Info) -> Result<Verdict, String>) -> c_int {
    // SAFETY: the caller's.
    let info = unsafe { &mut *info };
    // An event of a newer runtime.
    let Some(event) = Event::from_raw(info.event) else { return Verdict::Done as c_int };
    match f(event, info) {
        Ok(verdict) => verdict as c_int,
        Err(message) => {
            report(info, &message);
            Verdict::Failed as c_int
        }
    }
}

/// Makes of a function `fn(Event, &mut Info) -> Result<Verdict, String>` a plugin, and registers it before `main`:
/// `plugin!(c"name", function);`, or `plugin!(c"name", function, EVENTS);` with the bits of the events wanted.
#[macro_export]
macro_rules! plugin {
    ($name:expr, $function:path) => {
        $crate::plugin!($name, $function, 0);
    };
    ($name:expr, $function:path, $events:expr) => {
        const _: () = {
            unsafe extern "C" fn hook(_user: *mut ::core::ffi::c_void, info: *mut $crate::Info) -> ::core::ffi::c_int {
                // SAFETY: the runtime's.
                unsafe { $crate::call(info, $function) }
            }
            static PLUGIN: $crate::Plugin = $crate::Plugin::new($name, hook, $events);
            extern "C" fn constructor() {
                // Without a runtime, or with another one (which says so), the library's wrappers still work.
                let _ = $crate::register(&PLUGIN);
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static CONSTRUCTOR: extern "C" fn() = constructor;
        };
    };
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

/// The value of `key` in `--plugin PATH,KEY=VALUE` of the library that holds `own`; None: not given. From INIT on.
pub fn option(own: usize, key: &CStr) -> Option<&'static CStr> {
    // SAFETY: strings live through the call; the answer lives as long as the process.
    unsafe {
        let value = slot::slackwater_slot_option()?(own as *const c_void, key.as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value)) }
    }
}

/// Puts a section `plugin.NAME` into the images that are taken from now on; no data takes it out. False: refused.
pub fn put_section(name: &CStr, data: &[u8]) -> bool {
    // SAFETY: both live through the call.
    slot::slackwater_slot_put().is_some_and(|f| unsafe { f(name.as_ptr(), data.as_ptr().cast(), data.len()) == 0 })
}

/// What [`put_section`] was given last, also after a restart.
pub fn section(name: &CStr) -> Option<Vec<u8>> {
    let f = slot::slackwater_slot_get()?;
    let mut length = 0;
    // SAFETY: the runtime's bytes stay until the name is put again, which is this plugin's affair.
    unsafe {
        let data = f(name.as_ptr(), &raw mut length);
        if data.is_null() { None } else { Some(core::slice::from_raw_parts(data.cast::<u8>(), length).to_vec()) }
    }
}

/// A table of virtual ids, kept in the image. Safe in threads and wrappers; never freed.
#[derive(Clone, Copy, Debug)]
pub struct IdTable(*mut Ids);

// SAFETY: the runtime locks.
unsafe impl Send for IdTable {}
// SAFETY: as above.
unsafe impl Sync for IdTable {}

impl IdTable {
    /// An empty one; None: no runtime.
    pub fn new() -> Option<Self> {
        // SAFETY: no precondition.
        slot::slackwater_slot_ids_new().map(|f| Self(unsafe { f() })).filter(|t| !t.0.is_null())
    }

    /// Adds a pair, or gives a virtual id another real one.
    pub fn set(&self, id: u64, real: u64) {
        if let Some(f) = slot::slackwater_slot_ids_set() {
            // SAFETY: a table of the runtime's.
            unsafe { f(self.0, id, real) };
        }
    }

    /// Takes a pair out. False: there is none.
    pub fn remove(&self, id: u64) -> bool {
        // SAFETY: as above.
        slot::slackwater_slot_ids_remove().is_some_and(|f| unsafe { f(self.0, id) == 0 })
    }

    /// The real id of a virtual one.
    pub fn real(&self, id: u64) -> Option<u64> {
        let mut out = 0;
        // SAFETY: as above; writable.
        let found = slot::slackwater_slot_ids_real().is_some_and(|f| unsafe { f(self.0, id, &raw mut out) == 0 });
        found.then_some(out)
    }

    /// The virtual id of a real one.
    pub fn virtual_id(&self, real: u64) -> Option<u64> {
        let mut out = 0;
        // SAFETY: as above; writable.
        let found = slot::slackwater_slot_ids_virtual().is_some_and(|f| unsafe { f(self.0, real, &raw mut out) == 0 });
        found.then_some(out)
    }

    /// The pair with the smallest virtual id from `from` on.
    pub fn next(&self, from: u64) -> Option<(u64, u64)> {
        let (mut id, mut real) = (0, 0);
        // SAFETY: as above; writable.
        let found = slot::slackwater_slot_ids_next()
            .is_some_and(|f| unsafe { f(self.0, from, &raw mut id, &raw mut real) == 0 });
        found.then_some((id, real))
    }
}

/// What became of [`checkpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// There is no runtime in this process.
    Absent,
    /// It is committed, and the program goes on.
    Committed,
    /// This is the restarted program.
    Restarted,
    /// It failed; the log says why.
    Failed,
}

/// For programs: takes a checkpoint and waits for it. Not from a hook, nor inside [`NoCheckpoint`] or [`Wrapper`].
pub fn checkpoint() -> Checkpoint {
    // SAFETY: no precondition.
    match slot::slackwater_slot_checkpoint().map(|f| unsafe { f() }) {
        None => Checkpoint::Absent,
        Some(0) => Checkpoint::Committed,
        Some(1) => Checkpoint::Restarted,
        Some(_) => Checkpoint::Failed,
    }
}

/// For programs: how the computation stands. None: this process is in none.
pub fn status() -> Option<Status> {
    let mut status = Status { size: size_of::<Status>() as u32, ..Status::default() };
    // SAFETY: writable for its size.
    let known = slot::slackwater_slot_status().is_some_and(|f| unsafe { f(&raw mut status) == 0 });
    known.then_some(status)
}

/// For programs: no checkpoint begins while it lives. Nests.
#[derive(Debug)]
pub struct NoCheckpoint(core::marker::PhantomData<*const ()>);

impl NoCheckpoint {
    /// Waits while one is being taken.
    pub fn begin() -> Self {
        if let Some(f) = slot::slackwater_slot_begin() {
            // SAFETY: no precondition.
            unsafe { f() };
        }
        Self(core::marker::PhantomData)
    }
}

impl Drop for NoCheckpoint {
    fn drop(&mut self) {
        if let Some(f) = slot::slackwater_slot_end() {
            // SAFETY: pairs with the beginning, on the same thread (the type cannot be sent to another).
            unsafe { f() };
        }
    }
}
