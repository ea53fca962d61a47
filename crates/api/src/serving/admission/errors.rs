//! Errors as Knative prints them: a message, the fields it concerns, details on a line of their own.
//!
//! Source: `knative.dev/pkg/apis/field_error.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// Whether an object is refused for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// The object is refused.
    Error,
    /// The user is told.
    Warning,
}

#[derive(Clone, Debug)]
struct Entry {
    level: Level,
    message: String,
    details: String,
    paths: Vec<String>,
}

/// Errors found so far, with paths from where they were found; [`Errors::via`] adds the way there.
///
/// Those with the same text are printed as one, with all their fields.
#[derive(Clone, Debug, Default)]
pub(super) struct Errors(Vec<Entry>);

impl Errors {
    /// Adds an error about some fields.
    pub(super) fn add<'a>(&mut self, message: impl Into<String>, paths: impl IntoIterator<Item = &'a str>) {
        self.add_detailed(message, paths, "");
    }

    /// Adds an error with details.
    pub(super) fn add_detailed<'a>(
        &mut self,
        message: impl Into<String>,
        paths: impl IntoIterator<Item = &'a str>,
        details: impl Into<String>,
    ) {
        let paths = paths.into_iter().map(str::to_owned).collect();
        self.0.push(Entry { level: Level::Error, message: message.into(), details: details.into(), paths });
    }

    /// Adds what does not keep the object from being admitted.
    pub(super) fn warn(&mut self, message: impl Into<String>, path: &str, details: &str) {
        let paths = vec![path.to_owned()];
        self.0.push(Entry { level: Level::Warning, message: message.into(), details: details.to_owned(), paths });
    }

    /// Adds a warning about no field in particular.
    pub(super) fn warn_everywhere(&mut self, message: impl Into<String>) {
        self.0.push(Entry {
            level: Level::Warning,
            message: message.into(),
            details: String::new(),
            paths: Vec::new(),
        });
    }

    pub(super) fn missing(&mut self, path: &str) {
        self.add("missing field(s)", [path]);
    }

    pub(super) fn missing_one_of<'a>(&mut self, paths: impl IntoIterator<Item = &'a str>) {
        self.add("expected exactly one, got neither", paths);
    }

    pub(super) fn multiple_one_of<'a>(&mut self, paths: impl IntoIterator<Item = &'a str>) {
        self.add("expected exactly one, got both", paths);
    }

    pub(super) fn disallowed(&mut self, path: &str) {
        self.add("must not set the field(s)", [path]);
    }

    pub(super) fn invalid(&mut self, value: impl Display, path: &str) {
        self.add(format!("invalid value: {value}"), [path]);
    }

    pub(super) fn invalid_detailed(&mut self, value: impl Display, path: &str, details: impl Into<String>) {
        self.add_detailed(format!("invalid value: {value}"), [path], details);
    }

    pub(super) fn out_of_bounds(&mut self, value: impl Display, least: impl Display, most: impl Display, path: &str) {
        self.add(format!("expected {least} <= {value} <= {most}"), [path]);
    }

    /// Adds all of `other`.
    pub(super) fn also(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The same errors, seen from one step further up: `spec`, `containers[0]`, `[0]`.
    pub(super) fn via(mut self, step: &str) -> Self {
        for path in self.0.iter_mut().flat_map(|entry| &mut entry.paths) {
            *path = join(step, path);
        }
        self
    }

    /// The text of all errors of one level; `None` when there is none.
    pub(super) fn text(&self, level: Level) -> Option<String> {
        let mut merged: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for entry in self.0.iter().filter(|entry| entry.level == level) {
            let paths = merged.entry((&entry.message, &entry.details)).or_default();
            paths.extend(entry.paths.iter().map(String::as_str));
        }
        let line = |((message, details), paths): ((&str, &str), BTreeSet<&str>)| {
            let details = if details.is_empty() { String::new() } else { format!("\n{details}") };
            format!("{message}: {}{details}", paths.into_iter().collect::<Vec<_>>().join(", "))
        };
        (!merged.is_empty()).then(|| merged.into_iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}

/// A step and the path below it; an index follows without a dot.
fn join(step: &str, path: &str) -> String {
    let first = path.split('.').next().unwrap_or_default();
    if path.is_empty() || step.is_empty() || (first.starts_with('[') && first.ends_with(']')) {
        format!("{step}{path}")
    } else {
        format!("{step}.{path}")
    }
}
