//! Plugins: who has registered, and the calls of their hooks. The C interface of `slackwater.h` is in [`exports`].
//!
//! Hooks of a checkpoint and of a restart run on the checkpoint thread; those of a birth (fork, exec), of a thread and of the
//! process's beginning and end on the thread that they are about, inside the wrapper guard, so that no hook is ever stopped in its
//! middle. What hooks publish is kept here until the round's answer takes it along; queries go to the coordinator at once,
//! for the checkpoint thread owns the connection then.
mod exports;
mod ids;
pub mod options;

use crate::{spin::Spin, sys};
use alloc::{format, string::String, vec::Vec};
use core::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering::*},
};
use slackwater_hook::thread;
use slackwater_protocol::message::Entry;

const ABI: u32 = 1;

const PTHREAD_CANCEL_DISABLE: c_int = 1;
unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

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
    /// Before `main`, or what else comes after the constructors.
    Init = 10,
    /// The program runs again, after a checkpoint or a restart.
    Running = 11,
    /// exit(3).
    Exit = 12,
    /// About to become another program.
    Preexec = 13,
    /// Has become another program.
    Postexec = 14,
    /// Has not.
    ExecFailed = 15,
    /// A thread's first moment.
    ThreadStart = 16,
    /// Its last.
    ThreadExit = 17,
}

impl Event {
    /// These go to plugins in the opposite of the command line's order.
    fn reversed(self) -> bool {
        matches!(
            self,
            Self::Resume
                | Self::Restart
                | Self::Restarted
                | Self::Running
                | Self::PostforkParent
                | Self::PostforkChild
                | Self::ExecFailed
                | Self::ThreadExit
                | Self::Exit
        )
    }

    /// These make something right again: all plugins hear of them, whatever one of them says.
    fn goes_on(self) -> bool {
        self.reversed() || matches!(self, Self::Prefork | Self::Preexec | Self::ThreadStart)
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
    restarts: u64,
}

/// `struct slackwater_plugin`.
#[repr(C)]
pub struct Plugin {
    abi: u32,
    size: u32,
    name: *const c_char,
    event: Option<unsafe extern "C" fn(*mut c_void, *mut Info) -> c_int>,
    user: *mut c_void,
    /// Not read unless `size` says that it is there.
    events: u64,
}

/// What a plugin of the first header has.
const SMALLEST: usize = offset_of!(Plugin, events);

/// A plugin that has registered.
#[derive(Clone, Copy)]
struct Registered {
    plugin: *const Plugin,
    /// Bits of the events that it wants to hear of.
    events: u64,
    /// Where its library stands among the loaded objects: the order of the command line.
    position: usize,
}

#[derive(Default)]
struct State {
    plugins: Vec<Registered>,
    refused: c_int,
    publish: Vec<Entry>,
    cutouts: Vec<(u64, u64)>,
    protected: Vec<i32>,
    sections: Vec<(String, Vec<u8>)>,
}

/// Registered plugins and what they left with us.
static SHARED: Spin<State> = Spin::new(State {
    plugins: Vec::new(),
    refused: 0,
    publish: Vec::new(),
    cutouts: Vec::new(),
    protected: Vec::new(),
    sections: Vec::new(),
});
static MEMBERS: AtomicU64 = AtomicU64::new(1);
/// Bits of the events that any plugin wants to hear of.
static WANTED: AtomicU64 = AtomicU64::new(0);

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    thread::guarded(|| SHARED.with(f))
}

/// Does any plugin want to hear of this? One load: for places that are often passed.
pub fn wanted(event: Event) -> bool {
    WANTED.load(Relaxed) & 1 << event as u32 != 0
}

/// Calls every plugin's hook. True: one of them wants another round.
///
/// # Errors
/// The first plugin's message; the others are still called for the events that set things right again.
pub fn dispatch(event: Event, round: u32, member: u64, generation: u64) -> Result<bool, String> {
    if event == Event::Presuspend || event == Event::Restart && round == 0 {
        // Left over from a checkpoint that failed, or from before the cut.
        with(|s| s.publish.clear());
    }
    if !wanted(event) {
        return Ok(false);
    }
    // Hooks may well pass a cancellation point; the program's thread is to be cancelled outside of them (and of our guard).
    let mut cancel = 0;
    // SAFETY: this thread's own; writable.
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut cancel) };
    let result = dispatch_all(event, round, member, generation);
    // SAFETY: as it was.
    unsafe { pthread_setcancelstate(cancel, core::ptr::null_mut()) };
    result
}

fn dispatch_all(event: Event, round: u32, member: u64, generation: u64) -> Result<bool, String> {
    let mut plugins = with(|s| s.plugins.clone());
    if event.reversed() {
        plugins.reverse();
    }
    let (mut again, mut failure) = (false, None);
    for registered in plugins.into_iter().filter(|r| r.events & 1 << event as u32 != 0) {
        // SAFETY: as long-lived as the process, by contract, and of at least SMALLEST bytes, which these fields lie in.
        let (name, hook, user) = unsafe {
            let p = registered.plugin;
            ((&raw const (*p).name).read(), (&raw const (*p).event).read(), (&raw const (*p).user).read())
        };
        let Some(hook) = hook else { continue };
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
            restarts: crate::membership::restarts(),
        };
        // SAFETY: the plugin's own hook and user pointer; info outlives the call.
        let r = unsafe { hook(user, &raw mut info) };
        match r {
            0 => {}
            1 => again = true,
            _ => {
                let text = CStr::from_bytes_until_nul(&error).map(|c| c.to_string_lossy().into_owned());
                let text = text.ok().filter(|t| !t.is_empty()).unwrap_or_else(|| format!("it gave no reason ({r})"));
                // SAFETY: checked at registration to be a C string.
                let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
                failure.get_or_insert(format!("plugin {name}: {text}"));
                if !event.goes_on() {
                    break;
                }
            }
        }
    }
    failure.map_or(Ok(again), Err)
}

/// For events that stand in nobody's way: an error is a line on stderr.
pub fn tell(event: Event) {
    if wanted(event) {
        thread::guarded(|| {
            if let Err(e) = dispatch(event, 0, crate::membership::member(), 0) {
                sys::complain(&e);
            }
        });
    }
}

/// Has any plugin registered? (Plugins are preloaded behind this library, so their constructors run before ours.)
pub fn any() -> bool {
    with(|s| !s.plugins.is_empty())
}

/// Publishes something of the runtime's own, in a scope that is no plugin's name.
pub fn publish(entry: Entry) {
    with(|s| s.publish.push(entry));
}

/// What the plugins published since the last call.
pub fn take_published() -> Vec<Entry> {
    with(|s| core::mem::take(&mut s.publish))
}

/// Ranges that plugins left out of the image.
pub fn cutouts() -> Vec<(u64, u64)> {
    with(|s| s.cutouts.clone())
}

/// Sections that plugins add to the image.
pub fn sections() -> Vec<(String, Vec<u8>)> {
    with(|s| s.sections.clone())
}

/// Descriptors that belong to plugins.
pub fn protected() -> Vec<i32> {
    with(|s| s.protected.clone())
}

/// Before fork: no other thread is in the middle of a change.
pub fn lock() {
    SHARED.acquire();
}

/// After it, in parent and child.
pub fn unlock() {
    SHARED.release();
}

/// How many processes the computation has (told by the coordinator's rounds).
pub fn set_members(n: u64) {
    MEMBERS.store(n, Relaxed);
}
