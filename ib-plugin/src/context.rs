//! Contexts. The program holds a whole `struct verbs_context`: the extended operations lie *before* the `ibv_context` that
//! it has the address of, and inline functions of `<infiniband/verbs.h>` reach for them there.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::channel::Unacked;
use crate::device::Device;
use crate::ident::{self, vctx};
use crate::registry::{self, Objects};
use crate::source::{Event, Source};
use crate::{cq, driver, peers, post, qp, refuse, srq, sync::Lock};
use alloc::boxed::Box;
use core::ffi::{c_int, c_uint};
use core::mem::offset_of;
use core::ptr::null_mut;
use rdma_sys::*;
use slackwater_plugin::{Wrapper, protect_fd, unprotect_fd};

/// An asynchronous event that the program is owed or holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsyncEvent {
    pub(crate) kind: c_uint,
    /// Shadow object, or port number.
    pub(crate) element: usize,
}

/// A shadow context.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) v: verbs_context,
    pub(crate) place: usize,
    pub(crate) device: *mut Device,
    pub(crate) real: *mut ibv_context,
    pub(crate) events: Source<AsyncEvent>,
    pub(crate) objects: Lock<Objects>,
    /// Who opened it: a forked child does not take it along.
    pub(crate) pid: i32,
    pub(crate) member_index: u32,
}

impl Context {
    /// The shadow around the `ibv_context` that the program holds.
    #[inline(always)]
    pub(crate) unsafe fn of(context: *mut ibv_context) -> *mut Self {
        context.cast::<u8>().sub(offset_of!(Context, v) + offset_of!(verbs_context, context)).cast()
    }

    pub(crate) fn ibv(&mut self) -> *mut ibv_context {
        &raw mut self.v.context
    }

    /// True once a restart has put other identities behind the program's, or behind those of others.
    pub(crate) unsafe fn translated(&self) -> bool {
        (*self.device).now.is_some() || peers::known()
    }

    /// Counter of events given and not acknowledged, of the object that an event names.
    unsafe fn unacked<'a>(kind: c_uint, element: usize) -> Option<&'a Unacked> {
        Some(match kind {
            0 => &(*(element as *mut cq::Cq)).unacked_async,
            1..=7 | 16 => &(*(element as *mut qp::Qp)).unacked,
            14 | 15 => &(*(element as *mut srq::Srq)).unacked,
            _ => return None,
        })
    }
}

impl Event for AsyncEvent {
    type Real = ibv_context;
    type Told = ibv_async_event;

    unsafe fn descriptor(real: *mut ibv_context) -> *mut c_int {
        &raw mut (*real).async_fd
    }

    unsafe fn ask(real: *mut ibv_context) -> Option<ibv_async_event> {
        let mut event: ibv_async_event = core::mem::zeroed();
        (driver::loaded()?.get_async_event?(real, &mut event) == 0).then_some(event)
    }

    unsafe fn given(&self) {
        if let Some(counter) = Context::unacked(self.kind, self.element) {
            counter.given();
        }
    }

    /// What is owed has all been read from the driver.
    unsafe fn stands_in_for(&self, _: &Self) -> bool {
        false
    }

    /// With the program's object in it.
    unsafe fn accept(mut event: ibv_async_event, to_program: bool) -> Self {
        let kind = (&raw const event.event_type).cast::<c_uint>().read();
        let element = match kind {
            0 => (*event.element.cq).cq_context as usize,
            1..=7 | 16 => (*event.element.qp).qp_context as usize,
            14 | 15 => (*event.element.srq).srq_context as usize,
            _ => event.element.port_num as usize,
        };
        let ours = Self { kind, element };
        if to_program {
            ours.given();
        }
        if let Some(f) = driver::loaded().and_then(|d| d.ack_async_event) {
            f(&mut event);
        }
        ours
    }
}

fn fill(v: &mut verbs_context) {
    v.sz = size_of::<verbs_context>();
    v.query_port = Some(query_port_ex);
    v.query_device_ex = Some(query_device_ex);
    v.query_rt_values = Some(query_rt_values);
    v.create_cq_ex = Some(cq::create_cq_ex);
    v.modify_cq = Some(cq::modify_cq);
    v.create_qp_ex = Some(qp::create_qp_ex);
    v.modify_qp_rate_limit = Some(refuse::modify_qp_rate_limit);
    v.create_srq_ex = Some(srq::create_srq_ex);
    v.post_srq_ops = Some(refuse::post_srq_ops);
    v.advise_mr = Some(refuse::advise_mr);
    v.alloc_null_mr = Some(refuse::alloc_null_mr);
    v.create_counters = Some(refuse::create_counters);
    v.alloc_dm = Some(refuse::alloc_dm);
    v.create_flow_action_esp = Some(refuse::create_flow_action_esp);
    v.alloc_parent_domain = Some(refuse::alloc_parent_domain);
    v.alloc_td = Some(refuse::alloc_td);
    v.create_wq = Some(refuse::create_wq);
    v.create_rwq_ind_table = Some(refuse::create_rwq_ind_table);
    v.ibv_create_flow = Some(refuse::create_flow);
    v.open_qp = Some(refuse::open_qp);
    v.open_xrcd = Some(refuse::open_xrcd);
    let ops = &mut v.context.ops;
    ops.poll_cq = Some(cq::poll_cq);
    ops.req_notify_cq = Some(cq::req_notify_cq);
    ops.post_send = Some(post::post_send);
    ops.post_recv = Some(post::post_recv);
    ops.post_srq_recv = Some(srq::post_srq_recv);
    ops.alloc_mw = Some(refuse::alloc_mw);
    ops.bind_mw = Some(refuse::bind_mw);
    ops.dealloc_mw = Some(refuse::dealloc_mw);
}

/// `ibv_open_device(3)`.
pub(crate) unsafe extern "C" fn open_device(device: *mut ibv_device) -> *mut ibv_context {
    let _w = Wrapper::enter();
    let device = device.cast::<Device>();
    let Some(d) = driver::get() else { return null_mut() };
    let Some(f) = d.open_device else { return null_mut() };
    peers::learn();
    let real = f((*device).real);
    if real.is_null() {
        driver::pass_errno();
        return null_mut();
    }
    let events = Source::open(real);
    protect_fd((*real).cmd_fd);
    let mut v: verbs_context = core::mem::zeroed();
    fill(&mut v);
    v.context.device = device.cast();
    v.context.cmd_fd = (*real).cmd_fd;
    v.context.async_fd = events.visible();
    v.context.num_comp_vectors = (*real).num_comp_vectors;
    v.context.abi_compat = usize::MAX as *mut _;
    let ctx = Box::into_raw(Box::new(Context {
        v,
        place: 0,
        device,
        real,
        events,
        objects: Lock::new(Objects::new()),
        pid: libc::getpid(),
        member_index: 0,
    }));
    registry::world().contexts.add(ctx);
    (*ctx).ibv()
}

/// `ibv_close_device(3)`.
pub(crate) unsafe extern "C" fn close_device(context: *mut ibv_context) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.close_device) else { return -1 };
    (*ctx).events.close();
    unprotect_fd((*(*ctx).real).cmd_fd);
    let ret = f((*ctx).real);
    registry::world().contexts.remove(ctx);
    drop(Box::from_raw(ctx));
    ret
}

/// `ibv_query_device(3)`.
pub(crate) unsafe extern "C" fn query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.query_device) else { return libc::EOPNOTSUPP };
    let ret = driver::answered(f((*ctx).real, attr));
    if ret == 0 {
        same_guids(ctx, &mut *attr);
    }
    ret
}

unsafe fn same_guids(ctx: *mut Context, attr: &mut ibv_device_attr) {
    let device = &*(*ctx).device;
    if let (Some(seen), Some(_)) = (&device.seen, &device.now) {
        (attr.node_guid, attr.sys_image_guid) = (seen.node_guid, seen.sys_guid);
    }
}

unsafe extern "C" fn query_device_ex(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    size: usize,
) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    if let Some(f) = vctx((*ctx).real).and_then(|v| (*v).query_device_ex) {
        let ret = driver::answered(f((*ctx).real, input, attr, size));
        if ret == 0 {
            same_guids(ctx, &mut (*attr).orig_attr);
        }
        return ret;
    }
    // As libibverbs does for a driver without it.
    attr.cast::<u8>().write_bytes(0, size);
    query_device(context, &raw mut (*attr).orig_attr)
}

unsafe extern "C" fn query_rt_values(context: *mut ibv_context, values: *mut ibv_values_ex) -> c_int {
    let _w = Wrapper::enter();
    let real = (*Context::of(context)).real;
    vctx(real).and_then(|v| (*v).query_rt_values).map_or(libc::EOPNOTSUPP, |f| f(real, values))
}

unsafe extern "C" fn query_port_ex(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr, len: usize) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let ret = driver::answered(ident::query_port((*ctx).real, port, attr, len));
    if ret == 0 {
        seen_port(ctx, port, &mut *attr);
    }
    ret
}

/// `ibv_query_port(3)`, the exported function (its struct ends before `port_cap_flags2`).
pub(crate) unsafe extern "C" fn query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(f) = driver::loaded().and_then(|d| d.query_port) else { return libc::EOPNOTSUPP };
    let ret = driver::answered(f((*ctx).real, port, attr));
    if ret == 0 {
        seen_port(ctx, port, &mut *attr);
    }
    ret
}

unsafe fn seen_port(ctx: *mut Context, port: u8, attr: &mut ibv_port_attr) {
    let device = &*(*ctx).device;
    if let (Some(seen), Some(_)) = (&device.seen, &device.now)
        && let Some(p) = seen.port(port)
    {
        attr.lid = p.lid;
        attr.gid_tbl_len = p.table_len;
    }
}

/// `ibv_query_gid(3)`.
pub(crate) unsafe extern "C" fn query_gid(context: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let device = &*(*ctx).device;
    if let (Some(seen), Some(_)) = (&device.seen, &device.now) {
        let Some(p) = seen.port(port).filter(|p| index >= 0 && index < p.table_len) else {
            driver::set_errno(libc::EINVAL);
            return -1;
        };
        (*gid).raw = p.at(index as u32).map_or([0; 16], |e| e.gid);
        return 0;
    }
    let Some(f) = driver::loaded().and_then(|d| d.query_gid) else { return -1 };
    let ret = f((*ctx).real, port, index, gid);
    if ret != 0 {
        driver::pass_errno();
    }
    ret
}

/// `_ibv_query_gid_ex`, behind `ibv_query_gid_ex(3)`.
pub(crate) unsafe extern "C" fn query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    entry: *mut ibv_gid_entry,
    flags: u32,
    size: usize,
) -> c_int {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let device = &*(*ctx).device;
    if let (Some(seen), Some(_)) = (&device.seen, &device.now) {
        if flags != 0 || size < size_of::<ibv_gid_entry>() || seen.port(port as u8).is_none() {
            driver::set_errno(libc::EINVAL);
            return libc::EINVAL;
        }
        let Some(e) = seen.port(port as u8).and_then(|p| p.at(index)) else {
            driver::set_errno(libc::ENODATA);
            return libc::ENODATA;
        };
        put_entry(&mut *entry, port, e);
        return 0;
    }
    let Some(f) = driver::loaded().and_then(|d| d.query_gid_ex) else { return libc::EOPNOTSUPP };
    let ret = f((*ctx).real, port, index, entry, flags, size);
    if ret != 0 {
        driver::pass_errno();
    }
    ret
}

unsafe fn put_entry(out: &mut ibv_gid_entry, port: u32, e: &ident::GidEntry) {
    out.gid.raw = e.gid;
    out.gid_index = e.index;
    out.port_num = port;
    out.gid_type = e.kind;
    out.ndev_ifindex = e.ifindex;
}

/// `_ibv_query_gid_table`, behind `ibv_query_gid_table(3)`.
pub(crate) unsafe extern "C" fn query_gid_table(
    context: *mut ibv_context,
    entries: *mut ibv_gid_entry,
    max: usize,
    flags: u32,
    size: usize,
) -> isize {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let device = &*(*ctx).device;
    if let (Some(seen), Some(_)) = (&device.seen, &device.now) {
        if flags != 0 || size < size_of::<ibv_gid_entry>() {
            driver::set_errno(libc::EINVAL);
            return -(libc::EINVAL as isize);
        }
        let all = seen.ports.iter().enumerate().flat_map(|(i, p)| p.gids.iter().map(move |e| (i as u32 + 1, e)));
        let mut n = 0;
        for (port, e) in all {
            if n == max {
                driver::set_errno(libc::EINVAL);
                return -(libc::EINVAL as isize);
            }
            put_entry(&mut *entries.cast::<u8>().add(n * size).cast(), port, e);
            n += 1;
        }
        return n as isize;
    }
    let Some(f) = driver::loaded().and_then(|d| d.query_gid_table) else { return -(libc::EOPNOTSUPP as isize) };
    let n = f((*ctx).real, entries, max, flags, size);
    if n < 0 {
        driver::pass_errno();
    }
    n
}

/// `ibv_query_gid_type`, which librdmacm, providers and ibv_devinfo use. It counts the types otherwise: 0, IB or RoCE v1; 1, RoCE v2.
pub(crate) unsafe extern "C" fn query_gid_type(context: *mut ibv_context, port: u8, index: c_uint, kind: *mut c_uint) -> c_int {
    let mut entry: ibv_gid_entry = core::mem::zeroed();
    match query_gid_ex(context, port.into(), index, &mut entry, 0, size_of::<ibv_gid_entry>()) {
        0 => *kind = u32::from(entry.gid_type > 1),
        // An index where no GID is.
        libc::ENODATA => *kind = 0,
        _ => return -1,
    }
    0
}

/// `ibv_query_pkey(3)`.
pub(crate) unsafe extern "C" fn query_pkey(context: *mut ibv_context, port: u8, index: c_int, pkey: *mut u16) -> c_int {
    let _w = Wrapper::enter();
    let Some(f) = driver::loaded().and_then(|d| d.query_pkey) else { return -1 };
    let ret = f((*Context::of(context)).real, port, index, pkey);
    if ret != 0 {
        driver::pass_errno();
    }
    ret
}

/// `ibv_get_pkey_index(3)`.
pub(crate) unsafe extern "C" fn get_pkey_index(context: *mut ibv_context, port: u8, pkey: u16) -> c_int {
    let _w = Wrapper::enter();
    let Some(f) = driver::loaded().and_then(|d| d.get_pkey_index) else { return -1 };
    let index = f((*Context::of(context)).real, port, pkey);
    if index < 0 {
        driver::pass_errno();
    }
    index
}

/// `ibv_get_async_event(3)`.
pub(crate) unsafe extern "C" fn get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int {
    let ctx = Context::of(context);
    let Some(found) = (*ctx).events.next() else { return -1 };
    (&raw mut (*event).element).cast::<usize>().write(found.element);
    (&raw mut (*event).event_type).cast::<c_uint>().write(found.kind);
    0
}

/// `ibv_ack_async_event(3)`.
pub(crate) unsafe extern "C" fn ack_async_event(event: *mut ibv_async_event) {
    let kind = (&raw const (*event).event_type).cast::<c_uint>().read();
    let element = (&raw const (*event).element).cast::<usize>().read();
    if let Some(counter) = Context::unacked(kind, element) {
        counter.acked(1);
    }
}

/// `ibv_fork_init(3)`: the driver marks registered memory, wherever it lies.
pub(crate) unsafe extern "C" fn fork_init() -> c_int {
    let _w = Wrapper::enter();
    driver::get().and_then(|d| d.fork_init).map_or(libc::ENOSYS, |f| f())
}

/// `ibv_is_fork_initialized(3)`.
pub(crate) unsafe extern "C" fn is_fork_initialized() -> c_int {
    let _w = Wrapper::enter();
    driver::get().and_then(|d| d.is_fork_initialized).map_or(0, |f| f())
}
