//! Seeds of the simulation, each in a process of its own.

mod plots;

use std::process::{Command, Output};

/// Seeds that must hold. `COLIBRI_SEEDS` and `COLIBRI_SEED` (the first) choose others; see also `make soak`.
const SEEDS: &str = "200";

fn simulate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulate")).args(args).output().expect("simulate can be started")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The trace's hash and length: `trace 0123456789abcdef of 42 lines`.
fn trace(output: &Output) -> String {
    let text = text(output);
    let start = text.find("trace ").unwrap_or_else(|| panic!("no trace in {text:?}"));
    text[start..].split(';').next().unwrap_or_default().to_owned()
}

#[test]
fn an_hour_of_faults_breaks_no_invariant_on_any_seed() {
    let (first, count) = (std::env::var("COLIBRI_SEED"), std::env::var("COLIBRI_SEEDS"));
    let output = simulate(&["--seed", first.as_deref().unwrap_or("0"), "--seeds", count.as_deref().unwrap_or(SEEDS)]);
    println!("{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_seed_replays_to_the_last_line() {
    for seed in ["7", "8"] {
        let (one, two) = (simulate(&["--seeds", "1", "--seed", seed]), simulate(&["--seeds", "1", "--seed", seed]));
        assert_eq!(trace(&one), trace(&two), "seed {seed}");
    }
    let (seven, eight) = (simulate(&["--seeds", "1", "--seed", "7"]), simulate(&["--seeds", "1", "--seed", "8"]));
    assert_ne!(trace(&seven), trace(&eight), "the seed decides");
}

#[test]
fn without_faults_every_request_is_answered_by_a_pod() {
    let output = simulate(&["--seeds", "1", "--seed", "1", "--calm"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// Breaks a component on purpose; one of the first seeds must notice, and say so in the words of the invariant.
fn noticed(sabotage: &str, words: &str, more: &[&str]) {
    let seen: Vec<String> = (0..12)
        .map(|seed: u32| {
            let seed = seed.to_string();
            text(&simulate(&[&["--seeds", "1", "--seed", &seed, "--break", sabotage], more].concat()))
        })
        .take_while_inclusive(|text| !(text.contains("BREACH") && text.contains(words)))
        .collect();
    let last = seen.last().map(String::as_str).unwrap_or_default();
    assert!(last.contains("BREACH") && last.contains(words), "{sabotage} went unnoticed: {seen:#?}");
}

trait TakeWhileInclusive: Iterator + Sized {
    /// Up to the first item for which `keep` does not hold, and that one.
    fn take_while_inclusive(self, keep: impl Fn(&Self::Item) -> bool) -> impl Iterator<Item = Self::Item> {
        let mut done = false;
        self.take_while(move |item| !std::mem::replace(&mut done, !keep(item)))
    }
}

impl<I: Iterator> TakeWhileInclusive for I {}

#[test]
fn a_gateway_that_ignores_container_concurrency_is_noticed() {
    noticed("ignore-concurrency", "its limit is", &[]);
}

#[test]
fn an_autoscaler_that_ignores_max_scale_is_noticed() {
    noticed("ignore-max-scale", "its max-scale is", &[]);
}

#[test]
fn a_gateway_that_does_not_drain_is_noticed() {
    noticed("skip-draining", "requests in it", &[]);
}

#[test]
fn a_gateway_that_mistakes_claims_is_noticed() {
    noticed("forge-claims", "example.com of blue is not", &[]);
}

#[test]
fn a_gateway_that_mistakes_tags_is_noticed() {
    noticed("mistake-tags", "canary", &[]);
}

#[test]
fn a_share_that_gets_lost_is_noticed() {
    noticed("lose-share", "are not 100 together", &[]);
}

#[test]
fn a_rollout_that_goes_back_is_noticed() {
    noticed("stale-routes", "goes back", &[]);
}

#[test]
fn a_rollout_that_jumps_is_noticed() {
    noticed("jump-rollouts", "begins with more than 1 %", &[]);
}

#[test]
fn a_collector_of_the_wrong_revisions_is_noticed() {
    noticed("collect-used", "is collected", &[]);
}

#[test]
fn a_collector_that_does_not_know_config_gc_is_noticed() {
    noticed("ignore-gc", "config-gc says", &[]);
}

#[test]
fn an_autoscaler_that_does_not_know_config_autoscaler_is_noticed() {
    noticed("ignore-settings", "in config-autoscaler is", &[]);
}

#[test]
fn admission_that_does_not_see_the_config_maps_is_noticed() {
    noticed("blind-admission", "was not refused with", &[]);
}

#[test]
fn reports_that_get_lost_are_noticed() {
    noticed("lose-reports", "all has been well for a while", &["--calm"]);
}

#[test]
fn garbage_that_stays_is_noticed() {
    noticed("keep-garbage", "is left behind", &["--calm"]);
}
