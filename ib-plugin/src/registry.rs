//! What exists: every shadow object is listed by its context, so that a checkpoint and a restart find it.
//!
//! Lists are vectors; an object knows its place, so that removal is constant whatever the number of keys.
use crate::{ah::Ah, channel::Channel, context::Context, cq::Cq, device::Device, mr::Mr, pd::Pd, qp::Qp, srq::Srq};
use crate::sync::{Guard, Lock};
use alloc::vec::Vec;

/// An object that knows its index in its list.
pub(crate) trait Listed {
    fn place(&mut self) -> &mut usize;
}

/// A list of objects of one kind.
#[derive(Debug)]
pub(crate) struct List<T>(pub(crate) Vec<*mut T>);

impl<T: Listed> List<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, object: *mut T) {
        // SAFETY: a live object that the caller has just made.
        unsafe { *(*object).place() = self.0.len() };
        self.0.push(object);
    }

    pub(crate) fn remove(&mut self, object: *mut T) {
        // SAFETY: live, and in this list.
        let at = unsafe { *(*object).place() };
        self.0.swap_remove(at);
        if let Some(&moved) = self.0.get(at) {
            // SAFETY: objects in the list are live.
            unsafe { *(*moved).place() = at };
        }
    }
}

macro_rules! listed {
    ($($t:ty),*) => { $(impl Listed for $t { fn place(&mut self) -> &mut usize { &mut self.place } })* };
}
listed!(Pd, Mr, Channel, Cq, Srq, Qp, Ah, Context);

/// The objects of one context.
pub(crate) struct Objects {
    pub(crate) pds: List<Pd>,
    pub(crate) mrs: List<Mr>,
    pub(crate) channels: List<Channel>,
    pub(crate) cqs: List<Cq>,
    pub(crate) srqs: List<Srq>,
    pub(crate) qps: List<Qp>,
    pub(crate) ahs: List<Ah>,
}

impl Objects {
    pub(crate) const fn new() -> Self {
        Self {
            pds: List::new(),
            mrs: List::new(),
            channels: List::new(),
            cqs: List::new(),
            srqs: List::new(),
            qps: List::new(),
            ahs: List::new(),
        }
    }
}

pub(crate) struct World {
    pub(crate) devices: Vec<*mut Device>,
    pub(crate) contexts: List<Context>,
}

// SAFETY: the pointers are reached under the lock, or while the program stands still.
unsafe impl Send for World {}

static WORLD: Lock<World> = Lock::new(World { devices: Vec::new(), contexts: List::new() });

/// All devices and contexts.
pub(crate) fn world() -> Guard<'static, World> {
    WORLD.lock()
}
