//! `config-gateway`: what clients of the gateway may send, and how long they may take. Colibri's own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-gateway";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("max-connections", "50000", "client connections at once; further ones wait to be accepted"),
    key("max-connections-per-client", "25000", "of those, from one address or one IPv6 /64; further ones are closed"),
    key("max-header-bytes", "65536", "bytes of a request's head; more is answered 431"),
    key("max-headers", "100", "header fields of a request; more is answered 431"),
    key("max-uri-bytes", "16384", "bytes of a request's target; more is answered 414"),
    key("max-body-bytes", "none", "bytes of a request's body; more is answered 413"),
    key("header-timeout", "30s", "from the first byte of a head to its last; then 408"),
    key("body-timeout", "60s", "while an instance waits for an HTTP/1 body, so long without min-body-bytes; then 408"),
    key("min-body-bytes", "1", "bytes of a body that must come within each body-timeout"),
    key("idle-timeout", "120s", "without a request; then the connection is closed"),
    key("http2-max-streams", "256", "requests at once on an HTTP/2 connection"),
    key("http2-max-resets", "500", "streams a client may reset, and half of all beyond; then the connection is closed"),
    key(
        "http2-max-overhead-bytes",
        "1048576",
        "bytes of frames that carry nothing, beyond as many that do; then closed",
    ),
    key("ejection-failures", "5", "failures in a row for which an instance is taken out of rotation; 0: it never is"),
    key("ejection-time", "10s", "for how long, the first time; twice as long the second time, and so on"),
    key("ejection-max-time", "5m", "no longer than this"),
    key("ejection-max-percent", "50", "percent of a Revision's instances that may be out at once; never all of them"),
    key(
        "max-retries",
        "2",
        "times that a GET, HEAD, PUT, DELETE or the like without a body is sent again where its instance's connection ends without an answer",
    ),
    key("trusted-proxies", "", "networks such as 10.0.0.0/8, by comma: their Forwarded and X-Forwarded-* are kept"),
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

/// The values of `config-gateway`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// `max-connections`. Default 50,000.
    pub connections: usize,
    /// `max-connections-per-client`. Default 25,000.
    pub connections_per_client: usize,
    /// `max-header-bytes`. Default 64 KiB, at least 8 KiB.
    pub head_bytes: usize,
    /// `max-headers`. Default 100.
    pub header_fields: usize,
    /// `max-uri-bytes`. Default 16 KiB.
    pub target_bytes: usize,
    /// `max-body-bytes`; `None` is no limit, since bodies are streamed and never held. Default `None`.
    pub body_bytes: Option<u64>,
    /// `header-timeout`. Default 30 s.
    pub header_timeout: Duration,
    /// `body-timeout`. Default 60 s.
    pub body_timeout: Duration,
    /// `min-body-bytes`. Default 1.
    pub body_progress_bytes: u64,
    /// `idle-timeout`. Default 120 s.
    pub idle_timeout: Duration,
    /// `http2-max-streams`. Default 256.
    pub http2_streams: u32,
    /// `http2-max-resets`. Default 500.
    pub http2_resets: u32,
    /// `http2-max-overhead-bytes`. Default 1 MiB.
    pub http2_overhead_bytes: u64,
    /// When an instance is taken out of rotation.
    pub ejection: Ejection,
    /// `max-retries`; 0 sends no request twice. Default 2.
    pub retries: u32,
    /// `trusted-proxies`. Default none.
    pub trusted_proxies: Vec<NetworkRange>,
}

/// When an instance whose requests fail is taken out of rotation, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// `ejection-failures`; 0 is never. Default 5.
    pub failures: u32,
    /// `ejection-time`. Default 10 s.
    pub time: Duration,
    /// `ejection-max-time`. Default 5 minutes.
    pub max_time: Duration,
    /// `ejection-max-percent`. Default 50.
    pub max_percent: u32,
}

impl Default for Gateway {
    fn default() -> Self {
        Self::parse(&BTreeMap::new()).expect("the defaults are valid")
    }
}

impl Gateway {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let count = |key: &str, default: u32, least: u32| {
            let in_range = |number: &u32| (least..=1 << 30).contains(number);
            let wanted = format!("a whole number from {least} to {}", 1 << 30);
            read.value(key, default, &wanted, |text| text.parse().ok().filter(in_range))
        };
        let time = |key: &str, default: u64| {
            let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3_600);
            read.value(key, Duration::from_secs(default), "a duration from 1s to 24h", |text| {
                base::duration::parse(text).filter(|time| range.contains(time))
            })
        };
        Ok(Self {
            connections: count("max-connections", 50_000, 1)? as usize,
            connections_per_client: count("max-connections-per-client", 25_000, 1)? as usize,
            head_bytes: count("max-header-bytes", 64 * 1024, 8 * 1024)? as usize,
            header_fields: count("max-headers", 100, 1)? as usize,
            target_bytes: count("max-uri-bytes", 16 * 1024, 1)? as usize,
            body_bytes: read.value("max-body-bytes", None, "a whole number, or none", |text| {
                if text == "none" { Some(None) } else { text.parse().ok().map(Some) }
            })?,
            header_timeout: time("header-timeout", 30)?,
            body_timeout: time("body-timeout", 60)?,
            body_progress_bytes: count("min-body-bytes", 1, 1)?.into(),
            idle_timeout: time("idle-timeout", 120)?,
            http2_streams: count("http2-max-streams", 256, 1)?,
            http2_resets: count("http2-max-resets", 500, 1)?,
            http2_overhead_bytes: count("http2-max-overhead-bytes", 1024 * 1024, 1024)?.into(),
            ejection: Ejection {
                failures: count("ejection-failures", 5, 0)?,
                time: time("ejection-time", 10)?,
                max_time: time("ejection-max-time", 300)?,
                max_percent: read.value("ejection-max-percent", 50, "a whole number from 0 to 100", |text| {
                    text.parse().ok().filter(|percent| *percent <= 100)
                })?,
            },
            retries: count("max-retries", 2, 0)?,
            trusted_proxies: read.value("trusted-proxies", Vec::new(), "a list such as 10.0.0.0/8,::1", |text| {
                text.split(',').map(str::trim).filter(|range| !range.is_empty()).map(NetworkRange::parse).collect()
            })?,
        })
    }

    /// Whether what `address` says of the clients behind it is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|range| range.contains(address))
    }
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkRange {
    address: IpAddr,
    bits: u8,
}

impl NetworkRange {
    /// Reads `ADDRESS/BITS` or one address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let wide = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let differ = wide(self.address) ^ wide(address.to_canonical());
        self.address.is_ipv4() == address.to_canonical().is_ipv4() && differ.leading_zeros() >= u32::from(self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<Gateway, SettingError> {
        Gateway::parse(&[(key.to_owned(), value.to_owned())].into())
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        for Key { name, default, .. } in KEYS {
            assert_eq!(parse(name, default).unwrap(), Gateway::default(), "{name}");
        }
    }

    #[test]
    fn values_out_of_range_are_errors_that_say_what_is_wanted() {
        let error = parse("max-header-bytes", "100").unwrap_err().to_string();
        assert_eq!(error, "config-gateway: max-header-bytes = \"100\" is not a whole number from 8192 to 1073741824");
        for (key, value) in [("header-timeout", "0s"), ("max-body-bytes", "x"), ("trusted-proxies", "10.0.0.0/33")] {
            assert!(parse(key, value).is_err(), "{key}");
        }
        assert_eq!(parse("max-body-bytes", "5").unwrap().body_bytes, Some(5));
    }

    #[test]
    fn ranges_hold_the_addresses_that_begin_like_them() {
        let trusted = parse("trusted-proxies", "10.1.0.0/16, 2001:db8::/32, 192.0.2.1").unwrap();
        let rows = [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("::ffff:10.1.0.1", true),
            ("2001:db8:1::1", true),
            ("2001:db9::", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
        ];
        for (address, want) in rows {
            assert_eq!(trusted.trusts(address.parse().unwrap()), want, "{address}");
        }
        assert!(parse("trusted-proxies", "0.0.0.0/0").unwrap().trusts("1.2.3.4".parse().unwrap()));
        assert!(!parse("trusted-proxies", "::/0").unwrap().trusts("1.2.3.4".parse().unwrap()));
        assert!(!Gateway::default().trusts("127.0.0.1".parse().unwrap()));
    }
}
