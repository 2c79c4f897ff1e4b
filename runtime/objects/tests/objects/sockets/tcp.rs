//! TCP.
use super::*;

pub fn cases() -> Vec<Case> {
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
            "tcp-closed-by-peer-unread",
            || {
                // All has arrived, the end, too; the kernel keeps nothing of the other end but that it was there.
                let (client, mut server) = tcp_pair("127.0.0.1:0");
                let ports = [&server, &client].map(|s| s.local_addr().expect("name").port());
                put(client, 10);
                write_all(10, b"request");
                server.read_exact(&mut [0; 7]).expect("read");
                server.write_all(&pattern(100_000)).expect("write");
                drop(server);
                // TCP_FIN_WAIT2 5: its end has been acknowledged.
                let there = format!("0100007F:{:04X} 0100007F:{:04X} 05", ports[0], ports[1]);
                while !std::fs::read_to_string("/proc/net/tcp").expect("read").contains(&there) {
                    std::thread::yield_now();
                }
            },
            |_| {
                assert_eq!(read_some(10, 100_000), pattern(100_000));
                assert_eq!(read_once(10).expect("read"), b"");
            },
        ),
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
