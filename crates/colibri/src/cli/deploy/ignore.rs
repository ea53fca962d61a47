//! Which files stay out of an upload: patterns as in `.gitignore`.
//!
//! `#` comments, `!` takes back, a final `/` means folders only, a `/` elsewhere ties the pattern to the top, `*`, `?`
//! and `[a-z]` stay within one name, `**` crosses folders. The last pattern that matches decides.

/// Left out of every upload.
const ALWAYS: &str = "
.git/
.hg/
.svn/
.venv/
__pycache__/
*.pyc
.DS_Store
/function.yml
/function.yaml
.colibriignore
.gitignore
";

/// A list of patterns.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    parts: Vec<String>,
    folders_only: bool,
    takes_back: bool,
}

impl Ignore {
    /// The patterns that always hold, then those of a file.
    pub fn new(text: &str) -> Self {
        Self { patterns: ALWAYS.lines().chain(text.lines()).filter_map(Pattern::parse).collect() }
    }

    /// Whether a path below the folder (parts joined by `/`) is left out.
    pub fn leaves_out(&self, path: &str, is_folder: bool) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let last = self
            .patterns
            .iter()
            .rev()
            .find(|pattern| (is_folder || !pattern.folders_only) && matches(&pattern.parts, &parts));
        last.is_some_and(|pattern| !pattern.takes_back)
    }
}

impl Pattern {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (takes_back, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (folders_only, line) = line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
        let anchored = line.contains('/');
        let line = line.strip_prefix('/').unwrap_or(line);
        let mut parts: Vec<String> = line.split('/').map(str::to_owned).collect();
        if !anchored {
            parts.insert(0, "**".to_owned());
        }
        Some(Self { parts, folders_only, takes_back })
    }
}

fn matches(pattern: &[String], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            matches(rest, path) || path.split_first().is_some_and(|(_, below)| matches(pattern, below))
        }
        (Some((first, rest)), Some((name, below))) => {
            let (first, name): (Vec<char>, Vec<char>) = (first.chars().collect(), name.chars().collect());
            matches_name(&first, &name) && matches(rest, below)
        }
        _ => false,
    }
}

/// One name against one part of a pattern, without recursion: the last `*` is tried again one character further on.
fn matches_name(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if let Some(width) = matches_one(&pattern[p.min(pattern.len())..], name[n]) {
            (p, n) = (p + width, n + 1);
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (p, n) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How much of the pattern stands for that character; `None` when it does not match.
fn matches_one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', literal, ..] => (*literal == c).then_some(2),
        ['[', set @ ..] => {
            let end = set.iter().skip(1).position(|c| *c == ']')? + 1;
            let (negated, inside) = match &set[..end] {
                ['!' | '^', inside @ ..] => (true, inside),
                inside => (false, inside),
            };
            (in_set(inside, c) != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

fn in_set(set: &[char], c: char) -> bool {
    match set {
        [low, '-', high, rest @ ..] => (*low..=*high).contains(&c) || in_set(rest, c),
        [one, rest @ ..] => *one == c || in_set(rest, c),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let rows = [
            ("*.log", "a.log", false, true),
            ("*.log", "deep/er/a.log", false, true),
            ("*.log", "a.logs", false, false),
            ("/a.py", "a.py", false, true),
            ("/a.py", "x/a.py", false, false),
            ("x/a.py", "y/x/a.py", false, false),
            ("build/", "build", true, true),
            ("build/", "build", false, false),
            ("build/", "x/build", true, true),
            ("docs/**", "docs/a/b", false, true),
            ("**/tmp/*", "a/b/tmp/c", false, true),
            ("a/**/b", "a/b", false, true),
            ("a/**/b", "a/x/y/b", false, true),
            ("a?c", "abc", false, true),
            ("a?c", "ac", false, false),
            ("[a-c]x", "bx", false, true),
            ("[!a-c]x", "bx", false, false),
            ("\\#x", "#x", false, true),
            ("# all", "all", false, false),
            ("*.py\n!main.py", "main.py", false, false),
            ("*.py\n!main.py", "other.py", false, true),
            ("a*b*c", "aXbYc", false, true),
            ("a*b*c", "aXbY", false, false),
            ("", ".git", true, true),
            ("", "x/__pycache__", true, true),
            ("", "function.yml", false, true),
            ("", "x/function.yml", false, false),
            ("!*.pyc", "a.pyc", false, false),
        ];
        for (text, path, is_folder, expected) in rows {
            assert_eq!(Ignore::new(text).leaves_out(path, is_folder), expected, "{text:?} on {path:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_panics(text in "[a\\[\\]!*?/\\\\-]{0,24}", path in "[a\\[\\]/]{1,24}") {
            Ignore::new(&text).leaves_out(&path, false);
        }
    }
}
