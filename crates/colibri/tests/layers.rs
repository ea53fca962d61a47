//! Dependencies between crates point down only.

use std::collections::BTreeMap;
use std::path::Path;

/// Crates by level; a crate may depend on lower levels alone.
const LEVELS: [&[&str]; 6] = [
    &["base"],
    &["api"],
    &["client", "autoscale", "store"],
    &["supervisor"],
    &["gateway", "serving", "cluster", "node", "functions", "apiserver"],
    &["colibri", "testkit"],
];

#[test]
fn layers() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let level: BTreeMap<&str, usize> =
        LEVELS.iter().enumerate().flat_map(|(level, names)| names.iter().map(move |name| (*name, level))).collect();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(crates).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let manifest = std::fs::read_to_string(path.join("Cargo.toml")).unwrap();
        let Some(own) = level.get(name.as_str()) else {
            wrong.push(format!("{name} has no level"));
            continue;
        };
        // It is for its own tests: not even tests of others use it.
        if name != "testkit" && manifest.lines().any(|line| line.starts_with("testkit")) {
            wrong.push(format!("{name} -> testkit"));
        }
        for dependency in dependencies(&manifest) {
            if level.get(dependency).is_some_and(|other| other >= own) {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these edges do not point down: {wrong:?}");
}

/// Names in `[dependencies]`.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let section = manifest.split("\n[").find_map(|part| part.strip_prefix("dependencies]"));
    section
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
}
