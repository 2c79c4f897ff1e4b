//! Regular files, memfds, directories, devices without a state.
use alloc::{format, vec, vec::Vec};

use slackwater_socket::sys;

use super::{CaptureError, Result};
use crate::model::{Contents, File, Kind, Lock, LockClass, Memfd};

/// A file without a name is saved in the image up to this many bytes (holes do not count).
pub const NAMELESS_LIMIT: u64 = 1 << 30;
/// Files in places that do not last are saved too, so that they can be made again, up to so many bytes: shared memory, and
/// what programs keep in session directories.
pub(crate) const VOLATILE: [(&[u8], u64); 4] =
    [(b"/dev/shm/", 64 << 20), (b"/tmp/", 4 << 20), (b"/var/tmp/", 4 << 20), (b"/run/", 4 << 20)];

const DELETED: &[u8] = b" (deleted)";
const MQUEUE_MAGIC: i64 = 0x1980_0202;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A regular file or a memfd.
pub fn regular(fd: i32, st: &libc::stat, link: Vec<u8>) -> Result<Kind> {
    if link.starts_with(b"anon_inode:") {
        return super::anon::describe(fd, &link);
    }
    if link.starts_with(b"/secretmem") {
        return Err(CaptureError::new(
            fd,
            "memory of memfd_secret(2), which nobody may read, cannot be saved; close it first",
        ));
    }
    let filesystem = sys::filesystem(fd).unwrap_or(0);
    if filesystem == MQUEUE_MAGIC {
        return super::mq::describe(fd, st, &link);
    }
    let deleted = st.st_nlink == 0;
    let mut path = link;
    let mut memfd = None;
    if deleted && let Some(stripped) = path.strip_suffix(DELETED) {
        path = stripped.to_vec();
        // All memfds live on a kernel-internal tmpfs or hugetlbfs and are called `/memfd:NAME`; a file of that name in
        // the root directory would have another answer to F_GET_SEALS only on other file systems, so both are asked.
        if let Some(name) = path.strip_prefix(b"/memfd:")
            && let Ok(seals) = sys::fcntl(fd, 1034 /* F_GET_SEALS */, 0)
        {
            let huge = (filesystem == HUGETLBFS_MAGIC).then(|| (st.st_blksize as u64).trailing_zeros());
            memfd = Some(Memfd { seals, huge });
            path = name.to_vec();
        }
    }
    let offset = sys::lseek(fd, 0, libc::SEEK_CUR).map_err(|e| CaptureError::call(fd, "lseek", e))?;
    Ok(Kind::File(File {
        path,
        memfd,
        deleted,
        offset,
        size: st.st_size as u64,
        mode: st.st_mode & 0o7777,
        owner: (st.st_uid, st.st_gid),
        mtime_ns: st.st_mtime * 1_000_000_000 + st.st_mtime_nsec,
        contents: None,
    }))
}

/// Takes the bytes of a file that a restart may have to make again.
///
/// Rule: closing *any* descriptor of a file drops the process's POSIX locks on it (fcntl(2)), and opening one may break a lease;
/// so a file with locks is read through the program's own descriptor, by pread(2), which moves no offset.
pub fn contents(fd: i32, flags: i32, locks: &[Lock], file: &mut File) -> Result<()> {
    let volatile =
        !file.deleted && VOLATILE.iter().any(|(place, limit)| file.path.starts_with(place) && file.size <= *limit);
    if !(file.deleted || volatile) {
        return Ok(());
    }
    // (EACCES otherwise: it is no description that can be read.)
    let by_its_own = || {
        if flags & libc::O_ACCMODE == libc::O_WRONLY { Err(sys::Errno(libc::EACCES)) } else { all_of(fd, file.size) }
    };
    let delicate = locks.iter().any(|lock| matches!(lock.class, LockClass::Posix | LockClass::Lease));
    let taken = if delicate {
        by_its_own()
    } else {
        match sys::open(&sys::proc_path("/proc/self/fd/", fd), libc::O_RDONLY) {
            Ok(own) => extents(own.0, file.size),
            // Opened by a user that the process is no more.
            Err(sys::Errno(libc::EACCES)) => by_its_own(),
            Err(e) => Err(e),
        }
    };
    match taken {
        Ok(contents) => file.contents = Some(contents),
        // It has a name, by which a restart finds it, if it lasts.
        Err(_) if volatile => {}
        Err(e) => {
            return Err(CaptureError::new(
                fd,
                format!("{} was deleted while open, and reading it for the image failed: {e}", sys::lossy(&file.path)),
            ));
        }
    }
    Ok(())
}

// By holes: for a description of our own, whose offset may move.
fn extents(own: i32, size: u64) -> sys::Result<Contents> {
    let mut out = Contents::default();
    let (mut total, mut at) = (0, 0);
    while at < size {
        let data = match sys::lseek(own, at as i64, libc::SEEK_DATA) {
            Ok(data) => data as u64,
            Err(sys::Errno(libc::ENXIO)) => break,
            // A file system without holes.
            Err(_) => at,
        };
        let end = sys::lseek(own, data as i64, libc::SEEK_HOLE).map_or(size, |end| end as u64).min(size);
        total += end.saturating_sub(data);
        if total > NAMELESS_LIMIT {
            return Err(sys::Errno(libc::EFBIG));
        }
        let bytes = part(own, data, end.saturating_sub(data) as usize)?;
        out.extents.push((data, bytes));
        if end <= at {
            break;
        }
        at = end;
    }
    Ok(out)
}

// Without moving the offset: blocks of zeros are taken for holes.
fn all_of(fd: i32, size: u64) -> sys::Result<Contents> {
    const BLOCK: usize = 1 << 20;
    if size > NAMELESS_LIMIT {
        return Err(sys::Errno(libc::EFBIG));
    }
    let mut out = Contents::default();
    let mut at = 0;
    while at < size {
        let bytes = part(fd, at, BLOCK.min((size - at) as usize))?;
        if bytes.is_empty() {
            break;
        }
        let next = at + bytes.len() as u64;
        if bytes.iter().any(|&b| b != 0) {
            out.extents.push((at, bytes));
        }
        at = next;
    }
    Ok(out)
}

// Up to `length` bytes at `offset`; fewer at the end of the file.
fn part(fd: i32, offset: u64, length: usize) -> sys::Result<Vec<u8>> {
    let mut bytes = vec![0u8; length];
    let mut got = 0;
    while got < length {
        match sys::pread(fd, &mut bytes[got..], offset + got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// A directory.
pub fn directory(fd: i32, st: &libc::stat, link: Vec<u8>) -> Result<Kind> {
    let deleted = st.st_nlink == 0 || link.ends_with(DELETED);
    let path = if deleted { link.strip_suffix(DELETED).map_or(link.clone(), <[u8]>::to_vec) } else { link };
    let offset = sys::lseek(fd, 0, libc::SEEK_CUR).map_err(|e| CaptureError::call(fd, "lseek", e))?;
    Ok(Kind::Directory { path, offset, deleted })
}

/// A character or block device that has nothing but an offset.
pub fn device(fd: i32, st: &libc::stat, link: Vec<u8>) -> Result<Kind> {
    let (major, minor) = (libc::major(st.st_rdev), libc::minor(st.st_rdev));
    let block = st.st_mode & libc::S_IFMT == libc::S_IFBLK;
    // <linux/major.h> MEM_MAJOR: null 3, zero 5, full 7, random 8, urandom 9, kmsg 11.
    let plain = block || major == 1 && matches!(minor, 3 | 5 | 7 | 8 | 9 | 11);
    // An event channel of librdmacm. Without ids on it (UCX opens one and leaves it) it has no state; that there are none
    // is for the InfiniBand plugin to say, which sees their making.
    let event_channel = link == b"/dev/infiniband/rdma_cm";
    if !plain && !event_channel {
        return Err(CaptureError::new(
            fd,
            format!(
                "device {} ({major}:{minor}): its driver's state cannot be saved; close it before the checkpoint, or use a plugin that knows it",
                sys::lossy(&link)
            ),
        ));
    }
    let offset = sys::lseek(fd, 0, libc::SEEK_CUR).unwrap_or(0);
    Ok(Kind::Device { path: link, rdev: st.st_rdev, offset })
}
