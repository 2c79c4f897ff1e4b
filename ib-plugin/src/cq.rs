//! Completion queues, legacy and extended.
//!
//! A CQ has a list of *pending* completions: those that a checkpoint drained, and those of soaked messages. They come
//! before the driver's own. Extended CQs are built on the legacy poll of the driver, so that one path sees every
//! completion; fields which a legacy completion lacks (timestamps, tags) are refused when the CQ is made.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours. Fields marked so are reached under `lock`.
use crate::channel::{Channel, Unacked};
use crate::{account, context::Context, driver, qp::Qp, refuse, sync::{Biased, Held, Inside}};
use alloc::{boxed::Box, collections::VecDeque};
use core::ffi::{c_int, c_uint, c_void};
use core::mem::zeroed;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use rdma_sys::*;
use slackwater_plugin::Wrapper;

type PollFn = unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int;

/// A shadow completion queue; `ibv_cq` is a prefix of `ibv_cq_ex`.
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) ibv: ibv_cq_ex,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_cq,
    poll: PollFn,
    /// By real QP number, of the device.
    pub(crate) table: *mut *mut Qp,
    pub(crate) lock: Biased,
    /// Under `lock`.
    pub(crate) pending: VecDeque<ibv_wc>,
    /// 0; 1: armed for any completion; 2: for a solicited one.
    pub(crate) armed: AtomicU32,
    /// Requests for an event that no event has answered. The driver makes one of several in a row, so this may be too many,
    /// never too few: after a restart a program may get an event too much, but none is lost.
    pub(crate) arms: AtomicU32,
    /// Something has been polled since the last event.
    touched: AtomicBool,
    /// Nothing had been when an event was last asked for: so the completion that raised the last one was there already.
    stale: AtomicBool,
    /// The event owed since a restart answers the only request for one: see [`Self::owe_for_pending`].
    stand_in: bool,
    pub(crate) unacked: Unacked,
    pub(crate) unacked_async: Unacked,
    pub(crate) vector: c_int,
    /// From `ibv_start_poll` to the end. Held outside of wrappers, too: never taken by the checkpoint.
    session: Biased,
    /// The completion that the extended interface reads; under `session`.
    current: ibv_wc,
    /// Our own work requests (markers, soaks) whose completions have not been seen.
    pub(crate) own: u32,
}

impl Cq {
    #[inline(always)]
    unsafe fn poll_real(&self, n: c_int, wc: *mut ibv_wc) -> c_int {
        (self.poll)(self.real, n, wc)
    }

    /// Puts another CQ of the driver's behind this one.
    pub(crate) unsafe fn attach(&mut self, real: *mut ibv_cq) -> bool {
        let Some(poll) = (*(*real).context).ops.poll_cq else { return false };
        (self.real, self.poll) = (real, poll);
        true
    }

    /// Appends a completion of a soaked message and, if the CQ is armed, the event that it owes.
    pub(crate) unsafe fn push(&mut self, wc: ibv_wc) {
        {
            let _l = self.lock.lock();
            self.pending.push_back(wc);
        }
        self.owe_event();
    }

    /// An event of the driver's has been read.
    pub(crate) fn event_seen(&self) {
        let left = self.arms.load(Ordering::Acquire).saturating_sub(1);
        self.arms.store(left, Ordering::Release);
        if left == 0 {
            self.armed.store(0, Ordering::Release);
        }
    }

    /// The program is told of an event.
    pub(crate) fn event_given(&self) {
        self.touched.store(false, Ordering::Relaxed);
        self.unacked.given();
    }

    /// Owes the program an event if the CQ is armed; true if it does.
    pub(crate) unsafe fn owe_event(&mut self) -> bool {
        if self.ibv.channel.is_null() || self.armed.swap(0, Ordering::AcqRel) == 0 {
            return false;
        }
        self.arms.store(0, Ordering::Release);
        (*self.ibv.channel.cast::<Channel>()).source.owe(self);
        true
    }

    /// After a restart: a completion that was drained from an armed CQ owes an event, even if the driver's had not come yet. If it had, and
    /// a thread was stopped with it in hand, that one is told no second. A completion that was there before the event was asked for owes none.
    pub(crate) unsafe fn owe_for_pending(&mut self) {
        let once = self.arms.load(Ordering::Acquire) == 1;
        let before = self.stale.load(Ordering::Relaxed) && !self.touched.load(Ordering::Relaxed);
        self.stand_in = self.pending.len() > usize::from(before) && self.owe_event() && once;
    }

    /// Is what is owed for this CQ superfluous, when an event from before the checkpoint has turned up?
    pub(crate) fn has_stand_in(&self) -> bool {
        self.stand_in
    }

    /// Polls everything that the driver has into `pending`; true if there was anything. At a checkpoint.
    pub(crate) unsafe fn drain(&mut self) -> bool {
        self.stand_in = false;
        let mut any = false;
        loop {
            let mut wc: [ibv_wc; 16] = zeroed();
            let n = self.poll_real(16, wc.as_mut_ptr());
            if n <= 0 {
                return any;
            }
            any = true;
            for mut w in wc.into_iter().take(n as usize) {
                if account::account(self, &mut w) {
                    self.pending.push_back(w);
                }
            }
        }
    }

    /// One completion for the extended interface; false: none.
    unsafe fn advance(&mut self) -> c_int {
        loop {
            if let Some(wc) = self.pending.pop_front() {
                self.current = wc;
                break;
            }
            let mut wc: ibv_wc = zeroed();
            match self.poll_real(1, &mut wc) {
                0 => return libc::ENOENT,
                n if n < 0 => return libc::EIO,
                _ => {}
            }
            if account::account(self, &mut wc) {
                self.current = wc;
                break;
            }
        }
        self.touched.store(true, Ordering::Relaxed);
        self.ibv.wr_id = self.current.wr_id;
        self.ibv.status = self.current.status;
        0
    }
}

unsafe fn make(context: *mut ibv_context, cqe: c_int, user: *mut c_void, channel: *mut ibv_comp_channel, vector: c_int) -> *mut Cq {
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.create_cq) else { return null_mut() };
    let real_channel = if channel.is_null() { null_mut() } else { (*channel.cast::<Channel>()).real };
    let mut ibv: ibv_cq_ex = zeroed();
    (ibv.context, ibv.channel, ibv.cq_context) = (context, channel, user);
    let cq = Box::into_raw(Box::new(Cq {
        ibv,
        place: 0,
        real: null_mut(),
        poll: no_poll,
        table: (*(*ctx).device).table(),
        lock: Biased::new(),
        session: Biased::new(),
        pending: VecDeque::new(),
        armed: AtomicU32::new(0),
        arms: AtomicU32::new(0),
        touched: AtomicBool::new(true),
        stale: AtomicBool::new(false),
        stand_in: false,
        unacked: Unacked::new(),
        unacked_async: Unacked::new(),
        vector,
        current: zeroed(),
        own: 0,
    }));
    // The driver's events lead back to the shadow by its context pointer.
    let real = f((*ctx).real, cqe, cq.cast(), real_channel, vector);
    if real.is_null() || !(*cq).attach(real) {
        driver::pass_errno();
        drop(Box::from_raw(cq));
        return null_mut();
    }
    (*cq).ibv.cqe = (*real).cqe;
    (*cq).ibv.handle = (*real).handle;
    if !channel.is_null() {
        (*channel).refcnt += 1;
    }
    (*ctx).objects.lock().cqs.add(cq);
    cq
}

unsafe extern "C" fn no_poll(_: *mut ibv_cq, _: c_int, _: *mut ibv_wc) -> c_int {
    -1
}

/// `ibv_create_cq(3)`.
pub(crate) unsafe extern "C" fn create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    user: *mut c_void,
    channel: *mut ibv_comp_channel,
    vector: c_int,
) -> *mut ibv_cq {
    let _w = Wrapper::enter();
    make(context, cqe, user, channel, vector).cast()
}

/// `ibv_create_cq_ex(3)`.
pub(crate) unsafe extern "C" fn create_cq_ex(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex {
    let _w = Wrapper::enter();
    // IBV_WC_STANDARD_FLAGS and read_cvlan excluded: bits 0 to 6.
    let fields = (*attr).wc_flags;
    if fields & !0x7f != 0 || (*attr).comp_mask & !1 != 0 || ((*attr).comp_mask & 1 != 0 && (*attr).flags & !1 != 0) {
        refuse::refused("ibv_create_cq_ex with timestamps, tags, VLAN or a parent domain");
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    let cq = make(context, (*attr).cqe as c_int, (*attr).cq_context, (*attr).channel, (*attr).comp_vector as c_int);
    if cq.is_null() {
        return null_mut();
    }
    let ibv = &mut (*cq).ibv;
    ibv.start_poll = Some(start_poll);
    ibv.next_poll = Some(next_poll);
    ibv.end_poll = Some(end_poll);
    ibv.read_opcode = Some(read_opcode);
    ibv.read_vendor_err = Some(read_vendor_err);
    ibv.read_wc_flags = Some(read_wc_flags);
    ibv.read_byte_len = Some(read_byte_len);
    ibv.read_imm_data = Some(read_imm_data);
    ibv.read_qp_num = Some(read_qp_num);
    ibv.read_src_qp = Some(read_src_qp);
    ibv.read_slid = Some(read_slid);
    ibv.read_sl = Some(read_sl);
    ibv.read_dlid_path_bits = Some(read_dlid_path_bits);
    ibv
}

/// `ibv_resize_cq(3)`.
pub(crate) unsafe extern "C" fn resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    let _w = Wrapper::enter();
    let cq = cq.cast::<Cq>();
    let Some(f) = driver::loaded().and_then(|d| d.resize_cq) else { return libc::EOPNOTSUPP };
    let ret = driver::answered(f((*cq).real, cqe));
    if ret == 0 {
        (*cq).ibv.cqe = (*(*cq).real).cqe;
    }
    ret
}

/// `ibv_modify_cq(3)`: moderation only, which a checkpoint does not have to know.
pub(crate) unsafe extern "C" fn modify_cq(cq: *mut ibv_cq, attr: *mut ibv_modify_cq_attr) -> c_int {
    let _w = Wrapper::enter();
    let real = (*cq.cast::<Cq>()).real;
    crate::ident::vctx((*real).context).and_then(|v| (*v).modify_cq).map_or(libc::EOPNOTSUPP, |f| f(real, attr))
}

/// `ibv_destroy_cq(3)`.
pub(crate) unsafe extern "C" fn destroy_cq(cq: *mut ibv_cq) -> c_int {
    let cq = cq.cast::<Cq>();
    let ctx = Context::of((*cq).ibv.context);
    {
        let _w = Wrapper::enter();
        let Some(f) = driver::loaded().and_then(|d| d.destroy_cq) else { return libc::EOPNOTSUPP };
        let ret = f((*cq).real);
        if ret != 0 {
            driver::pass_errno();
            return ret;
        }
        (*ctx).objects.lock().cqs.remove(cq);
        if !(*cq).ibv.channel.is_null() {
            let channel = (*cq).ibv.channel.cast::<Channel>();
            (*channel).source.forget(|&c| c == cq);
            (*channel).ibv.refcnt -= 1;
        }
        (*ctx).events.forget(|e| e.element == cq as usize);
    }
    (*cq).unacked.wait();
    (*cq).unacked_async.wait();
    let _w = Wrapper::enter();
    drop(Box::from_raw(cq));
    0
}

/// `ibv_poll_cq(3)`, through `context->ops`.
pub(crate) unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, n: c_int, wc: *mut ibv_wc) -> c_int {
    let q = &mut *cq.cast::<Cq>();
    let Some(_held) = Held::take(&raw const q.lock).filter(|_| q.pending.is_empty()) else {
        return poll_slowly(cq, n, wc);
    };
    let got = q.poll_real(n, wc);
    if got <= 0 {
        return got;
    }
    q.touched.store(true, Ordering::Relaxed);
    // One by one is what programs that look at latency do.
    if got == 1 && account::account(q, &mut *wc) {
        return got;
    }
    account_all(q, wc, got, c_int::from(got == 1))
}

/// By a thread that the lock does not lean to, or with completions of a checkpoint: these first.
#[cold]
unsafe fn poll_slowly(cq: *mut ibv_cq, n: c_int, wc: *mut ibv_wc) -> c_int {
    let _w = Inside::enter();
    let cq = &mut *cq.cast::<Cq>();
    cq.lock.acquire();
    let mut k = 0;
    while k < n
        && let Some(w) = cq.pending.pop_front()
    {
        wc.add(k as usize).write(w);
        k += 1;
    }
    if k < n {
        let wc = wc.add(k as usize);
        k = match cq.poll_real(n - k, wc) {
            got if got > 0 => k + account_all(cq, wc, got, 0),
            _ if k > 0 => k,
            got => got,
        };
    }
    if k > 0 {
        cq.touched.store(true, Ordering::Relaxed);
    }
    cq.lock.release();
    k
}

/// Takes note of the driver's completions from `from` on, and closes the gaps of those that are our own: how many are left.
#[inline(never)]
unsafe fn account_all(cq: &mut Cq, wc: *mut ibv_wc, got: c_int, from: c_int) -> c_int {
    let mut to = 0;
    for i in from..got {
        let w = wc.add(i as usize);
        if account::account(cq, &mut *w) {
            if to != i {
                core::ptr::copy_nonoverlapping(w, wc.add(to as usize), 1);
            }
            to += 1;
        }
    }
    to
}

/// `ibv_req_notify_cq(3)`, through `context->ops`.
pub(crate) unsafe extern "C" fn req_notify_cq(cq: *mut ibv_cq, solicited: c_int) -> c_int {
    let _w = Wrapper::enter();
    let cq = &*cq.cast::<Cq>();
    cq.stale.store(!cq.touched.load(Ordering::Relaxed), Ordering::Relaxed);
    cq.arms.fetch_add(1, Ordering::AcqRel);
    cq.armed.store(if solicited != 0 { 2 } else { 1 }, Ordering::Release);
    (*(*cq.real).context).ops.req_notify_cq.map_or(libc::EOPNOTSUPP, |f| f(cq.real, solicited))
}

// From a successful start to the end the caller may be stopped, for as long as it likes: what it reads is a copy, and what a
// checkpoint drains meanwhile comes next.

unsafe extern "C" fn start_poll(cq: *mut ibv_cq_ex, attr: *mut ibv_poll_cq_attr) -> c_int {
    if !attr.is_null() && (*attr).comp_mask != 0 {
        return libc::EINVAL;
    }
    (*cq.cast::<Cq>()).session.acquire();
    let ret = next_poll(cq);
    if ret != 0 {
        end_poll(cq);
    }
    ret
}

unsafe extern "C" fn next_poll(cq: *mut ibv_cq_ex) -> c_int {
    let q = &mut *cq.cast::<Cq>();
    if let Some(_held) = Held::take(&raw const q.lock) {
        return q.advance();
    }
    let _w = Inside::enter();
    q.lock.acquire();
    let ret = q.advance();
    q.lock.release();
    ret
}

unsafe extern "C" fn end_poll(cq: *mut ibv_cq_ex) {
    (*cq.cast::<Cq>()).session.release();
}

macro_rules! read {
    ($($name:ident -> $t:ty = $wc:ident => $e:expr;)*) => { $(
        unsafe extern "C" fn $name(cq: *mut ibv_cq_ex) -> $t {
            let $wc = &(*cq.cast::<Cq>()).current;
            $e
        }
    )* };
}
read! {
    read_opcode -> ibv_wc_opcode::Type = wc => wc.opcode;
    read_vendor_err -> u32 = wc => wc.vendor_err;
    read_byte_len -> u32 = wc => wc.byte_len;
    read_imm_data -> u32 = wc => wc.imm_data_invalidated_rkey_union.imm_data;
    read_qp_num -> u32 = wc => wc.qp_num;
    read_src_qp -> u32 = wc => wc.src_qp;
    read_wc_flags -> c_uint = wc => wc.wc_flags;
    read_slid -> u32 = wc => wc.slid.into();
    read_sl -> u8 = wc => wc.sl;
    read_dlid_path_bits -> u8 = wc => wc.dlid_path_bits;
}
