//! Manifests, indexes and image configurations, read strictly and reduced to what is needed.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde_json::Value;
use store::cas::{Cas, Digest};

use super::config::Config;
use super::error::{ImagesError, digest_of};

/// Indexes that may point to indexes, one below the other.
const INDEX_DEPTH: usize = 3;

/// One piece of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An image manifest for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) config: Piece,
    /// Compressed layers, lowest first.
    pub(crate) layers: Vec<Piece>,
}

/// A parsed manifest or index.
pub(crate) enum Document {
    Image(Manifest),
    /// Of the index's entries, the one for this machine.
    Index(Piece),
}

/// How a container of an image is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Command that arguments are added to.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the command if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Environment as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// User as `name`, `uid`, `name:group` or `uid:gid`; empty means root.
    pub user: String,
    /// Ports as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the container to stop, as `SIGQUIT`; empty means `SIGTERM`.
    pub stop_signal: String,
}

/// An image's configuration with the digests of its unpacked layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

/// This machine's platform as images write it.
pub fn platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ("linux", architecture)
}

/// Reads a manifest or an index whose digest was compared already. `what` names it in errors.
pub(crate) fn parse(what: &str, digest: Digest, bytes: &[u8], limits: &Config) -> Result<Document, ImagesError> {
    /// Tells the kinds apart by their content: the media type is optional, and lies.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: u32,
        #[serde(default)]
        manifests: Option<Value>,
        #[serde(default)]
        layers: Option<Value>,
        #[serde(default)]
        config: Option<Value>,
    }
    let refuse = |why: String| ImagesError::manifest(what, why);
    let json = |error: serde_json::Error| refuse(format!("its manifest is not readable: {error}"));
    let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
    if shape.schema_version != 2 {
        return Err(refuse(format!("its manifest has schema version {}, not 2", shape.schema_version)));
    }
    match (shape.manifests.is_some(), shape.layers.is_some() && shape.config.is_some()) {
        (true, false) => {
            let index: ImageIndex = serde_json::from_slice(bytes).map_err(json)?;
            Ok(Document::Index(choose(what, index.manifests())?))
        }
        (false, true) => {
            let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(json)?;
            let layers = manifest.layers().iter().map(|layer| piece(what, layer)).collect::<Result<Vec<_>, _>>()?;
            if layers.len() > limits.layers {
                return Err(refuse(format!("it has {} layers, more than {}", layers.len(), limits.layers)));
            }
            if let Some(layer) = layers.iter().find(|layer| layer.size > limits.layer_bytes) {
                let limit = limits.layer_bytes;
                return Err(refuse(format!("its layer {} has more than {limit} bytes", layer.digest)));
            }
            let config = piece(what, manifest.config())?;
            if config.size > limits.manifest_bytes {
                return Err(refuse(format!("its configuration has more than {} bytes", limits.manifest_bytes)));
            }
            Ok(Document::Image(Manifest { digest, config, layers }))
        }
        _ => Err(refuse("its manifest is neither an image's nor an index".to_owned())),
    }
}

/// Picks this machine's entry of an index.
pub(crate) fn choose(what: &str, entries: &[Descriptor]) -> Result<Piece, ImagesError> {
    let (os, architecture) = platform();
    let of = |entry: &Descriptor| entry.platform().as_ref().map(|p| (p.os().to_string(), p.architecture().to_string()));
    let mine = entries.iter().find(|entry| of(entry).is_some_and(|(o, a)| o == os && a == architecture));
    // An index of one entry that names no platform is that image.
    let only = || match entries {
        [entry] if entry.platform().is_none() => Some(entry),
        _ => None,
    };
    if let Some(entry) = mine.or_else(only) {
        return piece(what, entry);
    }
    let mut available: Vec<String> =
        entries.iter().filter_map(of).map(|(os, architecture)| format!("{os}/{architecture}")).collect();
    available.retain(|platform| platform != "unknown/unknown");
    available.sort();
    available.dedup();
    available.truncate(20);
    let available = if available.is_empty() { "no named platform".to_owned() } else { available.join(", ") };
    Err(ImagesError::Platform { what: what.to_owned(), wanted: format!("{os}/{architecture}"), available })
}

pub(crate) fn piece(what: &str, descriptor: &Descriptor) -> Result<Piece, ImagesError> {
    Ok(Piece { digest: digest_of(what, descriptor.digest())?, size: descriptor.size() })
}

/// The image manifest that `digest` names, itself or through indexes, all from the store.
pub(crate) fn stored(
    cas: &Cas,
    what: &str,
    digest: Digest,
    limits: &Config,
) -> Result<(Manifest, Vec<Digest>), ImagesError> {
    let mut at = digest;
    let mut passed = Vec::new();
    for _ in 0..=INDEX_DEPTH {
        let bytes = cas.read(&at, limits.manifest_bytes)?;
        passed.push(at);
        match parse(what, at, &bytes, limits)? {
            Document::Image(manifest) => return Ok((manifest, passed)),
            Document::Index(entry) => at = entry.digest,
        }
    }
    Err(ImagesError::manifest(what, "its indexes are nested too deep"))
}

/// Reads an image configuration.
pub(crate) fn parse_config(what: &str, bytes: &[u8]) -> Result<ConfigFile, ImagesError> {
    let refuse = |why: String| ImagesError::manifest(what, why);
    let file: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| refuse(format!("its configuration is not readable: {error}")))?;
    let (os, architecture) = platform();
    let found = (file.os().to_string(), file.architecture().to_string());
    if found != (os.to_owned(), architecture.to_owned()) {
        let wanted = format!("{os}/{architecture}");
        return Err(ImagesError::Platform {
            what: what.to_owned(),
            wanted,
            available: format!("{}/{}", found.0, found.1),
        });
    }
    let diff_ids = file.rootfs().diff_ids().iter().map(|text| text.parse::<Digest>());
    let diff_ids = diff_ids.collect::<Result<_, _>>().map_err(|error| refuse(error.to_string()))?;
    let config = file.config().as_ref().map(|config| ImageConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
    });
    Ok(ConfigFile { config: config.unwrap_or_default(), diff_ids })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(os: &str, architecture: &str, n: u8) -> Value {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1, "digest": Digest::of(&[n]).to_string(),
            "platform": {"os": os, "architecture": architecture}})
    }

    fn read(document: &Value) -> Result<Document, ImagesError> {
        parse("x", Digest::of(b""), document.to_string().as_bytes(), &Config::default())
    }

    #[test]
    fn this_machine_is_chosen_or_the_others_are_named() {
        let (os, architecture) = platform();
        let good = json!({"schemaVersion": 2, "manifests": [entry("linux", "s390x", 1), entry("unknown", "unknown", 2), entry(os, architecture, 3)]});
        match read(&good).unwrap() {
            Document::Index(piece) => assert_eq!(piece.digest, Digest::of(&[3])),
            Document::Image(_) => panic!("an index was read as an image"),
        }
        let bad = json!({"schemaVersion": 2, "manifests": [entry("windows", "amd64", 1), entry("linux", "s390x", 2), entry("unknown", "unknown", 3)]});
        let text = read(&bad).err().unwrap().to_string();
        assert!(text.contains("linux/s390x, windows/amd64") && text.contains(architecture), "{text}");
    }

    #[test]
    fn odd_documents_are_refused() {
        for document in [
            json!({}),
            json!({"schemaVersion": 1, "manifests": []}),
            json!({"schemaVersion": 2}),
            json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": {}}),
            json!({"schemaVersion": 2, "manifests": []}),
            json!({"schemaVersion": 2, "layers": [{"mediaType": "x", "size": -1, "digest": "sha256:00"}], "config": {}}),
        ] {
            assert!(read(&document).is_err(), "{document}");
        }
    }

    #[test]
    fn a_configuration_of_docker_with_nulls_is_read() {
        let (os, architecture) = platform();
        let text = json!({"os": os, "architecture": architecture, "history": null,
            "config": {"Entrypoint": null, "Cmd": ["/hello"], "Env": ["A=b"], "Labels": null, "ExposedPorts": {"80/tcp": {}}, "User": "1:2", "WorkingDir": "/w"},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"x").to_string()]}});
        let file = parse_config("x", text.to_string().as_bytes()).unwrap();
        assert_eq!(file.config.cmd, ["/hello"]);
        assert_eq!(file.config.exposed_ports, ["80/tcp"]);
        assert_eq!((file.config.user.as_str(), file.config.working_dir.as_str()), ("1:2", "/w"));
        assert_eq!(file.diff_ids, [Digest::of(b"x")]);
    }

    #[test]
    fn an_image_for_another_machine_says_so() {
        let text = json!({"os": "linux", "architecture": "mips", "rootfs": {"type": "layers", "diff_ids": []}});
        let error = parse_config("app", text.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("made for linux/mips"), "{error}");
    }
}
