//! One connection: the handshake, then frames in and out. What they mean is the machine's affair.
//!
//! Two tasks a connection. The reader reports `Opened`, messages, and exactly one `Closed` if it reported `Opened`. The
//! writer sends what is queued, several frames a write, and shuts the socket down when its queue is dropped: so closing is
//! flushing first.
use crate::machine::{Conn, Input};
use slackwater_protocol::{
    auth::{self, Proof, Role, Secret},
    frame::{self, Decoder, FrameError},
};
use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

/// Who does not finish the handshake within this time is turned away.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// For the writer.
#[derive(Debug)]
pub(crate) enum Out {
    /// A frame.
    Frame(Arc<Vec<u8>>),
    /// Nothing more is to come from this peer: what has arrived is read, then the connection counts as closed.
    Drain,
}

/// From connections to the main loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer has proved itself.
    Opened { conn: Conn, out: UnboundedSender<Out>, writer: JoinHandle<()> },
    /// It speaks, or is gone; also what watchers and file jobs report.
    Input(Input),
    /// For the log.
    Log(String),
}

/// Serves one connection to its end.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    conn: Conn,
    secret: Arc<Secret>,
    events: UnboundedSender<Event>,
) {
    // Receivers of events live as long as the main loop: when that is gone, so is all need to report.
    let report = |event| drop(events.send(event));
    if let Err(error) = stream.set_nodelay(true) {
        return report(Event::Log(format!("connection from {peer}: {error}")));
    }
    let (mut read, mut write) = stream.into_split();
    let mut decoder = Decoder::new();
    let hands = handshake(&mut read, &mut write, &mut decoder, &secret);
    let role = match tokio::time::timeout(HANDSHAKE, hands).await {
        Ok(Ok(role)) => role,
        Ok(Err(error)) => return report(Event::Log(format!("refused a connection from {peer}: {error}"))),
        Err(_) => {
            return report(Event::Log(format!("refused a connection from {peer}: no proof within {HANDSHAKE:?}")));
        }
    };
    decoder.trust();
    let (out, queue) = unbounded_channel();
    let writer = tokio::spawn(send_all(write, queue));
    report(Event::Opened { conn, out, writer });
    if let Err(error) = receive_all(&mut read, &mut decoder, conn, role, &report).await {
        report(Event::Log(format!("connection from {peer}: {error}")));
    }
    report(Event::Input(Input::Closed(conn)));
}

async fn handshake(
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    decoder: &mut Decoder,
    secret: &Secret,
) -> io::Result<Role> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    write.write_all(&frame::to_frame(&auth::challenge(nonce)).map_err(io::Error::other)?).await?;
    let mut buffer = [0; 512];
    let proof: Proof = loop {
        if let Some(proof) = decoder.next_message().map_err(io::Error::other)? {
            break proof;
        }
        match read.read(&mut buffer).await? {
            0 => return Err(io::Error::other("it closed the connection without a proof")),
            n => decoder.push(&buffer[..n]),
        }
    };
    let welcome = auth::examine(secret, &nonce, &proof).map_err(io::Error::other)?;
    write.write_all(&frame::to_frame(&welcome).map_err(io::Error::other)?).await?;
    Ok(proof.role)
}

async fn receive_all(
    read: &mut OwnedReadHalf,
    decoder: &mut Decoder,
    conn: Conn,
    role: Role,
    report: &impl Fn(Event),
) -> io::Result<()> {
    let next = |decoder: &mut Decoder| -> Result<Option<Input>, FrameError> {
        Ok(match role {
            Role::Process => decoder.next_message()?.map(|message| Input::Process(conn, message)),
            Role::Command => decoder.next_message()?.map(|request| Input::Command(conn, request)),
        })
    };
    let mut buffer = vec![0; 8 << 10];
    loop {
        while let Some(input) = next(decoder).map_err(io::Error::other)? {
            report(Event::Input(input));
        }
        // Sized by what comes: thousands of connections are idle, a few carry a megabyte at once.
        let wanted = decoder.missing().clamp(8 << 10, 256 << 10);
        buffer.resize(wanted, 0);
        match read.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(n) => decoder.push(&buffer[..n]),
            // A process that was killed resets its connection: that is an end like any other.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn send_all(mut write: OwnedWriteHalf, mut queue: UnboundedReceiver<Out>) {
    /// From so many bytes on a frame is worth a write of its own: it may be one that thousands get.
    const LARGE: usize = 64 << 10;
    let mut batch = Vec::new();
    while let Some(first) = queue.recv().await {
        let (mut next, mut large) = (Some(first), None);
        while let Some(out) = next {
            match out {
                Out::Frame(frame) if frame.len() >= LARGE => large = Some(frame),
                Out::Frame(frame) => batch.extend_from_slice(&frame),
                Out::Drain => drop(rustix::net::shutdown(write.as_ref().as_fd(), rustix::net::Shutdown::Read)),
            }
            next = if large.is_none() && batch.len() < 1 << 20 { queue.try_recv().ok() } else { None };
        }
        // A peer that is gone is reported by the reader.
        let mut sent = write.write_all(&batch).await;
        batch.clear();
        if let (Ok(()), Some(frame)) = (&sent, large) {
            sent = write.write_all(&frame).await;
        }
        if sent.is_err() {
            break;
        }
    }
    let _ = rustix::net::shutdown(write.as_ref().as_fd(), rustix::net::Shutdown::Both);
}
