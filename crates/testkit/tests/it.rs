//! Seeds of the simulation, each in a process of its own.

use std::process::{Command, Output};

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
