//! Who has much memory is asked to prepare before anybody is stopped. One test in a file of its own: what tests in one file
//! allocate is memory of one process.
mod common;

use common::{Behaviour, Coordinator, Point, Seen, process};
use slackwater_coordinator::Options;
use slackwater_image::manifest::Manifest;

#[test]
fn who_has_much_memory_prepares_first_and_nobody_waits_for_the_dead() {
    // As who it is, so that the coordinator can see its memory.
    let (pid, exe) = (std::process::id() as i32, std::env::current_exe().unwrap().to_string_lossy().into_owned());
    let like_this = || Behaviour { pid, exe: exe.clone(), ..Behaviour::default() };
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let stays = process(&coordinator, like_this());
    let dies = process(&coordinator, Behaviour { die: Some(Point::Prepare), ..like_this() });
    let members = || {
        let (path, figures) = coordinator.checkpoint(false).unwrap();
        assert_eq!(figures.processes as usize, Manifest::read(&path).unwrap().members.len());
        figures.processes
    };
    // Nobody is asked, so nobody dies of it.
    assert_eq!(members(), 2);
    for seen in [&stays, &dies] {
        assert_eq!((seen.next(), seen.next()), (Seen::Resumed(None), Seen::Finished(None)));
    }
    let memory = vec![1u8; 192 << 20];
    assert_eq!(members(), 1, "{}", memory.len());
    assert_eq!((stays.next(), stays.next()), (Seen::Resumed(None), Seen::Finished(None)));

    // Where images are written while all stand, nobody is asked.
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(dir.path(), Options { sync: true, ..Options::default() });
    let stays = process(&coordinator, Behaviour { die: Some(Point::Prepare), ..like_this() });
    assert_eq!(coordinator.checkpoint(false).unwrap().1.processes, 1, "{}", memory.len());
    assert_eq!((stays.next(), stays.next()), (Seen::Resumed(None), Seen::Finished(None)));
}
