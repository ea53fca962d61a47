//! `docs/cli.md` against the real `--help`: its reference is made from clap's own tree.

use std::fmt::Write;

use clap::{Command, CommandFactory};

use crate::Arguments;

/// What follows this line of the page is made here.
const MARKER: &str =
    "<!-- What follows is `--help`. To make it anew: UPDATE_EXPECT=1 cargo test --profile ci -p colibri manual -->";

/// All commands with their subcommands, as they are typed.
fn walk(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
    let path = format!("{path} {}", command.get_name()).trim().to_owned();
    found.push((path.clone(), command.clone()));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        walk(below, &path, found);
    }
}

fn commands() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    walk(&Arguments::command(), "", &mut found);
    found
}

fn reference() -> String {
    let mut text = String::new();
    for (path, command) in commands() {
        // Values of this shell's environment are no part of the page.
        let mut command = command.bin_name(&path).mut_args(|arg| arg.hide_env_values(true));
        let help = command.render_help().to_string();
        let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        let _ = write!(text, "\n## {path}\n\n```text\n{}```\n", help); // to memory
    }
    text
}

#[test]
fn the_page_agrees_with_the_help() {
    let page = expect_test::expect_file!["../../../../docs/cli.md"];
    let head = page.data();
    let head = head.split(MARKER).next().unwrap_or_default();
    assert!(page.data().contains(MARKER), "docs/cli.md has no line {MARKER}");
    page.assert_eq(&format!("{head}{MARKER}\n{}", reference()));
}

#[test]
fn every_command_has_examples_and_every_flag_a_text() {
    for (path, command) in commands() {
        let leaf = command.get_subcommands().next().is_none();
        let shown = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(!leaf || path == "colibri version" || has_examples(&path, &shown), "{path} has no examples:\n{shown}");
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{path}: {} has no help", arg.get_id());
        }
    }
}

/// Examples of a command itself, or, for one of several of a kind, of what holds them.
fn has_examples(path: &str, shown: &str) -> bool {
    let parent = path.rsplit_once(' ').map(|(parent, _)| parent.to_owned());
    let of_parent = || {
        let all = commands();
        let found = all.iter().find(|(other, _)| Some(other) == parent.as_ref());
        found.and_then(|(_, command)| command.get_after_help().map(ToString::to_string)).unwrap_or_default()
    };
    let own = |text: &str| text.contains("Examples:") && text.contains(&path["colibri".len()..]);
    own(shown) || own(&of_parent())
}

#[test]
fn the_tree_is_sound() {
    Arguments::command().debug_assert();
}
