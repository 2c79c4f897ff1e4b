//! Devices: the list, and the identity (GUIDs, LIDs, GIDs) that the program has seen.
//!
//! A shadow device lives as long as the process: programs hold lists across checkpoints. What stands behind it is looked
//! up again after a restart. `struct ibv_device` is followed by zeros, because direct-verbs probes (`mlx5dv_is_supported`,
//! `efadv_query_device`) read the provider's private part, and must find no provider of theirs there.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, and devices are ours.
use crate::{driver, ident::Ident, keys::KeyMap, qp::Qp, registry, sync::Lock};
use alloc::{boxed::Box, vec::Vec};
use core::ffi::c_int;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// QP numbers have 24 bits (IBTA 9.2.3).
pub(crate) const QPNS: usize = 1 << 24;

/// A shadow device.
#[repr(C)]
pub(crate) struct Device {
    pub(crate) ibv: ibv_device,
    private: [u64; 64],
    /// The driver's, valid while `held` or a context of it is open.
    pub(crate) real: *mut ibv_device,
    /// By the real QP number: the QP, or null. Reserved when the first CQ is made; there is one, whoever comes first.
    pub(crate) qps: AtomicPtr<*mut Qp>,
    /// What the program sees; fixed at the first checkpoint.
    pub(crate) seen: Option<Ident>,
    /// What there is since the last restart; None before the first.
    pub(crate) now: Option<Ident>,
    /// This process's local keys; null before the first restart. Maps are replaced only while the program stands still.
    pub(crate) lkeys: *const KeyMap,
    /// This process's remote keys, as all were told of them; of all processes' there is a [`crate::peers::Directory`].
    pub(crate) told: *const KeyMap,
}

impl Device {
    /// The table of QPs, reserved at first use; null when there is no memory.
    pub(crate) fn table(&self) -> *mut *mut Qp {
        static FIRST: Lock<()> = Lock::new(());
        let mut table = self.qps.load(Ordering::Acquire);
        if table.is_null() {
            let _l = FIRST.lock();
            table = self.qps.load(Ordering::Acquire);
            if table.is_null() {
                table = crate::arena::reserve(QPNS * size_of::<*mut Qp>()).cast();
                self.qps.store(table, Ordering::Release);
            }
        }
        table
    }

    pub(crate) fn name(&self) -> &core::ffi::CStr {
        core::ffi::CStr::from_bytes_until_nul(crate::bytes_of(&self.ibv.name)).unwrap_or(c"?")
    }
}

/// Calls the driver for its list; an empty vector if it has none.
pub(crate) unsafe fn real_list() -> (Vec<*mut ibv_device>, *mut *mut ibv_device) {
    let Some(f) = driver::get().and_then(|d| d.get_device_list) else {
        driver::set_errno(libc::ENOSYS);
        return (Vec::new(), null_mut());
    };
    let mut n = 0;
    let list = f(&mut n);
    if list.is_null() {
        driver::pass_errno();
        return (Vec::new(), list);
    }
    ((0..n as usize).map(|i| *list.add(i)).collect(), list)
}

/// The shadow of a driver's device, and whether the driver's pointer is new to us.
unsafe fn shadow_of(real: *mut ibv_device) -> (*mut Device, bool) {
    let mut world = registry::world();
    let known = world.devices.iter().copied().find(|&d| {
        // Before a restart by the driver's pointer or name; afterwards the device on which `d` was put.
        (*d).real == real || ((*d).now.is_none() && (*d).ibv.name == (*real).name)
    });
    if let Some(d) = known {
        return (d, core::mem::replace(&mut (*d).real, real) != real);
    }
    let mut ibv: ibv_device = core::ptr::read(real);
    ibv._ops = core::mem::zeroed();
    let d = Box::into_raw(Box::new(Device {
        ibv,
        private: [0; 64],
        real,
        qps: AtomicPtr::new(null_mut()),
        seen: None,
        now: None,
        lkeys: null(),
        told: null(),
    }));
    world.devices.push(d);
    (d, true)
}

/// `ibv_get_device_list(3)`.
pub(crate) unsafe extern "C" fn get_device_list(num: *mut c_int) -> *mut *mut ibv_device {
    let _w = Wrapper::enter();
    if !num.is_null() {
        *num = 0;
    }
    let (reals, raw) = real_list();
    if raw.is_null() {
        return null_mut();
    }
    let pairs: Vec<(*mut Device, bool)> = reals.iter().map(|&r| shadow_of(r)).collect();
    // A device is valid while a list of the driver's holds it: keep the list that brought a new one.
    if !pairs.iter().any(|p| p.1)
        && let Some(f) = driver::get().and_then(|d| d.free_device_list)
    {
        f(raw);
    }
    let n = pairs.len();
    if !num.is_null() {
        *num = n as c_int;
    }
    // [length][devices...][null]; the program gets the address of the first device.
    let mut block: Vec<*mut ibv_device> = Vec::with_capacity(n + 2);
    block.push((n + 2) as *mut ibv_device);
    block.extend(pairs.iter().map(|p| p.0.cast::<ibv_device>()));
    block.push(null_mut());
    let block = Box::leak(block.into_boxed_slice());
    block.as_mut_ptr().add(1)
}

/// `ibv_free_device_list(3)`.
pub(crate) unsafe extern "C" fn free_device_list(list: *mut *mut ibv_device) {
    if list.is_null() {
        return;
    }
    let _w = Wrapper::enter();
    let first = list.sub(1);
    let n = *first as usize;
    drop(Box::from_raw(core::ptr::slice_from_raw_parts_mut(first, n)));
}

/// `ibv_get_device_guid(3)`.
pub(crate) unsafe extern "C" fn get_device_guid(device: *mut ibv_device) -> u64 {
    let _w = Wrapper::enter();
    let d = &*device.cast::<Device>();
    if let (Some(seen), Some(_)) = (&d.seen, &d.now) {
        return seen.node_guid;
    }
    driver::get().and_then(|x| x.get_device_guid).map_or(0, |f| f(d.real))
}

/// `ibv_get_device_index(3)`.
pub(crate) unsafe extern "C" fn get_device_index(device: *mut ibv_device) -> c_int {
    let _w = Wrapper::enter();
    driver::get().and_then(|x| x.get_device_index).map_or(-1, |f| f((*device.cast::<Device>()).real))
}
