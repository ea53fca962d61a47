//! What the server knows of one resource: names, scope, rules and columns, as data.
//!
//! Built-in kinds (`kinds`) and custom resources (`crd`) both become a [`ResourceDef`]; from there on one path serves
//! them. A [`Strategy`] is pure: it sees JSON values, never the store, the clock or the network.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

/// A text that is a literal for built-in kinds and owned for custom ones.
pub type Text = Cow<'static, str>;

/// How soon a write of this kind must be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Synced before it is acknowledged.
    Sync,
    /// Written soon after; a crash of the machine may lose the last second (Leases, Events, pod status).
    Lazy,
}

/// What a name must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// A DNS subdomain (RFC 1123); most kinds.
    Subdomain,
    /// A DNS label (RFC 1123); Namespace.
    Label,
    /// A DNS label (RFC 1035); Service.
    Label1035,
    /// Anything that can be one segment of a path; RBAC kinds.
    PathSegment,
}

/// One subresource that discovery lists, such as `status`.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Its name, such as `status` or `scale`.
    pub name: Text,
    /// Kind of its objects, such as `Pod` or `Scale`.
    pub kind: Text,
    /// Group and version of its kind where they differ from the resource's: (`autoscaling`, `v1`) for scale.
    pub group_version: Option<(Text, Text)>,
    /// Verbs, as discovery prints them.
    pub verbs: Vec<Text>,
}

/// Where `/scale` finds its numbers, as dotted paths such as `.spec.replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Wanted replicas.
    pub spec_replicas: Text,
    /// Present replicas.
    pub status_replicas: Text,
    /// Selector of the pods; a text or a LabelSelector.
    pub selector: Option<Text>,
}

/// Head of one printed column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading, such as `Ready`.
    pub name: Text,
    /// OpenAPI type: string, integer, number, boolean, date.
    pub type_: Text,
    /// OpenAPI format; `name` marks the column of the name.
    pub format: Text,
    /// Description.
    pub description: Text,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
}

/// Makes the cells of one object; the time is now, for ages.
pub type Cells = Arc<dyn Fn(&Value, Timestamp) -> Vec<Value> + Send + Sync>;

/// The columns of a Table and the cells of one object.
#[derive(Clone)]
pub struct Columns {
    /// The heads, in order.
    pub definitions: Vec<Column>,
    /// One cell for each head; the second argument is the time now, for ages.
    pub cells: Cells,
}

impl fmt::Debug for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.definitions.fmt(f)
    }
}

/// A field that field selectors may name, besides `metadata.name` and `metadata.namespace`.
#[derive(Clone)]
pub struct SelectableField {
    /// Label of the field, such as `spec.nodeName`.
    pub label: Text,
    /// Its value in an object; the empty text if it is not set.
    pub value: Arc<dyn Fn(&Value) -> String + Send + Sync>,
}

impl fmt::Debug for SelectableField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// One served resource in one version.
#[derive(Clone, Debug)]
pub struct ResourceDef {
    /// API group; empty for the core group.
    pub group: Text,
    /// Version, such as `v1`.
    pub version: Text,
    /// Plural name, as in paths: `pods`.
    pub plural: Text,
    /// Singular name: `pod`.
    pub singular: Text,
    /// Kind: `Pod`.
    pub kind: Text,
    /// Kind of its list: `PodList`.
    pub list_kind: Text,
    /// Short names: `po`.
    pub short_names: Vec<Text>,
    /// Categories: `all`.
    pub categories: Vec<Text>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself, as discovery prints them (sorted). A kind that is only created
    /// (TokenReview, Binding) is not stored.
    pub verbs: Vec<Text>,
    /// Subresources; `status` among them if the kind has one.
    pub subresources: Vec<Subresource>,
    /// Paths for the scale subresource, if it has one.
    pub scale: Option<ScalePaths>,
    /// Whether `metadata.generation` is kept: 1 at creation, one more with each change outside metadata and status.
    pub generation: bool,
    /// When a write must be on the disk. Writes to `status` of pods are lazy besides.
    pub durability: Durability,
    /// Group and plural under which objects are kept; versions (and `events` of two groups) share one.
    pub storage: (Text, Text),
    /// What names must look like.
    pub name_rule: NameRule,
    /// Whether an update may leave `metadata.resourceVersion` out.
    pub unconditional_update: bool,
    /// Whether a PUT (or a non-apply PATCH) of an absent object creates it (Lease, Event, ... of the core kinds).
    pub create_on_update: bool,
    /// Columns of a Table.
    pub columns: Columns,
    /// Fields for field selectors.
    pub selectable_fields: Vec<SelectableField>,
    /// Rules.
    pub strategy: Arc<dyn Strategy>,
}

impl ResourceDef {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`: how errors name the resource.
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod` or `Deployment.apps`: how errors name the kind.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_string() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The subresource of that name, if there is one.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether `status` is written through its own path only.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether the resource itself answers to `verb`.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

impl fmt::Debug for dyn Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Strategy")
    }
}

/// How a list is merged by server-side apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType<'a> {
    /// Replaced as a whole, owned as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items found by the values of these keys.
    Map(&'a [Text]),
}

/// How strategic merge treats a list (or, with `retain_keys`, a map).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PatchMerge {
    /// Key that identifies items of a list of objects; `None` for a list of scalars.
    pub key: Option<Text>,
    /// Whether items merge (`merge`); without it the list is replaced.
    pub merge: bool,
    /// `retainKeys`: fields that the patch does not list are dropped.
    pub retain_keys: bool,
}

/// Takes everything but metadata and status over from the old object.
pub(crate) fn keep_but_status(new: &mut Value, old: &Value) {
    let (Some(next), Some(before)) = (new.as_object_mut(), old.as_object()) else { return };
    let is_kept = |name: &str| !matches!(name, "metadata" | "status");
    next.retain(|name, _| !is_kept(name) || before.contains_key(name));
    // Mostly the same: comparing costs less than copying.
    for (name, value) in before.iter().filter(|(name, _)| is_kept(name)) {
        if next.get(name) != Some(value) {
            next.insert(name.clone(), value.clone());
        }
    }
}

/// The rules of one kind in one version. Every method has a neutral default.
///
/// Values given are objects (maps) with `apiVersion`, `kind` and `metadata`; metadata itself is filled and checked by
/// the engine (names, labels, annotations, finalizers, owner references, uid, generation, managed fields).
#[allow(unused_variables)]
pub trait Strategy: Send + Sync {
    /// Checks types of fields as a decoder would; the text is the decoder's complaint (answered with 400).
    fn check_types(&self, object: &Value) -> Result<(), String> {
        Ok(())
    }

    /// Paths of fields that the kind does not know, such as `spec.containers[0].bogus`; in the order of the document.
    fn unknown_fields(&self, object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Removes fields that the kind does not know (after they were reported).
    fn prune(&self, object: &mut Value) {}

    /// Fills defaults in. Idempotent. Runs on creates, updates and patches alike.
    fn default(&self, object: &mut Value) {}

    /// Before an object is created: drops status, sets what only the server may set.
    fn prepare_create(&self, object: &mut Value) {}

    /// Before an update through the main path: keeps the old status, and what may not change silently.
    fn prepare_update(&self, new: &mut Value, old: &Value) {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => {
                if let Some(new) = new.as_object_mut() {
                    new.remove("status");
                }
            }
        }
    }

    /// Before an update through `/status`: by default only `status` (and managed fields, by the engine) is new.
    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_but_status(new, old);
    }

    /// Whether the update counts as a change of the desired state (for `metadata.generation`); by default anything
    /// outside `metadata` and `status`.
    fn spec_changed(&self, new: &Value, old: &Value) -> bool {
        let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return true };
        let desired = |key: &&String| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind");
        let keys: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).filter(desired).collect();
        keys.into_iter().any(|key| new.get(key) != old.get(key))
    }

    /// Faults of a new object, apart from metadata.
    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Faults of an update through the main path.
    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        self.validate_create(new)
    }

    /// Faults of an update through `/status`.
    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Texts for `Warning` headers.
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// How strategic merge treats the field at `path` (names only, no indices: `["spec", "containers"]`).
    /// `None` for fields without a rule. Kinds for which [`Strategy::strategic`] is false answer 415.
    fn patch_merge(&self, path: &[&str]) -> Option<PatchMerge> {
        None
    }

    /// Whether strategic merge patches are served at all (built-in kinds only).
    fn strategic(&self) -> bool {
        true
    }

    /// How server-side apply merges the list at `path` (names only, no indices).
    fn list_type(&self, path: &[&str]) -> ListType<'_> {
        ListType::Atomic
    }

    /// Whether the map at `path` is replaced and owned as a whole by server-side apply.
    fn atomic_map(&self, path: &[&str]) -> bool {
        false
    }

    /// Seconds of grace for a deletion without `gracePeriodSeconds`; `None` for kinds that go at once.
    /// (Pods that are bound: `spec.terminationGracePeriodSeconds`; pods that are not bound: `Some(0)`.)
    fn grace_period(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Turns an object of this version into the stored one (`apiVersion` is set by the engine).
    fn to_storage(&self, object: &mut Value) {}

    /// Turns a stored object into one of this version (`apiVersion` is set by the engine).
    #[expect(clippy::wrong_self_convention, reason = "it mirrors `to_storage`")]
    fn from_storage(&self, object: &mut Value) {}
}

/// A [`Strategy`] without rules.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRules;
impl Strategy for NoRules {}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A value must be given.
    Required,
    /// The value is not valid.
    Invalid,
    /// The value is not one of those that are known.
    NotSupported,
    /// The value may not be given here.
    Forbidden,
    /// The value occurs twice.
    Duplicate,
    /// The value is too long.
    TooLong,
    /// There are too many items.
    TooMany,
    /// What the value refers to does not exist.
    NotFound,
    /// The value has the wrong type.
    TypeInvalid,
    /// The server failed.
    Internal,
}

impl FaultKind {
    /// The machine's word, as in `Status.details.causes[].reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::Duplicate => "Duplicate value",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
            Self::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::Internal)
    }
}

/// One fault of one field; prints as kube-apiserver does.
///
/// Source: `k8s.io/apimachinery/pkg/util/validation/field`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: FaultKind,
    /// Path of the field: `spec.containers[0].name`.
    pub path: String,
    /// The value that was given; not shown for every kind of fault.
    pub value: Value,
    /// Explanation; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(kind: FaultKind, path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind, path: path.into(), value: value.into(), detail: detail.into() }
    }

    /// `path: Required value[: detail]`.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FaultKind::Required, path, Value::Null, detail)
    }

    /// `path: Invalid value: value: detail`.
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FaultKind::Invalid, path, value, detail)
    }

    /// `path: Unsupported value: "value": supported values: "a", "b"`.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let listed: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if listed.is_empty() { String::new() } else { format!("supported values: {}", listed.join(", ")) };
        Self::new(FaultKind::NotSupported, path, value, detail)
    }

    /// `path: Forbidden: detail`.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FaultKind::Forbidden, path, Value::Null, detail)
    }

    /// `path: Duplicate value: value`.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FaultKind::Duplicate, path, value, "")
    }

    /// `path: Too long: may not be more than N bytes`.
    pub fn too_long(path: impl Into<String>, limit: usize) -> Self {
        Self::new(FaultKind::TooLong, path, Value::Null, format!("may not be more than {limit} bytes"))
    }

    /// `path: Too many: N: must have at most M items`.
    pub fn too_many(path: impl Into<String>, count: usize, limit: usize) -> Self {
        let items = if limit == 1 { "item" } else { "items" };
        Self::new(FaultKind::TooMany, path, count, format!("must have at most {limit} {items}"))
    }

    /// `path: Not found: value`.
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FaultKind::NotFound, path, value, "")
    }

    /// `path: Invalid value: "type": detail`.
    pub fn type_invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FaultKind::TypeInvalid, path, value, detail)
    }

    /// The text without the path: what a cause's `message` says.
    pub fn body(&self) -> String {
        let mut text = self.kind.title().to_string();
        if self.kind.shows_value() {
            text.push_str(": ");
            text.push_str(&shown(&self.value));
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => crate::quote::quoted(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_print_as_kube_apiserver_prints_them() {
        let rows = [
            (FieldError::required("spec.a", ""), "spec.a: Required value"),
            (FieldError::required("spec.a", "must be set"), "spec.a: Required value: must be set"),
            (FieldError::invalid("m", "a\"b", "no"), r#"m: Invalid value: "a\"b": no"#),
            (FieldError::invalid("m", -1, "no"), "m: Invalid value: -1: no"),
            (FieldError::invalid("m", json!({"a": 1}), "no"), r#"m: Invalid value: {"a":1}: no"#),
            (
                FieldError::not_supported("t", "x", &["a", "b"]),
                r#"t: Unsupported value: "x": supported values: "a", "b""#,
            ),
            (FieldError::forbidden("f", "may not"), "f: Forbidden: may not"),
            (FieldError::duplicate("d", "x"), r#"d: Duplicate value: "x""#),
            (FieldError::too_long("l", 63), "l: Too long: may not be more than 63 bytes"),
            (FieldError::too_many("l", 3, 2), "l: Too many: 3: must have at most 2 items"),
        ];
        for (fault, text) in rows {
            assert_eq!(fault.to_string(), text);
        }
    }
}
