//! What the program told the kernel, and the kernel will not tell. Paths of what has an inotify watch: it tells its inode
//! alone, so the agent's wrapper of inotify_add_watch(2) writes down what each path led to. And the value that comes with
//! the signal of mq_notify(3).
//!
//! Rules: the caller is neither stopped nor signalled while it holds the lock; a fork takes it, so that the child finds it
//! free.
#![allow(unsafe_code)] // Reason: a lock of our own, for code that may use no library's.
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::*};
use slackwater_socket::sys;

/// Device and inode, and the path that led there.
type Known = ((u64, u64), Vec<u8>);

/// Name of a message queue, and kind and value of the last notification that this process asked for.
type Asked = (Vec<u8>, (i32, u64));

struct Shared {
    lock: AtomicBool,
    known: UnsafeCell<Vec<Known>>,
    asked: UnsafeCell<Vec<Asked>>,
}

// SAFETY: the lists are only touched under `lock`.
unsafe impl Sync for Shared {}
static SHARED: Shared =
    Shared { lock: AtomicBool::new(false), known: UnsafeCell::new(Vec::new()), asked: UnsafeCell::new(Vec::new()) };

/// How many are kept: a program that watches more loses the oldest.
const MOST: usize = 1 << 16;

/// Takes the lock: before a fork.
pub fn lock() {
    while SHARED.lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
        core::hint::spin_loop();
    }
}

/// Gives it back: after a fork, in both.
pub fn unlock() {
    SHARED.lock.store(false, Release);
}

/// What `fd` is open on has got a watch.
pub fn remember(fd: i32) {
    let (Ok(st), Ok(path)) = (sys::fstat(fd), sys::readlink(&sys::proc_path("/proc/self/fd/", fd))) else { return };
    let key = (st.st_dev, st.st_ino);
    lock();
    // SAFETY: the lock is ours.
    let known = unsafe { &mut *SHARED.known.get() };
    known.retain(|(other, _)| *other != key);
    if known.len() >= MOST {
        known.remove(0);
    }
    known.push((key, path));
    unlock();
}

/// The path that led to this inode when it got its watch, if it still does.
pub fn find(key: (u64, u64)) -> Option<Vec<u8>> {
    lock();
    // SAFETY: the lock is ours.
    let known = unsafe { &*SHARED.known.get() };
    let path = known.iter().find(|(other, _)| *other == key).map(|(_, path)| path.clone());
    unlock();
    path.filter(|path| sys::stat(path).is_ok_and(|st| (st.st_dev, st.st_ino) == key))
}

/// A notification of this kind and value was asked for at the message queue `fd`.
pub fn remember_notice(fd: i32, how: i32, value: u64) {
    let Ok(name) = sys::readlink(&sys::proc_path("/proc/self/fd/", fd)) else { return };
    lock();
    // SAFETY: the lock is ours.
    let asked = unsafe { &mut *SHARED.asked.get() };
    asked.retain(|(other, _)| *other != name);
    if asked.len() >= MOST {
        asked.remove(0);
    }
    asked.push((name, (how, value)));
    unlock();
}

/// Kind and value of the last notification that this process asked for at the queue of this name.
pub fn notice(name: &[u8]) -> Option<(i32, u64)> {
    lock();
    // SAFETY: the lock is ours.
    let asked = unsafe { &*SHARED.asked.get() };
    let found = asked.iter().find(|(other, _)| other == name).map(|(_, notice)| *notice);
    unlock();
    found
}
