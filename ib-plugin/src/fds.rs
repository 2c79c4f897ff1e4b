//! Descriptor numbers that the program holds, over a restart: kept free for what belongs there, and put back into the
//! program's epoll sets, which the runtime rebuilds without them.
//!
//! # Safety
//! Plain system calls; raw ones where libc's function would allocate.
use crate::quiesce::contexts;
use crate::sync::Lock;
use alloc::vec::Vec;
use core::ffi::{CStr, c_int};

/// Occupies these numbers, where nothing is open, until their real owner comes (by dup3(2)).
pub(crate) fn hold(numbers: &[c_int]) {
    // SAFETY: an eventfd of ours; only free numbers are taken.
    unsafe {
        let high = numbers.iter().copied().max().unwrap_or(0) + 1;
        let one = libc::eventfd(0, libc::EFD_CLOEXEC);
        let filler = libc::fcntl(one, libc::F_DUPFD_CLOEXEC, high);
        libc::close(one);
        if filler < 0 {
            return;
        }
        for &n in numbers {
            if libc::fcntl(n, libc::F_GETFD) < 0 {
                libc::dup3(filler, n, libc::O_CLOEXEC);
            }
        }
        libc::close(filler);
    }
}

/// One registration of a descriptor of ours in an epoll set of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watch {
    set: c_int,
    fd: c_int,
    events: u32,
    data: u64,
}

/// From SAVE until the program runs again; None: not looked for yet.
static WATCHES: Lock<Option<Vec<Watch>>> = Lock::new(None);

fn visible() -> Vec<c_int> {
    let mut all = crate::cm::descriptors();
    for ctx in contexts() {
        // SAFETY: listed objects are live.
        unsafe {
            all.push((*ctx).events.visible());
            all.extend((*ctx).objects.lock().channels.0.iter().map(|&c| (*c).source.visible()));
        }
    }
    all
}

fn read_file(path: &CStr, into: &mut Vec<u8>) {
    into.clear();
    // SAFETY: the buffer has the room that is named.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return;
        }
        loop {
            into.reserve(4096);
            let n = libc::read(fd, into.as_mut_ptr().add(into.len()).cast(), 4096);
            if n <= 0 {
                break;
            }
            into.set_len(into.len() + n as usize);
        }
        libc::close(fd);
    }
}

/// `tfd:        6 events:       19 data:                6  pos:...` of proc(5).
fn parse(line: &str, set: c_int) -> Option<Watch> {
    let mut words = line.split_ascii_whitespace();
    let mut field = |name: &str| (words.next() == Some(name)).then(|| words.next()).flatten();
    let fd = field("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(field("events:")?, 16).ok()?;
    let data = u64::from_str_radix(field("data:")?, 16).ok()?;
    Some(Watch { set, fd, events, data })
}

/// Finds the program's epoll sets that watch descriptors of ours; while it stands.
pub(crate) fn note_watches() {
    *WATCHES.lock() = Some(watches());
}

fn watches() -> Vec<Watch> {
    let mine = visible();
    let mut watches = Vec::new();
    if mine.is_empty() {
        return watches;
    }
    let mut text = Vec::new();
    for set in 0..65536 {
        // SAFETY: asks only whether the number is in use.
        if unsafe { libc::fcntl(set, libc::F_GETFD) } < 0 {
            if set > 4096 {
                break;
            }
            continue;
        }
        if mine.contains(&set) {
            continue;
        }
        let path = alloc::format!("/proc/self/fdinfo/{set}\0");
        let Ok(path) = CStr::from_bytes_with_nul(path.as_bytes()) else { continue };
        read_file(path, &mut text);
        for line in core::str::from_utf8(&text).unwrap_or("").lines().filter(|l| l.starts_with("tfd:")) {
            if let Some(watch) = parse(line, set)
                && mine.contains(&watch.fd)
            {
                watches.push(watch);
            }
        }
    }
    watches
}

fn control(w: &Watch, what: c_int) {
    let mut event = libc::epoll_event { events: w.events, u64: w.data };
    // SAFETY: a plain system call.
    unsafe { libc::epoll_ctl(w.set, what, w.fd, &mut event) };
}

/// Descriptors of ours are about to stand for something else: the epoll sets let go of what they stood for, which may live on.
pub(crate) fn unwatch() {
    let mut noted = WATCHES.lock();
    noted.get_or_insert_with(watches).iter().for_each(|w| control(w, libc::EPOLL_CTL_DEL));
}

/// Forgets the epoll sets, having put the descriptors back if they were taken out or the sets are new.
pub(crate) fn watch_again(gone: bool) {
    for w in WATCHES.lock().take().iter().flatten().filter(|_| gone) {
        // Those that the runtime has restored itself: the number may be watched for another file.
        control(w, libc::EPOLL_CTL_DEL);
        control(w, libc::EPOLL_CTL_ADD);
    }
}

/// Runs `f`; if it fails, once more with as many descriptors as the hard limit allows, which the program need not leave us any of.
pub(crate) fn with_more_room(mut f: impl FnMut() -> bool) -> bool {
    if f() {
        return true;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structs live through the calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: limit.rlim_max, ..limit });
    }
    let done = f();
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_of_an_epoll_set() {
        let line = "tfd:        6 events:       19 data:      7f00000000ff  pos:0 ino:3d sdev:e";
        assert_eq!(parse(line, 4), Some(Watch { set: 4, fd: 6, events: 0x19, data: 0x7f00_0000_00ff }));
        assert_eq!(parse("flags:\t02", 4), None);
    }
}
