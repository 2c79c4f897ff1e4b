//! Generations on disk. A generation is written to `generation-N.partial/` and becomes `generation-N/` by one rename,
//! after everything in it, and before the folder that holds it, has been synced: it is there as a whole or not at all.
use rustix::time::ClockId;
use slackwater_image::{
    generations,
    manifest::{Manifest, folder_name, partial_name},
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::SystemTime,
};

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// What is in the folder when a coordinator starts.
pub(crate) struct Found {
    /// The newest committed generation.
    pub newest: Option<u64>,
    /// The first number above all that are there, unfinished ones included.
    pub next: u64,
    /// Unfinished ones: their coordinator has died.
    pub leftovers: Vec<u64>,
}

/// Looks at the folder; before anything is written to it.
pub(crate) fn find(dir: &Path) -> Found {
    let found = generations::list(dir).unwrap_or_default();
    let newest = found.committed.last().copied();
    let next = newest.max(found.partial.last().copied()).map_or(1, |n| n + 1);
    Found { newest, next, leftovers: found.partial }
}

/// Makes the folder for a new generation.
pub(crate) fn create(dir: &Path, generation: u64) -> Result<(), String> {
    let path = dir.join(partial_name(generation));
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| at(&path, &error))
}

/// Removes what an unfinished generation left behind.
pub(crate) fn remove_partial(dir: &Path, generation: u64) -> Result<(), String> {
    let path = dir.join(partial_name(generation));
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path, &error)),
        _ => Ok(()),
    }
}

/// What a clock shows, in microseconds.
pub(crate) fn clock_us(id: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(id);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}

/// Makes the generation durable and gives it its final name.
pub(crate) fn commit(dir: &Path, manifest: &mut Manifest) -> Result<(), String> {
    let partial = dir.join(partial_name(manifest.generation));
    for member in &manifest.members {
        let path = partial.join(&member.file);
        let check = || {
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            if length != member.bytes {
                return Err(io::Error::other(format!("{length} bytes, but its process wrote {}", member.bytes)));
            }
            file.sync_all()
        };
        check().map_err(|error| at(&path, &error))?;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    manifest.created_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    if let Some(clocks) = &mut manifest.clocks {
        // The two differ by the time that this machine was suspended.
        let suspended = clock_us(ClockId::Boottime).saturating_sub(clock_us(ClockId::Monotonic));
        clocks.boottime_us = clocks.monotonic_us + suspended;
    }
    manifest.write(&partial).map_err(|error| error.to_string())?;
    File::open(&partial).and_then(|folder| folder.sync_all()).map_err(|error| at(&partial, &error))?;
    let last = dir.join(folder_name(manifest.generation));
    fs::rename(&partial, &last).map_err(|error| at(&last, &error))?;
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        // Not known to be durable is not committed.
        let _ = fs::rename(&last, &partial);
        return Err(at(dir, &error));
    }
    Ok(())
}

/// Removes all but the newest `keep` generations; the removed ones lose their final name first.
pub(crate) fn prune(dir: &Path, keep: u32) -> Result<(), String> {
    let found = generations::list(dir).map_err(|error| error.to_string())?.committed;
    let surplus = found.len().saturating_sub(keep.max(1) as usize);
    for &generation in &found[..surplus] {
        let path = dir.join(folder_name(generation));
        fs::rename(&path, dir.join(partial_name(generation))).map_err(|error| at(&path, &error))?;
        remove_partial(dir, generation)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use slackwater_image::manifest::Member;

    fn write(dir: &Path, generation: u64, bytes: u64) -> Result<(), String> {
        create(dir, generation)?;
        fs::write(dir.join(partial_name(generation)).join("a.img"), "12345").unwrap();
        let members = vec![Member { file: "a.img".into(), bytes, ..Member::default() }];
        commit(dir, &mut Manifest { generation, members, ..Manifest::default() })
    }

    #[test]
    fn commits_numbers_and_prunes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!((find(dir).newest, find(dir).next), (None, 1));
        for generation in [1, 2, 9, 10] {
            write(dir, generation, 5).unwrap();
        }
        create(dir, 12).unwrap();
        let found = find(dir);
        assert_eq!((found.newest, found.next, &found.leftovers[..]), (Some(10), 13, &[12][..]));
        prune(dir, 2).unwrap();
        remove_partial(dir, 12).unwrap();
        let found = generations::list(dir).unwrap();
        assert_eq!((found.committed, found.partial), (vec![9, 10], vec![]));
    }

    #[test]
    fn an_image_of_another_length_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let reason = write(dir.path(), 1, 6).unwrap_err();
        assert!(reason.contains("a.img: 5 bytes, but its process wrote 6"), "{reason}");
        assert_eq!((find(dir.path()).newest, find(dir.path()).next), (None, 2));
    }
}
