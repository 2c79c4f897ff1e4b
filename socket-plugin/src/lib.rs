//! Sockets: captured by asking the kernel and by peeking, rebuilt from that.
//!
//! Two halves. *Capture* ([`recognise`], [`quiet`], [`describe`], [`settle`], [`fill`]) runs inside the stopped program (`no_std`, raw system calls,
//! [`sys`]); it never takes a byte out of a queue, but for [`waiting`]. *Rebuild* (feature `rebuild`) is ordinary Rust in `slackwater restart`.
#![cfg_attr(not(feature = "rebuild"), no_std)]
#![deny(unsafe_code)]
extern crate alloc;

pub mod address;
mod arch;
mod capture;
pub mod diag;
pub mod known;
pub mod model;
mod multicast;
pub mod options;
#[cfg(feature = "rebuild")]
pub mod rebuild;

mod restore;
mod rights;
pub mod sys;
mod urgent;
pub mod waiting;

pub use capture::{Name, Refusal, describe, fill, quiet, recognise, settle, under_way};

/// Payload bytes (written, arrived) in a connection's life, out of `struct tcp_info` (Linux 4.19 has all fields).
///
/// Retransmissions count as sent, so they are taken off; an arrived FIN counts as one byte, so it is too; and so is a FIN
/// that waits behind unsent data.
pub fn tcp_counters(info: &[u8]) -> (u64, u64) {
    let u64_at = |at: usize| info.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap_or_default()));
    let u32_at = |at: usize| info.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap_or_default()));
    let state = info.first().copied().unwrap_or(0);
    // tcpi_bytes_received 128, tcpi_notsent_bytes 144, tcpi_bytes_sent 200, tcpi_bytes_retrans 208.
    let mut unsent = u64::from(u32_at(144));
    if unsent > 0 && model::Tcp::fin_sent(state) {
        unsent -= 1;
    }
    let written = u64_at(200).wrapping_sub(u64_at(208)).wrapping_add(unsent);
    let arrived = u64_at(128).wrapping_sub(u64::from(model::Tcp::fin_arrived(state)));
    (written, arrived)
}
