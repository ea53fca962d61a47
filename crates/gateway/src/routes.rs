//! The table from hosts to revisions.
//!
//! [`hosts_of`] is pure: it reads a Route's status and how tags are named, nothing else. [`Table`] keeps what it says of
//! all Routes in so many small buckets, which readers load without a lock, that a lookup and a change of one Route cost
//! the same with 20,000 Routes as with 20.
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
use std::sync::atomic::{AtomicUsize, Ordering};

use api::config::network::{HttpProtocol, Network};
use api::serving::Route;
use api::serving::annotations::{self, VISIBILITY_LABEL};
use arc_swap::ArcSwapOption;
use base::{RevisionId, RouteId};
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::random::Random;

/// Longest host name that can match.
pub const HOST_LIMIT_BYTES: usize = 253;
const BUCKETS_LOG2: u32 = 14;

/// Where requests for one host go; `R` stands for a revision.
#[derive(Debug)]
pub struct Targets<R> {
    shares: Vec<(u32, R)>,
    tags: Vec<(Box<str>, R)>,
    /// Whose turn it is, as places in `shares`, over and over: of any requests in a row, as many as there are turns,
    /// each target gets exactly its share.
    turns: Box<[u16]>,
    next: AtomicUsize,
}

impl<R: PartialEq> PartialEq for Targets<R> {
    fn eq(&self, other: &Self) -> bool {
        self.shares == other.shares && self.tags == other.tags
    }
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
    /// What the public gets without TLS.
    pub http: HttpProtocol,
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
        if let Some(share) = target.percent.and_then(|p| u32::try_from(p).ok()).filter(|p| (1..=100).contains(p)) {
            shares.push((share, id.clone()));
        }
        if let Some(tag) = target.tag.as_deref().filter(|tag| !tag.is_empty()) {
            tags.push((tag.into(), id));
        }
    }
    let main = Arc::new(Targets::new(shares, tags, 0));
    let mut claims = Vec::new();
    let address = status.address.as_ref().and_then(|address| address.url.as_deref());
    let own = annotations::value(route.annotations(), annotations::HTTP_PROTOCOL).and_then(HttpProtocol::parse);
    let http = own.unwrap_or(settings.http_protocol);
    claim_names(&mut claims, &name, &namespace, [status.url.as_deref(), address], cluster_local, false, &main);
    for target in &status.traffic {
        if let (Some(tag), Some(id)) = (target.tag.as_deref().filter(|tag| !tag.is_empty()), revision(target)) {
            let only = Arc::new(Targets::new(vec![(1, id)], Vec::new(), 0));
            let name = settings.tag_name(tag, &name);
            claim_names(&mut claims, &name, &namespace, [target.url.as_deref(), None], cluster_local, true, &only);
        }
    }
    claims.iter_mut().for_each(|claim| claim.http = http);
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
        Claim { host: host.into(), public, of_tag, http: HttpProtocol::Enabled, targets }
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

    /// The shares of the traffic.
    pub fn shares(&self) -> &[(u32, R)] {
        &self.shares
    }

    /// The target whose turn it is.
    pub fn pick(&self) -> Option<&R> {
        let place = match self.turns.len() {
            // Nearly all hosts have one target; they share no counter.
            0 | 1 => 0,
            turns => self.turns[self.next.fetch_add(1, Ordering::Relaxed) % turns].into(),
        };
        self.shares.get(place).map(|(_, revision)| revision)
    }

    /// Targets by their shares of the traffic, and by tag; the turn `start` is the first.
    pub fn new(shares: Vec<(u32, R)>, tags: Vec<(Box<str>, R)>, start: u64) -> Self {
        let turns = turns(&shares.iter().map(|(share, _)| *share).collect::<Vec<_>>());
        let next = AtomicUsize::new((start % 1_000_000) as usize);
        Self { shares, tags, turns, next }
    }
}

/// Whose turn it is, spread evenly: smooth weighted round-robin, as in nginx.
fn turns(shares: &[u32]) -> Box<[u16]> {
    let divisor = shares.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<i64> = shares.iter().map(|share| i64::from(share / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut due = vec![0; weights.len()];
    let turns = (0..total).map(|_| {
        due.iter_mut().zip(&weights).for_each(|(due, weight)| *due += weight);
        // Of those that are due alike, the first.
        let most = (0..due.len()).rev().max_by_key(|at| due[*at]).expect("a turn has a target");
        due[most] -= total;
        u16::try_from(most).unwrap_or(u16::MAX)
    });
    turns.collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
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
    /// What the public gets without TLS.
    pub http: HttpProtocol,
}

/// What a Route names, and what that is.
type Resolved<'r, R> = (&'r Arc<Targets<RevisionId>>, Arc<Targets<R>>);
/// Hosts whose hashes begin alike, each with its hash, so that others are passed over without a look at their names.
type Bucket<R> = Box<[(u64, Arc<str>, Arc<Entry<R>>)]>;
/// Claims of one host, each with whether it is public; the first one is served.
type Claims<R> = BTreeMap<(bool, RouteId), (bool, HttpProtocol, Arc<Targets<R>>)>;
/// Where a host leads that leads where another one does, and what it gets without TLS if not the same.
type Alias = (Arc<str>, Option<HttpProtocol>);

struct Writer<R> {
    /// What each Route claims.
    routes: HashMap<RouteId, Vec<Claim>>,
    claims: HashMap<Arc<str>, Claims<R>>,
    /// Hosts that lead where others lead.
    aliases: HashMap<Arc<str>, Alias>,
    /// The same, from the other end.
    aliases_of: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl<R> Writer<R> {
    /// How a host is served.
    fn entry(&self, host: &str) -> Option<Entry<R>> {
        let of = |host: &str| self.claims.get(host).map(|claims| claims.values()).into_iter().flatten();
        let public = of(host).find(|(public, ..)| *public).map(|(_, http, targets)| (*http, targets.clone()));
        let inside = of(host).next().map(|(.., targets)| targets.clone());
        let alias = self.aliases.get(host).filter(|_| public.is_none());
        let alias = alias.and_then(|(target, own)| {
            of(target).next().map(|(_, http, targets)| (own.unwrap_or(*http), targets.clone()))
        });
        let mapped = alias.is_some();
        let (http, public) = public.or(alias).map_or((HttpProtocol::Enabled, None), |(http, to)| (http, Some(to)));
        let inside = inside.or_else(|| public.clone())?;
        Some(Entry { public, inside, mapped, http })
    }
}

/// All hosts.
pub struct Table<R> {
    buckets: Vec<ArcSwapOption<Bucket<R>>>,
    hasher: RandomState,
    random: Random,
    writer: Mutex<Writer<R>>,
}

impl<R: Clone> Table<R> {
    /// An empty table; `seed` says whose turn is the first.
    pub fn new(seed: u64) -> Self {
        let buckets = (0..1 << BUCKETS_LOG2).map(|_| ArcSwapOption::empty()).collect();
        let writer = Mutex::new(Writer {
            routes: HashMap::new(),
            claims: HashMap::new(),
            aliases: HashMap::new(),
            aliases_of: HashMap::new(),
        });
        Self { buckets, hasher: RandomState::new(), random: Random::new(seed), writer }
    }

    /// The entry of a host in the form that [`normalise`] makes.
    pub fn get(&self, host: &str) -> Option<Arc<Entry<R>>> {
        let hash = self.hasher.hash_one(host);
        let bucket = self.bucket_of(hash).load();
        let mut hosts = bucket.as_ref()?.iter();
        hosts.find(|(other, name, _)| *other == hash && **name == *host).map(|(_, _, entry)| entry.clone())
    }

    /// Replaces what one Route claims; nothing for a Route that is gone. Turns go on where the targets stay.
    pub fn set(&self, route: &RouteId, claims: &[Claim], mut resolve: impl FnMut(&RevisionId) -> R) {
        let mut writer = self.writer.lock();
        let before = writer.routes.remove(route).unwrap_or_default();
        let mut removed = Vec::with_capacity(before.len());
        for Claim { host, of_tag, .. } in &before {
            let of_host = writer.claims.get_mut(host);
            removed.push(of_host.and_then(|of_host| of_host.remove(&(*of_tag, route.clone()))));
        }
        // The hosts of one Route share their turns.
        let mut resolved: Vec<Resolved<'_, R>> = Vec::new();
        for (claim, removed) in before.iter().zip(removed) {
            if let Some((.., targets)) = removed
                && let Some(same) = claims.iter().find(|new| new.of_tag == claim.of_tag && new.targets == claim.targets)
                && !resolved.iter().any(|(of, _)| Arc::ptr_eq(of, &same.targets))
            {
                resolved.push((&same.targets, targets));
            }
        }
        for claim in claims {
            let known =
                resolved.iter().find(|(of, _)| Arc::ptr_eq(of, &claim.targets)).map(|(_, targets)| targets.clone());
            let targets = known.unwrap_or_else(|| {
                let targets = Arc::new(claim.targets.map(&mut resolve, self.random.next()));
                resolved.push((&claim.targets, targets.clone()));
                targets
            });
            let of_host = writer.claims.entry(claim.host.clone()).or_default();
            of_host.entry((claim.of_tag, route.clone())).or_insert((claim.public, claim.http, targets));
        }
        let touched = before.iter().chain(claims).map(|claim| claim.host.clone()).collect();
        if !claims.is_empty() {
            writer.routes.insert(route.clone(), claims.to_vec());
        }
        self.publish(&mut writer, touched);
    }

    /// Lets the public reach under `host` what `target` leads to, a name inside the cluster; `None` ends that. Without
    /// `http` the host's requests without TLS get what the target's get.
    pub fn alias(&self, host: &str, target: Option<&str>, http: Option<HttpProtocol>) {
        let host: Arc<str> = host.into();
        let mut writer = self.writer.lock();
        let present = writer.aliases.remove(&host);
        if present.as_ref().map(|(target, http)| (&**target, *http)) == target.map(|target| (target, http)) {
            if let Some(present) = present {
                writer.aliases.insert(host, present);
            }
            return;
        }
        if let Some((present, _)) = present
            && let Some(hosts) = writer.aliases_of.get_mut(&present)
        {
            hosts.remove(&host);
            if hosts.is_empty() {
                writer.aliases_of.remove(&present);
            }
        }
        if let Some(target) = target.map(Arc::<str>::from) {
            writer.aliases_of.entry(target.clone()).or_default().insert(host.clone());
            writer.aliases.insert(host.clone(), (target, http));
        }
        self.publish(&mut writer, vec![host]);
    }

    fn publish(&self, writer: &mut Writer<R>, mut touched: Vec<Arc<str>>) {
        let aliases: Vec<_> =
            touched.iter().filter_map(|host| writer.aliases_of.get(host)).flatten().cloned().collect();
        touched.extend(aliases);
        touched.sort_unstable();
        touched.dedup();
        for host in touched {
            if writer.claims.get(&host).is_some_and(BTreeMap::is_empty) {
                writer.claims.remove(&host);
            }
            let hash = self.hasher.hash_one(&*host);
            let bucket = self.bucket_of(hash);
            let present = bucket.load_full();
            let others = present.iter().flat_map(|hosts| hosts.iter()).filter(|(_, other, _)| *other != host);
            let mut hosts: Vec<_> = others.cloned().collect();
            if let Some(entry) = writer.entry(&host) {
                hosts.push((hash, host, Arc::new(entry)));
            }
            bucket.store((!hosts.is_empty()).then(|| Arc::new(hosts.into())));
        }
    }

    fn bucket_of(&self, hash: u64) -> &ArcSwapOption<Bucket<R>> {
        &self.buckets[(hash >> (u64::BITS - BUCKETS_LOG2)) as usize]
    }
}

impl Targets<RevisionId> {
    fn map<R>(&self, resolve: &mut impl FnMut(&RevisionId) -> R, start: u64) -> Targets<R> {
        let shares = self.shares.iter().map(|(share, id)| (*share, resolve(id))).collect();
        let tags = self.tags.iter().map(|(tag, id)| (tag.clone(), resolve(id))).collect();
        Targets::new(shares, tags, start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

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
    fn turns_are_spread_evenly() {
        let of = |shares: &[u32]| turns(shares).iter().map(|place| char::from(b'a' + *place as u8)).collect::<String>();
        assert_eq!(
            (of(&[100]), of(&[50, 50]), of(&[80, 20]), of(&[])),
            ("a".into(), "ab".into(), "aabaa".into(), "".into())
        );
        assert_eq!(of(&[50, 30, 20]), "abcaabacba");
        let targets = Targets::new(vec![(90, 'a'), (10, 'b')], vec![("t".into(), 'b')], 3);
        assert_eq!((targets.tagged(b"t"), targets.tagged(b"x")), (Some(&'b'), None));
        assert_eq!(Targets::<char>::new(vec![], vec![], 1).pick(), None);
    }

    /// A Route `r` with these shares of revisions `0`, `1`, ..., and a tag of its own for the first.
    fn split(shares: &[u32]) -> Vec<Claim> {
        let traffic =
            shares.iter().enumerate().map(|(at, share)| json!({"revisionName": at.to_string(), "percent": share}));
        let tag = json!({"revisionName": "0", "tag": "t", "url": "http://t-r.ns.localhost"});
        let status = json!({"url": "http://r.ns.localhost", "traffic": traffic.chain([tag]).collect::<Vec<_>>()});
        hosts_of(&route("r", json!({}), status), &Network::default())
    }

    fn picked(table: &Table<RevisionId>, host: &str) -> usize {
        table.get(host).unwrap().inside.pick().unwrap().name.parse().unwrap()
    }

    #[test]
    fn turns_go_on_while_the_targets_stay_and_a_routes_hosts_share_them() {
        let (table, id) = (Table::new(7), RouteId::new("ns", "r"));
        let claims = split(&[99, 1]);
        table.set(&id, &claims, Clone::clone);
        let hosts = ["r.ns.localhost", "r.ns", "r.ns.svc", "r.ns.svc.cluster.local"];
        let mut seconds = 0;
        for turn in 0..1000 {
            seconds += picked(&table, hosts[turn % hosts.len()]);
            // The Route's status is written often; most of what it says is the same.
            table.set(&id, &split(&[99, 1]), Clone::clone);
            assert_eq!(picked(&table, "t-r.ns.localhost"), 0);
        }
        assert_eq!(seconds, 10);
        table.set(&id, &split(&[0, 100]), Clone::clone);
        assert_eq!(picked(&table, "r.ns.localhost"), 1);
        table.set(&id, &[], Clone::clone);
        assert!(table.get("r.ns.localhost").is_none() && table.writer.lock().claims.is_empty());
    }

    #[test]
    fn a_change_copies_no_more_with_20_000_routes() {
        let table = Table::new(1);
        for number in 0..20_000 {
            let name = format!("app-{number}");
            let status = json!({"url": format!("http://{name}.ns.localhost"), "traffic": [{"revisionName": "a", "percent": 100}]});
            let claims = hosts_of(&route(&name, json!({}), status), &Network::default());
            table.set(&RouteId::new("ns", &name), &claims, Clone::clone);
        }
        let lengths: Vec<usize> =
            table.buckets.iter().filter_map(|bucket| Some(bucket.load().as_ref()?.len())).collect();
        assert_eq!(lengths.iter().sum::<usize>(), 80_000);
        let longest = lengths.iter().max().unwrap();
        assert!(*longest < 40, "{longest} hosts are looked through and copied");
        assert!((0..20_000).all(|number| table.get(&format!("app-{number}.ns.svc")).is_some()));
    }

    #[test]
    fn a_name_wins_over_a_tag_and_comes_back_when_the_winner_goes() {
        let table = Table::new(1);
        let claim = |of_tag, revision: &str| Claim {
            host: "a-b.ns.localhost".into(),
            public: true,
            of_tag,
            http: HttpProtocol::Enabled,
            targets: Arc::new(Targets::new(vec![(1, RevisionId::new("ns", revision))], vec![], 0)),
        };
        let (tag, name) = (RouteId::new("ns", "b"), RouteId::new("ns", "z"));
        let served = |table: &Table<RevisionId>| {
            table.get("a-b.ns.localhost").map(|entry| entry.inside.pick().unwrap().name.to_string())
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
        let table = Table::new(1);
        let claim = |host: &str, public, revision: &str| Claim {
            host: host.into(),
            public,
            of_tag: false,
            http: HttpProtocol::Enabled,
            targets: Arc::new(Targets::new(vec![(1, RevisionId::new("ns", revision))], vec![], 0)),
        };
        // What the public gets, and what pods get.
        let served = |host: &str| {
            let name = |targets: &Targets<RevisionId>| targets.pick().unwrap().name.to_string();
            let entry = table.get(host);
            let entry = entry.as_ref().map(|entry| (entry.public.as_deref().map(name), name(&entry.inside)));
            entry.unwrap_or_default()
        };
        let both = |name: &str| (Some(name.to_owned()), name.to_owned());
        let nothing = (None, String::new());
        let (a, b, other) = (RouteId::new("ns", "a"), RouteId::new("ns", "b"), RouteId::new("com", "shop"));
        table.alias("shop.com", Some("a.ns.svc.cluster.local"), None);
        assert_eq!(served("shop.com"), nothing, "its target does not exist yet");
        table.set(&a, &[claim("a.ns.svc.cluster.local", false, "a-1")], Clone::clone);
        assert_eq!(served("shop.com"), both("a-1"));
        assert_eq!(served("a.ns.svc.cluster.local"), (None, "a-1".to_owned()), "the name stays inside");
        table.set(&a, &[claim("a.ns.svc.cluster.local", false, "a-2")], Clone::clone);
        assert_eq!(served("shop.com"), both("a-2"), "it follows");
        table.set(&b, &[claim("b.ns.svc.cluster.local", false, "b-1")], Clone::clone);
        table.alias("shop.com", Some("b.ns.svc.cluster.local"), None);
        assert_eq!(served("shop.com"), both("b-1"));
        table.set(&a, &[], Clone::clone);
        assert_eq!(served("shop.com"), both("b-1"), "what it left behind is nothing to it");

        table.set(&other, &[claim("shop.com", false, "inside")], Clone::clone);
        assert_eq!(served("shop.com"), (Some("b-1".to_owned()), "inside".to_owned()), "each to its own");
        table.set(&other, &[claim("shop.com", true, "outside")], Clone::clone);
        assert_eq!(served("shop.com"), both("outside"), "a Route's host is the Route's");
        table.set(&other, &[], Clone::clone);
        assert_eq!(served("shop.com"), both("b-1"));
        table.alias("shop.com", None, None);
        assert_eq!(served("shop.com"), nothing);
        assert!(table.writer.lock().aliases_of.is_empty());
    }

    #[test]
    fn what_comes_without_tls_gets_what_the_annotation_says_or_the_setting() {
        let redirected = [("http-protocol".to_owned(), "redirected".to_owned())].into();
        let settings = [Network::default(), Network::parse(&redirected).unwrap()];
        let of = |annotations: Value| {
            let mut route = route("hello", json!({}), canary());
            route.metadata.annotations = serde_json::from_value(annotations).unwrap();
            settings.each_ref().map(|settings| hosts_of(&route, settings)[0].http)
        };
        use HttpProtocol::{Enabled, Redirected};
        assert_eq!(of(json!({})), [Enabled, Redirected]);
        assert_eq!(of(json!({"networking.knative.dev/http-protocol": "Redirected"})), [Redirected, Redirected]);
        assert_eq!(of(json!({"networking.knative.dev/httpOption": "enabled"})), [Enabled, Enabled]);

        let table = Table::new(1);
        let claim = &hosts_of(&route("hello", json!({}), canary()), &settings[1]);
        table.set(&RouteId::new("ns", "hello"), claim, Clone::clone);
        let http = |host: &str| table.get(host).unwrap().http;
        table.alias("shop.com", Some("hello.ns.svc.cluster.local"), None);
        assert_eq!((http("hello.ns.localhost"), http("shop.com")), (Redirected, Redirected));
        table.alias("shop.com", Some("hello.ns.svc.cluster.local"), Some(Enabled));
        assert_eq!((http("hello.ns.localhost"), http("shop.com")), (Redirected, Enabled));
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
        /// Percentages are exact over any 100 requests in a row, whatever the shares and wherever one begins to count.
        #[test]
        fn percentages_are_exact_over_any_100_requests(cuts in prop::collection::vec(0_u32..=100, 0..6), start: u64) {
            let mut cuts = cuts;
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            let shares: Vec<u32> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let shares: Vec<(u32, usize)> = shares.into_iter().enumerate().map(|(at, share)| (share, at)).filter(|(share, _)| *share > 0).collect();
            let targets = Targets::new(shares.clone(), vec![], start);
            let picks: Vec<usize> = (0..350).map(|_| *targets.pick().unwrap()).collect();
            for window in picks.windows(100) {
                for (share, target) in &shares {
                    prop_assert_eq!(window.iter().filter(|pick| *pick == target).count(), *share as usize);
                }
            }
        }

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
