//! Label and field selectors: parsed once, with the reference's complaints.

use crate::error::ApiError;
use crate::object::Object;
use crate::quote::quoted;
use crate::resource::ResourceDef;
use serde_json::Value;

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// A label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Parses `a=b,c in (d,e),!f`.
    ///
    /// # Errors
    ///
    /// 400 with the reference's text.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        Parser { tokens: lex(text), at: 0 }.selector().map(Self).map_err(ApiError::bad_request)
    }

    /// A selector from the JSON form (`matchLabels`, `matchExpressions`); an absent one matches everything.
    pub fn from_json(value: &Value) -> Self {
        let mut requirements = Vec::new();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        for (key, value) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements.push(Requirement::In(key.clone(), vec![text(value)]));
        }
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression.get("key").map(text).unwrap_or_default();
            let values = expression.get("values").and_then(Value::as_array);
            let values = values.map(|v| v.iter().map(text).collect()).unwrap_or_default();
            requirements.push(match expression.get("operator").and_then(Value::as_str) {
                Some("NotIn") => Requirement::NotIn(key, values),
                Some("Exists") => Requirement::Exists(key),
                Some("DoesNotExist") => Requirement::Absent(key),
                _ => Requirement::In(key, values),
            });
        }
        Self(requirements)
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, given by a look-up, match.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::Greater(key, n) => label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
            Requirement::Less(key, n) => label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["!=", "==", ")", "(", ",", "!", "=", ">", "<"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let is_end = |c: char| c.is_whitespace() || "=!(),><".contains(c);
            let end = rest.find(is_end).unwrap_or(rest.len()).max(first.len_utf8());
            tokens.push(Token::Word(rest[..end].to_string()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn selector(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {
                    let requirement =
                        self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?;
                    requirements.push(requirement);
                    match self.next() {
                        Token::End => break,
                        Token::Symbol(",") => {
                            if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                                let found = self.peek().text();
                                return Err(format!("found '{found}', expected: identifier after ','"));
                            }
                        }
                        other => {
                            return Err(format!("found '{}', expected: ',' or 'end of string'", other.text()));
                        }
                    }
                }
                Token::End => break,
                other => {
                    return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
                }
            }
        }
        Ok(requirements)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = *self.peek() == Token::Symbol("!");
        if negated {
            self.at += 1;
        }
        let key = match self.next() {
            Token::Word(word) => word,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        check_key(&key)?;
        if negated {
            return Ok(Requirement::Absent(key));
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement::Exists(key));
        }
        let operator = self.next();
        match operator {
            Token::Word(word) if word == "in" => Ok(Requirement::In(key.clone(), self.values(&key)?)),
            Token::Word(word) if word == "notin" => Ok(Requirement::NotIn(key.clone(), self.values(&key)?)),
            Token::Symbol("=" | "==") => Ok(Requirement::In(key.clone(), vec![self.value(&key)?])),
            Token::Symbol("!=") => Ok(Requirement::NotIn(key.clone(), vec![self.value(&key)?])),
            Token::Symbol(">") => Ok(Requirement::Greater(key.clone(), self.number(&key)?)),
            Token::Symbol("<") => Ok(Requirement::Less(key.clone(), self.number(&key)?)),
            other => Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text())),
        }
    }

    fn value(&mut self, key: &str) -> Result<String, String> {
        let value = match self.peek() {
            Token::End | Token::Symbol(",") => String::new(),
            Token::Word(word) => {
                let word = word.clone();
                self.at += 1;
                word
            }
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        check_value(key, 0, &value)?;
        Ok(value)
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let value = self.value(key)?;
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        value.parse().map_err(|_| format!("values[0][{key}]: Invalid value: {}: {why}", quoted(&value)))
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}', expected: '('", other.text())),
        }
        let mut values = Vec::new();
        if *self.peek() == Token::Symbol(")") {
            self.at += 1;
            return Ok(vec![String::new()]);
        }
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.next() {
                        Token::Symbol(",") => {
                            if *self.peek() == Token::Symbol(")") {
                                values.push(String::new());
                            }
                        }
                        Token::Symbol(")") => break,
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(")") => break,
                Token::Symbol(",") => values.push(String::new()),
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
            }
        }
        for (index, value) in values.iter().enumerate() {
            check_value(key, index, value)?;
        }
        Ok(values)
    }
}

fn check_key(key: &str) -> Result<(), String> {
    match crate::names::qualified_name_faults(key).first() {
        Some(_) => {
            let why = crate::names::qualified_name_faults(key).join("; ");
            Err(format!("<nil>: Invalid value: {}: {why}", quoted(key)))
        }
        None => Ok(()),
    }
}

fn check_value(key: &str, index: usize, value: &str) -> Result<(), String> {
    match crate::names::label_value_fault(value) {
        Some(why) => Err(format!("values[{index}][{key}]: Invalid value: {}: {why}", quoted(value))),
        None => Ok(()),
    }
}

/// A field selector: every pair must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    /// Parses `metadata.name=x,spec.nodeName!=y`.
    ///
    /// # Errors
    ///
    /// 400 for a text that is no selector.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (label, equal, value) = split_term(&term).ok_or_else(|| {
                ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'"))
            })?;
            terms.push((label.to_string(), equal, unescape(value)?));
        }
        Ok(Self(terms))
    }

    /// Everything of that name.
    pub fn of_name(name: &str) -> Self {
        Self(vec![("metadata.name".to_owned(), true, name.to_owned())])
    }

    /// Checks that the resource knows every field.
    ///
    /// # Errors
    ///
    /// 400 that names the field.
    pub fn check(&self, def: &ResourceDef, custom: bool) -> Result<(), ApiError> {
        for (label, _, _) in &self.0 {
            let known = matches!(label.as_str(), "metadata.name" | "metadata.namespace")
                || def.selectable_fields.iter().any(|f| f.label == label.as_str());
            if known {
                continue;
            }
            if custom || !def.selectable_fields.is_empty() {
                return Err(ApiError::bad_request(format!("field label not supported: {label}")));
            }
            let only = "only \"metadata.name\", \"metadata.namespace\"";
            return Err(ApiError::bad_request(format!("{} is not a known field selector: {only}", quoted(label))));
        }
        Ok(())
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name, if it asks for exactly one.
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|(label, equal, _)| *equal && label == "metadata.name").map(|(_, _, value)| value.as_str())
    }

    /// Whether the object of that key matches.
    pub fn matches(&self, def: &ResourceDef, key: &str, object: &Object) -> bool {
        let (namespace, name) = if def.namespaced { key.split_once('/').unwrap_or(("", key)) } else { ("", key) };
        let mut parsed: Option<Value> = None;
        self.0.iter().all(|(label, equal, wanted)| {
            let holds = match label.as_str() {
                "metadata.name" => name == wanted,
                "metadata.namespace" => namespace == wanted,
                other => {
                    let value = parsed.get_or_insert_with(|| object.value());
                    let field = def.selectable_fields.iter().find(|f| f.label == other);
                    field.is_some_and(|field| (field.value)(value) == *wanted)
                }
            };
            holds == *equal
        })
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(term) = terms.last_mut() {
            term.push(c);
        }
    }
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let bytes = term.as_bytes();
    for at in 0..bytes.len() {
        for (symbol, equal) in [("!=", false), ("==", true), ("=", true)] {
            if term.is_char_boundary(at) && term[at..].starts_with(symbol) {
                return Some((&term[..at], equal, &term[at + symbol.len()..]));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, ApiError> {
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => {
                    let why = format!("invalid field selector: invalid escape sequence: \\{next}");
                    return Err(ApiError::bad_request(why));
                }
                None => return Err(ApiError::bad_request("invalid field selector: unterminated escape sequence")),
            },
            ',' | '=' => {
                let why = format!("invalid field selector: unescaped character in: {value}: {c}");
                return Err(ApiError::bad_request(why));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Vec<(String, String)> = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let selector = LabelSelector::parse(selector).unwrap();
        selector.matches(|key| labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()))
    }

    #[test]
    fn label_selectors_match() {
        let web = [("tier", "web"), ("n", "7")];
        for yes in [
            "",
            "tier=web",
            "tier==web",
            "tier!=db",
            "tier in (web,db)",
            "tier notin (db)",
            "tier",
            "!x",
            "n>5",
            "n<8",
            " tier = web ",
            "x!=1",
            "x notin (a)",
        ] {
            assert!(holds(yes, &web), "{yes:?} should match");
        }
        for no in ["tier=db", "tier!=web", "tier in ()", "!tier", "x", "x in (a)", "n>7", "tier>5", "tier="] {
            assert!(!holds(no, &web), "{no:?} should not match");
        }
    }

    #[test]
    fn bad_label_selectors_are_named() {
        let rows = [
            ("tier in (web", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            ("tier=web,", "found '', expected: identifier after ','"),
            ("!tier=web", "found '=', expected: ',' or 'end of string'"),
        ];
        for (selector, message) in rows {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().message, message, "for {selector:?}");
        }
    }

    #[test]
    fn field_selectors_split_and_unescape() {
        let selector = FieldSelector::parse("metadata.name=a\\,b,spec.x!=,y==2").unwrap();
        let expected = [("metadata.name", true, "a,b"), ("spec.x", false, ""), ("y", true, "2")];
        assert_eq!(selector.0, expected.map(|(l, e, v)| (l.to_string(), e, v.to_string())));
        assert!(FieldSelector::parse("nonsense").is_err());
        assert!(FieldSelector::parse("a=\\x").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,60}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
