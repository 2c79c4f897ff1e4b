//! Internet addresses, read out of `struct sockaddr_in` and `struct sockaddr_in6`.

/// One end of a connection. IPv4-mapped IPv6 addresses are IPv4 ones: a dual-stack socket and an IPv4 one can be peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address, IPv4 mapped (::ffff:a.b.c.d).
    pub ip: [u8; 16],
    /// Port.
    pub port: u16,
    /// Interface of a link-local address.
    pub scope: u32,
}

const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Endpoint {
    /// Out of a socket address; None: another family.
    pub fn parse(address: &[u8]) -> Option<Self> {
        let family = i32::from(u16::from_ne_bytes(address.get(..2)?.try_into().ok()?));
        let port = u16::from_be_bytes(address.get(2..4)?.try_into().ok()?);
        let mut ip = [0u8; 16];
        let mut scope = 0;
        if family == libc::AF_INET {
            ip[..12].copy_from_slice(&MAPPED);
            ip[12..].copy_from_slice(address.get(4..8)?);
        } else if family == libc::AF_INET6 {
            ip.copy_from_slice(address.get(8..24)?);
            scope = u32::from_ne_bytes(address.get(24..28)?.try_into().ok()?);
        } else {
            return None;
        }
        Some(Self { ip, port, scope })
    }

    /// AF_INET or AF_INET6.
    pub fn family(&self) -> i32 {
        if self.ip[..12] == MAPPED { libc::AF_INET } else { libc::AF_INET6 }
    }

    /// 0.0.0.0 or ::.
    pub fn is_any(&self) -> bool {
        self.ip == [0; 16] || self.ip[..12] == MAPPED && self.ip[12..] == [0; 4]
    }

    /// The form in `struct inet_diag_sockid`.
    pub fn diag(&self) -> [u8; 16] {
        let mut out = [0u8; 16];
        if self.family() == libc::AF_INET {
            out[..4].copy_from_slice(&self.ip[12..]);
        } else {
            out = self.ip;
        }
        out
    }

    /// As a socket address of `family` (an IPv4 address can be one of either).
    pub fn address(&self, family: i32) -> alloc::vec::Vec<u8> {
        let (bytes, length) = self.raw(family);
        bytes[..length].to_vec()
    }

    /// As [`Endpoint::address`], without an allocation: the bytes, and how many of them count.
    pub fn raw(&self, family: i32) -> ([u8; 28], usize) {
        let mut out = [0u8; 28];
        out[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        out[2..4].copy_from_slice(&self.port.to_be_bytes());
        if family == libc::AF_INET {
            out[4..8].copy_from_slice(&self.ip[12..]);
            (out, 16)
        } else {
            out[8..24].copy_from_slice(&self.ip);
            out[24..].copy_from_slice(&self.scope.to_ne_bytes());
            (out, 28)
        }
    }
}
