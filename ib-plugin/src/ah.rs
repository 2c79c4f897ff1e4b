//! Address handles: the program's attributes are kept, and made again with translated ones after a restart.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::{context::Context, driver, pd::Pd, peers};
use alloc::boxed::Box;
use core::ffi::c_int;
use core::ptr::null_mut;
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// A shadow address handle.
#[repr(C)]
pub(crate) struct Ah {
    pub(crate) ibv: ibv_ah,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_ah,
    /// As the program gave them.
    pub(crate) attr: ibv_ah_attr,
}

/// `ibv_create_ah(3)`.
pub(crate) unsafe extern "C" fn create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    let _w = Wrapper::enter();
    let ctx = Context::of((*pd).context);
    let Some(f) = driver::loaded().and_then(|d| d.create_ah) else { return null_mut() };
    let mut given = *attr;
    peers::outward(ctx, &mut given);
    let real = f((*pd.cast::<Pd>()).real, &mut given);
    if real.is_null() {
        driver::pass_errno();
        return null_mut();
    }
    let ibv = ibv_ah { context: (*ctx).ibv(), pd, handle: (*real).handle };
    let ah = Box::into_raw(Box::new(Ah { ibv, place: 0, real, attr: *attr }));
    (*ctx).objects.lock().ahs.add(ah);
    ah.cast()
}

/// `ibv_destroy_ah(3)`.
pub(crate) unsafe extern "C" fn destroy_ah(ah: *mut ibv_ah) -> c_int {
    let _w = Wrapper::enter();
    let ah = ah.cast::<Ah>();
    let Some(f) = driver::loaded().and_then(|d| d.destroy_ah) else { return libc::EOPNOTSUPP };
    let ret = f((*ah).real);
    if ret == 0 {
        (*Context::of((*ah).ibv.context)).objects.lock().ahs.remove(ah);
        drop(Box::from_raw(ah));
    } else {
        driver::pass_errno();
    }
    ret
}

/// `ibv_init_ah_from_wc(3)`.
pub(crate) unsafe extern "C" fn init_ah_from_wc(
    context: *mut ibv_context,
    port: u8,
    wc: *mut ibv_wc,
    grh: *mut ibv_grh,
    attr: *mut ibv_ah_attr,
) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.init_ah_from_wc) else { return -1 };
    let (mut from, mut header) = (core::ptr::read(wc), [0u8; 40]);
    let global = (*wc).wc_flags & 1 != 0 && !grh.is_null();
    if global {
        header = grh.cast::<[u8; 40]>().read();
    }
    peers::source_outward(&mut from, &mut header, (*(*ctx).device).now.is_some());
    let ret = f((*ctx).real, port, &mut from, if global { header.as_mut_ptr().cast() } else { grh }, attr);
    if ret == 0 {
        peers::inward(ctx, &mut *attr);
    } else {
        driver::pass_errno();
    }
    ret
}

/// `ibv_create_ah_from_wc(3)`.
pub(crate) unsafe extern "C" fn create_ah_from_wc(
    pd: *mut ibv_pd,
    wc: *mut ibv_wc,
    grh: *mut ibv_grh,
    port: u8,
) -> *mut ibv_ah {
    let mut attr: ibv_ah_attr = core::mem::zeroed();
    if init_ah_from_wc((*pd).context, port, wc, grh, &mut attr) != 0 {
        return null_mut();
    }
    create_ah(pd, &mut attr)
}

/// `ibv_resolve_eth_l2_from_gid(3)`.
pub(crate) unsafe extern "C" fn resolve_eth_l2(
    context: *mut ibv_context,
    attr: *mut ibv_ah_attr,
    mac: *mut u8,
    vid: *mut u16,
) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.resolve_eth_l2) else { return -1 };
    let mut given = *attr;
    peers::outward(ctx, &mut given);
    driver::answered(f((*ctx).real, &mut given, mac, vid))
}
