//! POSIX message queues, in the root of the tree, in a restart's own IPC namespace, where no other has their names.
//!
//! Queues without a name come first: each is made under its old name, and unlinked at once. Notifications are asked for by
//! the agent of the process that waits for them (`capture::restarted`).
#![allow(unsafe_code)] // Reason: system calls.
use super::{Id, Prepared, Result, os};
use crate::model::{Kind, MessageQueue};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Error};

/// Makes all queues, and all descriptions of them.
pub fn all(p: &mut Prepared<'_>) -> Result<()> {
    let queue = |kind: &Kind| if let Kind::MessageQueue(queue) = kind { Some(queue.clone()) } else { None };
    let mut leads: Vec<(bool, Id, MessageQueue)> = p
        .groups
        .iter()
        .into_iter()
        .filter_map(|(lead, _)| queue(&p.open(lead).kind).map(|q| (!q.deleted, lead, q)))
        .collect();
    leads.sort_by_key(|(named, lead, _)| (*named, *lead));
    let mut inodes: BTreeMap<(u64, u64), i32> = BTreeMap::new();
    for (_, lead, q) in leads {
        let open = p.open(lead);
        let (key, flags) = ((open.dev, open.ino), open.flags & (libc::O_ACCMODE | libc::O_NONBLOCK));
        let name = String::from_utf8_lossy(&q.name).into_owned();
        let inode = match inodes.get(&key) {
            Some(&fd) => fd,
            None => {
                // One process had its messages.
                let saved = p.tables.iter().flat_map(|(_, t)| &t.opens).find_map(|o| match &o.kind {
                    Kind::MessageQueue(q) if (o.dev, o.ino) == key && !q.messages.is_empty() => Some(&q.messages[..]),
                    _ => None,
                });
                let fd = make(&q, saved.unwrap_or_default()).and_then(|fd| os::raise(fd, p.base)).map_err(|e| {
                    p.error(lead, format!("making POSIX message queue {name} again (the limits are in /proc/sys/fs/mqueue, and `ulimit -q`)"), e)
                })?;
                inodes.insert(key, fd);
                fd
            }
        };
        let fd = os::reopen(inode, flags)
            .and_then(|fd| os::raise(fd, p.base))
            .map_err(|e| p.error(lead, format!("opening POSIX message queue {name}"), e))?;
        p.made.insert(lead, fd);
    }
    inodes.into_values().for_each(os::close);
    Ok(())
}

fn check(r: i64) -> io::Result<i64> {
    if r < 0 { Err(Error::last_os_error()) } else { Ok(r) }
}

fn make(q: &MessageQueue, messages: &[(u32, Vec<u8>)]) -> io::Result<i32> {
    // A new namespace has the kernel's defaults.
    for (limit, needed) in [("msg_max", q.most), ("msgsize_max", q.longest)] {
        let path = format!("/proc/sys/fs/mqueue/{limit}");
        let now = std::fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(needed);
        if now < needed {
            std::fs::write(path, needed.to_string())?;
        }
    }
    let name = CString::new(q.name.as_slice()).map_err(|_| Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: all zeros is a mq_attr; a terminated name; messages are readable for their length.
    unsafe {
        let mut attributes: libc::mq_attr = core::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (q.most, q.longest);
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let fd = check(libc::mq_open(name.as_ptr(), flags, 0o600 as libc::mode_t, &raw mut attributes).into())? as i32;
        if q.deleted {
            check(libc::mq_unlink(name.as_ptr()).into())?;
        }
        os::chmod(fd, q.mode)?;
        // In a user namespace there are no other users.
        let _ = libc::fchown(fd, q.owner.0, q.owner.1);
        for (priority, text) in messages {
            check(libc::mq_send(fd, text.as_ptr().cast(), text.len(), *priority).into())?;
        }
        Ok(fd)
    }
}
