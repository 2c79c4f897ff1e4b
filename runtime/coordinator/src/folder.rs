//! The folder of a computation: lock, secret, address, log. It is the computation's handle: who can read the secret in
//! it may command the computation.
//!
//! Rules: files are 0600, folders that we make 0700; whoever holds the lock owns the folder's content; the address is
//! replaced by rename, so that a reader sees one address or none.
use crate::options::Options;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};
use slackwater_protocol::{
    auth::{Role, Secret},
    client::{Client, ClientError},
    names,
};
use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::{
        ffi::OsStringExt,
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long a coordinator that ends may hold the lock before the folder counts as in use.
const LEAVING: Duration = Duration::from_secs(2);

/// What may go wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file or folder in it.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Its lock is held.
    #[error("{dir} is in use by a computation that runs (see `slackwater status --dir {dir}`); choose another --dir", dir = .0.display())]
    Busy(PathBuf),
    /// No listening socket.
    #[error("cannot listen on 127.0.0.1: {0}")]
    Listen(io::Error),
    /// Nobody lives there.
    #[error("no computation runs in {}", .0.display())]
    Nobody(PathBuf),
    /// The files do not hold what they should.
    #[error("{}: not readable as {what}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The coordinator cannot be spoken to.
    #[error(transparent)]
    Client(#[from] ClientError),
}

fn at(path: &Path) -> impl Fn(io::Error) -> FolderError + '_ {
    |error| FolderError::Io { path: path.to_path_buf(), error }
}

/// A folder that is ours: lock held, secret known, listening. Dropping it gives all that up.
#[derive(Debug)]
pub struct Claim {
    /// The folder, absolute.
    pub dir: PathBuf,
    /// Holds the lock as long as any copy of it is open.
    pub lock: OwnedFd,
    /// Listens on loopback; whoever connects waits until it is accepted.
    pub listener: OwnedFd,
    /// Where.
    pub addr: SocketAddr,
    /// The secret.
    pub secret: Secret,
}

/// Makes the folder (if need be), locks it, and puts secret and address into it.
///
/// A secret that is there already stays: processes of an earlier generation know it.
///
/// # Errors
/// [`FolderError::Busy`] when a live coordinator holds it.
pub fn claim(dir: &Path) -> Result<Claim, FolderError> {
    let dir = std::path::absolute(dir).map_err(at(dir))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
    let lock_path = dir.join(names::FILE_LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&lock_path, flags, Mode::from_raw_mode(0o600)).map_err(|e| at(&lock_path)(e.into()))?;
    let since = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            // A coordinator whose last process has just died is still on its way out: who kills a computation and restarts
            // it at once shall not lose that race. flock(2) has no time limit of its own, hence the retries.
            Err(Errno::WOULDBLOCK) if since.elapsed() < LEAVING => thread::sleep(LEAVING / 200),
            Err(Errno::WOULDBLOCK) => return Err(FolderError::Busy(dir)),
            Err(error) => return Err(at(&lock_path)(error.into())),
        }
    }
    let secret = match read_secret(&dir) {
        Ok(secret) => secret,
        Err(_) => make_secret(&dir)?,
    };
    let (listener, addr) = listen().map_err(|error| FolderError::Listen(error.into()))?;
    let path = dir.join(names::FILE_ADDRESS);
    replace(&path, addr.to_string().as_bytes()).map_err(at(&path))?;
    Ok(Claim { dir, lock, listener, addr, secret })
}

fn listen() -> rustix::io::Result<(OwnedFd, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // A whole computation may connect at once, and a full backlog costs each of the others a second.
    rustix::net::listen(&socket, 4096)?;
    let addr = rustix::net::getsockname(&socket)?;
    let addr = SocketAddr::try_from(addr).map_err(|_| Errno::AFNOSUPPORT)?;
    Ok((socket, addr))
}

/// Writes a file under a temporary name and renames it; 0600.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(0o600))?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

/// Notes how the coordinator of `dir` works, for the restart that comes after it.
pub(crate) fn note_options(dir: &Path, options: &Options) -> io::Result<()> {
    let options = Options { expect: None, ..options.clone() };
    let content: Vec<u8> =
        options.arguments().into_iter().flat_map(|word| [word.into_vec(), vec![0]].concat()).collect();
    replace(&dir.join(names::FILE_OPTIONS), &content)
}

/// What [`note_options`] noted: arguments of `slackwater coordinator`; nothing where nothing was.
#[must_use]
pub fn noted_options(dir: &Path) -> Vec<OsString> {
    let content = fs::read(dir.join(names::FILE_OPTIONS)).unwrap_or_default();
    let words = content.split_inclusive(|&byte| byte == 0).filter_map(|word| word.strip_suffix(&[0]));
    words.map(|word| OsString::from_vec(word.to_vec())).collect()
}

fn make_secret(dir: &Path) -> Result<Secret, FolderError> {
    let path = dir.join(names::FILE_SECRET);
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| at(&path)(io::Error::other(error.to_string())))?;
    let secret = Secret::new(bytes);
    replace(&path, &secret.to_hex()).map_err(at(&path))?;
    Ok(secret)
}

/// The computation's secret.
///
/// # Errors
/// When the file is not there, is not ours to read, or others could have read it.
pub fn read_secret(dir: &Path) -> Result<Secret, FolderError> {
    let path = dir.join(names::FILE_SECRET);
    let text = fs::read(&path).map_err(at(&path))?;
    let mode = rustix::fs::stat(&path).map_err(|e| at(&path)(e.into()))?.st_mode;
    if mode & 0o077 != 0 {
        return Err(FolderError::Content { path, what: "a secret: others may read it too" });
    }
    Secret::from_hex(&text).ok_or(FolderError::Content { path, what: "a secret of 64 hexadecimal digits" })
}

/// Where the coordinator listens.
///
/// # Errors
/// [`FolderError::Nobody`] when none does.
pub fn read_address(dir: &Path) -> Result<SocketAddr, FolderError> {
    let path = dir.join(names::FILE_ADDRESS);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(FolderError::Nobody(dir.to_path_buf())),
        Err(error) => return Err(at(&path)(error)),
    };
    text.trim().parse().map_err(|_| FolderError::Content { path, what: "an address (IP:PORT)" })
}

/// Connects to the coordinator of the computation in `dir`.
///
/// # Errors
/// [`FolderError::Nobody`] when none runs there, be it that it has died without removing its address.
pub fn connect(dir: &Path, role: Role) -> Result<Client, FolderError> {
    let addr = read_address(dir)?;
    let secret = read_secret(dir)?;
    match Client::connect(addr, &secret, role) {
        Err(ClientError::Connect { error, .. }) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(FolderError::Nobody(dir.to_path_buf()))
        }
        other => Ok(other?),
    }
}
