//! The runtime's events, and the constructor that registers for them.
//!
//! # Safety
//! The runtime calls [`event`] with its info struct; RESTART and the like come while the program stands still.
use crate::exchange::SCOPE;
use crate::{arena, cm, fds, loaded, quiesce, restart};
use core::ffi::{c_int, c_void};
use slackwater_plugin::{Event, Info, Plugin, Verdict};

static PLUGIN: Plugin = Plugin {
    abi: slackwater_plugin::abi::ABI,
    size: size_of::<Plugin>() as u32,
    name: SCOPE.as_ptr(),
    event,
    user: core::ptr::null_mut(),
    events: EVENTS,
};

/// The runtime does not even wrap thread creation for us.
const EVENTS: u64 = Event::PreSuspend.bit()
    | Event::Suspended.bit()
    | Event::Quiesce.bit()
    | Event::Save.bit()
    | Event::Resume.bit()
    | Event::Restart.bit()
    | Event::Restarted.bit()
    | Event::PreFork.bit()
    | Event::PostForkParent.bit()
    | Event::PostForkChild.bit();

/// Handles one event; public for runtimes that link the plugin (tests).
///
/// # Safety
/// `info` is valid, and the program's threads stand as the event says.
pub unsafe extern "C" fn event(_user: *mut c_void, info: *mut Info) -> c_int {
    // SAFETY: the runtime's contract, above.
    let verdict = unsafe {
        let info = &mut *info;
        match Event::from_raw(info.event) {
            Some(Event::Quiesce) => quiesce::round(info),
            Some(Event::Save) => {
                quiesce::save();
                fds::note_watches();
                Verdict::Done
            }
            Some(Event::Restart) => restart::round(info),
            Some(now @ (Event::Resume | Event::Restarted)) => {
                quiesce::resume(now == Event::Restarted);
                Verdict::Done
            }
            Some(Event::PreFork) => {
                arena::before_fork();
                Verdict::Done
            }
            Some(Event::PostForkParent | Event::PostForkChild) => {
                arena::after_fork();
                Verdict::Done
            }
            Some(Event::Suspended) => {
                cm::suspended();
                Verdict::Done
            }
            _ => Verdict::Done,
        }
    };
    verdict as c_int
}

extern "C" fn constructor() {
    let _ = slackwater_plugin::register(&PLUGIN);
    loaded::at_start();
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;
