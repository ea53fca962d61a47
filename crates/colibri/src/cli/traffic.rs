//! `colibri traffic` and `colibri rollback`: which versions answer, and under which tags.

use std::collections::BTreeSet;
use std::time::Duration;

use api::conditions::{ConditionStatus, READY};
use api::functions::Function;
use api::serving::{Revision, Service, TrafficTarget};
use clap::Args;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::{Access, Target};
use super::error::CliError;
use super::output::OutputArgs;
use super::seen::{self, Seen};
use super::table;
use super::workload::Workload;

/// Longest wait until the route leads where it shall.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(50);
/// Names of whatever version is the newest that is ready.
const LATEST: [&str; 2] = ["latest", "@latest"];

/// Arguments of `colibri traffic`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri traffic hello                          how it is split now
  colibri traffic hello 1=90 latest=10           a tenth to the newest version
  colibri traffic hello --tag beta=latest        the newest version at a host name of its own as well
  colibri traffic hello latest=100               the newest version alone")]
pub struct TrafficArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    /// VERSION=PERCENT; the version is its name, its number, or latest. Together they make 100
    #[arg(value_name = "SHARE", value_parser = parse_share)]
    shares: Vec<(String, i64)>,
    /// TAG=VERSION: the version answers at TAG-NAME too; may be given several times
    #[arg(long = "tag", value_name = "TAG=VERSION", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Tag that leads nowhere any more; may be given several times
    #[arg(long = "untag", value_name = "TAG")]
    untag: Vec<String>,
    /// Do not wait until it holds
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `colibri rollback`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri rollback hello                to the ready version before the one that serves
  colibri rollback hello --to 3         to hello-00003
  colibri traffic hello latest=100      and forward again")]
pub struct RollbackArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    /// Version that shall serve: its name or its number [default: the ready one before the one that serves]
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// Do not wait until it serves
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Shows how traffic is split, or splits it anew.
pub async fn run(args: TrafficArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let mut seen = seen::look(&access, &args.name).await?;
    if !(args.shares.is_empty() && args.tags.is_empty() && args.untag.is_empty()) {
        let wish = Wish { shares: args.shares, tags: args.tags, untag: args.untag };
        let traffic = split(wanted(&seen), &wish, &seen)?;
        seen = set(&access, &seen, &traffic, args.no_wait).await?;
    }
    show(&seen, args.output);
    Ok(())
}

/// Gives all traffic to an earlier version.
pub async fn rollback(args: RollbackArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let seen = seen::look(&access, &args.name).await?;
    let version = match &args.to {
        Some(version) => resolve(version, &seen)?,
        None => earlier(&seen)?,
    };
    let wish = Wish { shares: vec![(version.clone(), 100)], ..Wish::default() };
    let traffic = split(wanted(&seen), &wish, &seen)?;
    let before = serving(&seen).unwrap_or_else(|| "nothing".to_owned());
    let seen = set(&access, &seen, &traffic, args.no_wait).await?;
    let name = seen.workload.name();
    eprintln!("{name}: {version} serves, in place of {before}");
    let deploy = match seen.workload {
        Workload::Function(_) => ", or the next colibri deploy,",
        Workload::Service(_) => "",
    };
    eprintln!("colibri traffic {name} latest=100{deploy} gives all traffic to the newest version again");
    show(&seen, args.output);
    Ok(())
}

fn parse_share(text: &str) -> Result<(String, i64), String> {
    let (version, percent) = text.split_once('=').ok_or("it is VERSION=PERCENT, such as latest=10")?;
    let number = percent.trim_end_matches('%').parse().ok().filter(|percent| (0..=100).contains(percent));
    let percent = number.ok_or_else(|| format!("{percent:?} is not a whole number from 0 to 100"))?;
    if version.is_empty() {
        return Err("the version is missing: it is VERSION=PERCENT, such as latest=10".to_owned());
    }
    Ok((version.to_owned(), percent))
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((tag, version)) if !tag.is_empty() && !version.is_empty() => Ok((tag.to_owned(), version.to_owned())),
        _ => Err("it is TAG=VERSION, such as beta=latest".to_owned()),
    }
}

/// What shall change.
#[derive(Clone, Debug, Default)]
struct Wish {
    shares: Vec<(String, i64)>,
    tags: Vec<(String, String)>,
    untag: Vec<String>,
}

/// The traffic that is asked for now; without any the newest version has all.
fn wanted(seen: &Seen) -> Vec<TrafficTarget> {
    let traffic = match &seen.workload {
        Workload::Function(function) => function.spec.traffic.clone(),
        Workload::Service(service) => service.spec.traffic.clone(),
    };
    if traffic.is_empty() { vec![target(LATEST[0], Some(100), None)] } else { traffic }
}

/// The new traffic: shares as wished, else as they were; of the tags those that were there, were not taken away and not
/// given to another version, then the new ones.
fn split(before: Vec<TrafficTarget>, wish: &Wish, seen: &Seen) -> Result<Vec<TrafficTarget>, CliError> {
    let mut after = Vec::new();
    if wish.shares.is_empty() {
        let kept = before.iter().filter(|target| target.percent.unwrap_or(0) > 0);
        after.extend(kept.map(|target| TrafficTarget { tag: None, ..target.clone() }));
    } else {
        let sum: i64 = wish.shares.iter().map(|(_, percent)| percent).sum();
        if sum != 100 {
            let given: Vec<String> = wish.shares.iter().map(|(version, share)| format!("{version}={share}")).collect();
            return Err(CliError::new(format!("{} makes {sum} per cent, not 100", given.join(" ")))
                .cured_by("name every version that shall get traffic; what is not named gets none"));
        }
        let mut named = BTreeSet::new();
        for (version, percent) in &wish.shares {
            let version = resolve(version, seen)?;
            if !named.insert(version.clone()) {
                return Err(CliError::new(format!("{version} is named twice; name it once with the sum")));
            }
            after.extend((*percent > 0).then(|| target(&version, Some(*percent), None)));
        }
    }
    let mut tags = tags_of(&before);
    for tag in &wish.untag {
        let count = tags.len();
        tags.retain(|target| target.tag.as_deref() != Some(tag));
        if tags.len() == count {
            let there: Vec<&str> = tags.iter().filter_map(|target| target.tag.as_deref()).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(CliError::new(format!("there is no tag {tag}; there are: {there}")));
        }
    }
    for (tag, version) in &wish.tags {
        tags.retain(|target| target.tag.as_deref() != Some(tag));
        tags.push(target(&resolve(version, seen)?, None, Some(tag)));
    }
    after.extend(tags);
    Ok(after)
}

/// The tags alone.
fn tags_of(traffic: &[TrafficTarget]) -> Vec<TrafficTarget> {
    let tagged = traffic.iter().filter(|target| target.tag.is_some());
    tagged.map(|target| TrafficTarget { percent: None, ..target.clone() }).collect()
}

/// All traffic to the newest version, with the tags that there are; nothing where traffic was never split.
pub fn to_latest(before: &[TrafficTarget]) -> Vec<TrafficTarget> {
    if before.is_empty() { Vec::new() } else { [vec![target(LATEST[0], Some(100), None)], tags_of(before)].concat() }
}

fn target(version: &str, percent: Option<i64>, tag: Option<&str>) -> TrafficTarget {
    let is_latest = LATEST.contains(&version);
    TrafficTarget {
        tag: tag.map(str::to_owned),
        revision_name: (!is_latest).then(|| version.to_owned()),
        latest_revision: Some(is_latest),
        percent,
        ..TrafficTarget::default()
    }
}

/// The name of a version that is named by itself or by its number; `latest` stays what it is.
///
/// # Errors
///
/// When there is no such version.
pub fn resolve(version: &str, seen: &Seen) -> Result<String, CliError> {
    if LATEST.contains(&version) {
        return Ok(LATEST[0].to_owned());
    }
    let name = seen.workload.name();
    let names: Vec<String> = seen.revisions.iter().map(ResourceExt::name_any).collect();
    let number: Option<u64> = version.parse().ok();
    let numbered = number.map(|number| format!("{name}-{number:05}")).filter(|numbered| names.contains(numbered));
    if let Some(found) = names.iter().find(|name| *name == version).cloned().or(numbered) {
        return Ok(found);
    }
    let meant = base::nearest(version, names.iter().map(String::as_str));
    let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
    Err(CliError::new(format!("{name} has no version {version}{meant}"))
        .cured_by(&format!("colibri versions {name} lists them; latest is the newest that is ready")))
}

/// The version that gets most traffic.
fn serving(seen: &Seen) -> Option<String> {
    let targets = seen.traffic().iter().filter(|target| target.percent.unwrap_or(0) > 0);
    targets.max_by_key(|target| target.percent).and_then(|target| target.revision_name.clone())
}

/// The ready version before the one that serves.
fn earlier(seen: &Seen) -> Result<String, CliError> {
    let name = seen.workload.name();
    let Some(serving) = serving(seen) else {
        return Err(CliError::new(format!("no version of {name} serves")).cured_by(&format!("colibri describe {name}")));
    };
    let older = seen.revisions.iter().skip_while(|revision| revision.name_any() != serving).skip(1);
    let found = older.filter(|revision| is_ready(revision)).map(ResourceExt::name_any).next();
    found.ok_or_else(|| {
        CliError::new(format!("there is no ready version before {serving}, which serves"))
            .cured_by(&format!("colibri versions {name} lists them; --to names one"))
    })
}

/// Whether a version can serve.
pub fn is_ready(revision: &Revision) -> bool {
    let conditions = revision.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions.iter().any(|condition| condition.kind == READY && condition.status == ConditionStatus::True)
}

/// Writes the traffic, and waits until the route follows it.
async fn set(access: &Access, seen: &Seen, traffic: &[TrafficTarget], no_wait: bool) -> Result<Seen, CliError> {
    let name = seen.workload.full_name();
    let bare = seen.workload.name();
    let patch = Patch::Merge(json!({ "spec": { "traffic": traffic } }));
    let params = PatchParams::default();
    let (client, namespace) = (access.client.clone(), &access.namespace);
    let written = match seen.workload {
        Workload::Function(_) => {
            Api::<Function>::namespaced(client, namespace).patch(&bare, &params, &patch).await.map(drop)
        }
        Workload::Service(_) => {
            Api::<Service>::namespaced(client, namespace).patch(&bare, &params, &patch).await.map(drop)
        }
    };
    written.map_err(|error| CliError::api(&format!("split the traffic of {bare}"), &error))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let seen = seen::look(access, &name).await?;
        if no_wait || follows(&seen, traffic) {
            return Ok(seen);
        }
        let routes = routes(&seen);
        let failed = routes.as_ref().is_some_and(|(status, _)| *status == ConditionStatus::False);
        if failed || Instant::now() >= deadline {
            let why = routes.map(|(_, message)| message).filter(|message| !message.is_empty());
            let why = why.unwrap_or_else(|| "no controller has looked at it".to_owned());
            return Err(CliError::new(format!("the traffic of {bare} is set, but does not flow so: {why}"))
                .cured_by(&format!("colibri versions {bare} tells which versions are ready")));
        }
        tokio::time::sleep(STEP).await;
    }
}

/// What the Service says of its route, once it has seen the traffic that was asked for.
fn routes(seen: &Seen) -> Option<(ConditionStatus, String)> {
    let service = seen.service.as_ref().filter(|service| is_same(&service.spec.traffic, asked(seen, service)))?;
    let status = service.status.as_ref().filter(|status| status.observed_generation == service.metadata.generation)?;
    let routes = status.conditions.iter().find(|condition| condition.kind == "RoutesReady")?;
    Some((routes.status, routes.message.clone().unwrap_or_default()))
}

/// The traffic that the Service shall have: a Function's comes to it a moment later.
fn asked<'a>(seen: &'a Seen, service: &'a Service) -> &'a [TrafficTarget] {
    match &seen.workload {
        Workload::Function(function) => &function.spec.traffic,
        Workload::Service(_) => &service.spec.traffic,
    }
}

/// Whether the route leads where it shall.
fn follows(seen: &Seen, wanted: &[TrafficTarget]) -> bool {
    let is_true = routes(seen).is_some_and(|(status, _)| status == ConditionStatus::True);
    is_true && is_same(seen.traffic(), wanted)
}

/// Whether traffic is split as wanted: defaults may have been filled in, and the latest version named.
fn is_same(found: &[TrafficTarget], wanted: &[TrafficTarget]) -> bool {
    let same = |(wanted, found): (&TrafficTarget, &TrafficTarget)| {
        let version = wanted.revision_name.is_none() || wanted.revision_name == found.revision_name;
        version && wanted.tag == found.tag && wanted.percent.unwrap_or(0) == found.percent.unwrap_or(0)
    };
    wanted.len() == found.len() && wanted.iter().zip(found).all(same)
}

fn show(seen: &Seen, output: OutputArgs) {
    let traffic: Vec<Value> =
        seen.traffic().iter().map(|target| serde_json::to_value(target).unwrap_or_default()).collect();
    output.show(&json!({ "traffic": traffic }), || format!("{}\n", seen.workload.full_name()), || render(seen));
}

fn render(seen: &Seen) -> String {
    let row = |target: &TrafficTarget| {
        let version = target.revision_name.clone().unwrap_or_default();
        vec![
            if target.latest_revision == Some(true) { format!("{version} (latest)") } else { version },
            target.percent.filter(|percent| *percent > 0).map(|percent| format!("{percent}%")).unwrap_or_default(),
            target.tag.clone().unwrap_or_default(),
            target.url.clone().unwrap_or_default(),
        ]
    };
    table::render(&["VERSION", "TRAFFIC", "TAG", "URL"], &seen.traffic().iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(spec: Value, status: Value) -> Seen {
        let revision = |number: usize, ready: &str| {
            let conditions = json!([{"type": "Ready", "status": ready}]);
            serde_json::from_value(json!({"metadata": {"name": format!("hello-{number:05}")},
                "spec": {"containers": []}, "status": {"conditions": conditions}}))
            .unwrap()
        };
        let service = json!({"metadata": {"name": "hello", "generation": 1}, "spec": {"traffic": spec},
            "status": {"observedGeneration": 1, "traffic": status,
                "conditions": [{"type": "RoutesReady", "status": "True"}]}});
        let service: Service = serde_json::from_value(service).unwrap();
        Seen {
            workload: Workload::Service(Box::new(service.clone())),
            service: Some(service),
            revisions: vec![revision(4, "True"), revision(3, "True"), revision(2, "False"), revision(1, "True")],
            pods: Vec::new(),
        }
    }

    fn shown(traffic: &[TrafficTarget]) -> String {
        let one = |target: &TrafficTarget| {
            let version = target.revision_name.as_deref().unwrap_or("latest");
            let percent = target.percent.map(|percent| format!("={percent}")).unwrap_or_default();
            let tag = target.tag.as_ref().map(|tag| format!("@{tag}")).unwrap_or_default();
            format!("{version}{percent}{tag}")
        };
        traffic.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// What a wish makes of the traffic, or what is said of it.
    fn check(before: Value, wish: &[&str], expected: &str) {
        let seen = seen(before, json!([]));
        let mut parsed = Wish::default();
        for word in wish {
            match (word.strip_prefix("tag "), word.strip_prefix("untag ")) {
                (Some(tag), _) => parsed.tags.push(parse_tag(tag).unwrap()),
                (_, Some(tag)) => parsed.untag.push(tag.to_owned()),
                _ => parsed.shares.push(parse_share(word).unwrap()),
            }
        }
        let found = match split(wanted(&seen), &parsed, &seen) {
            Ok(traffic) => shown(&traffic),
            Err(error) => error.message.lines().next().unwrap_or_default().to_owned(),
        };
        assert_eq!(found, expected, "{wish:?}");
    }

    #[test]
    fn traffic_is_split_as_wished() {
        let latest = || json!([]);
        let tagged = || json!([{"revisionName": "hello-00003", "percent": 60, "tag": "a"}, {"latestRevision": true, "percent": 40}]);
        check(latest(), &["1=90", "latest=10"], "hello-00001=90 latest=10");
        check(latest(), &["hello-00001=100%"], "hello-00001=100");
        check(latest(), &["1=0", "@latest=100"], "latest=100");
        check(latest(), &["tag beta=latest"], "latest=100 latest@beta");
        check(tagged(), &["latest=100"], "latest=100 hello-00003@a");
        check(tagged(), &["tag b=1"], "hello-00003=60 latest=40 hello-00003@a hello-00001@b");
        check(tagged(), &["tag a=1"], "hello-00003=60 latest=40 hello-00001@a");
        check(tagged(), &["untag a"], "hello-00003=60 latest=40");
        check(tagged(), &["untag c"], "there is no tag c; there are: a");
        check(latest(), &["untag c"], "there is no tag c; there are: none");
        check(latest(), &["1=90"], "1=90 makes 90 per cent, not 100");
        check(latest(), &["1=50", "hello-00001=50"], "hello-00001 is named twice; name it once with the sum");
        check(latest(), &["9=100"], "hello has no version 9");
        check(latest(), &["helo-00001=100"], "hello has no version helo-00001; did you mean hello-00001?");
    }

    #[test]
    fn shares_and_tags_are_checked_as_they_are_typed() {
        for (text, expected) in [
            ("latest", "it is VERSION=PERCENT, such as latest=10"),
            ("=5", "the version is missing: it is VERSION=PERCENT, such as latest=10"),
            ("a=x", "\"x\" is not a whole number from 0 to 100"),
            ("a=101", "\"101\" is not a whole number from 0 to 100"),
            ("a=-1", "\"-1\" is not a whole number from 0 to 100"),
        ] {
            assert_eq!(parse_share(text).unwrap_err(), expected, "{text}");
        }
        for text in ["a", "=a", "a="] {
            assert_eq!(parse_tag(text).unwrap_err(), "it is TAG=VERSION, such as beta=latest", "{text}");
        }
    }

    #[test]
    fn the_version_before_is_the_next_older_one_that_is_ready() {
        let serves = |number: usize| json!([{"revisionName": format!("hello-{number:05}"), "percent": 100}]);
        assert_eq!(earlier(&seen(json!([]), serves(4))).unwrap(), "hello-00003");
        assert_eq!(earlier(&seen(json!([]), serves(3))).unwrap(), "hello-00001");
        let error = earlier(&seen(json!([]), serves(1))).unwrap_err();
        assert!(error.message.starts_with("there is no ready version before hello-00001"), "{error}");
        let error = earlier(&seen(json!([]), json!([]))).unwrap_err();
        assert!(error.message.starts_with("no version of hello serves"), "{error}");
    }

    #[test]
    fn the_route_follows_once_every_target_is_there() {
        let spec = json!([{"revisionName": "hello-00001", "latestRevision": false, "percent": 100}, {"latestRevision": true, "tag": "b"}]);
        let wanted: Vec<TrafficTarget> = serde_json::from_value(spec.clone()).unwrap();
        let there = json!([{"revisionName": "hello-00001", "latestRevision": false, "percent": 100},
            {"revisionName": "hello-00004", "latestRevision": true, "percent": 0, "tag": "b", "url": "http://b-hello"}]);
        assert!(follows(&seen(spec.clone(), there.clone()), &wanted));
        let other = json!([{"revisionName": "hello-00003", "percent": 100}, there[1].clone()]);
        assert!(!follows(&seen(spec.clone(), other), &wanted));
        assert!(!follows(&seen(spec.clone(), json!([there[0].clone()])), &wanted));
        expect_test::expect![[r#"
            VERSION                TRAFFIC   TAG   URL
            hello-00001            100%
            hello-00004 (latest)             b     http://b-hello
        "#]]
        .assert_eq(&render(&seen(spec, there)));
    }
}
