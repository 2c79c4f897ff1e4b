//! Which devices libibverbs itself offers: a device of the kernel that it has no provider for, no program can open.
#![allow(unsafe_code)] // a library that is here or not
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// The library that programs are linked with.
const LIBRARY: &CStr = c"libibverbs.so.1";

type List = unsafe extern "C" fn(*mut c_int) -> *mut *mut c_void;
type Name = unsafe extern "C" fn(*mut c_void) -> *const c_char;

/// The names of its devices (`ibv_get_device_list(3)`); the error is dlopen's, where it is not here.
pub(super) fn devices() -> Result<Vec<String>, String> {
    // SAFETY: a C string; the library's initializers may be run at any time.
    let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return Err(error());
    }
    let list = symbol(library, c"ibv_get_device_list")?;
    let name = symbol(library, c"ibv_get_device_name")?;
    let mut count = 0;
    // SAFETY: the functions of these names have these types (<infiniband/verbs.h>). The list and what it points at are never
    // freed, so that the names stay.
    unsafe {
        let list = std::mem::transmute::<*mut c_void, List>(list)(&raw mut count);
        let name = std::mem::transmute::<*mut c_void, Name>(name);
        let all = (0..if list.is_null() { 0 } else { count.max(0) as usize }).map(|i| *list.add(i));
        Ok(all.map(|device| CStr::from_ptr(name(device)).to_string_lossy().into_owned()).collect())
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: a library that stays loaded, and a C string.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() { Err(error()) } else { Ok(found) }
}

fn error() -> String {
    // SAFETY: null or a C string, until the next call.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown".into()
        } else {
            CString::from(CStr::from_ptr(text)).to_string_lossy().into_owned()
        }
    }
}
