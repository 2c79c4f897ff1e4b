//! Completion channels, and the source of events that they share with the asynchronous events of a context.
//!
//! The descriptor that the program holds is an epoll set of the driver's descriptor and an eventfd. So an event that we
//! owe (it was pending at a checkpoint, or belongs to a soaked message) wakes whoever polls, selects or sleeps in
//! `ibv_get_cq_event`; and after a restart the same number stands for the new channel.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours. The driver's descriptor is non-blocking,
//! and read only under the source's lock, inside a wrapper; a thread blocks in poll(2) only, outside of any wrapper.
use crate::{context::Context, cq::Cq, driver, sync::Lock};
use alloc::{boxed::Box, collections::VecDeque};
use core::ffi::{c_int, c_uint, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, Ordering};
use rdma_sys::*;
use slackwater_plugin::{Wrapper, protect_fd, unprotect_fd};

/// A descriptor of the driver's with events, and those that we owe.
#[derive(Debug)]
pub(crate) struct Source<T> {
    /// What the program holds.
    pub(crate) visible: c_int,
    real: c_int,
    wake: c_int,
    /// File status flags of `visible` at the checkpoint.
    pub(crate) flags: c_int,
    pub(crate) owed: Lock<VecDeque<T>>,
}

impl<T> Source<T> {
    /// Around the driver's descriptor; `at`: the number which `visible` must get. None: no descriptors.
    pub(crate) fn open(real: c_int, at: Option<c_int>) -> Option<Self> {
        let mut source = Self { visible: -1, real: -1, wake: -1, flags: 0, owed: Lock::new(VecDeque::new()) };
        source.attach(real, at).then_some(source)
    }

    /// Puts the source on another descriptor of the driver's; what is owed stays.
    pub(crate) fn attach(&mut self, real: c_int, at: Option<c_int>) -> bool {
        // SAFETY: plain system calls on descriptors of ours.
        unsafe {
            let wake = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            let mut set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if wake < 0 || set < 0 {
                return false;
            }
            for fd in [real, wake] {
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
                if libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event) != 0 {
                    return false;
                }
            }
            if let Some(at) = at
                && at != set
            {
                if libc::dup3(set, at, libc::O_CLOEXEC) < 0 {
                    return false;
                }
                libc::close(set);
                set = at;
            }
            let flags = libc::fcntl(real, libc::F_GETFL);
            libc::fcntl(real, libc::F_SETFL, flags | libc::O_NONBLOCK);
            if self.flags & libc::O_NONBLOCK != 0 {
                libc::fcntl(set, libc::F_SETFL, libc::O_NONBLOCK);
            }
            (self.visible, self.real, self.wake) = (set, real, wake);
        }
        for fd in [self.visible, self.real, self.wake] {
            protect_fd(fd);
        }
        if !self.owed.lock().is_empty() {
            self.ring();
        }
        true
    }

    fn ring(&self) {
        let one = 1u64;
        // SAFETY: an eventfd of ours takes eight bytes.
        unsafe { libc::write(self.wake, (&raw const one).cast(), 8) };
    }

    /// Owes an event.
    pub(crate) fn owe(&self, event: T) {
        self.owed.lock().push_back(event);
        self.ring();
    }

    /// The next event: one that is owed, or the driver's. None: errno is set (EAGAIN when the descriptor does not block).
    pub(crate) fn next(&self, mut from_driver: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            {
                let _w = Wrapper::enter();
                let mut owed = self.owed.lock();
                if let Some(event) = owed.pop_front() {
                    if owed.is_empty() {
                        let mut sink = 0u64;
                        // SAFETY: as in ring(); does not block.
                        unsafe { libc::read(self.wake, (&raw mut sink).cast(), 8) };
                    }
                    return Some(event);
                }
                if let Some(event) = from_driver() {
                    return Some(event);
                }
                let errno = driver::pass_errno();
                if errno != libc::EAGAIN && errno != libc::EINTR {
                    return None;
                }
            }
            // SAFETY: a descriptor of ours; the pollfd lives through the call.
            unsafe {
                if libc::fcntl(self.visible, libc::F_GETFL) & libc::O_NONBLOCK != 0 {
                    driver::set_errno(libc::EAGAIN);
                    return None;
                }
                let mut p = libc::pollfd { fd: self.visible, events: libc::POLLIN, revents: 0 };
                if libc::poll(&mut p, 1, -1) < 0 && *libc::__errno_location() != libc::EINTR {
                    return None;
                }
            }
        }
    }

    /// Takes all events out of the driver and owes them; at a checkpoint.
    pub(crate) fn capture(&mut self, mut from_driver: impl FnMut() -> Option<T>) {
        while let Some(event) = from_driver() {
            self.owe(event);
        }
        // SAFETY: a descriptor of ours.
        self.flags = unsafe { libc::fcntl(self.visible, libc::F_GETFL) };
    }

    /// Closes what is ours; the driver closes its own.
    pub(crate) fn close(&self) {
        for fd in [self.visible, self.wake] {
            unprotect_fd(fd);
            // SAFETY: ours.
            unsafe { libc::close(fd) };
        }
        unprotect_fd(self.real);
    }
}

/// Events given to the program and not acknowledged yet; destroying their object waits for it.
#[derive(Debug)]
pub(crate) struct Unacked(AtomicU32);

impl Unacked {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn given(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn acked(&self, n: u32) {
        self.0.fetch_sub(n, Ordering::AcqRel);
        // SAFETY: the futex word lives; nobody waiting is fine.
        unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    /// Blocks until all are acknowledged, as `ibv_destroy_cq(3)` says; outside of any wrapper.
    pub(crate) fn wait(&self) {
        loop {
            let n = self.0.load(Ordering::Acquire);
            if n == 0 {
                return;
            }
            // SAFETY: the futex word lives.
            unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAIT, n, 0usize) };
        }
    }
}

/// A completion channel.
#[repr(C)]
pub(crate) struct Channel {
    pub(crate) ibv: ibv_comp_channel,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_comp_channel,
    pub(crate) source: Source<*mut Cq>,
}

impl Channel {
    /// One event of the driver's, acknowledged to it at once: the program acknowledges to us.
    pub(crate) unsafe fn from_driver(real: *mut ibv_comp_channel) -> Option<*mut Cq> {
        let d = driver::loaded()?;
        let (mut cq, mut user) = (null_mut(), null_mut::<c_void>());
        if d.get_cq_event?(real, &mut cq, &mut user) != 0 {
            return None;
        }
        d.ack_cq_events?(cq, 1);
        let cq = user.cast::<Cq>();
        (*cq).event_seen();
        Some(cq)
    }
}

/// `ibv_create_comp_channel(3)`.
pub(crate) unsafe extern "C" fn create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    let _w = Wrapper::enter();
    let ctx = Context::of(context);
    let Some(d) = driver::loaded() else { return null_mut() };
    let Some(f) = d.create_comp_channel else { return null_mut() };
    let real = f((*ctx).real);
    if real.is_null() {
        driver::pass_errno();
        return null_mut();
    }
    let Some(source) = Source::open((*real).fd, None) else {
        if let Some(f) = d.destroy_comp_channel {
            f(real);
        }
        driver::set_errno(libc::EMFILE);
        return null_mut();
    };
    let ibv = ibv_comp_channel { context, fd: source.visible, refcnt: 0 };
    let channel = Box::into_raw(Box::new(Channel { ibv, place: 0, real, source }));
    (*ctx).objects.lock().channels.add(channel);
    channel.cast()
}

/// `ibv_destroy_comp_channel(3)`.
pub(crate) unsafe extern "C" fn destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    let _w = Wrapper::enter();
    let c = channel.cast::<Channel>();
    if (*c).ibv.refcnt != 0 {
        return libc::EBUSY;
    }
    (*c).source.close();
    let Some(f) = driver::loaded().and_then(|d| d.destroy_comp_channel) else { return libc::EOPNOTSUPP };
    let ret = f((*c).real);
    (*Context::of((*c).ibv.context)).objects.lock().channels.remove(c);
    drop(Box::from_raw(c));
    ret
}

/// `ibv_get_cq_event(3)`.
pub(crate) unsafe extern "C" fn get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    user: *mut *mut c_void,
) -> c_int {
    let c = channel.cast::<Channel>();
    let Some(found) = (*c).source.next(|| Channel::from_driver((*c).real)) else { return -1 };
    (*found).unacked.given();
    *cq = found.cast();
    *user = (*found).ibv.cq_context;
    0
}

/// `ibv_ack_cq_events(3)`.
pub(crate) unsafe extern "C" fn ack_cq_events(cq: *mut ibv_cq, n: c_uint) {
    (*cq.cast::<Cq>()).unacked.acked(n);
}
