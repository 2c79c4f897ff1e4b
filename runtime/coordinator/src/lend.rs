//! Opens images for processes whose user may not: somebody who was root when he launched them has become another user, and
//! then another program (su(1), setpriv(1), a server that is started so), which has no way into the folder.
//!
//! Rules: whoever knows the secret gets a descriptor of an image of a generation that is being made, and of nothing else. A
//! thread of its own serves one at a time, with a time-out, so that nobody can hold up the coordinator.
use crate::server::log;
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use slackwater_image::manifest::{FolderName, parse_folder_name};
use slackwater_protocol::{auth::Secret, names};
use std::{
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// For a whole request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until the coordinator ends. Where the name is taken, or no thread is to be had, such processes cannot be saved: a
/// line in the log.
pub(crate) fn start(dir: PathBuf, port: u16, secret: Arc<Secret>) {
    let listen = || -> io::Result<()> {
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(names::borrow_socket(port))?)?;
        std::thread::Builder::new().name("lend".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = serve(stream, &dir, &secret) {
                    log(&format!("a process that asked for its image: {error}"));
                }
            }
        })?;
        Ok(())
    };
    if let Err(error) = listen() {
        log(&format!("processes that change their user cannot be saved: {error}"));
    }
}

fn serve(mut stream: UnixStream, dir: &Path, secret: &Secret) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    (&stream).take(64 + names::BORROW_PATH as u64).read_to_end(&mut request)?;
    let opened = match request.split_at_checked(64) {
        Some((proof, path)) if same(proof, &secret.to_hex()) => open(Path::new(&*String::from_utf8_lossy(path)), dir),
        _ => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
    };
    match opened {
        Ok(file) => {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [file.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(&stream, &[IoSlice::new(b"+")], &mut control, SendFlags::NOSIGNAL)?;
        }
        Err(error) => stream.write_all(error.to_string().as_bytes())?,
    }
    Ok(())
}

/// In the same time, wherever they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// An image in a folder in ours, which is no generation yet.
fn open(path: &Path, dir: &Path) -> io::Result<OwnedFd> {
    let inside: Vec<Component<'_>> =
        path.strip_prefix(dir).map_err(|_| io::ErrorKind::PermissionDenied)?.components().collect();
    let fits = match inside.as_slice() {
        [Component::Normal(folder), Component::Normal(file)] => {
            let (folder, file) = (folder.to_string_lossy(), file.to_string_lossy());
            matches!(parse_folder_name(&folder), Some(FolderName::Partial(_)))
                && file.starts_with("member-")
                && file.ends_with(".image")
        }
        _ => false,
    };
    if !fits {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_images_of_a_generation_in_the_making_alone() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(slackwater_image::manifest::partial_name(7));
        std::fs::create_dir(&partial).unwrap();
        std::fs::create_dir(dir.path().join("generation-000001")).unwrap();
        assert!(open(&partial.join("member-000001.image"), dir.path()).is_ok());
        for other in ["secret", "generation-000001/member-000001.image", "/etc/passwd", "../x/member-1.image"] {
            assert!(open(&dir.path().join(other), dir.path()).is_err(), "{other}");
        }
        assert!(open(&partial.join("manifest.json"), dir.path()).is_err());
        assert!(open(&partial.join("../member-1.image"), dir.path()).is_err());
    }

    #[test]
    fn lends_to_those_who_know_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(slackwater_image::manifest::partial_name(1));
        std::fs::create_dir(&partial).unwrap();
        let (secret, path) = (Secret::new([7; 32]), partial.join("member-000001.image"));
        for (proof, works) in [(secret.to_hex(), true), (Secret::new([8; 32]).to_hex(), false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&proof).unwrap();
            theirs.write_all(path.as_os_str().as_encoded_bytes()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            serve(ours, dir.path(), &secret).unwrap();
            let mut answer = String::new();
            theirs.read_to_string(&mut answer).unwrap();
            assert_eq!((answer == "+", path.exists()), (works, true), "{answer}");
        }
    }
}
