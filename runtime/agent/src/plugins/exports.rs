//! The functions of `slackwater.h`.
use super::{ABI, Plugin, Registered, SMALLEST, WANTED, options, with};
use crate::{arena, checkpoint, follow::gate, membership, relay, sys};
use alloc::{format, string::ToString, vec::Vec};
use core::{
    alloc::Layout,
    ffi::{CStr, c_char, c_int, c_void},
    mem::offset_of,
    sync::atomic::Ordering::*,
};
use slackwater_hook::{elf, thread};
use slackwater_protocol::message::Entry;

/// `struct slackwater_query`.
#[repr(C)]
pub struct Query {
    key: *const u8,
    key_len: usize,
    value: *mut u8,
    value_len: usize,
}

/// Registers a plugin.
///
/// # Safety
/// As in the header: `plugin` lives as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_plugin_register(plugin: *const Plugin) -> c_int {
    if plugin.is_null() {
        return -1;
    }
    // SAFETY: the caller's; these fields lie in what every version has.
    let (abi, size, name, event) = unsafe { ((*plugin).abi, (*plugin).size as usize, (*plugin).name, (*plugin).event) };
    if abi != ABI || size < SMALLEST || name.is_null() {
        sys::complain(&format!(
            "a plugin speaks version {abi} of slackwater.h with a descriptor of {size} bytes; this slackwater speaks version \
             {ABI}, of at least {SMALLEST}: build it again with this slackwater's header"
        ));
        with(|s| s.refused += 1);
        return -1;
    }
    let has_events = size >= offset_of!(Plugin, events) + size_of::<u64>();
    // SAFETY: the plugin's own size says that the field is there.
    let events = if has_events { unsafe { (*plugin).events } } else { 0 };
    let events = if events == 0 { u64::MAX } else { events };
    let place = event.map_or(plugin as usize, |hook| hook as usize);
    let new = Registered { plugin, events, position: elf::position(place).unwrap_or(usize::MAX) };
    with(|s| {
        let at = s.plugins.partition_point(|p| p.position <= new.position);
        s.plugins.insert(at, new);
    });
    WANTED.fetch_or(events, Relaxed);
    0
}

/// How many plugins were refused: for `launch`'s check.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_plugins_refused() -> c_int {
    with(|s| s.refused)
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
    if !relay::is_listener() {
        return -1;
    }
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

/// Asks for published values: on the checkpoint thread for those of this checkpoint or restart, elsewhere for those of the last
/// restart; 0, or -1 when the coordinator is out of reach.
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
    let in_round = relay::is_listener();
    let values = if in_round { checkpoint::query(keys) } else { thread::guarded(|| checkpoint::recall(keys)) };
    let Ok(values) = values else { return -1 };
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
    membership::from_program()
}

/// `struct slackwater_status`.
#[repr(C)]
pub struct Status {
    size: u32,
    members: u32,
    member: u64,
    generation: u64,
    restarts: u64,
}

/// How the computation stands, as far as this process knows.
///
/// # Safety
/// `status` points to as many writable bytes as its first field says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_status(status: *mut Status) -> c_int {
    let now = Status {
        size: size_of::<Status>() as u32,
        members: super::MEMBERS.load(Relaxed) as u32,
        member: membership::member(),
        generation: membership::generation(),
        restarts: membership::restarts(),
    };
    if status.is_null() || now.member == 0 {
        return -1;
    }
    // SAFETY: the caller's: no more is written than it has room for.
    unsafe {
        let room = ((*status).size as usize).min(size_of::<Status>());
        if room < size_of::<u32>() {
            return -1;
        }
        core::ptr::copy_nonoverlapping((&raw const now).cast::<u8>(), status.cast::<u8>(), room);
    }
    0
}

/// From here on no checkpoint is taken, until as many ends as beginnings. Waits while one is.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_no_checkpoint_begin() {
    gate::exclude();
}

/// The end of it.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_no_checkpoint_end() {
    gate::include();
}

/// An option of the plugin that holds `own_address`; NULL: not given. From INIT on.
///
/// # Safety
/// `key` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_option(own_address: *const c_void, key: *const c_char) -> *const c_char {
    // SAFETY: the caller's.
    options::get(own_address as usize, unsafe { CStr::from_ptr(key) })
}

/// Puts a section into the images that are taken from now on; no data: takes it out again. -1: no name.
///
/// # Safety
/// `name` is a C string; `data` is readable for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_section_put(name: *const c_char, data: *const c_void, length: usize) -> c_int {
    // SAFETY: the caller's.
    let (name, data) = thread::guarded(|| unsafe {
        (format!("plugin.{}", CStr::from_ptr(name).to_string_lossy()), bytes(data, length))
    });
    if name == "plugin." {
        return -1;
    }
    with(|s| {
        let sections = &mut s.sections;
        sections.retain(|(other, _)| *other != name);
        if !data.is_empty() {
            sections.push((name, data));
        }
    });
    0
}

/// What was put last under a name; NULL: nothing. It stays where it is until the name is put again.
///
/// # Safety
/// `name` is a C string; `length` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_section_get(name: *const c_char, length: *mut usize) -> *const c_void {
    // SAFETY: the caller's.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    with(|s| {
        let found = s.sections.iter().find(|(n, _)| n.as_bytes().strip_prefix(b"plugin.") == Some(name));
        found.map_or(core::ptr::null(), |(_, data)| {
            if !length.is_null() {
                // SAFETY: the caller's.
                unsafe { *length = data.len() };
            }
            data.as_ptr().cast()
        })
    })
}
