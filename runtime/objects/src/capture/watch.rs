//! Objects that watch other objects: epoll sets and inotify.
use alloc::{format, vec::Vec};

use slackwater_socket::sys;

use super::{CaptureError, Result, fdinfo};
use crate::model::{Kind, Table, Watch, Watched};

/// Registrations: `tfd: 5 events: 19 data: 7f00 pos:0 ino:1d sdev:9`.
pub fn epoll(info: &[u8]) -> Vec<Watched> {
    info.split(|&b| b == b'\n')
        .filter_map(|line| {
            let rest = line.strip_prefix(b"tfd:")?;
            let mut words = fdinfo::words(rest);
            let fd = sys::decimal(words.next()?)? as i32;
            let (mut events, mut data, mut ino, mut dev) = (0, 0, 0, 0);
            while let Some(word) = words.next() {
                match word {
                    b"events:" => events = sys::hex(words.next()?)? as u32,
                    b"data:" => data = sys::hex(words.next()?)?,
                    _ => {
                        if let Some(v) = word.strip_prefix(b"ino:") {
                            ino = sys::hex(v)?;
                        } else if let Some(v) = word.strip_prefix(b"sdev:") {
                            dev = kernel_dev(sys::hex(v)?);
                        }
                    }
                }
            }
            Some(Watched { fd, events, data, open: None, target: (dev, ino) })
        })
        .collect()
}

// The kernel's own dev_t (12 bits major, 20 bits minor) as stat(2) shows it.
fn kernel_dev(dev: u64) -> u64 {
    libc::makedev((dev >> 20) as u32, (dev & 0xf_ffff) as u32)
}

/// Finds which description each registration watches. Mostly it is what the number is now; it need not be: a duplicate
/// keeps a closed number's registration alive, and the number may have been used again.
pub fn resolve(table: &mut Table) -> Result<()> {
    let pid = sys::getpid();
    for i in 0..table.opens.len() {
        let epoll = table.opens[i].fd;
        let Kind::Epoll { watched } = &table.opens[i].kind else { continue };
        let mut watched = watched.clone();
        for w in 0..watched.len() {
            let fd = watched[w].fd;
            // One number may be registered several times, for several descriptions.
            let nth = watched[..w].iter().filter(|other| other.fd == fd).count() as u32;
            let is = |candidate: i32| sys::kcmp_epoll(pid, candidate, epoll, fd as u32, nth);
            let now = table.descriptors.iter().find(|d| d.fd == fd);
            if let Some(now) = now
                && is(fd).map_err(|e| CaptureError::call(epoll, "kcmp(KCMP_EPOLL_TFD)", e))?
            {
                watched[w].open = Some(now.open);
                continue;
            }
            watched[w].open = table
                .opens
                .iter()
                .position(|open| (open.dev, open.ino) == watched[w].target && is(open.fd) == Ok(true))
                .map(|at| at as u32);
        }
        table.opens[i].kind = Kind::Epoll { watched };
    }
    Ok(())
}

/// Watches: `inotify wd:1 ino:5dead sdev:800001 mask:300 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:...`.
pub fn inotify(fd: i32, info: &[u8]) -> Result<Vec<Watch>> {
    let mut out = Vec::new();
    for line in info.split(|&b| b == b'\n') {
        let Some(rest) = line.strip_prefix(b"inotify ") else { continue };
        let field = |key: &str| fdinfo::words(rest).find_map(|w| w.strip_prefix(key.as_bytes()).and_then(sys::hex));
        let (Some(wd), Some(ino), Some(dev), Some(mask)) =
            (field("wd:"), field("ino:"), field("sdev:"), field("mask:"))
        else {
            return Err(CaptureError::new(
                fd,
                "inotify: this kernel's /proc/self/fdinfo does not describe its watches",
            ));
        };
        let key = (kernel_dev(dev), ino);
        let path = find(key).ok_or_else(|| {
            CaptureError::new(
                fd,
                format!(
                    "inotify watch {wd} is on inode {ino} of device {}:{}, whose path the kernel does not tell",
                    libc::major(key.0),
                    libc::minor(key.0)
                ),
            )
        })?;
        out.push(Watch { wd: wd as i32, mask: mask as u32, path });
    }
    out.sort_by_key(|w: &Watch| w.wd);
    Ok(out)
}

// The kernel gives a file handle, which only root can open; so likely places are looked at: what the process has open, the
// folders above that, its working directory, and folders that are mostly watched.
fn find(key: (u64, u64)) -> Option<Vec<u8>> {
    const PLACES: [&[u8]; 11] = [
        b"/",
        b"/dev",
        b"/dev/input",
        b"/dev/shm",
        b"/etc",
        b"/etc/resolv.conf",
        b"/etc/passwd",
        b"/run",
        b"/tmp",
        b"/var/run",
        b"/var/tmp",
    ];
    let is = |place: &[u8]| sys::stat(place).is_ok_and(|st| (st.st_dev, st.st_ino) == key);
    let open = sys::descriptors().unwrap_or_default().into_iter().map(|fd| sys::proc_path("/proc/self/fd/", fd));
    let links = [b"/proc/self/cwd".to_vec(), b"/proc/self/exe".to_vec()].into_iter().chain(open);
    for mut place in links.filter_map(|link| sys::readlink(&link).ok()).filter(|place| place.starts_with(b"/")) {
        loop {
            if is(&place) {
                return Some(place);
            }
            match place.iter().rposition(|&b| b == b'/') {
                Some(slash) if slash > 0 => place.truncate(slash),
                _ => break,
            }
        }
    }
    if let Some(path) = crate::watched::find(key) {
        return Some(path);
    }
    PLACES.into_iter().find(|place| is(place)).map(<[u8]>::to_vec)
}
