//! The environment of a program that is to join: the program's own, and what carries the agent, whatever the program did to
//! either (`env -i`, `unsetenv`, an LD_PRELOAD of its own).
use crate::{init, stop, sys};
use alloc::{ffi::CString, string::String, vec::Vec};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char},
};
use slackwater_hook::elf;
use slackwater_protocol::names;

/// What the constructor found.
struct Found {
    /// Our library's path.
    library: String,
    /// `SLACKWATER_PLUGINS`.
    plugins: String,
}

struct Shared(UnsafeCell<Option<Found>>);
// SAFETY: written once, in the constructor.
unsafe impl Sync for Shared {}
static FOUND: Shared = Shared(UnsafeCell::new(None));

/// In the constructor: where we were loaded from, and with which plugins.
pub fn remember(plugins: Option<&str>) {
    let Some((_, path)) = elf::object_at(&raw const FOUND as usize) else { return };
    let found = Found { library: path.to_string_lossy().into_owned(), plugins: plugins.unwrap_or_default().into() };
    // SAFETY: no other thread of ours yet.
    unsafe { *FOUND.0.get() = Some(found) };
}

/// May the user whom the calling thread is now read this file, when exec has taken the privileges that others than root
/// may still hold? access(2) looks so, for the real user.
fn readable(path: &str) -> bool {
    // SAFETY: a C string.
    CString::new(path).is_ok_and(|path| unsafe { sc!(faccessat, libc::AT_FDCWD, path.as_ptr(), libc::R_OK) }.is_ok())
}

/// Are the real and the effective user the same?
fn one_user() -> bool {
    // SAFETY: no arguments.
    unsafe { sc!(getuid) == sc!(geteuid) }
}

/// Can the program that the calling thread is about to become load us?
pub fn library_readable() -> bool {
    // SAFETY: written once, in the constructor.
    unsafe { (*FOUND.0.get()).as_ref() }.is_none_or(|found| readable(&found.library))
}

/// An environment, and what it is made of.
pub struct Environment {
    pointers: Vec<*const c_char>,
    _ours: Vec<CString>,
}

impl Environment {
    /// For execve(2).
    pub fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// `envp` (NULL is an empty one) for a program that joins with `token`; `pid`: this process becomes that program.
///
/// # Safety
/// NULL, or a NULL-terminated array of C strings.
pub unsafe fn inject(envp: *const *const c_char, token: u64, pid: Option<i32>) -> Environment {
    // SAFETY: written once, in the constructor.
    let found = unsafe { (*FOUND.0.get()).as_ref() };
    let (Some(found), Some(config)) = (found, init::config()) else {
        // SAFETY: the caller's.
        let pointers = unsafe { entries(envp) }.map(CStr::as_ptr).chain([core::ptr::null()]).collect();
        return Environment { pointers, _ours: Vec::new() };
    };
    let mut token = names::format_token(token);
    if let Some(pid) = pid {
        token.push_str(&alloc::format!("-{pid}"));
    }
    let signal = alloc::format!("{}", stop::signal());
    // Who has given up his privileges becomes a program that cannot read the secret's file.
    let secret = config.secret.to_hex();
    let readable = one_user() && readable(&alloc::format!("{}/{}", config.folder, names::FILE_SECRET));
    let secret = if readable { &[][..] } else { &secret };
    let mut set = [
        (names::ENV_ADDR, config.address.as_str()),
        (names::ENV_DIR, config.folder.as_str()),
        (names::ENV_TOKEN, token.as_str()),
        (names::ENV_PLUGINS, found.plugins.as_str()),
    ]
    .to_vec();
    if stop::signal() != slackwater_protocol::signal::SIGNAL {
        set.push((names::ENV_SIGNAL, signal.as_str()));
    }
    let name_is = |entry: &CStr, name: &str| {
        entry.to_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
    };
    // SAFETY: the caller's.
    let theirs = unsafe { entries(envp) }.find(|e| name_is(e, names::ENV_PRELOAD));
    let preload = preload(found, theirs.map_or(&[], |e| &e.to_bytes()[names::ENV_PRELOAD.len() + 1..]));
    set.push((names::ENV_PRELOAD, preload.as_str()));
    // SAFETY: the caller's.
    let mut pointers: Vec<*const c_char> = unsafe { entries(envp) }
        .filter(|e| !set.iter().any(|(name, _)| name_is(e, name)) && !name_is(e, names::ENV_SECRET))
        .map(CStr::as_ptr)
        .collect();
    if let Ok(secret) = core::str::from_utf8(secret)
        && !secret.is_empty()
    {
        set.push((names::ENV_SECRET, secret));
    }
    let mut ours = Vec::with_capacity(set.len());
    for (name, value) in &set {
        let mut line = String::with_capacity(name.len() + value.len() + 2);
        line.push_str(name);
        line.push('=');
        line.push_str(value);
        if let Ok(line) = CString::new(line) {
            pointers.push(line.as_ptr());
            ours.push(line);
        }
    }
    pointers.push(core::ptr::null());
    Environment { pointers, _ours: ours }
}

/// Ours, then plugins, then what the program itself preloads.
fn preload(found: &Found, theirs: &[u8]) -> String {
    let mut all = found.library.clone();
    let theirs = theirs.split(|b| matches!(b, b':' | b' ')).filter_map(|p| core::str::from_utf8(p).ok());
    let mut add = |path: &str| {
        let known = all.split(':').any(|have| have == path);
        if !path.is_empty() && !known {
            all.push(':');
            all.push_str(path);
        }
    };
    names::parse_plugins(&found.plugins).for_each(|(path, _)| add(&path));
    theirs.for_each(add);
    all
}

/// # Safety
/// NULL, or a NULL-terminated array of C strings.
unsafe fn entries<'a>(mut envp: *const *const c_char) -> impl Iterator<Item = &'a CStr> {
    core::iter::from_fn(move || {
        // SAFETY: the caller's.
        unsafe {
            if envp.is_null() || (*envp).is_null() {
                return None;
            }
            let entry = CStr::from_ptr(*envp);
            envp = envp.add(1);
            Some(entry)
        }
    })
}

unsafe extern "C" {
    #[link_name = "environ"]
    static mut ENVIRON: *const *const c_char;
}

/// In a restored process, all of whose threads stand: what `restart --env` adds takes the place of what had its name. The
/// old array and its strings stay where they are, for a thread may be reading them, and the program's malloc is not ours.
pub fn change() {
    let Some(config) = init::config() else { return };
    let path = alloc::format!("{}/{}", config.folder, names::FILE_ENVIRONMENT);
    let Some(text) = CString::new(path).ok().and_then(|path| sys::read_file(&path).ok()) else { return };
    let new: Vec<CString> =
        text.split(|&b| b == 0).filter_map(|v| CString::new(v).ok()).filter(|v| !v.is_empty()).collect();
    let name =
        |entry: &CStr| entry.to_bytes().iter().position(|&b| b == b'=').map(|end| entry.to_bytes()[..end].to_vec());
    let names: Vec<_> = new.iter().map(|v| name(v)).collect();
    // SAFETY: nobody changes the environment now; it is NULL, or a NULL-terminated array of C strings.
    unsafe {
        let old = entries(ENVIRON).filter(|e| !names.contains(&name(e))).map(CStr::as_ptr);
        let all: Vec<_> = old.chain(new.iter().map(|v| v.as_ptr())).chain([core::ptr::null()]).collect();
        core::mem::forget(new);
        ENVIRON = all.leak().as_ptr();
    }
}
