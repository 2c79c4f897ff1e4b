//! Sockets: what their cases share.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use slackwater_objects::rebuild::{External, Options};

use super::harness::*;
use super::pipes::pattern;

mod datagrams;
mod tcp;
mod unix;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 7, 8, 9);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 7, 8);

pub fn put(socket: impl IntoRawFd, number: i32) {
    at_number(socket.into_raw_fd(), number);
}

/// A std socket on a fixed number; closed at the end of its scope.
pub fn take<T: FromRawFd>(number: i32) -> T {
    unsafe { T::from_raw_fd(number) }
}

/// Writes until nothing goes in any more, at most `n` bytes of the pattern; returns how many.
fn stuff(fd: i32, n: usize) -> usize {
    fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
    let data = pattern(n);
    let mut at = 0;
    while at < n {
        let done = unsafe { libc::write(fd, data[at..].as_ptr().cast(), n - at) };
        if done < 0 {
            break;
        }
        at += done as usize;
    }
    fcntl(fd, libc::F_SETFL, 0);
    at
}

fn to_end(fd: i32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut socket: std::fs::File = take(fd);
    socket.read_to_end(&mut out).expect("read");
    out
}

fn unix_pair(kind: i32) {
    let mut ends = [0; 2];
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
    at_number(ends[0], 10);
    at_number(ends[1], 11);
}

fn tcp_pair(listen: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(listen).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (client, server)
}

/// Addresses must be the same before and after: kept in a file by `make`.
pub fn remember(name: &str, addresses: &[SocketAddr]) {
    std::fs::write(name, format!("{addresses:?}")).expect("write");
}

pub fn remembered(name: &str, addresses: &[SocketAddr]) {
    assert_eq!(std::fs::read_to_string(name).expect("read"), format!("{addresses:?}"));
}

pub fn ends_of(fd: i32) -> [SocketAddr; 2] {
    let s = std::mem::ManuallyDrop::new(take::<TcpStream>(fd));
    [s.local_addr().expect("local"), s.peer_addr().expect("peer")]
}

pub fn option(fd: i32, level: i32, name: i32) -> i32 {
    slackwater_socket::sys::getsockopt(fd, level, name).expect("getsockopt")
}

pub fn set_option(fd: i32, level: i32, name: i32, value: i32) {
    slackwater_socket::sys::setsockopt(fd, level, name, value).expect("setsockopt");
}

pub fn at_mark(fd: i32) -> bool {
    let mut mark = 0i32;
    assert_eq!(
        unsafe {
            libc::ioctl(fd, 0x8905 /* SIOCATMARK */, &raw mut mark)
        },
        0
    );
    mark != 0
}

// The byte that came by MSG_OOB.
pub fn urgent(fd: i32) -> Option<Vec<u8>> {
    let mut byte = [0u8];
    (unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), 1, libc::MSG_OOB) } == 1).then(|| byte.to_vec())
}

/// A pair of numbers, what is sent before and after the urgent byte, whether that is in line, and whether it has been received.
type Marked = (i32, &'static [u8], &'static [u8], bool, bool);
const URGENT: [Marked; 4] = [
    (10, b"", b"behind", false, false),
    (12, b"", b"behind", true, false),
    (14, b"", b"", false, false),
    (16, b"front", b"", false, false),
];
const URGENT_BETWEEN: [Marked; 3] = [
    (10, b"front", b"behind", false, false),
    (12, b"front", b"behind", true, false),
    (14, b"front", b"behind", false, true),
];

fn make_urgent(all: &[Marked]) {
    for &(at, before, behind, inline, read) in all {
        let (client, server) = tcp_pair("127.0.0.1:0");
        put(client, at);
        put(server, at + 1);
        set_option(at + 1, libc::SOL_SOCKET, libc::SO_OOBINLINE, inline.into());
        write_all(at, before);
        assert_eq!(unsafe { libc::send(at, b"!".as_ptr().cast(), 1, libc::MSG_OOB) }, 1);
        write_all(at, behind);
        if read {
            assert_eq!(urgent(at + 1).as_deref(), Some(&b"!"[..]));
        }
    }
}

fn check_urgent(all: &[Marked]) {
    for &(at, before, behind, inline, read) in all {
        assert_eq!(at_mark(at + 1), before.is_empty());
        if !before.is_empty() {
            // A read ends at the mark.
            assert_eq!(read_once(at + 1).expect("read"), before);
        }
        assert!(at_mark(at + 1));
        assert_eq!(urgent(at + 1).as_deref(), (!inline && !read).then_some(&b"!"[..]));
        write_all(at, b"...");
        let rest = [if inline { &b"!"[..] } else { b"" }, behind, b"..."].concat();
        assert_eq!(read_some(at + 1, rest.len()), rest);
        assert!(!at_mark(at + 1));
    }
}

// SO_PEEK_OFF of TCP: Linux 6.10.
fn peeks_behind() -> bool {
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    let works = slackwater_socket::sys::setsockopt(fd, libc::SOL_SOCKET, 42, 0).is_ok();
    unsafe { libc::close(fd) };
    works
}

pub fn cases() -> Vec<Case> {
    let mut all = [unix::cases(), tcp::cases(), datagrams::cases()].concat();
    all.retain(|case| case.name != "tcp-urgent-between" || peeks_behind());
    all
}

/// All that can be read without the writer doing anything more: until nothing comes for a second.
fn read_all_waiting(fd: i32) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        if unsafe { libc::poll(&mut p, 1, 1000) } == 0 {
            return out;
        }
        out.extend(read_once(fd).expect("read"));
    }
}

// 10: a connection whose other end is in a process outside the computation, which lives until this one ends.
fn connect_outside() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("name");
    let (r, w) = pipe();
    if unsafe { libc::fork() } == 0 {
        unsafe { libc::close(w) };
        let (accepted, _) = listener.accept().expect("accept");
        write_all(accepted.as_raw_fd(), b"from afar");
        let _ = read_once(r);
        unsafe { libc::_exit(0) };
    }
    drop(listener);
    at_number(w, 20);
    unsafe { libc::close(r) };
    put(TcpStream::connect(address).expect("connect"), 10);
    let mut byte = [0];
    assert_eq!(unsafe { libc::recv(10, byte.as_mut_ptr().cast(), 1, libc::MSG_PEEK) }, 1);
}

// sendmsg(2) with descriptors.
pub fn send_rights(to: i32, data: &[u8], fds: &[i32]) {
    let mut control = [0u64; 32];
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4 * fds.len() as u32) } as _;
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4 * fds.len() as u32) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast::<i32>(), fds.len());
        assert_eq!(libc::sendmsg(to, &message, 0), data.len() as isize);
    }
}

// recvmsg(2) with room for descriptors.
pub fn receive_rights(from: i32, n: usize) -> (Vec<u8>, Vec<i32>) {
    let mut control = [0u64; 32];
    let mut data = vec![0u8; n];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: n };
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let got = unsafe { libc::recvmsg(from, &mut message, 0) };
    assert!(got > 0, "recvmsg: {got}");
    assert_eq!(message.msg_flags & libc::MSG_CTRUNC, 0);
    data.truncate(got as usize);
    let mut fds = Vec::new();
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        if !header.is_null() {
            assert_eq!((*header).cmsg_type, libc::SCM_RIGHTS);
            let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / 4;
            fds.extend((0..count).map(|i| *libc::CMSG_DATA(header).cast::<i32>().add(i)));
        }
    }
    (data, fds)
}
