//! Builds the restorer and embeds it: a nested cargo with a target folder of its own (no lock clash), for it is a
//! freestanding program that shares no flags with this one.
use std::{env, path::PathBuf, process::Command};

fn main() {
    let var = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
    let (out, runtime) = (var("OUT_DIR").join("restorer"), var("CARGO_MANIFEST_DIR").join(".."));
    println!("cargo::rerun-if-changed=../restorer");
    let target = env::var("TARGET").unwrap_or_default();
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "slackwater-restorer",
            "--bin",
            "slackwater-restorer",
            "--target",
        ])
        .arg(&target)
        .arg("--manifest-path")
        .arg(runtime.join("restorer/Cargo.toml"))
        .arg("--target-dir")
        .arg(&out);
    // What the outer cargo set for this build does not hold for that one.
    for name in
        ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CLIPPY_ARGS", "CARGO_MAKEFLAGS"]
    {
        cargo.env_remove(name);
    }
    let built = cargo.status().is_ok_and(|s| s.success());
    if !built {
        println!("cargo::error=the restorer (runtime/restorer) does not build");
    }
    println!("cargo::rustc-env=RESTORER={}", out.join(target).join("release/slackwater-restorer").display());
}
