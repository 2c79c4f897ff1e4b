//! POSIX message queues (mq_overview(7)).
//!
//! The kernel shows a queue's attributes and who is notified, but lets nobody look at a message. So the one process that
//! saves a queue receives all of them and sends them again in the same order, which within a priority is that of arrival.
//!
//! Rules: all processes of the computation stand, so none sees the queue in between, and none waits in it (a wait has been
//! interrupted, and begins again). A notification would go off when the first message is back: its owner, who alone may,
//! takes it off before and asks for it again; therefore it is the owner who saves such a queue. To close *any* descriptor of
//! a queue takes off a notification of the process, too: one of ours is only opened where the program's does not serve, and
//! what that cost is asked for again, and nothing may fail between. While a notification is off another process that describes the queue would not see it,
//! and would take itself for one who may save it: so who has any other descriptor that can be read uses that one. What is left is a
//! process that is notified of a queue of which it has nothing but what can be written. A process outside of the computation could see the queue empty for a moment.
//!
//! A notification by a thread (SIGEV_THREAD) is 32 bytes of the C library's that the kernel sends to a netlink socket of the
//! process, where a thread of the C library waits for them; it is shown to nobody. But when it is taken off, the kernel sends
//! those bytes, too: so we take them from the socket, before that thread, and ask with them again.
#![allow(unsafe_code)] // Reason: system calls that no safe wrapper covers.
use super::{CaptureError, Result};
use crate::model::{Kind, MessageQueue, Notice, Table};
use alloc::{format, vec, vec::Vec};
use core::ptr;
use slackwater_socket::sys::{self, Errno};

const DELETED: &[u8] = b" (deleted)";
/// For mq_timedsend(3) and mq_timedreceive(3): long ago, so that they do not wait.
static AT_ONCE: [i64; 2] = [0; 2];
/// NOTIFY_COOKIE_LEN of <linux/mqueue.h>.
const COOKIE: usize = 32;
/// NOTIFY_REMOVED: the last byte of what the kernel sends when a notification is taken off.
const REMOVED: u8 = 2;
/// struct mq_attr: flags, most messages, longest message, messages now; and four that are not used.
type Attributes = [libc::c_long; 8];

/// The queue without its messages.
pub fn describe(fd: i32, st: &libc::stat, link: &[u8]) -> Result<Kind> {
    let deleted = st.st_nlink == 0;
    let name = if deleted { link.strip_suffix(DELETED).unwrap_or(link) } else { link };
    let attributes = attributes(fd)?;
    let flags = sys::fcntl(fd, libc::F_GETFL, 0).map_err(|e| CaptureError::call(fd, "fcntl(F_GETFL)", e))?;
    let read = |fd| read_notice(fd, name).map_err(|e| CaptureError::call(fd, "reading a message queue", e));
    let mut notice = None;
    if flags & libc::O_ACCMODE != libc::O_WRONLY {
        notice = read(fd)?;
    } else if let Some(readable) = readable(st) {
        notice = read(readable)?;
    } else {
        // Asked before, for once it is open there is no way back: to close `own` takes the notification off, too, and the C
        // library's thread then throws away all that it takes to ask again.
        thread_sockets(fd)?;
        // (Who may not read a queue does not save it.)
        if let Ok(own) = sys::open(&sys::proc_path("/proc/self/fd/", fd), libc::O_RDONLY | libc::O_NONBLOCK) {
            notice = take_off(fd, name, read(own.0)?)?;
            drop(own);
            again(fd, notice)?;
        }
    }
    Ok(Kind::MessageQueue(MessageQueue {
        name: name.to_vec(),
        deleted,
        mode: st.st_mode & 0o7777,
        owner: (st.st_uid, st.st_gid),
        most: attributes[1],
        longest: attributes[2],
        notice,
        messages: Vec::new(),
    }))
}

// A descriptor of this process by which this queue can be read.
fn readable(st: &libc::stat) -> Option<i32> {
    let can = |&fd: &i32| {
        sys::fstat(fd).is_ok_and(|other| (other.st_dev, other.st_ino) == (st.st_dev, st.st_ino))
            && sys::fcntl(fd, libc::F_GETFL, 0)
                .is_ok_and(|flags| flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_WRONLY)
    };
    sys::descriptors().ok()?.into_iter().find(can)
}

/// Takes off the notification, if it is this process's. Of one by a thread the answer has all that it takes to ask again.
fn take_off(fd: i32, name: &[u8], notice: Option<Notice>) -> Result<Option<Notice>> {
    let Some(mut mine) = notice.filter(|n| n.pid == sys::getpid()) else { return Ok(notice) };
    let off = || notify(fd, None).map_err(|e| CaptureError::call(fd, "mq_notify", e));
    if mine.how != libc::SIGEV_THREAD {
        return off().map(|_| notice);
    }
    let sockets = thread_sockets(fd)?;
    let mut cookie = [0; COOKIE + 1];
    if sockets.is_empty() {
        return Err(refused(
            fd,
            name,
            "a thread waits for its notification (SIGEV_THREAD), by no socket of this process",
        ));
    }
    off()?;
    for &s in &sockets {
        if receive(s, &mut cookie, libc::MSG_PEEK) == Ok(COOKIE) && cookie[COOKIE - 1] == REMOVED {
            // What was looked at is taken.
            let _ = receive(s, &mut cookie, 0);
            // The kernel sets the last byte itself.
            cookie[COOKIE - 1] = 0;
            mine.signal = s;
            for (word, bytes) in mine.cookie.iter_mut().zip(cookie.chunks_exact(8)) {
                *word = bytes.iter().rev().fold(0, |word, b| word << 8 | u64::from(*b));
            }
            return Ok(Some(mine));
        }
    }
    Err(refused(fd, name, "what the kernel told of its notification (SIGEV_THREAD) has not arrived"))
}

/// Where threads may wait for notifications; none may be under way in them.
fn thread_sockets(fd: i32) -> Result<Vec<i32>> {
    let mut sockets = sys::descriptors().map_err(|e| CaptureError::call(fd, "listing /proc/self/fd", e))?;
    sockets.retain(|&s| is_netlink(s));
    if sockets.iter().any(|&s| receive(s, &mut [0; COOKIE + 1], libc::MSG_PEEK) == Ok(COOKIE)) {
        let reason = "a notification of a message queue (SIGEV_THREAD) is about to be handled";
        return Err(CaptureError { passing: true, ..CaptureError::new(fd, reason) });
    }
    Ok(sockets)
}

fn is_netlink(fd: i32) -> bool {
    let option = |name| sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, name);
    option(libc::SO_DOMAIN) == Ok(libc::AF_NETLINK) && option(libc::SO_PROTOCOL) == Ok(libc::NETLINK_ROUTE)
}

/// recv(2), without waiting; the message's own length.
fn receive(fd: i32, out: &mut [u8], flags: i32) -> sys::Result<usize> {
    let flags = (flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC) as usize;
    // SAFETY: writable for its length.
    unsafe { sys::call(libc::SYS_recvfrom, [fd as usize, out.as_mut_ptr() as usize, out.len(), flags, 0, 0]) }
}

/// Asks for a notification of this process that was taken off.
fn again(fd: i32, notice: Option<Notice>) -> Result<()> {
    if notice.is_some_and(|n| n.pid == sys::getpid()) {
        notify(fd, notice).map_err(|e| CaptureError::call(fd, "mq_notify", e))?;
    }
    Ok(())
}

/// Asks for this process's notifications again, after a restart.
pub fn restarted(table: &Table) -> Result<()> {
    let mut done: Vec<u64> = Vec::new();
    for open in &table.opens {
        if let Kind::MessageQueue(queue) = &open.kind
            && !done.contains(&open.ino)
        {
            done.push(open.ino);
            again(open.fd, queue.notice)?;
        }
    }
    Ok(())
}

/// May this process take the messages out and put them back?
pub const fn can_save(queue: &MessageQueue, me: i32) -> bool {
    match queue.notice {
        Some(notice) => notice.pid == me,
        None => true,
    }
}

/// Takes the messages out and puts them back. All processes of the computation must stand, and no other may do the same.
pub fn fill(fd: i32, queue: &mut MessageQueue) -> Result<()> {
    let name = queue.name.clone();
    if attributes(fd)?[3] == 0 {
        if queue.notice.is_some_and(|n| n.how == libc::SIGEV_THREAD) {
            queue.notice = take_off(fd, &name, queue.notice)?;
            again(fd, queue.notice)?;
        }
        return Ok(());
    }
    let failed = |what: &str, e: Errno| refused(fd, &name, &format!("{what} failed with {e}"));
    if !can_save(queue, sys::getpid()) {
        return Err(refused(fd, &name, "it has messages, and a process outside of the computation waits for others"));
    }
    let flags = sys::fcntl(fd, libc::F_GETFL, 0).map_err(|e| failed("fcntl", e))?;
    queue.notice = take_off(fd, &name, queue.notice)?;
    let own = if flags & libc::O_ACCMODE == libc::O_RDWR {
        Ok(None)
    } else {
        sys::open(&sys::proc_path("/proc/self/fd/", fd), libc::O_RDWR).map(Some).map_err(|e| failed("opening it", e))
    };
    let own = match own {
        Ok(own) => own,
        Err(e) => return again(fd, queue.notice).and(Err(e)),
    };
    let number = own.as_ref().map_or(fd, |own| own.0) as usize;
    // Room for all of them first: what is taken out has to come back.
    let at_once = AT_ONCE.as_ptr() as usize;
    let mut buffer = vec![0u8; queue.longest.max(1) as usize];
    let mut messages: Vec<(u32, Vec<u8>)> = Vec::with_capacity(queue.most.max(0) as usize);
    let received = loop {
        let mut priority = 0u32;
        // SAFETY: room for the longest message, and for its priority; a struct timespec.
        match unsafe {
            sys::call(
                libc::SYS_mq_timedreceive,
                [number, buffer.as_mut_ptr() as usize, buffer.len(), &raw mut priority as usize, at_once, 0],
            )
        } {
            Ok(length) => messages.push((priority, buffer[..length].to_vec())),
            Err(Errno(libc::EAGAIN | libc::ETIMEDOUT)) => break Ok(()),
            Err(Errno(libc::EINTR)) => {}
            Err(e) => break Err(failed("receiving its messages", e)),
        }
    };
    let mut sent = Ok(());
    for (priority, text) in &messages {
        let args = [number, text.as_ptr() as usize, text.len(), *priority as usize, at_once, 0];
        // SAFETY: readable for its length; a struct timespec.
        while let Err(e) = unsafe { sys::call(libc::SYS_mq_timedsend, args) } {
            if e != Errno(libc::EINTR) {
                sent = Err(failed("putting a message back", e));
                break;
            }
        }
    }
    drop(own);
    again(fd, queue.notice)?;
    queue.messages = messages;
    received.and(sent)
}

/// mq_notify(3) by the system call.
fn notify(fd: i32, notice: Option<Notice>) -> sys::Result<usize> {
    // struct sigevent: value, signal and kind of notification, and room that is not used.
    // By a thread: the address of what is sent, and the socket it is sent to.
    let cookie = notice.map_or([0; 4], |n| n.cookie);
    let value = |n: Notice| if n.how == libc::SIGEV_THREAD { cookie.as_ptr() as u64 } else { n.value };
    let event = notice.map(|n| [value(n), n.signal as u32 as u64 | (n.how as u64) << 32, 0, 0, 0, 0, 0, 0]);
    let pointer = event.as_ref().map_or(ptr::null(), |e| e.as_ptr());
    // SAFETY: a whole struct sigevent, with NOTIFY_COOKIE_LEN bytes if it is one by a thread; or none.
    unsafe { sys::call(libc::SYS_mq_notify, [fd as usize, pointer as usize, 0, 0, 0, 0]) }
}

/// `QSIZE:5          NOTIFY:0     SIGNO:12    NOTIFY_PID:4711`.
fn read_notice(fd: i32, name: &[u8]) -> sys::Result<Option<Notice>> {
    let mut text = [0; 128];
    let length = sys::pread(fd, &mut text, 0)?;
    let field = |key: &[u8]| {
        let at = text[..length].windows(key.len()).position(|w| w == key)? + key.len();
        let digits = text[at..length].iter().take_while(|b| b.is_ascii_digit()).count();
        sys::decimal(&text[at..at + digits]).map(|n| n as i32)
    };
    let known = || {
        let pid = field(b"NOTIFY_PID:").filter(|&pid| pid > 0)?;
        let value = crate::watched::notice(name).map_or(0, |(_, value)| value);
        Some(Notice { pid, how: field(b" NOTIFY:")?, signal: field(b"SIGNO:")?, value, cookie: [0; 4] })
    };
    Ok(known())
}

fn attributes(fd: i32) -> Result<Attributes> {
    let mut out = Attributes::default();
    // SAFETY: a struct mq_attr to be filled.
    unsafe { sys::call(libc::SYS_mq_getsetattr, [fd as usize, 0, out.as_mut_ptr() as usize, 0, 0, 0]) }
        .map_err(|e| CaptureError::call(fd, "mq_getattr", e))?;
    Ok(out)
}

fn refused(fd: i32, name: &[u8], why: &str) -> CaptureError {
    CaptureError::new(fd, format!("POSIX message queue {} cannot be saved: {why}", sys::lossy(name)))
}
