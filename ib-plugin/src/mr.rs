//! Memory regions.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::{context::Context, device::Device, driver, pd::Pd, peers, sync::Lock};
use alloc::{boxed::Box, vec::Vec};
use core::ffi::{c_int, c_uint, c_void};
use core::ptr::null_mut;
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// A shadow memory region.
#[repr(C)]
pub(crate) struct Mr {
    pub(crate) ibv: ibv_mr,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_mr,
    pub(crate) iova: u64,
    pub(crate) access: c_uint,
}

/// Registers with the driver, with keys that mean nothing else to any program yet.
unsafe fn register(device: &Device, pd: *mut ibv_pd, addr: *mut c_void, len: usize, iova: u64, access: c_uint) -> *mut ibv_mr {
    let Some(d) = driver::loaded() else { return null_mut() };
    let once = || -> *mut ibv_mr {
        match (d.reg_mr_iova2, d.reg_mr) {
            (Some(f), _) => f(pd, addr, len, iova, access),
            (None, Some(f)) if iova == addr as u64 => f(pd, addr, len, access as c_int),
            _ => null_mut(),
        }
    };
    let mut mr = once();
    let mut taken = Vec::new();
    while let Some(new) = mr.as_ref()
        && (device.lkeys.as_ref().is_some_and(|l| l.reserves(new.lkey)) || peers::reserved_key(device, new.rkey))
    {
        taken.push(mr);
        mr = once();
    }
    for mr in taken {
        if let Some(f) = d.dereg_mr {
            f(mr);
        }
    }
    mr
}

unsafe fn make(pd: *mut ibv_pd, addr: *mut c_void, len: usize, iova: u64, access: c_uint) -> *mut ibv_mr {
    let _w = Wrapper::enter();
    let ctx = Context::of((*pd).context);
    if access & 0x40 != 0 {
        crate::refuse::refused("ibv_reg_mr(IBV_ACCESS_ON_DEMAND)");
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    let real = register(&*(*ctx).device, (*pd.cast::<Pd>()).real, addr, len, iova, access);
    if real.is_null() {
        driver::pass_errno();
        return null_mut();
    }
    let ibv = ibv_mr {
        context: (*ctx).ibv(),
        pd,
        addr,
        length: len,
        handle: (*real).handle,
        lkey: (*real).lkey,
        rkey: (*real).rkey,
    };
    let mr = Box::into_raw(Box::new(Mr { ibv, place: 0, real, iova, access }));
    (*ctx).objects.lock().mrs.add(mr);
    mr.cast()
}

/// `ibv_reg_mr(3)`.
pub(crate) unsafe extern "C" fn reg_mr(pd: *mut ibv_pd, addr: *mut c_void, len: usize, access: c_int) -> *mut ibv_mr {
    make(pd, addr, len, addr as u64, access as c_uint)
}

/// `ibv_reg_mr_iova(3)`.
pub(crate) unsafe extern "C" fn reg_mr_iova(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    make(pd, addr, len, iova, access as c_uint)
}

/// `ibv_reg_mr_iova2`, behind the `ibv_reg_mr` macro when optional access flags are given.
pub(crate) unsafe extern "C" fn reg_mr_iova2(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    iova: u64,
    access: c_uint,
) -> *mut ibv_mr {
    make(pd, addr, len, iova, access)
}

/// `ibv_rereg_mr(3)`: refused; what it says is `IBV_REREG_MR_ERR_CMD`, and the region stays as it is.
pub(crate) unsafe extern "C" fn rereg_mr(
    _mr: *mut ibv_mr,
    _flags: c_int,
    _pd: *mut ibv_pd,
    _addr: *mut c_void,
    _len: usize,
    _access: c_int,
) -> c_int {
    crate::refuse::refused("ibv_rereg_mr");
    driver::set_errno(libc::EOPNOTSUPP);
    -4
}

/// `ibv_dereg_mr(3)`.
pub(crate) unsafe extern "C" fn dereg_mr(mr: *mut ibv_mr) -> c_int {
    let _w = Wrapper::enter();
    let mr = mr.cast::<Mr>();
    let Some(f) = driver::loaded().and_then(|d| d.dereg_mr) else { return libc::EOPNOTSUPP };
    let ret = f((*mr).real);
    if ret != 0 {
        driver::pass_errno();
        return ret;
    }
    let device = &*(*Context::of((*mr).ibv.context)).device;
    if let Some(l) = device.lkeys.as_ref() {
        l.kill((*mr).ibv.lkey);
        peers::kill_key(device, (*mr).ibv.rkey);
    }
    (*Context::of((*mr).ibv.context)).objects.lock().mrs.remove(mr);
    drop(Box::from_raw(mr));
    0
}

/// Where in memory an address of a scatter entry lies: regions may be registered at another address (iova).
pub(crate) unsafe fn locate(ctx: *mut Context, sge: &ibv_sge) -> *mut u8 {
    let objects: &Lock<_> = &(*ctx).objects;
    for &mr in &objects.lock().mrs.0 {
        let m = &*mr;
        if m.ibv.lkey == sge.lkey {
            return (m.ibv.addr as u64).wrapping_add(sge.addr.wrapping_sub(m.iova)) as *mut u8;
        }
    }
    sge.addr as *mut u8
}
