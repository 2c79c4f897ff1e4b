//! Connections that wait to be accepted and hold bytes already.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use super::harness::*;
use super::sockets::{
    at_mark, ends_of, option, put, receive_rights, remember, remembered, send_rights, set_option, take, urgent,
};

const EDGE: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;

/// A case in which connections are taken apart. (Only root may have ports again that are in TIME_WAIT.)
fn apart(name: &'static str, make: fn(), check: fn(usize)) -> Case {
    Case { apart: true, ..Case::new(name, make, check).privileged() }
}

pub fn cases() -> Vec<Case> {
    vec![
        apart("backlog-tcp", make_tcp, check_tcp),
        apart("backlog-tcp-urgent", make_urgent, check_urgent),
        apart("backlog-tcp-ended", make_ended, check_ended),
        apart("backlog-seqpacket", make_packets, check_packets),
        Case { refused: Some("SCM_RIGHTS"), ..apart("backlog-rights-refused", make_rights, check_rights) },
        Case { refused: Some("MSG_OOB"), ..apart("backlog-out-of-band-refused", make_out_of_band, check_out_of_band) },
        Case { apart: false, refused: Some("has not accepted yet"), ..apart("backlog-refused", make_tcp, check_tcp) },
        Case {
            apart: false,
            refused: Some("closed its connection"),
            ..apart("backlog-ended-refused", make_ended, check_ended)
        },
    ]
}

fn listen() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("name");
    (listener, address)
}

fn abstract_listener() -> (UnixListener, SocketAddr) {
    let name = SocketAddr::from_abstract_name(format!("slackwater-{}", std::process::id())).expect("name");
    (UnixListener::bind_addr(&name).expect("bind"), name)
}

fn epoll(at: i32, number: i32, events: u32) {
    let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let mut event = libc::epoll_event { events, u64: 77 };
    assert_eq!(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, number, &mut event) }, 0);
    at_number(set, at);
}

fn epoll_events(set: i32) -> u32 {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let n = unsafe { libc::epoll_wait(set, &mut event, 1, 0) };
    assert!(n == 0 || event.u64 == 77);
    if n == 1 { event.events } else { 0 }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("nonblocking");
    let (accepted, _) = listener.accept().expect("accept");
    accepted.set_nonblocking(false).expect("blocking");
    accepted
}

fn nobody_waits(fd: i32) {
    fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
    assert_eq!(unsafe { libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut()) }, -1);
}

/// One that has sent, with a second number, in an epoll set and with options; one that has not; one that has shut both ways.
fn make_tcp() {
    let (listener, address) = listen();
    let mut ends = Vec::new();
    for (fd, text) in [(11, "first"), (12, ""), (13, "third")] {
        put(TcpStream::connect(address).expect("connect"), fd);
        ends.extend(ends_of(fd));
        write_all(fd, text.as_bytes());
    }
    put(listener, 10);
    remember("backlog-tcp", &ends);
    at_number(unsafe { libc::dup(11) }, 21);
    set_option(11, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set_option(11, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(11, libc::SOL_SOCKET, libc::SO_RCVBUF, 40_000);
    fcntl(11, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC);
    epoll(14, 11, EDGE);
    // An edge of the connection's beginning is none for who waits for bytes.
    assert_eq!(epoll_events(14), 0);
    for how in [libc::SHUT_WR, libc::SHUT_RD] {
        assert_eq!(unsafe { libc::shutdown(13, how) }, 0);
    }
}

fn check_tcp(_: usize) {
    let ends: Vec<_> = [11, 12, 13].into_iter().flat_map(ends_of).collect();
    remembered("backlog-tcp", &ends);
    let listener: TcpListener = take(10);
    assert_eq!(option(11, libc::SOL_SOCKET, libc::SO_ERROR), 0);
    assert_eq!(option(21, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
    assert_eq!(option(11, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    assert_eq!(option(11, libc::SOL_SOCKET, libc::SO_RCVBUF), 80_000);
    let wanted = libc::O_NONBLOCK | libc::O_ASYNC;
    assert_eq!(fcntl(21, libc::F_GETFL, 0) & wanted, wanted);
    let mut accepted: Vec<TcpStream> = (0..3).map(|_| accept(&listener)).collect();
    nobody_waits(listener.as_raw_fd());
    for (one, client) in accepted.iter().zip(ends.chunks(2)) {
        assert_eq!(one.peer_addr().expect("peer"), client[0]);
    }
    assert_eq!(read_some(accepted[0].as_raw_fd(), 5), b"first");
    accepted[0].write_all(b"answer").expect("write");
    assert_eq!(epoll_events(14) & libc::EPOLLIN as u32, libc::EPOLLIN as u32);
    fcntl(21, libc::F_SETFL, 0);
    assert_eq!(read_some(21, 6), b"answer");
    write_all(12, b"late");
    assert_eq!(read_some(accepted[1].as_raw_fd(), 4), b"late");
    let mut rest = Vec::new();
    accepted[2].read_to_end(&mut rest).expect("read");
    assert_eq!(rest, b"third");
    assert_eq!(unsafe { libc::recv(13, rest.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT) }, 0);
}

/// What is in front of the urgent byte and behind it, for a server with and one without SO_OOBINLINE.
fn make_urgent() {
    for (at, inline) in [(10, 0), (20, 1)] {
        let (listener, address) = listen();
        set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, inline);
        put(TcpStream::connect(address).expect("connect"), at + 1);
        put(listener, at);
        write_all(at + 1, b"front");
        assert_eq!(unsafe { libc::send(at + 1, b"!".as_ptr().cast(), 1, libc::MSG_OOB) }, 1);
        write_all(at + 1, b"behind");
    }
}

fn check_urgent(_: usize) {
    for (at, inline) in [(10, false), (20, true)] {
        let listener: TcpListener = take(at);
        let accepted = accept(&listener).into_raw_fd();
        assert_eq!(read_once(accepted).expect("read"), b"front");
        assert!(at_mark(accepted));
        if !inline {
            assert_eq!(urgent(accepted).as_deref(), Some(&b"!"[..]));
        }
        let rest: &[u8] = if inline { b"!behind" } else { b"behind" };
        assert_eq!(read_some(accepted, rest.len()), rest);
        assert!(!at_mark(accepted));
        unsafe { libc::close(accepted) };
    }
}

/// One has sent and closed, one has sent and was reset, one lives.
fn make_ended() {
    let (listener, address) = listen();
    let mut closed = TcpStream::connect(address).expect("connect");
    closed.write_all(b"closed").expect("write");
    drop(closed);
    let mut reset = TcpStream::connect(address).expect("connect");
    reset.write_all(b"reset").expect("write");
    let linger = [1i32, 0];
    let fd = reset.as_raw_fd();
    assert_eq!(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, linger.as_ptr().cast(), 8) }, 0);
    drop(reset);
    put(TcpStream::connect(address).expect("connect"), 11);
    write_all(11, b"alive");
    put(listener, 10);
}

fn check_ended(_: usize) {
    let listener: TcpListener = take(10);
    let mut accepted: Vec<TcpStream> = (0..3).map(|_| accept(&listener)).collect();
    nobody_waits(listener.as_raw_fd());
    let mut text = Vec::new();
    accepted[0].read_to_end(&mut text).expect("read");
    assert_eq!(text, b"closed");
    let error = accepted[1].read_to_end(&mut text).expect_err("a reset");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    assert_eq!(text, b"closedreset");
    assert_eq!(read_some(accepted[2].as_raw_fd(), 5), b"alive");
}

/// Packets of a client in an epoll set, under two numbers; and of one that has closed.
fn make_packets() {
    let name = format!("slackwater-{}", std::process::id());
    let mut address = [(libc::AF_UNIX as u16).to_ne_bytes().as_slice(), b"\0", name.as_bytes()].concat();
    let length = address.len() as u32;
    address.resize(110, 0);
    let new = || unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0) };
    let listener = new();
    assert_eq!(unsafe { libc::bind(listener, address.as_ptr().cast(), length) }, 0);
    assert_eq!(unsafe { libc::listen(listener, 8) }, 0);
    for at in [11, 12] {
        let client = new();
        assert_eq!(unsafe { libc::connect(client, address.as_ptr().cast(), length) }, 0);
        at_number(client, at);
        write_all(at, b"one");
        write_all(at, b"and two");
    }
    at_number(listener, 10);
    unsafe { libc::close(12) };
    at_number(unsafe { libc::dup(11) }, 21);
    set_option(11, libc::SOL_SOCKET, libc::SO_SNDBUF, 20_000);
    fcntl(11, libc::F_SETFL, libc::O_NONBLOCK);
    fcntl(11, libc::F_SETFD, libc::FD_CLOEXEC);
    fcntl(21, libc::F_SETFD, 0);
    epoll(14, 21, EDGE);
}

fn check_packets(_: usize) {
    assert_eq!(slackwater_socket::sys::kcmp_file(std::process::id() as i32, 11, 21), Ok(0));
    assert_eq!((fcntl(11, libc::F_GETFD, 0), fcntl(21, libc::F_GETFD, 0)), (libc::FD_CLOEXEC, 0));
    assert_eq!(fcntl(21, libc::F_GETFL, 0) & libc::O_NONBLOCK, libc::O_NONBLOCK);
    assert_eq!(option(11, libc::SOL_SOCKET, libc::SO_SNDBUF), 40_000);
    fcntl(10, libc::F_SETFL, libc::O_NONBLOCK);
    let accept = || unsafe { libc::accept(10, std::ptr::null_mut(), std::ptr::null_mut()) };
    let (first, second) = (accept(), accept());
    assert!(first >= 0 && second >= 0 && accept() < 0);
    for fd in [first, second] {
        assert_eq!(read_once(fd).expect("read"), b"one");
        assert_eq!(read_once(fd).expect("read"), b"and two");
    }
    assert_eq!(read_once(second).expect("read"), b"");
    write_all(first, b"answer");
    assert_eq!(epoll_events(14) & libc::EPOLLIN as u32, libc::EPOLLIN as u32);
    assert_eq!(read_once(11).expect("read"), b"answer");
}

/// A descriptor is among what was sent: it is taken apart, but no image has it. The program goes on with all of it.
fn make_rights() {
    let (listener, name) = abstract_listener();
    put(UnixStream::connect_addr(&name).expect("connect"), 11);
    put(listener, 10);
    let (r, w) = pipe();
    write_all(11, b"before");
    send_rights(11, b"with", &[w]);
    write_all(11, b"behind");
    unsafe { libc::close(w) };
    at_number(r, 12);
}

fn check_rights(_: usize) {
    let listener: UnixListener = take(10);
    let (accepted, _) = listener.accept().expect("accept");
    let fd = accepted.as_raw_fd();
    assert_eq!(read_some(fd, 6), b"before");
    let (data, fds) = receive_rights(fd, 4);
    assert_eq!(data, b"with");
    write_all(fds[0], b"through");
    assert_eq!(read_some(12, 7), b"through");
    assert_eq!(read_some(fd, 6), b"behind");
    unsafe { libc::close(fds[0]) };
    // Nobody else has kept a copy.
    let mut byte = [0u8; 1];
    let mut pipe = unsafe { std::fs::File::from_raw_fd(12) };
    assert_eq!(pipe.read(&mut byte).expect("the end"), 0);
}

/// A byte out of band, in its place.
fn make_out_of_band() {
    let (listener, name) = abstract_listener();
    put(UnixStream::connect_addr(&name).expect("connect"), 11);
    put(listener, 10);
    write_all(11, b"front");
    assert_eq!(unsafe { libc::send(11, b"!".as_ptr().cast(), 1, libc::MSG_OOB) }, 1);
    write_all(11, b"behind");
}

fn check_out_of_band(_: usize) {
    let listener: UnixListener = take(10);
    let (accepted, _) = listener.accept().expect("accept");
    let fd = accepted.as_raw_fd();
    assert_eq!(read_once(fd).expect("read"), b"front");
    assert!(at_mark(fd));
    assert_eq!(urgent(fd).as_deref(), Some(&b"!"[..]));
    assert_eq!(read_some(fd, 6), b"behind");
}
