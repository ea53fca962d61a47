//! The store as a whole: files in, registries in, directories out.

use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::archive::zoo::{Zoo, is_root};
use super::pack::{PackConfig, pack};
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    images: Images,
}

fn fixture() -> Fixture {
    fixture_with(Config::default())
}

fn fixture_with(config: Config) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let cas = Cas::open(&dir.path().join("cas")).unwrap();
    let images = Images::open(&dir.path().join("images"), cas, config).unwrap();
    Fixture { dir, images }
}

impl Fixture {
    fn cas(&self) -> &Cas {
        &self.images.inner.cas
    }

    /// Everything that the content store holds.
    fn blobs(&self) -> usize {
        self.cas().list().unwrap().len()
    }
}

/// An OCI layout tar of a one-file image.
fn packed(reference: Option<&str>, content: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("hello");
    fs::write(&binary, content).unwrap();
    let config = PackConfig {
        reference: reference.map(|text| text.parse().unwrap()),
        env: vec!["A=b".into()],
        labels: [("team".to_owned(), "x".to_owned())].into(),
        exposed_ports: vec!["8080/tcp".into()],
        ..PackConfig::default()
    };
    let mut bytes = Vec::new();
    pack(&binary, &config, &mut bytes).unwrap();
    bytes
}

/// A `docker save` archive of one image with these layers.
fn docker_archive(layers: &[Zoo], architecture: &str, tags: &Value) -> Zoo {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(&layer.bytes()).to_string()).collect();
    let config = json!({"os": "linux", "architecture": architecture, "config": {"Cmd": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let mut zoo = Zoo::default();
    for (name, layer) in names.iter().zip(layers) {
        zoo = zoo.file(name, &layer.bytes());
    }
    let manifest = json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]).to_string();
    zoo.file("0/VERSION", b"1.0").file("config.json", config.as_bytes()).file("manifest.json", manifest.as_bytes())
}

#[tokio::test]
async fn a_packed_image_is_loaded_and_used_without_a_registry() {
    let fixture = fixture();
    let images = &fixture.images;
    let loaded = images.load(&packed(Some("hello"), "#!")[..], None).await.unwrap();
    let name = "docker.io/library/hello:latest";
    assert_eq!(loaded[0].reference.as_deref(), Some(name));
    let digest = loaded[0].digest;
    let by_digest = format!("docker.io/library/hello@{digest}");
    // No network is there to be asked: these would fail.
    assert_eq!(images.resolve("hello", &[]).await.unwrap(), by_digest);
    for policy in [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never] {
        for reference in ["hello:latest", by_digest.as_str()] {
            assert_eq!(images.pull(reference, vec![], policy).await.unwrap().digest, digest);
        }
    }
    let image = images.unpack(digest).await.unwrap();
    assert_eq!(image.config.entrypoint, ["/hello"]);
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(image.config.exposed_ports, ["8080/tcp"]);
    assert_eq!(image.config.labels["team"], "x");
    let file = image.layers[0].join("hello");
    assert_eq!(fs::read(&file).unwrap(), b"#!");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(&image.layers[0]).unwrap().mode() & 0o7777, 0o755);
    let list = images.list().await;
    assert_eq!((list.len(), list[0].reference.as_str(), list[0].loaded), (1, name, true));
    assert!(list[0].size > 0);

    // A new process knows it still.
    let again = Images::open(&fixture.dir.path().join("images"), fixture.cas().clone(), Config::default()).unwrap();
    assert_eq!(again.resolve("hello", &[]).await.unwrap(), by_digest);

    images.remove("hello").await.unwrap();
    assert!(matches!(images.remove("hello").await, Err(ImagesError::NotFound(_))));
    let in_use = images.collect(HashSet::from([digest]), HashSet::new()).await.unwrap();
    assert_eq!(in_use, Collected::default());
    let collected = images.collect(HashSet::new(), HashSet::new()).await.unwrap();
    assert_eq!((collected.blobs, collected.directories), (3, 1));
    assert_eq!(fixture.blobs(), 0);
    assert!(images.unpack(digest).await.unwrap_err().is_lost_content());
}

#[tokio::test]
async fn one_image_can_be_given_a_name() {
    let fixture = fixture();
    let bytes = packed(None, "x");
    let loaded = fixture.images.load(&bytes[..], None).await.unwrap();
    assert_eq!(loaded[0].reference, None);
    let named = fixture.images.load(&bytes[..], Some("dev.local/x:1".parse().unwrap())).await.unwrap();
    assert_eq!(named[0].reference.as_deref(), Some("dev.local/x:1"));
    assert_eq!(named[0].digest, loaded[0].digest);
    assert!(fixture.images.resolve("dev.local/x:1", &[]).await.is_ok());
}

#[tokio::test]
async fn docker_archives_are_loaded_compressed_or_not() {
    let lower = Zoo::default().file("etc/gone", b"x").file("app", b"1");
    let upper = Zoo::default().file("app", b"2");
    let tags = json!(["team/app:v1", "team/app:v2"]);
    let archive = docker_archive(&[lower, upper], platform().1, &tags);
    for bytes in [archive.bytes(), archive.gzip(), zstd::encode_all(&archive.bytes()[..], 1).unwrap()] {
        let fixture = fixture();
        let loaded = fixture.images.load(&bytes[..], None).await.unwrap();
        let names: Vec<_> = loaded.iter().map(|image| image.reference.as_deref().unwrap()).collect();
        assert_eq!(names, ["docker.io/team/app:v1", "docker.io/team/app:v2"]);
        let image = fixture.images.unpack(loaded[0].digest).await.unwrap();
        assert_eq!(image.config.cmd, ["/app"]);
        let apps: Vec<_> = image.layers.iter().map(|layer| fs::read(layer.join("app")).unwrap()).collect();
        assert_eq!(apps, [b"1", b"2"], "the lowest layer comes first");
        // Two layers, the configuration, the manifest; `VERSION` did not stay.
        assert_eq!(fixture.blobs(), 4);
    }
}

#[tokio::test]
async fn layers_that_are_links_in_old_docker_archives_are_followed() {
    let layer = Zoo::default().file("app", b"1");
    let config = json!({"os": "linux", "architecture": platform().1,
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer.bytes()), Digest::of(&layer.bytes())]}});
    let archive = |target: &str| {
        Zoo::default()
            .file("a/layer.tar", &layer.bytes())
            .symlink("b/layer.tar", target)
            .file("c.json", config.to_string().as_bytes())
            .file("manifest.json", br#"[{"Config":"c.json","Layers":["a/layer.tar","b/layer.tar"]}]"#)
            .bytes()
    };
    let fixture = fixture();
    fixture.images.load(&archive("../a/layer.tar")[..], None).await.unwrap();
    for bad in ["../../a/layer.tar", "/etc/passwd", "../b/layer.tar"] {
        assert!(matches!(fixture.images.load(&archive(bad)[..], None).await, Err(ImagesError::Layout(_))), "{bad}");
    }
}

#[tokio::test]
async fn an_oci_layout_in_a_directory_is_loaded() {
    let fixture = fixture();
    let layout = fixture.dir.path().join("layout");
    tar::Archive::new(&packed(Some("hello:v1"), "x")[..]).unpack(&layout).unwrap();
    let loaded = fixture.images.load_path(&layout, None).await.unwrap();
    assert_eq!(loaded[0].reference.as_deref(), Some("docker.io/library/hello:v1"));
    fixture.images.unpack(loaded[0].digest).await.unwrap();
    let file = fixture.dir.path().join("hello.tar");
    fs::write(&file, packed(Some("hello:v2"), "y")).unwrap();
    assert_eq!(fixture.images.load_path(&file, None).await.unwrap().len(), 1);
    assert!(fixture.images.load_path(fixture.dir.path(), None).await.is_err());
}

#[tokio::test]
async fn what_is_no_sound_image_is_refused_and_leaves_nothing() {
    let good = packed(Some("hello"), "content");
    let mut damaged = good.clone();
    let at = damaged.windows(8).rposition(|window| window.iter().all(|byte| *byte != 0)).unwrap();
    damaged[at] ^= 1;
    let missing = Zoo::default().file("manifest.json", br#"[{"Config":"c.json","Layers":["l"]}]"#).bytes();
    let other = docker_archive(&[Zoo::default().file("a", b"")], "riscv64", &json!(["a:b"])).bytes();
    let plain = Zoo::default().file("main.py", b"print(1)").bytes();
    let named = docker_archive(&[Zoo::default()], platform().1, &json!(["Not A Name"])).bytes();
    let rows: [(&str, &[u8], &str); 8] = [
        ("no archive", b"just text that is no archive at all", "no tar archive"),
        ("empty", b"", "neither"),
        ("damaged", &damaged, "digest"),
        ("cut off", &good[..good.len() - 3000], "ends within"),
        ("missing layer", &missing, "not in the archive"),
        ("other machine", &other, "linux/riscv64"),
        ("no image", &plain, "neither"),
        ("bad name", &named, "not valid"),
    ];
    for (what, bytes, why) in rows {
        let fixture = fixture();
        let error = fixture.images.load(bytes, None).await.unwrap_err();
        assert!(error.text().contains(why), "{what}: {}", error.text());
        assert!(error.is_input(), "{what}: {error:?}");
        assert_eq!(fixture.blobs(), 0, "{what}");
        assert!(fixture.images.list().await.is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_hostile_layer_is_refused_by_name_and_leaves_no_directory() {
    let layer = Zoo::default().symlink("l", "/tmp").file("l/colibri-escape", b"x");
    let fixture = fixture();
    let bytes = docker_archive(&[layer], platform().1, &json!(["evil:1"])).bytes();
    let loaded = fixture.images.load(&bytes[..], None).await.unwrap();
    let text = fixture.images.unpack(loaded[0].digest).await.unwrap_err().text();
    assert!(text.contains("\"l/colibri-escape\"") && text.contains("symbolic link"), "{text}");
    assert_eq!(fs::read_dir(fixture.dir.path().join("images/layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(fixture.dir.path().join("images/incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_blob_that_rots_on_disk_is_found_and_dropped() {
    let fixture = fixture();
    let loaded = fixture.images.load(&packed(Some("hello"), "content")[..], None).await.unwrap();
    let (manifest, _) = manifest::stored(fixture.cas(), "", loaded[0].digest, &Config::default()).unwrap();
    let layer = manifest.layers[0].digest;
    let path = fixture.cas().path(&layer);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = fixture.images.unpack(loaded[0].digest).await.unwrap_err();
    assert!(error.is_lost_content(), "{}", error.text());
    assert!(error.text().contains(&layer.to_string()));
    assert!(!fixture.cas().contains(&layer));
    fixture.images.load(&packed(Some("hello"), "content")[..], None).await.unwrap();
    fixture.images.unpack(loaded[0].digest).await.unwrap();
}

#[tokio::test]
async fn archives_belong_to_the_namespace_that_uploaded_them() {
    let fixture = fixture();
    let images = &fixture.images;
    let bytes = Zoo::default().file("main.py", b"print(1)").gzip();
    let stored = images.store_archive("team-a", &bytes[..]).await.unwrap();
    assert_eq!(stored.digest, Digest::of(&bytes));
    assert_eq!(stored.files, ["main.py"]);
    assert!(images.has_archive("team-a", &stored.digest));
    assert!(!images.has_archive("team-b", &stored.digest));
    assert!(!images.has_archive("../team-a", &stored.digest));
    assert!(images.store_archive("../x", &bytes[..]).await.is_err());

    let code = images.code_dir(stored.digest).await.unwrap();
    assert_eq!(fs::read(code.join("main.py")).unwrap(), b"print(1)");
    assert_eq!(fs::metadata(&code).unwrap().mode() & 0o777, 0o555);

    images.collect(HashSet::new(), HashSet::new()).await.unwrap();
    assert!(images.has_archive("team-a", &stored.digest) && code.is_dir());
    assert!(images.remove_archive("team-a", &stored.digest).unwrap());
    images.collect(HashSet::new(), HashSet::from([stored.digest])).await.unwrap();
    assert!(code.is_dir());
    let collected = images.collect(HashSet::new(), HashSet::new()).await.unwrap();
    assert_eq!((collected.blobs, collected.directories), (1, 1));
    assert!(images.code_dir(stored.digest).await.unwrap_err().is_lost_content());
}

#[tokio::test]
async fn bad_archives_are_refused_at_the_upload() {
    let config = Config { source_bytes: 10_000, ..Config::default() };
    let fixture = fixture_with(config);
    let large: Vec<u8> = vec![7; 20_000];
    let escape = Zoo::default().file("../x", b"").bytes();
    let rows: [(&[u8], &str); 3] = [(b"text", "neither a tar"), (&escape, "\"../x\""), (&large, "limit of 10000")];
    for (bytes, why) in rows {
        let error = fixture.images.store_archive("ns", bytes).await.unwrap_err();
        assert!(error.text().contains(why) && error.is_input(), "{}", error.text());
        assert_eq!(fixture.blobs(), 0);
    }
    let cut_off = tokio_util::io::StreamReader::new(futures::stream::iter([
        Ok(bytes::Bytes::from(Zoo::default().file("a", b"").gzip())),
        Err(std::io::Error::other("client went away")),
    ]));
    assert!(fixture.images.store_archive("ns", cut_off).await.is_err());
    assert_eq!(fixture.blobs(), 0);
}

#[tokio::test]
async fn the_platforms_own_runtimes_are_not_looked_up() {
    let fixture = fixture();
    let name = "runtime.colibri.local/python";
    assert_eq!(fixture.images.resolve(name, &[]).await.unwrap(), name);
    let digest = format!("quay.example/a/b@{}", Digest::of(b"x"));
    assert_eq!(fixture.images.resolve(&digest, &[]).await.unwrap(), digest);
    assert!(matches!(fixture.images.resolve("No Name", &[]).await, Err(ImageError::Reference { .. })));
}

/// Overlayfs reads the unpacked layers as the image means them.
#[tokio::test]
async fn overlayfs_shows_the_image() {
    if !is_root() {
        println!("skipped: needs root to mount");
        return;
    }
    let lower = Zoo::default().file("gone", b"x").dir("hidden/", 0o755).file("hidden/old", b"x").file("kept", b"1");
    let upper = Zoo::default()
        .file(".wh.gone", b"")
        .dir("hidden/", 0o755)
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/new", b"2");
    let fixture = fixture();
    let bytes = docker_archive(&[lower, upper], platform().1, &json!(["a:1"])).bytes();
    let loaded = fixture.images.load(&bytes[..], None).await.unwrap();
    let image = fixture.images.unpack(loaded[0].digest).await.unwrap();
    let target = fixture.dir.path().join("merged");
    fs::create_dir(&target).unwrap();
    // A thread with a mount namespace of its own: the mount ends with it.
    let seen = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let lower: Vec<_> = image.layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
        let options = format!("lowerdir={}", lower.join(":"));
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        let mut names = Vec::new();
        for directory in [target.clone(), target.join("hidden")] {
            names.extend(
                fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()),
            );
        }
        names.sort();
        names
    });
    assert_eq!(seen.join().unwrap(), ["hidden", "kept", "new"]);
}

/// Debian's `docker-registry` on a free port of loopback.
struct Registry {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
}

/// `user` with the password `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Registry {
    /// `None`, with the reason printed, where the program is not installed.
    fn start(with_password: bool) -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
                println!("skipped: {program} is not installed (apt install {program})");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let root = dir.path().display().to_string();
        fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\nhttp:\n  addr: {address}\n{}",
            if with_password { &auth } else { "" }
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, address, dir };
        for _ in 0..500 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not listen on {}", registry.address);
    }

    /// Pushes an OCI layout tar; its digest stays.
    fn push(&self, layout: &[u8], name: &str, password: bool) {
        let file = self.dir.path().join("push.tar");
        fs::write(&file, layout).unwrap();
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"]);
        if password {
            command.args(["--dest-creds", "user:secret"]);
        }
        command.arg(format!("oci-archive:{}", file.display())).arg(format!("docker://{}/{name}", self.address));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn auth(&self, password: &str) -> Vec<RegistryAuth> {
        vec![RegistryAuth { registry: self.address.clone(), username: "user".into(), password: password.into() }]
    }

    /// The registry's file of a blob.
    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn images_come_from_a_registry_by_tag_and_by_digest() {
    let Some(registry) = Registry::start(false) else { return };
    registry.push(&packed(None, "one"), "team/app:v1", false);
    let name = format!("{}/team/app", registry.address);
    let fixture = fixture();
    let images = &fixture.images;
    let mut events = images.events();

    let resolved = images.resolve(&format!("{name}:v1"), &[]).await.unwrap();
    let pulled = images.pull(&resolved, vec![], PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(pulled.reference.to_string(), resolved);
    let image = images.unpack(pulled.digest).await.unwrap();
    assert_eq!(fs::read(image.layers[0].join("hello")).unwrap(), b"one");
    let mut stages = Vec::new();
    while let Ok(event) = events.try_recv() {
        stages.push(event.stage);
    }
    assert!(
        matches!(
            stages[..],
            [
                PullStage::Started,
                PullStage::Manifest { layers: 1, .. },
                PullStage::Layer { fetched: true, .. },
                PullStage::Done { .. }
            ]
        ),
        "{stages:?}"
    );

    // The tag moves: only `Always` asks again.
    let by_tag = images.pull(&format!("{name}:v1"), vec![], PullPolicy::Always).await.unwrap();
    assert_eq!(by_tag.digest, pulled.digest);
    registry.push(&packed(None, "two"), "team/app:v1", false);
    for (policy, moved) in [(PullPolicy::Never, false), (PullPolicy::IfNotPresent, false), (PullPolicy::Always, true)] {
        let now = images.pull(&format!("{name}:v1"), vec![], policy).await.unwrap();
        assert_eq!(now.digest != pulled.digest, moved, "{policy:?}");
    }

    for (reference, why) in
        [(format!("{name}:v2"), "not found"), (format!("{}/no/such", registry.address), "not found")]
    {
        for error in [
            images.resolve(&reference, &[]).await.unwrap_err(),
            images.pull(&reference, vec![], PullPolicy::Always).await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(matches!(error, ImageError::Refused(_)) && text.contains(why), "{text}");
            assert!(text.contains(&registry.address) && text.contains(reference.split('/').nth(1).unwrap()), "{text}");
        }
    }
    let never = images.pull(&format!("{name}:v3"), vec![], PullPolicy::Never).await.unwrap_err();
    assert!(never.to_string().contains("Never"), "{never}");
}

#[tokio::test]
async fn many_pulls_of_one_image_are_one() {
    let Some(registry) = Registry::start(false) else { return };
    registry.push(&packed(None, "one"), "app:v1", false);
    let fixture = fixture();
    let mut events = fixture.images.events();
    let name = format!("{}/app:v1", registry.address);
    let pulls = (0..20).map(|_| fixture.images.pull(&name, vec![], PullPolicy::IfNotPresent));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    let mut started = 0;
    while let Ok(event) = events.try_recv() {
        started += usize::from(event.stage == PullStage::Started);
    }
    assert_eq!(started, 1);
}

#[tokio::test]
async fn a_registry_that_sends_other_bytes_is_found_out() {
    let Some(registry) = Registry::start(false) else { return };
    let layout = packed(None, "one");
    registry.push(&layout, "app:v1", false);
    let source = fixture();
    let loaded = source.images.load(&layout[..], None).await.unwrap();
    let (manifest, _) = manifest::stored(source.cas(), "", loaded[0].digest, &Config::default()).unwrap();
    let name = format!("{}/app@{}", registry.address, loaded[0].digest);
    for blob in [manifest.layers[0].digest, manifest.config.digest, loaded[0].digest] {
        let path = registry.blob(&blob);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        // A byte inside a JSON string or the compressed data: the length stays.
        let at = bad.len() - 20;
        bad[at] ^= 1;
        fs::write(&path, bad).unwrap();
        let fixture = fixture();
        let error = fixture.images.pull(&name, vec![], PullPolicy::Always).await.unwrap_err();
        assert!(!fixture.cas().contains(&blob), "{error}");
        assert!(error.to_string().contains(&registry.address), "{error}");
        fs::write(&path, good).unwrap();
        fixture.images.pull(&name, vec![], PullPolicy::Always).await.unwrap();
    }
}

#[tokio::test]
async fn credentials_are_needed_and_serve_only_who_has_them() {
    let Some(registry) = Registry::start(true) else { return };
    registry.push(&packed(None, "one"), "private/app:v1", true);
    let name = format!("{}/private/app:v1", registry.address);
    let fixture = fixture();
    let images = &fixture.images;
    for (auth, why) in [(vec![], "no credentials"), (registry.auth("wrong"), "user \"user\"")] {
        for error in [
            images.resolve(&name, &auth).await.unwrap_err(),
            images.pull(&name, auth.clone(), PullPolicy::Always).await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(matches!(error, ImageError::Refused(_)), "{text}");
            assert!(text.contains("unauthorised") && text.contains(why) && text.contains("private/app"), "{text}");
        }
    }
    let auth = registry.auth("secret");
    let resolved = images.resolve(&name, &auth).await.unwrap();
    let pulled = images.pull(&resolved, auth.clone(), PullPolicy::IfNotPresent).await.unwrap();
    images.unpack(pulled.digest).await.unwrap();
    // The content is here, but not for everybody.
    for auth in [vec![], registry.auth("wrong")] {
        for policy in [PullPolicy::IfNotPresent, PullPolicy::Never] {
            let refused = images.pull(&resolved, auth.clone(), policy).await;
            assert!(matches!(refused, Err(ImageError::Refused(_))), "{policy:?}");
        }
    }
    // Who has them needs no registry any more.
    drop(registry);
    images.pull(&resolved, auth, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test]
async fn silence_and_absence_can_be_tried_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let config = Config { question_timeout: Duration::from_millis(200), ..Config::default() };
    let fixture = fixture_with(config);
    let error = fixture.images.resolve(&format!("{silent}/app"), &[]).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("timeout"), "{error}");
    drop(listener);
    let error = fixture.images.pull(&format!("{silent}/app"), vec![], PullPolicy::Always).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("could not be reached"), "{error}");
    assert!(error.to_string().contains(&silent.to_string()), "{error}");
}

/// What another tool writes is read.
#[tokio::test]
async fn archives_of_skopeo_are_loaded() {
    let fixture = fixture();
    let layout = fixture.dir.path().join("in.tar");
    fs::write(&layout, packed(None, "one")).unwrap();
    let docker = fixture.dir.path().join("docker.tar");
    let run = |to: String| {
        let from = format!("oci-archive:{}", layout.display());
        Command::new("skopeo").args(["--insecure-policy", "copy", &from, &to]).output()
    };
    match run(format!("docker-archive:{}:hello:v7", docker.display())) {
        Err(error) => return println!("skipped: skopeo cannot be started: {error}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
    let mut bytes = Vec::new();
    fs::File::open(&docker).unwrap().read_to_end(&mut bytes).unwrap();
    let loaded = fixture.images.load(Cursor::new(bytes), None).await.unwrap();
    assert_eq!(loaded[0].reference.as_deref(), Some("docker.io/library/hello:v7"));
    let image = fixture.images.unpack(loaded[0].digest).await.unwrap();
    assert_eq!(fs::read(image.layers[0].join("hello")).unwrap(), b"one");
}
