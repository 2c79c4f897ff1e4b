//! Names that launcher, agent, coordinator and restart agree on: environment variables, and files in the folder of a
//! computation (its generations are named by the crate `slackwater-image`).
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

/// Environment: where the coordinator listens, as `127.0.0.1:PORT`.
pub const ENV_ADDR: &str = "SLACKWATER_ADDR";
/// Environment: the computation's folder, absolute. For the command line: the default of `--dir`.
pub const ENV_DIR: &str = "SLACKWATER_DIR";
/// Environment: the token (hexadecimal u64) that an `Expect` announced for the process; absent: 0. After `-`, of a program
/// that a process of the computation becomes by exec: that process's pid.
pub const ENV_TOKEN: &str = "SLACKWATER_TOKEN";
/// Environment: the plugins and their options ([`format_plugins`]), for those who must put `LD_PRELOAD` together again.
pub const ENV_PLUGINS: &str = "SLACKWATER_PLUGINS";
/// Number of the checkpoint signal, where it is not the default.
pub const ENV_SIGNAL: &str = "SLACKWATER_SIGNAL";
/// Environment, of a program whose user cannot read [`FILE_SECRET`] (it was started by one who could, and who has changed his
/// user): the secret itself. The agent overwrites it before the program runs.
pub const ENV_SECRET: &str = "SLACKWATER_SECRET";
/// Environment, read by the launcher alone: path of `libslackwater.so` where it is not beside the program.
pub const ENV_LIB: &str = "SLACKWATER_LIB";
/// ld.so(8): libraries to load first; ours comes first in it.
pub const ENV_PRELOAD: &str = "LD_PRELOAD";
/// File name of the preloaded library.
pub const LIBRARY: &str = "libslackwater.so";
/// File name of the InfiniBand plugin, which `launch` takes along where there are verbs devices.
pub const VERBS_PLUGIN: &str = "libslackwater_ib.so";

/// What `restart --env` adds, in the checkpoint folder for as long as the restart lasts: NAME=VALUE, each ended by a NUL.
pub const FILE_ENVIRONMENT: &str = "environment";
/// File: what programs know the addresses of their sockets as, where the last restart could not give them these.
pub const FILE_NAMES: &str = "names";
/// File: how the last coordinator was told to work, as arguments, each ended by a NUL; a restart goes on so.
pub const FILE_OPTIONS: &str = "options";
/// File: the secret, 64 hexadecimal digits, mode 0600.
pub const FILE_SECRET: &str = "secret";
/// File: where the coordinator listens, `IP:PORT`; there only while it runs.
pub const FILE_ADDRESS: &str = "address";
/// File: what happened, for people.
pub const FILE_LOG: &str = "log";
/// File: flock(2)ed by the coordinator as long as it lives.
pub const FILE_LOCK: &str = "lock";
/// Name, after the zero byte, of the abstract Unix socket (unix(7)) at which the coordinator that listens on TCP port `port`
/// opens images for processes whose user may not ([`BORROW_PATH`]).
#[must_use]
pub fn borrow_socket(port: u16) -> String {
    format!("slackwater-{port}")
}
/// The longest path that may be asked for there. A request is the secret (64 hexadecimal digits) and the path, then the end;
/// the answer is one byte with the descriptor (SCM_RIGHTS), or the reason in words.
pub const BORROW_PATH: usize = 4096;

/// `SLACKWATER_TOKEN`'s form of a token.
#[must_use]
pub fn format_token(token: u64) -> String {
    format!("{token:016x}")
}

/// Reads `SLACKWATER_TOKEN`; anything that is not hexadecimal counts as absent.
#[must_use]
pub fn parse_token(text: &str) -> u64 {
    u64::from_str_radix(text.split('-').next().unwrap_or_default(), 16).unwrap_or(0)
}

/// Who has become the program that finds this `SLACKWATER_TOKEN`; None: nobody, it was launched or spawned.
#[must_use]
pub fn token_pid(text: &str) -> Option<i32> {
    text.split_once('-')?.1.parse().ok()
}

/// `SLACKWATER_PLUGINS`: `PATH,KEY=VALUE,...:PATH...`, in which `%`, `:` and `,` stand as `%25`, `%3A` and `%2C`.
#[must_use]
pub fn format_plugins<'a>(plugins: impl IntoIterator<Item = (&'a str, &'a [(String, String)])>) -> String {
    let mut out = String::new();
    for (path, options) in plugins {
        if !out.is_empty() {
            out.push(':');
        }
        escape(&mut out, path);
        for (key, value) in options {
            out.push(',');
            escape(&mut out, key);
            out.push('=');
            escape(&mut out, value);
        }
    }
    out
}

/// Reads it: path, and options in order.
pub fn parse_plugins(text: &str) -> impl Iterator<Item = (String, Vec<(String, String)>)> + '_ {
    text.split(':').filter(|plugin| !plugin.is_empty()).map(|plugin| {
        let mut parts = plugin.split(',');
        let path = plain(parts.next().unwrap_or_default());
        let options = parts.map(|option| option.split_once('=').unwrap_or((option, "")));
        (path, options.map(|(key, value)| (plain(key), plain(value))).collect())
    })
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '%' => out.push_str("%25"),
            ':' => out.push_str("%3A"),
            ',' => out.push_str("%2C"),
            _ => out.push(c),
        }
    }
}

fn plain(text: &str) -> String {
    if text.contains('%') { text.replace("%2C", ",").replace("%3A", ":").replace("%25", "%") } else { text.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        assert_eq!(parse_token(&format_token(u64::MAX)), u64::MAX);
        assert_eq!(parse_token("zz"), 0);
        assert_eq!(parse_token("ff-12"), 255);
        assert_eq!((token_pid("ff-12"), token_pid("ff")), (Some(12), None));
    }

    #[test]
    fn plugins_read_back() {
        let options = [("k".to_string(), "a:b,c=%3A".to_string()), ("empty".to_string(), String::new())];
        let text = format_plugins([("/a,b.so", &options[..]), ("/c.so", &[])]);
        assert_eq!(text.matches(':').count(), 1);
        let back: Vec<_> = parse_plugins(&text).collect();
        assert_eq!(back, [("/a,b.so".to_string(), options.to_vec()), ("/c.so".to_string(), Vec::new())]);
        assert_eq!(parse_plugins("").count(), 0);
    }
}
