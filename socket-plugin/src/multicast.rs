//! Memberships of UDP sockets in multicast groups.
//!
//! The kernel lists the groups of each interface (/proc/net/igmp, /proc/net/igmp6), not who has joined them; but it tells a member its
//! filter of sources (MCAST_MSFILTER, RFC 3678), and nobody else. A membership is kept as the option that makes it
//! (MCAST_JOIN_GROUP), with a `struct group_req`.
use alloc::{vec, vec::Vec};

use crate::sys;

/// Joins a group: (interface, padding, address of the group in 128 bytes).
pub const MCAST_JOIN_GROUP: i32 = 42;
/// Sets, or tells, the sources of a membership.
pub const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
/// Size of a `struct group_req`.
pub const PLAIN: usize = 136;
// struct sockaddr_storage.
const SOURCE: usize = 128;

/// The memberships of a socket of this family: each as a `struct group_req`, or, where it has sources of its own, as a `struct
/// group_filter`.
pub fn memberships(fd: i32, family: i32) -> Vec<Vec<u8>> {
    let four = sys::read_file(b"/proc/self/net/igmp").map(|text| of_four(&text)).unwrap_or_default();
    // An IPv6 socket may be a member of IPv4 groups, too.
    let six = match family {
        libc::AF_INET6 => sys::read_file(b"/proc/self/net/igmp6").map(|text| of_six(&text)).unwrap_or_default(),
        _ => Vec::new(),
    };
    let all = four.into_iter().map(|g| (libc::IPPROTO_IP, g)).chain(six.into_iter().map(|g| (libc::IPPROTO_IPV6, g)));
    all.filter_map(|(level, group)| filter(fd, level, group)).collect()
}

// struct group_filter begins as struct group_req does; its mode, its number of sources, and they themselves follow.
fn filter(fd: i32, level: i32, group: Vec<u8>) -> Option<Vec<u8>> {
    let ask = |sources: usize| {
        let mut filter = vec![0u8; PLAIN + 8 + sources * SOURCE];
        filter[..PLAIN].copy_from_slice(&group);
        filter[PLAIN + 4..PLAIN + 8].copy_from_slice(&(sources as u32).to_ne_bytes());
        sys::getsockopt_into(fd, level, MCAST_MSFILTER, &mut filter).is_ok().then_some(filter)
    };
    let word = |filter: &[u8], at: usize| {
        filter.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap_or_default()))
    };
    let first = ask(0)?;
    let sources = word(&first, PLAIN + 4);
    // All sources but none: what a plain membership is.
    if word(&first, PLAIN) == MCAST_EXCLUDE && sources == 0 { Some(group) } else { ask(sources as usize) }
}

/// IPPROTO_IP or IPPROTO_IPV6, for a `struct group_req`.
pub fn level(group: &[u8]) -> i32 {
    if group.get(8..10) == Some(&(libc::AF_INET as u16).to_ne_bytes()) { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn request(interface: u64, family: i32, at: usize, address: &[u8]) -> Vec<u8> {
    let mut out = vec![0u8; 136];
    out[..4].copy_from_slice(&(interface as u32).to_ne_bytes());
    out[8..10].copy_from_slice(&(family as u16).to_ne_bytes());
    out[8 + at..8 + at + address.len()].copy_from_slice(address);
    out
}

// `1<tab>lo : 1 V3`, then for each of its groups `<tabs>010000E0 1 0:00000000 0`: the address as a number in memory's order.
fn of_four(text: &[u8]) -> Vec<Vec<u8>> {
    let mut interface = 0;
    let mut out = Vec::new();
    for line in text.split(|&b| b == b'\n').skip(1) {
        let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
        let Some(first) = words.next() else { continue };
        if !line.starts_with(b"\t") {
            interface = sys::decimal(first).unwrap_or(0);
        } else if let Some(group) = sys::hex(first) {
            out.push(request(interface, libc::AF_INET, 4, &(group as u32).to_ne_bytes()));
        }
    }
    out
}

// `1    lo    ff020000000000000000000000000001     1 0000000C 0`.
fn of_six(text: &[u8]) -> Vec<Vec<u8>> {
    let one = |line: &[u8]| {
        let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
        let interface = sys::decimal(words.next()?)?;
        let digits = words.nth(1)?;
        let address: Option<Vec<u8>> = digits.chunks(2).map(|two| sys::hex(two).map(|v| v as u8)).collect();
        Some(request(interface, libc::AF_INET6, 8, &address.filter(|a| a.len() == 16)?))
    };
    text.split(|&b| b == b'\n').filter_map(one).collect()
}
