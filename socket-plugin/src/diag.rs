//! sock_diag(7): what no call on the socket itself tells: a Unix socket's peer, a TCP peer's counters on the same host.
#![allow(unsafe_code)] // Reason: sendto and recvfrom on a netlink socket of our own.
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};
use core::cell::{OnceCell, RefCell};

use crate::address::Endpoint;
use crate::model::{Socket, State};
use crate::options::{self, Fresh};
use crate::sys::{self, Owned, Result};

/// A sock_diag socket; one serves many questions.
#[derive(Debug)]
pub struct Diag {
    socket: Owned,
    /// The last answer.
    answer: RefCell<Vec<u8>>,
    /// See [`Diag::unix`].
    unix: RefCell<Known>,
    /// See [`Diag::waiting`].
    waiting: OnceCell<Vec<(Endpoint, Endpoint, u32)>>,
    /// See [`Diag::closing`].
    closing: OnceCell<Vec<Endpoint>>,
    /// Options of fresh sockets.
    fresh: RefCell<Vec<(Like, Fresh)>>,
}

// Family, type, protocol, and whether connected.
type Like = (i32, i32, i32, bool);

/// What [`Diag::unix`] has been asked, and knows.
#[derive(Debug, Default)]
struct Known {
    asked: u32,
    /// By inode.
    all: BTreeMap<u32, UnixFacts>,
}

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
    /// It is what the kernel keeps of one that was closed and whose end has been acknowledged (FIN_WAIT2, TIME_WAIT), or that is not
    /// established yet: without counters.
    pub remnant: bool,
}

/// What is left of a connection that no program holds any more.
#[derive(Clone, Debug)]
pub struct Left {
    /// Its address here.
    pub local: Endpoint,
    /// Its peer's.
    pub peer: Endpoint,
    /// Only the minute's wait is left of it.
    pub time_wait: bool,
    // struct inet_diag_req_v2.
    request: Vec<u8>,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

impl Diag {
    /// Opens one.
    pub fn new() -> Result<Self> {
        let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, 4 /* NETLINK_SOCK_DIAG */)?;
        Ok(Self {
            socket,
            answer: RefCell::new(vec![0; 64 * 1024]),
            unix: RefCell::default(),
            waiting: OnceCell::new(),
            closing: OnceCell::new(),
            fresh: RefCell::new(Vec::new()),
        })
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let mut request = Vec::with_capacity(16 + body.len());
        request.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&flags.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(body);
        sys::write(self.socket.0, &request).map(|_| ())
    }

    // Sends one request, gives the answer's payload; None: no such socket.
    fn ask(&self, kind: u16, body: &[u8]) -> Result<Option<Vec<u8>>> {
        // NLM_F_REQUEST 1, NLM_F_ACK 4.
        self.send(kind, if kind == SOCK_DESTROY { 5 } else { 1 }, body)?;
        let mut answer = self.answer.borrow_mut();
        let n = sys::read(self.socket.0, &mut answer)?;
        // An error message (NLMSG_ERROR 2): -ENOENT, mostly.
        if n < 16 || u16_at(&answer, 4) != SOCK_DIAG_BY_FAMILY {
            return Ok(None);
        }
        let length = (u32_at(&answer, 0) as usize).clamp(16, n);
        Ok(Some(answer[16..length].to_vec()))
    }

    /// A Unix socket by inode.
    ///
    /// The kernel walks through all Unix sockets to find one. So who asks for many is answered from a list of all, which is
    /// asked for once: their processes stand. What others did meanwhile may have hidden one from that list: it is asked for alone.
    pub fn unix(&self, ino: u64) -> Result<Option<UnixFacts>> {
        /// From the question of this number on.
        const MANY: u32 = 32;
        let mut known = self.unix.borrow_mut();
        known.asked += 1;
        if known.asked == MANY {
            let all = &mut known.all;
            self.dump_answer(&unix_request(None), |message| {
                if message.len() >= 16 {
                    all.insert(u32_at(message, 4), unix_facts(message));
                }
            })?;
        }
        if let Some(facts) = known.all.get(&(ino as u32)) {
            return Ok(Some(facts.clone()));
        }
        Ok(self.ask(SOCK_DIAG_BY_FAMILY, &unix_request(Some(ino as u32)))?.map(|answer| unix_facts(&answer)))
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
            remnant: true,
            ..TcpFacts::default()
        };
        for (kind, value) in attributes(&answer, 72) {
            if kind == 2 {
                (out.written, out.arrived) = crate::tcp_counters(value);
                out.remnant = false;
            }
        }
        Ok(Some(out))
    }
}

impl Diag {
    /// The options of `s` that a fresh socket would not have.
    pub fn options(&self, fd: i32, s: &Socket) -> Vec<(i32, i32, Vec<u8>)> {
        let key = (s.family, s.kind, s.protocol, s.state == State::Connected);
        let mut known = self.fresh.borrow_mut();
        let at = known.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
            known.push((key, options::fresh(s)));
            known.len() - 1
        });
        options::read(fd, s, &known[at].1)
    }

    /// Unread bytes of the TCP connection on this host whose local address is `local` and whose peer is `peer`, if nobody has
    /// accepted it yet. All such connections are asked for once, with the first question: if there is any at all, for to find
    /// listening sockets, which know that, is a hundred times cheaper than to walk through all connections of the host.
    pub fn waiting(&self, local: &[u8], peer: &[u8]) -> Result<Option<u32>> {
        let all = match self.waiting.get() {
            Some(all) => all,
            None => {
                let (mut all, mut any) = (Vec::new(), false);
                // TCP_LISTEN 10, any port: what is unread there are connections.
                self.dump(1 << 10, 0, |message| any |= u32_at(message, 56) > 0)?;
                if any {
                    // TCP_ESTABLISHED 1, CLOSE_WAIT 8.
                    self.dump(1 << 1 | 1 << 8, 0, |message| {
                        let unread = u32_at(message, 56);
                        if u32_at(message, 68) == 0 && unread > 0 {
                            all.push((endpoint(message, 4, 8), endpoint(message, 6, 24), unread));
                        }
                    })?;
                }
                self.waiting.get_or_init(|| all)
            }
        };
        let (Some(local), Some(peer)) = (Endpoint::parse(local), Endpoint::parse(peer)) else { return Ok(None) };
        let same = |e: &Endpoint, other: &Endpoint| e.ip == other.ip && e.port == other.port;
        Ok(all.iter().find(|(l, p, _)| same(l, &local) && same(p, &peer)).map(|(.., unread)| *unread))
    }

    /// Connections that wait to be accepted at `listener` (struct sockaddr_in or _in6), in no order: (here, client, unread bytes, a
    /// FIN counted as one). None: others listen there, too, and nobody can tell whose they are.
    pub fn backlog(&self, listener: &[u8]) -> Result<Option<Vec<(Endpoint, Endpoint, u32)>>> {
        let Some(at) = Endpoint::parse(listener) else { return Ok(None) };
        let family = listener[0];
        let (mut out, mut listeners) = (Vec::new(), 0);
        // TCP_ESTABLISHED 1, CLOSE_WAIT 8, LISTEN 10.
        self.dump(1 << 1 | 1 << 8 | 1 << 10, at.port, |message| {
            if message[0] == family && message[1] == 10 {
                listeners += 1;
            } else if message[0] == family && u32_at(message, 68) == 0 {
                out.push((endpoint(message, 4, 8), endpoint(message, 6, 24), u32_at(message, 56)));
            }
        })?;
        Ok((listeners == 1).then_some(out))
    }

    /// Where on this host nobody holds a TCP connection any more, but what was written to it, or its end, has yet to arrive. Asked
    /// for once, with the first question.
    pub fn closing(&self) -> Result<&[Endpoint]> {
        if self.closing.get().is_none() {
            let mut all = Vec::new();
            // The count is a sum over processors, while others' connections come and go: 0 twice is 0.
            if orphans() != Some(0) || orphans() != Some(0) {
                // FIN_WAIT1 4, LAST_ACK 9, CLOSING 11.
                self.dump(1 << 4 | 1 << 9 | 1 << 11, 0, |message| {
                    if u32_at(message, 68) == 0 {
                        all.push(endpoint(message, 4, 8));
                    }
                })?;
            }
            let _ = self.closing.set(all);
        }
        Ok(self.closing.get().map_or(&[], Vec::as_slice))
    }

    /// Where the socket of this inode is connecting to (SYN sent), in the form of its family; empty: nowhere.
    pub fn connecting(&self, family: i32, local: &[u8], ino: u64) -> Result<Vec<u8>> {
        let mut to = Vec::new();
        let port = Endpoint::parse(local).map_or(0, |local| local.port);
        // TCP_SYN_SENT 2.
        self.dump(1 << 2, port, |message| {
            if u64::from(u32_at(message, 68)) == ino & u64::from(u32::MAX) {
                to = endpoint(message, 6, 24).address(family);
            }
        })?;
        Ok(to)
    }

    /// What is left on these local ports of connections that no program holds any more. Not where somebody listens.
    pub fn left(&self, ports: &BTreeSet<u16>) -> Result<Vec<Left>> {
        let (mut left, mut listening) = (Vec::new(), BTreeSet::new());
        // FIN_WAIT1 4, FIN_WAIT2 5, TIME_WAIT 6, LAST_ACK 9, LISTEN 10, CLOSING 11.
        self.dump(1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11, 0, |message| {
            let (local, peer) = (endpoint(message, 4, 8), endpoint(message, 6, 24));
            if message[1] == 10 {
                listening.insert(local.port);
            } else if u32_at(message, 68) == 0 && ports.contains(&local.port) {
                // The answer's id (48 bytes from 4 on) is the request's.
                let mut request = vec![message[0], libc::IPPROTO_TCP as u8, 0, 0];
                request.extend_from_slice(&u32::MAX.to_ne_bytes());
                request.extend_from_slice(&message[4..52]);
                left.push(Left { local, peer, time_wait: message[1] == 6, request });
            }
        })?;
        left.retain(|l: &Left| !listening.contains(&l.local.port));
        Ok(left)
    }

    /// Ends what is left of a connection. Needs CAP_NET_ADMIN, and a kernel with CONFIG_INET_DIAG_DESTROY; else nothing happens.
    pub fn destroy(&self, left: &Left) -> Result<()> {
        self.ask(SOCK_DESTROY, &left.request).map(drop)
    }

    // Each TCP socket of these states (bits) and this local port (0: any), as a struct inet_diag_msg.
    fn dump(&self, states: u32, port: u16, mut each: impl FnMut(&[u8])) -> Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
            body.extend_from_slice(&states.to_ne_bytes());
            body.extend_from_slice(&port.to_be_bytes());
            body.resize(56, 0);
            self.dump_answer(&body, |message| {
                if message.len() >= 72 {
                    each(message);
                }
            })?;
        }
        Ok(())
    }

    // Asks for all that fits, and hands on each answer's payload.
    fn dump_answer(&self, body: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        // NLM_F_REQUEST and NLM_F_DUMP.
        self.send(SOCK_DIAG_BY_FAMILY, 0x301, body)?;
        let mut answer = self.answer.borrow_mut();
        loop {
            let n = sys::read(self.socket.0, &mut answer)?;
            let mut at = 0;
            while at + 16 <= n {
                let length = u32_at(&answer, at) as usize;
                // NLMSG_DONE, or an error.
                if u16_at(&answer, at + 4) != SOCK_DIAG_BY_FAMILY || length < 16 || at + length > n {
                    return Ok(());
                }
                each(&answer[at + 16..at + length]);
                at += length.next_multiple_of(4);
            }
            if n == 0 {
                return Ok(());
            }
        }
    }
}

// How many TCP connections of this host no program holds any more (/proc/net/sockstat): to read that takes a thirtieth of the
// walk through all of the kernel's table, empty as that may be. None: it does not say.
fn orphans() -> Option<u64> {
    let text = sys::read_file(b"/proc/net/sockstat").ok()?;
    let line = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"TCP:"))?;
    let mut words = line.split(|&b| b == b' ').skip_while(|word| *word != b"orphan");
    sys::decimal(words.nth(1)?)
}

// struct unix_diag_req of <linux/unix_diag.h>, for one inode or for all: VFS, PEER, ICONS, RQLEN are asked for.
fn unix_request(ino: Option<u32>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&ino.unwrap_or(0).to_ne_bytes());
    body.extend_from_slice(&0x1eu32.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    body
}

// From a struct unix_diag_msg and its attributes.
fn unix_facts(answer: &[u8]) -> UnixFacts {
    let mut out = UnixFacts { state: answer.get(2).copied().unwrap_or(0), ..UnixFacts::default() };
    for (kind, value) in attributes(answer, 16) {
        match kind {
            1 if value.len() >= 8 => out.file = Some((u32_at(value, 4), u32_at(value, 0))),
            2 if value.len() >= 4 => out.peer = Some(u32_at(value, 0)),
            3 => out.pending = value.chunks_exact(4).map(|c| u32_at(c, 0)).collect(),
            4 if value.len() >= 8 => out.backlog = u32_at(value, 4),
            6 if !value.is_empty() => out.shutdown = value[0],
            _ => {}
        }
    }
    out
}

// One end in a struct inet_diag_msg: its port and its address are at these offsets.
fn endpoint(message: &[u8], port: usize, address: usize) -> Endpoint {
    let mut ip = [0u8; 16];
    if i32::from(message[0]) == libc::AF_INET {
        ip[10..12].fill(0xff);
        ip[12..].copy_from_slice(&message[address..address + 4]);
    } else {
        ip.copy_from_slice(&message[address..address + 16]);
    }
    Endpoint { ip, port: u16::from_be_bytes([message[port], message[port + 1]]), scope: 0 }
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
