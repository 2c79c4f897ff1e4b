//! The wrapper table against the dynamic symbols of the libibverbs that is installed, and against the preloaded library
//! itself; and `docs/verbs-coverage.md` against the table (`SLACKWATER_BLESS=1` writes it).
use slackwater_ib::{EXPORTS, How};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Defined functions of a library: (name, version).
fn symbols(library: &Path) -> BTreeSet<(String, String)> {
    let out =
        Command::new("nm").args(["-D", "--with-symbol-versions", "--defined-only"]).arg(library).output().unwrap();
    assert!(out.status.success(), "nm cannot read {}", library.display());
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            if words.next()? != "T" {
                return None;
            }
            let (name, version) = words.next()?.split_once('@')?;
            Some((name.to_owned(), version.trim_start_matches('@').to_owned()))
        })
        .collect()
}

fn libibverbs() -> PathBuf {
    let out = Command::new("pkg-config").args(["--variable=libdir", "libibverbs"]).output().unwrap();
    Path::new(String::from_utf8(out.stdout).unwrap().trim()).join("libibverbs.so.1")
}

#[test]
fn every_symbol_of_libibverbs_is_accounted_for() {
    let theirs = symbols(&libibverbs());
    assert!(theirs.len() > 100, "this is no libibverbs");
    let table: BTreeSet<_> = EXPORTS.iter().map(|e| (e.name.to_owned(), e.version.to_owned())).collect();
    assert_eq!(table.len(), EXPORTS.len(), "a symbol is in the table twice");
    let missing: Vec<_> = theirs.difference(&table).collect();
    assert!(missing.is_empty(), "not in the table of exports.rs: {missing:?}");
    let invented: Vec<_> = table.difference(&theirs).collect();
    assert!(invented.is_empty(), "in the table, but libibverbs has none: {invented:?}");
}

#[test]
fn the_library_exports_what_the_table_says() {
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().join("libslackwater_ib.so");
    let ours = symbols(&library);
    for e in EXPORTS {
        let key = (e.name.to_owned(), e.version.to_owned());
        assert_eq!(ours.contains(&key), !matches!(e.how, How::Passed(_)), "{}@{}", e.name, e.version);
    }
    let strangers: Vec<_> = ours
        .iter()
        .filter(|(name, version)| {
            version != "RDMACM_1.0"
                && name != "dlopen"
                && !EXPORTS.iter().any(|e| e.name == name && e.version == version)
        })
        .collect();
    assert!(strangers.is_empty(), "exported, but not in the table: {strangers:?}");
}

fn page() -> String {
    let mut text = String::from(
        "# Verbs coverage\n\nMade from the table in `ib-plugin/src/exports.rs` by `SLACKWATER_BLESS=1 cargo test -p \
         slackwater-ib --test coverage`.\nInline functions of `<infiniband/verbs.h>` go through the shadow context's \
         operations: `ibv_poll_cq`, `ibv_req_notify_cq`,\n`ibv_post_send`, `ibv_post_recv`, `ibv_post_srq_recv`, extended CQs \
         (`ibv_start_poll`...) and the `ibv_wr_*` interface are wrapped;\nmemory windows, XRC, device memory, parent and \
         thread domains, work queues, flows, counters, tag matching, TSO, prefetch\n(`ibv_advise_mr`) and null regions are \
         refused with EOPNOTSUPP and one message.\n\n| symbol | version | |\n| --- | --- | --- |\n",
    );
    let mut rows: Vec<_> = EXPORTS.iter().collect();
    rows.sort_by_key(|e| (e.name, e.version));
    for e in rows {
        let how = match e.how {
            How::Wrapped => "wrapped".to_owned(),
            How::Refused => "refused: EOPNOTSUPP".to_owned(),
            How::Passed(why) => format!("passed through: {why}"),
        };
        writeln!(text, "| `{}` | {} | {how} |", e.name, e.version).unwrap();
    }
    text
}

#[test]
fn the_page_says_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verbs-coverage.md");
    if std::env::var_os("SLACKWATER_BLESS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page(), "{} is out of date: run this test with SLACKWATER_BLESS=1", path.display());
}
