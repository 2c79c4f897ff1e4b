//! Where the program's devices are after a restart: for each one of those that are here now.
//!
//! # Safety
//! As `restart.rs`: on the checkpoint thread, while the program stands still outside of all wrappers.
use crate::context::Context;
use crate::device::{self, Device, QPNS};
use crate::driver;
use crate::ident::Ident;
use crate::attr::mask;
use crate::qp::Qp;
use crate::restart::{NO_RDMA, Outcome};
use alloc::{format, vec::Vec};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;
use rdma_sys::*;

/// The highest port that a QP or an address handle of this device names.
unsafe fn last_port(contexts: &[*mut Context], device: *mut Device) -> u8 {
    let mut last = 1;
    for &ctx in contexts.iter().filter(|&&c| (*c).device == device) {
        let o = (*ctx).objects.lock();
        for &qp in &o.qps.0 {
            let (q, has) = (&*qp, |bit| (*qp).attr_mask & bit != 0);
            last = last.max(if has(mask::PORT) { q.attr.port_num } else { 1 });
            last = last.max(if has(mask::AV) { q.attr.ah_attr.port_num } else { 1 });
        }
        last = o.ahs.0.iter().map(|&ah| (*ah).attr.port_num).fold(last, u8::max);
    }
    last
}

/// Who a device of the driver's is.
unsafe fn who(device: *mut ibv_device) -> Option<Ident> {
    let d = driver::loaded()?;
    let real = d.open_device?(device);
    if real.is_null() {
        return None;
    }
    let ident = Ident::read(real);
    d.close_device?(real);
    ident
}

/// Finds for each device of the program one that is there now and has the ports that it uses: of the same name, else the one
/// most like it that nobody has taken, else the one most like it.
pub(crate) unsafe fn place(contexts: &[*mut Context]) -> Outcome<()> {
    let mut wanted: Vec<*mut Device> = contexts.iter().map(|&c| (*c).device).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let (reals, _) = device::real_list();
    if reals.is_empty() {
        return Err(NO_RDMA.into());
    }
    let here: Vec<(*mut ibv_device, Ident)> = reals.into_iter().filter_map(|r| Some((r, who(r)?))).collect();
    let mut taken = Vec::new();
    let mut homeless = Vec::new();
    for d in wanted {
        (*d).real = null_mut();
        let table = (*d).qps.load(Ordering::Relaxed);
        if !table.is_null() {
            // SAFETY: our own reserve; it comes back as zeros, that is, no QPs. Raw, for UCX patches madvise(2).
            libc::syscall(libc::SYS_madvise, table, QPNS * size_of::<*mut Qp>(), libc::MADV_DONTNEED);
        }
        let ports = last_port(contexts, d);
        match here.iter().find(|h| (*h.0).name == (*d).ibv.name && h.1.ports.len() >= ports.into()) {
            Some(h) => {
                (*d).real = h.0;
                taken.push(h.0);
            }
            None => homeless.push((d, ports)),
        }
    }
    for (d, ports) in homeless {
        let name = (*d).name().to_string_lossy();
        let best = here.iter().filter(|h| h.1.ports.len() >= ports.into()).max_by_key(|h| {
            let like = (*d).seen.as_ref().map_or(0, |seen| seen.likeness(&h.1));
            (!taken.contains(&h.0), like)
        });
        let Some((real, _)) = best else {
            return Err(format!(
                "the program uses port {ports} of RDMA device {name}, and no device here that can be opened has as many ports \
                 (`ibv_devinfo` tells); restart it where one has"
            ));
        };
        (*d).real = *real;
        taken.push(*real);
        crate::say(&format!(
            "slackwater-ib: device {name} is not here; its objects come back on {}",
            core::ffi::CStr::from_ptr((**real).name.as_ptr()).to_string_lossy()
        ));
    }
    Ok(())
}
