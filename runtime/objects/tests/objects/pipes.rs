//! Pipes, FIFOs, ptys, the world outside.
use super::harness::*;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "pipe-unread",
            || {
                let (r, w) = pipe();
                at_number(r, 10);
                at_number(w, 11);
                fcntl(11, libc::F_SETPIPE_SZ, 1 << 18);
                fcntl(11, libc::F_SETFL, libc::O_NONBLOCK);
                write_all(11, &pattern(200_000));
            },
            |_| {
                assert_eq!(fcntl(10, libc::F_GETPIPE_SZ, 0), 1 << 18);
                assert_eq!(fcntl(11, libc::F_GETFL, 0) & libc::O_NONBLOCK, libc::O_NONBLOCK);
                assert_eq!(fcntl(10, libc::F_GETFL, 0) & libc::O_NONBLOCK, 0);
                assert_eq!(read_some(10, 200_000), pattern(200_000));
                write_all(11, b"next");
                assert_eq!(read_some(10, 4), b"next");
                // EOF when the only writer closes: no end of it is left anywhere else.
                unsafe { libc::close(11) };
                assert_eq!(read_once(10).expect("read"), b"");
            },
        ),
        Case::new(
            "pipe-full-64k",
            || {
                let (r, w) = pipe();
                at_number(r, 10);
                at_number(w, 11);
                write_all(11, &pattern(65536));
            },
            |_| assert_eq!(read_some(10, 65536), pattern(65536)),
        ),
        Case::new(
            "pipe-packets",
            || {
                let mut ends = [0; 2];
                assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_DIRECT) }, 0);
                at_number(ends[0], 10);
                at_number(ends[1], 11);
                for n in 1..=5 {
                    write_all(11, &pattern(n * 10));
                }
            },
            |_| {
                for n in 1..=5 {
                    assert_eq!(read_once(10).expect("read"), pattern(n * 10));
                }
                write_all(11, b"a");
                write_all(11, b"b");
                assert_eq!(read_once(10).expect("read"), b"a");
            },
        ),
        Case {
            differ: |n| unsafe {
                // Process 0 keeps the write end, process 1 the read end.
                libc::close(if n == 0 { 10 } else { 11 });
            },
            ..Case::new(
                "pipe-between-processes",
                || {
                    let (r, w) = pipe();
                    at_number(r, 10);
                    at_number(w, 11);
                    write_all(11, b"before");
                },
                |n| {
                    if n == 0 {
                        write_all(11, b" after");
                        unsafe { libc::close(11) };
                    } else {
                        assert_eq!(read_some(10, 12), b"before after");
                        assert_eq!(read_once(10).expect("read"), b"");
                    }
                },
            )
        }
        .processes(2),
        Case::new(
            "pipe-writer-gone",
            || {
                let (r, w) = pipe();
                at_number(r, 10);
                write_all(w, b"last words");
                unsafe { libc::close(w) };
                let (r, w) = pipe();
                at_number(w, 11);
                unsafe { libc::close(r) };
            },
            |_| {
                assert_eq!(read_some(10, 10), b"last words");
                assert_eq!(read_once(10).expect("read"), b"");
                assert_eq!(unsafe { libc::write(11, b"x".as_ptr().cast(), 1) }, -1);
                assert_eq!(errno(), libc::EPIPE);
            },
        ),
        Case {
            // Standard output and error are pipes to the test's runner.
            check_original: false,
            ..Case::new(
                "outside-standard",
                || {
                    assert_eq!(fcntl(1, libc::F_DUPFD, 30), 30);
                },
                |_| {
                    write_all(30, b"to the restart's standard output");
                    let (a, b) = (
                        slackwater_socket::sys::fstat(1).expect("stat"),
                        slackwater_socket::sys::fstat(30).expect("stat"),
                    );
                    assert_eq!(a.st_ino, b.st_ino);
                    assert_ne!(slackwater_socket::sys::fstat(2).expect("stat").st_ino, a.st_ino);
                },
            )
        },
        Case {
            // Their other ends are in a process outside, which is gone after the restart.
            check_original: false,
            again: false,
            ..Case::new(
                "pipe-to-the-outside",
                || {
                    let ((r, w), (r2, w2)) = (pipe(), pipe());
                    write_all(w, b"from outside");
                    let case = unsafe { libc::getpid() };
                    if unsafe { libc::fork() } == 0 {
                        unsafe {
                            libc::close(r);
                            libc::close(w2);
                            // Until the case's process ends; it may have ended before the request.
                            libc::alarm(30);
                            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                            if libc::getppid() == case {
                                libc::pause();
                            }
                            libc::_exit(0);
                        }
                    }
                    unsafe {
                        libc::close(w);
                        libc::close(r2);
                    }
                    at_number(r, 20);
                    at_number(w2, 21);
                },
                |_| {
                    assert_eq!(read_some(20, 12), b"from outside");
                    assert_eq!(read_once(20).expect("read"), b"");
                    assert_eq!(unsafe { libc::write(21, b"x".as_ptr().cast(), 1) }, -1);
                    assert_eq!(errno(), libc::EPIPE);
                },
            )
        },
        Case::new(
            "fifo",
            || {
                let _ = std::fs::remove_file("fifo");
                assert_eq!(unsafe { libc::mkfifo(c"fifo".as_ptr(), 0o600) }, 0);
                at_number(open("fifo", libc::O_RDONLY | libc::O_NONBLOCK), 10);
                at_number(open("fifo", libc::O_WRONLY), 11);
                write_all(11, b"through a name");
            },
            |_| {
                assert_eq!(read_some(10, 14), b"through a name");
                assert_eq!(read_once(10).expect_err("nothing").raw_os_error(), Some(libc::EAGAIN));
                write_all(11, b"x");
                assert_eq!(read_some(10, 1), b"x");
            },
        ),
        Case::new(
            "pty",
            || {
                let (mut master, mut slave) = (0, 0);
                let size = libc::winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
                let null = std::ptr::null_mut();
                assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), &size) }, 0);
                at_number(master, 10);
                at_number(slave, 11);
                let mut modes = modes_of(11);
                modes.c_lflag &= !(libc::ICANON | libc::ECHO);
                assert_eq!(unsafe { libc::tcsetattr(11, libc::TCSANOW, &modes) }, 0);
                // Nobody reads it before the capture; newlines have become CR NL, and shall not again.
                write_all(11, b"one\ntwo\n");
            },
            |_| {
                assert_eq!(read_some(10, 10), b"one\r\ntwo\r\n");
                let mut size: libc::winsize = unsafe { std::mem::zeroed() };
                assert_eq!(unsafe { libc::ioctl(11, libc::TIOCGWINSZ, &mut size) }, 0);
                assert_eq!((size.ws_row, size.ws_col), (33, 77));
                assert_eq!(modes_of(11).c_lflag & (libc::ICANON | libc::ECHO), 0);
                // Raw input arrives without a newline, and nothing is echoed.
                write_all(10, b"k");
                assert_eq!(read_some(11, 1), b"k");
                write_all(11, b"answer\n");
                assert_eq!(read_some(10, 8), b"answer\r\n");
            },
        ),
        Case::new(
            "ptys into which something was typed",
            || {
                for (number, canonical, vmin, text) in TYPED {
                    let (mut master, mut slave) = (0, 0);
                    let null = std::ptr::null_mut();
                    assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) }, 0);
                    at_number(master, number);
                    at_number(slave, number + 1);
                    let mut modes = modes_of(number + 1);
                    modes.c_lflag &= !libc::ECHO;
                    modes.c_cc[libc::VEOL] = b';';
                    if !canonical {
                        modes.c_lflag &= !(libc::ICANON | libc::ISIG | libc::IEXTEN);
                        modes.c_iflag &= !(libc::IXON | libc::ICRNL);
                        modes.c_cc[libc::VMIN] = vmin;
                    }
                    assert_eq!(unsafe { libc::tcsetattr(number + 1, libc::TCSANOW, &modes) }, 0);
                    assert_eq!(unsafe { libc::fcntl(number + 1, libc::F_SETFL, libc::O_NONBLOCK) }, 0);
                    write_all(number, text);
                }
            },
            |_| {
                for (number, expected) in [
                    (20, &[b"one\n".as_slice(), b"", b"two", b"three\nfour;", b";", b"five"][..]),
                    (22, &[b"half".as_slice()]),
                    (24, &[b"\x16\x04;x".as_slice(), b"", b""]),
                    (26, &[b"\x00\x03\x04\n\r\x11\x13\x16\x7f\xff;".as_slice()]),
                    (28, &[b"ab".as_slice()]),
                ] {
                    let modes = modes_of(number + 1);
                    assert_eq!((modes.c_lflag & libc::ECHO, modes.c_cc[libc::VEOL]), (0, b';'));
                    // The last line of some is not whole yet.
                    if matches!(number, 20 | 22) {
                        write_all(number, b"\x04");
                    }
                    for part in expected {
                        assert_eq!(read_once(number + 1).expect("typed"), *part, "pty at {number}");
                    }
                    assert_eq!(read_once(number + 1).expect_err("no more").raw_os_error(), Some(libc::EAGAIN));
                    assert_eq!(readable_now(number), 0, "an echo");
                }
            },
        ),
        Case::new(
            "pty whose slave is full, and of another that is closed",
            || {
                for number in [10, 12] {
                    let (mut master, mut slave) = (0, 0);
                    let null = std::ptr::null_mut();
                    assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) }, 0);
                    at_number(master, number);
                    at_number(slave, number + 1);
                }
                write_all(13, b"last words\n");
                assert_eq!(unsafe { libc::close(13) }, 0);
                assert_eq!(unsafe { libc::fcntl(11, libc::F_SETFL, libc::O_NONBLOCK) }, 0);
                std::fs::write("full", fill_up(11).to_string()).expect("a number");
            },
            |_| {
                let bytes: usize = std::fs::read_to_string("full").expect("it was written").parse().expect("a number");
                let seen = read_some(10, bytes);
                assert!(seen.iter().enumerate().all(|(i, b)| *b == b'a' + (i % 23) as u8), "in order");
                write_all(11, b"!");
                assert_eq!(read_some(10, 1), b"!");
                assert_eq!(read_some(12, 12), b"last words\r\n");
                assert_eq!(read_once(12).expect_err("it hung up").raw_os_error(), Some(libc::EIO));
            },
        ),
    ]
}

/// Ptys: number of the master, ICANON, VMIN, what is typed.
const TYPED: [(i32, bool, u8, &[u8]); 5] = [
    (20, true, 1, b"one\n\x04two\x04three\x16\nfour;;five"),
    (22, true, 1, b"halx\x7ff"),
    (24, true, 1, b"\x16\x16\x16\x04\x16;x\x04\x04\x04"),
    (26, false, 1, b"\x00\x03\x04\n\r\x11\x13\x16\x7f\xff;"),
    (28, false, 5, b"ab"),
];

/// FIONREAD.
fn readable_now(fd: i32) -> i32 {
    let mut bytes = 0;
    assert_eq!(unsafe { libc::ioctl(fd, libc::FIONREAD, &mut bytes) }, 0);
    bytes
}

/// Writes letters in turn until there is no room; how many.
fn fill_up(fd: i32) -> usize {
    let mut bytes = 0;
    loop {
        let letter = b'a' + (bytes % 23) as u8;
        match unsafe { libc::write(fd, (&raw const letter).cast(), 1) } {
            1 => bytes += 1,
            _ => break bytes,
        }
    }
}

fn modes_of(fd: i32) -> libc::termios {
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    assert_eq!(unsafe { libc::tcgetattr(fd, &mut modes) }, 0);
    modes
}

pub fn pattern(n: usize) -> Vec<u8> {
    (0..n as u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes().into_iter().take(1)).collect()
}
