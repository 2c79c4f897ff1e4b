//! The C side, item by item as in `slackwater.h`; `tests/layout.rs` holds the two against each other.
//!
//! # Safety
//! Stable Rust has no weak references. Each function of the runtime therefore has a *slot* in `.data.rel.ro`, a pointer
//! with a relocation against a symbol that assembly declares weak: the dynamic linker fills in the address, or leaves
//! null when no loaded object defines it. A slot is read only through [`slot`], and called only with the type that the
//! header gives it.
#![allow(missing_docs, reason = "names and meaning are those of slackwater.h")]
use core::ffi::{c_char, c_int, c_void};

/// `SLACKWATER_ABI`.
pub const ABI: u32 = 1;

/// `enum slackwater_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    PreSuspend = 0,
    Suspended = 1,
    Quiesce = 2,
    Save = 3,
    Resume = 4,
    Restart = 5,
    Restarted = 6,
    PreFork = 7,
    PostForkParent = 8,
    PostForkChild = 9,
    Init = 10,
    Running = 11,
    Exit = 12,
    PreExec = 13,
    PostExec = 14,
    ExecFailed = 15,
    ThreadStart = 16,
    ThreadExit = 17,
}

impl Event {
    /// Its bit in [`Plugin::events`].
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }

    /// The event of this number; None: of a newer runtime.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::PreSuspend,
            1 => Self::Suspended,
            2 => Self::Quiesce,
            3 => Self::Save,
            4 => Self::Resume,
            5 => Self::Restart,
            6 => Self::Restarted,
            7 => Self::PreFork,
            8 => Self::PostForkParent,
            9 => Self::PostForkChild,
            10 => Self::Init,
            11 => Self::Running,
            12 => Self::Exit,
            13 => Self::PreExec,
            14 => Self::PostExec,
            15 => Self::ExecFailed,
            16 => Self::ThreadStart,
            17 => Self::ThreadExit,
            _ => return None,
        })
    }
}

/// What a hook returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Verdict {
    Done = 0,
    Again = 1,
    Failed = -1,
}

/// `struct slackwater_info`.
#[derive(Debug)]
#[repr(C)]
pub struct Info {
    pub size: u32,
    pub event: u32,
    pub round: u32,
    pub members: u32,
    pub member: u64,
    pub generation: u64,
    pub error: *mut c_char,
    pub error_len: usize,
    pub restarts: u64,
}

/// `struct slackwater_plugin`.
#[derive(Debug)]
#[repr(C)]
pub struct Plugin {
    pub abi: u32,
    pub size: u32,
    pub name: *const c_char,
    pub event: unsafe extern "C" fn(user: *mut c_void, info: *mut Info) -> c_int,
    pub user: *mut c_void,
    pub events: u64,
}

/// `struct slackwater_status`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Status {
    pub size: u32,
    pub members: u32,
    pub member: u64,
    pub generation: u64,
    pub restarts: u64,
}

/// `struct slackwater_ids`.
#[derive(Debug)]
#[repr(C)]
pub struct Ids {
    opaque: [u8; 0],
}

// SAFETY: the struct is handed to the runtime, which reads it only; `user` is the plugin's own affair.
unsafe impl Sync for Plugin {}

/// `struct slackwater_query`.
#[derive(Debug)]
#[repr(C)]
pub struct Query {
    pub key: *const c_void,
    pub key_len: usize,
    pub value: *mut c_void,
    pub value_len: usize,
}

macro_rules! slots {
    ($($slot:ident => $symbol:literal: $ty:ty;)*) => {
        $(core::arch::global_asm!(
            concat!(".weak ", $symbol),
            concat!(".pushsection .data.rel.ro.", stringify!($slot), ",\"aw\",@progbits"),
            ".p2align 3",
            concat!(".globl ", stringify!($slot)),
            concat!(".hidden ", stringify!($slot)),
            concat!(".type ", stringify!($slot), ", @object"),
            concat!(".size ", stringify!($slot), ", 8"),
            concat!(stringify!($slot), ": .quad ", $symbol),
            ".popsection",
        );)*
        unsafe extern "C" { $(static $slot: Option<$ty>;)* }
        /// The runtime's functions; None: no runtime in this process.
        pub(crate) mod slot {
            use super::*;
            $(#[inline(always)]
            pub(crate) fn $slot() -> Option<$ty> {
                // SAFETY: written by the dynamic linker before any code of this object runs, constant ever after;
                // volatile, because the compiler must not take the initial zero for the value.
                unsafe { core::ptr::read_volatile(&raw const super::$slot) }
            })*
        }
    };
}

slots! {
    slackwater_slot_register => "slackwater_plugin_register": unsafe extern "C" fn(*const Plugin) -> c_int;
    slackwater_slot_publish => "slackwater_publish":
        unsafe extern "C" fn(*const c_char, *const c_void, usize, *const c_void, usize) -> c_int;
    slackwater_slot_query => "slackwater_query": unsafe extern "C" fn(*const c_char, *mut Query, usize) -> c_int;
    slackwater_slot_free => "slackwater_free": unsafe extern "C" fn(*mut c_void, usize, usize);
    slackwater_slot_enter => "slackwater_wrapper_enter": unsafe extern "C" fn();
    slackwater_slot_exit => "slackwater_wrapper_exit": unsafe extern "C" fn();
    slackwater_slot_next => "slackwater_next":
        unsafe extern "C" fn(*const c_void, *const c_char, *const c_char) -> *mut c_void;
    slackwater_slot_protect => "slackwater_protect_fd": unsafe extern "C" fn(c_int);
    slackwater_slot_unprotect => "slackwater_unprotect_fd": unsafe extern "C" fn(c_int);
    slackwater_slot_option => "slackwater_option": unsafe extern "C" fn(*const c_void, *const c_char) -> *const c_char;
    slackwater_slot_put => "slackwater_section_put":
        unsafe extern "C" fn(*const c_char, *const c_void, usize) -> c_int;
    slackwater_slot_get => "slackwater_section_get":
        unsafe extern "C" fn(*const c_char, *mut usize) -> *const c_void;
    slackwater_slot_ids_new => "slackwater_ids_new": unsafe extern "C" fn() -> *mut Ids;
    slackwater_slot_ids_set => "slackwater_ids_set": unsafe extern "C" fn(*mut Ids, u64, u64);
    slackwater_slot_ids_remove => "slackwater_ids_remove": unsafe extern "C" fn(*mut Ids, u64) -> c_int;
    slackwater_slot_ids_real => "slackwater_ids_real": unsafe extern "C" fn(*mut Ids, u64, *mut u64) -> c_int;
    slackwater_slot_ids_virtual => "slackwater_ids_virtual": unsafe extern "C" fn(*mut Ids, u64, *mut u64) -> c_int;
    slackwater_slot_ids_next => "slackwater_ids_next":
        unsafe extern "C" fn(*mut Ids, u64, *mut u64, *mut u64) -> c_int;
    slackwater_slot_checkpoint => "slackwater_checkpoint": unsafe extern "C" fn() -> c_int;
    slackwater_slot_status => "slackwater_status": unsafe extern "C" fn(*mut Status) -> c_int;
    slackwater_slot_begin => "slackwater_no_checkpoint_begin": unsafe extern "C" fn();
    slackwater_slot_end => "slackwater_no_checkpoint_end": unsafe extern "C" fn();
    slackwater_slot_cutout => "slackwater_cutout": unsafe extern "C" fn(*mut c_void, usize) -> c_int;
}
