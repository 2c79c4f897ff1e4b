//! Frames: a little-endian u32 length, then that many bytes of postcard.
//!
//! Both ends bound the length before they believe it, and a frame must be used up by its message: a peer that speaks
//! another version, or is none of ours, is found out at its first bytes.
use alloc::vec::Vec;
use serde::{Serialize, de::DeserializeOwned};

/// Longest body accepted once the peer has proved the secret, in bytes: a round's published values of one process.
pub const MAX_FRAME: usize = 256 << 20;
/// Longest body accepted before that, in bytes.
pub const MAX_UNPROVEN: usize = 256;

const HEADER: usize = 4;

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced length is above the bound; the connection is of no more use.
    #[error("a message of {length} bytes (at most {limit} are accepted): the peer speaks another protocol")]
    TooLong {
        /// As announced, in bytes.
        length: usize,
        /// What would be accepted, in bytes.
        limit: usize,
    },
    /// The body is not the expected message; the connection is of no more use.
    #[error("a message that cannot be read ({0}): the peer speaks another protocol")]
    Malformed(postcard::Error),
    /// Bytes are left after the message; the connection is of no more use.
    #[error("{0} bytes too many in a message: the peer speaks another protocol")]
    Trailing(usize),
}

/// Appends `message` as one frame to `out`. On an error `out` is as it was.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_FRAME`].
pub fn encode<T: Serialize + ?Sized>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    if let Err(error) = postcard::serialize_with_flavor(message, Append(out)) {
        out.truncate(start);
        return Err(FrameError::Malformed(error));
    }
    let length = out.len() - start - HEADER;
    if length > MAX_FRAME {
        out.truncate(start);
        return Err(FrameError::TooLong { length, limit: MAX_FRAME });
    }
    // Fits: MAX_FRAME is below u32::MAX.
    out[start..start + HEADER].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// A message as one frame.
///
/// # Errors
/// As [`encode`].
pub fn to_frame<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::new();
    encode(message, &mut out)?;
    Ok(out)
}

/// Bytes of a connection in, messages out.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// What has been handed out already at the buffer's front.
    taken: usize,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// For a peer that has yet to prove itself: bodies up to [`MAX_UNPROVEN`]; see [`Decoder::trust`].
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), taken: 0, limit: MAX_UNPROVEN }
    }

    /// The peer has proved the secret: bodies up to [`MAX_FRAME`] from here on.
    pub const fn trust(&mut self) {
        self.limit = MAX_FRAME;
    }

    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 && (self.taken == self.buffer.len() || self.taken >= 64 << 10) {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes are missing, at least, to the next message: who reads no more than that never reads into the one
    /// after it. 0: the message is complete (or its length is out of bounds; `next_message` tells).
    #[must_use]
    pub fn missing(&self) -> usize {
        let rest = &self.buffer[self.taken..];
        match rest.split_first_chunk::<HEADER>() {
            None => HEADER - rest.len(),
            Some((header, body)) => (u32::from_le_bytes(*header) as usize).saturating_sub(body.len()),
        }
    }

    /// The next message, or None when more bytes are needed.
    ///
    /// # Errors
    /// When the peer does not speak this protocol; the connection must be closed.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let (message, left) = postcard::take_from_bytes(body).map_err(FrameError::Malformed)?;
        if !left.is_empty() {
            return Err(FrameError::Trailing(left.len()));
        }
        self.taken += HEADER + length;
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
        Ok(Some(message))
    }
}

/// postcard's output, appended to a vector without a copy in between.
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ToProcess;
    use alloc::{string::ToString, vec};

    fn some_messages() -> Vec<ToProcess> {
        vec![
            ToProcess::Joined { member: 300 },
            ToProcess::Values { values: vec![None, Some(vec![1; 40])] },
            ToProcess::Resume { generation: 7, aborted: Some("disk".to_string()) },
            ToProcess::Kill,
        ]
    }

    #[test]
    fn messages_come_out_as_they_went_in_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for message in some_messages() {
            encode(&message, &mut bytes).unwrap();
        }
        for piece in 1..bytes.len() {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(piece) {
                decoder.push(part);
                while let Some(message) = decoder.next_message::<ToProcess>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, some_messages(), "in pieces of {piece}");
        }
    }

    #[test]
    fn reading_what_is_missing_stops_at_the_end_of_a_message() {
        let mut bytes = Vec::new();
        for message in some_messages() {
            encode(&message, &mut bytes).unwrap();
        }
        let first = to_frame(&some_messages()[0]).unwrap().len();
        let mut decoder = Decoder::new();
        let mut read = 0;
        while decoder.missing() > 0 {
            let n = decoder.missing();
            decoder.push(&bytes[read..read + n]);
            read += n;
        }
        assert_eq!(read, first);
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_the_body_comes() {
        let mut decoder = Decoder::new();
        decoder.push(&(MAX_UNPROVEN as u32 + 1).to_le_bytes());
        assert!(matches!(decoder.next_message::<ToProcess>(), Err(FrameError::TooLong { .. })));
        decoder.trust();
        assert_eq!(decoder.next_message::<ToProcess>(), Ok(None));
        let mut decoder = Decoder::new();
        decoder.trust();
        decoder.push(b"GET / HTTP/1.1\r\n");
        assert!(matches!(decoder.next_message::<ToProcess>(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn garbage_and_leftovers_are_errors() {
        let mut decoder = Decoder::new();
        decoder.push(&[1, 0, 0, 0, 0xff]);
        assert!(matches!(decoder.next_message::<ToProcess>(), Err(FrameError::Malformed(_))));
        let mut frame = to_frame(&ToProcess::Kill).unwrap();
        frame.push(9);
        frame[0] += 1;
        let mut decoder = Decoder::new();
        decoder.push(&frame);
        assert_eq!(decoder.next_message::<ToProcess>(), Err(FrameError::Trailing(1)));
    }
}
