//! Limits and registries of the image store.

use std::time::Duration;

use super::archive::Limits;

/// How the image store behaves. [`Default`] is the documented default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Registries that are spoken to without TLS, as `host` or `host:port`. Those on `localhost` and 127.0.0.0/8 always
    /// are. Default: none.
    pub insecure_registries: Vec<String>,
    /// Certificates (PEM) that are trusted beside the system's. Default: none.
    pub extra_certificates: Vec<Vec<u8>>,
    /// Time until a registry's connection stands. Default: 10 s.
    pub connect_timeout: Duration,
    /// Longest silence of a registry within an answer. Default: 30 s.
    pub read_timeout: Duration,
    /// Time for one question to a registry (a digest, a manifest), authentication included. Default: 30 s.
    pub question_timeout: Duration,
    /// Images that are fetched at the same time; more wait. Default: 8.
    pub pulls: usize,
    /// Layers of one image that are fetched or unpacked at the same time. Default: 4.
    pub layers_at_once: usize,
    /// Layers of one image. Default: 128, as much as overlayfs and other runtimes take.
    pub layers: usize,
    /// Bytes of a manifest, an index or an image configuration. Default: 4 MiB.
    pub manifest_bytes: u64,
    /// Bytes of one compressed layer. Default: 8 GiB.
    pub layer_bytes: u64,
    /// Bytes of an image archive that is loaded, when unpacked. Default: 32 GiB.
    pub load_bytes: u64,
    /// What one layer may unpack to.
    pub layer_limits: Limits,
    /// Bytes of an uploaded source archive. Default: 256 MiB.
    pub source_bytes: u64,
    /// What a source archive may unpack to.
    pub source_limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            extra_certificates: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            question_timeout: Duration::from_secs(30),
            pulls: 8,
            layers_at_once: 4,
            layers: 128,
            manifest_bytes: 4 << 20,
            layer_bytes: 8 << 30,
            load_bytes: 32 << 30,
            layer_limits: Limits::layer(),
            source_bytes: 256 << 20,
            source_limits: Limits::source(),
        }
    }
}

impl Config {
    /// Whether a registry (`host` or `host:port`) is spoken to without TLS.
    pub fn is_insecure(&self, registry: &str) -> bool {
        let host = match registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => host,
            _ => registry,
        };
        let loopback = host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        host == "localhost"
            || loopback
            || self.insecure_registries.iter().any(|known| known == registry || known == host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_and_named_registries_go_without_tls() {
        let config = Config { insecure_registries: vec!["old.example:5000".into(), "lan".into()], ..Config::default() };
        let rows = [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("127.0.0.1.example", false),
            ("localhost.example:80", false),
            ("docker.io", false),
            ("old.example:5000", true),
            ("old.example", false),
            ("lan:7000", true),
        ];
        for (registry, insecure) in rows {
            assert_eq!(config.is_insecure(registry), insecure, "{registry}");
        }
    }
}
