//! Verbs programs of others: `guest::PROGRAM::SCENARIO`. What takes part depends on `$SLACKWATER_LEVEL`.
//!
//! Figures that the programs print are not looked at: perftest measures the processor's clock first, and on a busy machine finds
//! none, natively too.
#![deny(unsafe_code)]

use libtest_mimic::{Arguments, Failed, Trial};
use slackwater_harness::in_guest;
use slackwater_mpi_tests::guest;
use slackwater_verbs_tests::verifier::{self, CASES};
use slackwater_verbs_tests::{
    Pair, Scenario, absent, answers, atomic_write, bindings, closed, closes, corners, devices, half_open, hammer,
    held_back, loads, play, refused, strangers, travel, ucx as ucp,
};
use std::process::ExitCode;

const fn pair(name: &'static str, command: &'static str) -> Pair {
    Pair { name, command, port: 18515 }
}

const fn ucx(name: &'static str, command: &'static str) -> Pair {
    Pair { name, command, port: 13337 }
}

/// libfabric's reliable datagrams over those of verbs. (Its connections come by rdma_cm.)
const fn fabric(name: &'static str, command: &'static str) -> Pair {
    Pair { name, command, port: 47592 }
}

/// In normal runs.
const MAIN: &[Pair] = &[
    pair("rc_pingpong", "ibv_rc_pingpong -g 2 -n 600"),
    pair("rc_pingpong-events", "ibv_rc_pingpong -g 2 -n 16000 -e"),
    pair("uc_pingpong-events", "ibv_uc_pingpong -g 2 -n 16000 -e"),
    pair("ud_pingpong-events", "ibv_ud_pingpong -g 2 -n 16000 -e"),
    pair("srq_pingpong-events", "ibv_srq_pingpong -g 2 -n 24000 -e"),
    pair("send_bw", "ib_send_bw -x 2 -F -D SECONDS"),
    pair("write_bw-3-qps-both-ways", "ib_write_bw -x 2 -F -D SECONDS -q 3 -b"),
    pair("read_bw", "ib_read_bw -x 2 -F -D SECONDS"),
    pair("atomic_bw", "ib_atomic_bw -x 2 -F -D SECONDS"),
    pair("send_lat-srq", "ib_send_lat -x 2 -F -D SECONDS --use-srq"),
    pair("write_lat", "ib_write_lat -x 2 -F -D SECONDS"),
    pair("read_lat", "ib_read_lat -x 2 -F -D SECONDS"),
    pair("atomic_lat", "ib_atomic_lat -x 2 -F -D SECONDS"),
    pair("send_bw-ud", "ib_send_bw -x 2 -F -D SECONDS -c UD"),
    ucx("ucx-rc-tag", "ucx_perftest -t tag_bw -s 8192 -n 30000 -f"),
    ucx("ucx-rc-am", "ucx_perftest -d rxe0:1 -x rc_verbs -t am_bw -n 60000 -f"),
    ucx("ucx-ud-am", "ucx_perftest -d rxe0:1 -x ud_verbs -t am_bw -n 60000 -f"),
    fabric("fi-rxd", "fi_pingpong -p 'verbs;ofi_rxd' -e rdm -I 1000 -S 4096 -c"),
];

/// In full runs as well.
const MORE: &[Pair] = &[
    pair("uc_pingpong", "ibv_uc_pingpong -g 2 -n 6000"),
    pair("ud_pingpong", "ibv_ud_pingpong -g 2 -n 6000"),
    pair("srq_pingpong", "ibv_srq_pingpong -g 2 -n 8000"),
    pair("send_bw-uc", "ib_send_bw -x 2 -F -D SECONDS -c UC"),
    pair("write_bw-uc", "ib_write_bw -x 2 -F -D SECONDS -c UC"),
    pair("send_bw-srq-4-qps", "ib_send_bw -x 2 -F -D SECONDS --use-srq -q 4"),
    pair("send_bw-all-sizes", "ib_send_bw -x 2 -F -a -n 200"),
    pair("read_bw-2-qps-both-ways", "ib_read_bw -x 2 -F -D SECONDS -q 2 -b"),
    pair("atomic_bw-swap-3-qps", "ib_atomic_bw -x 2 -F -D SECONDS -A CMP_AND_SWAP -q 3"),
    pair("send_lat", "ib_send_lat -x 2 -F -D SECONDS"),
    pair("send_bw-events", "ib_send_bw -x 2 -F -n 20000 -s 4096 -e"),
    // ibv_post_send(3) with lists of requests, and runs that end by counting.
    pair("send_bw-old-post-4-qps", "ib_send_bw -x 2 -F -n 20000 -s 4096 -q 4 --use_old_post_send"),
    pair("write_bw-old-post-4-qps", "ib_write_bw -x 2 -F -n 20000 -s 4096 -q 4 --use_old_post_send"),
    pair("read_bw-old-post-4-qps", "ib_read_bw -x 2 -F -n 20000 -s 4096 -q 4 --use_old_post_send"),
    pair("atomic_bw-old-post-4-qps", "ib_atomic_bw -x 2 -F -n 20000 -q 4 --use_old_post_send"),
    pair("send_lat-old-post", "ib_send_lat -x 2 -F -n 5000 --use_old_post_send"),
    pair("write_lat-old-post", "ib_write_lat -x 2 -F -n 5000 --use_old_post_send"),
    pair("read_lat-old-post", "ib_read_lat -x 2 -F -n 5000 --use_old_post_send"),
    pair("atomic_lat-old-post", "ib_atomic_lat -x 2 -F -n 5000 --use_old_post_send"),
    // What else it is told to do.
    pair("send_bw-16-qps-both-ways", "ib_send_bw -x 2 -F -D SECONDS -s 4096 -q 16 -b --mr_per_qp --tclass=96"),
    pair("write_bw-post-list", "ib_write_bw -x 2 -F -D SECONDS -s 4096 -q 2 -l 16"),
    pair("write_bw-all-sizes-both-ways", "ib_write_bw -x 2 -F -a -n 200 -b"),
    pair("read_bw-all-sizes", "ib_read_bw -x 2 -F -a -n 200"),
    pair("send_bw-inline", "ib_send_bw -x 2 -F -D SECONDS -s 32 -I 32"),
    pair("read_lat-events", "ib_read_lat -x 2 -F -n 16000 -e"),
    pair("atomic_lat-events", "ib_atomic_lat -x 2 -F -n 16000 -e"),
    pair("send_lat-uc", "ib_send_lat -x 2 -F -D SECONDS -c UC"),
    pair("send_lat-ud", "ib_send_lat -x 2 -F -D SECONDS -c UD"),
    pair("write_lat-uc", "ib_write_lat -x 2 -F -D SECONDS -c UC"),
    ucx("ucx-rc-add", "ucx_perftest -d rxe0:1 -x rc_verbs -t add_mr -n 60000 -f"),
    ucx("ucx-ud-tag", "UCX_TLS=ud_verbs,self ucx_perftest -t tag_lat -s 1024 -n 30000 -f"),
    ucx("ucx-rc-put", "ucx_perftest -d rxe0:1 -x rc_verbs -t put_bw -D zcopy -s 8192 -n 60000 -f"),
    ucx("ucx-rc-get", "ucx_perftest -d rxe0:1 -x rc_verbs -t get -D zcopy -s 8192 -n 60000 -f"),
    ucx("ucx-threads", "ucx_perftest -t tag_bw -s 8192 -n 30000 -T 2 -M multi -f"),
    ucx("ucx-get", "ucx_perftest -t ucp_get -n 100000 -f"),
    fabric("fi-rxd-tagged", "fi_pingpong -p 'verbs;ofi_rxd' -e rdm -m tagged -I 200 -S 65536 -c"),
    fabric("fi-dgram", "fi_pingpong -p verbs -e dgram -I 20000 -S 1024 -c"),
];

/// Its sender always waits for answers.
const ABSENT: Pair = ucx("ucx-ud-absent", "ucx_perftest -d rxe0:1 -x ud_verbs -t am_bw -n 60000 -f");

/// One side of a trial.
type Play = Box<dyn FnOnce() -> anyhow::Result<()> + Send>;

const SCENARIOS: [(&str, Scenario); 4] =
    [("native", Scenario::Native), ("go-on", Scenario::GoOn), ("restart", Scenario::Restart), ("move", Scenario::Move)];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let level = std::env::var("SLACKWATER_LEVEL").unwrap_or_default();
    let has_xtask = std::env::var_os("SLACKWATER_XTASK").is_some();
    let mut trials = Vec::new();
    for (rows, main) in [(MAIN, true), (MORE, false)] {
        for pair in rows {
            for (scenario, what) in SCENARIOS {
                let name = format!("{}::{scenario}", pair.name);
                let skip = match level.as_str() {
                    "full" => false,
                    "quick" => true,
                    _ => !main || what != Scenario::Restart,
                };
                let trial = if in_guest() {
                    Trial::test(format!("inside::{name}"), move || play(pair, what).map_err(fail))
                } else {
                    Trial::test(format!("guest::{name}"), move || {
                        outside(&format!("inside::{name}"), what).map_err(fail)
                    })
                };
                trials.push(trial.with_ignored_flag(skip || !(has_xtask || in_guest())));
            }
        }
    }
    let full = level == "full";
    for case in CASES {
        let name = format!("inside::verifier::{}", case.name);
        let trial = if in_guest() {
            Trial::test(name, move || verifier::play(case, full).map_err(fail))
        } else {
            Trial::test(format!("guest::verifier::{}", case.name), move || verifier::direct(&name).map_err(fail))
        };
        let skip = match level.as_str() {
            "full" => false,
            "quick" => true,
            _ => !case.normal,
        };
        trials.push(trial.with_ignored_flag(skip || !(has_xtask || in_guest())));
    }
    let mut add = |always: bool, name: String, inside: Play, outside: Play| {
        let trial = if in_guest() {
            Trial::test(format!("inside::{name}"), move || inside().map_err(fail))
        } else {
            Trial::test(format!("guest::{name}"), move || outside().map_err(fail))
        };
        trials.push(trial.with_ignored_flag(!(always || level == "full") || !(has_xtask || in_guest())));
    };
    add(true, "same-answers".into(), Box::new(answers), Box::new(|| guest::run("inside::same-answers")));
    let tour = || travel("inside::corners");
    add(true, "corners".into(), Box::new(corners), Box::new(tour));
    let tour = || travel("inside::closed");
    add(true, "closed".into(), Box::new(closed), Box::new(tour));
    add(true, "half-open".into(), Box::new(|| half_open(4)), Box::new(|| guest::run("inside::half-open")));
    let tour = || travel("inside::strangers");
    add(true, "strangers".into(), Box::new(strangers), Box::new(tour));
    let away = || guest::run("inside::ucx-ud-absent");
    add(false, "ucx-ud-absent".into(), Box::new(|| absent(&ABSENT)), Box::new(away));
    for (name, datagrams) in [("ucp-rc", false), ("ucp-ud", true)] {
        let tour = move || travel(&format!("inside::{name}"));
        add(!datagrams, name.into(), Box::new(move || ucp::moves(datagrams)), Box::new(tour));
    }
    for clock in ["skewed", "back"] {
        let name = format!("ucp-clock-{clock}");
        let inside = format!("inside::{name}");
        add(clock == "skewed", name, Box::new(move || ucp::clock(clock)), Box::new(move || guest::run(&inside)));
    }
    for client in bindings::CLIENTS {
        let (name, tour) = (format!("rust-client-{client}"), format!("rust-client-{client}-reboot"));
        let (inside, there) = (format!("inside::{name}"), format!("inside::{tour}"));
        let run = move || bindings::build().and_then(|_| guest::run(&inside));
        add(false, name, Box::new(|| bindings::play(client)), Box::new(run));
        add(false, tour, Box::new(|| bindings::travel(client)), Box::new(move || bindings::travels(&there)));
    }
    let suite = || guest::boot("inside::pyverbs", 1, &[], &bindings::suite()?.to_string_lossy());
    let other = || guest::run("inside::other-devices");
    add(false, "other-devices".into(), Box::new(|| devices::play(&MAIN[1])), Box::new(other));
    add(true, "held-back".into(), Box::new(held_back), Box::new(|| guest::run("inside::held-back")));
    add(false, "rdma-cm-refused".into(), Box::new(refused), Box::new(|| guest::run("inside::rdma-cm-refused")));
    let writes = || guest::run("inside::atomic-write");
    add(false, "atomic-write".into(), Box::new(|| atomic_write(8)), Box::new(writes));
    add(false, "pyverbs".into(), Box::new(bindings::pyverbs), Box::new(suite));
    let cycles = if level == "full" { 100 } else { 10 };
    trials.push(Trial::test("host::loads-libibverbs-itself", || loads().map_err(fail)));
    trials.push(Trial::test("host::closes-all-descriptors", || closes().map_err(fail)));
    trials.push(Trial::test("host::malloc-hammer", move || hammer(cycles).map_err(fail)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn outside(name: &str, scenario: Scenario) -> anyhow::Result<()> {
    if scenario == Scenario::Move { travel(name) } else { guest::run(name) }
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn fail(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}
