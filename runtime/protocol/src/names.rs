//! Names that launcher, agent, coordinator and restart agree on: environment variables, and files in the folder of a
//! computation (its generations are named by the crate `slackwater-image`).
use alloc::{format, string::String};

/// Environment: where the coordinator listens, as `127.0.0.1:PORT`.
pub const ENV_ADDR: &str = "SLACKWATER_ADDR";
/// Environment: the computation's folder, absolute. For the command line: the default of `--dir`.
pub const ENV_DIR: &str = "SLACKWATER_DIR";
/// Environment: the token (hexadecimal u64) that an `Expect` announced for the process; absent: 0.
pub const ENV_TOKEN: &str = "SLACKWATER_TOKEN";
/// Environment: colon-separated absolute paths of the plugins, for those who must put `LD_PRELOAD` together again.
pub const ENV_PLUGINS: &str = "SLACKWATER_PLUGINS";
/// Environment, read by the launcher alone: path of `libslackwater.so` where it is not beside the program.
pub const ENV_LIB: &str = "SLACKWATER_LIB";
/// ld.so(8): libraries to load first; ours comes first in it.
pub const ENV_PRELOAD: &str = "LD_PRELOAD";
/// File name of the preloaded library.
pub const LIBRARY: &str = "libslackwater.so";
/// File name of the InfiniBand plugin, which `launch` takes along where there are verbs devices.
pub const VERBS_PLUGIN: &str = "libslackwater_ib.so";

/// File: the secret, 64 hexadecimal digits, mode 0600.
pub const FILE_SECRET: &str = "secret";
/// File: where the coordinator listens, `IP:PORT`; there only while it runs.
pub const FILE_ADDRESS: &str = "address";
/// File: what happened, for people.
pub const FILE_LOG: &str = "log";
/// File: flock(2)ed by the coordinator as long as it lives.
pub const FILE_LOCK: &str = "lock";
/// `SLACKWATER_TOKEN`'s form of a token.
#[must_use]
pub fn format_token(token: u64) -> String {
    format!("{token:016x}")
}

/// Reads `SLACKWATER_TOKEN`; anything that is not hexadecimal counts as absent.
#[must_use]
pub fn parse_token(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        assert_eq!(parse_token(&format_token(u64::MAX)), u64::MAX);
        assert_eq!(parse_token("zz"), 0);
    }
}
