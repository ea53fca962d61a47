//! What a Function must be. Each problem names the field, the cause and the cure.

use std::collections::BTreeSet;
use std::time::Duration;

use super::settings::{parse_duration, parse_percent};
use super::{Archive, Function, FunctionSpec, Source};

/// Runtimes that the platform brings along.
pub const RUNTIMES: &[&str] = &["python", "nodejs", "binary"];
/// Runtimes that are to come.
const RUNTIMES_TO_COME: &[&str] = &["wasm"];
/// Values of `spec.signature`.
pub const SIGNATURES: &[&str] = &["auto", "http", "cloudevent", "asgi", "wsgi"];
/// Most files of an inline source.
pub const INLINE_FILES_LIMIT: usize = 256;
/// Most bytes of an inline source: it lives in the object itself.
pub const INLINE_LIMIT_BYTES: usize = 512 << 10;
/// Longest timeout.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest `scaling.idle`: Knative's longest retention and the window before it.
pub const LONGEST_IDLE: Duration = Duration::from_secs(3660);

/// One thing that is wrong with a Function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// Path of the field, such as `spec.scaling.idle`.
    pub field: String,
    /// Cause and cure.
    pub message: String,
}

/// All problems of a Function, in the order of its fields; empty when it is valid.
pub fn validate(function: &Function) -> Vec<Problem> {
    let mut problems = Problems::default();
    let spec = &function.spec;
    check_name(function.metadata.name.as_deref().unwrap_or_default(), &mut problems);
    check_runtime(spec, &mut problems);
    check_handler(spec, &mut problems);
    check_source(spec.source.as_ref(), &mut problems);
    check_build(spec, &mut problems);
    check_env(spec, &mut problems);
    check_volumes(spec, &mut problems);
    check_resources(spec, &mut problems);
    check_timeout(spec, &mut problems);
    check_scaling(spec, &mut problems);
    if let Some(trigger) = spec.triggers.iter().position(|trigger| !is_plain_http(trigger)) {
        problems.add(&format!("spec.triggers[{trigger}]"), "triggers are not there yet; remove it and call the URL");
    }
    problems.0
}

/// An HTTP trigger without any wish is what every function has anyway.
fn is_plain_http(trigger: &serde_json::Value) -> bool {
    let http = trigger.as_object().filter(|entry| entry.len() == 1).and_then(|entry| entry.get("http"));
    http.is_some_and(|http| http.is_null() || http.as_object().is_some_and(serde_json::Map::is_empty))
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(Problem { field: field.to_owned(), message: message.into() });
    }
}

fn check_name(name: &str, problems: &mut Problems) {
    if !name.is_empty() && !base::names::is_dns1035_label(name) {
        let rule =
            "must be lower-case letters, digits and -, start with a letter, not end with -, at most 63 characters";
        problems.add("metadata.name", format!("{name:?} {rule}: it becomes part of a host name"));
    }
}

fn check_runtime(spec: &FunctionSpec, problems: &mut Problems) {
    let (runtime, known) = (spec.runtime.as_str(), RUNTIMES.join(", "));
    let from_image = spec.source.as_ref().is_some_and(|source| source.image.is_some());
    if runtime.is_empty() {
        problems.add("spec.runtime", format!("is missing; use one of {known}"));
    } else if RUNTIMES_TO_COME.contains(&runtime) && !from_image {
        problems.add("spec.runtime", format!("{runtime} is not there yet; use one of {known}, or spec.source.image"));
    } else if !RUNTIMES.contains(&runtime) && !from_image {
        let meant = base::nearest(runtime, RUNTIMES.iter().copied());
        let cure = meant.map_or_else(|| format!("use one of {known}"), |meant| format!("did you mean {meant}?"));
        problems.add("spec.runtime", format!("unknown runtime {runtime:?}; {cure}"));
    }
}

fn check_handler(spec: &FunctionSpec, problems: &mut Problems) {
    if let Some(handler) = spec.handler.as_deref() {
        match spec.runtime.as_str() {
            "python" if !is_dotted_name(handler) => problems.add(
                "spec.handler",
                format!("{handler:?} is not of the form module.function; for def handle in main.py write main.handle"),
            ),
            "nodejs" if !is_module_and_name(handler) => problems.add(
                "spec.handler",
                format!("{handler:?} is not of the form module.function; for handle in index.mjs write index.handle"),
            ),
            "binary" if base_is_outside(handler) => problems.add(
                "spec.handler",
                format!("{handler:?} is not a file inside the code; write its path in the folder, such as bin/server"),
            ),
            _ => {}
        }
    }
    if let Some(signature) = spec.signature.as_deref()
        && !SIGNATURES.contains(&signature)
    {
        problems
            .add("spec.signature", format!("unknown signature {signature:?}; use one of {}", SIGNATURES.join(", ")));
    }
}

/// `module.function`, of names that Python allows (letters of ASCII only).
fn is_dotted_name(handler: &str) -> bool {
    let name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    handler.contains('.') && handler.len() <= 256 && handler.split('.').all(name)
}

/// `module.function`, where the module is a file's path inside the code without its extension.
fn is_module_and_name(handler: &str) -> bool {
    let parts = handler.rsplit_once('.');
    parts.is_some_and(|(module, name)| !base_is_outside(module) && !name.is_empty() && !name.contains('/'))
}

/// Whether a path is absolute, empty, or leaves the folder that it is meant to be in.
fn base_is_outside(path: &str) -> bool {
    path.is_empty() || path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..")
}

fn check_source(source: Option<&Source>, problems: &mut Problems) {
    const KINDS: &str = "inline, archive, git or image";
    let Some(source) = source else {
        problems
            .add("spec.source", format!("is missing; give one of {KINDS}, or run colibri deploy DIR to upload DIR"));
        return;
    };
    let given = [
        ("inline", source.inline.is_some()),
        ("archive", source.archive.is_some()),
        ("git", source.git.is_some()),
        ("image", source.image.is_some()),
    ];
    let given: Vec<&str> = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect();
    match given.as_slice() {
        [_] => {}
        [] => problems.add("spec.source", format!("is empty; give one of {KINDS}")),
        many => problems.add("spec.source", format!("has {}; keep exactly one of them", many.join(" and "))),
    }
    if source.git.is_some() {
        problems.add("spec.source.git", "Git sources are not there yet; run colibri deploy DIR in a checkout");
    }
    if let Some(files) = &source.inline {
        check_inline(files, problems);
    }
    if let Some(archive) = &source.archive {
        match archive.digest.as_deref() {
            _ if archive.url.is_some() || archive.sha256.is_some() => check_remote(archive, problems),
            None => problems.add("spec.source.archive.digest", "is missing; run colibri deploy DIR to upload DIR"),
            Some(digest) if !is_sha256(digest) => problems.add(
                "spec.source.archive.digest",
                format!("{digest:?} is not sha256: and 64 hexadecimal digits in lower case, as an upload answers"),
            ),
            Some(_) => {}
        }
    }
    if source.image.as_deref() == Some("") {
        problems.add("spec.source.image", "is empty; name an image, such as registry.example/name:tag");
    }
}

/// An archive at a URL is named by its SHA-256 too: the same Function is the same code, whatever the server gives later.
fn check_remote(archive: &Archive, problems: &mut Problems) {
    let field = |name: &str| format!("spec.source.archive.{name}");
    if archive.digest.is_some() {
        problems.add(&field("digest"), "is for uploads; with url give sha256 alone");
    }
    match archive.url.as_deref() {
        None => problems.add(&field("url"), "is missing; sha256 is for an archive at a URL, digest for an upload"),
        Some(url) if !is_http_url(url) => {
            let text =
                format!("{url:?} is not an http:// or https:// URL with a host and without a user or a fragment");
            problems.add(&field("url"), text);
        }
        Some(_) => {}
    }
    let shown =
        |sha256: &str| format!("{sha256:?} is not 64 hexadecimal digits in lower case, as sha256sum prints them");
    match archive.sha256.as_deref() {
        None => problems.add(&field("sha256"), "is missing; sha256sum prints it"),
        Some(sha256) if !is_sha256(&format!("sha256:{sha256}")) => problems.add(&field("sha256"), shown(sha256)),
        Some(_) => {}
    }
}

/// Whether a URL can be fetched; what more there is to it is the HTTP client's to judge.
fn is_http_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split(['/', '?']).next().unwrap_or_default()).unwrap_or_default();
    let printable = url.len() <= 2048 && url.bytes().all(|c| c.is_ascii_graphic());
    printable && !host.is_empty() && !host.contains('@') && !url.contains('#')
}

fn check_inline(files: &std::collections::BTreeMap<String, String>, problems: &mut Problems) {
    if files.is_empty() {
        problems.add("spec.source.inline", "has no file; give at least one, such as main.py");
    }
    if files.len() > INLINE_FILES_LIMIT {
        let text = format!("has more than {INLINE_FILES_LIMIT} files; run colibri deploy DIR to upload them");
        problems.add("spec.source.inline", text);
    }
    if files.values().map(String::len).sum::<usize>() > INLINE_LIMIT_BYTES {
        let text = format!("is longer than {} KiB; run colibri deploy DIR to upload it", INLINE_LIMIT_BYTES >> 10);
        problems.add("spec.source.inline", text);
    }
    if let Some(name) = files.keys().find(|name| !is_file_name(name)) {
        let text = format!("{name:?} is not a path of a file inside the code, such as main.py or lib/util.py");
        problems.add("spec.source.inline", text);
    }
    let folder = |name: &String| {
        let prefix = format!("{name}/");
        files.range(prefix.clone()..).next().filter(|(other, _)| other.starts_with(&prefix)).map(|(other, _)| other)
    };
    if let Some((name, other)) = files.keys().find_map(|name| folder(name).map(|other| (name, other))) {
        problems
            .add("spec.source.inline", format!("{name:?} is a file and the folder of {other:?}; rename one of them"));
    }
}

/// Whether a name is a relative path of plain parts.
pub fn is_file_name(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    name.len() <= 1024 && name.split('/').all(part) && !name.chars().any(|c| c.is_control() || c == '\\')
}

/// Whether a text is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_sha256(digest: &str) -> bool {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    digest.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

fn check_build(spec: &FunctionSpec, problems: &mut Problems) {
    let Some(build) = &spec.build else { return };
    match build.mode.as_deref() {
        None | Some("" | "warm") => {}
        Some("image") => problems.add("spec.build.mode", "image is not there yet; use warm"),
        Some(other) => problems.add("spec.build.mode", format!("unknown mode {other:?}; use warm or image")),
    }
    if !build.command.is_empty() {
        let cure = "install what the code needs into its folder before deploying, as pip install --target . does";
        problems.add("spec.build.command", format!("build commands are not there yet; {cure}"));
    }
}

fn check_env(spec: &FunctionSpec, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (index, variable) in spec.env.iter().enumerate() {
        let (field, name) = (format!("spec.env[{index}].name"), variable.name.as_str());
        if name.is_empty() || name.contains('=') || name.chars().any(char::is_control) {
            problems.add(&field, format!("{name:?} is not a name of an environment variable"));
        } else if is_reserved(name) {
            problems.add(&field, format!("{name} is set by the platform; choose another name"));
        } else if !seen.insert(name) {
            problems.add(&field, format!("{name} is given twice; keep one of them"));
        }
    }
}

fn is_reserved(name: &str) -> bool {
    matches!(name, "PORT" | "K_SERVICE" | "K_CONFIGURATION" | "K_REVISION") || name.starts_with("COLIBRI_")
}

fn check_volumes(spec: &FunctionSpec, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().enumerate() {
        let field = format!("spec.volumes[{index}]");
        if !base::names::is_dns1123_label(&volume.name) {
            problems
                .add(&format!("{field}.name"), format!("{:?} is not lower-case letters, digits and -", volume.name));
        } else if volume.name == super::CODE_VOLUME {
            problems.add(&format!("{field}.name"), "is the name of the code's own volume; choose another name");
        } else if !seen.insert(volume.name.as_str()) {
            problems.add(&format!("{field}.name"), format!("{} is given twice; keep one of them", volume.name));
        }
        let kinds = [
            volume.config_map.is_some(),
            volume.secret.is_some(),
            volume.projected.is_some(),
            volume.empty_dir.is_some(),
        ];
        if kinds.iter().filter(|given| **given).count() != 1 {
            problems.add(&field, "must be exactly one of configMap, secret, projected, emptyDir");
        }
    }
}

fn check_resources(spec: &FunctionSpec, problems: &mut Problems) {
    let Some(resources) = &spec.resources else { return };
    let quantity = |text: &str| base::quantity::Quantity::parse(text).ok().filter(|found| found.milli() >= 0);
    for (list, quantities) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        for (name, given) in quantities.iter().flatten() {
            let field = format!("spec.resources.{list}.{name}");
            if quantity(&given.0).is_none() {
                let example = if name == "cpu" { "250m or 1" } else { "64Mi or 1Gi" };
                problems.add(&field, format!("{:?} is not a quantity; write it like {example}", given.0));
            }
            if !["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) {
                problems.add(&field, "is not a resource of this platform; there are cpu, memory and ephemeral-storage");
            }
        }
    }
    for (name, limit) in resources.limits.iter().flatten() {
        let request = resources.requests.iter().flatten().find(|(other, _)| *other == name).map(|(_, request)| request);
        if let Some(request) = request
            && let (Some(least), Some(most)) = (quantity(&request.0), quantity(&limit.0))
            && least > most
        {
            let text = format!("{} is more than the limit, {}; lower one or raise the other", request.0, limit.0);
            problems.add(&format!("spec.resources.requests.{name}"), text);
        }
    }
}

fn check_timeout(spec: &FunctionSpec, problems: &mut Problems) {
    let Some(text) = spec.timeout.as_deref() else { return };
    match parse_duration(text) {
        Err(why) => problems.add("spec.timeout", why),
        Ok(Duration::ZERO) => problems.add("spec.timeout", "is 0; leave it out for the default, or give at least 1ms"),
        Ok(timeout) if timeout > LONGEST_TIMEOUT => {
            problems.add(
                "spec.timeout",
                format!("{text} is longer than {}s, the most there is", LONGEST_TIMEOUT.as_secs()),
            );
        }
        Ok(_) => {}
    }
}

fn check_scaling(spec: &FunctionSpec, problems: &mut Problems) {
    let Some(scaling) = &spec.scaling else { return };
    if let (Some(min), Some(max)) = (scaling.min, scaling.max)
        && max != 0
        && min > max
    {
        problems.add(
            "spec.scaling.min",
            format!("{min} is more than spec.scaling.max, {max}; lower one or raise the other"),
        );
    }
    if scaling.concurrency.is_some_and(|concurrency| concurrency > 1000) {
        problems.add("spec.scaling.concurrency", "is more than 1000; use 0 for no limit");
    }
    if let Some(target) = scaling.target.as_deref()
        && let Err(why) = parse_percent(target)
    {
        problems.add("spec.scaling.target", why);
    }
    if let Some(idle) = scaling.idle.as_deref() {
        match parse_duration(idle) {
            Err(why) => problems.add("spec.scaling.idle", why),
            Ok(time) if time > LONGEST_IDLE => problems.add(
                "spec.scaling.idle",
                format!(
                    "{idle} is longer than {}s, the most there is; use spec.scaling.min: 1",
                    LONGEST_IDLE.as_secs()
                ),
            ),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(spec: serde_json::Value) -> Vec<String> {
        let object = serde_json::json!({"metadata": {"name": "hello"}, "spec": spec});
        let function: Function = serde_json::from_value(object).unwrap();
        validate(&function).iter().map(ToString::to_string).collect()
    }

    fn check(spec: serde_json::Value, expected: &[&str]) {
        let found = problems(spec.clone());
        assert_eq!(found.len(), expected.len(), "{spec}: {found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn whole_functions_are_valid() {
        check(serde_json::json!({"runtime": "python", "source": {"inline": {"main.py": ""}}}), &[]);
        check(
            serde_json::json!({
                "runtime": "python", "handler": "app.views.handle", "signature": "wsgi",
                "source": {"archive": {"digest": format!("sha256:{}", "a".repeat(64))}},
                "timeout": "1m30s", "scaling": {"min": 1, "max": 0, "concurrency": 0, "target": "70%", "idle": "90s"},
                "volumes": [{"name": "config", "configMap": {"name": "c"}}], "triggers": [{"http": {}}],
            }),
            &[],
        );
        check(serde_json::json!({"runtime": "wasm", "source": {"image": "a/b:c"}}), &[]);
        for handler in ["index.handle", "src/app.handle", "a.b.c", "src/a.min.$go"] {
            let source = serde_json::json!({"inline": {"index.mjs": ""}});
            check(serde_json::json!({"runtime": "nodejs", "handler": handler, "source": source}), &[]);
        }
    }

    #[test]
    fn problems_name_field_cause_and_cure() {
        let at = |archive: serde_json::Value| serde_json::json!({"runtime": "python", "source": {"archive": archive}});
        let inline = serde_json::json!({"inline": {"main.py": ""}});
        let rows = [
            (serde_json::json!({"source": inline}), "spec.runtime: is missing; use one of python"),
            (
                serde_json::json!({"runtime": "pyton", "source": inline}),
                "spec.runtime: unknown runtime \"pyton\"; did you mean python?",
            ),
            (
                serde_json::json!({"runtime": "cobol", "source": inline}),
                "spec.runtime: unknown runtime \"cobol\"; use one of python",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "resources": {"limits": {"memory": "64MB"}}}),
                "spec.resources.limits.memory: \"64MB\" is not a quantity; write it like 64Mi",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline,
                    "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}}}),
                "spec.resources.requests.cpu: 2 is more than the limit, 500m",
            ),
            (serde_json::json!({"runtime": "wasm", "source": inline}), "spec.runtime: wasm is not there yet"),
            (serde_json::json!({"runtime": "python"}), "spec.source: is missing; give one of"),
            (serde_json::json!({"runtime": "python", "source": {}}), "spec.source: is empty"),
            (
                serde_json::json!({"runtime": "python", "source": {"inline": {"main.py": ""}, "image": "a"}}),
                "spec.source: has inline and image; keep exactly one",
            ),
            (serde_json::json!({"runtime": "python", "source": {"inline": {}}}), "spec.source.inline: has no file"),
            (serde_json::json!({"runtime": "python", "source": {"inline": {"../x": ""}}}), "\"../x\" is not a path"),
            (serde_json::json!({"runtime": "python", "source": {"inline": {"/x": ""}}}), "\"/x\" is not a path"),
            (
                serde_json::json!({"runtime": "python", "source": {"inline": {"a": "", "a-b": "", "a/b": ""}}}),
                "\"a\" is a file and the folder of \"a/b\"",
            ),
            (
                serde_json::json!({"runtime": "python", "source": {"archive": {"digest": "sha256:AB"}}}),
                "spec.source.archive.digest: \"sha256:AB\" is not sha256:",
            ),
            (serde_json::json!({"runtime": "python", "source": {"archive": {}}}), "archive.digest: is missing"),
            (at(serde_json::json!({"url": "https://a/b.tar"})), "archive.sha256: is missing; sha256sum prints it"),
            (
                at(serde_json::json!({"url": "https://a/b.tar", "sha256": "sha256:ab"})),
                "\"sha256:ab\" is not 64 hexadecimal digits",
            ),
            (at(serde_json::json!({"sha256": "a".repeat(64)})), "archive.url: is missing"),
            (
                at(serde_json::json!({"url": "ftp://a/b.tar", "sha256": "a".repeat(64)})),
                "is not an http:// or https:// URL",
            ),
            (
                at(serde_json::json!({"url": "https://me:you@a/b", "sha256": "a".repeat(64)})),
                "is not an http:// or https:// URL",
            ),
            (
                at(serde_json::json!({"url": "https:///b", "sha256": "a".repeat(64)})),
                "is not an http:// or https:// URL",
            ),
            (
                at(serde_json::json!({"url": "https://a/b#c", "sha256": "a".repeat(64)})),
                "is not an http:// or https:// URL",
            ),
            (
                at(serde_json::json!({"url": "https://a", "sha256": "a".repeat(64), "digest": "sha256:1"})),
                "is for uploads",
            ),
            (serde_json::json!({"runtime": "python", "source": {"git": {}}}), "spec.source.git: Git sources are not"),
            (
                serde_json::json!({"runtime": "python", "source": inline, "handler": "main"}),
                "spec.handler: \"main\" is not of the form module.function",
            ),
            (
                serde_json::json!({"runtime": "nodejs", "source": inline, "handler": "handle"}),
                "spec.handler: \"handle\" is not of the form module.function; for handle in index.mjs",
            ),
            (
                serde_json::json!({"runtime": "nodejs", "source": inline, "handler": "../lib.handle"}),
                "spec.handler: \"../lib.handle\" is not of the form",
            ),
            (
                serde_json::json!({"runtime": "binary", "source": inline, "handler": "../sh"}),
                "spec.handler: \"../sh\" is not a file inside",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "signature": "soap"}),
                "spec.signature: unknown signature \"soap\"",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "timeout": "60"}),
                "spec.timeout: \"60\" is not a duration",
            ),
            (serde_json::json!({"runtime": "python", "source": inline, "timeout": "0s"}), "spec.timeout: is 0"),
            (
                serde_json::json!({"runtime": "python", "source": inline, "timeout": "601s"}),
                "spec.timeout: 601s is longer than 600s",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "scaling": {"min": 3, "max": 2}}),
                "spec.scaling.min: 3 is more than",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "scaling": {"target": "0%"}}),
                "spec.scaling.target: \"0%\" is not",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "scaling": {"idle": "2h"}}),
                "spec.scaling.idle: 2h is longer than",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "env": [{"name": "PORT", "value": "1"}]}),
                "spec.env[0].name: PORT is set by the platform",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "volumes": [{"name": "x", "hostPath": {"path": "/"}}]}),
                "spec.volumes[0]: must be exactly one of",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "triggers": [{"kafka": {}}]}),
                "spec.triggers[0]: triggers are not there yet",
            ),
            (
                serde_json::json!({"runtime": "python", "source": inline, "build": {"mode": "magic"}}),
                "spec.build.mode: unknown mode",
            ),
        ];
        for (spec, expected) in rows {
            check(spec, &[expected]);
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let found = problems(serde_json::json!({"runtime": "x", "timeout": "x", "scaling": {"idle": "x"}}));
        assert_eq!(found.len(), 4, "{found:#?}");
    }
}
