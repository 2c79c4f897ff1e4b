//! Files, directories, devices, locks.
use slackwater_objects::rebuild::{Files, Options};

use super::harness::*;

fn cwd(name: &str) -> Vec<u8> {
    std::env::current_dir().expect("cwd").join(name).into_os_string().into_encoded_bytes()
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "file-offset-flags",
            || {
                std::fs::write("data", b"0123456789").expect("write");
                at_number(open("data", libc::O_RDWR | libc::O_APPEND), 10);
                read_some(10, 4);
                fcntl(10, libc::F_SETFD, libc::FD_CLOEXEC);
                // Shares the offset; is not close-on-exec.
                assert_eq!(fcntl(10, libc::F_DUPFD, 40), 40);
                // Does not share it.
                at_number(open("data", libc::O_RDONLY), 11);
            },
            |_| {
                assert_eq!(offset(10), 4);
                assert_eq!(read_some(40, 2), b"45");
                assert_eq!(offset(10), 6);
                assert_eq!(offset(11), 0);
                assert_eq!(fcntl(10, libc::F_GETFD, 0), libc::FD_CLOEXEC);
                assert_eq!(fcntl(40, libc::F_GETFD, 0), 0);
                assert_eq!(
                    fcntl(10, libc::F_GETFL, 0) & (libc::O_APPEND | libc::O_ACCMODE),
                    libc::O_APPEND | libc::O_RDWR
                );
                assert_eq!(fcntl(11, libc::F_GETFL, 0) & libc::O_ACCMODE, libc::O_RDONLY);
            },
        ),
        Case::new(
            "file-shared-by-fork",
            || {
                std::fs::write("shared", b"0123456789").expect("write");
                at_number(open("shared", libc::O_RDONLY), 10);
                read_some(10, 1);
                let (r, w) = pipe();
                at_number(r, 11);
                at_number(w, 12);
            },
            |n| {
                if n == 0 {
                    read_some(10, 4);
                    write_all(12, b"!");
                } else {
                    read_some(11, 1);
                    assert_eq!(offset(10), 5);
                }
            },
        )
        .processes(2),
        Case::new(
            "file-deleted",
            || {
                at_number(open("gone", libc::O_RDWR | libc::O_CREAT), 10);
                write_all(10, b"contents");
                // A hole of 8 MiB.
                fcntl(10, libc::F_SETFL, 0);
                assert_eq!(unsafe { libc::pwrite(10, b"end".as_ptr().cast(), 3, 8 << 20) }, 3);
                at_number(open("gone", libc::O_RDONLY), 11);
                std::fs::remove_file("gone").expect("remove");
            },
            |_| {
                assert_eq!(offset(10), 8);
                assert_eq!(read_some(11, 8), b"contents");
                assert_eq!(unsafe { libc::lseek(10, 8 << 20, libc::SEEK_SET) }, 8 << 20);
                assert_eq!(read_some(10, 3), b"end");
                let st = slackwater_socket::sys::fstat(10).expect("stat");
                assert_eq!((st.st_nlink, st.st_size), (0, (8 << 20) + 3));
                // Both are one inode still.
                write_all(10, b"more");
                assert_eq!(slackwater_socket::sys::fstat(11).expect("stat").st_size, (8 << 20) + 7);
            },
        ),
        Case::new(
            "memfd-sealed",
            || {
                let fd = unsafe { libc::memfd_create(c"name".as_ptr(), libc::MFD_ALLOW_SEALING) };
                at_number(fd, 10);
                write_all(10, b"sealed");
                fcntl(10, 1033, libc::F_SEAL_GROW | libc::F_SEAL_SHRINK);
            },
            |_| {
                assert_eq!(fcntl(10, 1034, 0), libc::F_SEAL_GROW | libc::F_SEAL_SHRINK);
                assert_eq!(offset(10), 6);
                unsafe { libc::lseek(10, 0, libc::SEEK_SET) };
                assert_eq!(read_some(10, 6), b"sealed");
                let link = std::fs::read_link("/proc/self/fd/10").expect("link");
                assert_eq!(link.to_str(), Some("/memfd:name (deleted)"));
            },
        ),
        Case::new(
            "shm-gone-is-made-again",
            || {
                let name = format!("/dev/shm/slackwater-objects-{}", std::process::id());
                at_number(open(&name, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL), 10);
                write_all(10, b"segment");
                std::fs::write("shm-name", name).expect("write");
            },
            |_| {
                unsafe { libc::lseek(10, 0, libc::SEEK_SET) };
                assert_eq!(read_some(10, 7), b"segment");
                // Gone before the restart, and after it.
                let name = std::fs::read_to_string("shm-name").expect("name");
                std::fs::remove_file(name).expect("remove");
            },
        ),
        Case {
            check_original: false,
            options: || Options { files: Files::Restore, ..Options::default() },
            ..Case::new(
                "policy-restore-cuts-back",
                || {
                    std::fs::write("log", vec![b'x'; 5 << 20]).expect("write");
                    at_number(open("log", libc::O_WRONLY | libc::O_APPEND), 10);
                },
                |_| {
                    write_all(10, b"!");
                    assert_eq!(std::fs::metadata("log").expect("stat").len(), (5 << 20) + 1);
                },
            )
        }
        .between(|| {
            std::io::Write::write_all(
                &mut std::fs::OpenOptions::new().append(true).open("log").expect("open"),
                b"later",
            )
            .expect("write");
        }),
        Case {
            check_original: false,
            options: || Options { files: Files::Fail, ..Options::default() },
            prepare_fails: Some("has changed since the checkpoint"),
            ..Case::new(
                "policy-fail",
                || {
                    std::fs::write("changing", b"before").expect("write");
                    at_number(open("changing", libc::O_RDONLY), 10);
                },
                |_| {},
            )
        }
        .between(|| std::fs::write("changing", b"afterwards").expect("write")),
        Case {
            check_original: false,
            options: || Options { map_path: vec![(cwd("old-place"), cwd("new-place"))], ..Options::default() },
            again: false,
            ..Case::new(
                "map-path",
                || {
                    std::fs::create_dir("old-place").expect("mkdir");
                    std::fs::write("old-place/f", b"moved").expect("write");
                    at_number(open("old-place/f", libc::O_RDONLY), 10);
                },
                |_| assert_eq!(read_some(10, 5), b"moved"),
            )
        }
        .between(|| std::fs::rename("old-place", "new-place").expect("rename")),
        Case {
            check_original: false,
            // The file's folder goes with the computation; see `check`.
            ..Case::new(
                "session-directory-gone",
                || {
                    std::fs::create_dir_all("session/0").expect("mkdir");
                    let path = std::env::current_dir().expect("cwd").join("session/0/contact.txt");
                    at_number(open(path.to_str().expect("utf-8"), libc::O_RDWR | libc::O_CREAT), 10);
                    write_all(10, b"uri");
                    let fifo = std::ffi::CString::new("session/0/fifo").expect("path");
                    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
                    at_number(open("session/0/fifo", libc::O_RDONLY | libc::O_NONBLOCK), 11);
                },
                |_| {
                    assert_eq!(std::fs::read_to_string("session/0/contact.txt").expect("read"), "uri");
                    assert_eq!(offset(10), 3);
                    write_all(open("session/0/fifo", libc::O_WRONLY), b"go");
                    assert_eq!(read_some(11, 2), b"go");
                },
            )
        }
        .between(|| std::fs::remove_dir_all("session").expect("remove")),
        Case {
            check_original: false,
            ..Case::new(
                "open-directories-gone",
                || {
                    std::fs::create_dir_all("tree/1/2").expect("mkdir");
                    at_number(open("tree/1", libc::O_RDONLY | libc::O_DIRECTORY), 10);
                    at_number(open("tree/1/2", libc::O_RDONLY | libc::O_DIRECTORY), 11);
                    std::fs::remove_dir("tree/1/2").expect("rmdir");
                },
                |_| {
                    let link = |n| std::fs::read_link(format!("/proc/self/fd/{n}")).expect("link");
                    assert!(link(10).ends_with("tree/1"), "{:?}", link(10));
                    assert!(link(11).to_string_lossy().ends_with("tree/1/2 (deleted)"), "{:?}", link(11));
                    std::fs::remove_dir("tree/1").expect("empty");
                    std::fs::remove_dir("tree").expect("empty");
                },
            )
        }
        // As a session's end removes it.
        .between(|| std::fs::remove_dir_all("tree").expect("remove")),
        Case::new(
            "directory",
            || {
                std::fs::create_dir("folder").expect("mkdir");
                at_number(open("folder", libc::O_RDONLY | libc::O_DIRECTORY), 10);
                at_number(open("folder", libc::O_PATH), 11);
                std::fs::create_dir("removed").expect("mkdir");
                at_number(open("removed", libc::O_RDONLY | libc::O_DIRECTORY), 12);
                std::fs::remove_dir("removed").expect("rmdir");
            },
            |_| {
                let link = std::fs::read_link("/proc/self/fd/10").expect("link");
                assert!(link.ends_with("folder"));
                assert_ne!(fcntl(11, libc::F_GETFL, 0) & libc::O_PATH, 0);
                assert_eq!(slackwater_socket::sys::fstat(12).expect("stat").st_nlink, 0);
            },
        ),
        Case::new(
            "devices",
            || {
                at_number(open("/dev/null", libc::O_WRONLY), 10);
                at_number(open("/dev/zero", libc::O_RDONLY), 11);
                at_number(open("/dev/urandom", libc::O_RDONLY), 800);
            },
            |_| {
                write_all(10, b"x");
                assert_eq!(read_some(11, 2), [0, 0]);
                read_some(800, 2);
            },
        ),
        Case {
            // The capture must not drop locks, either: closing any descriptor of a file would.
            ..Case::new(
                "locks",
                || {
                    std::fs::write("locked", [0; 100]).expect("write");
                    at_number(open("locked", libc::O_RDWR), 10);
                    at_number(open("locked", libc::O_RDWR), 11);
                    assert_eq!(unsafe { libc::flock(10, libc::LOCK_EX) }, 0);
                    for (fd, command, start) in [(10, libc::F_SETLK, 5), (11, libc::F_OFD_SETLK, 50)] {
                        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
                        lock.l_type = libc::F_WRLCK as i16;
                        lock.l_start = start;
                        lock.l_len = 3;
                        assert_eq!(unsafe { libc::fcntl(fd, command, &lock) }, 0);
                    }
                },
                |_| {
                    // As somebody else sees them.
                    let fd = open("locked", libc::O_RDWR);
                    assert_eq!(unsafe { libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB) }, -1);
                    for (start, pid) in [(5, std::process::id() as i32), (50, -1)] {
                        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
                        lock.l_type = libc::F_WRLCK as i16;
                        lock.l_start = start - 5;
                        lock.l_len = 20;
                        assert_eq!(unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &mut lock) }, 0);
                        assert_eq!((lock.l_start, lock.l_len, lock.l_pid), (start, 3, pid));
                    }
                },
            )
        },
    ]
}
