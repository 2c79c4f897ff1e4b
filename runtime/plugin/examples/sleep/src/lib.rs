//! Says when the program sleeps.
use std::{
    ffi::c_uint,
    mem::transmute,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

static NEXT: OnceLock<extern "C" fn(c_uint) -> c_uint> = OnceLock::new();

fn stamp(what: &str, seconds: c_uint) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    eprintln!("[{}.{:03}] sleep({seconds}) {what}", now.as_secs(), now.subsec_millis());
}

/// The program's sleep(3).
#[unsafe(no_mangle)]
pub extern "C" fn sleep(seconds: c_uint) -> c_uint {
    let next = NEXT.get_or_init(|| {
        let next = slackwater_plugin::next(&raw const NEXT as usize, c"sleep", None);
        // SAFETY: sleep(3) has this type.
        unsafe { transmute(next) }
    });
    stamp("begins", seconds);
    let left = next(seconds);
    stamp("ends", seconds);
    left
}
