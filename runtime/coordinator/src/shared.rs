//! Which descriptors, of whichever processes, refer to one open file description (open(2)).
//!
//! kcmp(2) with KCMP_FILE compares two descriptors of two processes and gives a total order over open file descriptions,
//! so that n descriptors are grouped by O(n log n) comparisons; only those with equal device and inode are compared at
//! all. The processes stand still meanwhile.
#![allow(unsafe_code)] // kcmp(2) has no safe wrapper
use crate::machine::Group;
use slackwater_protocol::message::DescriptorKey;
use std::{cmp::Ordering, collections::BTreeMap, io};

/// A descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    member: u64,
    pid: i32,
    fd: i32,
}

const KCMP_FILE: libc::c_int = 0;

/// kcmp(2): 0 equal, 1 less, 2 greater, 3 different without order.
fn kcmp(a: Descriptor, b: Descriptor) -> io::Result<Ordering> {
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    match unsafe {
        libc::syscall(libc::SYS_kcmp, a.pid, b.pid, KCMP_FILE, a.fd as libc::c_ulong, b.fd as libc::c_ulong)
    } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::Error::other("kcmp(2) gives no order")),
    }
}

/// Groups of two or more, and a remark when some could not be compared (kernel without CONFIG_KCMP, or a process that
/// may not be inspected): those count as not shared.
pub(crate) fn find(processes: Vec<(u64, i32, Vec<DescriptorKey>)>) -> (Vec<Group>, String) {
    group(processes, kcmp)
}

fn group(
    processes: Vec<(u64, i32, Vec<DescriptorKey>)>,
    compare: impl Fn(Descriptor, Descriptor) -> io::Result<Ordering>,
) -> (Vec<Group>, String) {
    let mut files: BTreeMap<(u64, u64), Vec<Descriptor>> = BTreeMap::new();
    for (member, pid, descriptors) in processes {
        for key in descriptors {
            files.entry((key.dev, key.ino)).or_default().push(Descriptor { member, pid, fd: key.fd });
        }
    }
    let mut groups = Vec::new();
    let (mut failed, mut why) = (0_u32, String::new());
    for descriptors in files.into_values().filter(|descriptors| descriptors.len() > 1) {
        // Sorted by their first, so that a new one finds its place by bisection. Not sort_by: comparisons can fail.
        let mut found: Vec<Vec<Descriptor>> = Vec::new();
        for descriptor in descriptors {
            let mut error = None;
            let place = found.binary_search_by(|group| {
                compare(group[0], descriptor).unwrap_or_else(|e| {
                    error = Some(e);
                    Ordering::Less
                })
            });
            match (error, place) {
                (Some(error), _) => {
                    failed += 1;
                    why = format!("process {} descriptor {}: {error}", descriptor.pid, descriptor.fd);
                }
                (None, Ok(at)) => found[at].push(descriptor),
                (None, Err(at)) => found.insert(at, vec![descriptor]),
            }
        }
        let shared = found.into_iter().filter(|group| group.len() > 1);
        groups.extend(shared.map(|group| {
            let mut group: Group = group.iter().map(|d| (d.member, d.fd)).collect();
            group.sort_unstable();
            group
        }));
    }
    groups.sort_unstable();
    let note = (failed > 0)
        .then(|| format!("{failed} descriptors could not be compared with others, and count as not shared ({why})"));
    (groups, note.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn key(fd: i32, ino: u64) -> DescriptorKey {
        DescriptorKey { fd, dev: 1, ino }
    }

    #[test]
    fn groups_by_any_total_order_with_few_comparisons() {
        // 64 members with 16 descriptors each of one file; the open file description is (member * 16 + fd) % 100.
        let description = |d: Descriptor| (d.member * 16 + d.fd as u64) % 100;
        let processes = (0..64).map(|member| (member, member as i32, (0..16).map(|fd| key(fd, 7)).collect()));
        let calls = std::cell::Cell::new(0);
        let (groups, note) = group(processes.collect(), |a, b| {
            calls.set(calls.get() + 1);
            Ok(description(a).cmp(&description(b)))
        });
        assert_eq!((groups.len(), note.as_str()), (100, ""));
        let of = |&(member, fd): &(u64, i32)| (member * 16 + fd as u64) % 100;
        assert!(groups.iter().all(|group| group.iter().all(|d| of(d) == of(&group[0]))));
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 1024);
        assert!(calls.get() <= 1024 * 8, "{} comparisons", calls.get());
    }

    #[test]
    fn descriptors_that_cannot_be_compared_are_remarked() {
        let processes = vec![(1, 1, vec![key(0, 7), key(1, 7)])];
        let (groups, note) = group(processes, |_, _| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(groups.is_empty());
        assert!(note.contains("1 descriptors could not be compared"), "{note}");
    }

    #[test]
    fn the_kernel_tells_a_dup_from_a_second_open() {
        let first = std::fs::File::open("/dev/null").unwrap();
        let dup = first.try_clone().unwrap();
        let second = std::fs::File::open("/dev/null").unwrap();
        let pid = std::process::id() as i32;
        let keys = [&second, &dup, &first].map(|file| key(file.as_raw_fd(), 7));
        let (groups, note) = find(vec![(1, pid, keys.to_vec())]);
        assert_eq!(note, "");
        assert_eq!(groups, vec![vec![(1, first.as_raw_fd()), (1, dup.as_raw_fd())]]);
    }
}
