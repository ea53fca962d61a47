//! Takes in images from files: OCI layouts (directory or tar) and archives of `docker save`, compressed or not.
//!
//! A tar is read once, front to back: files go to the content store as they come, and the small documents that say
//! what they mean (`index.json`, `manifest.json`) are read at the end, wherever they were. What turns out to belong to
//! no image is removed again.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::cas::{Cas, CasError, Digest, Hold};

use super::archive::tar::{Kind, each_entry};
use super::archive::{ArchiveError, Compression, Limits, decompress, entry_path};
use super::config::Config;
use super::error::{ImagesError, digest_of};
use super::manifest::{self, Document};
use super::reference::Reference;

/// Name that container tools give an image inside an OCI layout, in full.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// The standard's own annotation: a tag, or a name with a tag.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// An image that was taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedImage {
    /// Its reference in full; `None` for an image that the archive does not name.
    pub reference: Option<String>,
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Bytes of its manifest, configuration and compressed layers.
    pub size: u64,
}

/// Images found in an archive and already in the content store; not recorded under their names yet.
pub(crate) type Found = Vec<(Option<Reference>, Digest)>;

/// Reads a tar stream. `fresh` gets the blobs that were stored and were not there before, also when it fails.
pub(crate) fn from_tar(
    cas: &Cas,
    hold: &Arc<Hold>,
    source: impl Read + Send,
    config: &Config,
    fresh: &mut Vec<Digest>,
) -> Result<Found, ImagesError> {
    let mut plain = decompress(source, config.load_bytes).map_err(ImagesError::Source)?;
    let limits = Limits { entries: 100_000, ..Limits::layer() };
    let mut files = TarFiles { cas, hold, config, blobs: HashMap::new(), links: HashMap::new(), fresh };
    let mut documents: HashMap<PathBuf, Vec<u8>> = HashMap::new();
    // The store's error is carried beside the archive's, which cannot hold it.
    let mut failure = None;
    let mut any = false;
    let result = each_entry(&mut plain, &limits, |entry, content| {
        any = true;
        let path = entry_path(&entry.name, &limits)?;
        match &entry.kind {
            Kind::File if is_document(&path) => {
                let mut text = Vec::new();
                content.take(config.manifest_bytes + 1).read_to_end(&mut text).map_err(ArchiveError::read)?;
                if text.len() as u64 > config.manifest_bytes {
                    return Err(ArchiveError::entry(&entry.name, "it is too large"));
                }
                documents.insert(path, text);
            }
            Kind::File => {
                if let Err(error) = files.store(path, entry.size, content) {
                    let stop = ArchiveError::entry(&entry.name, error.text());
                    failure = Some(error);
                    return Err(stop);
                }
            }
            Kind::Symlink(target) | Kind::HardLink(target) => {
                let from = if matches!(entry.kind, Kind::Symlink(_)) { path.parent() } else { None };
                if let Some(target) = join(from, target) {
                    files.links.insert(path, target);
                }
            }
            Kind::Directory | Kind::Fifo | Kind::Device => {}
        }
        Ok(())
    });
    match result {
        Ok(()) => files.images(&documents),
        Err(_) if failure.is_some() => Err(failure.expect("it was looked at")),
        Err(ArchiveError::Read(_)) if !any => Err(ImagesError::Layout("it is no tar archive".to_owned())),
        Err(error) => Err(ImagesError::archive("the image archive cannot be loaded")(error)),
    }
}

fn is_document(path: &Path) -> bool {
    ["index.json", "manifest.json", "oci-layout", "repositories"].iter().any(|name| path == Path::new(name))
}

struct TarFiles<'a> {
    cas: &'a Cas,
    hold: &'a Arc<Hold>,
    config: &'a Config,
    blobs: HashMap<PathBuf, (Digest, u64)>,
    links: HashMap<PathBuf, PathBuf>,
    fresh: &'a mut Vec<Digest>,
}

impl TarFiles<'_> {
    fn store(&mut self, path: PathBuf, size: u64, content: &mut dyn Read) -> Result<(), ImagesError> {
        let named = path
            .strip_prefix("blobs/sha256")
            .ok()
            .and_then(|name| format!("sha256:{}", name.display()).parse::<Digest>().ok());
        let mut writer = self.cas.writer(self.config.layer_bytes)?.held_by(Arc::clone(self.hold));
        let copied = io::copy(content, &mut writer).map_err(|error| match error.downcast::<CasError>() {
            Ok(error) => ImagesError::Cas(error),
            Err(error) => ImagesError::Source(error),
        })?;
        if copied != size {
            let why = "the archive ends within a file";
            return Err(ImagesError::Source(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
        }
        let stored = writer.commit(named.as_ref())?;
        if stored.fresh {
            self.fresh.push(stored.digest);
        }
        self.blobs.insert(path, (stored.digest, stored.size));
        Ok(())
    }

    /// The blob at a path of the archive, through its links.
    fn blob(&self, path: &str) -> Option<(Digest, u64)> {
        let mut path = join(None, path.as_bytes())?;
        for _ in 0..8 {
            if let Some(blob) = self.blobs.get(&path) {
                return Some(*blob);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }

    fn images(
        &mut self,
        documents: &HashMap<PathBuf, Vec<u8>>,
    ) -> Result<Vec<(Option<Reference>, Digest)>, ImagesError> {
        let get = |name: &str| documents.get(Path::new(name));
        if let (Some(_), Some(index)) = (get("oci-layout"), get("index.json")) {
            let images = layout_images(index)?;
            for (_, digest) in &images {
                check(self.cas, *digest, self.config)?;
            }
            return Ok(images);
        }
        match get("manifest.json") {
            Some(manifest) => self.docker_images(manifest),
            None => {
                Err(ImagesError::Layout("it has neither `index.json` with `oci-layout` nor `manifest.json`".to_owned()))
            }
        }
    }

    /// Makes an OCI manifest for each image of a `docker save` archive.
    fn docker_images(&mut self, text: &[u8]) -> Result<Vec<(Option<Reference>, Digest)>, ImagesError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Image {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let images: Vec<Image> = serde_json::from_slice(text)
            .map_err(|error| ImagesError::Layout(format!("`manifest.json` is not readable: {error}")))?;
        let mut found = Vec::new();
        for image in images {
            let blob = |path: &String| {
                self.blob(path).ok_or_else(|| {
                    ImagesError::Layout(format!("`manifest.json` names {path:?}, which is not in the archive"))
                })
            };
            let (config, size) = blob(&image.config)?;
            let mut layers = Vec::new();
            for path in &image.layers {
                let (digest, size) = blob(path)?;
                layers.push(json!({"mediaType": self.layer_type(&digest)?, "digest": digest, "size": size}));
            }
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
                "layers": layers,
            });
            let bytes = manifest.to_string().into_bytes();
            let digest = Digest::of(&bytes);
            self.hold.keep(digest);
            let known = self.cas.contains(&digest);
            self.cas.put(&bytes)?;
            if !known {
                self.fresh.push(digest);
            }
            check(self.cas, digest, self.config)?;
            let names = image.repo_tags.unwrap_or_default();
            let names = names.iter().map(|name| name.parse().map(Some)).collect::<Result<Vec<_>, _>>()?;
            let names = if names.is_empty() { vec![None] } else { names };
            found.extend(names.into_iter().map(|name| (name, digest)));
        }
        Ok(found)
    }

    fn layer_type(&self, digest: &Digest) -> Result<&'static str, ImagesError> {
        let mut start = [0; 4];
        let count = self.cas.reader(digest)?.read(&mut start).map_err(ImagesError::Source)?;
        Ok(match Compression::of(&start[..count]) {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        })
    }
}

/// Reads an OCI layout in a directory. Only what its images need is taken in.
pub(crate) fn from_directory(
    cas: &Cas,
    hold: &Arc<Hold>,
    path: &Path,
    config: &Config,
    fresh: &mut Vec<Digest>,
) -> Result<Found, ImagesError> {
    let index = path.join("index.json");
    if !path.join("oci-layout").is_file() || !index.is_file() {
        return Err(ImagesError::Layout(format!("{} has no `oci-layout` and `index.json`", path.display())));
    }
    let text = fs::read(&index).map_err(ImagesError::io("read", &index))?;
    let images = layout_images(&text)?;
    for (_, digest) in &images {
        let mut wanted = vec![*digest];
        let mut seen = HashSet::new();
        while let Some(digest) = wanted.pop() {
            if !seen.insert(digest) {
                continue;
            }
            hold.keep(digest);
            let blob = path.join("blobs/sha256").join(digest.hex());
            let mut file = fs::File::open(&blob).map_err(ImagesError::io("open", &blob))?;
            if cas.put_reader(&mut file, config.layer_bytes, Some(&digest))?.fresh {
                fresh.push(digest);
            }
            wanted.extend(next_pieces(cas, digest, config));
        }
        check(cas, *digest, config)?;
    }
    Ok(images)
}

/// What a manifest or index refers to; nothing for any other blob.
fn next_pieces(cas: &Cas, digest: Digest, config: &Config) -> Vec<Digest> {
    let Ok(bytes) = cas.read(&digest, config.manifest_bytes) else { return Vec::new() };
    match manifest::parse("the image", digest, &bytes, config) {
        Ok(Document::Image(image)) => {
            image.layers.iter().map(|layer| layer.digest).chain([image.config.digest]).collect()
        }
        Ok(Document::Index(piece)) => vec![piece.digest],
        Err(_) => Vec::new(),
    }
}

/// The images that an `index.json` lists, with the names it gives them.
fn layout_images(text: &[u8]) -> Result<Vec<(Option<Reference>, Digest)>, ImagesError> {
    let index: ImageIndex = serde_json::from_slice(text)
        .map_err(|error| ImagesError::Layout(format!("`index.json` is not readable: {error}")))?;
    if index.manifests().is_empty() {
        return Err(ImagesError::Layout("`index.json` lists no image".to_owned()));
    }
    let image = |entry: &Descriptor| {
        let annotations = entry.annotations().as_ref();
        let name = annotations.and_then(|all| all.get(NAME_ANNOTATION).or_else(|| all.get(REF_ANNOTATION)));
        let reference = name.map(|name| name.parse::<Reference>()).transpose()?;
        Ok((reference, digest_of("of the layout", entry.digest())?))
    };
    index.manifests().iter().map(image).collect()
}

/// Whether an image is complete and for this machine.
fn check(cas: &Cas, digest: Digest, config: &Config) -> Result<(), ImagesError> {
    check_stored(cas, digest, config).map_err(|error| match error {
        ImagesError::Cas(CasError::Missing(blob)) => {
            ImagesError::Layout(format!("its blob {blob} is not in the archive"))
        }
        other => other,
    })
}

fn check_stored(cas: &Cas, digest: Digest, config: &Config) -> Result<(), ImagesError> {
    let what = digest.to_string();
    let (image, _) = manifest::stored(cas, &what, digest, config)?;
    let file = manifest::parse_config(&what, &cas.read(&image.config.digest, config.manifest_bytes)?)?;
    if file.diff_ids.len() != image.layers.len() {
        let why =
            format!("its configuration names {} layers, its manifest {}", file.diff_ids.len(), image.layers.len());
        return Err(ImagesError::manifest(what, why));
    }
    for layer in &image.layers {
        cas.size(&layer.digest)?;
    }
    Ok(())
}

/// Every blob of an image, its manifests included.
pub(crate) fn reachable(cas: &Cas, digest: Digest, config: &Config) -> Result<Vec<Digest>, ImagesError> {
    let (image, mut all) = manifest::stored(cas, &digest.to_string(), digest, config)?;
    all.push(image.config.digest);
    all.extend(image.layers.iter().map(|layer| layer.digest));
    Ok(all)
}

/// A link's target as a path of the archive; `None` when it leaves it.
fn join(from: Option<&Path>, target: &[u8]) -> Option<PathBuf> {
    let target = std::str::from_utf8(target).ok()?;
    let mut path = from.map(Path::to_owned).unwrap_or_default();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if !path.pop() {
                    return None;
                }
            }
            name => path.push(name),
        }
    }
    (!target.starts_with('/')).then_some(path)
}
