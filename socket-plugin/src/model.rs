//! What a socket is made of: plain data, written by the agent, read by `slackwater restart`.
//!
//! Addresses are `struct sockaddr_*` as the kernel gave them, byte for byte.
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// SO_DOMAIN.
    pub family: i32,
    /// SO_TYPE.
    pub kind: i32,
    /// SO_PROTOCOL.
    pub protocol: i32,
    /// Inode in sockfs: its name in the computation.
    pub ino: u64,
    /// getsockname(2).
    pub local: Vec<u8>,
    /// getpeername(2); empty: not connected.
    pub peer: Vec<u8>,
    /// What the program takes for `local` and `peer`, if that is something else (see [`crate::known`]).
    pub known: Option<(Vec<u8>, Vec<u8>)>,
    /// Where in its life it is.
    pub state: State,
    /// This side has shut down writing.
    pub shut_write: bool,
    /// This side has shut down reading, or, of a stream, the peer has shut down writing and that was seen.
    pub shut_read: bool,
    /// Options that differ between sockets: (level, name, value).
    pub options: Vec<(i32, i32, Vec<u8>)>,
    /// Unread bytes (one message) or messages, in order.
    pub queue: Vec<Message>,
    /// What only Unix sockets have.
    pub unix: Option<Unix>,
    /// What only TCP sockets have.
    pub tcp: Option<Tcp>,
    /// Of a listening socket whose connections had to be taken apart (see [`crate::waiting`]): these, in order.
    pub backlog: Vec<Waiting>,
    /// The size that the program fixed its receive buffer to, while the capture lets it grow. In no image.
    #[serde(skip)]
    pub widened: Option<i32>,
    /// What it has sent to a server that has yet to accept it is in that one's [`Socket::backlog`]. In no image.
    #[serde(skip)]
    pub saved: bool,
}

/// A connection that nobody has accepted yet, and what its client has sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Inode of the client's socket.
    pub client: u64,
    /// Nobody holds that any more; it ended so.
    pub ended: Option<Ended>,
    /// The client's address, and the one that it connected to; of TCP.
    pub ends: (Vec<u8>, Vec<u8>),
    /// As [`Socket::queue`].
    pub queue: Vec<Message>,
    /// As [`Tcp::urgent`].
    pub urgent: Option<Urgent>,
    /// Among what was sent is what no image can have: descriptors, a Unix byte out of band.
    #[serde(skip)]
    pub unsaved: bool,
}

/// How a client's end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// Closed.
    Closed,
    /// With a reset.
    Reset,
}

/// Where in its life a socket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Neither listening nor connected.
    #[default]
    Idle,
    /// listen(2).
    Listening {
        /// Its backlog argument.
        backlog: i32,
    },
    /// A TCP connection that is being made.
    Connecting,
    /// Connected (of datagram sockets: has a default peer).
    Connected,
    /// A connection that has ended for good; unread bytes may remain.
    Ended {
        /// An error waits to be reported (a reset).
        error: bool,
    },
}

/// A message, or a run of stream bytes, that nobody has read yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Bytes.
    pub data: Vec<u8>,
    /// Sender's address, of datagrams.
    pub from: Vec<u8>,
    /// Who sent it (SCM_CREDENTIALS), if the receiver asks for that (SO_PASSCRED).
    pub credentials: Option<Credentials>,
    /// Descriptors that are under way with it (SCM_RIGHTS of unix(7)), as the capture's caller names them.
    pub rights: Vec<u32>,
}

/// `struct ucred` of unix(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Process, in the pid namespace of the computation.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Credentials {
    /// Out of a `struct ucred`; None: nobody, as the kernel has it of what it does not know.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self { pid: word(0)? as i32, uid: word(4)?, gid: word(8)? }).filter(|who| who.pid > 0)
    }
}

/// Unix sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unix {
    /// Inode of the peer (0: of one that waits to be accepted); None: no peer, or the peer is closed.
    pub peer: Option<u64>,
    /// Inodes of the sockets that wait to be accepted here.
    pub pending: Vec<u64>,
    /// The socket's file still has its name.
    pub linked: bool,
    /// Working directory, if the name is a relative path.
    pub cwd: Vec<u8>,
    /// SO_PEERCRED: who made the connection, or listened, at the other end; of a listening socket, who listens.
    pub credentials: Option<Credentials>,
}

/// TCP sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// TCP_ESTABLISHED 1, ... as in <netinet/tcp.h>.
    pub state: u8,
    /// Payload bytes that the program has written, in the connection's life.
    pub written: u64,
    /// Payload bytes that have arrived, in the connection's life.
    pub arrived: u64,
    /// There is a mark of urgent data in the queue.
    pub urgent: Option<Urgent>,
}

/// Urgent data of tcp(7): one byte, sent by MSG_OOB, and the mark at its place in the queue (SIOCATMARK).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urgent {
    /// Bytes of the queue in front of the mark.
    pub at: u64,
    /// The byte.
    pub byte: u8,
    /// SO_OOBINLINE: the byte is the first of those behind the mark, too.
    pub inline: bool,
    /// It has been received already, by MSG_OOB; the mark is still there.
    pub read: bool,
}

impl Tcp {
    /// The peer's FIN has arrived: CLOSE_WAIT, LAST_ACK, CLOSING.
    pub fn fin_arrived(state: u8) -> bool {
        matches!(state, 8 | 9 | 11)
    }

    /// This side has queued its FIN, and nobody has said that it arrived: FIN_WAIT1, LAST_ACK, CLOSING.
    pub fn fin_unacknowledged(state: u8) -> bool {
        matches!(state, 4 | 9 | 11)
    }

    /// This side has sent, or queued, its FIN: FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
    pub fn fin_sent(state: u8) -> bool {
        matches!(state, 4 | 5 | 9 | 11)
    }
}
