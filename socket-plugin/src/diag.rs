//! sock_diag(7): what no call on the socket itself tells: a Unix socket's peer, a TCP peer's counters on the same host.
#![allow(unsafe_code)] // Reason: sendto and recvfrom on a netlink socket of our own.
use alloc::{vec, vec::Vec};

use crate::address::Endpoint;
use crate::sys::{self, Owned, Result};

/// A sock_diag socket; one serves many questions.
#[derive(Debug)]
pub struct Diag(Owned);

/// Of a Unix socket.
#[derive(Clone, Debug, Default)]
pub struct UnixFacts {
    /// TCP_ESTABLISHED 1, TCP_CLOSE 7, TCP_LISTEN 10.
    pub state: u8,
    /// Inode of the peer; 0: one not accepted yet.
    pub peer: Option<u32>,
    /// Inodes of clients that wait to be accepted.
    pub pending: Vec<u32>,
    /// Backlog, of a listening socket.
    pub backlog: u32,
    /// sk_shutdown: RCV 1, SEND 2.
    pub shutdown: u8,
    /// Device (the kernel's own form) and inode of its file.
    pub file: Option<(u32, u32)>,
}

/// Of a TCP socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpFacts {
    /// State.
    pub state: u8,
    /// Inode; 0: not accepted yet, or closed by its program.
    pub inode: u32,
    /// Bytes that its program has not read.
    pub unread: u32,
    /// Payload written in all.
    pub written: u64,
    /// Payload arrived in all.
    pub arrived: u64,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

impl Diag {
    /// Opens one.
    pub fn new() -> Result<Self> {
        sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, 4 /* NETLINK_SOCK_DIAG */).map(Self)
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let mut request = Vec::with_capacity(16 + body.len());
        request.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&flags.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(body);
        sys::write(self.0.0, &request).map(|_| ())
    }

    // Sends one request, gives the answer's payload; None: no such socket.
    fn ask(&self, kind: u16, body: &[u8]) -> Result<Option<Vec<u8>>> {
        // NLM_F_REQUEST 1, NLM_F_ACK 4.
        self.send(kind, if kind == SOCK_DESTROY { 5 } else { 1 }, body)?;
        let mut answer = vec![0u8; 16 * 1024];
        let n = sys::read(self.0.0, &mut answer)?;
        answer.truncate(n);
        // An error message (NLMSG_ERROR 2): -ENOENT, mostly.
        if n < 16 || u16_at(&answer, 4) != SOCK_DIAG_BY_FAMILY {
            return Ok(None);
        }
        let length = (u32_at(&answer, 0) as usize).min(n);
        answer.truncate(length);
        answer.drain(..16);
        Ok(Some(answer))
    }

    /// A Unix socket by inode.
    pub fn unix(&self, ino: u64) -> Result<Option<UnixFacts>> {
        // struct unix_diag_req of <linux/unix_diag.h>: NAME, VFS, PEER, ICONS, RQLEN are asked for.
        let mut body = Vec::new();
        body.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
        body.extend_from_slice(&u32::MAX.to_ne_bytes());
        body.extend_from_slice(&(ino as u32).to_ne_bytes());
        body.extend_from_slice(&0x1fu32.to_ne_bytes());
        body.extend_from_slice(&[0xff; 8]);
        let Some(answer) = self.ask(SOCK_DIAG_BY_FAMILY, &body)? else { return Ok(None) };
        let mut out = UnixFacts { state: answer.get(2).copied().unwrap_or(0), ..UnixFacts::default() };
        for (kind, value) in attributes(&answer, 16) {
            match kind {
                1 if value.len() >= 8 => out.file = Some((u32_at(value, 4), u32_at(value, 0))),
                2 if value.len() >= 4 => out.peer = Some(u32_at(value, 0)),
                3 => out.pending = value.chunks_exact(4).map(|c| u32_at(c, 0)).collect(),
                4 if value.len() >= 8 => out.backlog = u32_at(value, 4),
                6 if !value.is_empty() => out.shutdown = value[0],
                _ => {}
            }
        }
        Ok(Some(out))
    }

    /// The TCP socket on this host whose local address is `local` and whose peer is `peer` (struct sockaddr_in or _in6).
    pub fn tcp(&self, local: &[u8], peer: &[u8]) -> Result<Option<TcpFacts>> {
        let Some(body) = tcp_request(local, peer) else { return Ok(None) };
        let Some(answer) = self.ask(SOCK_DIAG_BY_FAMILY, &body)? else { return Ok(None) };
        if answer.len() < 72 || answer[1] == 10 {
            return Ok(None);
        }
        let mut out = TcpFacts {
            state: answer[1],
            unread: u32_at(&answer, 56),
            inode: u32_at(&answer, 68),
            ..TcpFacts::default()
        };
        for (kind, value) in attributes(&answer, 72) {
            if kind == 2 {
                (out.written, out.arrived) = crate::tcp_counters(value);
            }
        }
        Ok(Some(out))
    }

    /// Ends what is left of a connection that no program holds any more (TIME_WAIT, FIN_WAIT), so that its addresses are
    /// free. Needs CAP_NET_ADMIN; without it nothing happens.
    pub fn forget(&self, local: &[u8], peer: &[u8]) -> Result<()> {
        if let Some(facts) = self.tcp(local, peer)?
            && facts.inode == 0
            && facts.state != 1
            && let Some(body) = tcp_request(local, peer)
        {
            self.ask(SOCK_DESTROY, &body)?;
        }
        Ok(())
    }
}

impl Diag {
    /// Ends what is left of connections from this local port that no program holds any more. Needs CAP_NET_ADMIN; without it
    /// nothing happens.
    pub fn forget_port(&self, port: u16) -> Result<()> {
        let mut left: Vec<Vec<u8>> = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // All in FIN_WAIT1 4, FIN_WAIT2 5, TIME_WAIT 6, LAST_ACK 9, CLOSING 11.
            let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
            body.extend_from_slice(&(1u32 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11).to_ne_bytes());
            body.extend_from_slice(&port.to_be_bytes());
            body.resize(56, 0);
            // NLM_F_REQUEST and NLM_F_DUMP.
            self.send(SOCK_DIAG_BY_FAMILY, 0x301, &body)?;
            let mut answer = vec![0u8; 64 * 1024];
            'dump: loop {
                let n = sys::read(self.0.0, &mut answer)?;
                let mut at = 0;
                while at + 16 <= n {
                    let length = u32_at(&answer, at) as usize;
                    if u16_at(&answer, at + 4) != SOCK_DIAG_BY_FAMILY || length < 16 + 72 || at + length > n {
                        break 'dump;
                    }
                    let message = &answer[at + 16..at + length];
                    // No inode: no program holds it. The answer's id (48 bytes from 4 on) is the request's.
                    if u32_at(message, 68) == 0 {
                        let mut one = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
                        one.extend_from_slice(&u32::MAX.to_ne_bytes());
                        one.extend_from_slice(&message[4..52]);
                        left.push(one);
                    }
                    at += length.next_multiple_of(4);
                }
            }
        }
        for one in left {
            self.ask(SOCK_DESTROY, &one)?;
        }
        Ok(())
    }
}

// struct inet_diag_req_v2 of <linux/inet_diag.h> for one connection; INET_DIAG_INFO is asked for.
fn tcp_request(local: &[u8], peer: &[u8]) -> Option<Vec<u8>> {
    let (local, peer) = (Endpoint::parse(local)?, Endpoint::parse(peer)?);
    let mut body = Vec::new();
    body.extend_from_slice(&[local.family() as u8, libc::IPPROTO_TCP as u8, 1 << 1, 0]);
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&local.port.to_be_bytes());
    body.extend_from_slice(&peer.port.to_be_bytes());
    body.extend_from_slice(&local.diag());
    body.extend_from_slice(&peer.diag());
    body.extend_from_slice(&local.scope.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    Some(body)
}

// struct nlattr: length, type, value, padded to four bytes.
fn attributes(message: &[u8], mut at: usize) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        if at + 4 > message.len() {
            return None;
        }
        let length = u16_at(message, at) as usize;
        if length < 4 || at + length > message.len() {
            return None;
        }
        let item = (u16_at(message, at + 2), &message[at + 4..at + length]);
        at += length.next_multiple_of(4);
        Some(item)
    })
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
