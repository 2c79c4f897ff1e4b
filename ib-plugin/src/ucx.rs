//! UCX's patience. It gives up a datagram endpoint whose packets nobody has acknowledged for a while by the processor's time stamp
//! counter (30 s in UCX 1.13), and ends the program: "UD endpoint ...: unhandled timeout error". A restart may come years later, or on
//! a machine that was booted later, whose counter is behind; and UCX's differences of it are unsigned. So the while is nearly all of
//! 2^64 ticks, unless the user has chosen one. UCX reads its settings by a function of libuct (`uct/api/uct.h`), which ours stands
//! before. An environment variable would not do: UCX warns of one that it does not use, and whether it uses datagrams is known only
//! then.
//!
//! UCX wants a time, and makes ticks of it by what it takes for the counter's frequency. Where the processor does not tell, it has
//! measured that in a millisecond, in each process; and when it lost its turn meanwhile, it has found up to ten times too much. So
//! the time is reckoned by the same figure. (One that is long enough by the true frequency may by that one come to more than 2^64
//! ticks, of which UCX makes none, and dies: "Timer resolution is too low", "unhandled timeout error".)
//!
//! # Safety
//! As UCX declares them. Runs in the program's thread, outside of all wrappers: it uses the program's loader.
use core::ffi::{CStr, c_char, c_int, c_void};

type Read = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *const c_char, *mut *mut c_void) -> c_int;
type Frequency = unsafe extern "C" fn() -> f64;
type Modify = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> c_int;

/// In ticks. As many below 2^64 as are a hundred times what the way there and back may be wrong by.
const PATIENCE: f64 = (u64::MAX - (1 << 20)) as f64;

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
    // (Of libucs, on which libuct depends.)
    let frequency = core::mem::transmute::<*mut c_void, Option<Frequency>>(function(c"ucs_get_cpu_clocks_per_sec"));
    let status = read.map_or(UNSUPPORTED, |f| f(md, transport, prefix, file, config));
    let is_datagram = !transport.is_null() && CStr::from_ptr(transport).to_bytes().starts_with(b"ud_");
    if status == 0
        && is_datagram
        && libc::getenv(c"UCX_UD_TIMEOUT".as_ptr()).is_null()
        && let (Some(modify), Some(frequency)) = (modify, frequency)
    {
        // (Not in memory of ours: a thread that stops here may not hold its lock.)
        let mut text = [0; 32];
        libc::snprintf(text.as_mut_ptr(), text.len(), c"%.0fus".as_ptr(), PATIENCE / frequency() * 1e6);
        // (Refused, it stays as it is.)
        modify(*config, c"UD_TIMEOUT".as_ptr(), text.as_ptr());
    }
    libc::dlclose(library);
    status
}
