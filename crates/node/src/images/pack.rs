//! Makes an OCI image from a static binary or a directory, without a build tool and always the same: one input gives
//! one digest, on every machine and at any time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::GzBuilder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use store::cas::Digest;
use tar::{Builder, EntryType, Header};

use super::error::ImagesError;
use super::manifest::platform;
use super::reference::Reference;

/// What the image says about itself. The default is an image of which only the entrypoint is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackConfig {
    /// Name that the layout gives the image; with it, loading the layout needs no name.
    pub reference: Option<Reference>,
    /// Command. Empty: a binary's own path; a directory must name one.
    pub entrypoint: Vec<String>,
    /// Arguments.
    pub cmd: Vec<String>,
    /// Environment as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// User as `uid:gid`; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// Ports as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// The creation time that is written, in seconds since 1970. Default 0, so that the image does not change by itself.
    pub created: u32,
}

/// An image that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedImage {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of its compressed layer.
    pub layer_bytes: u64,
}

/// Packs `source`, a file or a directory, and writes an OCI layout as a plain tar to `out`.
///
/// A file becomes `/NAME`, executable; a directory becomes the image's root. Files are owned by root with mode 0644 or
/// 0755; links are kept; anything else is refused.
///
/// # Errors
///
/// [`ImagesError::Manifest`] without an entrypoint or for what cannot be packed; [`ImagesError::Io`].
pub fn pack(source: &Path, config: &PackConfig, out: impl Write) -> Result<PackedImage, ImagesError> {
    let shown = source.display().to_string();
    let metadata = fs::metadata(source).map_err(ImagesError::io("read", source))?;
    let mut entrypoint = config.entrypoint.clone();
    if metadata.is_file() && entrypoint.is_empty() {
        entrypoint = vec![format!("/{}", file_name(source)?)];
    }
    if entrypoint.is_empty() {
        return Err(ImagesError::manifest(shown, "a directory needs an entrypoint: the command to start in it"));
    }
    let (mut layer, made) = make_layer(source, metadata.is_file(), config.created)?;
    let file = image_config(config, &entrypoint, &made.diff_id).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&file), "size": file.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": made.digest, "size": made.size}],
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let mut entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
        "platform": {"os": platform().0, "architecture": platform().1}});
    if let Some(reference) = &config.reference {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": reference.to_string()});
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});

    let mut tar = Builder::new(out);
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let mut write = || {
        add_file(&mut tar, "oci-layout", 0o644, config.created, 30, &mut &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
        let index = index.to_string();
        add_file(&mut tar, "index.json", 0o644, config.created, index.len() as u64, &mut index.as_bytes())?;
        for (digest, bytes) in [(digest, &manifest), (Digest::of(&file), &file)] {
            add_file(&mut tar, &blob(&digest), 0o644, config.created, bytes.len() as u64, &mut &bytes[..])?;
        }
        layer.seek(SeekFrom::Start(0))?;
        add_file(&mut tar, &blob(&made.digest), 0o644, config.created, made.size, &mut layer)?;
        tar.finish()?;
        tar.get_mut().flush()
    };
    write().map_err(ImagesError::io("write the packed image of", source))?;
    Ok(PackedImage { digest, layer_bytes: made.size })
}

fn image_config(config: &PackConfig, entrypoint: &[String], diff_id: &Digest) -> Value {
    let created =
        jiff::Timestamp::from_second(i64::from(config.created)).map(|time| time.to_string()).unwrap_or_default();
    let mut inner = json!({"Entrypoint": entrypoint});
    let mut set = |name: &str, value: Value, empty: bool| {
        if !empty {
            inner[name] = value;
        }
    };
    set("Cmd", json!(config.cmd), config.cmd.is_empty());
    set("Env", json!(config.env), config.env.is_empty());
    set("Labels", json!(config.labels), config.labels.is_empty());
    set("User", json!(config.user), config.user.is_empty());
    set("WorkingDir", json!(config.working_dir), config.working_dir.is_empty());
    let ports: BTreeMap<&String, Value> = config.exposed_ports.iter().map(|port| (port, json!({}))).collect();
    set("ExposedPorts", json!(ports), ports.is_empty());
    json!({
        "created": created,
        "os": platform().0,
        "architecture": platform().1,
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "colibri image pack"}],
    })
}

struct MadeLayer {
    digest: Digest,
    diff_id: Digest,
    size: u64,
}

/// The layer as a gzip file without a name, with its digests.
fn make_layer(source: &Path, is_file: bool, created: u32) -> Result<(File, MadeLayer), ImagesError> {
    let failed = |path: &Path| ImagesError::io("pack", path);
    let file = tempfile::tempfile().map_err(failed(source))?;
    let packed = Hashing { inner: io::BufWriter::new(file), hash: Sha256::new(), bytes: 0 };
    let gzip = GzBuilder::new().mtime(0).operating_system(255).write(packed, flate2::Compression::new(6));
    let mut tar = Builder::new(Hashing { inner: gzip, hash: Sha256::new(), bytes: 0 });
    if is_file {
        let mut content = File::open(source).map_err(failed(source))?;
        let size = content.metadata().map_err(failed(source))?.len();
        let name = file_name(source)?;
        add_file(&mut tar, &name, 0o755, created, size, &mut content).map_err(failed(source))?;
    } else {
        add_directory(&mut tar, source, Path::new(""), created)?;
    }
    let finish = || -> io::Result<_> {
        let plain = tar.into_inner()?;
        let diff_id = Digest::from_bytes(plain.hash.finalize().into());
        let packed = plain.inner.finish()?;
        let file = packed.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        let digest = Digest::from_bytes(packed.hash.finalize().into());
        Ok((file, MadeLayer { digest, diff_id, size: packed.bytes }))
    };
    finish().map_err(failed(source))
}

fn add_directory<W: Write>(tar: &mut Builder<W>, root: &Path, below: &Path, created: u32) -> Result<(), ImagesError> {
    let path = root.join(below);
    let failed = |path: &Path| ImagesError::io("pack", path);
    let entries = fs::read_dir(&path).map_err(failed(&path))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed(&path))?;
    names.sort();
    for name in names {
        let inner: PathBuf = below.join(&name);
        let path = root.join(&inner);
        let metadata = fs::symlink_metadata(&path).map_err(failed(&path))?;
        let add = |tar: &mut Builder<W>| {
            if metadata.is_symlink() {
                let mut header = header(EntryType::Symlink, 0o777, created, 0);
                return tar.append_link(&mut header, &inner, fs::read_link(&path)?);
            }
            if metadata.is_dir() {
                return tar.append_data(
                    &mut header(EntryType::Directory, 0o755, created, 0),
                    inner.join(""),
                    io::empty(),
                );
            }
            let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            let mut content = File::open(&path)?.take(metadata.len());
            tar.append_data(&mut header(EntryType::Regular, mode, created, metadata.len()), &inner, &mut content)
        };
        if !(metadata.is_symlink() || metadata.is_dir() || metadata.is_file()) {
            return Err(ImagesError::manifest(
                path.display(),
                "it is neither file, directory nor link and cannot be packed",
            ));
        }
        add(tar).map_err(failed(&path))?;
        if metadata.is_dir() {
            add_directory(tar, root, &inner, created)?;
        }
    }
    Ok(())
}

fn add_file<W: Write>(
    tar: &mut Builder<W>,
    name: &str,
    mode: u32,
    created: u32,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, mode, created, size), name, content.take(size))
}

fn header(kind: EntryType, mode: u32, created: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(u64::from(created));
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn file_name(path: &Path) -> Result<String, ImagesError> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| ImagesError::manifest(path.display(), "its name is not valid UTF-8"))
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let make = |order: [&str; 2]| {
            let dir = tempfile::tempdir().unwrap();
            for name in order {
                fs::write(dir.path().join(name), name).unwrap();
            }
            fs::create_dir(dir.path().join("sub")).unwrap();
            std::os::unix::fs::symlink("../a", dir.path().join("sub/link")).unwrap();
            let config = PackConfig { entrypoint: vec!["/a".into()], ..PackConfig::default() };
            let mut bytes = Vec::new();
            pack(dir.path(), &config, &mut bytes).unwrap();
            bytes
        };
        assert!(make(["a", "b"]) == make(["b", "a"]));
    }

    #[test]
    fn a_directory_needs_an_entrypoint() {
        let dir = tempfile::tempdir().unwrap();
        let error = pack(dir.path(), &PackConfig::default(), io::sink()).unwrap_err();
        assert!(error.to_string().contains("entrypoint"), "{error}");
    }
}
