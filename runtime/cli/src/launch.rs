//! `slackwater launch`: starts a coordinator and becomes the program.
//!
//! Rules: the program must see what it would see without us (parent, pid, terminal, signals, descriptors, exit status), so
//! this process replaces itself by it; and everything before that is on the clock: no threads, no runtime, nothing big read.
#![allow(unsafe_code)] // execve(2)
use crate::{args, check, plugin};
use anyhow::{Context, Result, bail};
use slackwater_coordinator::spawn_daemon;
use slackwater_protocol::names;
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process,
};

/// Returns only if it fails.
pub fn launch(launch: args::Launch) -> Result<()> {
    let name = launch.command.first().context("no program given")?;
    let program = check::find(name)?;
    check::check(&program)?;
    let own = env::current_exe().context("cannot find the slackwater executable")?;
    let library = library(&own)?;
    let mut options = launch.options.into_options();
    let mut plugins = options.plugins.iter().map(|named| plugin::parse(named)).collect::<Result<Vec<_>>>()?;
    if !plugins.is_empty() {
        plugin::try_out(&own, &library, &plugins)?;
    }
    let paths: Vec<PathBuf> = plugins.iter().map(|plugin| plugin.path.clone()).collect();
    let verbs = verbs_plugin(&library, &paths);
    plugins.extend(verbs.map(plugin::Plugin::from));
    options.plugins = plugins.iter().map(|plugin| plugin.path.clone()).collect();
    let token = rand_token()?;
    options.expect = Some((token, i32::try_from(process::id())?));
    let preload = preload(&library, &options.plugins);

    let daemon = spawn_daemon(&launch.dir.dir, &options, &own)?;
    let mut environment: Vec<(OsString, OsString)> =
        env::vars_os().filter(|(name, _)| name != names::ENV_SIGNAL).collect();
    let mut set = |name: &str, value: OsString| {
        environment.retain(|(other, _)| other != name);
        environment.push((name.into(), value));
    };
    set(names::ENV_ADDR, daemon.addr.to_string().into());
    set(names::ENV_DIR, daemon.dir.into());
    set(names::ENV_TOKEN, names::format_token(token).into());
    set(names::ENV_PRELOAD, preload);
    set(names::ENV_PLUGINS, plugin::variable(&plugins)?.into());
    if launch.signal != 33 {
        set(names::ENV_SIGNAL, launch.signal.to_string().into());
    }
    let error = exec(&program, &launch.command, &environment)?;
    // The coordinator sees this process end, and ends too.
    Err(error).with_context(|| format!("{}: cannot be executed", program.display()))
}

fn rand_token() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

/// `$SLACKWATER_LIB`, or the library beside this executable, or in ../lib/slackwater.
pub fn library(own: &Path) -> Result<PathBuf> {
    if let Some(path) = env::var_os(names::ENV_LIB).filter(|path| !path.is_empty()) {
        return preloadable(Path::new(&path));
    }
    let beside = own.parent().unwrap_or(Path::new("/"));
    let places = [beside.join(names::LIBRARY), beside.join("../lib/slackwater").join(names::LIBRARY)];
    match places.iter().find(|path| path.is_file()) {
        Some(path) => preloadable(path),
        None => bail!(
            "{} is neither beside {} nor in ../lib/slackwater; set {} to its path",
            names::LIBRARY,
            own.display(),
            names::ENV_LIB
        ),
    }
}

/// The InfiniBand plugin, where it lies beside the library and this machine has a verbs device: nobody should have to ask
/// for it, and nobody without such a device should pay for it.
fn verbs_plugin(library: &Path, named: &[PathBuf]) -> Option<PathBuf> {
    let mut devices = std::fs::read_dir("/dev/infiniband").ok()?.flatten();
    devices.find(|device| device.file_name().as_bytes().starts_with(b"uverbs"))?;
    let plugin = library.with_file_name(names::VERBS_PLUGIN);
    let asked_for = named.iter().any(|other| other.file_name() == plugin.file_name());
    if asked_for { None } else { preloadable(&plugin).ok() }
}

/// Absolute path of a library that LD_PRELOAD can name.
pub fn preloadable(path: &Path) -> Result<PathBuf> {
    let full = path.canonicalize().with_context(|| format!("{}: cannot be preloaded", path.display()))?;
    if !full.is_file() {
        bail!("{}: cannot be preloaded: is no file", full.display());
    }
    // ld.so(8): both separate the entries, and there is no way to quote them.
    if full.as_os_str().as_bytes().iter().any(|b| matches!(b, b' ' | b':')) {
        bail!("{}: cannot be preloaded: LD_PRELOAD takes no path with a space or a colon in it", full.display());
    }
    Ok(full)
}

fn join(paths: &[PathBuf]) -> OsString {
    let paths: Vec<&OsStr> = paths.iter().map(|path| path.as_os_str()).collect();
    paths.join(OsStr::new(":"))
}

/// Ours, then plugins, then what was preloaded already (but for a library of ours: launch within a launched program).
pub fn preload(library: &Path, plugins: &[PathBuf]) -> OsString {
    let mut all = vec![library.to_path_buf()];
    all.extend_from_slice(plugins);
    let before = env::var_os(names::ENV_PRELOAD).unwrap_or_default();
    let before =
        before.as_bytes().split(|b| matches!(b, b':' | b' ')).map(|path| PathBuf::from(OsStr::from_bytes(path)));
    for path in before {
        let ours = path.file_name().is_none_or(|name| name == names::LIBRARY);
        if !ours && !all.contains(&path) {
            all.push(path);
        }
    }
    join(&all)
}

/// execve(2): unlike `std::process::Command`, it leaves the signal mask alone.
fn exec(program: &Path, arguments: &[OsString], environment: &[(OsString, OsString)]) -> Result<std::io::Error> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    let arguments: Vec<CString> =
        arguments.iter().map(|argument| CString::new(argument.as_bytes())).collect::<Result<_, _>>()?;
    let line = |(name, value): &(OsString, OsString)| {
        let mut line = name.clone().into_vec();
        line.push(b'=');
        line.extend_from_slice(value.as_bytes());
        CString::new(line)
    };
    let environment: Vec<CString> = environment.iter().map(line).collect::<Result<_, _>>()?;
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: path and both null-terminated arrays of C strings outlive the call, which returns only on failure.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Ok(std::io::Error::last_os_error())
}
