//! The shadow driver: programs that talk libibverbs are checkpointed while the network stays up, and restarted on other
//! devices with other LIDs, GIDs, queue pair numbers and keys.
//!
//! The program calls our definitions of libibverbs' functions (symbol interposition, [`exports`]) and holds *shadow
//! objects*; behind each stands a *real* one of the driver, which lives in a link namespace of its own ([`driver`]). Before
//! the first restart all ids are the driver's own. `docs/ib-plugin.md` says what a checkpoint does and why it loses
//! nothing.
//!
//! Rules: every entry is inside a [`slackwater_plugin::Wrapper`] while it holds a lock of ours or runs in the driver, and
//! never blocks there (who waits for events does so outside: [`source`]). Nothing here uses the program's malloc, stdio or loader, but for the one `dlmopen` at first use.
//! Objects are raw pointers, because programs hold them: each module states what guards its fields.
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]
extern crate alloc;
extern crate std;

macro_rules! modules {
    ($($name:ident)*) => { $(
        #[allow(unsafe_code)] // see each module's Safety paragraph
        #[allow(
            unsafe_op_in_unsafe_fn,
            reason = "nearly every line of these functions touches objects that the program holds; the module's Safety \
                      paragraph states the contract once"
        )]
        mod $name;
    )* };
}
modules! {
    account ah arena attr channel cm context cq device events exchange exports fds ident keep keys loaded mr pd peers place post qp quiesce reconnect
    refuse registry restart ring settle source srq sync ucx wire wr
}
#[allow(unsafe_code)] // as above
#[allow(unsafe_op_in_unsafe_fn, reason = "as above")]
pub mod driver;

pub use events::event;
pub use exports::{EXPORTS, Export, How};

#[allow(unsafe_code)] // an allocator is an unsafe trait
#[global_allocator]
static ALLOCATOR: arena::Arena = arena::Arena;

/// One line to standard error, without stdio.
#[allow(unsafe_code)] // write(2)
fn say(line: &str) {
    let line = alloc::format!("{line}\n");
    // SAFETY: the bytes live through the call.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

/// A C string's bytes.
#[allow(unsafe_code)] // one view of the same bytes
fn bytes_of(chars: &[core::ffi::c_char]) -> &[u8] {
    // SAFETY: c_char and u8 have the same layout.
    unsafe { core::slice::from_raw_parts(chars.as_ptr().cast(), chars.len()) }
}
