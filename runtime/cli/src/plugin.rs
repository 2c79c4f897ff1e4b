//! `--plugin PATH[,KEY=VALUE]...`: read, and tried out before anything is started. A library that the dynamic linker cannot
//! preload would only be a line on standard error for it, and the program would run, and be checkpointed, without the plugin.
use crate::launch::{preload, preloadable};
use anyhow::{Context, Result, bail};
use slackwater_protocol::names;
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A plugin with its options.
pub struct Plugin {
    /// Absolute.
    pub path: PathBuf,
    options: Vec<(String, String)>,
}

impl From<PathBuf> for Plugin {
    fn from(path: PathBuf) -> Self {
        Self { path, options: Vec::new() }
    }
}

/// Reads an argument; a path may have commas in it if a file of that name is there.
pub fn parse(argument: &Path) -> Result<Plugin> {
    if argument.exists() || !argument.as_os_str().as_bytes().contains(&b',') {
        return Ok(preloadable(argument)?.into());
    }
    let text = argument.to_str().context("--plugin: an option that is not UTF-8")?;
    let (path, options) = text.split_once(',').unwrap_or((text, ""));
    let options = options.split(',').map(|option| match option.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("--plugin {text}: `{option}` is not of the form KEY=VALUE"),
    });
    Ok(Plugin { path: preloadable(Path::new(path))?, options: options.collect::<Result<_>>()? })
}

/// `SLACKWATER_PLUGINS`.
pub fn variable(plugins: &[Plugin]) -> Result<String> {
    let named = plugins.iter().map(|plugin| {
        let path = plugin.path.to_str().with_context(|| format!("{}: is not UTF-8", plugin.path.display()))?;
        Ok((path, plugin.options.as_slice()))
    });
    Ok(names::format_plugins(named.collect::<Result<Vec<_>>>()?))
}

/// Preloads all, in their order, into a process that does nothing: every symbol must be found, every registration accepted.
pub fn try_out(own: &Path, library: &Path, plugins: &[Plugin]) -> Result<()> {
    let paths: Vec<PathBuf> = plugins.iter().map(|plugin| plugin.path.clone()).collect();
    let tried = Command::new(own)
        .arg("try-plugins")
        .env(names::ENV_PRELOAD, preload(library, &paths))
        .env("LD_BIND_NOW", "1")
        .env_remove(names::ENV_ADDR)
        .stdin(Stdio::null())
        .output()
        .context("cannot try the plugins out")?;
    let said = String::from_utf8_lossy(&tried.stderr);
    if tried.status.success() && !said.contains("cannot be preloaded") {
        return Ok(());
    }
    let said = if said.trim().is_empty() { tried.status.to_string() } else { said.trim().to_owned() };
    bail!("a plugin cannot be loaded: {said}")
}

/// In the process that does nothing.
#[allow(unsafe_code)] // dlsym(3)
pub fn tried() -> Result<()> {
    // SAFETY: a C string; the function has this type in slackwater's library, whose name nobody else takes.
    let refused = unsafe {
        let found = libc::dlsym(libc::RTLD_DEFAULT, c"slackwater_plugins_refused".as_ptr());
        let found: Option<extern "C" fn() -> i32> = std::mem::transmute(found);
        found.context("libslackwater.so is not here")?()
    };
    // The library has said why.
    if refused > 0 { bail!("{refused} of the plugins cannot be used") } else { Ok(()) }
}
