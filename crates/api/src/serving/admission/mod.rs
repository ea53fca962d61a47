//! Defaulting and validation of Knative's kinds, as its webhook does them. Pure.
//!
//! All work on the JSON itself, so that fields that nobody here knows stay as they came. An object is first read and
//! written as the reference would ([`shape`]), then defaulted, then checked.
//!
//! Source: `knative/serving/pkg/apis/serving/v1/*_defaults.go`, `*_validation.go`, `pkg/apis/serving/k8s_validation.go`.

mod defaults;
mod errors;
mod go;
mod image;
mod names;
mod pods;
mod scaling;
mod shape;
mod traffic;
#[cfg(test)]
mod vectors;

use base::quantity::Quantity;
use serde_json::Value;

use errors::{Errors, Level};

use super::annotations::{self as keys, AUTOSCALING_PREFIX, CREATOR_ANNOTATION, LAST_MODIFIER_ANNOTATION, Spellings};
pub use crate::config::Settings;

/// Domain of names inside the cluster.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// The kinds that admission speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `serving.knative.dev/v1` Service.
    Service,
    /// `serving.knative.dev/v1` Configuration.
    Configuration,
    /// `serving.knative.dev/v1` Route.
    Route,
    /// `serving.knative.dev/v1` Revision.
    Revision,
    /// `serving.knative.dev/v1beta1` DomainMapping.
    DomainMapping,
}

impl Kind {
    /// The kind of that name in `serving.knative.dev`, if admission speaks of it.
    pub fn parse(kind: &str) -> Option<Self> {
        [Self::Service, Self::Configuration, Self::Route, Self::Revision, Self::DomainMapping]
            .into_iter()
            .find(|known| known.name() == kind)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Configuration => "Configuration",
            Self::Route => "Route",
            Self::Revision => "Revision",
            Self::DomainMapping => "DomainMapping",
        }
    }
}

/// Fills in what the user left out.
///
/// `old` is the stored object on an update; `user` is who asks.
///
/// # Errors
///
/// A value of another type than its field's, in the words of the reference.
pub fn default(
    kind: Kind,
    object: &mut Value,
    old: Option<&Value>,
    user: &str,
    settings: &Settings,
) -> Result<(), String> {
    shape::normalize(kind.name(), object)?;
    defaults::default(kind, object, normalized(kind, old).as_ref(), user, settings);
    // Defaults of quantities come as the administrator wrote them.
    shape::normalize(kind.name(), object)
}

/// What is to be said about an object, in Knative's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the object is not admitted: one line for each thing that is wrong.
    pub error: Option<String>,
    /// What its user should know.
    pub warnings: Vec<String>,
}

/// Checks an object; `old` is the stored object on an update.
pub fn validate(kind: Kind, object: &Value, old: Option<&Value>, settings: &Settings) -> Verdict {
    let object = normalized(kind, Some(object)).unwrap_or_default();
    let errors = check(kind, &object, normalized(kind, old).as_ref(), settings);
    let warnings = errors.text(Level::Warning);
    Verdict {
        error: errors.text(Level::Error),
        warnings: warnings.iter().flat_map(|text| text.lines()).map(str::to_owned).collect(),
    }
}

/// Checks a ClusterDomainClaim; `old` is the stored one on an update. Why it is not admitted.
///
/// The reference lets a claim pass to another namespace; here it is deleted and made anew for that.
pub fn validate_claim(claim: &Value, old: Option<&Value>) -> Option<String> {
    let mut errors = Errors::default();
    let namespace = text(&claim["spec"], "namespace");
    if namespace.is_empty() {
        errors.missing("spec.namespace");
    }
    let before = old.map(|old| text(&old["spec"], "namespace")).filter(|before| *before != namespace);
    if let Some(before) = before.filter(|_| !namespace.is_empty()) {
        let changes = format!("spec.namespace:\n\t-: {before:?}\n\t+: {namespace:?}");
        errors.add_detailed("Immutable fields changed (-old +new)", ["spec.namespace"], changes);
    }
    errors.text(Level::Error)
}

/// A stored object as it is written today; one that cannot be read any more is left as it is.
fn normalized(kind: Kind, object: Option<&Value>) -> Option<Value> {
    let object = object?;
    let mut copy = object.clone();
    Some(if shape::normalize(kind.name(), &mut copy).is_ok() { copy } else { object.clone() })
}

fn check(kind: Kind, object: &Value, old: Option<&Value>, settings: &Settings) -> Errors {
    let mut errors = Errors::default();
    errors.also(metadata(kind, object, settings).via("metadata"));
    let namespace = text(&object["metadata"], "namespace");
    match kind {
        Kind::Service | Kind::Configuration => {
            errors.also(template(object, settings).via("spec.template"));
        }
        // Of what never changes nothing is to be said again.
        Kind::Revision if old.is_none() => errors.also(pods::validate(&object["spec"], settings).via("spec")),
        Kind::Revision | Kind::Route => {}
        Kind::DomainMapping => errors.also(reference(&object["spec"]["ref"], namespace).via("spec.ref")),
    }
    if matches!(kind, Kind::Service | Kind::Route) {
        errors.also(traffic::validate(kind, &object["spec"]["traffic"]).via("spec.traffic"));
    }
    let Some(old) = old else { return errors };
    let owned = object["metadata"]["ownerReferences"].is_array();
    if kind != Kind::Revision && !(owned && matches!(kind, Kind::Configuration | Kind::Route)) {
        errors.also(users(object, old).via("metadata.annotations"));
    }
    immutable(kind, object, old, errors)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The value of an annotation in whichever spelling it is there, with that spelling.
fn annotation(annotations: &Value, spellings: Spellings) -> Option<(&'static str, &str)> {
    spellings.iter().find_map(|key| annotations[*key].as_str().map(|value| (*key, value)))
}

fn metadata(kind: Kind, object: &Value, settings: &Settings) -> Errors {
    let metadata = &object["metadata"];
    if kind == Kind::DomainMapping {
        return domain_metadata(metadata);
    }
    let mut errors = object_names(metadata);
    let annotations = &metadata["annotations"];
    if kind == Kind::Revision {
        errors.also(scaling::validate(annotations, &settings.autoscaler).via("annotations"));
        errors.also(affinity(annotations).via("annotations"));
    } else {
        let wrong = annotations.as_object().into_iter().flatten().map(|(key, _)| key);
        for key in wrong.filter(|key| key.starts_with(AUTOSCALING_PREFIX)) {
            errors.add_detailed(
                format!("invalid key name {key:?}"),
                ["annotations"],
                "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work",
            );
        }
    }
    if matches!(kind, Kind::Service | Kind::Route) {
        errors.also(seconds(annotations, keys::ROLLOUT_DURATION).via("annotations"));
    }
    let owner = match kind {
        Kind::Configuration | Kind::Route => Some((keys::SERVICE_LABEL, "Service")),
        Kind::Revision => Some((keys::CONFIGURATION_LABEL, "Configuration")),
        _ => None,
    };
    if let Some((label, owner)) = owner
        && let Some(name) = metadata["labels"][label].as_str()
    {
        let mut owners = metadata["ownerReferences"].as_array().into_iter().flatten();
        if !owners.any(|reference| text(reference, "kind") == owner && text(reference, "name") == name) {
            errors.missing(&format!("labels.{label}"));
        }
    }
    errors
}

fn object_names(metadata: &Value) -> Errors {
    let mut errors = Errors::default();
    let (name, generated) = (text(metadata, "name"), text(metadata, "generateName"));
    let problem = |what: &str, problems: Vec<String>| {
        (!problems.is_empty()).then(|| format!("not a DNS 1035 label{what}: [{}]", problems.join(" ")))
    };
    // The first problem counts.
    if let Some(problem) = problem(" prefix", names::dns1035_prefix(generated)).filter(|_| !generated.is_empty()) {
        errors.add(problem, ["generateName"]);
    } else if let Some(problem) = problem("", names::dns1035_label(name)).filter(|_| !name.is_empty()) {
        errors.add(problem, ["name"]);
    } else if name.is_empty() && generated.is_empty() {
        errors.add("name or generateName is required", ["name"]);
    }
    errors
}

fn domain_metadata(metadata: &Value) -> Errors {
    let mut errors = Errors::default();
    if !text(metadata, "generateName").is_empty() {
        errors.disallowed("generateName");
    }
    let name = text(metadata, "name");
    if let Some(problem) = names::domain(name) {
        errors.add(format!("invalid name {name:?}: {problem}"), ["name"]);
    }
    if name.ends_with(&format!(".{CLUSTER_DOMAIN}")) {
        let why = format!("must not be a subdomain of cluster local domain {CLUSTER_DOMAIN:?}");
        errors.add(format!("invalid name {name:?}: {why}"), ["name"]);
    }
    errors
}

/// What a DomainMapping leads to.
///
/// Source: `knative.dev/pkg/apis/duck/v1/knative_reference.go`.
fn reference(reference: &Value, namespace: &str) -> Errors {
    let mut errors = Errors::default();
    for key in ["name", "apiVersion", "kind"] {
        if text(reference, key).is_empty() {
            errors.missing(key);
        }
    }
    if !text(reference, "group").is_empty() {
        errors.disallowed("group");
    }
    let own = text(reference, "namespace");
    if !own.is_empty() && !namespace.is_empty() && own != namespace {
        let details = format!("parent namespace: {namespace:?} does not match ref: {own:?}");
        errors.add_detailed("mismatched namespaces", ["namespace"], details);
    }
    errors
}

/// Checks the template of a Service or a Configuration.
fn template(object: &Value, settings: &Settings) -> Errors {
    let template = &object["spec"]["template"];
    let mut errors = pods::validate(&template["spec"], settings).via("spec");
    let annotations = &template["metadata"]["annotations"];
    let mut own = scaling::validate(annotations, &settings.autoscaler);
    for (key, _) in annotations.as_object().into_iter().flatten() {
        if key.starts_with("networking.knative.dev") && !keys::NETWORKING.contains(&key.as_str()) {
            own.add(format!("invalid key name {key:?}"), [""]);
        }
    }
    own.also(sidecar_resources(annotations));
    own.also(seconds(annotations, keys::PROGRESS_DEADLINE));
    own.also(affinity(annotations));
    errors.also(own.via("metadata.annotations"));
    errors.also(revision_name(&object["metadata"], &template["metadata"]));
    errors
}

/// A Revision's name that the user chose.
fn revision_name(parent: &Value, metadata: &Value) -> Errors {
    let mut errors = Errors::default();
    let (name, generated) = (text(metadata, "name"), text(metadata, "generateName"));
    if !generated.is_empty() {
        let problems = names::dns1035_prefix(generated);
        if !problems.is_empty() {
            let problem = format!("not a DNS 1035 label prefix: [{}]", problems.join(" "));
            errors.invalid(problem, "metadata.generateName");
            return errors;
        }
    }
    if name.is_empty() {
        return errors;
    }
    let problems = names::dns1035_label(name);
    let prefix = format!("{}-", text(parent, "name"));
    if !problems.is_empty() {
        errors.invalid(format!("not a DNS 1035 label: [{}]", problems.join(" ")), "metadata.name");
    } else if prefix == "-" && !text(parent, "generateName").is_empty() {
        errors.disallowed("metadata.name");
    } else if !name.starts_with(&prefix) {
        errors.invalid(format!("{name:?} must have prefix {prefix:?}"), "metadata.name");
    }
    errors
}

/// Colibri's own annotation for sessions.
fn affinity(annotations: &Value) -> Errors {
    let mut errors = Errors::default();
    if let Some((key, value)) = annotation(annotations, keys::SESSION_AFFINITY)
        && ![keys::AFFINITY_COOKIE, "none"].contains(&value)
    {
        errors.add_detailed(format!("invalid value: {value}"), [key], "it is `cookie` or `none`");
    }
    errors
}

/// A duration in whole seconds that is not negative.
fn seconds(annotations: &Value, spellings: Spellings) -> Errors {
    let mut errors = Errors::default();
    let Some((key, value)) = annotation(annotations, spellings).filter(|(_, value)| !value.is_empty()) else {
        return errors;
    };
    let name = spellings[0].rsplit('/').next().unwrap_or(key);
    match base::duration::parse_nanoseconds(value) {
        None => errors.invalid(value, key),
        Some(ns) if ns % 1_000_000_000 != 0 => errors.add(format!("{name}={value} is not at second precision"), [key]),
        Some(ns) if ns < 0 => errors.add(format!("{name}={value} must be positive"), [key]),
        Some(_) => {}
    }
    errors
}

/// Annotations about the reference's sidecar: they have no effect here, but what is wrong there is wrong here.
fn sidecar_resources(annotations: &Value) -> Errors {
    let mut errors = Errors::default();
    if let Some((key, value)) = annotation(annotations, keys::SIDECAR_PERCENTAGE) {
        let path = format!("[{key}]");
        let message = "Queue proxy resource percentage annotation is deprecated. Please use the available annotations \
            to explicitly set resource values per service";
        errors.warn_everywhere(message);
        let (least, most) = (0.1, 100.0);
        match go::float(value) {
            None => errors.invalid(value, &path),
            Some(share) if share < least || share > most => errors.out_of_bounds(share, least, most, &path),
            Some(_) => {}
        }
    }
    for key in keys::SIDECAR_RESOURCES {
        if let Some(value) = annotations[*key].as_str().filter(|value| Quantity::parse(value).is_err()) {
            errors.invalid(value, &format!("[{key}]"));
        }
    }
    errors
}

/// Who made an object never changes; who changed it last changes with the spec only.
fn users(object: &Value, old: &Value) -> Errors {
    let mut errors = Errors::default();
    let value = |object: &Value, key: &str| text(&object["metadata"]["annotations"], key).to_owned();
    if value(old, CREATOR_ANNOTATION) != value(object, CREATOR_ANNOTATION) {
        errors.add("annotation value is immutable", [CREATOR_ANNOTATION]);
    }
    let modifier = value(object, LAST_MODIFIER_ANNOTATION);
    if old["spec"] == object["spec"] && value(old, LAST_MODIFIER_ANNOTATION) != modifier {
        errors.invalid(modifier, LAST_MODIFIER_ANNOTATION);
    }
    errors
}

/// A Revision never changes, and neither does what bears a Revision's name that the user chose.
fn immutable(kind: Kind, object: &Value, old: &Value, mut errors: Errors) -> Errors {
    let (part, way, message, path) = match kind {
        Kind::Revision => (["spec"].as_slice(), "spec", "Immutable fields changed (-old +new)", "spec"),
        Kind::Service | Kind::Configuration => (
            ["spec", "template"].as_slice(),
            "spec.template",
            "Saw the following changes without a name change (-old +new)",
            "spec.template.metadata.name",
        ),
        Kind::Route | Kind::DomainMapping => return errors,
    };
    let at = |object: &Value| part.iter().fold(object, |object, key| &object[*key]).clone();
    let (before, after) = (at(old), at(object));
    let name = text(&after["metadata"], "name");
    if kind != Kind::Revision && (name.is_empty() || name != text(&before["metadata"], "name")) {
        return errors;
    }
    let mut changes = Vec::new();
    changed_fields(&before, &after, way.to_owned(), &mut changes);
    if changes.is_empty() {
        return errors;
    }
    // About a Revision nothing else is said then.
    if kind == Kind::Revision {
        errors = Errors::default();
    }
    errors.add_detailed(message, [path], changes.join("\n"));
    errors
}

/// Each field that differs, with both values.
fn changed_fields(old: &Value, new: &Value, path: String, changes: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                changed_fields(&old[key.as_str()], &new[key.as_str()], format!("{path}.{key}"), changes);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                changed_fields(before, after, format!("{path}[{index}]"), changes);
            }
        }
        _ if old != new => changes.push(format!("{path}:\n\t-: {old}\n\t+: {new}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn session_affinity_is_a_cookie_or_none() {
        let told = |value: &str| {
            let metadata = json!({"annotations": {"gateway.colibri.dev/session-affinity": value}});
            let template = json!({"metadata": metadata, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            let service = json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {"template": template}});
            let revision = json!({"metadata": {"name": "r", "namespace": "ns",
                "annotations": template["metadata"]["annotations"]}, "spec": template["spec"]});
            [(Kind::Service, service), (Kind::Revision, revision)]
                .map(|(kind, object)| validate(kind, &object, None, &Settings::default()).error.unwrap_or_default())
        };
        let path = "metadata.annotations.gateway.colibri.dev/session-affinity\nit is `cookie` or `none`";
        let [service, revision] = told("cookies");
        assert!(service.contains(&format!("invalid value: cookies: spec.template.{path}")), "{service}");
        assert!(revision.contains(&format!("invalid value: cookies: {path}")), "{revision}");
        for value in ["cookie", "none"] {
            assert!(told(value).iter().all(|error| !error.contains("affinity")), "{value}");
        }
    }

    #[test]
    fn a_claim_names_a_namespace_for_good() {
        let claim = |namespace: &str| json!({"metadata": {"name": "a.com"}, "spec": {"namespace": namespace}});
        let told = |claim: &Value, old: Option<&Value>| validate_claim(claim, old).unwrap_or_default();
        assert_eq!(told(&claim("a"), None), "");
        assert_eq!(told(&claim("a"), Some(&claim("a"))), "");
        assert_eq!(told(&claim(""), None), "missing field(s): spec.namespace");
        assert_eq!(told(&json!({"metadata": {"name": "a.com"}}), None), "missing field(s): spec.namespace");
        assert_eq!(told(&claim(""), Some(&claim("a"))), "missing field(s): spec.namespace");
        let moved = "Immutable fields changed (-old +new): spec.namespace\n\
            spec.namespace:\n\t-: \"a\"\n\t+: \"b\"";
        assert_eq!(told(&claim("b"), Some(&claim("a"))), moved);
    }
}
