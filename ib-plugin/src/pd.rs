//! Protection domains.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::{context::Context, driver};
use alloc::boxed::Box;
use core::ffi::c_int;
use core::ptr::null_mut;
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// A shadow protection domain.
#[repr(C)]
pub(crate) struct Pd {
    pub(crate) ibv: ibv_pd,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_pd,
}

/// `ibv_alloc_pd(3)`.
pub(crate) unsafe extern "C" fn alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.alloc_pd) else { return null_mut() };
    let real = f((*ctx).real);
    if real.is_null() {
        driver::pass_errno();
        return null_mut();
    }
    let pd = Box::into_raw(Box::new(Pd { ibv: ibv_pd { context, handle: (*real).handle }, place: 0, real }));
    (*ctx).objects.lock().pds.add(pd);
    pd.cast()
}

/// `ibv_dealloc_pd(3)`.
pub(crate) unsafe extern "C" fn dealloc_pd(pd: *mut ibv_pd) -> c_int {
    let _w = Wrapper::enter();
    let pd = pd.cast::<Pd>();
    let Some(f) = driver::loaded().and_then(|d| d.dealloc_pd) else { return libc::EOPNOTSUPP };
    let ret = f((*pd).real);
    if ret == 0 {
        (*Context::of((*pd).ibv.context)).objects.lock().pds.remove(pd);
        drop(Box::from_raw(pd));
    } else {
        driver::pass_errno();
    }
    ret
}
