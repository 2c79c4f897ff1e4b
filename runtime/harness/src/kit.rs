//! Where the programs under test lie.
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The folder that holds `slackwater` and its libraries.
#[derive(Clone, Debug)]
pub struct Kit {
    folder: PathBuf,
}

impl Kit {
    /// `$SLACKWATER_KIT`, else `target/release` of the workspace.
    ///
    /// # Errors
    /// When there is no `slackwater` in it.
    pub fn find() -> Result<Self> {
        let folder = std::env::var_os("SLACKWATER_KIT").map_or_else(|| target().join("release"), PathBuf::from);
        if !folder.join("slackwater").exists() {
            bail!(
                "no `slackwater` in {}: run `cargo build --release` first (`cargo xtask test` does)",
                folder.display()
            );
        }
        Ok(Self { folder })
    }

    /// Path of the `slackwater` program.
    #[must_use]
    pub fn slackwater(&self) -> PathBuf {
        self.folder.join("slackwater")
    }

    /// Can every user read it? A child that gives up root's privileges could not load the library else.
    #[must_use]
    pub fn is_public(&self) -> bool {
        let Ok(folder) = self.folder.canonicalize() else { return false };
        folder.ancestors().all(|up| fs::metadata(up).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
    }

    /// A copy in `folder` that every user can read, with `program` beside it: a clone may lie where only its owner can look.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn copied(&self, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if text == "slackwater" || (text.starts_with("libslackwater") && text.ends_with(".so")) {
                install(&entry.path(), &folder.join(&name))?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }
}

/// Copies an executable so that everyone can run it.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The workspace's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The workspace's root.
pub(crate) fn workspace() -> PathBuf {
    let this = Path::new(env!("CARGO_MANIFEST_DIR"));
    this.ancestors().nth(2).unwrap_or(this).to_owned()
}
