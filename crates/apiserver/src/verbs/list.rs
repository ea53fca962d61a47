//! Lists, in pages and at revisions.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};
use store::Snapshot;

use super::Call;
use super::get::bad_revision;
use crate::ApiServer;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::object::Object;
use crate::resource::FieldError;
use crate::selector::{FieldSelector, LabelSelector};

/// Which objects are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Only this name (a watch of one object).
    pub name: Option<String>,
}

impl Filter {
    /// The selectors of a request.
    pub(crate) fn of(call: &Call) -> ApiResult<Self> {
        let labels = LabelSelector::parse(call.query.get("labelSelector"))?;
        let fields = FieldSelector::parse(call.query.get("fieldSelector"))?;
        fields.check(&call.served.def, call.custom())?;
        let name = (!call.target.name.is_empty()).then(|| call.target.name.clone());
        Ok(Self { labels, fields, name })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    /// Whether the object of that key is wanted.
    pub(crate) fn matches(&self, call: &Call, key: &str, object: &Object) -> bool {
        let name_matches = |name: &String| key.rsplit('/').next() == Some(name);
        self.name.as_ref().is_none_or(name_matches)
            && self.labels.matches(|label| object.label(label))
            && (self.fields.is_empty() || self.fields.matches(&call.served.def, key, object))
    }
}

/// A page and what follows.
pub(crate) struct Page {
    pub snapshot: Snapshot<Object>,
    pub continue_token: Option<String>,
    pub remaining: Option<usize>,
}

impl ApiServer {
    pub(crate) fn list(&self, call: &Call) -> ApiResult<Response> {
        let page = self.page(call)?;
        self.respond_list(call, StatusCode::OK, &page)
    }

    /// Reads the page that the query asks for.
    pub(crate) fn page(&self, call: &Call) -> ApiResult<Page> {
        let filter = Filter::of(call)?;
        call.query.number("timeoutSeconds")?;
        let limit = call.query.number("limit")?.filter(|limit| *limit > 0);
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let token = call.query.get("continue");
        let asked = call.query.get("resourceVersion");
        check_options(call)?;
        let table = self.table(&call.served);
        let prefix =
            if call.target.namespace.is_empty() { String::new() } else { format!("{}/", call.target.namespace) };
        // Selectors see the key only through the object; its key is rebuilt where they need it.
        let namespaced = call.served.def.namespaced;
        let keep = |object: &Object| filter.is_empty() || filter.matches(call, &key_of(object, namespaced), object);
        if !token.is_empty() {
            let (revision, start) = decode_token(token)?;
            let after = format!("{prefix}{start}");
            let snapshot = table.list_at(revision, &prefix, Some(&after), limit, keep).map_err(|_| {
                ApiError::expired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.")
            })?;
            return Ok(page(snapshot, &prefix, filter.is_empty()));
        }
        let asked = match asked {
            "" | "0" => None,
            text => {
                let bad = |_| ApiError::bad_request(format!("invalid resource version: {}", bad_revision(text)));
                Some(text.parse::<u64>().map_err(bad)?)
            }
        };
        let snapshot = match (asked, call.query.get("resourceVersionMatch")) {
            (Some(revision), "Exact") => {
                self.reached(revision)?;
                table
                    .list_at(revision, &prefix, None, limit, keep)
                    .map_err(|_| ApiError::expired("The resourceVersion for the provided list is too old."))?
            }
            (asked, _) => {
                if let Some(revision) = asked {
                    self.reached(revision)?;
                }
                table.list(&prefix, None, limit, keep)
            }
        };
        Ok(page(snapshot, &prefix, filter.is_empty()))
    }

    /// 504 if the revision is still to come.
    pub(crate) fn reached(&self, revision: u64) -> ApiResult<()> {
        let current = self.store.revision();
        if revision <= current {
            return Ok(());
        }
        let message = format!("Too large resource version: {revision}, current: {current}");
        let mut error = ApiError::new(504, "Timeout", message);
        error.details = Some(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        error.retry_after = Some(1);
        Err(error)
    }
}

/// Key of an object in its table, from its metadata.
pub(crate) fn key_of(object: &Object, namespaced: bool) -> String {
    #[derive(serde::Deserialize)]
    struct Head {
        metadata: Meta,
    }
    #[derive(serde::Deserialize)]
    struct Meta {
        #[serde(default)]
        namespace: String,
        #[serde(default)]
        name: String,
    }
    let Ok(head) = serde_json::from_slice::<Head>(object.text()) else { return String::new() };
    crate::object::key(namespaced, &head.metadata.namespace, &head.metadata.name)
}

fn page(snapshot: Snapshot<Object>, prefix: &str, exact: bool) -> Page {
    let remaining = snapshot.remaining;
    let last = snapshot.entries.last().map(|(key, _)| key.clone());
    let continue_token = remaining.and(last).map(|last| {
        let start = format!("{}\0", last.strip_prefix(prefix).unwrap_or(&last));
        let token = json!({"v": "meta.k8s.io/v1", "rv": snapshot.revision, "start": start});
        URL_SAFE_NO_PAD.encode(token.to_string())
    });
    Page { snapshot, continue_token, remaining: remaining.filter(|_| exact) }
}

fn decode_token(token: &str) -> ApiResult<(u64, String)> {
    let bad = |why: &str| ApiError::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|error| {
        bad(&match error {
            base64::DecodeError::InvalidByte(at, _) => format!("illegal base64 data at input byte {at}"),
            _ => "illegal base64 data at input byte 0".to_string(),
        })
    })?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
    if value["v"] != "meta.k8s.io/v1" {
        let version = value["v"].as_str().unwrap_or_default();
        return Err(bad(&format!("server does not recognize this encoded version {}", crate::quote::quoted(version))));
    }
    let revision = value["rv"].as_u64().filter(|rv| *rv > 0);
    let revision = revision.ok_or_else(|| bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"))?;
    let start = value["start"].as_str().unwrap_or_default();
    if start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    Ok((revision, start.trim_end_matches('\0').to_string()))
}

/// Which of the options go together.
///
/// Source: `k8s.io/apimachinery/pkg/apis/meta/internalversion/validation`.
pub(crate) fn check_options(call: &Call) -> ApiResult<()> {
    let query = &call.query;
    let matching = query.get("resourceVersionMatch");
    let revision = query.get("resourceVersion");
    let is_watch = call.target.watch_path || query.flag("watch");
    let mut faults = Vec::new();
    if is_watch {
        check_watch_options(call, &mut faults);
    } else {
        if query.has("sendInitialEvents") {
            faults.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        if !matching.is_empty() {
            if revision.is_empty() {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                faults.push(FieldError::forbidden("resourceVersionMatch", why));
            }
            if !query.get("continue").is_empty() {
                let why = "resourceVersionMatch is forbidden when continue is provided";
                faults.push(FieldError::forbidden("resourceVersionMatch", why));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                let supported = ["Exact", "NotOlderThan", ""];
                faults.push(FieldError::not_supported("resourceVersionMatch", matching, &supported));
            }
            if matching == "Exact" && revision == "0" {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                faults.push(FieldError::forbidden("resourceVersionMatch", why));
            }
        }
    }
    if !faults.is_empty() {
        return Err(ApiError::invalid_kind("meta.k8s.io", "ListOptions", "", &faults));
    }
    if !query.get("continue").is_empty() && !matches!(revision, "" | "0") && !is_watch {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(())
}

fn check_watch_options(call: &Call, faults: &mut Vec<FieldError>) {
    let query = &call.query;
    let matching = query.get("resourceVersionMatch");
    if query.has("sendInitialEvents") && !query.get("sendInitialEvents").is_empty() {
        if matching != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            if matching.is_empty() {
                faults.push(FieldError::forbidden("resourceVersionMatch", why));
            } else {
                faults.push(FieldError::not_supported("resourceVersionMatch", matching, &["NotOlderThan"]));
            }
        }
        if !query.get("continue").is_empty() {
            let why = "continue is forbidden when sendInitialEvents is provided";
            faults.push(FieldError::forbidden("continue", why));
        }
    } else if !matching.is_empty() {
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        faults.push(FieldError::forbidden("resourceVersionMatch", why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continue_token_comes_back() {
        let token = URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": 7, "start": "a\0"}).to_string());
        assert_eq!(decode_token(&token).unwrap(), (7, "a".to_string()));
        for bad in ["!", "e30", ""] {
            assert!(decode_token(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_token_makes_the_parser_panic(token in ".{0,80}") {
            let _ = decode_token(&token);
        }
    }
}
