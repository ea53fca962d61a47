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

#[tokio::test]
async fn a_torn_tail_of_the_log_loses_only_the_tail() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path());
    for n in 0..50 {
        write(&store, &format!("k{n:02}"), Expect::Absent, put(&"x".repeat(100))).await.unwrap();
    }
    let left = crash(folder.path());
    let journals: Vec<_> = std::fs::read_dir(left.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jnl"))
        .collect();
    let journal = journals.first().expect("a journal file");
    let bytes = std::fs::read(journal).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    std::fs::write(journal, &bytes[..written - 60]).unwrap();
    let again = on_disk(left.path());
    let all = again.table("t").list("", None, 100, |_| true);
    assert_eq!(all.entries.len(), 49);
    assert_eq!(&*all.entries[48].0, "k48");
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
    let age = Duration::from_millis(500);
    let limits = Limits { age, ..Limits::default() };
    let store = Store::<Text>::open(Config { limits, ..Config::default() }).unwrap();
    let table = store.table("t");
    let mut current = table.watch(0).unwrap();
    write(&store, "a", Expect::Absent, put("1")).await.unwrap();
    write(&store, "a", Expect::Revision(1), put("2")).await.unwrap();
    assert!(!current.next().await.unwrap().is_empty());
    let seen = current.revision();
    std::thread::sleep(age * 2);
    assert_eq!(store.forget_old(), 2);
    assert_eq!(store.forget_old(), 0);
    assert!(table.watch(0).is_err() && table.watch(seen).is_ok());
    write(&store, "a", Expect::Revision(2), put("3")).await.unwrap();
    assert_eq!(current.next().await.unwrap().len(), 1);
    assert_eq!(texts(&table.list("", None, 9, |_| true)), ["a=3"], "records are no history");
}
