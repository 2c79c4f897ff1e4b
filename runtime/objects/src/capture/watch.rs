//! Objects that watch other objects: epoll sets and inotify.
use alloc::{collections::BTreeMap, format, vec::Vec};
use core::cmp::Ordering;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use slackwater_socket::sys;

use super::{CaptureError, Result, fdinfo};
use crate::model::{Kind, Open, Table, Watch, Watched};

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
    let mut by_target = Ordered::default();
    let now: BTreeMap<i32, u32> = table.descriptors.iter().map(|d| (d.fd, d.open)).collect();
    for i in 0..table.opens.len() {
        let epoll = table.opens[i].fd;
        let Kind::Epoll { watched } = &table.opens[i].kind else { continue };
        let mut watched = watched.clone();
        // One number may be registered several times, for several descriptions.
        let mut times: BTreeMap<i32, (u32, u32)> = BTreeMap::new();
        for w in &watched {
            times.entry(w.fd).or_default().0 += 1;
        }
        for w in &mut watched {
            let (all, nth) = times.entry(w.fd).or_default();
            let this = *nth;
            *nth += 1;
            let now = now.get(&w.fd).copied();
            w.open = match now {
                Some(open) if *all == 1 && sys::is_watched(epoll, w.fd) => Some(open),
                _ => by_target.find(&table.opens, w.target, |candidate| {
                    sys::kcmp_epoll(pid, candidate, epoll, w.fd as u32, this)
                        .map_err(|e| CaptureError::call(epoll, "kcmp(KCMP_EPOLL_TFD)", e))
                })?,
            };
        }
        table.opens[i].kind = Kind::Epoll { watched };
    }
    Ok(())
}

/// The descriptions of one device and inode (all eventfds have the same, for one) in the kernel's order, for who looks
/// for one among thousands.
#[derive(Default)]
struct Ordered(BTreeMap<(u64, u64), Vec<u32>>);

impl Ordered {
    /// The description of `target` at which `order` (kcmp(2): of it and what is looked for) says 0.
    fn find(
        &mut self,
        opens: &[Open],
        target: (u64, u64),
        order: impl Fn(i32) -> Result<usize>,
    ) -> Result<Option<u32>> {
        let pid = sys::getpid();
        let all = self.0.entry(target).or_insert_with(|| {
            let mut all: Vec<u32> =
                (0..opens.len()).filter(|&at| (opens[at].dev, opens[at].ino) == target).map(|at| at as u32).collect();
            let fd = |at: &u32| opens[*at as usize].fd;
            all.sort_by(|a, b| as_order(sys::kcmp_file(pid, fd(a), fd(b)).unwrap_or(0)));
            all
        });
        // A socket has one description. To ask is dear: the kernel looks through all of the set's registrations.
        if let [at] = all[..]
            && matches!(opens[at as usize].kind, Kind::Socket(_))
        {
            return Ok(Some(at));
        }
        let mut failed = None;
        let place = all.binary_search_by(|&at| match order(opens[at as usize].fd) {
            Ok(order) => as_order(order),
            Err(e) => {
                failed = Some(e);
                Ordering::Equal
            }
        });
        failed.map_or(Ok(place.ok().map(|at| all[at])), Err)
    }
}

// What kcmp(2) returns.
fn as_order(order: usize) -> Ordering {
    match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    }
}

/// Bytes of events in this process's inotify queues, which nobody can look at or put back: the program is given time to read
/// them. One that does not is not waited for again, until it has read some.
///
/// # Errors
/// They pass.
pub fn unread(bytes: u32) -> Result<()> {
    /// How many checkpoints in a row are put off: the coordinator lets the program run for some 0.8 s in all meanwhile.
    const PATIENCE: u32 = 12;
    static PUT_OFF: AtomicU32 = AtomicU32::new(0);
    /// What was left unread when patience was over.
    static LEFT: AtomicU32 = AtomicU32::new(0);
    let left = LEFT.load(Relaxed);
    let read_nothing = left != 0 && bytes >= left;
    if bytes == 0 || read_nothing || PUT_OFF.fetch_add(1, Relaxed) >= PATIENCE {
        PUT_OFF.store(0, Relaxed);
        LEFT.store(bytes, Relaxed);
        return Ok(());
    }
    let reason = format!("{bytes} bytes of inotify events have not been read, and nobody can put them back");
    Err(CaptureError { passing: true, ..CaptureError::new(-1, reason) })
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
