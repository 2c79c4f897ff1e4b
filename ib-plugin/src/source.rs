//! Where events come from: a descriptor of the driver's (a completion channel's, or a context's asynchronous events), and the
//! events that we owe, which were pending at a checkpoint or belong to soaked messages.
//!
//! As a rule nothing is owed. The program then holds the driver's own descriptor, and whoever waits for an event waits in the
//! driver's read(2), at the cost of one system call. While something is owed, or may come to be, the number that the program
//! holds is *covered*: it stands for an epoll set of the driver's descriptor, which has moved to a number *beside*, and an
//! eventfd, so that an owed event wakes whoever polls, selects or sleeps.
//!
//! Covers come and go only while the program stands: [`Source::settle`]. A thread that waits in the driver's read(2) then finds
//! its descriptor covered (EINVAL), or not blocking (EAGAIN), for its call is entered again as it goes on; that the *epoch* has
//! changed tells it to look once more. So no thread can miss what has come to be owed, wherever it was stopped.
//!
//! # Safety
//! The driver is asked for an event outside of any wrapper, for that may block: its functions take no lock for it. What it has
//! told is accepted inside of one. Where the driver's descriptor must not block it is read under `owed`, inside a wrapper.
use crate::{driver, fds, sync::Lock};
use alloc::collections::VecDeque;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use slackwater_plugin::{Wrapper, protect_fd, unprotect_fd};

/// An event for the program.
pub(crate) trait Event: Sized {
    /// What of the driver's it comes from.
    type Real;
    /// As the driver tells it, before it is acknowledged.
    type Told;
    /// Where the driver keeps the number of its descriptor.
    unsafe fn descriptor(real: *mut Self::Real) -> *mut c_int;
    /// The driver's next event; None: its errno says why.
    unsafe fn ask(real: *mut Self::Real) -> Option<Self::Told>;
    /// Counts it as the program's, to be acknowledged to us.
    unsafe fn given(&self);
    /// Is it owed in place of `other`, which a thread had in hand when it was stopped?
    unsafe fn stands_in_for(&self, other: &Self) -> bool;
    /// The program's event, acknowledged to the driver; `to_program`: it is [`Self::given`] before the driver may destroy its object.
    unsafe fn accept(told: Self::Told, to_program: bool) -> Self;
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Source<T: Event> {
    real: *mut T::Real,
    /// What the program holds.
    visible: c_int,
    /// The driver's number, once the other has been covered; it stays, for a thread may be about to read there. -1: none yet.
    beside: c_int,
    /// The eventfd of the cover; -1: there is none.
    wake: c_int,
    /// File status flags of `visible` at the checkpoint.
    flags: c_int,
    /// Nothing is owed, nor will be while the program runs, and there is no cover.
    plain: AtomicBool,
    /// Events may come to be owed while the program runs: for soaked messages.
    expecting: AtomicBool,
    /// Under a cover: the driver's descriptor blocks, as the program's does.
    blocks: AtomicBool,
    epoch: AtomicU32,
    owed: Lock<VecDeque<T>>,
}

enum Found<T> {
    Event(T),
    /// errno is set.
    Nothing,
    AskTheDriver,
    LookAgain,
}

unsafe fn blocks(fd: c_int) -> bool {
    libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK == 0
}

unsafe fn set_blocks(fd: c_int, blocks: bool) {
    let flags = libc::fcntl(fd, libc::F_GETFL);
    libc::fcntl(fd, libc::F_SETFL, if blocks { flags & !libc::O_NONBLOCK } else { flags | libc::O_NONBLOCK });
}

impl<T: Event> Source<T> {
    pub(crate) unsafe fn open(real: *mut T::Real) -> Self {
        let visible = *T::descriptor(real);
        protect_fd(visible);
        Self {
            real,
            visible,
            beside: -1,
            wake: -1,
            flags: 0,
            plain: AtomicBool::new(true),
            expecting: AtomicBool::new(false),
            blocks: AtomicBool::new(true),
            epoch: AtomicU32::new(0),
            owed: Lock::new(VecDeque::new()),
        }
    }

    /// What the program holds.
    pub(crate) fn visible(&self) -> c_int {
        self.visible
    }

    /// The numbers that this source has, wherever the driver's descriptor is.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = c_int> {
        [self.visible, self.beside].into_iter().filter(|&fd| fd >= 0)
    }

    /// After a restart: the driver's new descriptor under the old numbers, not covered. What is owed stays.
    pub(crate) unsafe fn attach(&mut self, real: *mut T::Real) -> bool {
        let place = T::descriptor(real);
        let new = *place;
        for number in self.numbers() {
            if libc::dup3(new, number, libc::O_CLOEXEC) < 0 {
                return false;
            }
            protect_fd(number);
        }
        libc::close(new);
        *place = if self.beside >= 0 { self.beside } else { self.visible };
        set_blocks(self.visible, self.flags & libc::O_NONBLOCK == 0);
        (self.real, self.wake) = (real, -1);
        true
    }

    fn ring(&self) {
        let one = 1u64;
        // SAFETY: an eventfd of ours takes eight bytes; where there is none yet (-1), `settle` rings.
        unsafe { libc::write(self.wake, (&raw const one).cast(), 8) };
    }

    fn silence(&self) {
        let mut sink = 0u64;
        // SAFETY: as in ring(); does not block.
        unsafe { libc::read(self.wake, (&raw mut sink).cast(), 8) };
    }

    /// Owes an event: while the program stands, or where one is expected.
    pub(crate) fn owe(&self, event: T) {
        self.owed.lock().push_back(event);
        self.ring();
    }

    /// Forgets events of an object that is being destroyed.
    pub(crate) fn forget(&self, mut which: impl FnMut(&T) -> bool) {
        let mut owed = self.owed.lock();
        if !owed.is_empty() {
            owed.retain(|event| !which(event));
            if owed.is_empty() {
                self.silence();
            }
        }
    }

    /// The next event: one that is owed, or the driver's. None: errno is set (EAGAIN when the descriptor does not block).
    pub(crate) unsafe fn next(&self) -> Option<T> {
        loop {
            let epoch = self.epoch.load(Acquire);
            if !self.plain.load(Acquire) {
                match self.under_cover() {
                    Found::Event(event) => return Some(event),
                    Found::Nothing => return None,
                    Found::LookAgain => continue,
                    Found::AskTheDriver => {}
                }
            }
            let told = T::ask((&raw const self.real).read_volatile());
            if let Some(told) = told {
                let _w = Wrapper::enter();
                let event = T::accept(told, true);
                if self.epoch.load(Acquire) != epoch {
                    self.in_hand(&event);
                }
                return Some(event);
            }
            if self.epoch.load(Acquire) == epoch {
                driver::pass_errno();
                return None;
            }
        }
    }

    /// The driver had told the event when the thread was stopped, and nobody knew.
    #[cold]
    unsafe fn in_hand(&self, event: &T) {
        let mut owed = self.owed.lock();
        if let Some(at) = owed.iter().position(|other| other.stands_in_for(event)) {
            owed.remove(at);
            if owed.is_empty() {
                self.silence();
            }
        }
    }

    #[cold]
    unsafe fn under_cover(&self) -> Found<T> {
        let blocks = {
            let _w = Wrapper::enter();
            let mut owed = self.owed.lock();
            if let Some(event) = owed.pop_front() {
                if owed.is_empty() {
                    self.silence();
                }
                event.given();
                return Found::Event(event);
            }
            let blocks = blocks(self.visible);
            if !self.expecting.load(Acquire) {
                // Inside the wrapper: once something is owed the driver's descriptor does not block any more.
                if self.blocks.swap(blocks, AcqRel) != blocks {
                    set_blocks(self.beside, blocks);
                }
                return Found::AskTheDriver;
            }
            if let Some(told) = T::ask(self.real) {
                return Found::Event(T::accept(told, true));
            }
            if !matches!(driver::pass_errno(), libc::EAGAIN | libc::EINTR) {
                return Found::Nothing;
            }
            blocks
        };
        if !blocks {
            driver::set_errno(libc::EAGAIN);
            return Found::Nothing;
        }
        let mut p = libc::pollfd { fd: self.visible, events: libc::POLLIN, revents: 0 };
        if libc::poll(&mut p, 1, -1) < 0 && *libc::__errno_location() != libc::EINTR { Found::Nothing } else { Found::LookAgain }
    }

    /// At a checkpoint: takes all events out of the driver and owes them.
    pub(crate) unsafe fn capture(&mut self) {
        self.flags = libc::fcntl(self.visible, libc::F_GETFL);
        let number = *T::descriptor(self.real);
        let blocked = blocks(number);
        set_blocks(number, false);
        while let Some(told) = T::ask(self.real) {
            self.owe(T::accept(told, false));
        }
        set_blocks(number, blocked);
    }

    /// Will [`Self::settle`] change what the program's number stands for?
    pub(crate) fn changes(&self, expecting: bool) -> bool {
        (expecting || !self.owed.lock().is_empty()) != (self.wake >= 0)
    }

    /// The program is about to run: covers the descriptor, or takes the cover away.
    pub(crate) unsafe fn settle(&mut self, expecting: bool) {
        let owes = !self.owed.lock().is_empty();
        if expecting || owes {
            if self.wake < 0 && !fds::with_more_room(|| self.cover()) {
                crate::say("slackwater-ib: there is no descriptor left: whoever polls for RDMA events may miss one");
            }
        } else if self.wake >= 0 {
            self.uncover();
        }
        let plain = self.wake < 0;
        if !plain {
            set_blocks(self.beside, false);
            self.blocks.store(false, Relaxed);
            if owes {
                self.ring();
            }
        }
        self.plain.store(plain, Release);
        self.expecting.store(expecting, Release);
        self.epoch.fetch_add(1, AcqRel);
    }

    unsafe fn cover(&mut self) -> bool {
        if self.beside < 0 {
            self.beside = libc::fcntl(self.visible, libc::F_DUPFD_CLOEXEC, 0);
            if self.beside < 0 {
                return false;
            }
            protect_fd(self.beside);
            *T::descriptor(self.real) = self.beside;
        }
        let wake = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let watched = [self.beside, wake].into_iter().all(|fd| {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event) == 0
        });
        let blocks = blocks(self.visible);
        let covered = watched && libc::dup3(set, self.visible, libc::O_CLOEXEC) >= 0;
        libc::close(set);
        if !covered {
            libc::close(wake);
            return false;
        }
        set_blocks(self.visible, blocks);
        self.wake = wake;
        protect_fd(wake);
        true
    }

    unsafe fn uncover(&mut self) {
        set_blocks(self.beside, blocks(self.visible));
        libc::dup3(self.beside, self.visible, libc::O_CLOEXEC);
        unprotect_fd(self.wake);
        libc::close(self.wake);
        self.wake = -1;
    }

    /// Closes what is ours; the driver closes the number that it has.
    pub(crate) unsafe fn close(&self) {
        self.numbers().for_each(unprotect_fd);
        if self.beside >= 0 {
            libc::close(self.visible);
        }
        if self.wake >= 0 {
            unprotect_fd(self.wake);
            libc::close(self.wake);
        }
    }
}
