//! `--plugin PATH,KEY=VALUE,...`: what `SLACKWATER_PLUGINS` carries from the command line to plugins.
use slackwater_protocol::names;

use alloc::{ffi::CString, string::String, vec::Vec};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char},
};
use slackwater_hook::elf;

/// A plugin as the command line has it.
struct Named {
    path: CString,
    options: Vec<(String, CString)>,
}

struct Shared(UnsafeCell<Vec<Named>>);
// SAFETY: written once, in the constructor, before any plugin is told of INIT.
unsafe impl Sync for Shared {}
static NAMED: Shared = Shared(UnsafeCell::new(Vec::new()));

/// In the constructor.
pub fn remember(variable: &str) {
    let named = names::parse_plugins(variable).filter_map(|(path, options)| {
        let c = |text: String| CString::new(text).ok();
        Some(Named { path: c(path)?, options: options.into_iter().filter_map(|(k, v)| Some((k, c(v)?))).collect() })
    });
    // SAFETY: no other thread of ours yet.
    unsafe { *NAMED.0.get() = named.collect() };
}

/// The option `key` of the plugin that holds `own_address`; NULL: it has none of that name.
pub fn get(own_address: usize, key: &CStr) -> *const c_char {
    // SAFETY: written once, in the constructor.
    let named = unsafe { &*NAMED.0.get() };
    let Some((_, path)) = elf::object_at(own_address) else { return core::ptr::null() };
    let mut options = named.iter().filter(|n| n.path.as_c_str() == path).flat_map(|n| &n.options);
    let found = options.rfind(|(k, _)| k.as_bytes() == key.to_bytes());
    found.map_or(core::ptr::null(), |(_, value)| value.as_ptr())
}
