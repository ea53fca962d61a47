//! Colours, where they are wanted.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// How text is shown on one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// For standard output.
    pub fn stdout() -> Self {
        Self::of(std::io::stdout().is_terminal())
    }

    /// For standard error.
    pub fn stderr() -> Self {
        Self::of(std::io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self { coloured: wanted(terminal, variable) }
    }

    /// Text without any.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { coloured: false }
    }

    /// What is well.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What needs attention.
    pub fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What failed.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// What is beside the point.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// What the eye should find.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Source: no-color.org, and bixense.com/clicolors for `CLICOLOR_FORCE`; the first wins.
fn wanted<V: AsRef<OsStr>>(terminal: bool, variable: impl Fn(&str) -> Option<V>) -> bool {
    let is = |name: &str, value: &str| variable(name).is_some_and(|found| found.as_ref() == value);
    if variable("NO_COLOR").is_some() {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some() && !is("CLICOLOR_FORCE", "0") {
        return true;
    }
    terminal && !is("TERM", "dumb") && !is("CLICOLOR", "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_terminal_and_environment() {
        type Row = (bool, &'static [(&'static str, &'static str)], bool);
        let rows: [Row; 8] = [
            (true, &[], true),
            (false, &[], false),
            (true, &[("NO_COLOR", "1")], false),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
            (true, &[("TERM", "dumb")], false),
            (true, &[("CLICOLOR", "0")], false),
        ];
        for (terminal, set, expected) in rows {
            let variable = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            assert_eq!(wanted(terminal, variable), expected, "{terminal} {set:?}");
        }
        assert_eq!(Style { coloured: true }.good("x"), "\x1b[32mx\x1b[0m");
        assert_eq!(Style::plain().good("x"), "x");
    }
}
