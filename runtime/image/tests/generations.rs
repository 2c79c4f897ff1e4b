//! Manifests and folders of generations.
use slackwater_image::{
    generations::{self, GenerationError},
    layout::{FORMAT, Version},
    manifest::{Clocks, FolderName, MANIFEST, Manifest, Member, folder_name, parse_folder_name, partial_name},
};
use std::{fs, os::unix::fs::PermissionsExt};

fn manifest() -> Manifest {
    let member = |n: u64| Member {
        member: n,
        file: slackwater_image::manifest::image_name(n),
        bytes: 1,
        memory: 2,
        pid: 100 + n as i32,
        ppid: 1,
        exe: "/bin/true".into(),
        host: "here".into(),
        stopped: n == 1,
    };
    Manifest {
        format: FORMAT.to_string(),
        generation: 7,
        created_unix_ms: 1_700_000_000_000,
        root_pid: 100,
        members: vec![member(0), member(1)],
        shared_descriptors: vec![vec![(0, 3), (1, 3)]],
        note: String::new(),
        plugins: vec!["socket".into()],
        clocks: Some(Clocks { monotonic_us: 5, boottime_us: 6 }),
    }
}

#[test]
fn names_and_numbers() {
    assert_eq!(folder_name(7), "generation-000007");
    assert_eq!(partial_name(7), "generation-000007.partial");
    for n in [0, 7, 999_999, 1_000_000, u64::MAX] {
        assert_eq!(parse_folder_name(&folder_name(n)), Some(FolderName::Committed(n)));
        assert_eq!(parse_folder_name(&partial_name(n)), Some(FolderName::Partial(n)));
    }
    for name in ["generation-7", "generation-0000007", "generation-+00007", "generation-", "log", "generation-000007.x"]
    {
        assert_eq!(parse_folder_name(name), None, "{name}");
    }
}

#[test]
fn a_manifest_comes_back_and_is_private() {
    let dir = tempfile::tempdir().expect("folder");
    manifest().write(dir.path()).expect("write");
    assert_eq!(Manifest::read(dir.path()).expect("read"), manifest());
    let mode = fs::metadata(dir.path().join(MANIFEST)).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn damaged_manifests_are_errors() {
    let dir = tempfile::tempdir().expect("folder");
    assert!(matches!(Manifest::read(dir.path()), Err(GenerationError::Io { .. })));
    let whole = serde_json::to_string(&manifest()).expect("json");
    let bad = |text: &str| {
        fs::write(dir.path().join(MANIFEST), text).expect("write");
        Manifest::read(dir.path()).expect_err("damaged").to_string()
    };
    for cut in 0..whole.len() {
        bad(&whole[..cut]);
    }
    for (from, to, why) in [
        ("process-000001.image", "../process-000001.image", "no plain name"),
        ("process-000001.image", "process-000000.image", "one image"),
        ("\"member\":1", "\"member\":0", "one member number"),
        ("[[[0,3],[1,3]]]", "[[[0,3],[9,3]]]", "member 9"),
        (&*FORMAT.to_string(), "99.0.0", "99.0.0"),
        (&*FORMAT.to_string(), "new", "no version"),
    ] {
        assert!(whole.contains(from), "{from}");
        let error = bad(&whole.replace(from, to));
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn generations_are_listed_and_found() {
    let dir = tempfile::tempdir().expect("folder");
    let error = generations::find(dir.path(), None).expect_err("none").to_string();
    assert!(error.contains("no committed generation"), "{error}");
    for name in [&folder_name(10), &folder_name(9), &partial_name(11), "log"] {
        fs::create_dir(dir.path().join(name)).expect("folder");
    }
    let found = generations::list(dir.path()).expect("list");
    assert_eq!((found.committed, found.partial), (vec![9, 10], vec![11]));
    assert_eq!(generations::find(dir.path(), None).expect("newest"), (10, dir.path().join("generation-000010")));
    assert_eq!(generations::find(dir.path(), Some(9)).expect("this"), (9, dir.path().join("generation-000009")));
    let error = generations::find(dir.path(), Some(11)).expect_err("partial").to_string();
    assert!(error.contains("no generation 11 (but 9, 10)"), "{error}");
}

#[test]
fn which_versions_read_which() {
    let v = |text: &str| text.parse::<Version>().expect("version");
    assert!(v("0.1.0").reads(v("0.1.7")));
    assert!(!v("0.1.0").reads(v("0.2.0")) && !v("0.2.0").reads(v("0.1.0")));
    assert!(v("1.2.0").reads(v("1.0.3")) && !v("1.2.0").reads(v("1.3.0")) && !v("1.2.0").reads(v("2.0.0")));
    assert!("1.2".parse::<Version>().is_err() && "1.2.3.4".parse::<Version>().is_err());
}
