//! The connection to the coordinator: a blocking TCP socket, used by the checkpoint thread, and by wrappers that announce births.
//!
//! Its descriptor is in the checkpoint thread's own table, out of the program's reach, and others use it through [`relay`];
//! where there are plugins that thread shares the program's table, and all use it under a lock. There the descriptor has a high
//! number, and since a program may close what it did not open, its identity is checked before each use.
//!
//! Rules: raw system calls and the arena only.
use crate::{
    init, relay,
    spin::Spin,
    sys::{self, Errno},
};
use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering::*};
use serde::{Serialize, de::DeserializeOwned};
use slackwater_protocol::{
    auth::{self, Challenge, Role, Secret, Welcome},
    frame::{self, Decoder},
    names,
};

/// A proven connection.
pub struct Connection {
    fd: i32,
    inode: u64,
    decoder: Decoder,
}

/// Moves a descriptor of the checkpoint thread's to a high number, out of the way of programs that expect the lowest free
/// one, with CLOEXEC; in a table of its own it may stay.
pub fn move_high(fd: i32) -> sys::Result<i32> {
    if init::is_bare() {
        return Ok(fd);
    }
    let mut limit = [0u64; 2];
    // SAFETY: limit is a struct rlimit.
    unsafe { sc!(prlimit64, 0, libc::RLIMIT_NOFILE, 0, limit.as_mut_ptr()) }?;
    let highest = limit[0].min(1 << 16) as i32;
    let mut from = highest - 24;
    loop {
        // SAFETY: duplicates a descriptor of ours.
        match unsafe { sc!(fcntl, fd, libc::F_DUPFD_CLOEXEC, from.max(3)) } {
            Ok(new) => {
                // SAFETY: ours.
                _ = unsafe { sc!(close, fd) };
                own(new as i32);
                return Ok(new as i32);
            }
            Err(Errno::EMFILE | Errno::EINVAL) if from > 64 => from /= 2,
            Err(e) => return Err(e),
        }
    }
}

fn parse_address(address: &str) -> Option<libc::sockaddr_in> {
    let (ip, port) = address.trim().rsplit_once(':')?;
    let mut bytes = [0u8; 4];
    let mut parts = ip.split('.');
    for b in &mut bytes {
        *b = parts.next()?.parse().ok()?;
    }
    // SAFETY: all zeros is a sockaddr_in.
    let mut a: libc::sockaddr_in = unsafe { core::mem::zeroed() };
    a.sin_family = libc::AF_INET as u16;
    a.sin_port = port.parse::<u16>().ok()?.to_be();
    a.sin_addr.s_addr = u32::from_ne_bytes(bytes);
    Some(a)
}

/// Has the coordinator open an image: for a process whose user has changed, and may not open it himself.
///
/// # Errors
/// What the coordinator says, or why it cannot be asked.
pub fn borrow_image(path: &str) -> Result<sys::Fd, String> {
    let config = init::config().ok_or("no computation")?;
    let port = parse_address(&config.address).map_or(0, |a| u16::from_be(a.sin_port));
    let name = names::borrow_socket(port);
    // SAFETY: all zeros is a sockaddr_un.
    let mut to: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    to.sun_family = libc::AF_UNIX as u16;
    for (place, byte) in to.sun_path[1..].iter_mut().zip(name.bytes()) {
        *place = byte as core::ffi::c_char;
    }
    let failed = |what: &str, e: Errno| format!("asking the coordinator for it: {what}: {e}");
    // SAFETY: arguments and their lengths are those of the structures; the descriptor is ours.
    unsafe {
        let fd = sc!(socket, libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        let fd = sys::Fd(fd.map_err(|e| failed("socket", e))? as i32);
        sc!(connect, fd.0, &raw const to, 2 + 1 + name.len()).map_err(|e| failed("connect", e))?;
        // Anybody may take a free name: the secret is for root, who started us, or for ourselves.
        let mut peer: libc::ucred = core::mem::zeroed();
        let mut length = size_of::<libc::ucred>() as u32;
        sc!(getsockopt, fd.0, libc::SOL_SOCKET, libc::SO_PEERCRED, &raw mut peer, &raw mut length)
            .map_err(|e| failed("SO_PEERCRED", e))?;
        if peer.uid != 0 && sc!(geteuid) != Ok(peer.uid as usize) {
            return Err(format!("the coordinator's socket is user {}'s", peer.uid));
        }
        let mut request = config.secret.to_hex().to_vec();
        request.extend_from_slice(path.as_bytes());
        let mut done = 0;
        while done < request.len() {
            done += sc!(sendto, fd.0, request[done..].as_ptr(), request.len() - done, libc::MSG_NOSIGNAL, 0, 0)
                .map_err(|e| failed("send", e))?;
        }
        _ = sc!(shutdown, fd.0, libc::SHUT_WR);
        let mut text = [0u8; 512];
        // A cmsghdr (16 bytes) and one descriptor, padded.
        let mut control = [0u64; 3];
        let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
        let mut message: libc::msghdr = core::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let n = loop {
            match sc!(recvmsg, fd.0, &raw mut message, libc::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(|e| failed("recvmsg", e))?,
            }
        };
        // cmsg_len, then level and type, then the descriptor.
        let rights = (libc::SCM_RIGHTS as u64) << 32 | libc::SOL_SOCKET as u64;
        if message.msg_controllen as usize >= 20 && control[1] == rights {
            return Ok(sys::Fd(control[2] as u32 as i32));
        }
        Err(format!("the coordinator does not open it: {}", String::from_utf8_lossy(&text[..n])))
    }
}

impl Connection {
    /// Connects to `address` (`127.0.0.1:PORT`) and proves the secret both ways.
    pub fn open(address: &str, secret: &Secret) -> Result<Self, String> {
        let bad = |what: &str, e: &dyn core::fmt::Display| format!("coordinator at {address}: {what}: {e}");
        let to = parse_address(address).ok_or_else(|| format!("coordinator address {address:?} is not IP:PORT"))?;
        // SAFETY: a new socket; `to` is a sockaddr_in of the size given.
        let fd = unsafe {
            let fd = sc!(socket, libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
                .map_err(|e| bad("socket", &e))? as i32;
            sc!(connect, fd, &raw const to, size_of_val(&to)).map_err(|e| {
                _ = sc!(close, fd);
                bad("connect", &e)
            })?;
            let one = 1i32;
            _ = sc!(setsockopt, fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &raw const one, 4);
            move_high(fd).map_err(|e| bad("no free descriptor", &e))?
        };
        let mut c = Self::adopt(fd).map_err(|e| bad("fstat", &e))?;
        c.decoder = Decoder::new();
        let challenge: Challenge = c.receive()?;
        let mut nonce = [0; 32];
        sys::random(&mut nonce);
        let proof = auth::prove(secret, &challenge, Role::Process, nonce).map_err(|e| bad("handshake", &e))?;
        c.send(&proof)?;
        let welcome: Welcome = c.receive()?;
        auth::confirm(secret, &challenge, &proof, &welcome).map_err(|e| bad("handshake", &e))?;
        c.decoder.trust();
        Ok(c)
    }

    /// Takes over a descriptor that is connected and proven.
    pub fn adopt(fd: i32) -> sys::Result<Self> {
        let inode = sys::fstat(fd)?.st_ino;
        let mut decoder = Decoder::new();
        decoder.trust();
        Ok(Self { fd, inode, decoder })
    }

    /// Its descriptor.
    pub fn fd(&self) -> i32 {
        self.fd
    }

    /// The descriptor still is our socket: the program has not closed or replaced it.
    pub fn alive(&self) -> bool {
        sys::fstat(self.fd).is_ok_and(|st| st.st_ino == self.inode)
    }

    /// Closes one that was never this process's own.
    pub fn close(self) {
        disown(self.fd);
        if self.alive() {
            // SAFETY: ours.
            _ = unsafe { sc!(close, self.fd) };
        }
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), String> {
        if !self.alive() {
            return Err("the program closed the connection to the coordinator".to_string());
        }
        let bytes = frame::to_frame(message).map_err(|e| e.to_string())?;
        let mut done = 0;
        while done < bytes.len() {
            // SAFETY: readable for the rest.
            match unsafe { sc!(sendto, self.fd, bytes[done..].as_ptr(), bytes.len() - done, libc::MSG_NOSIGNAL, 0, 0) }
            {
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(format!("coordinator: {e}")),
            }
        }
        Ok(())
    }

    /// The next message; waits for it.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        loop {
            if let Some(m) = self.buffered()? {
                return Ok(m);
            }
            self.fill()?;
        }
    }

    /// The next message if it is here already.
    pub fn buffered<T: DeserializeOwned>(&mut self) -> Result<Option<T>, String> {
        self.decoder.next_message().map_err(|e| e.to_string())
    }

    /// Reads what has come; waits for at least one byte.
    pub fn fill(&mut self) -> Result<(), String> {
        let mut buf: Vec<u8> = vec![0; 16 << 10];
        loop {
            if !self.alive() {
                return Err("the program closed the connection to the coordinator".to_string());
            }
            // SAFETY: writable for its length.
            match unsafe { sc!(recvfrom, self.fd, buf.as_mut_ptr(), buf.len(), 0, 0, 0) } {
                Ok(0) => return Err("the coordinator has gone".to_string()),
                Ok(n) => {
                    self.decoder.push(&buf[..n]);
                    return Ok(());
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(format!("coordinator: {e}")),
            }
        }
    }
}

/// The connection of this process. The checkpoint thread uses it, and wrappers that announce births.
static SHARED: Spin<Option<Connection>> = Spin::new(None);

/// Runs `f` on the connection.
///
/// # Errors
/// There is none, or `f`'s.
pub fn with<R>(f: impl FnOnce(&mut Connection) -> Result<R, String>) -> Result<R, String> {
    let none = || Err("not connected to a coordinator".to_string());
    let on_it = || {
        SHARED.with(|c| match c {
            Some(c) => f(c),
            None => none(),
        })
    };
    if init::is_bare() && !relay::is_listener() {
        return relay::call(on_it).unwrap_or_else(none);
    }
    on_it()
}

/// Makes `c` the connection of this process; None: it has none.
pub fn set(c: Option<Connection>) {
    SHARED.with(|slot| {
        if let Some(old) = slot.as_ref() {
            disown(old.fd);
        }
        if let Some(new) = c.as_ref()
            && !init::is_bare()
            && !is_own(new.fd)
        {
            own(new.fd);
        }
        CONNECTED.store(c.is_some(), Release);
        *slot = c;
    });
}

/// Is there a connection? (Without the lock: a thread may be stopped while it asks.)
pub fn connected() -> bool {
    CONNECTED.load(Acquire)
}

static CONNECTED: AtomicBool = AtomicBool::new(false);

/// The connection's descriptor.
pub fn descriptor() -> Option<i32> {
    SHARED.with(|c| c.as_ref().map(Connection::fd))
}

/// Before fork: no other thread is in the middle of a message.
pub fn lock() {
    SHARED.acquire();
}

/// After it, in parent and child.
pub fn unlock() {
    SHARED.release();
}

/// In the child that writes an image: it has one thread, and a lock held in the parent is nobody's here.
pub fn unlock_in_child() {
    SHARED.release();
}

/// In the child that writes an image: the connection's descriptor, or one that is none. No lock: see [`unlock_in_child`].
pub fn descriptor_in_child() -> i32 {
    // SAFETY: this process has one thread.
    unsafe { (*SHARED.value()).as_ref().map_or(i32::MAX - 1, Connection::fd) }
}

/// After fork, in the child: the parent's connection and its other descriptors are closed.
pub fn after_fork() {
    SHARED.with(drop_connection);
    for slot in &HIGH {
        let fd = slot.swap(0, Relaxed);
        if fd > 0 {
            // SAFETY: the child's copy of a descriptor of ours.
            _ = unsafe { sc!(close, fd) };
        }
    }
}

/// In a restored process: what was ours when the image was taken is not there any more.
pub fn forget() {
    for slot in &HIGH {
        slot.store(0, Relaxed);
    }
    LOWEST.store(i32::MAX, Relaxed);
}

fn drop_connection(slot: &mut Option<Connection>) {
    CONNECTED.store(false, Release);
    if let Some(c) = slot.take() {
        disown(c.fd);
        if !init::is_bare() && c.alive() {
            // SAFETY: the child's copy of a descriptor of ours.
            _ = unsafe { sc!(close, c.fd) };
        }
    }
}

/// Descriptors that [`move_high`] made and nobody has closed since; 0: free place.
static HIGH: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];

/// No descriptor of ours is lower.
static LOWEST: AtomicI32 = AtomicI32::new(i32::MAX);

/// Is this descriptor ours?
pub fn is_own(fd: i32) -> bool {
    fd >= LOWEST.load(Relaxed) && HIGH.iter().any(|slot| slot.load(Relaxed) == fd)
}

/// The lowest descriptor of ours from `fd` on.
pub fn next_own(fd: u32) -> Option<u32> {
    HIGH.iter().map(|slot| slot.load(Relaxed) as u32).filter(|&own| own != 0 && own >= fd).min()
}

/// The descriptor is ours: the child of a fork closes it.
pub fn own(fd: i32) {
    LOWEST.fetch_min(fd, Relaxed);
    _ = HIGH.iter().find(|slot| slot.compare_exchange(0, fd, Relaxed, Relaxed).is_ok());
}

/// The descriptor is closed, or not ours any more.
pub fn disown(fd: i32) {
    for slot in &HIGH {
        _ = slot.compare_exchange(fd, 0, Relaxed, Relaxed);
    }
}

/// Waits until the connection, or `other`, is readable, or somebody rings: (connection, other).
pub fn wait_readable(other: Option<i32>) -> (bool, bool) {
    let mut p = [
        libc::pollfd { fd: descriptor().unwrap_or(-1), events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: other.unwrap_or(-1), events: libc::POLLIN, revents: 0 },
    ];
    if p[0].fd < 0 {
        return (true, false);
    }
    relay::wait(&mut p, None);
    (p[0].revents != 0, p[1].revents != 0)
}
