//! The file store, `DIR/files/`: copies of the files behind private mappings.
//!
//! An image holds only those pages of such a mapping that the program had changed; all others are in the file. So the file
//! must be what it was when a generation is restarted, and programs and libraries get upgraded. The coordinator copies each
//! file once, after a commit; a restart takes the copy when the file at its path is another one or gone.
//!
//! Rules: a file in the store is whole (it got its name when it was), has the size and modification time of what it is a
//! copy of, and never changes; its name says which file, at which size and time, it stands for. What ends in [`NEW`]
//! (only where the file system has no files without a name) is being written by whoever holds a lock (flock(2)) on it, or rubbish.
use crate::{checksum::checksum, meta::FileId};
use std::{
    format,
    path::{Path, PathBuf},
    string::String,
};

/// Name of the store in the computation's folder.
pub const FOLDER: &str = "files";
/// What the name of a copy that is not whole yet ends with.
pub const NEW: &str = ".new";

/// The name in the store of the file that `id` describes: size, modification time (nanoseconds), sum of the path.
#[must_use]
pub fn name(id: &FileId) -> String {
    format!("{}-{}-{:016x}", id.size, id.mtime_ns, checksum(id.path.as_bytes()))
}

/// Where the store of the computation in `dir` has, or would have, that file. A program that was restarted from the store
/// maps the store's own file, whose name stays: it is found in `dir` even if the folder has been moved since.
#[must_use]
pub fn path(dir: &Path, id: &FileId) -> PathBuf {
    let store = dir.join(FOLDER);
    match own_name(id) {
        Some(own) => store.join(own),
        None => store.join(name(id)),
    }
}

/// The name of a file that lies in a store already.
fn own_name(id: &FileId) -> Option<&str> {
    let (folder, own) = id.path.rsplit_once('/')?;
    let of_this = own.strip_prefix(&format!("{}-{}-", id.size, id.mtime_ns))?;
    let is_sum = of_this.len() == 16 && of_this.bytes().all(|b| b.is_ascii_hexdigit());
    (is_sum && folder.rsplit('/').next() == Some(FOLDER)).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_files_versions_and_copies_apart() {
        let id = FileId { path: "/usr/lib/a.so".into(), size: 5, mtime_ns: -7, ..FileId::default() };
        let dir = Path::new("/d");
        let first = path(dir, &id);
        assert!(
            first.starts_with("/d/files") && first != path(dir, &FileId { path: "/usr/lib/b.so".into(), ..id.clone() })
        );
        assert_ne!(first, path(dir, &FileId { mtime_ns: 8, ..id.clone() }));
        assert_ne!(first, path(dir, &FileId { size: 6, ..id.clone() }));
        // The copy itself, mapped by a program that was restarted from it: found where it is, and where it was moved to.
        let copy = FileId { path: first.to_string_lossy().into_owned(), ..id.clone() };
        assert_eq!(path(dir, &copy), first);
        assert_eq!(path(Path::new("/moved"), &copy), Path::new("/moved/files").join(name(&id)));
        // Only by that name and as that version.
        assert_ne!(path(dir, &FileId { size: 6, ..copy }), first);
    }
}
