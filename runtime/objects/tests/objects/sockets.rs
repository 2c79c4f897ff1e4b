//! Sockets.
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use slackwater_objects::rebuild::{External, Options};

use super::harness::*;
use super::pipes::pattern;

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
    let mut all = [unix(), tcp(), datagrams()].concat();
    all.retain(|case| case.name != "tcp-urgent-between" || peeks_behind());
    all
}

fn unix() -> Vec<Case> {
    vec![
        Case::new(
            "unix-stream-pair",
            || {
                unix_pair(libc::SOCK_STREAM);
                write_all(10, &pattern(100_000));
                write_all(11, b"back");
            },
            |_| {
                assert_eq!(read_some(11, 100_000), pattern(100_000));
                assert_eq!(read_some(10, 4), b"back");
                write_all(10, b"more");
                assert_eq!(read_some(11, 4), b"more");
                unsafe { libc::close(10) };
                assert_eq!(read_once(11).expect("read"), b"");
            },
        ),
        Case::new(
            "unix-stream-reset",
            || {
                unix_pair(libc::SOCK_STREAM);
                write_all(10, b"last");
                write_all(11, b"unread");
                unsafe { libc::close(10) };
            },
            |_| {
                assert_eq!(read_some(11, 4), b"last");
                assert_eq!(read_once(11).expect_err("reset").raw_os_error(), Some(libc::ECONNRESET));
                assert_eq!(read_once(11).expect("the end"), b"");
            },
        ),
        Case::new(
            "unix-stream-full",
            || {
                unix_pair(libc::SOCK_STREAM);
                let n = stuff(10, 4 << 20);
                std::fs::write("unix-full", n.to_string()).expect("write");
            },
            |_| {
                let n: usize = std::fs::read_to_string("unix-full").expect("read").parse().expect("number");
                assert!(n > 100_000);
                unsafe { libc::shutdown(10, libc::SHUT_WR) };
                assert_eq!(to_end(11), pattern(n));
            },
        ),
        Case::new(
            "unix-stream-halves",
            || {
                unix_pair(libc::SOCK_STREAM);
                write_all(10, b"bye");
                unsafe { libc::shutdown(10, libc::SHUT_WR) };
                // A peer that is gone.
                let (a, b) = UnixStream::pair().expect("pair");
                write_all(b.as_raw_fd(), b"gone");
                put(a, 12);
            },
            |_| {
                assert_eq!(read_some(11, 3), b"bye");
                assert_eq!(read_once(11).expect("read"), b"");
                write_all(11, b"still");
                assert_eq!(read_some(10, 5), b"still");
                assert_eq!(unsafe { libc::send(10, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, -1);
                assert_eq!(read_some(12, 4), b"gone");
                assert_eq!(read_once(12).expect("read"), b"");
                assert_eq!(unsafe { libc::send(12, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, -1);
                assert_eq!(errno(), libc::EPIPE);
            },
        ),
        Case::new(
            "unix-seqpacket",
            || {
                unix_pair(libc::SOCK_SEQPACKET);
                for n in [5, 0, 70_000, 1] {
                    let data = pattern(n);
                    assert_eq!(unsafe { libc::send(10, data.as_ptr().cast(), n, 0) }, n as isize);
                }
            },
            |_| {
                for n in [5, 0, 70_000, 1] {
                    assert_eq!(read_once(11).expect("read"), pattern(n));
                }
            },
        ),
        Case::new(
            "unix-listener-by-path",
            || {
                let _ = std::fs::remove_file("sock");
                let listener = UnixListener::bind("sock").expect("bind");
                let client = UnixStream::connect("sock").expect("connect");
                put(listener.accept().expect("accept").0, 12);
                put(client, 11);
                // Two that wait to be accepted.
                put(UnixStream::connect("sock").expect("connect"), 13);
                put(UnixStream::connect("sock").expect("connect"), 14);
                put(listener, 10);
                write_all(11, b"hello");
            },
            |_| {
                let (listener, client, server): (UnixListener, UnixStream, UnixStream) = (take(10), take(11), take(12));
                assert_eq!(read_some(12, 5), b"hello");
                for s in [client.peer_addr(), server.local_addr(), listener.local_addr()] {
                    assert_eq!(s.expect("name").as_pathname(), Some("sock".as_ref()));
                }
                for fd in [13, 14] {
                    let (mut accepted, _) = listener.accept().expect("accept");
                    write_all(fd, &fd.to_ne_bytes());
                    let mut got = [0; 4];
                    accepted.read_exact(&mut got).expect("read");
                    assert_eq!(i32::from_ne_bytes(got), fd);
                }
                // By its name it can be reached again.
                UnixStream::connect("sock").expect("connect");
            },
        ),
        Case::new(
            "unix-abstract",
            || {
                use std::os::linux::net::SocketAddrExt;
                let name =
                    std::os::unix::net::SocketAddr::from_abstract_name(format!("slackwater-{}", std::process::id()))
                        .expect("name");
                std::fs::write("abstract", format!("{name:?}")).expect("write");
                let listener = UnixListener::bind_addr(&name).expect("bind");
                let client = UnixStream::connect_addr(&name).expect("connect");
                put(listener.accept().expect("accept").0, 12);
                put(client, 11);
                put(listener, 10);
            },
            |_| {
                let (listener, client): (UnixListener, UnixStream) = (take(10), take(11));
                let name = std::fs::read_to_string("abstract").expect("name");
                assert_eq!(format!("{:?}", listener.local_addr().expect("name")), name);
                assert_eq!(format!("{:?}", client.peer_addr().expect("name")), name);
                write_all(12, b"x");
                assert_eq!(read_some(11, 1), b"x");
            },
        ),
        Case {
            differ: |n| unsafe {
                libc::close(if n == 0 { 10 } else { 11 });
            },
            ..Case::new(
                "unix-between-processes",
                || {
                    unix_pair(libc::SOCK_STREAM);
                    write_all(11, b"down");
                    write_all(10, b"up");
                },
                |n| {
                    if n == 0 {
                        assert_eq!(read_some(11, 2), b"up");
                        write_all(11, b"more");
                        assert_eq!(read_some(11, 1), b"!");
                    } else {
                        assert_eq!(read_some(10, 8), b"downmore");
                        write_all(10, b"!");
                    }
                },
            )
        }
        .processes(2),
        Case {
            // Who receives has them by numbers.
            again: false,
            ..Case::new(
                "unix-rights-stream",
                || {
                    unix_pair(libc::SOCK_STREAM);
                    std::fs::write("under-way", b"0123456789").expect("write");
                    at_number(open("under-way", libc::O_RDWR), 12);
                    assert_eq!(read_some(12, 3), b"012");
                    write_all(10, b"before");
                    send_rights(10, b"with", &[12]);
                    write_all(10, b"between");
                    // Nobody has these any more; in the queue of one that is under way is another.
                    let event = unsafe { libc::eventfd(7, libc::EFD_NONBLOCK) };
                    let (r, w) = pipe();
                    write_all(w, b"in a pipe");
                    let (a, b) = UnixStream::pair().expect("pair");
                    send_rights(a.as_raw_fd(), b"inner", &[r]);
                    send_rights(10, b"more", &[event, b.as_raw_fd()]);
                    at_number(w, 14);
                    unsafe { libc::close(r) };
                    unsafe { libc::close(event) };
                    put(a, 13);
                    drop(b);
                    write_all(10, b"after");
                    // A lock of the process, which closing a descriptor of the file must not cost it.
                    let mut range: libc::flock = unsafe { std::mem::zeroed() };
                    range.l_type = libc::F_WRLCK as i16;
                    assert_eq!(unsafe { libc::fcntl(12, libc::F_SETLK, &range) }, 0);
                },
                |_| {
                    // Bytes before those that came with the descriptor can be read without it.
                    assert_eq!(receive_rights(11, 4), (b"befo".to_vec(), vec![]));
                    let (data, fds) = receive_rights(11, 100);
                    assert_eq!(data, b"rewith");
                    // One description: the offset is shared.
                    assert_eq!(read_some(fds[0], 2), b"34");
                    assert_eq!(read_some(12, 2), b"56");
                    let (data, fds) = receive_rights(11, 100);
                    assert_eq!(data, b"betweenmore");
                    assert_eq!(read_some(fds[0], 8), 7u64.to_ne_bytes());
                    assert_ne!(fcntl(fds[0], libc::F_GETFL, 0) & libc::O_NONBLOCK, 0);
                    assert_eq!(fcntl(fds[1], libc::F_GETFL, 0) & libc::O_NONBLOCK, 0);
                    let (data, inner) = receive_rights(fds[1], 100);
                    assert_eq!(data, b"inner");
                    write_all(14, b"!");
                    assert_eq!(read_some(inner[0], 10), b"in a pipe!");
                    write_all(13, b"down");
                    assert_eq!(read_some(fds[1], 4), b"down");
                    assert_eq!(receive_rights(11, 100), (b"after".to_vec(), vec![]));
                    // Another process finds the file locked.
                    let pid = unsafe { libc::fork() };
                    if pid == 0 {
                        let mut range: libc::flock = unsafe { std::mem::zeroed() };
                        range.l_type = libc::F_WRLCK as i16;
                        unsafe { libc::_exit(i32::from(libc::fcntl(12, libc::F_SETLK, &range) == 0)) };
                    }
                    let mut status = 0;
                    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
                    assert_eq!(status, 0, "the lock is lost");
                },
            )
        },
        Case {
            again: false,
            differ: |n| unsafe {
                libc::close(if n == 0 { 10 } else { 11 });
            },
            ..Case::new(
                "unix-rights-between-processes",
                || {
                    unix_pair(libc::SOCK_SEQPACKET);
                    std::fs::write("handed-on", b"0123456789").expect("write");
                    at_number(open("handed-on", libc::O_RDONLY), 12);
                    send_rights(10, b"one", &[12]);
                    write_all(10, b"two");
                    // A socket in its own queue.
                    send_rights(10, b"three", &[11, 12]);
                },
                |n| {
                    if n == 0 {
                        let (data, fds) = receive_rights(11, 100);
                        assert_eq!((data.as_slice(), fds.len()), (&b"one"[..], 1));
                        assert_eq!(read_some(fds[0], 4), b"0123");
                        assert_eq!(receive_rights(11, 100), (b"two".to_vec(), vec![]));
                        let (data, fds) = receive_rights(11, 100);
                        assert_eq!((data.as_slice(), fds.len()), (&b"three"[..], 2));
                        write_all(fds[0], b"!");
                        assert_eq!(read_some(11, 1), b"!");
                        assert_eq!(read_some(12, 2), b"56");
                    } else {
                        assert_eq!(read_some(10, 1), b"!");
                        assert_eq!(read_some(12, 1), b"4");
                        write_all(10, b"!");
                    }
                },
            )
        }
        .processes(2),
        Case {
            again: false,
            ..Case::new(
                "unix-rights-datagram",
                || {
                    let receiver = UnixDatagram::bind("rights.sock").expect("bind");
                    let sender = UnixDatagram::unbound().expect("socket");
                    sender.connect("rights.sock").expect("connect");
                    put(receiver, 10);
                    put(sender, 11);
                    let (r, w) = pipe();
                    write_all(11, b"first");
                    send_rights(11, b"second", &[r]);
                    write_all(11, b"third");
                    at_number(w, 12);
                    unsafe { libc::close(r) };
                },
                |_| {
                    assert_eq!(receive_rights(10, 100), (b"first".to_vec(), vec![]));
                    let (data, fds) = receive_rights(10, 100);
                    assert_eq!(data, b"second");
                    write_all(12, b"through");
                    assert_eq!(read_some(fds[0], 7), b"through");
                    assert_eq!(receive_rights(10, 100), (b"third".to_vec(), vec![]));
                },
            )
        },
        Case {
            refused: Some("raw or packet"),
            ..Case::new(
                "raw-refused",
                || {
                    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0) };
                    assert!(fd >= 0);
                },
                |_| {},
            )
            .privileged()
        },
        // Has TCP's number for a protocol, and is none.
        Case {
            refused: Some("raw or packet"),
            ..Case::new(
                "raw-tcp-refused",
                || {
                    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP) };
                    assert!(fd >= 0);
                },
                |_| {},
            )
            .privileged()
        },
    ]
}

fn tcp() -> Vec<Case> {
    vec![
        Case::new(
            "tcp-pair-4MiB-each-way",
            || {
                let (client, server) = tcp_pair("127.0.0.1:0");
                client.set_nodelay(true).expect("option");
                remember("tcp-ends", &[client.local_addr().expect("a"), client.peer_addr().expect("a")]);
                put(client, 10);
                put(server, 11);
                let sizes = [stuff(10, 4 << 20), stuff(11, 4 << 20)];
                std::fs::write("tcp-full", format!("{sizes:?}")).expect("write");
                assert!(sizes[0] > 1 << 20, "{sizes:?}");
            },
            |_| {
                remembered("tcp-ends", &ends_of(10));
                assert_eq!(option(10, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
                assert_eq!(option(11, libc::IPPROTO_TCP, libc::TCP_NODELAY), 0);
                let sizes = std::fs::read_to_string("tcp-full").expect("read");
                let got = [read_all_waiting(11), read_all_waiting(10)];
                assert_eq!(format!("{:?}", [got[0].len(), got[1].len()]), sizes);
                for data in got {
                    assert_eq!(data, pattern(data.len()));
                }
                write_all(10, b"next");
                assert_eq!(read_some(11, 4), b"next");
                unsafe { libc::close(10) };
                assert_eq!(read_once(11).expect("read"), b"");
            },
        )
        .privileged(),
        Case::new(
            "tcp-window-fixed-and-full",
            || {
                let (client, server) = tcp_pair("127.0.0.1:0");
                put(client, 10);
                put(server, 11);
                let size = 4096i32;
                unsafe { libc::setsockopt(11, libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const size).cast(), 4) };
                let sent = stuff(10, 4 << 20);
                assert!(sent > 100_000, "{sent}");
                std::fs::write("window-full", sent.to_string()).expect("write");
            },
            |_| {
                let sent: usize = std::fs::read_to_string("window-full").expect("read").parse().expect("number");
                assert!(option(11, libc::SOL_SOCKET, libc::SO_RCVBUF) >= 8192);
                let got = read_all_waiting(11);
                assert_eq!((got.len(), got == pattern(sent)), (sent, true));
                write_all(10, b"next");
                assert_eq!(read_some(11, 4), b"next");
            },
        ),
        Case::new(
            "tcp-small-unread-v6",
            || {
                let (client, server) = tcp_pair("[::1]:0");
                remember("tcp6-ends", &[client.local_addr().expect("a"), client.peer_addr().expect("a")]);
                put(client, 10);
                put(server, 11);
                write_all(10, b"six");
            },
            |_| {
                remembered("tcp6-ends", &ends_of(10));
                assert_eq!(read_some(11, 3), b"six");
            },
        ),
        Case::new("tcp-urgent", || make_urgent(&URGENT), |_| check_urgent(&URGENT)),
        Case::new("tcp-urgent-between", || make_urgent(&URGENT_BETWEEN), |_| check_urgent(&URGENT_BETWEEN)),
        Case::new(
            "tcp-connecting",
            || {
                // A backlog of none has room for one: the others are being made until somebody accepts.
                let listener = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
                assert_eq!(unsafe { libc::listen(listener, 0) }, 0);
                let listener = at_number(listener, 10);
                let any = std::mem::ManuallyDrop::new(take::<TcpListener>(listener));
                let port = any.local_addr().expect("name").port();
                let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                to.sin_family = libc::AF_INET as u16;
                to.sin_port = port.to_be();
                to.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
                for (n, at) in (11..13).enumerate() {
                    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
                    at_number(unsafe { libc::socket(libc::AF_INET, kind, 0) }, at);
                    assert_eq!(unsafe { libc::connect(at, (&raw const to).cast(), 16) }, -1);
                    assert_eq!(errno(), libc::EINPROGRESS);
                    let mut p = libc::pollfd { fd: at, events: libc::POLLOUT, revents: 0 };
                    assert_eq!(unsafe { libc::poll(&mut p, 1, 200) }, 1 - n as i32);
                }
            },
            |_| {
                let listener: TcpListener = take(10);
                for fd in [11, 12] {
                    let (accepted, _) = listener.accept().expect("accept");
                    let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
                    assert_eq!(unsafe { libc::poll(&mut p, 1, 10_000) }, 1);
                    assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_ERROR), 0);
                    write_all(fd, b"there");
                    assert_eq!(read_some(accepted.as_raw_fd(), 5), b"there");
                }
            },
        )
        .privileged(),
        Case::new(
            "tcp-dual-stack",
            || {
                let listener = TcpListener::bind("[::]:0").expect("bind");
                let port = listener.local_addr().expect("name").port();
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
                put(listener.accept().expect("accept").0, 11);
                remember("dual", &[client.local_addr().expect("a"), client.peer_addr().expect("a")]);
                put(client, 10);
                put(listener, 12);
                write_all(11, b"mapped");
            },
            |_| {
                remembered("dual", &ends_of(10));
                assert_eq!(read_some(10, 6), b"mapped");
                let listener: TcpListener = take(12);
                TcpStream::connect((Ipv4Addr::LOCALHOST, listener.local_addr().expect("name").port()))
                    .expect("connect");
                listener.accept().expect("accept");
            },
        ),
        Case::new(
            "tcp-half-closed",
            || {
                let (client, server) = tcp_pair("127.0.0.1:0");
                put(client, 10);
                put(server, 11);
                write_all(10, b"bye");
                unsafe { libc::shutdown(10, libc::SHUT_WR) };
            },
            |_| {
                assert_eq!(read_some(11, 3), b"bye");
                assert_eq!(read_once(11).expect("read"), b"");
                write_all(11, b"still");
                assert_eq!(read_some(10, 5), b"still");
                assert_eq!(unsafe { libc::send(10, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, -1);
            },
        )
        .privileged(),
        Case::new(
            "tcp-ended",
            || {
                let (client, server) = tcp_pair("127.0.0.1:0");
                write_all(server.as_raw_fd(), b"last");
                drop(server);
                put(client, 10);
                // Both have closed; nothing is unread.
                let (client, server) = tcp_pair("127.0.0.1:0");
                drop(server);
                client.shutdown(std::net::Shutdown::Write).expect("shutdown");
                put(client, 11);
            },
            |_| {
                assert_eq!(read_some(10, 4), b"last");
                assert_eq!(read_once(10).expect("read"), b"");
                assert_eq!(read_once(11).expect("read"), b"");
                assert_eq!(unsafe { libc::send(11, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, -1);
                assert_eq!(errno(), libc::EPIPE);
            },
        ),
        Case::new(
            "tcp-listener-backlog",
            || {
                let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
                let address = listener.local_addr().expect("name");
                put(TcpStream::connect(address).expect("connect"), 11);
                put(listener.accept().expect("accept").0, 12);
                put(TcpStream::connect(address).expect("connect"), 13);
                remember("listener", &[address]);
                put(listener, 10);
                unsafe {
                    let one = 1i32;
                    libc::setsockopt(12, libc::SOL_SOCKET, libc::SO_KEEPALIVE, (&raw const one).cast(), 4);
                }
                write_all(11, b"hi");
            },
            |_| {
                let listener: TcpListener = take(10);
                remembered("listener", &[listener.local_addr().expect("name")]);
                assert_eq!(read_some(12, 2), b"hi");
                assert_eq!(option(12, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
                let (accepted, _) = listener.accept().expect("accept");
                write_all(13, b"late");
                assert_eq!(read_some(accepted.as_raw_fd(), 4), b"late");
                TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
            },
        )
        .privileged(),
        Case::new(
            "tcp-port-in-time-wait",
            || {
                // A server without SO_REUSEADDR, whose connection was closed by itself a moment ago.
                let listener = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
                assert_eq!(unsafe { libc::listen(listener, 5) }, 0);
                let any: TcpListener = take(listener);
                let port = any.local_addr().expect("name").port();
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
                drop(any.accept().expect("accept").0);
                drop(client);
                remember("time-wait", &[any.local_addr().expect("name")]);
                put(any, 10);
            },
            |_| {
                let listener: TcpListener = take(10);
                let address = listener.local_addr().expect("name");
                remembered("time-wait", &[address]);
                TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).expect("connect");
            },
        )
        .privileged(),
        Case {
            check_original: false,
            options: || Options { external: External::Fail, ..Options::default() },
            prepare_fails: Some("a connection from 127.0.0.1:"),
            ..Case::new("tcp-outside-fails", connect_outside, |_| {})
        },
        Case {
            check_original: false,
            // It is a broken connection now.
            again: false,
            ..Case::new("tcp-outside-is-reset", connect_outside, |_| {
                assert_eq!(read_some(10, 9), b"from afar");
                assert_eq!(read_once(10).expect_err("reset").raw_os_error(), Some(libc::ECONNRESET));
            })
        },
        Case {
            differ: |n| unsafe {
                libc::close(if n == 0 { 10 } else { 11 });
            },
            ..Case::new(
                "tcp-between-processes",
                || {
                    let (client, server) = tcp_pair("127.0.0.1:0");
                    put(client, 10);
                    put(server, 11);
                    write_all(10, &pattern(300_000));
                    write_all(11, b"down");
                },
                |n| {
                    if n == 0 {
                        assert_eq!(read_some(11, 300_001), [pattern(300_000), b"!".to_vec()].concat());
                        write_all(11, b"!");
                    } else {
                        write_all(10, b"!");
                        assert_eq!(read_some(10, 5), b"down!");
                    }
                },
            )
            .privileged()
        }
        .processes(2),
    ]
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

fn datagrams() -> Vec<Case> {
    vec![
        Case::new(
            "udp-multicast",
            || {
                let four = UdpSocket::bind("0.0.0.0:0").expect("bind");
                four.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).expect("join");
                put(four, 10);
                let six = UdpSocket::bind("[::]:0").expect("bind");
                six.join_multicast_v6(&GROUP6, 1).expect("join");
                put(six, 11);
                put(UdpSocket::bind("0.0.0.0:0").expect("bind"), 12);
                // Of one source alone (IP_ADD_SOURCE_MEMBERSHIP: group, interface, source), and of all but one (IP_BLOCK_SOURCE).
                put(UdpSocket::bind("0.0.0.0:0").expect("bind"), 13);
                let request = [GROUP, Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 1, 1, 1)].map(|ip| ip.octets()).concat();
                slackwater_socket::sys::setsockopt_bytes(13, libc::IPPROTO_IP, 39, &request).expect("join");
                let other = UdpSocket::bind("0.0.0.0:0").expect("bind");
                other.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).expect("join");
                put(other, 14);
                slackwater_socket::sys::setsockopt_bytes(14, libc::IPPROTO_IP, 38, &request).expect("block");
            },
            |_| {
                // Leaving (40) or unblocking (37) a source that is not there fails.
                let request = [GROUP, Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 1, 1, 1)].map(|ip| ip.octets()).concat();
                slackwater_socket::sys::setsockopt_bytes(13, libc::IPPROTO_IP, 40, &request).expect("its source");
                slackwater_socket::sys::setsockopt_bytes(14, libc::IPPROTO_IP, 37, &request).expect("its source");
                let (four, six, none): (UdpSocket, UdpSocket, UdpSocket) = (take(10), take(11), take(12));
                four.leave_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).expect("a member");
                four.leave_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).expect_err("once");
                six.leave_multicast_v6(&GROUP6, 1).expect("a member");
                none.leave_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).expect_err("no member");
            },
        ),
        Case::new(
            "unix-datagram-pair",
            || {
                unix_pair(libc::SOCK_DGRAM);
                for n in [3, 0, 900] {
                    let data = pattern(n);
                    assert_eq!(unsafe { libc::send(10, data.as_ptr().cast(), n, 0) }, n as isize);
                }
            },
            |_| {
                for n in [3, 0, 900] {
                    assert_eq!(read_once(11).expect("read"), pattern(n));
                }
                write_all(11, b"back");
                assert_eq!(read_once(10).expect("read"), b"back");
            },
        ),
        Case::new(
            "unix-datagram-named",
            || {
                for name in ["dgram-a", "dgram-b", "dgram-c"] {
                    let _ = std::fs::remove_file(name);
                }
                let (a, b) =
                    (UnixDatagram::bind("dgram-a").expect("bind"), UnixDatagram::bind("dgram-b").expect("bind"));
                b.send_to(b"from b", "dgram-a").expect("send");
                // From one that is gone, and from one without a name.
                UnixDatagram::bind("dgram-c").expect("bind").send_to(b"from c", "dgram-a").expect("send");
                UnixDatagram::unbound().expect("socket").send_to(b"from nobody", "dgram-a").expect("send");
                b.connect("dgram-a").expect("connect");
                put(a, 10);
                put(b, 11);
            },
            |_| {
                let (a, b): (UnixDatagram, UnixDatagram) = (take(10), take(11));
                let mut buffer = [0; 100];
                for (text, name) in [("from b", Some("dgram-b")), ("from c", Some("dgram-c")), ("from nobody", None)] {
                    let (n, from) = a.recv_from(&mut buffer).expect("receive");
                    assert_eq!(&buffer[..n], text.as_bytes());
                    assert_eq!(from.as_pathname(), name.map(AsRef::as_ref));
                }
                b.send(b"by connection").expect("send");
                assert_eq!(a.recv(&mut buffer).expect("receive"), 13);
            },
        ),
        Case::new(
            "udp",
            || {
                let (a, b) =
                    (UdpSocket::bind("127.0.0.1:0").expect("bind"), UdpSocket::bind("127.0.0.1:0").expect("bind"));
                let (to_a, to_b) = (a.local_addr().expect("name"), b.local_addr().expect("name"));
                for text in ["one", "", "three"] {
                    b.send_to(text.as_bytes(), to_a).expect("send");
                }
                remember("udp", &[to_a, to_b]);
                b.connect(to_a).expect("connect");
                put(a, 10);
                put(b, 11);
            },
            |_| {
                let (a, b): (UdpSocket, UdpSocket) = (take(10), take(11));
                remembered("udp", &[a.local_addr().expect("name"), b.local_addr().expect("name")]);
                let mut buffer = [0; 100];
                for text in ["one", "", "three"] {
                    let (n, from) = a.recv_from(&mut buffer).expect("receive");
                    assert_eq!(&buffer[..n], text.as_bytes());
                    assert_eq!(from, b.local_addr().expect("name"));
                }
                a.send_to(b"answer", b.local_addr().expect("name")).expect("send");
                assert_eq!(b.recv(&mut buffer).expect("receive"), 6);
                assert_eq!(option(10, libc::SOL_SOCKET, libc::SO_REUSEADDR), 0);
            },
        ),
        Case::new(
            "netlink-and-idle",
            || {
                at_number(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE) }, 10);
                at_number(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }, 11);
                at_number(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) }, 12);
            },
            |_| {
                assert_eq!(option(10, libc::SOL_SOCKET, libc::SO_DOMAIN), libc::AF_NETLINK);
                let (client, listener) = (11, TcpListener::bind("127.0.0.1:0").expect("bind"));
                let port = listener.local_addr().expect("name").port();
                let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                to.sin_family = libc::AF_INET as u16;
                to.sin_port = port.to_be();
                to.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
                assert_eq!(unsafe { libc::connect(client, (&raw const to).cast(), 16) }, 0);
            },
        ),
    ]
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
