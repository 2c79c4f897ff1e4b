//! Queue pairs: what the program holds, what it asked for, and the counters of the quiesce.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours. `sq` is reached under
//! `sq_lock`, `rq` and `soaked` under `rq_lock` (the ring's head under the receive CQ's lock).
use crate::channel::Unacked;
use crate::cq::Cq;
use crate::keep::Soaked;
use crate::keys::KeyMap;
use crate::ring::Ring;
use crate::srq::Srq;
use crate::{context::Context, driver, ident, pd::Pd, peers, refuse, sync::Biased, wr};
use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};
use core::ffi::c_int;
use core::mem::zeroed;
use core::ptr::null_mut;
use rdma_sys::*;
use slackwater_plugin::Wrapper;

pub(crate) use rdma_sys::{ibv_qp_state as state, ibv_qp_type as kind};

/// Counters of the send queue.
#[derive(Debug, Default)]
pub(crate) struct Sq {
    /// Two-sided requests posted since RESET.
    pub(crate) two_sided: u64,
    /// Signaled requests posted.
    pub(crate) signaled: u64,
    pub(crate) tail: Tail,
    /// Where the last unsignaled atomic went: address and key, as the program calls it.
    pub(crate) last_atomic: (u64, u32),
    lengths: Box<[u32]>,
}

/// Unsignaled requests after the last signaled one.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) count: u32,
    /// The last of them is one-sided: that the peer received all messages does not show that it is done.
    pub(crate) open: bool,
    /// One of them is answered into our memory.
    pub(crate) answered: bool,
}

impl Sq {
    #[inline(always)]
    pub(crate) fn sent(&mut self, len: u32) {
        let mask = self.lengths.len() - 1;
        // SAFETY: the length is a power of two.
        unsafe { *self.lengths.get_unchecked_mut(self.two_sided as usize & mask) = len };
        self.two_sided += 1;
    }

    /// The longest of the last `n` two-sided messages.
    pub(crate) fn longest(&self, n: u64) -> u32 {
        let cap = self.lengths.len() as u64;
        let n = n.min(cap).min(self.two_sided);
        (self.two_sided - n..self.two_sided).map(|i| self.lengths[(i % cap) as usize]).max().unwrap_or(0)
    }
}

type SendFn = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int;
type RecvFn = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;

/// No receive has so many scatter entries.
pub(crate) const NONE_SHORT: c_int = -1;

/// A shadow queue pair; `ibv_qp` is a prefix of `ibv_qp_ex`.
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) ibv: ibv_qp_ex,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_qp,
    pub(crate) post_send: SendFn,
    pub(crate) post_recv: RecvFn,
    pub(crate) sq_lock: Biased,
    /// From `ibv_wr_start` to complete or abort; guards the builder. Held outside of wrappers, too: never taken by the checkpoint.
    pub(crate) session: Biased,
    pub(crate) rq_lock: Biased,
    pub(crate) kind: ibv_qp_type::Type,
    pub(crate) sig_all: bool,
    /// Send requests are copied to be posted (datagrams; everything after a restart).
    pub(crate) copies: bool,
    /// Receives take the slow path (translated, or soaked messages wait): by [`Self::slow_receives`].
    pub(crate) rq_slow: bool,
    /// Scatter entries of a single receive that takes the shortest path: 1, or [`NONE_SHORT`].
    pub(crate) rq_short: c_int,
    /// Completions take the slow path.
    pub(crate) attention: bool,
    /// Its number or keys differ from the driver's.
    pub(crate) translated: bool,
    pub(crate) sq: Sq,
    /// Send completions seen; under the send CQ's lock.
    pub(crate) completed: u64,
    pub(crate) rq: Ring,
    /// Messages received; under the receive CQ's lock.
    pub(crate) received: u64,
    pub(crate) soaked: VecDeque<Soaked>,
    /// Markers that have not completed.
    pub(crate) markers: u32,
    /// Buffer into which a marker that is an atomic is answered (see [`Keep`]).
    pub(crate) marker_buffer: Option<u64>,
    /// What the program set, merged; as the program calls things.
    pub(crate) attr: ibv_qp_attr,
    pub(crate) attr_mask: c_int,
    /// Capacities as created.
    pub(crate) cap: ibv_qp_cap,
    /// One send slot more than the program has was granted.
    pub(crate) spare: bool,
    /// `enum ibv_qp_create_send_ops_flags` that the driver's QP must have, too; else 0.
    pub(crate) ops: u64,
    /// Keys of regions at the peer's device; null: as the program calls them.
    pub(crate) keys: *const KeyMap,
    /// Local keys, as the device has them.
    pub(crate) lkeys: *const KeyMap,
    pub(crate) unacked: Unacked,
    pub(crate) builder: wr::Builder,
}

unsafe extern "C" fn no_send(_: *mut ibv_qp, _: *mut ibv_send_wr, _: *mut *mut ibv_send_wr) -> c_int {
    libc::EINVAL
}

unsafe extern "C" fn no_recv(_: *mut ibv_qp, _: *mut ibv_recv_wr, _: *mut *mut ibv_recv_wr) -> c_int {
    libc::EINVAL
}

impl Qp {
    pub(crate) unsafe fn context(&self) -> *mut Context {
        Context::of(self.ibv.qp_base.context)
    }

    pub(crate) fn number(&self) -> u32 {
        self.ibv.qp_base.qp_num
    }

    pub(crate) fn state(&self) -> ibv_qp_state::Type {
        self.ibv.qp_base.state
    }

    /// The driver's name of a remote key.
    #[inline]
    pub(crate) unsafe fn remote_key(&self, key: u32) -> u32 {
        self.keys.as_ref().map_or(key, |k| k.get(key))
    }

    /// Makes the driver's QP and enters it into the device's table. `spare`: with room for a marker.
    pub(crate) unsafe fn create_real(&mut self, cap: &mut ibv_qp_cap) -> bool {
        let Some(plain) = driver::loaded().and_then(|d| d.create_qp) else { return false };
        let ops = self.ops;
        let f = |pd: *mut ibv_pd, init: &mut ibv_qp_init_attr_ex| {
            if ops == 0 {
                // The legacy attributes are a prefix of the extended ones.
                return plain(pd, core::ptr::from_mut(init).cast());
            }
            (init.comp_mask, init.pd, init.send_ops_flags) = (1 | 64, pd, ops);
            ident::vctx((*pd).context).and_then(|v| (*v).create_qp_ex).map_or(null_mut(), |f| f((*pd).context, init))
        };
        let mut init: ibv_qp_init_attr_ex = zeroed();
        init.qp_context = core::ptr::from_mut(self).cast();
        let base = &self.ibv.qp_base;
        let ctx = Context::of(base.context);
        init.send_cq = base.send_cq.cast::<Cq>().as_ref().map_or(null_mut(), |c| c.real);
        init.recv_cq = base.recv_cq.cast::<Cq>().as_ref().map_or(null_mut(), |c| c.real);
        init.srq = base.srq.cast::<Srq>().as_ref().map_or(null_mut(), |s| s.real);
        init.qp_type = self.kind;
        init.sq_sig_all = self.sig_all.into();
        let pd = (*base.pd.cast::<Pd>()).real;
        let device = &*(*ctx).device;
        let table = device.table();
        if table.is_null() {
            driver::set_errno(libc::ENOMEM);
            return false;
        }
        let mut rejected = Vec::new();
        let real = loop {
            init.cap = core::ptr::read(cap);
            let mut real = null_mut();
            // One more than the largest number would be none at all.
            self.spare = cap.max_send_wr < u32::MAX;
            if self.spare {
                init.cap.max_send_wr += 1;
                real = f(pd, &mut init);
            }
            if real.is_null() {
                init.cap = core::ptr::read(cap);
                self.spare = false;
                real = f(pd, &mut init);
            }
            if real.is_null() {
                break real;
            }
            // A new QP has the same number on both sides, unless that number already names another to some program.
            if self.place == usize::MAX && peers::reserved(device, (*real).qp_num) {
                rejected.push(real);
                continue;
            }
            break real;
        };
        for qp in rejected {
            if let Some(f) = driver::loaded().and_then(|d| d.destroy_qp) {
                f(qp);
            }
        }
        if real.is_null() {
            driver::pass_errno();
            return false;
        }
        let ops = &(*(*real).context).ops;
        (self.post_send, self.post_recv) = (ops.post_send.unwrap_or(no_send), ops.post_recv.unwrap_or(no_recv));
        (self.real, self.lkeys) = (real, device.lkeys);
        *table.add(((*real).qp_num & 0xff_ffff) as usize) = self;
        if self.spare {
            init.cap.max_send_wr = (init.cap.max_send_wr - 1).max(cap.max_send_wr);
        }
        *cap = init.cap;
        true
    }

    /// Whether receives take the slow path from now on.
    pub(crate) fn slow_receives(&mut self, slow: bool) {
        self.rq_slow = slow;
        self.rq_short = if slow || self.rq.slots.mixed { NONE_SHORT } else { 1 };
    }

    /// Back to the counters of a QP that has just been made.
    pub(crate) fn reset_counters(&mut self) {
        self.sq.two_sided = 0;
        self.sq.signaled = 0;
        self.sq.tail = Tail::default();
        self.completed = 0;
        self.received = 0;
        self.rq.clear();
        self.soaked.clear();
        self.markers = 0;
    }
}

unsafe fn make(pd: *mut ibv_pd, init: *mut ibv_qp_init_attr, ops: u64) -> *mut Qp {
    let ctx = Context::of((*pd).context);
    let kind = (*init).qp_type;
    if !matches!(kind, kind::IBV_QPT_RC | kind::IBV_QPT_UC | kind::IBV_QPT_UD) {
        refuse::refused("a queue pair of another type than RC, UC or UD");
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    let mut ibv: ibv_qp_ex = zeroed();
    let base = &mut ibv.qp_base;
    (base.context, base.pd, base.qp_context) = ((*ctx).ibv(), pd, (*init).qp_context);
    (base.send_cq, base.recv_cq, base.srq, base.qp_type) = ((*init).send_cq, (*init).recv_cq, (*init).srq, kind);
    let qp = Box::into_raw(Box::new(Qp {
        ibv,
        place: usize::MAX,
        real: null_mut(),
        post_send: no_send,
        post_recv: no_recv,
        sq_lock: Biased::new(),
        session: Biased::new(),
        rq_lock: Biased::new(),
        kind,
        sig_all: (*init).sq_sig_all != 0,
        copies: kind == kind::IBV_QPT_UD || ops != 0 || (*ctx).translated(),
        rq_slow: (*ctx).translated(),
        rq_short: if (*ctx).translated() { NONE_SHORT } else { 1 },
        attention: (*ctx).translated(),
        translated: (*ctx).translated(),
        sq: Sq::default(),
        completed: 0,
        rq: Ring::new(1, 1),
        received: 0,
        soaked: VecDeque::new(),
        markers: 0,
        marker_buffer: None,
        attr: zeroed(),
        attr_mask: 0,
        cap: zeroed(),
        spare: false,
        ops,
        keys: core::ptr::null(),
        lkeys: core::ptr::null(),
        unacked: Unacked::new(),
        builder: wr::Builder::default(),
    }));
    let q = &mut *qp;
    let mut cap: ibv_qp_cap = core::ptr::read(&(*init).cap);
    if !q.create_real(&mut cap) {
        drop(Box::from_raw(qp));
        return null_mut();
    }
    (*init).cap = core::ptr::read(&cap);
    q.cap = cap;
    q.ibv.qp_base.handle = (*q.real).handle;
    q.ibv.qp_base.qp_num = (*q.real).qp_num;
    q.ibv.qp_base.state = state::IBV_QPS_RESET;
    q.sq.lengths = vec![0; (q.cap.max_send_wr as usize + 1).next_power_of_two()].into();
    if q.ibv.qp_base.srq.is_null() {
        q.rq = Ring::new(q.cap.max_recv_wr, q.cap.max_recv_sge);
    }
    (*ctx).objects.lock().qps.add(qp);
    qp
}

/// `ibv_create_qp(3)`.
pub(crate) unsafe extern "C" fn create_qp(pd: *mut ibv_pd, init: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    let _w = Wrapper::enter();
    make(pd, init, 0).cast()
}

/// `ibv_create_qp_ex(3)`: PD, creation flags (none) and send operations.
pub(crate) unsafe extern "C" fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    let _w = Wrapper::enter();
    let a = &mut *attr;
    // IBV_QP_INIT_ATTR_PD 1, CREATE_FLAGS 4, SEND_OPS_FLAGS 64.
    if a.comp_mask & !(1 | 4 | 64) != 0 || a.comp_mask & 1 == 0 || (a.comp_mask & 4 != 0 && a.create_flags != 0) {
        refuse::refused("ibv_create_qp_ex with XRC, creation flags, TSO or RSS");
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    let ops = if a.comp_mask & 64 != 0 { a.send_ops_flags } else { 0 };
    let driver_has = ident::vctx((*Context::of(context)).real).is_some_and(|v| (*v).create_qp_ex.is_some());
    if ops & wr::ATOMIC_WRITE != 0 && !driver_has {
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    if ops & !wr::SUPPORTED != 0 {
        refuse::refused("ibv_wr_bind_mw and ibv_wr_send_tso");
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    // The legacy attributes are a prefix of the extended ones.
    let qp = make(a.pd, attr.cast(), if ops & wr::ATOMIC_WRITE != 0 { ops } else { 0 });
    if !qp.is_null() && a.comp_mask & 64 != 0 {
        wr::install(&mut *qp);
    }
    qp.cast()
}

/// `ibv_qp_to_qp_ex(3)`.
pub(crate) unsafe extern "C" fn qp_to_qp_ex(qp: *mut ibv_qp) -> *mut ibv_qp_ex {
    let ex = qp.cast::<ibv_qp_ex>();
    if (*ex).wr_start.is_some() { ex } else { null_mut() }
}

/// `ibv_destroy_qp(3)`.
pub(crate) unsafe extern "C" fn destroy_qp(qp: *mut ibv_qp) -> c_int {
    let qp = qp.cast::<Qp>();
    let ctx = (*qp).context();
    {
        let _w = Wrapper::enter();
        let Some(f) = driver::loaded().and_then(|d| d.destroy_qp) else { return libc::EOPNOTSUPP };
        let number = (*(*qp).real).qp_num & 0xff_ffff;
        let ret = f((*qp).real);
        if ret != 0 {
            driver::pass_errno();
            return ret;
        }
        // Late completions of this QP find no QP and pass as they are; locked, for a poll may be reading the table. (The number
        // may have become another QP's already.)
        let base = &(*qp).ibv.qp_base;
        let entry = (*(*ctx).device).table().add(number as usize);
        for cq in [base.send_cq, base.recv_cq] {
            if let Some(cq) = cq.cast::<Cq>().as_ref() {
                let _l = cq.lock.lock();
                if *entry == qp {
                    *entry = null_mut();
                }
            }
        }
        if let Some(srq) = base.srq.cast::<Srq>().as_mut() {
            let _pool = srq.pool.lock();
            srq.soaked.retain(|(q, _)| *q != qp);
        }
        (*ctx).objects.lock().qps.remove(qp);
        (*ctx).events.forget(|e| e.element == qp as usize);
    }
    (*qp).unacked.wait();
    let _w = Wrapper::enter();
    drop(Box::from_raw(qp));
    0
}
