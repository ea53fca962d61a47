//! Templates of names: text with `{{.Field}}` in it.
//!
//! Source: Go's `text/template`, as far as names need it: fields, `.Labels.key`, `.Annotations.key` and
//! `index .Labels "key"`; no other actions.

use std::fmt::Write;

/// A text with fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The field, and the key if it is a map.
    Field(String, Option<String>),
}

impl Template {
    /// Reads a template that may name `fields`, and keys of `maps`. `None` when it has another form.
    pub fn parse(text: &str, fields: &[&str], maps: &[&str]) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}")?;
            // Dashes take the white space beside them away.
            let (before, action) = match action.strip_prefix("- ") {
                Some(action) => (before.trim_end(), action),
                None => (before, action),
            };
            let (after, action) = match action.strip_suffix(" -") {
                Some(action) => (after.trim_start(), action),
                None => (after, action),
            };
            parts.push(Part::Text(before.to_owned()));
            parts.push(field(action.trim(), fields, maps)?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        (!rest.contains("}}")).then_some(Self(parts))
    }

    /// The text, with each field's value from `value`.
    pub fn render(&self, value: impl Fn(&str, Option<&str>) -> String) -> String {
        let mut text = String::new();
        for part in &self.0 {
            let part = match part {
                Part::Text(part) => part.clone(),
                Part::Field(name, key) => value(name, key.as_deref()),
            };
            let _ = text.write_str(&part); // to memory
        }
        text
    }
}

fn field(action: &str, fields: &[&str], maps: &[&str]) -> Option<Part> {
    if let Some(rest) = action.strip_prefix("index ") {
        let (map, key) = rest.trim().strip_prefix('.')?.split_once(' ')?;
        let key = key.trim().strip_prefix('"')?.strip_suffix('"')?;
        return (maps.contains(&map) && !key.contains('"')).then(|| Part::Field(map.to_owned(), Some(key.to_owned())));
    }
    let path = action.strip_prefix('.')?;
    match path.split_once('.') {
        None => fields.contains(&path).then(|| Part::Field(path.to_owned(), None)),
        Some((map, key)) => {
            let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            (plain && maps.contains(&map)).then(|| Part::Field(map.to_owned(), Some(key.to_owned())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_filled_in_and_others_refused() {
        let render = |text: &str| {
            let template = Template::parse(text, &["Name", "Namespace"], &["Labels"])?;
            Some(template.render(|name, key| match (name, key) {
                ("Labels", Some(key)) => format!("<{key}>"),
                (name, _) => name.to_lowercase(),
            }))
        };
        let rows = [
            ("plain", Some("plain")),
            ("{{.Name}}", Some("name")),
            ("{{ .Name }}-{{.Namespace}}", Some("name-namespace")),
            ("{{.Labels.a}}.{{index .Labels \"b/c\"}}", Some("<a>.<b/c>")),
            ("a {{- .Name -}} b", Some("anameb")),
            ("{{.Domain}}", None),
            ("{{.Name", None),
            ("Name}}", None),
            ("{{if .Name}}", None),
            ("{{index .Labels b}}", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(render(text).as_deref(), wanted, "{text}");
        }
    }
}
