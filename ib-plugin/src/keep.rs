//! Requests of our own: the names they bear, and the buffers that they fill.
//!
//! # Safety
//! Regions and protection domains are the driver's.
use crate::{driver, sync::Lock};
use alloc::{vec, vec::Vec};
use rdma_sys::*;

/// wr_id of a marker.
pub(crate) const MARKER: u64 = 0x5a1c_3a7e_4a4b_4552;
/// wr_id of a soak on a QP's own receive queue; the ring knows which.
pub(crate) const SOAK: u64 = 0x5a1c_3a7e_534f_414b;

/// A message that came while the program had no receive for it.
pub(crate) struct Soaked {
    pub(crate) wc: ibv_wc,
    pub(crate) bytes: Vec<u8>,
}

/// Buffers of the soaks that are posted.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    buffers: Vec<Option<(Vec<u8>, *mut ibv_mr)>>,
}

// SAFETY: regions are only deregistered, under the lock.
unsafe impl Send for Keep {}

static KEEP: Lock<Keep> = Lock::new(Keep { buffers: Vec::new() });

impl Keep {
    /// A registered buffer: its index, address and key. None: no memory, or the driver refuses.
    pub(crate) unsafe fn make(pd: *mut ibv_pd, len: usize) -> Option<(u64, ibv_sge)> {
        let mut bytes = vec![0u8; len.max(1)];
        let mr = driver::loaded()?.reg_mr?(pd, bytes.as_mut_ptr().cast(), bytes.len(), 1);
        if mr.is_null() {
            return None;
        }
        let sge = ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey: (*mr).lkey };
        let mut keep = KEEP.lock();
        let at = keep.buffers.iter().position(Option::is_none).unwrap_or(keep.buffers.len());
        if at == keep.buffers.len() {
            keep.buffers.push(None);
        }
        keep.buffers[at] = Some((bytes, mr));
        Some((at as u64, sge))
    }

    /// The message in a buffer whose completion has come.
    pub(crate) unsafe fn take(at: u64, wc: &ibv_wc) -> Option<Soaked> {
        let (mut bytes, mr) = KEEP.lock().buffers.get_mut(at as usize)?.take()?;
        if let Some(f) = driver::loaded().and_then(|d| d.dereg_mr) {
            f(mr);
        }
        // A write with immediate brings no payload into the receive.
        let n = if wc.opcode == ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM { 0 } else { wc.byte_len as usize };
        bytes.truncate(n);
        Some(Soaked { wc: core::ptr::read(wc), bytes })
    }
}
