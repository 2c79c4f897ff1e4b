//! Datagrams.
use super::*;

pub fn cases() -> Vec<Case> {
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
