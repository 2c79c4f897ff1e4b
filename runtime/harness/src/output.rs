//! What a program printed, line by line, as it comes.
use anyhow::{Result, bail};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The lines read so far from one stream. Reading goes on in a thread of its own until the stream ends.
#[derive(Clone, Default)]
pub struct Output {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
struct Lines {
    complete: Vec<String>,
    partial: Vec<u8>,
    /// All of it, as it came.
    raw: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// From line `n` on, and what stands after the last.
    fn from(&self, n: usize) -> String {
        let mut text = self.complete[n..].join("\n");
        if !self.partial.is_empty() {
            text += "\n";
            text += &String::from_utf8_lossy(&self.partial);
        }
        text
    }
}

impl Output {
    /// Starts to read `stream`.
    pub fn read(mut stream: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        let writer = output.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            // A terminal's master reports EIO when its last slave closes: an end like any other.
            while let Ok(n) = stream.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                writer.take(&buffer[..n]);
            }
            writer.change(|lines| lines.ended = true);
        });
        output
    }

    fn take(&self, data: &[u8]) {
        self.change(|lines| {
            lines.raw.extend_from_slice(data);
            lines.partial.extend_from_slice(data);
            while let Some(end) = lines.partial.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = lines.partial.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                lines.complete.push(text.trim_end_matches(['\n', '\r']).to_owned());
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Lines)) {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.1.notify_all();
    }

    /// Number of complete lines so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).complete.len()
    }

    /// All complete lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).complete.clone()
    }

    /// The last `n` lines and what stands after them, for messages.
    #[must_use]
    pub fn tail(&self, n: usize) -> String {
        let lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.from(lines.complete.len().saturating_sub(n))
    }

    /// The first `n` lines and the last, for messages: what is wrong stands before the backtrace that it causes.
    #[must_use]
    pub fn ends(&self, n: usize) -> String {
        let lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = lines.complete.len().checked_sub(2 * n).filter(|&left_out| left_out > 0) else {
            return lines.from(0);
        };
        let head = lines.complete[..n].join("\n");
        format!("{head}\n({left_out} lines more)\n{}", lines.from(n + left_out))
    }

    /// Waits until a line from number `from` on satisfies `wanted`, and gives its number and text.
    ///
    /// # Errors
    /// When the stream ends or `limit` passes without it; `what` names it in the message.
    pub fn wait(
        &self,
        from: usize,
        limit: Duration,
        what: &str,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Result<(usize, String)> {
        let until = Instant::now() + limit;
        let mut next = from;
        let mut lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while let Some(line) = lines.complete.get(next) {
                if wanted(line) {
                    return Ok((next, line.clone()));
                }
                next += 1;
            }
            let left = until.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                let why = if lines.ended { "the output ended" } else { "the time limit came" };
                drop(lines);
                bail!("waited for {what}, but {why}; last lines:\n{}", self.tail(10));
            }
            lines = self.shared.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Number of bytes so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).raw.len()
    }

    /// Waits until `text` stands anywhere after the first `from` bytes, whole lines or not, and gives the number of bytes up
    /// to its end.
    ///
    /// # Errors
    /// When the stream ends or `limit` passes without it.
    pub fn wait_text(&self, from: usize, limit: Duration, text: &str) -> Result<usize> {
        let until = Instant::now() + limit;
        let mut lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let at = lines.raw[from..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = at {
                return Ok(from + at + text.len());
            }
            let left = until.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                let why = if lines.ended { "the output ended" } else { "the time limit came" };
                let seen = String::from_utf8_lossy(&lines.raw[from..]).escape_debug().to_string();
                bail!("waited for {text:?}, but {why}; seen since: {}", &seen[seen.len().saturating_sub(3000)..]);
            }
            lines = self.shared.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream has ended.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub fn wait_end(&self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        let mut lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !lines.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the output does not end: somebody still holds it open");
            }
            lines = self.shared.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}
