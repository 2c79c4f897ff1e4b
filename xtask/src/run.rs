//! Running other programs: one place that prints what is run and turns a bad status into an error.
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

/// The workspace's root: the folder above this crate's.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// A command as a person would type it, for messages.
pub fn shown(command: &Command) -> String {
    // The program's name is enough: cargo's full path is long.
    let program = std::path::Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str())];
    words.extend(command.get_args());
    words.into_iter().map(|w| quote(&w.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// `word` such that a POSIX shell reads it as one word.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs `command`, shown first, output passed through.
///
/// # Errors
/// When it cannot be started or its status is not 0.
pub fn step(command: &mut Command) -> Result<()> {
    println!("+ {}", shown(command));
    quiet(command)
}

/// As [`step`], without showing it.
pub fn quiet(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Standard output of `command`, or None when it cannot be started or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let out = command.output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// `cargo` as the one that runs us, in the workspace's root.
pub fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quoted_words_come_back_from_a_shell() {
        for word in ["", "plain", "two words", "it's", "$HOME `id` \\ \"x\"", "new\nline", "*"] {
            let out = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output();
            assert_eq!(String::from_utf8_lossy(&out.expect("sh runs").stdout), word);
        }
    }
}
