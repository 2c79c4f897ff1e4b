//! UCX's patience. It gives up a datagram endpoint whose packets nobody has acknowledged for a while by the processor's time stamp
//! counter (30 s in UCX 1.13), and ends the program: "UD endpoint ...: unhandled timeout error". A restart may come years later, so
//! the while is 57 of them, unless the user has chosen one (more would overflow what UCX reckons with at 5 GHz). UCX reads its
//! settings by a function of libuct (`uct/api/uct.h`), which ours stands before. An environment variable would not do: UCX warns of
//! one that it does not use, and whether it uses datagrams is known only then.
//!
//! # Safety
//! As UCX declares them. Runs in the program's thread, outside of all wrappers: it uses the program's loader.
use core::ffi::{CStr, c_char, c_int, c_void};

type Read = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *const c_char, *mut *mut c_void) -> c_int;
type Modify = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> c_int;

/// `UCS_ERR_UNSUPPORTED`.
const UNSUPPORTED: c_int = -22;

/// `uct_md_iface_config_read`.
#[cfg(not(feature = "no-exports"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn uct_md_iface_config_read(
    md: *mut c_void,
    transport: *const c_char,
    prefix: *const c_char,
    file: *const c_char,
    config: *mut *mut c_void,
) -> c_int {
    let library = libc::dlopen(c"libuct.so.0".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
    if library.is_null() {
        return UNSUPPORTED;
    }
    let function = |name: &CStr| libc::dlsym(library, name.as_ptr());
    let read = core::mem::transmute::<*mut c_void, Option<Read>>(function(c"uct_md_iface_config_read"));
    let modify = core::mem::transmute::<*mut c_void, Option<Modify>>(function(c"uct_config_modify"));
    let status = read.map_or(UNSUPPORTED, |f| f(md, transport, prefix, file, config));
    let is_datagram = !transport.is_null() && CStr::from_ptr(transport).to_bytes().starts_with(b"ud_");
    if status == 0
        && is_datagram
        && libc::getenv(c"UCX_UD_TIMEOUT".as_ptr()).is_null()
        && let Some(modify) = modify
    {
        // (Refused, it stays as it is.)
        modify(*config, c"UD_TIMEOUT".as_ptr(), c"30000000m".as_ptr());
    }
    libc::dlclose(library);
    status
}
