//! The Rust side against the C header, by compiling a C program that prints what the compiler thinks of it.
use core::mem::{offset_of, size_of};
use slackwater_plugin::abi::{ABI, Event, Info, Plugin, Query, Status, Verdict};
use std::{collections::BTreeMap, fs, path::Path, process::Command};

const C: &str = r#"
#include "slackwater.h"
#include <stdio.h>
#define S(t) printf("sizeof " #t " %zu\n", sizeof(struct slackwater_##t))
#define O(t, f) printf(#t "." #f " %zu\n", offsetof(struct slackwater_##t, f))
#define E(x) printf(#x " %d\n", (int)x)
int main(void) {
  S(info); S(plugin); S(query); S(status);
  O(info, size); O(info, event); O(info, round); O(info, members); O(info, member); O(info, generation);
  O(info, error); O(info, error_len); O(info, restarts);
  O(status, size); O(status, members); O(status, member); O(status, generation); O(status, restarts);
  O(plugin, abi); O(plugin, size); O(plugin, name); O(plugin, event); O(plugin, user);
  O(plugin, events);
  O(query, key); O(query, key_len); O(query, value); O(query, value_len);
  E(SLACKWATER_ABI);
  E(SLACKWATER_PRESUSPEND); E(SLACKWATER_SUSPENDED); E(SLACKWATER_QUIESCE); E(SLACKWATER_SAVE); E(SLACKWATER_RESUME);
  E(SLACKWATER_RESTART); E(SLACKWATER_RESTARTED); E(SLACKWATER_PREFORK); E(SLACKWATER_POSTFORK_PARENT);
  E(SLACKWATER_POSTFORK_CHILD); E(SLACKWATER_INIT); E(SLACKWATER_RUNNING); E(SLACKWATER_EXIT); E(SLACKWATER_PREEXEC);
  E(SLACKWATER_POSTEXEC); E(SLACKWATER_EXEC_FAILED); E(SLACKWATER_THREAD_START); E(SLACKWATER_THREAD_EXIT); E(SLACKWATER_DONE); E(SLACKWATER_AGAIN); E(SLACKWATER_FAILED);
  return 0;
}
"#;

fn c_side(compiler: &str) -> BTreeMap<String, i64> {
    let dir = std::env::temp_dir().join(format!("slackwater-layout-{}-{compiler}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (source, program) = (dir.join(if compiler == "c++" { "t.cc" } else { "t.c" }), dir.join("t"));
    fs::write(&source, C).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let status = Command::new(compiler)
        .args(["-Wall", "-Werror", "-I"])
        .arg(include)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap();
    assert!(status.success(), "{compiler} refuses the header");
    let out = Command::new(&program).output().unwrap();
    fs::remove_dir_all(&dir).unwrap();
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|l| {
            let (name, value) = l.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn rust_and_c_agree() {
    let mut rust: BTreeMap<String, i64> = BTreeMap::new();
    macro_rules! layout {
        ($t:ident as $c:literal: $($f:ident)*) => {
            rust.insert(format!("sizeof {}", $c), size_of::<$t>() as i64);
            $(rust.insert(format!("{}.{}", $c, stringify!($f)), offset_of!($t, $f) as i64);)*
        };
    }
    layout!(Info as "info": size event round members member generation error error_len restarts);
    layout!(Plugin as "plugin": abi size name event user events);
    layout!(Status as "status": size members member generation restarts);
    layout!(Query as "query": key key_len value value_len);
    rust.insert("SLACKWATER_ABI".into(), ABI.into());
    for (name, event) in [
        ("PRESUSPEND", Event::PreSuspend),
        ("SUSPENDED", Event::Suspended),
        ("QUIESCE", Event::Quiesce),
        ("SAVE", Event::Save),
        ("RESUME", Event::Resume),
        ("RESTART", Event::Restart),
        ("RESTARTED", Event::Restarted),
        ("PREFORK", Event::PreFork),
        ("POSTFORK_PARENT", Event::PostForkParent),
        ("POSTFORK_CHILD", Event::PostForkChild),
        ("INIT", Event::Init),
        ("RUNNING", Event::Running),
        ("EXIT", Event::Exit),
        ("PREEXEC", Event::PreExec),
        ("POSTEXEC", Event::PostExec),
        ("EXEC_FAILED", Event::ExecFailed),
        ("THREAD_START", Event::ThreadStart),
        ("THREAD_EXIT", Event::ThreadExit),
    ] {
        assert_eq!(Event::from_raw(event as u32), Some(event));
        rust.insert(format!("SLACKWATER_{name}"), event as i64);
    }
    for (name, verdict) in [("DONE", Verdict::Done), ("AGAIN", Verdict::Again), ("FAILED", Verdict::Failed)] {
        rust.insert(format!("SLACKWATER_{name}"), verdict as i64);
    }
    assert_eq!(Event::from_raw(18), None);
    assert_eq!(rust, c_side("cc"));
    assert_eq!(rust, c_side("c++"));
}

#[test]
fn without_a_runtime_everything_is_quiet() {
    assert!(!slackwater_plugin::present());
    assert!(!slackwater_plugin::publish(c"x", b"k", b"v"));
    assert!(slackwater_plugin::query(c"x", &[b"k"]).is_none());
    drop(slackwater_plugin::Wrapper::enter());
    slackwater_plugin::protect_fd(3);
    assert_eq!(slackwater_plugin::checkpoint(), slackwater_plugin::Checkpoint::Absent);
    assert!(slackwater_plugin::status().is_none() && slackwater_plugin::IdTable::new().is_none());
    drop(slackwater_plugin::NoCheckpoint::begin());
}
