//! The store of files that processes map: what is copied, once, and what is left.
mod common;

use common::{Behaviour, Coordinator, Seen, plain, process, temp};
use slackwater_coordinator::Options;
use slackwater_image::{
    layout::Codec,
    meta::{Backing, FileId, Region, SECTION_REGIONS},
    store,
    writer::{self, Writer},
};
use slackwater_protocol::command::{Reply, Request};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

fn file_id(path: &Path) -> FileId {
    let about = fs::metadata(path).unwrap();
    let mtime_ns = about.mtime() * 1_000_000_000 + about.mtime_nsec();
    let path = path.to_string_lossy().into_owned();
    FileId { path, size: about.len(), mtime_ns, ..FileId::default() }
}

/// An image of a process that maps these files privately.
fn image(files: &[FileId]) -> Vec<u8> {
    let region = |id: &FileId| Region {
        range: slackwater_image::meta::Range { start: 0x10_000, end: 0x11_000 },
        prot: 1,
        flags: 0,
        backing: Backing::FilePrivate(id.clone()),
    };
    let regions: Vec<Region> = files.iter().map(region).collect();
    let mut bytes = Vec::new();
    let options = writer::Options { codec: Codec::Raw, page_size: 4096 };
    let mut writer = Writer::new(&mut bytes, options).unwrap();
    writer.section_of(SECTION_REGIONS, &regions).unwrap();
    writer.finish().unwrap();
    bytes
}

/// Takes checkpoints of one process with this image, ends, and returns what the store holds then: name, inode, time.
fn stored(dir: &Path, options: Options, image: Vec<u8>, checkpoints: u32) -> Vec<(String, u64, i64)> {
    let coordinator = Coordinator::start(dir, options);
    let process = process(&coordinator, Behaviour { image: Some(image), ..plain(1) });
    for _ in 0..checkpoints {
        coordinator.checkpoint(false).unwrap();
        assert_eq!((process.next(), process.next()), (Seen::Resumed(None), Seen::Finished(None)));
    }
    let mut kill = coordinator.ask(&Request::Kill);
    assert!(matches!(kill.receive().unwrap(), Reply::Gone));
    // Its end waits for the copies.
    coordinator.ended();
    let Ok(entries) = fs::read_dir(dir.join(store::FOLDER)) else { return Vec::new() };
    let about = |e: fs::DirEntry| {
        let about = e.metadata().unwrap();
        (e.file_name().into_string().unwrap(), about.ino(), about.ctime_nsec())
    };
    let mut found: Vec<_> = entries.map(|e| about(e.unwrap())).collect();
    found.sort();
    found
}

#[test]
fn mapped_files_are_copied_once() {
    let (dir, files) = (temp(), temp());
    let (kept, changed, deleted) = (files.path().join("kept"), files.path().join("changed"), files.path().join("gone"));
    for path in [&kept, &changed, &deleted] {
        fs::write(path, vec![7; 10_000]).unwrap();
    }
    let kept = file_id(&kept);
    let gone = FileId { deleted: true, ..file_id(&deleted) };
    let other = FileId { mtime_ns: 1, ..file_id(&changed) };
    let image = image(&[kept.clone(), gone, other, kept.clone()]);
    assert!(stored(dir.path(), Options { file_store: false, ..Options::default() }, image.clone(), 1).is_empty());
    let first = stored(dir.path(), Options::default(), image.clone(), 1);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(first[0].0, store::name(&kept));
    let copy = store::path(dir.path(), &kept);
    assert_eq!(fs::read(&copy).unwrap(), vec![7; 10_000]);
    assert_eq!(FileId { path: kept.path.clone(), ..file_id(&copy) }, kept);
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    // Further generations of this coordinator and of the next find it there: nothing is written again.
    assert_eq!(stored(dir.path(), Options::default(), image, 2), first);
}

#[test]
fn what_a_killed_coordinator_left_in_the_store_is_removed() {
    let dir = temp();
    let folder = dir.path().join(store::FOLDER);
    fs::create_dir(&folder).unwrap();
    let (dead, held) = (folder.join(format!("a{}", store::NEW)), folder.join(format!("b{}", store::NEW)));
    let file = fs::File::create(&held).unwrap();
    fs::write(&dead, "half").unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let left = stored(dir.path(), Options::default(), image(&[]), 1);
    assert_eq!(left.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), [format!("b{}", store::NEW)]);
}
