//! A blocking connection to a coordinator, for ordinary programs: the command line, `slackwater restart`, tests. Not for
//! use inside the user's process (it allocates, and uses std).
use crate::{
    auth::{self, AuthError, Challenge, Role, Secret, Welcome},
    frame::{self, Decoder, FrameError},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
    vec,
    vec::Vec,
};

/// How long a handshake may take before it counts as failed.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// What may go wrong between a client and the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to the coordinator at {addr}: {error}")]
    Connect {
        /// Where to.
        addr: SocketAddr,
        /// connect(2)'s reason.
        error: io::Error,
    },
    /// The connection failed later.
    #[error("the connection to the coordinator failed: {0}")]
    Io(#[from] io::Error),
    /// The coordinator closed it.
    #[error("the coordinator closed the connection")]
    Closed,
    /// It does not speak our protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It is not trusted.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// It did not trust us: it closed the connection after our proof.
    #[error("the coordinator refused this computation's secret (another computation may have taken its port)")]
    Refused,
}

/// An authenticated connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects (TCP_NODELAY) and holds the handshake.
    ///
    /// # Errors
    /// When no coordinator answers there, or it is not the one that knows `secret`.
    pub fn connect(addr: SocketAddr, secret: &Secret, role: Role) -> Result<Self, ClientError> {
        let connect = |error| ClientError::Connect { addr, error };
        let stream = TcpStream::connect_timeout(&addr, HANDSHAKE).map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        stream.set_read_timeout(Some(HANDSHAKE)).map_err(connect)?;
        let mut client = Self { stream, decoder: Decoder::new(), buffer: vec![0; 16 << 10] };
        let challenge: Challenge = client.receive()?;
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(std::format!("no random numbers: {error}")))?;
        let proof = auth::prove(secret, &challenge, role, nonce)?;
        client.send(&proof)?;
        let welcome: Welcome = client.receive().map_err(|error| match error {
            ClientError::Closed => ClientError::Refused,
            ClientError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => ClientError::Refused,
            other => other,
        })?;
        auth::confirm(secret, &challenge, &proof, &welcome)?;
        client.decoder.trust();
        client.stream.set_read_timeout(None)?;
        Ok(client)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the connection is gone, or the message is too long.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ClientError> {
        let bytes = frame::to_frame(message)?;
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// When the connection ends first ([`ClientError::Closed`]), or what comes is no such message, or the time given to
    /// [`Client::set_timeout`] is over ([`ClientError::Io`] of kind `WouldBlock`).
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            let wanted = self.decoder.missing().min(self.buffer.len());
            match self.stream.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(n) => self.decoder.push(&self.buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Bounds how long [`Client::receive`] waits for bytes; None: for ever.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// The socket, to be handed on: what `slackwater restart` does with that of a restored process. Nothing that comes
    /// after the last message received has been read from it.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The socket, to wait on it or to shut it down.
    #[must_use]
    pub const fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
