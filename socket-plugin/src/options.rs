//! Socket options that a restart sets again. Those that are as a fresh socket has them are left alone.
use alloc::{vec, vec::Vec};

use crate::model::Socket;
use crate::sys;

const SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const IP: i32 = libc::IPPROTO_IP;
const IP6: i32 = libc::IPPROTO_IPV6;

/// SO_RCVBUF and SO_SNDBUF read as double of what was set.
pub const SO_SNDBUF: i32 = 7;
/// As above.
pub const SO_RCVBUF: i32 = 8;
/// Which of the two the program has fixed: 1 SNDBUF, 2 RCVBUF (Linux 5.14).
pub const SO_BUF_LOCK: i32 = 72;
/// Bytes that must lie there before a read wakes up; left for the end of a rebuild.
pub const SO_RCVLOWAT: i32 = 18;
/// Left for the end of a rebuild: needed meanwhile.
pub const SO_REUSEADDR: i32 = 2;
/// As above: a closing peer must not wait.
pub const SO_LINGER: i32 = 13;

// All of SOL_SOCKET: BROADCAST 6, SNDBUF, RCVBUF, KEEPALIVE 9, OOBINLINE 10, PRIORITY 12, LINGER, REUSEPORT 15, PASSCRED 16,
// RCVLOWAT 18, RCVTIMEO 20, SNDTIMEO 21, BINDTODEVICE 25, TIMESTAMP 29, PASSSEC 34, TIMESTAMPNS 35, PEEK_OFF 42, BUF_LOCK.
const GENERAL: &[i32] = &[SO_REUSEADDR, 6, 7, 8, 9, 10, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 42, 72];
// NODELAY 1, CORK 3, KEEPIDLE 4, KEEPINTVL 5, KEEPCNT 6, SYNCNT 7, LINGER2 8, DEFER_ACCEPT 9, CONGESTION 13, USER_TIMEOUT 18,
// FASTOPEN 23, NOTSENT_LOWAT 25.
const OF_TCP: &[i32] = &[1, 3, 4, 5, 6, 7, 8, 9, 13, 18, 23, 25];
// TOS 1, TTL 2, PKTINFO 8, MTU_DISCOVER 10, RECVERR 11, RECVTTL 12, RECVTOS 13, FREEBIND 15, MULTICAST_TTL 33, MULTICAST_LOOP 34.
const OF_IP: &[i32] = &[1, 2, 8, 10, 11, 12, 13, 15, 33, 34];
// UNICAST_HOPS 16, MULTICAST_HOPS 18, MULTICAST_LOOP 19, RECVERR 25, V6ONLY 26, RECVPKTINFO 49, RECVTCLASS 66, TCLASS 67.
const OF_IP6: &[i32] = &[16, 18, 19, 25, 26, 49, 66, 67];

/// The options of a socket.
pub fn read(fd: i32, s: &Socket) -> Vec<(i32, i32, Vec<u8>)> {
    let mut levels: Vec<(i32, &[i32])> = vec![(SOCKET, GENERAL)];
    if s.family == libc::AF_INET || s.family == libc::AF_INET6 {
        levels.push((IP, OF_IP));
        if s.family == libc::AF_INET6 {
            levels.push((IP6, OF_IP6));
        }
        if s.kind == libc::SOCK_STREAM {
            levels.push((TCP, OF_TCP));
        }
    }
    let mut out = Vec::new();
    for (level, names) in levels {
        for &name in names {
            if let Ok(value) = sys::getsockopt_bytes(fd, level, name, 32) {
                out.push((level, name, value));
            }
        }
    }
    out
}

/// The captured value of an int option.
pub fn int(s: &Socket, level: i32, name: i32) -> Option<i32> {
    let (.., value) = s.options.iter().find(|(l, n, _)| (*l, *n) == (level, name))?;
    Some(i32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}
