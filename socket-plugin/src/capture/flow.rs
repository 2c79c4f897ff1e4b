//! Bytes that are under way in TCP: made to arrive, without a byte of them being received or sent.
use super::{describe, tcp_info};
use crate::diag::Diag;
use crate::model::{Socket, State, Tcp};
use crate::sys;

/// Whether all that was written to this TCP connection, in both directions, has arrived at its other end, as far as
/// that is on this host. What the peer's full window keeps back is helped along by widening this side's window.
///
/// In the `first` round only this side's direction is looked at, by one call if all is acknowledged: the other end looks at its
/// own, but where nobody holds it any more: it was closed, and still sends. If that is not enough, somebody wants another round,
/// and in that all is looked at.
pub fn quiet(fd: i32, s: &mut Socket, diag: &Diag, first: bool) -> bool {
    if s.protocol != libc::IPPROTO_TCP || s.saved {
        return true;
    }
    // Of one that is not connected this is 0, or an error.
    let unacknowledged = sys::ioctl_get::<i32>(fd, 0x5411 /* SIOCOUTQ */).unwrap_or(0);
    if first && unacknowledged == 0 && !diag.closing().is_ok_and(|closing| !closing.is_empty()) {
        return true;
    }
    if describe(fd, s, diag).is_err() || s.state != State::Connected {
        return true;
    }
    let (written, arrived) = own_counters(fd);
    match diag.tcp(&s.peer, &s.local) {
        // Nobody has accepted it: what it holds is refused anyhow, as long as it is not taken apart.
        Ok(Some(peer)) if peer.inode == 0 && peer.unread > 0 && matches!(peer.state, 1 | 8) => true,
        // What it has sent came before its end, which has arrived.
        Ok(Some(peer)) if peer.remnant => unacknowledged == 0,
        Ok(Some(peer)) => {
            if peer.written > arrived {
                let fixed = widen(fd);
                s.widened = s.widened.or(fixed);
            }
            if written > peer.arrived {
                push(fd);
            }
            // The end of the stream arrives like a byte.
            let end = !Tcp::fin_unacknowledged(peer.state) || s.tcp.is_some_and(|tcp| Tcp::fin_arrived(tcp.state));
            peer.written <= arrived && written <= peer.arrived && end
        }
        // The peer is on another host, or gone.
        _ => unacknowledged == 0,
    }
}

/// Takes back what [`quiet`] changed, but for the size of a receive buffer: the peer may send as much as it has been promised by
/// now, and what finds no room is dropped until its timers send it again (segments as long as loopback's for ever: Linux 6.16
/// takes none that is longer than what is free). Such a buffer is as large as it has become from now on, and fixed again.
pub fn settle(fd: i32, s: &mut Socket) {
    use crate::options::SO_BUF_LOCK;
    if s.widened.is_some() {
        let locks = sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, SO_BUF_LOCK, locks | 2);
    }
}

/// Lets the receive window grow as far as the system allows (tcp(7), tcp_rmem): SO_RCVLOWAT does that without fixing the
/// buffer's size for ever, as SO_RCVBUF would. A peek then makes the kernel tell the sender. A size that the program fixed is
/// unlocked (Linux 5.14): it is the answer.
pub(crate) fn widen(fd: i32) -> Option<i32> {
    use crate::options::{SO_BUF_LOCK, SO_RCVBUF, SO_RCVLOWAT};
    let get = |name| sys::getsockopt::<i32>(fd, libc::SOL_SOCKET, name).ok();
    let set = |name, value| {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, name, value);
    };
    let (low, size, locks) = (get(SO_RCVLOWAT)?, get(SO_RCVBUF)?, get(SO_BUF_LOCK).unwrap_or(0));
    let fixed = locks & 2 != 0;
    if fixed {
        set(SO_BUF_LOCK, locks & !2);
    }
    set(SO_RCVLOWAT, i32::MAX / 2);
    set(SO_RCVLOWAT, low);
    nudge(fd);
    fixed.then_some(size)
}

/// Sends what Nagle's algorithm, or TCP_CORK, holds back for an acknowledgement that may be delayed by 40 ms.
pub(crate) fn push(fd: i32) {
    let Ok(old) = sys::getsockopt::<i32>(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY) else { return };
    let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let _ = sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, old);
}

// Peeks at one byte, at which the kernel reconsiders the receive window.
fn nudge(fd: i32) {
    let mut part = [0u8; 1];
    let _ = super::queue::receive(fd, &mut part, libc::MSG_PEEK);
}

fn own_counters(fd: i32) -> (u64, u64) {
    tcp_info(fd).map_or((0, 0), |info| crate::tcp_counters(&info))
}
