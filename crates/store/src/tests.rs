use std::path::Path;

use super::*;

#[derive(Debug, PartialEq)]
struct Text(Bytes);

impl Record for Text {
    fn bytes(&self) -> &Bytes {
        &self.0
    }

    fn load(_: &str, _: &str, bytes: Bytes) -> Result<Self, String> {
        Ok(Self(bytes))
    }
}

fn put(text: &str) -> Action<Text> {
    let text = Bytes::copy_from_slice(text.as_bytes());
    Action::Put(Box::new(move |_| Text(text)))
}

fn delete() -> Action<Text> {
    Action::Delete(Box::new(|_| Text(Bytes::from_static(b"last"))))
}

fn memory() -> Arc<Store<Text>> {
    Store::open(Config::default()).unwrap()
}

fn on_disk(path: &Path) -> Arc<Store<Text>> {
    Store::open(Config { path: Some(path.to_path_buf()), ..Config::default() }).unwrap()
}

async fn write(store: &Store<Text>, key: &str, expect: Expect, action: Action<Text>) -> Result<u64, String> {
    let table = store.table("t");
    let written = store.write(&table, key, expect, action, Class::Sync).await;
    written.map(|entry| entry.revision).map_err(|error| error.to_string())
}

fn texts(snapshot: &Snapshot<Text>) -> Vec<String> {
    let show = |(key, entry): &(Arc<str>, Entry<Text>)| format!("{key}={}", String::from_utf8_lossy(&entry.record.0));
    snapshot.entries.iter().map(show).collect()
}

#[tokio::test]
async fn writes_are_compare_and_swap() {
    let store = memory();
    assert_eq!(write(&store, "a", Expect::Absent, put("1")).await, Ok(1));
    assert_eq!(write(&store, "a", Expect::Absent, put("2")).await, Err("the key exists".into()));
    assert_eq!(write(&store, "a", Expect::Revision(1), put("2")).await, Ok(2));
    let stale = write(&store, "a", Expect::Revision(1), put("3")).await;
    assert_eq!(stale, Err("the key was last written at revision 2".into()));
    assert_eq!(write(&store, "a", Expect::Revision(2), delete()).await, Ok(3));
    assert_eq!(write(&store, "a", Expect::Revision(3), put("4")).await, Err("the key does not exist".into()));
    assert_eq!(store.revision(), 3);
}

#[tokio::test]
async fn lists_have_prefix_limit_and_an_older_revision() {
    let store = memory();
    for key in ["x/a", "x/b", "x/c", "y/a"] {
        write(&store, key, Expect::Absent, put(key)).await.unwrap();
    }
    let table = store.table("t");
    let page = table.list("x/", None, 2, |_| true);
    assert_eq!((texts(&page), page.remaining, page.revision), (vec!["x/a=x/a".into(), "x/b=x/b".into()], Some(1), 4));
    write(&store, "x/c", Expect::Revision(3), delete()).await.unwrap();
    write(&store, "x/d", Expect::Absent, put("d")).await.unwrap();
    write(&store, "x/b", Expect::Revision(2), put("new")).await.unwrap();
    let rest = table.list_at(4, "x/", Some("x/b"), 2, |_| true).unwrap();
    assert_eq!((texts(&rest), rest.remaining), (vec!["x/c=x/c".into()], None));
    let all = table.list_at(4, "x/", None, 10, |_| true).unwrap();
    assert_eq!(texts(&all), ["x/a=x/a", "x/b=x/b", "x/c=x/c"]);
    assert_eq!(texts(&table.list("x/", None, 10, |_| true)), ["x/a=x/a", "x/b=new", "x/d=d"]);
}

#[tokio::test]
async fn a_watch_gets_every_change_once_and_in_order() {
    let store = memory();
    let mut watch = store.table("t").watch(0).unwrap();
    write(&store, "a", Expect::Absent, put("1")).await.unwrap();
    let other = store.table("other");
    store.write(&other, "z", Expect::Absent, put("z"), Class::Lazy).await.unwrap();
    write(&store, "a", Expect::Revision(1), put("2")).await.unwrap();
    write(&store, "a", Expect::Revision(3), delete()).await.unwrap();
    let changes = watch.next().await.unwrap();
    let seen: Vec<_> = changes.iter().map(|c| (c.revision(), c.old.as_ref().map(|o| o.revision), c.deleted)).collect();
    assert_eq!(seen, [(1, None, false), (3, Some(1), false), (4, Some(3), true)]);
    assert!(watch.ready().unwrap().is_empty());
    assert_eq!(watch.revision(), 4);
}

#[tokio::test]
async fn a_watch_from_before_the_ring_is_refused() {
    let limits = Limits { changes: 2, ..Limits::default() };
    let store: Arc<Store<Text>> = Store::open(Config { path: None, limits }).unwrap();
    let mut slow = store.table("t").watch(0).unwrap();
    for n in 0..4 {
        write(&store, &format!("k{n}"), Expect::Absent, put("v")).await.unwrap();
    }
    let compacted = Compacted { asked: 0, oldest: 2 };
    assert_eq!(slow.next().await.unwrap_err(), compacted);
    assert_eq!(store.table("t").watch(1).err(), Some(Compacted { asked: 1, oldest: 2 }));
    assert_eq!(store.table("t").list_at(1, "", None, 9, |_| true).err(), Some(Compacted { asked: 1, oldest: 2 }));
    assert_eq!(store.table("t").watch(2).unwrap().next().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_closed_store_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    for n in 0..10 {
        write(&store, &format!("k{n}"), Expect::Absent, put(&n.to_string())).await.unwrap();
    }
    write(&store, "k3", Expect::Revision(4), delete()).await.unwrap();
    store.close();
    assert_eq!(write(&store, "late", Expect::Absent, put("x")).await, Err("the store is closed".into()));
    drop(store);
    let store = on_disk(folder.path());
    assert_eq!(store.revision(), 11);
    let all = store.table("t").list("", None, 100, |_| true);
    assert_eq!(all.entries.len(), 9);
    assert_eq!(all.entries[3].1.revision, 5);
    assert_eq!(write(&store, "next", Expect::Absent, put("x")).await, Ok(12));
}

/// A copy of the folder of a running store: what a killed process leaves behind.
fn crash(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(folder, copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_killed_store_has_every_acknowledged_write_and_uses_no_revision_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    let table = store.table("t");
    for n in 0..50 {
        write(&store, &format!("k{n:02}"), Expect::Absent, put(&n.to_string())).await.unwrap();
    }
    let lazy = store.write(&table, "lazy", Expect::Absent, put("l"), Class::Lazy).await.unwrap();
    let left = crash(folder.path());
    let again = on_disk(left.path());
    let all = again.table("t").list("k", None, 100, |_| true);
    assert_eq!(all.entries.len(), 50);
    assert!(again.revision() >= lazy.revision);
    assert!(again.table("t").watch(lazy.revision).is_err(), "history from before the start is not known");
}

fn files(folder: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

fn open(path: &Path) -> Result<Arc<Store<Text>>, OpenError> {
    Store::open(Config { path: Some(path.to_path_buf()), ..Config::default() })
}

fn state(store: &Store<Text>) -> Vec<String> {
    texts(&store.table("t").list("", None, usize::MAX, |_| true))
}

/// A store of a few writes that was killed: its folder, and its state and length after each write.
async fn killed() -> (tempfile::TempDir, Vec<(u64, Vec<String>)>) {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    let length = || std::fs::metadata(&files(folder.path(), "log")[0]).unwrap().len();
    let mut history = vec![(length(), state(&store))];
    for n in 0..6 {
        write(&store, &format!("k{n}"), Expect::Absent, put(&"x".repeat(n * 7))).await.unwrap();
        history.push((length(), state(&store)));
    }
    let first = store.table("t").get("k0").unwrap().revision;
    write(&store, "k0", Expect::Revision(first), delete()).await.unwrap();
    history.push((length(), state(&store)));
    (crash(folder.path()), history)
}

#[tokio::test]
async fn a_last_write_torn_at_any_offset_leaves_all_that_was_acknowledged_before() {
    let (folder, history) = killed().await;
    let log = files(folder.path(), "log").remove(0);
    let bytes = std::fs::read(&log).unwrap();
    for length in history[0].0 as usize..=bytes.len() {
        std::fs::write(&log, &bytes[..length]).unwrap();
        let store = on_disk(folder.path());
        let whole = history.iter().rev().find(|(end, _)| *end <= length as u64).unwrap();
        assert_eq!(state(&store), whole.1, "cut at {length}");
        // What is written after that is whole again.
        write(&store, "new", Expect::Absent, put("new")).await.unwrap();
        let now = state(&store);
        drop(store);
        assert_eq!(state(&on_disk(folder.path())), now, "cut at {length}");
    }
    // Torn in the head of the very first file.
    for length in 0..history[0].0 as usize {
        std::fs::write(&log, &bytes[..length]).unwrap();
        assert_eq!(state(&on_disk(folder.path())), Vec::<String>::new(), "cut at {length}");
    }
}

#[tokio::test]
async fn a_flipped_bit_is_found_and_its_file_named() {
    let (folder, history) = killed().await;
    let log = files(folder.path(), "log").remove(0);
    let check = |at: usize, bytes: &[u8]| {
        std::fs::write(&log, bytes).unwrap();
        let text = open(folder.path()).err().unwrap_or_else(|| panic!("byte {at} is not missed")).to_string();
        assert!(text.contains(log.to_str().unwrap()) && text.contains("damaged at byte"), "{text}");
        let named: usize = text.split("at byte ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
        assert!(named <= at, "{at}: {text}");
    };
    // A store that was killed: in all but the last write, where it cannot be told from one that was cut off.
    let bytes = std::fs::read(&log).unwrap();
    let last = history[history.len() - 2].0 as usize;
    for at in 0..last {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        check(at, &bytes);
    }
    let mut torn = bytes.clone();
    torn[last + 20] ^= 1;
    std::fs::write(&log, &torn).unwrap();
    assert_eq!(state(&on_disk(folder.path())), history[history.len() - 2].1);
    // A store that was closed in order: everywhere, but in its last word, which holds nothing of anybody.
    std::fs::write(&log, &bytes).unwrap();
    on_disk(folder.path()).close();
    let closed = std::fs::read(&log).unwrap();
    assert!(closed.len() > bytes.len());
    for at in last..bytes.len() {
        let mut bytes = closed.clone();
        bytes[at] ^= 1 << (at % 8);
        check(at, &bytes);
    }
}

#[tokio::test]
async fn a_missing_file_is_noticed() {
    let (folder, _) = killed().await;
    let log = files(folder.path(), "log").remove(0);
    let mut later = std::fs::read(&log).unwrap();
    let head = super::log::head_for_tests(7);
    later.truncate(0);
    later.extend_from_slice(&head);
    std::fs::write(folder.path().join("00000000000000aa.log"), later).unwrap();
    on_disk(folder.path()).close();
    std::fs::remove_file(&log).unwrap();
    let text = open(folder.path()).err().unwrap().to_string();
    assert!(text.contains("an older file is missing"), "{text}");
}

#[tokio::test]
async fn a_long_log_becomes_a_snapshot_that_is_checked_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    let text = "y".repeat(1 << 20);
    let mut revision = write(&store, "big", Expect::Absent, put(&text)).await.unwrap();
    write(&store, "small", Expect::Absent, put("s")).await.unwrap();
    for _ in 0..30 {
        revision = write(&store, "big", Expect::Revision(revision), put(&text)).await.unwrap();
    }
    let (before, last) = (state(&store), store.revision());
    store.close();
    drop(store);
    let total: u64 =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(total < 20 << 20, "31 MiB were written, {total} bytes are there");
    let store = on_disk(folder.path());
    assert_eq!((state(&store), store.revision()), (before, last));
    drop(store);
    let snapshot = files(folder.path(), "snap").pop().expect("a snapshot");
    let good = std::fs::read(&snapshot).unwrap();
    for at in [3, 15, 25, 100, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        std::fs::write(&snapshot, bytes).unwrap();
        let text = open(folder.path()).err().unwrap().to_string();
        assert!(text.contains(snapshot.to_str().unwrap()), "{at}: {text}");
    }
    std::fs::write(&snapshot, &good[..good.len() - 16]).unwrap();
    assert!(open(folder.path()).is_err(), "the end is missing");
}

#[tokio::test]
async fn a_store_has_one_owner_and_one_format() {
    let folder = tempfile::tempdir().unwrap();
    let _store = on_disk(folder.path());
    assert!(matches!(open(folder.path()), Err(OpenError::Locked { .. })));
    let old = tempfile::tempdir().unwrap();
    std::fs::create_dir(old.path().join("keyspaces")).unwrap();
    let text = open(old.path()).err().unwrap().to_string();
    assert!(text.contains("earlier version") && text.contains("move the folder away"), "{text}");
}

/// A file system of a few MiB in memory; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, with the reason, where mounting is not allowed.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "store-test"])
            .arg(dir.path())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Self(dir)),
            _ => {
                eprintln!("skipped: a small file system cannot be mounted here");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let Some(disk) = SmallDisk::mount() else { return };
    let folder = disk.0.path().join("store");
    let store = on_disk(&folder);
    write(&store, "before", Expect::Absent, put("b")).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let text = "z".repeat(300 << 10);
    let mut written = 0;
    let refused = loop {
        match write(&store, &format!("k{written}"), Expect::Absent, put(&text)).await {
            Ok(_) => written += 1,
            Err(why) => break why,
        }
    };
    assert!(refused.starts_with("the disk is full: No space left on device"), "{refused}");
    // Reads go on, and what fits is still taken.
    assert_eq!(state(&store).len(), written + 1);
    let last = store.revision();
    write(&store, "little", Expect::Absent, put("l")).await.unwrap();
    assert_eq!(store.revision(), last + 1);
    let again = write(&store, "large", Expect::Absent, put(&text)).await.unwrap_err();
    assert_eq!(again, refused);
    // With room it takes writes by itself; nothing is lost or left over.
    std::fs::remove_file(&ballast).unwrap();
    write(&store, "large", Expect::Absent, put(&text)).await.unwrap();
    let now = state(&store);
    drop(store);
    assert_eq!(state(&on_disk(&folder)), now);
}

/// A sync that failed: nobody knows what is on the disk, so that the log is begun anew.
#[tokio::test]
async fn a_broken_log_is_written_anew_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    write(&store, "a", Expect::Absent, put("1")).await.unwrap();
    store.break_log_for_tests();
    write(&store, "b", Expect::Absent, put("2")).await.unwrap();
    let left = crash(folder.path());
    assert_eq!(files(left.path(), "snap").len(), 1);
    let again = on_disk(left.path());
    assert_eq!(state(&again), ["a=1", "b=2"]);
    assert!(again.revision() >= store.revision());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_one_key_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    write(&store, "n", Expect::Absent, put("0")).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    loop {
                        let now = store.table("t").get("n").unwrap();
                        let number: u32 = std::str::from_utf8(&now.record.0).unwrap().parse().unwrap();
                        let next = (number + 1).to_string();
                        if write(&store, "n", Expect::Revision(now.revision), put(&next)).await.is_ok() {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(&store.table("t").get("n").unwrap().record.0[..], b"160");
}

#[tokio::test]
async fn history_is_forgotten_with_its_age_and_watches_that_are_up_to_date_go_on() {
    let store = memory();
    let table = store.table("t");
    let mut current = table.watch(0).unwrap();
    write(&store, "a", Expect::Absent, put("1")).await.unwrap();
    write(&store, "a", Expect::Revision(1), put("2")).await.unwrap();
    assert!(!current.next().await.unwrap().is_empty());
    let seen = current.revision();
    let age = Limits::default().age;
    assert_eq!(store.forget_old(Instant::now()), 0);
    assert_eq!(store.forget_old(Instant::now() + 2 * age), 2);
    assert_eq!(store.forget_old(Instant::now() + 2 * age), 0);
    assert!(table.watch(0).is_err() && table.watch(seen).is_ok());
    write(&store, "a", Expect::Revision(2), put("3")).await.unwrap();
    assert_eq!(current.next().await.unwrap().len(), 1);
    assert_eq!(texts(&table.list("", None, 9, |_| true)), ["a=3"], "records are no history");
}
