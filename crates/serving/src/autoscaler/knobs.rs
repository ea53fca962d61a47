//! Each annotation of the autoscaler, in each spelling, and each key of `config-autoscaler` changes how many pods a
//! Revision has; those that cannot are named here, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::config::{Autoscaler as Settings, autoscaler};
use api::serving::annotations as keys;
use autoscale::Scaling;
use autoscale::settings::Reachability;
use autoscale::usage::{PodSeen, Sample};

use super::scaler::{Restored, Scaler};
use crate::instances::Counts;

type Values<'a> = &'a [(&'a str, &'a str)];

/// Annotations without an effect.
const IDLE_ANNOTATIONS: &[(&str, &str)] = &[("target-burst-capacity", "no request goes by way of an activator")];
/// Keys without an effect on this decision.
const IDLE_KEYS: &[(&str, &str)] = &[
    ("target-burst-capacity", "no request goes by way of an activator"),
    ("activator-capacity", "there is no activator"),
    ("max-scale-limit", "it bounds what users may ask for: admission refuses more"),
];

fn map(values: Values<'_>) -> BTreeMap<String, String> {
    values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Requests in flight, second by second: a little, a sudden lot, nothing.
fn load(second: u64) -> f64 {
    match second {
        10..130 => 20.0,
        130..160 => 250.0,
        160..280 => 800.0,
        280..340 => 60.0,
        _ => 0.0,
    }
}

/// The pods of a Revision, second by second. A pod is ready a second after it was asked for.
fn pods(settings: Values<'_>, annotations: Values<'_>) -> Vec<i32> {
    let settings = Settings::parse(&map(settings)).unwrap();
    let scaling = Scaling::resolve(&settings, &map(annotations), 0, Reachability::Reachable);
    let start = Duration::from_secs(1_000_000);
    let limit = Duration::from_secs(600);
    let mut scaler = Scaler::new(scaling, Restored::default(), Counts::default(), limit, start);
    let (mut ready, mut seen) = (0, Vec::new());
    for second in 0..900 {
        let (now, load) = (start + Duration::from_secs(second), load(second));
        if load > 0.0 && ready == 0 {
            scaler.poke(now);
        }
        scaler.record(load, load * 3.0, now);
        if second % 5 == 0 {
            let used = load as u64 * 20 / u64::try_from(ready.max(1)).unwrap();
            let count = usize::try_from(ready).unwrap();
            scaler.measure(Ok(&vec![pod(used); count]), now);
        }
        scaler.evaluate(Counts { ready, present: ready.max(scaler.pods()) }, now);
        ready = scaler.pods();
        seen.push(ready);
    }
    seen
}

/// A pod that requests half a core and uses so many thousandths of one, and as many MiB.
fn pod(used: u64) -> PodSeen {
    let (age, window) = (Duration::ZERO, Duration::from_secs(5));
    let sample = Sample { age, window, cpu_millis: used, memory_bytes: used << 20 };
    let old = Duration::from_secs(3_600);
    PodSeen { pending: false, ready: Some((true, old)), age: Some(old), cpu_request: Some(500), sample: Some(sample) }
}

#[test]
fn every_annotation_in_each_spelling_changes_what_is_decided() {
    let hpa: (&str, &str) = (keys::CLASS[0], keys::CLASS_HPA);
    let rows: &[(keys::Spellings, Values<'_>, &str)] = &[
        (keys::CLASS, &[], keys::CLASS_HPA),
        (keys::METRIC, &[], "rps"),
        (keys::METRIC, &[hpa, (keys::TARGET[0], "50")], "memory"),
        (keys::METRIC_AGGREGATION_ALGORITHM, &[], "weighted-exponential"),
        (keys::TARGET, &[], "50"),
        (keys::TARGET, &[hpa], "40"),
        (keys::TARGET_UTILIZATION_PERCENTAGE, &[], "100"),
        (keys::WINDOW, &[], "30s"),
        (keys::WINDOW, &[hpa], "30s"),
        (keys::PANIC_WINDOW_PERCENTAGE, &[], "60"),
        (keys::PANIC_THRESHOLD_PERCENTAGE, &[], "1000"),
        (keys::MIN_SCALE, &[], "2"),
        (keys::MIN_SCALE, &[hpa], "2"),
        (keys::MAX_SCALE, &[], "3"),
        (keys::MAX_SCALE, &[hpa], "3"),
        (keys::INITIAL_SCALE, &[], "4"),
        (keys::INITIAL_SCALE, &[hpa], "4"),
        (keys::ACTIVATION_SCALE, &[], "5"),
        (keys::SCALE_DOWN_DELAY, &[], "2m"),
        (keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD, &[], "2m"),
    ];
    for (spellings, base, value) in rows {
        let plain = pods(&[], base);
        for key in *spellings {
            let changed = pods(&[], &[*base, &[(*key, *value)]].concat());
            assert_ne!(changed, plain, "{key}: {value} beside {base:?} changes nothing");
        }
    }
    let idle = |name: &str| IDLE_ANNOTATIONS.iter().any(|(key, _)| name.ends_with(key));
    let tried: BTreeSet<&str> = rows.iter().map(|(spellings, ..)| spellings[0]).collect();
    for spellings in keys::AUTOSCALING {
        assert_ne!(tried.contains(spellings[0]), idle(spellings[0]), "{}: neither tried nor excused", spellings[0]);
    }
}

#[test]
fn every_key_of_the_config_map_changes_what_is_decided() {
    let rps: Values<'_> = &[(keys::METRIC[0], "rps")];
    let zero: Values<'_> = &[(keys::INITIAL_SCALE[0], "0")];
    let rows: &[(&str, Values<'_>, &str)] = &[
        ("container-concurrency-target-default", &[], "50"),
        ("container-concurrency-target-percentage", &[], "100"),
        ("requests-per-second-target-default", rps, "50"),
        ("stable-window", &[], "30s"),
        ("panic-window-percentage", &[], "60"),
        ("panic-threshold-percentage", &[], "1000"),
        ("max-scale-up-rate", &[], "1.5"),
        ("max-scale-down-rate", &[], "1.1"),
        ("enable-scale-to-zero", &[], "false"),
        ("scale-to-zero-grace-period", &[], "2m"),
        ("scale-to-zero-pod-retention-period", &[], "2m"),
        ("scale-down-delay", &[], "2m"),
        ("initial-scale", &[], "4"),
        ("allow-zero-initial-scale", zero, "true"),
        ("min-scale", &[], "2"),
        ("max-scale", &[], "3"),
        ("pod-autoscaler-class", &[], keys::CLASS_HPA),
    ];
    for (key, annotations, value) in rows {
        let (plain, changed) = (pods(&[], annotations), pods(&[(*key, *value)], annotations));
        assert_ne!(changed, plain, "{key}: {value} changes nothing");
    }
    for key in autoscaler::KEYS {
        let tried = rows.iter().any(|(name, ..)| *name == key.name);
        let idle = IDLE_KEYS.iter().any(|(name, _)| *name == key.name);
        assert_ne!(tried, idle, "{}: neither tried nor excused", key.name);
        assert!(key.in_force || idle, "{} is said to have no effect", key.name);
    }
}
