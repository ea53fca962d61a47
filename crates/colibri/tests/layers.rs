//! Dependencies between crates point down only, and each is used.

use std::collections::{BTreeMap, BTreeSet};
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

#[test]
fn every_dependency_is_used() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folders = std::fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path());
    let mut unused = Vec::new();
    for path in folders.chain([crates.with_file_name("e2e")]) {
        let manifest = std::fs::read_to_string(path.join("Cargo.toml")).unwrap();
        let code = code(&path).unwrap();
        let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let listed = dependencies(&manifest).chain(section(&manifest, "dev-dependencies]"));
        for dependency in listed.filter(|name| !words.contains(library(name).as_str())) {
            unused.push(format!("{} -> {dependency}", path.display()));
        }
    }
    assert!(unused.is_empty(), "these dependencies are not used: {unused:#?}");
}

/// All Rust code below a folder, without comments.
fn code(folder: &Path) -> std::io::Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all += &code(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            all.extend(lines.flat_map(|line| [line, "\n"]));
        }
    }
    Ok(all)
}

/// What a package is called in code.
fn library(package: &str) -> String {
    if package == "md-5" { "md5".to_owned() } else { package.replace('-', "_") }
}

/// Names in `[dependencies]`.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    section(manifest, "dependencies]")
}

fn section<'a>(manifest: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let section = manifest.split("\n[").find_map(|part| part.strip_prefix(name));
    section
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
}
