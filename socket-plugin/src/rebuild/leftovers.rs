//! What a killed computation has left of its connections: TIME_WAIT (RFC 9293, 3.3.2) keeps their ports for a minute, and a
//! listener of the old address, without SO_REUSEADDR, could not be had again.
//!
//! With CAP_NET_ADMIN they are destroyed (sock_diag(7)). Without it each is made to end itself: a SYN that comes from its
//! peer's address is answered with the old acknowledgement, that is answered with a reset by the socket which has sent the SYN, and a reset
//! ends TIME_WAIT (net/ipv4/tcp_minisocks.c, tcp_timewait_state_process, unless net.ipv4.tcp_rfc1337 is set). This reaches
//! connections between two addresses of this host, as those within a computation are.
//!
//! Rules: before any of the ports is bound; only what no program holds (inode 0), on ports that are needed, and on which nobody listens.
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::{os, tcp};
use crate::address::Endpoint;
use crate::diag::{Diag, Left};

/// Where both ends stand in TIME_WAIT the kernel lends the address after a second (tcp_tw_reuse, counted in whole seconds).
const LENT_AFTER: Duration = Duration::from_secs(2);
/// Between looks at that.
const LOOK: Duration = Duration::from_millis(20);
/// For the answer to a SYN over loopback; a second SYN is sent after one second.
const ANSWER_MS: i32 = 1500;

enum Struck {
    /// The SYN is on its way.
    Sent(i32),
    /// The peer's end stands in TIME_WAIT itself.
    Later,
    /// The peer's address is not this host's.
    Never,
}

/// Frees these ports of connections that have ended. What cannot be ended is left: the bind fails then, and says so.
pub fn clear(ports: &BTreeSet<u16>, base: i32) {
    let Ok(diag) = Diag::new() else { return };
    for left in diag.left(ports).unwrap_or_default() {
        let _ = diag.destroy(&left);
    }
    let until = Instant::now() + LENT_AFTER;
    while let Ok(left) = diag.left(ports)
        && Instant::now() < until
    {
        let struck: Vec<Struck> = left.iter().filter(|l| l.time_wait).map(|l| strike(l, base)).collect();
        if struck.iter().all(|s| matches!(s, Struck::Never)) {
            return;
        }
        if !struck.iter().any(|s| matches!(s, Struck::Sent(_))) {
            std::thread::sleep(LOOK);
        }
        for one in struck {
            if let Struck::Sent(fd) = one {
                // Refused: all is over.
                let _ = os::wait_for(fd, libc::POLLOUT, ANSWER_MS);
                os::reset(fd);
            }
        }
    }
}

fn strike(left: &Left, base: i32) -> Struck {
    let family = left.peer.family();
    let (from, to) = (left.peer.address(family), left.local.address(family));
    let socket = || os::socket(family, libc::SOCK_STREAM, 0, base);
    let attempt = |connect: &dyn Fn(i32) -> io::Result<()>| {
        let fd = socket()?;
        connect(fd).map(|()| fd).inspect_err(|_| os::close(fd))
    };
    let sent = attempt(&|fd| os::bind(fd, &from).and_then(|()| os::connect(fd, &to)));
    match sent.or_else(|_| attempt(&|fd| tcp::from_port(fd, &from, &to))) {
        Ok(fd) => Struck::Sent(fd),
        Err(_) if is_here(&left.peer, socket) => Struck::Later,
        Err(_) => Struck::Never,
    }
}

fn is_here(peer: &Endpoint, socket: impl Fn() -> io::Result<i32>) -> bool {
    let any_port = Endpoint { port: 0, ..*peer }.address(peer.family());
    socket().is_ok_and(|fd| {
        let here = os::bind(fd, &any_port).is_ok();
        os::close(fd);
        here
    })
}
