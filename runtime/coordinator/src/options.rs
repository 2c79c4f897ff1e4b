//! What a coordinator can be told, and the command line that says it: a daemon is `slackwater coordinator` with these
//! arguments.
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// How images are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    Raw,
    /// Fast.
    #[default]
    Lz4,
    /// Small.
    Zstd,
}

impl Codec {
    /// Its number in the protocol and in images.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// From its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Lz4, Self::Zstd].into_iter().find(|codec| codec.name() == name)
    }
}

/// How a coordinator works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Take a checkpoint each so often.
    pub interval: Option<Duration>,
    /// Keep so many of the newest generations; None: all.
    pub keep: Option<u32>,
    /// Write images while the program is stopped.
    pub sync: bool,
    /// Codec of images.
    pub codec: Codec,
    /// Absolute paths of preloaded plugins, for the manifest.
    pub plugins: Vec<PathBuf>,
    /// How long suspending, draining and letting go may take.
    pub patience: Duration,
    /// Keep copies of the files that images rely on.
    pub file_store: bool,
    /// The process for which it is started: (token, pid). If that dies before anybody has joined, the coordinator ends.
    pub expect: Option<(u64, i32)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: None,
            keep: None,
            sync: false,
            codec: Codec::default(),
            plugins: Vec::new(),
            patience: Duration::from_secs(300),
            file_store: true,
            expect: None,
        }
    }
}

impl Options {
    /// As arguments of `slackwater coordinator`.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--codec".into(), self.codec.name().into()];
        let mut value = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
        value("--patience", self.patience.as_secs_f64().to_string());
        if let Some(interval) = self.interval {
            value("--interval", interval.as_secs_f64().to_string());
        }
        if let Some(keep) = self.keep {
            value("--keep", keep.to_string());
        }
        if let Some((token, pid)) = self.expect {
            value("--expect", format!("{token:x}:{pid}"));
        }
        if self.sync {
            arguments.push("--sync".into());
        }
        if !self.file_store {
            arguments.push("--no-file-store".into());
        }
        for plugin in &self.plugins {
            arguments.extend(["--plugin".into(), plugin.into()]);
        }
        arguments
    }
}
