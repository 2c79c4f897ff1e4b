//! Two guests, joined by a link: node N runs the command, node N+1 the peer's line.
//!
//! The link is a datagram socket pair, one frame a datagram; each guest has one end as its Ethernet device `vec0`, and
//! its RDMA device on it. Lines of output are marked with the node that wrote them.
use crate::guest::{self, Options};
use anyhow::{Context as _, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::io::{self, Write};
use std::thread;

/// Room for a burst of frames in each direction, in bytes.
const QUEUE: usize = 4 << 20;

/// Boots both, waits for both; the status is the first that is not 0.
pub fn run(options: &Options, peer: &str) -> Result<u8> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("no socket pair for the link")?;
    for end in [&a, &b] {
        sockopt::set_socket_send_buffer_size(end, QUEUE)?;
        sockopt::set_socket_recv_buffer_size(end, QUEUE)?;
    }
    if options.node == u8::MAX - 1 {
        bail!("-i {}: the peer would be node 255, which is no address", options.node);
    }
    let second = Options { node: options.node + 1, command: vec![peer.to_owned()], ..options.clone() };
    let (one, two) = thread::scope(|scope| {
        let two = scope.spawn(|| guest::boot(&second, Some(b), marked(second.node, false), marked(second.node, true)));
        let one = guest::boot(options, Some(a), marked(options.node, false), marked(options.node, true));
        (one, two.join())
    });
    let two = two.map_err(|_| anyhow::anyhow!("the second node's thread died"))??;
    Ok(match one? {
        0 => two,
        code => code,
    })
}

fn marked(node: u8, error: bool) -> Box<dyn Write + Send> {
    Box::new(Marked { mark: format!("[node{node}] "), line: Vec::new(), error })
}

/// Passes whole lines on, each with a mark before it.
struct Marked {
    mark: String,
    line: Vec<u8>,
    error: bool,
}

impl Marked {
    fn emit(&mut self) -> io::Result<()> {
        let mut text = self.mark.clone().into_bytes();
        text.append(&mut self.line);
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        if self.error { io::stderr().write_all(&text) } else { io::stdout().write_all(&text) }
    }
}

impl Write for Marked {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for &byte in data {
            self.line.push(byte);
            if byte == b'\n' {
                self.emit()?;
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let _ = self.emit();
        }
    }
}
