use std::process::Command;
use std::time::Duration;

use super::*;

fn kept(name: &str, size: u64, used: u64) -> Kept {
    Kept { path: name.into(), size, used: SystemTime::UNIX_EPOCH + Duration::from_secs(used) }
}

#[test]
fn the_oldest_make_room_and_no_more_than_needed() {
    let all = || vec![kept("new", 10, 300), kept("old", 10, 100), kept("middle", 10, 200)];
    let going = |free, needed| {
        let old = in_the_way(all(), free, needed)?;
        Some(old.iter().map(|k| k.path.display().to_string()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(going(5, 5).as_deref(), Some(""));
    assert_eq!(going(5, 6).as_deref(), Some("old"));
    assert_eq!(going(5, 16).as_deref(), Some("old middle"));
    assert_eq!(going(5, 35).as_deref(), Some("old middle new"));
    assert_eq!(going(5, 36), None);
}

pub(crate) fn cache(directory: &Path) -> Cache {
    Cache { disk: "vda1".into(), directory: directory.to_owned() }
}

fn wanted(contents: &[u8]) -> Stage2 {
    Stage2 { sha256: fetch::sha256(contents).unwrap(), size: contents.len() as u64 }
}

#[test]
fn what_was_kept_is_found_again_and_what_is_damaged_is_not() {
    use std::io::Write as _;

    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let wanted = wanted(b"an image");
    assert_eq!(cache.get(&wanted), None);
    // A power cut in the middle of another one.
    fs::write(dir.path().join("0123.part"), "half").unwrap();
    let mut part = cache.make_room(&wanted).unwrap();
    part.file.write_all(b"an image").unwrap();
    assert_eq!(cache.get(&wanted), None, "it has no name before it is whole");
    let path = part.keep().unwrap();
    assert_eq!(cache.get(&wanted), Some(path.clone()));
    assert!(!dir.path().join("0123.part").exists());

    fs::write(&path, "am image").unwrap();
    assert_eq!(cache.get(&wanted), None);
    assert!(!path.exists());
}

#[test]
fn the_others_are_those_that_are_whole_and_the_newest_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    for (name, used) in [("old", 100), ("new", 300), ("middle", 200), ("new.part", 400)] {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used)).unwrap();
    }
    let others = cache(dir.path()).others();
    let names: Vec<_> = others.iter().map(|other| other.path.file_name().unwrap()).collect();
    assert_eq!(names, ["new", "middle", "old"]);
}

#[test]
fn a_file_system_is_known_by_its_label() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    for (label, expected) in [("bridgehead-cache", true), ("data", false)] {
        File::create(&disk).unwrap().set_len(4 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-L", label]).arg(&disk).status();
        assert!(made.expect("mkfs.ext4 is installed (apt: e2fsprogs)").success());
        assert_eq!(is_labelled(File::open(&disk).unwrap()), expected, "{label}");
    }
    fs::write(&disk, "short").unwrap();
    assert!(!is_labelled(File::open(&disk).unwrap()));
}
