//! Sets of fields, as `fieldsV1` writes them, and what differs between two objects in their terms.
//!
//! A step of a path is a key of that notation: `f:name`, `k:{"name":"a"}` for an item found by its keys, `v:"x"` for an
//! item of a set.
//!
//! Source: the structured-merge-diff notes of the Kubernetes project, and recorded answers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::resource::{ListType, Strategy};

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    children: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    member: bool,
    below: FieldSet,
}

impl FieldSet {
    /// From `fieldsV1`.
    pub(crate) fn from_json(value: &Value) -> Self {
        let mut set = Self::default();
        for (step, below) in value.as_object().into_iter().flatten().filter(|(step, _)| *step != ".") {
            let member = below.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."));
            set.children.insert(step.clone(), Node { member, below: Self::from_json(below) });
        }
        set
    }

    /// To `fieldsV1`.
    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (step, node) in &self.children {
            let mut below = node.below.to_json();
            if node.member
                && !node.below.is_empty()
                && let Some(below) = below.as_object_mut()
            {
                below.insert(".".into(), Value::Object(Map::new()));
            }
            map.insert(step.clone(), below);
        }
        Value::Object(map)
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Adds a path.
    pub(crate) fn insert(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else { return };
        let node = self.children.entry(first.clone()).or_default();
        if rest.is_empty() { node.member = true } else { node.below.insert(rest) }
    }

    /// Whether the path itself is in it.
    #[cfg(test)]
    pub(crate) fn has(&self, path: &[String]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        self.children.get(first).is_some_and(|node| if rest.is_empty() { node.member } else { node.below.has(rest) })
    }

    /// Whether the path, or anything below it, is in it.
    pub(crate) fn touches(&self, path: &[String]) -> bool {
        let Some((first, rest)) = path.split_first() else { return !self.is_empty() };
        self.children.get(first).is_some_and(|node| rest.is_empty() || node.below.touches(rest))
    }

    /// Adds what is in the other; whether anything was not in it yet.
    pub(crate) fn union(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (step, node) in &other.children {
            let own = self.children.entry(step.clone()).or_default();
            changed |= node.member && !own.member;
            own.member |= node.member;
            changed |= own.below.union(&node.below);
        }
        changed
    }

    /// Takes away what is in the other; whether anything of it was in this one.
    pub(crate) fn subtract(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (step, node) in &other.children {
            if let Some(own) = self.children.get_mut(step) {
                changed |= node.member && own.member;
                own.member &= !node.member;
                changed |= own.below.subtract(&node.below);
                if !own.member && own.below.is_empty() {
                    self.children.remove(step);
                }
            }
        }
        changed
    }

    /// What is in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut set = Self::default();
        for (step, node) in &self.children {
            let Some(there) = other.children.get(step) else { continue };
            let both = Node { member: node.member && there.member, below: node.below.intersection(&there.below) };
            if both.member || !both.below.is_empty() {
                set.children.insert(step.clone(), both);
            }
        }
        set
    }

    /// Takes away a path with everything below it.
    pub(crate) fn remove_tree(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.children.remove(*first);
        } else if let Some(node) = self.children.get_mut(*first) {
            node.below.remove_tree(rest);
            if !node.member && node.below.is_empty() {
                self.children.remove(*first);
            }
        }
    }

    /// All paths, deepest first within a branch.
    pub(crate) fn paths(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for (step, node) in &self.children {
            for below in node.below.paths() {
                found.push([vec![step.clone()], below].concat());
            }
            if node.member {
                found.push(vec![step.clone()]);
            }
        }
        found
    }
}

/// A path as conflicts print it: `.spec.containers[name="a"].image`.
pub(crate) fn shown(path: &[String]) -> String {
    path.iter()
        .map(|step| match step.split_once(':') {
            Some(("f", name)) => format!(".{name}"),
            Some(("k", keys)) => {
                let keys: Value = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> =
                    keys.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", pairs.join(","))
            }
            Some(("v", value)) => format!("[={value}]"),
            _ => step.clone(),
        })
        .collect()
}

/// The rules of a kind, with those of metadata.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub strategy: &'a dyn Strategy,
    /// Whether objects are typed: structs of built-in kinds are always there and are not owned themselves.
    pub built_in: bool,
}

/// How a value is looked into.
enum Shape<'v> {
    Leaf,
    Map(&'v Map<String, Value>),
    Items(Vec<(String, &'v Value)>),
}

impl Rules<'_> {
    fn list_type(&self, names: &[&str]) -> (bool, Option<Vec<String>>) {
        match names {
            ["metadata", "finalizers"] => return (true, None),
            ["metadata", "ownerReferences"] => return (false, Some(vec!["uid".into()])),
            _ => {}
        }
        match self.strategy.list_type(names) {
            ListType::Atomic => (false, None),
            ListType::Set => (true, None),
            ListType::Map(keys) => (false, Some(keys.iter().map(ToString::to_string).collect())),
        }
    }

    fn shape<'v>(&self, names: &[&str], value: &'v Value) -> Shape<'v> {
        match value {
            Value::Object(map) if !self.strategy.atomic_map(names) => Shape::Map(map),
            Value::Array(list) => match self.list_type(names) {
                (true, _) => Shape::Items(list.iter().map(|item| (format!("v:{item}"), item)).collect()),
                (_, Some(keys)) => Shape::Items(list.iter().map(|item| (key_step(item, &keys), item)).collect()),
                _ => Shape::Leaf,
            },
            _ => Shape::Leaf,
        }
    }

    /// Structs that are always there: never owned themselves.
    fn is_frame(&self, names: &[&str]) -> bool {
        match names {
            [] | ["metadata"] => true,
            ["spec" | "status"] => self.built_in,
            [.., "template"]
            | [.., "template", "metadata" | "spec"]
            | [.., "strategy" | "updateStrategy" | "resources"] => self.built_in,
            _ => false,
        }
    }

    /// The fields of an applied configuration.
    pub(crate) fn fields_of(&self, value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        self.collect(value, &mut Vec::new(), &mut Vec::new(), false, &mut set);
        set
    }

    fn collect<'v>(
        &self,
        value: &'v Value,
        names: &mut Vec<&'v str>,
        path: &mut Vec<String>,
        frames: bool,
        set: &mut FieldSet,
    ) {
        let shape = self.shape(names, value);
        match shape {
            Shape::Map(map) if !map.is_empty() => {
                if frames && !self.is_frame(names) && !path.is_empty() {
                    set.insert(path);
                }
                for (name, value) in map {
                    names.push(name);
                    path.push(format!("f:{name}"));
                    self.collect(value, names, path, frames, set);
                    path.pop();
                    names.pop();
                }
            }
            Shape::Items(items) if !items.is_empty() => {
                if frames {
                    set.insert(path);
                }
                for (step, item) in items {
                    path.push(step);
                    set.insert(path);
                    if item.is_object() {
                        self.collect(item, names, path, frames, set);
                    }
                    path.pop();
                }
            }
            Shape::Map(_) if self.is_frame(names) => {}
            _ => set.insert(path),
        }
    }

    /// What changed from `old` to `new`: fields set (added or modified), and fields removed.
    pub(crate) fn compare(&self, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
        let (mut set, mut removed) = (FieldSet::default(), FieldSet::default());
        self.compare_at(old, new, &mut Vec::new(), &mut Vec::new(), &mut set, &mut removed);
        (set, removed)
    }

    fn compare_at<'v>(
        &self,
        old: &'v Value,
        new: &'v Value,
        names: &mut Vec<&'v str>,
        path: &mut Vec<String>,
        set: &mut FieldSet,
        removed: &mut FieldSet,
    ) {
        if old == new {
            return;
        }
        match (self.shape(names, old), self.shape(names, new)) {
            (Shape::Map(before), Shape::Map(after)) => {
                // Most of an object stays as it is; managed fields are nobody's.
                let is_managed = |names: &[&str], name: &str| *names == ["metadata"] && name == "managedFields";
                let changed = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
                for (name, value) in changed {
                    if is_managed(names, name) {
                        continue;
                    }
                    names.push(name);
                    path.push(format!("f:{name}"));
                    match before.get(name) {
                        Some(old) => self.compare_at(old, value, names, path, set, removed),
                        None => self.collect(value, names, path, true, set),
                    }
                    path.pop();
                    names.pop();
                }
                for (name, value) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
                    if is_managed(names, name) {
                        continue;
                    }
                    names.push(name);
                    path.push(format!("f:{name}"));
                    self.collect(value, names, path, true, removed);
                    path.pop();
                    names.pop();
                }
            }
            (Shape::Items(before), Shape::Items(after)) => {
                for (step, item) in &after {
                    path.push(step.clone());
                    match before.iter().find(|(other, _)| other == step) {
                        Some((_, old)) => self.compare_at(old, item, names, path, set, removed),
                        None => {
                            set.insert(path);
                            if item.is_object() {
                                self.collect(item, names, path, true, set);
                            }
                        }
                    }
                    path.pop();
                }
                for (step, item) in before.iter().filter(|(step, _)| !after.iter().any(|(other, _)| other == step)) {
                    path.push(step.clone());
                    removed.insert(path);
                    if item.is_object() {
                        self.collect(item, names, path, true, removed);
                    }
                    path.pop();
                }
            }
            _ => set.insert(path),
        }
    }

    /// Puts an applied configuration over an object.
    pub(crate) fn merge(&self, live: &mut Value, config: &Value) {
        self.merge_at(live, config, &mut Vec::new());
    }

    fn merge_at<'v>(&self, live: &mut Value, config: &'v Value, names: &mut Vec<&'v str>) {
        match self.shape(names, config) {
            Shape::Map(map) => {
                if !live.is_object() {
                    *live = Value::Object(Map::new());
                }
                for (name, value) in map {
                    names.push(name);
                    if let Some(live) = live.as_object_mut() {
                        match live.get_mut(name) {
                            Some(present) => self.merge_at(present, value, names),
                            None => {
                                live.insert(name.clone(), value.clone());
                            }
                        }
                    }
                    names.pop();
                }
            }
            Shape::Items(items) => {
                if !live.is_array() {
                    *live = Value::Array(Vec::new());
                }
                let keys = self.list_type(names).1;
                for (step, item) in items {
                    let Some(list) = live.as_array_mut() else { return };
                    let same = |present: &Value| match &keys {
                        Some(keys) => key_step(present, keys) == step,
                        None => present == item,
                    };
                    match list.iter().position(same) {
                        Some(at) if item.is_object() => self.merge_at(&mut list[at], item, names),
                        Some(_) => {}
                        None => list.push(item.clone()),
                    }
                }
            }
            Shape::Leaf => *live = config.clone(),
        }
    }

    /// Removes the field at `path`; maps and lists that become empty stay.
    pub(crate) fn remove(&self, object: &mut Value, path: &[String]) {
        let Some((step, rest)) = path.split_first() else { return };
        match step.split_once(':') {
            Some(("f", name)) => {
                if rest.is_empty() {
                    object.as_object_mut().map(|map| map.remove(name));
                } else if let Some(child) = object.get_mut(name) {
                    self.remove(child, rest);
                }
            }
            Some(("k", keys)) => {
                let keys: Value = serde_json::from_str(keys).unwrap_or_default();
                let is_it = |item: &Value| keys.as_object().into_iter().flatten().all(|(k, v)| item.get(k) == Some(v));
                let Some(list) = object.as_array_mut() else { return };
                let Some(at) = list.iter().position(is_it) else { return };
                if rest.is_empty() {
                    list.remove(at);
                } else {
                    self.remove(&mut list[at], rest);
                }
            }
            Some(("v", value)) => {
                let value: Value = serde_json::from_str(value).unwrap_or_default();
                if let Some(list) = object.as_array_mut() {
                    list.retain(|item| *item != value);
                }
            }
            _ => {}
        }
    }
}

fn key_step(item: &Value, keys: &[String]) -> String {
    let pairs: BTreeMap<&String, &Value> = keys.iter().filter_map(|key| Some((key, item.get(key)?))).collect();
    format!("k:{}", serde_json::to_string(&pairs).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Text;

    struct Lists(Vec<Text>);

    impl Strategy for Lists {
        fn list_type(&self, path: &[&str]) -> ListType<'_> {
            if path == ["spec", "items"] { ListType::Map(&self.0) } else { ListType::Atomic }
        }
    }

    fn with<T>(test: impl FnOnce(Rules<'_>) -> T) -> T {
        let lists = Lists(vec!["name".into()]);
        test(Rules { strategy: &lists, built_in: true })
    }

    #[test]
    fn sets_are_read_and_written() {
        let json = json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}, "f:l": {"k:{\"name\":\"x\"}": {".": {}, "f:v": {}}}});
        let set = FieldSet::from_json(&json);
        assert_eq!(set.to_json(), json);
        assert!(set.has(&["f:b".into()]) && set.has(&["f:b".into(), "f:c".into()]) && !set.has(&["f:l".into()]));
    }

    #[test]
    fn differences_name_items_by_key() {
        let old = json!({"spec": {"items": [{"name": "a", "v": 1}], "l": [1]}});
        let new = json!({"spec": {"items": [{"name": "a", "v": 2}, {"name": "b"}], "x": {"y": 1}}});
        let (set, removed) = with(|rules| rules.compare(&old, &new));
        assert_eq!(
            set.to_json(),
            json!({"f:spec": {
                "f:items": {"k:{\"name\":\"a\"}": {"f:v": {}}, "k:{\"name\":\"b\"}": {".": {}, "f:name": {}}},
                "f:x": {".": {}, "f:y": {}},
            }})
        );
        assert_eq!(removed.to_json(), json!({"f:spec": {"f:l": {}}}));
    }

    #[test]
    fn configurations_merge_and_fields_go() {
        with(|rules| {
            let mut live = json!({"spec": {"items": [{"name": "a", "v": 1}], "l": [1]}});
            rules.merge(&mut live, &json!({"spec": {"items": [{"name": "b"}, {"name": "a", "w": 2}], "l": [2]}}));
            assert_eq!(live, json!({"spec": {"items": [{"name": "a", "v": 1, "w": 2}, {"name": "b"}], "l": [2]}}));
            rules.remove(&mut live, &["f:spec".into(), "f:items".into(), "k:{\"name\":\"a\"}".into()]);
            assert_eq!(live, json!({"spec": {"items": [{"name": "b"}], "l": [2]}}));
        });
    }

    #[test]
    fn paths_print_as_in_conflicts() {
        let path = ["f:spec".to_string(), "k:{\"name\":\"a\"}".into(), "f:image".into()];
        assert_eq!(shown(&path), ".spec[name=\"a\"].image");
    }
}
