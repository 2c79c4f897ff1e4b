//! Socket options that a restart sets again. Those that are as a fresh socket has them are not even noted.
use alloc::vec::Vec;

use crate::model::{Socket, State};
use crate::{multicast, sys};

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
/// TCP's urgent byte is among the others.
pub const SO_OOBINLINE: i32 = 10;
/// Where a peek begins.
pub const SO_PEEK_OFF: i32 = 42;

// SOL_SOCKET. Of all: KEEPALIVE 9, PRIORITY 12, LINGER, REUSEPORT 15, RCVLOWAT, RCVTIMEO 20, SNDTIMEO 21, TIMESTAMP 29, PEEK_OFF,
// BUF_LOCK. Each costs a system call a socket (1,000 connections are not rare), so each is asked only where it means something.
const GENERAL: &[i32] = &[SO_REUSEADDR, 9, 12, SO_LINGER, 15, SO_RCVLOWAT, 20, 21, 29, SO_PEEK_OFF, SO_BUF_LOCK];
const BUFFERS: &[i32] = &[SO_SNDBUF, SO_RCVBUF];
// PASSCRED 16, PASSSEC 34, TIMESTAMPNS 35.
const OF_UNIX: &[i32] = &[16, 34, 35];
// OOBINLINE, BINDTODEVICE 25.
const OF_INTERNET: &[i32] = &[SO_OOBINLINE, 25];
// BROADCAST 6, TIMESTAMPNS 35.
const OF_DATAGRAMS: &[i32] = &[6, 35];
// NODELAY 1, CORK 3, KEEPIDLE 4, KEEPINTVL 5, KEEPCNT 6, LINGER2 8, CONGESTION 13, USER_TIMEOUT 18, NOTSENT_LOWAT 25.
const OF_TCP: &[i32] = &[1, 3, 4, 5, 6, 8, 13, 18, 25];
// SYNCNT 7, DEFER_ACCEPT 9, FASTOPEN 23.
const OF_TCP_UNCONNECTED: &[i32] = &[7, 9, 23];
// TOS 1, TTL 2, MTU_DISCOVER 10, RECVERR 11.
const OF_IP: &[i32] = &[1, 2, 10, 11];
// FREEBIND 15.
const OF_IP_UNCONNECTED: &[i32] = &[15];
// PKTINFO 8, RECVTTL 12, RECVTOS 13, MULTICAST_IF 32, MULTICAST_TTL 33, MULTICAST_LOOP 34, MULTICAST_ALL 49.
const OF_IP_DATAGRAMS: &[i32] = &[8, 12, 13, 32, 33, 34, 49];
// UNICAST_HOPS 16, RECVERR 25, V6ONLY 26, TCLASS 67.
const OF_IP6: &[i32] = &[16, 25, 26, 67];
// MULTICAST_IF 17, MULTICAST_HOPS 18, MULTICAST_LOOP 19, MULTICAST_ALL 29, RECVPKTINFO 49, RECVTCLASS 66.
const OF_IP6_DATAGRAMS: &[i32] = &[17, 18, 19, 29, 49, 66];

/// What a fresh socket has of the options of one kind of sockets, in the order in which they are read.
pub type Fresh = Vec<(i32, i32, Option<Value>)>;

/// An option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    bytes: [u8; 32],
    length: usize,
}

impl Value {
    fn read(fd: i32, level: i32, name: i32) -> Option<Self> {
        let mut bytes = [0u8; 32];
        sys::getsockopt_into(fd, level, name, &mut bytes).ok().map(|length| Self { bytes, length })
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

// The options that a socket of this kind may have.
fn names(s: &Socket) -> impl Iterator<Item = (i32, i32)> {
    let internet = s.family == libc::AF_INET || s.family == libc::AF_INET6;
    let stream = s.kind == libc::SOCK_STREAM;
    let six = s.family == libc::AF_INET6;
    let connected = s.state == State::Connected;
    let lists: [(bool, i32, &[i32]); 11] = [
        (true, SOCKET, GENERAL),
        (s.family == libc::AF_UNIX, SOCKET, OF_UNIX),
        (internet, SOCKET, OF_INTERNET),
        (internet && !stream, SOCKET, OF_DATAGRAMS),
        (internet, IP, OF_IP),
        (internet && !stream, IP, OF_IP_DATAGRAMS),
        (six, IP6, OF_IP6),
        (six && !stream, IP6, OF_IP6_DATAGRAMS),
        (internet && stream, TCP, OF_TCP),
        (internet && stream && !connected, TCP, OF_TCP_UNCONNECTED),
        (internet && !connected, IP, OF_IP_UNCONNECTED),
    ];
    let wanted = lists.into_iter().filter(|(wanted, ..)| *wanted);
    wanted.flat_map(|(_, level, names)| names.iter().map(move |name| (level, *name)))
}

/// What a fresh socket of the kind of `s` has; names alone, if none can be made.
pub fn fresh(s: &Socket) -> Fresh {
    let fd = sys::socket(s.family, s.kind, s.protocol).ok();
    let value = |level, name| fd.as_ref().and_then(|fd| Value::read(fd.0, level, name));
    names(s).map(|(level, name)| (level, name, value(level, name))).collect()
}

/// The options of a socket that are not as in `fresh`.
pub fn read(fd: i32, s: &Socket, fresh: &Fresh) -> Vec<(i32, i32, Vec<u8>)> {
    let mut out = Vec::new();
    let mut untuned = true;
    for &(level, name, other) in fresh {
        let Some(value) = Value::read(fd, level, name) else { continue };
        if (level, name) == (SOCKET, SO_BUF_LOCK) {
            untuned = value.get().iter().any(|b| *b != 0);
        }
        if other != Some(value) {
            out.push((level, name, value.get().to_vec()));
        }
    }
    // Sizes that the kernel tunes by itself are not the program's. A kernel before 5.14 does not say which are.
    if untuned {
        for &name in BUFFERS {
            out.extend(Value::read(fd, SOCKET, name).map(|value| (SOCKET, name, value.get().to_vec())));
        }
    }
    if s.protocol == libc::IPPROTO_UDP && s.kind == libc::SOCK_DGRAM && s.family != libc::AF_UNIX {
        let all = multicast::memberships(fd, s.family).into_iter();
        out.extend(all.map(|group| (multicast::level(&group), multicast::MCAST_JOIN_GROUP, group)));
    }
    out
}

/// All options that `s` had: the noted ones, and the rest as in `fresh`.
#[cfg(feature = "rebuild")]
pub fn complete(s: &Socket, fresh: &Fresh) -> Vec<(i32, i32, Vec<u8>)> {
    let noted = |level, name| s.options.iter().any(|(l, n, _)| (*l, *n) == (level, name));
    let rest = fresh.iter().filter(|(level, name, _)| !noted(*level, *name));
    let rest = rest.filter_map(|(level, name, value)| Some((*level, *name, value.as_ref()?.get().to_vec())));
    rest.chain(s.options.iter().cloned()).collect()
}

/// The captured value of an int option.
pub fn int(s: &Socket, level: i32, name: i32) -> Option<i32> {
    let (.., value) = s.options.iter().find(|(l, n, _)| (*l, *n) == (level, name))?;
    Some(i32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}
