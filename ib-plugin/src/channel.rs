//! Completion channels, and what counts the events that the program has not acknowledged yet. `source.rs` has how it waits for them.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::source::{Event, Source};
use crate::{context::Context, cq::Cq, driver};
use alloc::boxed::Box;
use core::ffi::{c_int, c_uint, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, Ordering};
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// Events given to the program and not acknowledged yet; destroying their object waits for it.
#[derive(Debug)]
pub(crate) struct Unacked(AtomicU32);

/// Somebody waits for the count to become 0.
const AWAITED: u32 = 1 << 31;

impl Unacked {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn given(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn acked(&self, n: u32) {
        if self.0.fetch_sub(n, Ordering::AcqRel) & AWAITED != 0 {
            // SAFETY: the futex word lives.
            unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }

    /// Blocks until all are acknowledged, as `ibv_destroy_cq(3)` says; outside of any wrapper.
    pub(crate) fn wait(&self) {
        loop {
            let n = self.0.fetch_or(AWAITED, Ordering::AcqRel) | AWAITED;
            if n == AWAITED {
                return;
            }
            // SAFETY: the futex word lives.
            unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAIT, n, 0usize) };
        }
    }
}

/// A completion channel.
#[repr(C)]
pub(crate) struct Channel {
    pub(crate) ibv: ibv_comp_channel,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_comp_channel,
    pub(crate) source: Source<*mut Cq>,
}

impl Event for *mut Cq {
    type Real = ibv_comp_channel;
    /// The driver's CQ, and what it was made with: our own.
    type Told = (*mut ibv_cq, Self);

    unsafe fn descriptor(real: *mut ibv_comp_channel) -> *mut c_int {
        &raw mut (*real).fd
    }

    unsafe fn ask(real: *mut ibv_comp_channel) -> Option<Self::Told> {
        let (mut cq, mut user) = (null_mut(), null_mut::<c_void>());
        (driver::loaded()?.get_cq_event?(real, &mut cq, &mut user) == 0).then(|| (cq, user.cast()))
    }

    unsafe fn given(&self) {
        (**self).event_given();
    }

    unsafe fn stands_in_for(&self, other: &Self) -> bool {
        *self == *other && (**self).has_stand_in()
    }

    unsafe fn accept((real, cq): Self::Told, to_program: bool) -> Self {
        (*cq).event_seen();
        if to_program {
            cq.given();
        }
        if let Some(f) = driver::loaded().and_then(|d| d.ack_cq_events) {
            f(real, 1);
        }
        cq
    }
}

/// `ibv_create_comp_channel(3)`.
pub(crate) unsafe extern "C" fn create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(d) = driver::loaded() else { return null_mut() };
    let Some(f) = d.create_comp_channel else { return null_mut() };
    let real = f((*ctx).real);
    if real.is_null() {
        driver::pass_errno();
        return null_mut();
    }
    let source = Source::open(real);
    let ibv = ibv_comp_channel { context, fd: source.visible(), refcnt: 0 };
    let channel = Box::into_raw(Box::new(Channel { ibv, place: 0, real, source }));
    (*ctx).objects.lock().channels.add(channel);
    channel.cast()
}

/// `ibv_destroy_comp_channel(3)`.
pub(crate) unsafe extern "C" fn destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    let _w = Wrapper::enter();
    let c = channel.cast::<Channel>();
    if (*c).ibv.refcnt != 0 {
        return libc::EBUSY;
    }
    (*c).source.close();
    let Some(f) = driver::loaded().and_then(|d| d.destroy_comp_channel) else { return libc::EOPNOTSUPP };
    let ret = f((*c).real);
    (*Context::of((*c).ibv.context)).objects.lock().channels.remove(c);
    drop(Box::from_raw(c));
    ret
}

/// `ibv_get_cq_event(3)`.
pub(crate) unsafe extern "C" fn get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    user: *mut *mut c_void,
) -> c_int {
    let c = channel.cast::<Channel>();
    let Some(found) = (*c).source.next() else { return -1 };
    *cq = found.cast();
    *user = (*found).ibv.cq_context;
    0
}

/// `ibv_ack_cq_events(3)`.
pub(crate) unsafe extern "C" fn ack_cq_events(cq: *mut ibv_cq, n: c_uint) {
    (*cq.cast::<Cq>()).unacked.acked(n);
}
