//! Who saves which part of what processes share.
//!
//! Each part of an object is saved by the first process that can, in an order that begins elsewhere for each object, so
//! that the work is spread; the others are told to leave it out. What nobody has said that he can save is everybody's own
//! business. Objects are compared within a host: device numbers of two hosts mean nothing to each other.
use slackwater_protocol::message::SharedRange;
use std::collections::BTreeMap;

/// What is reported of one object, by process.
type Reports<'a> = BTreeMap<usize, Vec<&'a SharedRange>>;

/// For each process (host, what it reports): the parts that others save.
pub(super) fn elsewhere(processes: &[(String, Vec<SharedRange>)]) -> Vec<Vec<SharedRange>> {
    let mut objects: BTreeMap<(&str, u64, u64), Reports> = BTreeMap::new();
    for (process, (host, ranges)) in processes.iter().enumerate() {
        for r in ranges.iter().filter(|r| r.start < r.end) {
            objects.entry((host, r.dev, r.ino)).or_default().entry(process).or_default().push(r);
        }
    }
    let mut out = vec![Vec::new(); processes.len()];
    for (turn, ((_, dev, ino), reports)) in objects.into_iter().enumerate() {
        let mut sharers: Vec<usize> = reports.keys().copied().collect();
        if sharers.len() < 2 {
            continue;
        }
        let first = turn % sharers.len();
        sharers.rotate_left(first);
        // Ascending, apart: (start, end, who saves it).
        let mut saved: Vec<(u64, u64, usize)> = Vec::new();
        for &process in &sharers {
            for r in reports[&process].iter().filter(|r| r.write) {
                let left = without(r.start, r.end, &saved);
                saved.extend(left.into_iter().map(|(start, end)| (start, end, process)));
                saved.sort_unstable();
            }
        }
        for &process in &sharers {
            let others = saved.iter().filter(|(.., who)| *who != process);
            out[process].extend(others.map(|&(start, end, _)| SharedRange { dev, ino, start, end, write: false }));
        }
    }
    out
}

/// What of [start, end) is not in `saved`.
fn without(start: u64, end: u64, saved: &[(u64, u64, usize)]) -> Vec<(u64, u64)> {
    let (mut left, mut at) = (Vec::new(), start);
    for &(s, e, _) in saved.iter().filter(|(s, e, _)| *s < end && *e > start) {
        if s > at {
            left.push((at, s));
        }
        at = at.max(e);
    }
    if at < end {
        left.push((at, end));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(ino: u64, start: u64, end: u64, write: bool) -> SharedRange {
        SharedRange { dev: 1, ino, start, end, write }
    }

    fn host(ranges: Vec<SharedRange>) -> (String, Vec<SharedRange>) {
        ("a".into(), ranges)
    }

    #[test]
    fn each_byte_that_can_be_saved_is_saved_once() {
        let processes = [
            host(vec![range(1, 0, 10, true), range(2, 0, 4, true), range(3, 0, 9, false)]),
            host(vec![range(1, 5, 20, true), range(2, 0, 4, true), range(3, 0, 9, false)]),
            host(vec![range(1, 0, 30, true), range(1, 8, 12, false), range(2, 2, 6, false)]),
            host(vec![range(1, 40, 50, true)]),
        ];
        let told = elsewhere(&processes);
        for ino in 1..=3 {
            for byte in 0..50 {
                let has = |r: &&SharedRange| r.ino == ino && r.start <= byte && byte < r.end;
                let can = |p: usize| processes[p].1.iter().filter(|r| r.write).any(|r| has(&r));
                let saves = |p: usize| can(p) && !told[p].iter().any(|r| has(&r));
                let (savers, able) = ((0..4).filter(|&p| saves(p)).count(), (0..4).any(can));
                assert_eq!(savers, usize::from(able), "object {ino}, byte {byte}: {told:?}");
            }
        }
        // Who can only look leaves out what another saves.
        assert!(told[2].iter().any(|r| (r.ino, r.start, r.end) == (2, 0, 4)), "{told:?}");
    }

    #[test]
    fn objects_are_spread_and_hosts_kept_apart() {
        let all: Vec<SharedRange> = (0..8).map(|ino| range(ino, 0, 4096, true)).collect();
        let told = elsewhere(&[host(all.clone()), host(all.clone()), ("b".into(), all)]);
        assert_eq!(told.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 0]);
    }

    #[test]
    fn what_one_process_alone_has_is_its_own() {
        assert_eq!(
            elsewhere(&[host(vec![range(1, 0, 10, true), range(1, 5, 9, true)]), host(vec![])]),
            [vec![], vec![]]
        );
    }
}
