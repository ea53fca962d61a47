//! Errors as Knative prints them: a message, the fields it concerns, details on a line of their own.
//!
//! Source: `knative.dev/pkg/apis/field_error.go`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// Errors found so far. Those with the same text are printed as one, with all their fields.
#[derive(Debug, Default)]
pub(super) struct Errors(BTreeMap<(String, String), BTreeSet<String>>);

impl Errors {
    /// Adds an error about one field.
    pub(super) fn add(&mut self, message: impl Into<String>, path: impl Into<String>) {
        self.add_detailed(message, path, "");
    }

    /// Adds an error with details.
    pub(super) fn add_detailed(
        &mut self,
        message: impl Into<String>,
        path: impl Into<String>,
        details: impl Into<String>,
    ) {
        self.0.entry((message.into(), details.into())).or_default().insert(path.into());
    }

    pub(super) fn missing(&mut self, path: impl Into<String>) {
        self.add("missing field(s)", path);
    }

    pub(super) fn disallowed(&mut self, path: impl Into<String>) {
        self.add("must not set the field(s)", path);
    }

    pub(super) fn invalid(&mut self, value: impl std::fmt::Display, path: impl Into<String>) {
        self.add(format!("invalid value: {value}"), path);
    }

    pub(super) fn out_of_bounds(
        &mut self,
        value: impl std::fmt::Display,
        least: impl std::fmt::Display,
        most: impl std::fmt::Display,
        path: impl Into<String>,
    ) {
        self.add(format!("expected {least} <= {value} <= {most}"), path);
    }

    /// The text of all errors; `None` when there is none.
    pub(super) fn text(&self) -> Option<String> {
        let line = |((message, details), paths): (&(String, String), &BTreeSet<String>)| {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let details = if details.is_empty() { String::new() } else { format!("\n{details}") };
            format!("{message}: {}{details}", paths.join(", "))
        };
        (!self.0.is_empty()).then(|| self.0.iter().map(line).collect::<Vec<String>>().join("\n"))
    }
}
