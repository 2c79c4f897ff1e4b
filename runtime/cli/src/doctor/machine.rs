//! Kernel, C library, memory and folder.
use super::Finding;
use rustix::fs::{self, Access};
use std::{
    env,
    fs::read_to_string,
    path::{Path, PathBuf},
};

/// Kernels and C libraries that the tests have run on; elsewhere the trial decides.
const KERNELS: [&str; 2] = ["6.12", "6.18"];
const LIBC: &str = "2.36";
/// statfs(2), f_type of file systems that do not outlive a reboot.
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
/// Below this a checkpoint of anything but a tiny program will not fit.
const ROOM: u64 = 1 << 30;

pub(super) fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let text = format!("Linux {release}, {}", name.machine().to_string_lossy());
    let number = |part: Option<&str>| part.and_then(|p| p.parse::<u32>().ok()).unwrap_or(0);
    let mut parts = release.split(['.', '-', '+']);
    let version = (number(parts.next()), number(parts.next()));
    if version < (5, 9) {
        // close_range(2) came with 5.9, clone3(set_tid) with 5.5.
        return Finding::problem("kernel", format!("{text}: needs 5.9 or newer"));
    }
    if KERNELS.contains(&format!("{}.{}", version.0, version.1).as_str()) {
        return Finding::ok("kernel", text);
    }
    Finding::note("kernel", format!("{text}: tested are {}; the trial below decides", KERNELS.join(" and ")))
}

pub(super) fn libc() -> Finding {
    let version = glibc();
    if version == LIBC {
        return Finding::ok("libc", format!("glibc {version}"));
    }
    Finding::note("libc", format!("glibc {version}: tested is {LIBC}; the trial below decides"))
}

fn glibc() -> String {
    let output = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().last().unwrap_or("unknown").into()
}

/// The image is written by a forked child, which shares all memory with the program: strict accounting counts it twice.
pub(super) fn memory() -> Finding {
    let strict = read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|text| text.trim() == "2");
    if strict {
        return Finding::note(
            "memory",
            "vm.overcommit_memory is 2: the copy-on-write child that writes an image counts as much as the program; \
             if checkpoints fail for want of memory, launch with --sync, or set it to 0",
        );
    }
    Finding::ok("memory", "the child that writes an image may share the program's memory")
}

/// The nearest folder that exists, in which `dir` is or would be made.
pub(super) fn existing(dir: &Path) -> PathBuf {
    let full = env::current_dir().unwrap_or_default().join(dir);
    full.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).into()
}

pub(super) fn folder(dir: &Path) -> Finding {
    let place = existing(dir);
    let name = place.display();
    if fs::accessat(fs::CWD, &place, Access::WRITE_OK | Access::EXEC_OK, fs::AtFlags::EACCESS).is_err() {
        return Finding::problem("folder", format!("{name}: you cannot write there; choose another --dir"));
    }
    let Ok(stat) = fs::statfs(&place) else {
        return Finding::problem("folder", format!("{name}: cannot be looked at; choose another --dir"));
    };
    let room = stat.f_bavail.saturating_mul(stat.f_bsize.unsigned_abs());
    let text = format!("{name}: {} free", indicatif::HumanBytes(room));
    if [TMPFS, RAMFS].contains(&stat.f_type.unsigned_abs()) {
        return Finding::note(
            "folder",
            format!("{text}, in memory: checkpoints there do not outlive a reboot; choose a --dir on a disk"),
        );
    }
    if room < ROOM {
        return Finding::note(
            "folder",
            format!("{text}: a generation takes up to the memory that the program uses; choose a --dir with more room"),
        );
    }
    Finding::ok("folder", text)
}
