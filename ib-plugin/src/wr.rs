//! The `ibv_wr_*` interface of extended QPs, built on the one post path: requests are gathered between start and complete
//! and posted as a list.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says. From start to complete or abort the caller holds the queue's
//! `session`, so the builder is its own. It may be stopped there, for as long as it likes: what it has gathered is in memory, by the
//! program's names, and the checkpoint touches neither builder nor session. Only what allocates, or posts, is inside a wrapper.
use crate::post::{self, INLINE};
use crate::qp::Qp;
use crate::sync::Inside;
use alloc::vec::Vec;
use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::ptr::null_mut;
use rdma_sys::*;

/// `enum ibv_qp_create_send_ops_flags`: write, write with imm, send, send with imm, read, cmp swp, fetch add, local inv, send inv,
/// atomic write.
pub(crate) const SUPPORTED: u64 = 0x7f | 1 << 7 | 1 << 9 | ATOMIC_WRITE;
/// `IBV_QP_EX_WITH_ATOMIC_WRITE`. `ibv_post_send` has no such request, so the driver's QP is an extended one, too.
pub(crate) const ATOMIC_WRITE: u64 = 1 << 12;
/// `IBV_WR_ATOMIC_WRITE`: among ours its eight bytes are inline data.
pub(crate) const WR_ATOMIC_WRITE: ibv_wr_opcode::Type = 15;

/// Requests gathered.
#[derive(Default)]
pub(crate) struct Builder {
    wrs: Vec<ibv_send_wr>,
    sges: Vec<ibv_sge>,
    /// First scatter entry of each request.
    first: Vec<usize>,
    bytes: Vec<u8>,
    /// Scatter entries that lie in `bytes`, by offset.
    inline: Vec<(usize, usize)>,
}

impl Builder {
    fn clear(&mut self) {
        self.wrs.clear();
        self.sges.clear();
        self.first.clear();
        self.bytes.clear();
        self.inline.clear();
    }
}

/// Gives a QP the operations.
pub(crate) fn install(qp: &mut Qp) {
    let ex = &mut qp.ibv;
    ex.wr_start = Some(start);
    ex.wr_complete = Some(complete);
    ex.wr_abort = Some(abort);
    ex.wr_send = Some(send);
    ex.wr_send_imm = Some(send_imm);
    ex.wr_send_inv = Some(send_inv);
    ex.wr_rdma_write = Some(rdma_write);
    ex.wr_rdma_write_imm = Some(rdma_write_imm);
    ex.wr_rdma_read = Some(rdma_read);
    ex.wr_atomic_cmp_swp = Some(cmp_swp);
    ex.wr_atomic_fetch_add = Some(fetch_add);
    ex.wr_local_inv = Some(local_inv);
    ex.wr_atomic_write = (qp.ops & ATOMIC_WRITE != 0).then_some(atomic_write as _);
    ex.wr_set_sge = Some(set_sge);
    ex.wr_set_sge_list = Some(set_sge_list);
    ex.wr_set_inline_data = Some(set_inline);
    ex.wr_set_inline_data_list = Some(set_inline_list);
    ex.wr_set_ud_addr = Some(set_ud_addr);
}

#[inline]
unsafe fn add<'a>(ex: *mut ibv_qp_ex, opcode: ibv_wr_opcode::Type) -> &'a mut ibv_send_wr {
    let _w = Inside::enter();
    let b = &mut (*ex.cast::<Qp>()).builder;
    let mut wr: ibv_send_wr = zeroed();
    (wr.wr_id, wr.send_flags, wr.opcode) = ((*ex).wr_id, (*ex).wr_flags, opcode);
    b.first.push(b.sges.len());
    b.wrs.push(wr);
    let last = b.wrs.len() - 1;
    b.wrs.as_mut_ptr().add(last).as_mut().unwrap_unchecked()
}

unsafe extern "C" fn start(ex: *mut ibv_qp_ex) {
    let qp = &mut *ex.cast::<Qp>();
    qp.session.acquire();
    qp.builder.clear();
}

unsafe extern "C" fn abort(ex: *mut ibv_qp_ex) {
    (*ex.cast::<Qp>()).session.release();
}

unsafe extern "C" fn complete(ex: *mut ibv_qp_ex) -> c_int {
    let qp = &mut *ex.cast::<Qp>();
    let _w = Inside::enter();
    let mut b = core::mem::take(&mut qp.builder);
    for &(sge, offset) in &b.inline {
        b.sges[sge].addr = b.bytes.as_ptr().add(offset) as u64;
    }
    let n = b.wrs.len();
    for i in 0..n {
        let end = if i + 1 < n { b.first[i + 1] } else { b.sges.len() };
        let next = if i + 1 < n { b.wrs.as_mut_ptr().add(i + 1) } else { null_mut() };
        let wr = &mut b.wrs[i];
        wr.sg_list = b.sges.as_mut_ptr().add(b.first[i]);
        wr.num_sge = (end - b.first[i]) as c_int;
        wr.next = next;
    }
    let mut bad = null_mut();
    qp.sq_lock.acquire();
    let ret = if n == 0 { 0 } else { post::send_locked(qp, b.wrs.as_mut_ptr(), &mut bad) };
    qp.sq_lock.release();
    qp.builder = b;
    qp.session.release();
    ret
}

unsafe extern "C" fn send(ex: *mut ibv_qp_ex) {
    add(ex, ibv_wr_opcode::IBV_WR_SEND);
}
unsafe extern "C" fn send_imm(ex: *mut ibv_qp_ex, imm: u32) {
    add(ex, ibv_wr_opcode::IBV_WR_SEND_WITH_IMM).imm_data_invalidated_rkey_union.imm_data = imm;
}
unsafe extern "C" fn send_inv(ex: *mut ibv_qp_ex, key: u32) {
    add(ex, ibv_wr_opcode::IBV_WR_SEND_WITH_INV).imm_data_invalidated_rkey_union.invalidated_rkey = key;
}
unsafe extern "C" fn local_inv(ex: *mut ibv_qp_ex, key: u32) {
    add(ex, ibv_wr_opcode::IBV_WR_LOCAL_INV).imm_data_invalidated_rkey_union.invalidated_rkey = key;
}
unsafe extern "C" fn rdma_write(ex: *mut ibv_qp_ex, rkey: u32, remote_addr: u64) {
    add(ex, ibv_wr_opcode::IBV_WR_RDMA_WRITE).wr.rdma = rdma_t { remote_addr, rkey };
}
unsafe extern "C" fn rdma_write_imm(ex: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, imm: u32) {
    let wr = add(ex, ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM);
    wr.wr.rdma = rdma_t { remote_addr, rkey };
    wr.imm_data_invalidated_rkey_union.imm_data = imm;
}
unsafe extern "C" fn rdma_read(ex: *mut ibv_qp_ex, rkey: u32, remote_addr: u64) {
    add(ex, ibv_wr_opcode::IBV_WR_RDMA_READ).wr.rdma = rdma_t { remote_addr, rkey };
}
unsafe extern "C" fn cmp_swp(ex: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, compare_add: u64, swap: u64) {
    add(ex, ibv_wr_opcode::IBV_WR_ATOMIC_CMP_AND_SWP).wr.atomic = atomic_t { remote_addr, compare_add, swap, rkey };
}
unsafe extern "C" fn fetch_add(ex: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, compare_add: u64) {
    add(ex, ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD).wr.atomic = atomic_t { remote_addr, compare_add, swap: 0, rkey };
}
unsafe extern "C" fn atomic_write(ex: *mut ibv_qp_ex, rkey: u32, remote_addr: u64, value: *const c_void) {
    add(ex, WR_ATOMIC_WRITE).wr.rdma = rdma_t { remote_addr, rkey };
    put_inline(&mut (*ex.cast::<Qp>()).builder, value.cast(), 8);
}

/// Hands the driver an atomic write, whose key is the driver's already; 0 or an errno value. With the send queue's lock held.
pub(crate) unsafe fn post_atomic_write(qp: &Qp, wr: &ibv_send_wr) -> c_int {
    let real = qp.real.cast::<ibv_qp_ex>();
    let (Some(start), Some(write), Some(complete)) = ((*real).wr_start, (*real).wr_atomic_write, (*real).wr_complete) else {
        return libc::EOPNOTSUPP;
    };
    start(real);
    ((*real).wr_id, (*real).wr_flags) = (wr.wr_id, wr.send_flags & !INLINE);
    write(real, wr.wr.rdma.rkey, wr.wr.rdma.remote_addr, (*wr.sg_list).addr as *const c_void);
    complete(real)
}

unsafe extern "C" fn set_sge(ex: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    let _w = Inside::enter();
    (*ex.cast::<Qp>()).builder.sges.push(ibv_sge { addr, length, lkey });
}
unsafe extern "C" fn set_sge_list(ex: *mut ibv_qp_ex, n: usize, list: *const ibv_sge) {
    let _w = Inside::enter();
    let b = &mut (*ex.cast::<Qp>()).builder;
    for i in 0..n {
        b.sges.push(*list.add(i));
    }
}

unsafe fn put_inline(b: &mut Builder, addr: *const u8, length: usize) {
    let _w = Inside::enter();
    if let Some(wr) = b.wrs.last_mut() {
        wr.send_flags |= INLINE;
    }
    b.inline.push((b.sges.len(), b.bytes.len()));
    b.sges.push(ibv_sge { addr: 0, length: length as u32, lkey: 0 });
    // The program may reuse its buffer as soon as this returns.
    b.bytes.extend_from_slice(core::slice::from_raw_parts(addr, length));
}

unsafe extern "C" fn set_inline(ex: *mut ibv_qp_ex, addr: *mut c_void, length: usize) {
    if length != 0 {
        put_inline(&mut (*ex.cast::<Qp>()).builder, addr.cast(), length);
    }
}
unsafe extern "C" fn set_inline_list(ex: *mut ibv_qp_ex, n: usize, list: *const ibv_data_buf) {
    for i in 0..n {
        let buf = &*list.add(i);
        set_inline(ex, buf.addr, buf.length);
    }
}
unsafe extern "C" fn set_ud_addr(ex: *mut ibv_qp_ex, ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32) {
    if let Some(wr) = (*ex.cast::<Qp>()).builder.wrs.last_mut() {
        wr.wr.ud = ud_t { ah, remote_qpn, remote_qkey };
    }
}
