//! The generations in a computation's folder: which there are, reading and writing a manifest.
//!
//! Rules: what lies in the folder was written by us or by anybody; a name that is not ours is passed over, a manifest that
//! is not whole is an error which names it. Files are made 0600.
use crate::{
    layout::FORMAT,
    manifest::{FolderName, MANIFEST, Manifest, folder_name, parse_folder_name},
};
use std::{
    format,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    string::{String, ToString},
    vec::Vec,
};

/// Longest manifest that is read, in bytes: a million processes have a smaller one.
const MAX_MANIFEST: u64 = 1 << 30;

/// A generation or its manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The system would not do it.
    #[error("{path}: {error}; check the path and its permissions")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The manifest is not as it should be.
    #[error("{path}: the manifest is damaged: {why}; restart from another generation (--generation N)")]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is none.
    #[error("{path}: {what}; `slackwater checkpoint --dir ...` makes one while the computation runs")]
    None {
        /// Which folder.
        path: PathBuf,
        /// What is not there.
        what: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> GenerationError {
    let path = path.to_path_buf();
    move |error| GenerationError::Io { path, error }
}

/// What a computation's folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// Committed generations, ascending.
    pub committed: Vec<u64>,
    /// Folders of generations that were never committed, ascending.
    pub partial: Vec<u64>,
}

/// Lists the generations in `dir`.
///
/// # Errors
/// The folder cannot be read.
pub fn list(dir: &Path) -> Result<Generations, GenerationError> {
    let mut found = Generations::default();
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let entry = entry.map_err(io_error(dir))?;
        match entry.file_name().to_str().and_then(parse_folder_name) {
            Some(FolderName::Committed(n)) => found.committed.push(n),
            Some(FolderName::Partial(n)) => found.partial.push(n),
            None => {}
        }
    }
    found.committed.sort_unstable();
    found.partial.sort_unstable();
    Ok(found)
}

/// The folder of generation `n` in `dir`, or of the newest that is committed.
///
/// # Errors
/// There is no such generation, or `dir` cannot be read.
pub fn find(dir: &Path, n: Option<u64>) -> Result<(u64, PathBuf), GenerationError> {
    let found = list(dir)?;
    let chosen = match n {
        None => found.committed.last().copied(),
        Some(n) => found.committed.iter().copied().find(|have| *have == n),
    };
    match chosen {
        Some(n) => Ok((n, dir.join(folder_name(n)))),
        None => {
            let have: Vec<String> = found.committed.iter().map(|n| n.to_string()).collect();
            let what = match (n, have.is_empty()) {
                (_, true) => "it holds no committed generation".into(),
                (None, _) => "it holds no generation".into(),
                (Some(n), _) => format!("it has no generation {n} (but {})", have.join(", ")),
            };
            Err(GenerationError::None { path: dir.into(), what })
        }
    }
}

impl Manifest {
    /// Reads the manifest in a generation's folder, and checks it.
    ///
    /// # Errors
    /// It cannot be read, is no manifest, or is of a format that this slackwater does not read.
    pub fn read(folder: &Path) -> Result<Manifest, GenerationError> {
        let path = folder.join(MANIFEST);
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(io_error(&path))?;
        file.take(MAX_MANIFEST).read_to_end(&mut bytes).map_err(io_error(&path))?;
        let damaged = |why: String| GenerationError::Manifest { path: path.clone(), why };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        manifest.check().map_err(damaged)?;
        match manifest.format.parse() {
            Ok(version) if FORMAT.reads(version) => Ok(manifest),
            Ok(version) => Err(damaged(format!("its format is {version}, and this slackwater reads {FORMAT}"))),
            Err(why) => Err(damaged(why.into())),
        }
    }

    /// Writes the manifest into a generation's folder and syncs it. The folder's rename and sync are the caller's.
    ///
    /// # Errors
    /// It cannot be written, or breaks [`Manifest::check`].
    pub fn write(&self, folder: &Path) -> Result<(), GenerationError> {
        let path = folder.join(MANIFEST);
        self.check().map_err(|why| GenerationError::Manifest { path: path.clone(), why })?;
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| GenerationError::Manifest { path: path.clone(), why: e.to_string() })?;
        bytes.push(b'\n');
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(io_error(&path))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error(&path))
    }
}
