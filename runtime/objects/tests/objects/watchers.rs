//! eventfd, timerfd, signalfd, epoll, inotify, pidfd, SIGIO; what is refused.
use super::harness::*;

fn epoll_add(epoll: i32, fd: i32, events: i32, data: u64) {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    assert_eq!(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) }, 0);
}

/// What is ready now: (events, data), sorted.
fn epoll_now(epoll: i32) -> Vec<(i32, u64)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    let n = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 16, 0) };
    assert!(n >= 0);
    let mut out: Vec<(i32, u64)> = events[..n as usize].iter().map(|e| (e.events as i32, e.u64)).collect();
    out.sort_unstable();
    out
}

fn eventfd(at: i32, count: u32, flags: i32) {
    at_number(unsafe { libc::eventfd(count, flags) }, at);
}

fn read_u64(fd: i32) -> u64 {
    u64::from_ne_bytes(read_once(fd).expect("read").try_into().expect("eight bytes"))
}

fn blocked(signal: i32) {
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// A message queue without a name whose notification by a thread (SIGEV_THREAD) has this cookie, and is sent to socket 12.
fn notified(at: i32, name: &std::ffi::CStr, flags: i32, cookie: u8) {
    if unsafe { libc::fcntl(12, libc::F_GETFD) } < 0 {
        at_number(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE) }, 12);
    }
    let attributes: [libc::c_long; 8] = [0, 5, 16, 0, 0, 0, 0, 0];
    at_number(unsafe { libc::mq_open(name.as_ptr(), flags | libc::O_CREAT | libc::O_EXCL, 0o600, &attributes) }, at);
    assert_eq!(unsafe { libc::mq_unlink(name.as_ptr()) }, 0);
    // struct sigevent: what is sent, the socket and SIGEV_THREAD, and room that is not used.
    let what = [cookie; 32];
    let event = [what.as_ptr() as u64, 12 | 2 << 32, 0, 0, 0, 0, 0, 0];
    assert_eq!(unsafe { libc::syscall(libc::SYS_mq_notify, at, event.as_ptr()) }, 0);
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "eventfd",
            || {
                eventfd(10, 7, 0);
                eventfd(11, 2, libc::EFD_SEMAPHORE);
                eventfd(12, 0, libc::EFD_NONBLOCK);
                write_all(12, &(u64::MAX - 1).to_ne_bytes());
            },
            |_| {
                assert_eq!(read_u64(10), 7);
                assert_eq!((read_u64(11), read_u64(11)), (1, 1));
                assert_eq!(read_u64(12), u64::MAX - 1);
                assert_eq!(read_once(12).expect_err("empty").raw_os_error(), Some(libc::EAGAIN));
            },
        ),
        Case::new(
            "eventfd-shared-by-fork",
            || eventfd(10, 2, libc::EFD_SEMAPHORE),
            // Each takes one of the two; neither waits.
            |_| assert_eq!(read_u64(10), 1),
        )
        .processes(2),
        Case::new(
            "timerfd",
            || {
                at_number(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK) }, 10);
                at_number(unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK) }, 11);
                at_number(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK) }, 12);
                let time = |s| libc::timespec { tv_sec: s, tv_nsec: 0 };
                // An hour from now, then every two; at a time of day in 2038; expired already.
                let set = |fd, flags, value, interval| {
                    let spec = libc::itimerspec { it_value: value, it_interval: interval };
                    assert_eq!(unsafe { libc::timerfd_settime(fd, flags, &spec, std::ptr::null_mut()) }, 0);
                };
                set(10, 0, time(3600), time(7200));
                set(11, libc::TFD_TIMER_ABSTIME, time(2_147_483_000), time(0));
                set(12, 0, libc::timespec { tv_sec: 0, tv_nsec: 1 }, time(0));
                let mut p = libc::pollfd { fd: 12, events: libc::POLLIN, revents: 0 };
                assert_eq!(unsafe { libc::poll(&mut p, 1, 5000) }, 1);
            },
            |_| {
                let left = |fd| {
                    let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
                    assert_eq!(unsafe { libc::timerfd_gettime(fd, &mut spec) }, 0);
                    (spec.it_value.tv_sec, spec.it_interval.tv_sec)
                };
                assert!((3590..=3600).contains(&left(10).0), "{:?}", left(10));
                assert_eq!(left(10).1, 7200);
                let mut now: libc::timespec = unsafe { std::mem::zeroed() };
                unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
                let due = now.tv_sec + left(11).0;
                assert!((due - 2_147_483_000).abs() <= 1, "{due}");
                assert_eq!(read_u64(12), 1);
                assert_eq!(left(12), (0, 0));
            },
        ),
        Case::new(
            "signalfd",
            || {
                blocked(libc::SIGUSR1);
                unsafe {
                    let mut set: libc::sigset_t = std::mem::zeroed();
                    libc::sigaddset(&mut set, libc::SIGUSR1);
                    at_number(libc::signalfd(-1, &set, libc::SFD_NONBLOCK), 10);
                }
            },
            |_| {
                blocked(libc::SIGUSR1);
                unsafe { libc::raise(libc::SIGUSR1) };
                assert_eq!(read_once(10).expect("read").len(), 128);
            },
        ),
        Case::new(
            "epoll-data-words",
            || {
                at_number(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }, 10);
                eventfd(11, 1, 0);
                eventfd(12, 0, 0);
                epoll_add(10, 11, libc::EPOLLIN, 0xdead_beef_0000_0001);
                epoll_add(10, 12, libc::EPOLLIN | libc::EPOLLET, 2);
                // Nested: set 13 watches set 10.
                at_number(unsafe { libc::epoll_create1(0) }, 13);
                epoll_add(13, 10, libc::EPOLLIN, 3);
            },
            |_| {
                assert_eq!(epoll_now(13), [(libc::EPOLLIN, 3)]);
                assert_eq!(epoll_now(10), [(libc::EPOLLIN, 0xdead_beef_0000_0001)]);
                write_all(12, &1u64.to_ne_bytes());
                assert_eq!(epoll_now(10).len(), 2);
                // The edge has been reported.
                assert_eq!(epoll_now(10).len(), 1);
            },
        ),
        Case::new(
            "epoll-number-used-again",
            || {
                at_number(unsafe { libc::epoll_create1(0) }, 10);
                eventfd(11, 1, 0);
                epoll_add(10, 11, libc::EPOLLIN, 1);
                // 12 is the same description; 11 becomes another one, watched under that number too.
                assert_eq!(fcntl(11, libc::F_DUPFD, 12), 12);
                eventfd(11, 1, 0);
                epoll_add(10, 11, libc::EPOLLIN, 2);
                // 13 watched, duplicated to 14, closed: the registration lives on.
                eventfd(13, 1, 0);
                epoll_add(10, 13, libc::EPOLLIN, 3);
                assert_eq!(fcntl(13, libc::F_DUPFD, 14), 14);
                unsafe { libc::close(13) };
            },
            |_| {
                let all = |data: &[u64]| data.iter().map(|&d| (libc::EPOLLIN, d)).collect::<Vec<_>>();
                assert_eq!(epoll_now(10), all(&[1, 2, 3]));
                read_u64(12);
                assert_eq!(epoll_now(10), all(&[2, 3]));
                read_u64(14);
                assert_eq!(epoll_now(10), all(&[2]));
                assert_eq!(fcntl(13, libc::F_GETFD, 0), -1);
            },
        ),
        Case {
            differ: |n| {
                if n == 1 {
                    // The child has lost the number; the set still watches it for the parent.
                    unsafe { libc::close(11) };
                    eventfd(11, 0, 0);
                } else {
                    // Only the parent has what it adds.
                    eventfd(12, 1, 0);
                    epoll_add(10, 12, libc::EPOLLIN, 6);
                }
            },
            ..Case::new(
                "epoll-shared-by-fork",
                || {
                    at_number(unsafe { libc::epoll_create1(0) }, 10);
                    eventfd(11, 1, 0);
                    epoll_add(10, 11, libc::EPOLLIN, 5);
                },
                |_| assert_eq!(epoll_now(10), [(libc::EPOLLIN, 5), (libc::EPOLLIN, 6)]),
            )
        }
        .processes(2),
        Case::new(
            "inotify",
            || {
                std::fs::create_dir("watched").expect("mkdir");
                at_number(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) }, 10);
                // Watch descriptors 1 and 3.
                assert_eq!(unsafe { libc::inotify_add_watch(10, c".".as_ptr(), libc::IN_DELETE) }, 1);
                assert_eq!(unsafe { libc::inotify_add_watch(10, c"/tmp".as_ptr(), libc::IN_DELETE_SELF) }, 2);
                assert_eq!(unsafe { libc::inotify_add_watch(10, c"/dev/shm".as_ptr(), libc::IN_DELETE_SELF) }, 3);
                assert_eq!(unsafe { libc::inotify_rm_watch(10, 2) }, 0);
                read_once(10).expect("IN_IGNORED");
            },
            |_| {
                assert_eq!(read_once(10).expect_err("nothing").raw_os_error(), Some(libc::EAGAIN));
                std::fs::write("to-go", b"").expect("write");
                std::fs::remove_file("to-go").expect("remove");
                let event = read_once(10).expect("read");
                assert_eq!(i32::from_ne_bytes(event[..4].try_into().expect("wd")), 1);
                assert_eq!(unsafe { libc::inotify_rm_watch(10, 3) }, 0);
            },
        ),
        Case {
            check_original: false,
            ..Case::new(
                // `check` writes into the file, so it runs once.
                "inotify-of-an-open-file",
                || {
                    std::fs::create_dir("logs").expect("mkdir");
                    at_number(open("logs/tailed", libc::O_RDWR | libc::O_CREAT), 11);
                    at_number(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) }, 10);
                    assert_eq!(unsafe { libc::inotify_add_watch(10, c"logs/tailed".as_ptr(), libc::IN_MODIFY) }, 1);
                    assert_eq!(unsafe { libc::inotify_add_watch(10, c"logs".as_ptr(), libc::IN_CREATE) }, 2);
                },
                |_| {
                    write_all(11, b"line\n");
                    let wd = |event: &[u8]| i32::from_ne_bytes(event[..4].try_into().expect("wd"));
                    assert_eq!(wd(&read_once(10).expect("read")), 1);
                    std::fs::write("logs/new", b"").expect("write");
                    assert_eq!(wd(&read_once(10).expect("read")), 2);
                    std::fs::remove_file("logs/new").expect("remove");
                },
            )
        },
        Case {
            refused: Some("whose path the kernel does not tell"),
            ..Case::new(
                "inotify-nowhere-refused",
                || {
                    std::fs::create_dir_all("deep/er").expect("mkdir");
                    at_number(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) }, 10);
                    assert_eq!(unsafe { libc::inotify_add_watch(10, c"deep/er".as_ptr(), libc::IN_CREATE) }, 1);
                },
                |_| {},
            )
        },
        Case::new(
            "pidfd-of-the-dead",
            || {
                let child = unsafe { libc::fork() };
                if child == 0 {
                    unsafe { libc::_exit(0) };
                }
                at_number(unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) } as i32, 10);
                assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
            },
            |_| {
                assert_eq!(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, 10, 0, 0, 0) }, -1);
                assert_eq!(errno(), libc::ESRCH);
                let mut p = libc::pollfd { fd: 10, events: libc::POLLIN, revents: 0 };
                assert_eq!(unsafe { libc::poll(&mut p, 1, 0) }, 1);
            },
        ),
        Case {
            // The owner: the process group, for pids are not brought back here; of a signal that does nothing.
            ..Case::new(
                "sigio-owner",
                || {
                    let (r, w) = pipe();
                    at_number(r, 10);
                    at_number(w, 11);
                    fcntl(10, 10 /* F_SETSIG */, libc::SIGWINCH);
                    fcntl(10, libc::F_SETOWN, -unsafe { libc::getpgrp() });
                    fcntl(10, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK);
                },
                |_| {
                    assert_eq!(fcntl(10, 11 /* F_GETSIG */, 0), libc::SIGWINCH);
                    assert_eq!(fcntl(10, libc::F_GETOWN, 0), -unsafe { libc::getpgrp() });
                    assert_eq!(fcntl(10, libc::F_GETFL, 0) & libc::O_ASYNC, libc::O_ASYNC);
                },
            )
        },
        Case {
            refused: Some("about to be handled"),
            ..Case::new(
                "mq-notice-kept-when-put-off",
                || {
                    // The queue that can only be written to is described by a descriptor of ours.
                    notified(10, c"/slackwater-put-off-w", libc::O_WRONLY, b'w');
                    notified(11, c"/slackwater-put-off-r", libc::O_RDWR, b'r');
                    assert_eq!(unsafe { libc::mq_send(11, c"x".as_ptr(), 1, 0) }, 0);
                },
                |_| {
                    // The notification that the capture found on its way, then that of the other queue: not that it was taken off.
                    assert_eq!(unsafe { libc::mq_send(10, c"x".as_ptr(), 1, 0) }, 0);
                    for name in [b'r', b'w'] {
                        assert_eq!(read_some(12, 32), [&[name; 31][..], &[1 /* NOTIFY_WOKENUP */]].concat());
                    }
                },
            )
        },
        Case {
            refused: Some("userfaultfd"),
            ..Case::new(
                "userfaultfd-refused",
                || {
                    let fd = unsafe {
                        libc::syscall(libc::SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */)
                    } as i32;
                    assert!(fd >= 0);
                    at_number(fd, 10);
                },
                |_| {},
            )
        },
        Case {
            refused: Some("io_uring"),
            ..Case::new(
                "io_uring-refused",
                || {
                    let mut params = [0u8; 120];
                    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) } as i32;
                    assert!(fd >= 0, "io_uring_setup: {}", std::io::Error::last_os_error());
                },
                |_| {},
            )
        },
        Case {
            refused: Some("/dev/loop-control"),
            ..Case::new(
                "device-refused",
                || {
                    at_number(open("/dev/loop-control", libc::O_RDWR), 10);
                },
                |_| {},
            )
            .privileged()
        },
    ]
}
