//! The table from hosts to revisions.
//!
//! [`hosts_of`] is pure: it reads a Route's status and how tags are named, nothing else. [`Table`] keeps what it says of
//! all Routes in 64 snapshots that readers load without a lock; a change of one Route copies only the snapshots that its
//! hosts are in.
//!
//! Two Routes that claim one host: a Route's own name wins over a tag's, then the Route that comes first by namespace
//! and name.
//!
//! A DomainMapping makes its domain an alias of a name inside the cluster, for the public. It never hides a Route: a
//! public host of a Route goes before it, and pods reach a name of the cluster as they would without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv6Addr;
use std::sync::Arc;

use api::config::network::Network;
use api::serving::Route;
use api::serving::annotations::VISIBILITY_LABEL;
use arc_swap::ArcSwap;
use base::{RevisionId, RouteId};
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::random::below;

/// Longest host name that can match.
pub const HOST_LIMIT_BYTES: usize = 253;
const SHARDS: usize = 64;

/// Where requests for one host go; `R` stands for a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets<R> {
    /// Shares of the traffic; those without a share are left out.
    pub shares: Vec<(u32, R)>,
    /// Targets by tag.
    pub tags: Vec<(Box<str>, R)>,
}

/// One host as a Route claims it.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The host: lower case, no port.
    pub host: Arc<str>,
    /// Whether the public listeners serve it.
    pub public: bool,
    /// Whether the host belongs to a tag.
    pub of_tag: bool,
    /// Where its requests go.
    pub targets: Arc<Targets<RevisionId>>,
}

/// The hosts that a Route claims.
///
/// Public ones from `status.url` and the tags' URLs; for the pod network also `NAME.NS.svc.cluster.local`,
/// `NAME.NS.svc` and `NAME.NS`, with the name by `tag-template` in place of `NAME` for a tag.
pub fn hosts_of(route: &Route, settings: &Network) -> Vec<Claim> {
    let (Some(status), Some(namespace)) = (&route.status, route.namespace()) else {
        return Vec::new();
    };
    let name = route.name_any();
    let cluster_local = route.labels().get(VISIBILITY_LABEL).is_some_and(|value| value == "cluster-local");
    let revision = |t: &api::serving::TrafficTarget| {
        t.revision_name.as_deref().map(|revision| RevisionId::new(&namespace, revision))
    };
    let mut shares = Vec::new();
    let mut tags: Vec<(Box<str>, RevisionId)> = Vec::new();
    for target in &status.traffic {
        let Some(id) = revision(target) else { continue };
        if let Some(share) = target.percent.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0) {
            shares.push((share, id.clone()));
        }
        if let Some(tag) = target.tag.as_deref().filter(|tag| !tag.is_empty()) {
            tags.push((tag.into(), id));
        }
    }
    let main = Arc::new(Targets { shares, tags });
    let mut claims = Vec::new();
    let address = status.address.as_ref().and_then(|address| address.url.as_deref());
    claim_names(&mut claims, &name, &namespace, [status.url.as_deref(), address], cluster_local, false, &main);
    for target in &status.traffic {
        if let (Some(tag), Some(id)) = (target.tag.as_deref().filter(|tag| !tag.is_empty()), revision(target)) {
            let only = Arc::new(Targets { shares: vec![(1, id)], tags: Vec::new() });
            let name = settings.tag_name(tag, &name);
            claim_names(&mut claims, &name, &namespace, [target.url.as_deref(), None], cluster_local, true, &only);
        }
    }
    claims
}

fn claim_names(
    claims: &mut Vec<Claim>,
    name: &str,
    namespace: &str,
    urls: [Option<&str>; 2],
    cluster_local: bool,
    of_tag: bool,
    targets: &Arc<Targets<RevisionId>>,
) {
    let mut hosts: BTreeMap<String, bool> = ["", ".svc", ".svc.cluster.local"]
        .into_iter()
        .map(|suffix| (format!("{name}.{namespace}{suffix}"), false))
        .collect();
    for host in urls.into_iter().flatten().filter_map(host_of_url) {
        let public = !cluster_local && !is_cluster_host(&host);
        hosts.entry(host).or_insert(public);
    }
    claims.extend(hosts.into_iter().map(|(host, public)| {
        let targets = targets.clone();
        Claim { host: host.into(), public, of_tag, targets }
    }));
}

fn is_cluster_host(host: &str) -> bool {
    host.ends_with(".svc.cluster.local") || host.ends_with(".svc")
}

fn host_of_url(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let host = uri.host()?.trim_end_matches('.').to_ascii_lowercase();
    (!host.is_empty() && host.len() <= HOST_LIMIT_BYTES).then_some(host)
}

impl<R> Targets<R> {
    /// The target of a tag.
    pub fn tagged(&self, tag: &[u8]) -> Option<&R> {
        self.tags.iter().find(|(name, _)| name.as_bytes() == tag).map(|(_, revision)| revision)
    }

    /// Picks a target by its share of the traffic; `random` is uniform.
    pub fn pick(&self, random: u64) -> Option<&R> {
        match self.shares.as_slice() {
            [] => None,
            [(_, only)] => Some(only),
            shares => {
                let total: usize = shares.iter().map(|(share, _)| *share as usize).sum();
                let mut left = below(random, total);
                for (share, revision) in shares {
                    match left.checked_sub(*share as usize) {
                        Some(rest) => left = rest,
                        None => return Some(revision),
                    }
                }
                None
            }
        }
    }
}

/// Brings a Host header's value, or the authority of a URL, into the form of the table: lower case, no port, no dot at
/// the end. `None` for what is no host name or address; a name in other letters comes as punycode (`xn--`).
///
/// Writes into `buffer` instead of allocating.
pub fn normalise<'b>(authority: &[u8], buffer: &'b mut [u8; HOST_LIMIT_BYTES]) -> Option<&'b str> {
    let colon = authority.iter().rposition(|byte| *byte == b':').filter(|_| authority.last() != Some(&b']'));
    let (host, port) = colon.map_or((authority, &b""[..]), |colon| (&authority[..colon], &authority[colon + 1..]));
    let is_port = port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    if !is_port || port.iter().fold(0, |sum: u32, digit| sum * 10 + u32::from(digit - b'0')) > u16::MAX.into() {
        return None;
    }
    let host = host.strip_suffix(b".").unwrap_or(host);
    let is_host = match host {
        [] => false,
        [b'[', address @ .., b']'] => std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()),
        name => name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)) && has_labels(name),
    };
    if !is_host || host.len() > HOST_LIMIT_BYTES {
        return None;
    }
    let buffer = &mut buffer[..host.len()];
    buffer.copy_from_slice(host);
    buffer.make_ascii_lowercase();
    std::str::from_utf8(buffer).ok()
}

/// Whether no label of a name is empty.
fn has_labels(name: &[u8]) -> bool {
    name[0] != b'.' && name.last() != Some(&b'.') && !name.windows(2).any(|pair| pair == b"..")
}

/// One host as it is served.
#[derive(Debug)]
pub struct Entry<R> {
    /// Where requests of the public go; `None` where the public listeners do not serve the host.
    pub public: Option<Arc<Targets<R>>>,
    /// Where requests of pods go.
    pub inside: Arc<Targets<R>>,
    /// Whether the public's way is a DomainMapping's.
    pub mapped: bool,
}

type Shard<R> = HashMap<Arc<str>, Arc<Entry<R>>>;
/// Claims of one host, each with whether it is public; the first one is served.
type Claims<R> = BTreeMap<(bool, RouteId), (bool, Arc<Targets<R>>)>;

struct Writer<R> {
    hosts: HashMap<RouteId, Vec<Arc<str>>>,
    claims: HashMap<Arc<str>, Claims<R>>,
    /// Hosts that lead where others lead.
    aliases: HashMap<Arc<str>, Arc<str>>,
    /// The same, from the other end.
    aliases_of: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl<R> Writer<R> {
    /// How a host is served.
    fn entry(&self, host: &str) -> Option<Entry<R>> {
        let of = |host: &str| self.claims.get(host).map(|claims| claims.values()).into_iter().flatten();
        let public = of(host).find(|(public, _)| *public).map(|(_, targets)| targets.clone());
        let inside = of(host).next().map(|(_, targets)| targets.clone());
        let alias = self.aliases.get(host).filter(|_| public.is_none());
        let alias = alias.and_then(|target| of(target).next()).map(|(_, targets)| targets.clone());
        let mapped = alias.is_some();
        let public = public.or(alias);
        let inside = inside.or_else(|| public.clone())?;
        Some(Entry { public, inside, mapped })
    }
}

/// All hosts.
pub struct Table<R> {
    shards: Vec<ArcSwap<Shard<R>>>,
    hasher: RandomState,
    writer: Mutex<Writer<R>>,
}

impl<R: Clone> Default for Table<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Clone> Table<R> {
    /// An empty table.
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::from_pointee(HashMap::new())).collect();
        let writer = Mutex::new(Writer {
            hosts: HashMap::new(),
            claims: HashMap::new(),
            aliases: HashMap::new(),
            aliases_of: HashMap::new(),
        });
        Self { shards, hasher: RandomState::new(), writer }
    }

    /// The entry of a host in the form that [`normalise`] makes.
    pub fn get(&self, host: &str) -> Option<Arc<Entry<R>>> {
        self.shards[self.shard_of(host)].load().get(host).cloned()
    }

    /// Replaces what one Route claims; nothing for a Route that is gone.
    pub fn set(&self, route: &RouteId, claims: &[Claim], mut resolve: impl FnMut(&RevisionId) -> R) {
        let mut writer = self.writer.lock();
        let mut touched = writer.hosts.remove(route).unwrap_or_default();
        for host in &touched {
            if let Some(of_host) = writer.claims.get_mut(host) {
                of_host.retain(|(_, claimant), _| claimant != route);
            }
        }
        for claim in claims {
            let targets = Arc::new(claim.targets.map(&mut resolve));
            let of_host = writer.claims.entry(claim.host.clone()).or_default();
            of_host.entry((claim.of_tag, route.clone())).or_insert((claim.public, targets));
            touched.push(claim.host.clone());
        }
        if !claims.is_empty() {
            writer.hosts.insert(route.clone(), claims.iter().map(|claim| claim.host.clone()).collect());
        }
        self.publish(&mut writer, touched);
    }

    /// Lets the public reach under `host` what `target` leads to, a name inside the cluster; `None` ends that.
    pub fn alias(&self, host: &str, target: Option<&str>) {
        let host: Arc<str> = host.into();
        let mut writer = self.writer.lock();
        let present = writer.aliases.remove(&host);
        if present.as_deref() == target {
            if let Some(present) = present {
                writer.aliases.insert(host, present);
            }
            return;
        }
        if let Some(present) = present
            && let Some(hosts) = writer.aliases_of.get_mut(&present)
        {
            hosts.remove(&host);
            if hosts.is_empty() {
                writer.aliases_of.remove(&present);
            }
        }
        if let Some(target) = target.map(Arc::<str>::from) {
            writer.aliases_of.entry(target.clone()).or_default().insert(host.clone());
            writer.aliases.insert(host.clone(), target);
        }
        self.publish(&mut writer, vec![host]);
    }

    fn publish(&self, writer: &mut Writer<R>, mut touched: Vec<Arc<str>>) {
        let aliases: Vec<_> =
            touched.iter().filter_map(|host| writer.aliases_of.get(host)).flatten().cloned().collect();
        touched.extend(aliases);
        let mut changed: BTreeMap<usize, Shard<R>> = BTreeMap::new();
        for host in touched {
            let index = self.shard_of(&host);
            let shard = changed.entry(index).or_insert_with(|| self.shards[index].load().as_ref().clone());
            if writer.claims.get(&host).is_some_and(BTreeMap::is_empty) {
                writer.claims.remove(&host);
            }
            match writer.entry(&host) {
                Some(entry) => {
                    shard.insert(host, Arc::new(entry));
                }
                None => {
                    shard.remove(&host);
                }
            }
        }
        for (index, shard) in changed {
            self.shards[index].store(Arc::new(shard));
        }
    }

    fn shard_of(&self, host: &str) -> usize {
        // The top bits: the map inside the shard uses a hasher of its own.
        (self.hasher.hash_one(host) >> 58) as usize % SHARDS
    }
}

impl Targets<RevisionId> {
    fn map<R>(&self, resolve: &mut impl FnMut(&RevisionId) -> R) -> Targets<R> {
        let shares = self.shares.iter().map(|(share, id)| (*share, resolve(id))).collect();
        let tags = self.tags.iter().map(|(tag, id)| (tag.clone(), resolve(id))).collect();
        Targets { shares, tags }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::random::Random;

    fn route(name: &str, labels: Value, status: Value) -> Route {
        let route = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "spec": {},
            "metadata": {"name": name, "namespace": "ns", "labels": labels}, "status": status});
        serde_json::from_value(route).unwrap()
    }

    fn canary() -> Value {
        json!({"url": "http://hello.ns.localhost:8080",
        "address": {"url": "http://hello.ns.svc.cluster.local"},
        "traffic": [
            {"revisionName": "hello-1", "percent": 90},
            {"revisionName": "hello-2", "percent": 10, "tag": "next", "url": "http://next-hello.ns.localhost:8080"},
        ]})
    }

    #[test]
    fn hosts_come_from_the_status() {
        let claims = hosts_of(&route("hello", json!({}), canary()), &Network::default());
        let hosts: Vec<(&str, bool)> = claims.iter().map(|c| (&*c.host, c.public)).collect();
        let want = [
            ("hello.ns", false),
            ("hello.ns.localhost", true),
            ("hello.ns.svc", false),
            ("hello.ns.svc.cluster.local", false),
            ("next-hello.ns", false),
            ("next-hello.ns.localhost", true),
            ("next-hello.ns.svc", false),
            ("next-hello.ns.svc.cluster.local", false),
        ];
        assert_eq!(hosts, want);
        assert_eq!(claims[0].targets.shares.len(), 2);
        assert_eq!(claims[5].targets.shares, [(1, RevisionId::new("ns", "hello-2"))]);
    }

    #[test]
    fn tags_are_named_as_the_settings_say() {
        let data = [("tag-template".to_owned(), "{{.Name}}-at-{{.Tag}}".to_owned())].into();
        let claims = hosts_of(&route("hello", json!({}), canary()), &Network::parse(&data).unwrap());
        let hosts: Vec<&str> = claims.iter().filter(|claim| claim.of_tag).map(|claim| &*claim.host).collect();
        // The public host is the status's.
        let inside = ["hello-at-next.ns", "hello-at-next.ns.svc", "hello-at-next.ns.svc.cluster.local"];
        assert_eq!(hosts, [&inside[..], &["next-hello.ns.localhost"]].concat());
    }

    #[test]
    fn a_cluster_local_route_has_no_public_host() {
        let labels = json!({VISIBILITY_LABEL: "cluster-local"});
        assert!(hosts_of(&route("hello", labels, canary()), &Network::default()).iter().all(|claim| !claim.public));
        let private = json!({"url": "http://hello.ns.svc.cluster.local", "traffic": []});
        assert!(hosts_of(&route("hello", json!({}), private), &Network::default()).iter().all(|claim| !claim.public));
        assert!(hosts_of(&route("hello", json!({}), Value::Null), &Network::default()).is_empty());
    }

    #[test]
    fn shares_are_kept() {
        let targets = Targets { shares: vec![(90, 'a'), (9, 'b'), (1, 'c')], tags: vec![("t".into(), 'b')] };
        let random = Random::new(42);
        let mut counts: BTreeMap<char, u32> = BTreeMap::new();
        for _ in 0..100_000 {
            *counts.entry(*targets.pick(random.next()).unwrap()).or_default() += 1;
        }
        let near = |name, want: u32| counts[&name].abs_diff(want) < 400;
        assert!(near('a', 90_000) && near('b', 9_000) && near('c', 1_000), "{counts:?}");
        assert_eq!((targets.tagged(b"t"), targets.tagged(b"x")), (Some(&'b'), None));
        assert_eq!(Targets::<char> { shares: vec![], tags: vec![] }.pick(1), None);
    }

    #[test]
    fn a_name_wins_over_a_tag_and_comes_back_when_the_winner_goes() {
        let table = Table::new();
        let claim = |of_tag, revision: &str| Claim {
            host: "a-b.ns.localhost".into(),
            public: true,
            of_tag,
            targets: Arc::new(Targets { shares: vec![(1, RevisionId::new("ns", revision))], tags: vec![] }),
        };
        let (tag, name) = (RouteId::new("ns", "b"), RouteId::new("ns", "z"));
        let served = |table: &Table<RevisionId>| {
            table.get("a-b.ns.localhost").map(|entry| entry.inside.pick(0).unwrap().name.to_string())
        };
        table.set(&tag, &[claim(true, "tagged")], Clone::clone);
        assert_eq!(served(&table).as_deref(), Some("tagged"));
        table.set(&name, &[claim(false, "named")], Clone::clone);
        assert_eq!(served(&table).as_deref(), Some("named"));
        table.set(&name, &[], Clone::clone);
        assert_eq!(served(&table).as_deref(), Some("tagged"));
        table.set(&tag, &[], Clone::clone);
        assert_eq!(served(&table), None);
    }

    #[test]
    fn a_mapped_domain_follows_its_target_and_hides_no_route() {
        let table = Table::new();
        let claim = |host: &str, public, revision: &str| Claim {
            host: host.into(),
            public,
            of_tag: false,
            targets: Arc::new(Targets { shares: vec![(1, RevisionId::new("ns", revision))], tags: vec![] }),
        };
        // What the public gets, and what pods get.
        let served = |host: &str| {
            let name = |targets: &Targets<RevisionId>| targets.pick(0).unwrap().name.to_string();
            let entry = table.get(host);
            let entry = entry.as_ref().map(|entry| (entry.public.as_deref().map(name), name(&entry.inside)));
            entry.unwrap_or_default()
        };
        let both = |name: &str| (Some(name.to_owned()), name.to_owned());
        let nothing = (None, String::new());
        let (a, b, other) = (RouteId::new("ns", "a"), RouteId::new("ns", "b"), RouteId::new("com", "shop"));
        table.alias("shop.com", Some("a.ns.svc.cluster.local"));
        assert_eq!(served("shop.com"), nothing, "its target does not exist yet");
        table.set(&a, &[claim("a.ns.svc.cluster.local", false, "a-1")], Clone::clone);
        assert_eq!(served("shop.com"), both("a-1"));
        assert_eq!(served("a.ns.svc.cluster.local"), (None, "a-1".to_owned()), "the name stays inside");
        table.set(&a, &[claim("a.ns.svc.cluster.local", false, "a-2")], Clone::clone);
        assert_eq!(served("shop.com"), both("a-2"), "it follows");
        table.set(&b, &[claim("b.ns.svc.cluster.local", false, "b-1")], Clone::clone);
        table.alias("shop.com", Some("b.ns.svc.cluster.local"));
        assert_eq!(served("shop.com"), both("b-1"));
        table.set(&a, &[], Clone::clone);
        assert_eq!(served("shop.com"), both("b-1"), "what it left behind is nothing to it");

        table.set(&other, &[claim("shop.com", false, "inside")], Clone::clone);
        assert_eq!(served("shop.com"), (Some("b-1".to_owned()), "inside".to_owned()), "each to its own");
        table.set(&other, &[claim("shop.com", true, "outside")], Clone::clone);
        assert_eq!(served("shop.com"), both("outside"), "a Route's host is the Route's");
        table.set(&other, &[], Clone::clone);
        assert_eq!(served("shop.com"), both("b-1"));
        table.alias("shop.com", None);
        assert_eq!(served("shop.com"), nothing);
        assert!(table.writer.lock().aliases_of.is_empty());
    }

    #[test]
    fn hosts_are_normalised() {
        let rows = [
            ("hello", Some("hello")),
            ("Hello.NS.localhost:8080", Some("hello.ns.localhost")),
            ("hello.", Some("hello")),
            ("hello.:80", Some("hello")),
            ("hello:", Some("hello")),
            ("a_b.c", Some("a_b.c")),
            ("XN--BCHER-KVA.example", Some("xn--bcher-kva.example")),
            ("b\u{fc}cher.example", None),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:80", Some("[::1]")),
            ("[FE80::A]", Some("[fe80::a]")),
            ("[::1", None),
            ("[x]", None),
            ("::1", None),
            ("hello:65535", Some("hello")),
            ("hello:65536", None),
            ("hello:+80", None),
            ("hello:80:80", None),
            ("hello:x", None),
            ("hello..", None),
            (".hello", None),
            ("a..b", None),
            (".", None),
            (":80", None),
            ("", None),
            ("user@hello", None),
            ("hello@", None),
            ("h%65llo", None),
            ("hello/x", None),
            ("hello?", None),
            ("hello, other", None),
            (" hello", None),
            ("hel\0lo", None),
        ];
        for (given, want) in rows {
            assert_eq!(normalise(given.as_bytes(), &mut [0; HOST_LIMIT_BYTES]), want, "{given}");
        }
        assert_eq!(normalise(&[b'a'; 254], &mut [0; HOST_LIMIT_BYTES]), None);
    }

    proptest! {
        #[test]
        fn no_host_header_panics(bytes: Vec<u8>) {
            let _ = normalise(&bytes, &mut [0; HOST_LIMIT_BYTES]);
        }

        /// What comes out is in the form of the table already, and says nothing that did not go in.
        #[test]
        fn a_normal_host_stays_as_it_is(host in "[A-Za-z0-9._:\\[\\]%@-]{0,20}") {
            let (mut first, mut second) = ([0; HOST_LIMIT_BYTES], [0; HOST_LIMIT_BYTES]);
            if let Some(normal) = normalise(host.as_bytes(), &mut first) {
                prop_assert!(host.to_ascii_lowercase().starts_with(normal));
                prop_assert_eq!(normalise(normal.as_bytes(), &mut second), Some(normal));
            }
        }
    }
}
