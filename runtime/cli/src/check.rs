//! Can this program be launched? Found out before anything is started, for a program into which the library cannot be
//! preloaded would run, and be missing from every checkpoint, silently.
use anyhow::{Context, Result, bail};
use object::{
    Endianness,
    elf::{self, FileHeader64},
    read::elf::{FileHeader, ProgramHeader},
};
use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = elf::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = elf::EM_AARCH64;

/// As much of a file as is looked at: ELF header, program headers and the interpreter's name stand at the beginning.
const HEAD: u64 = 64 << 10;
/// A script may name a script as its interpreter; the kernel follows so many (fs/exec.c).
const MAX_SCRIPTS: u32 = 5;

/// Finds the program as execvp(3) would.
pub fn find(name: &OsStr) -> Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let path = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let candidates = env::split_paths(&path).map(|dir| dir.join(name)).filter(|file| file.is_file());
    let mut denied = None;
    for file in candidates {
        if executable(&file) {
            return Ok(file);
        }
        denied.get_or_insert(file);
    }
    match denied {
        // `check` says what is wrong with it.
        Some(file) => Ok(file),
        None => bail!("{}: no such program in PATH", name.to_string_lossy()),
    }
}

fn executable(path: &Path) -> bool {
    let flags = rustix::fs::AtFlags::EACCESS;
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, flags).is_ok()
}

/// Fails with one clear reason when the program cannot be launched.
pub fn check(path: &Path) -> Result<()> {
    let mut file = path.to_path_buf();
    for _ in 0..MAX_SCRIPTS {
        match check_file(&file)? {
            None => return Ok(()),
            Some(interpreter) => file = interpreter,
        }
    }
    bail!("{}: a script whose interpreter is a script, and so on", path.display())
}

/// The interpreter of a script, or None.
fn check_file(path: &Path) -> Result<Option<PathBuf>> {
    let name = path.display();
    let metadata = path.metadata().with_context(|| format!("{name}: cannot be launched"))?;
    if !metadata.is_file() {
        bail!("{name}: is no file");
    }
    if !executable(path) {
        bail!("{name}: is not executable (for you)");
    }
    let set_id = metadata.permissions().mode() & 0o6000;
    if set_id != 0 && foreign(&metadata, set_id) {
        bail!("{name}: is set-uid or set-gid: the system preloads no library into it, so it cannot be checkpointed");
    }
    let mut head = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    opened.with_context(|| format!("{name}: cannot be read, so whether it can be checkpointed cannot be told"))?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or_default().trim_ascii_start();
        let interpreter = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        if interpreter.is_empty() {
            bail!("{name}: a script that names no interpreter");
        }
        return Ok(Some(OsStr::from_bytes(interpreter).into()));
    }
    check_elf(&head).with_context(|| name.to_string())?;
    Ok(None)
}

/// Whether its set-id bits would change who we are; otherwise the system preloads into it.
fn foreign(metadata: &std::fs::Metadata, set_id: u32) -> bool {
    let uid = set_id & 0o4000 != 0 && metadata.uid() != rustix::process::getuid().as_raw();
    // Set-gid without group execution is no set-gid (inode(7)).
    let gid = set_id & 0o2000 != 0
        && metadata.permissions().mode() & 0o010 != 0
        && metadata.gid() != rustix::process::getgid().as_raw();
    uid || gid
}

fn check_elf(head: &[u8]) -> Result<()> {
    if !head.starts_with(&elf::ELFMAG) {
        bail!("is neither an ELF program nor a script with a first line of #!");
    }
    let Ok(header) = FileHeader64::<Endianness>::parse(head) else {
        bail!("is no 64-bit program: this slackwater is for {} programs only", env::consts::ARCH);
    };
    let endian = header.endian().context("not a program")?;
    if header.e_machine(endian) != MACHINE {
        bail!("is for another machine architecture: this slackwater is for {} programs only", env::consts::ARCH);
    }
    let headers = header.program_headers(endian, head).context("its program headers cannot be read")?;
    let Some(interpreter) = headers.iter().find(|h| h.p_type(endian) == elf::PT_INTERP) else {
        bail!(
            "is statically linked: no library can be preloaded into it, so it cannot be checkpointed; link it dynamically (gcc without -static, Go with cgo)"
        );
    };
    let path = interpreter.data(endian, head).unwrap_or_default();
    let path = path.split(|&b| b == 0).next().unwrap_or_default();
    if path.windows(8).any(|part| part == b"ld-musl-") {
        let path = std::ffi::OsString::from_vec(path.to_vec());
        bail!("is linked with musl ({}): only programs of glibc can be checkpointed", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn file(content: &[u8], mode: u32) -> tempfile::TempPath {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file.into_temp_path()
    }

    fn reason(path: &Path) -> String {
        check(path).map_or_else(|error| format!("{error:#}"), |()| "fine".into())
    }

    /// This test's own executable with one change.
    fn changed(change: impl Fn(&mut [u8])) -> tempfile::TempPath {
        let mut head = fs::read(env::current_exe().unwrap()).unwrap();
        head.truncate(HEAD as usize);
        change(&mut head);
        file(&head, 0o755)
    }

    #[test]
    fn programs_and_scripts_of_this_machine_are_fine() {
        assert_eq!(reason(&find(OsStr::new("true")).unwrap()), "fine");
        assert_eq!(reason(&file(b"#! /bin/sh -e\n", 0o755)), "fine");
        assert_eq!(reason(&changed(|_| ())), "fine");
    }

    #[test]
    fn each_obstacle_has_its_reason() {
        assert!(find(OsStr::new("no-such-program-here")).unwrap_err().to_string().contains("no such program in PATH"));
        assert!(reason(Path::new("/no/such/file")).contains("No such file or directory"));
        assert!(reason(Path::new("/")).contains("is no file"));
        assert!(reason(&file(b"#!/bin/sh\n", 0o644)).contains("is not executable"));
        assert!(reason(&file(b"hello\n", 0o755)).contains("neither an ELF program nor a script"));
        assert!(reason(&file(b"#!/no/such/shell\n", 0o755)).contains("/no/such/shell: cannot be launched"));
        assert!(reason(&changed(|elf| elf[18] = 0xf3)).contains("another machine architecture"));
        assert!(reason(&changed(|elf| elf[4] = 1)).contains("is no 64-bit program"));
        let no_interpreter = |elf: &mut [u8]| {
            let (start, count) = (64, usize::from(elf[56]));
            for header in elf[start..start + 56 * count].chunks_exact_mut(56).filter(|h| h[0] == elf::PT_INTERP as u8) {
                header[0] = elf::PT_NOTE as u8;
            }
        };
        assert!(reason(&changed(no_interpreter)).contains("is statically linked"));
        assert!(reason(&changed(|elf| elf[32..40].fill(0xff))).contains("cannot be read"));
    }

    #[test]
    fn set_uid_of_somebody_else_is_refused() {
        let path = file(b"#!/bin/sh\n", 0o4755);
        if !rustix::process::getuid().is_root() {
            return assert_eq!(reason(&path), "fine", "set-uid to ourselves changes nothing");
        }
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(reason(&path).contains("is set-uid or set-gid"));
    }
}
