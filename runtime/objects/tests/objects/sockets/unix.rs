//! Unix sockets, and those of netlink.
use super::*;

pub fn cases() -> Vec<Case> {
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
