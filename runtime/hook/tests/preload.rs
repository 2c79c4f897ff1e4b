//! Builds the fixture library, looks at what it exports, and preloads it into a program that nobody here wrote.
use std::path::PathBuf;
use std::process::Command;

fn fixture() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/fixture/Cargo.toml");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fixture");
    let out = Command::new(cargo)
        .args(["build", "--manifest-path", manifest, "--target-dir"])
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    target.join("debug/libslackwater_hook_fixture.so")
}

#[test]
fn exports_the_list_and_wraps() {
    let library = fixture();
    let bytes = std::fs::read(&library).unwrap();
    let list = include_str!("../fixture/hooks.list");
    slackwater_hook::check::matches_list(&bytes, list).unwrap();
    let shorter = list.replace("openat\n", "not_there\n");
    let e = slackwater_hook::check::matches_list(&bytes, &shorter).unwrap_err();
    assert_eq!(e, "listed but not exported: [not_there]; exported but not listed: [openat]");

    // `cat` opens each file by open, open64 or openat (it differs between systems); std inside the wrappers opens /proc/self/comm.
    let run = |files: &[&str]| {
        let report = library.with_extension("report");
        let mut cat = Command::new("/bin/cat");
        cat.args(files).env("LD_PRELOAD", &library).env("SLACKWATER_FIXTURE_REPORT", &report);
        let out = cat.output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let text = std::fs::read_to_string(&report).unwrap();
        let state: u32 = text.split("state ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(text.contains("versions [Some(10), Some(11), None]"), "{text}");
        state
    };
    let none = run(&["/dev/null"]);
    let three = run(&["/dev/null", "/dev/null", "/dev/null", "/dev/null"]);
    assert!(none < 1000, "a wrapper was entered from inside a wrapper: {none}");
    assert_eq!(three, none + 3);
}
