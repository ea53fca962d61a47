//! Watches: a stream of changes, one JSON object a line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use store::{Change, Watch};
use tokio::time::Instant;

use super::Call;
use super::get::bad_revision;
use super::list::{Filter, check_options, key_of};
use super::render::include;
use crate::ApiServer;
use crate::body::{self, BoxError, Response};
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Notation, Shape};
use crate::object::Object;
use crate::table;

/// A watch without `timeoutSeconds` ends after this time plus up to as much again.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Time between bookmarks, while there is something to mark.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// A bookmark is also sent so long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Events are sent together up to this size.
const CHUNK_BYTES: usize = 64 * 1024;

/// Where a watch begins.
enum Start {
    /// With the objects as they are now.
    Now,
    /// After a revision.
    After(u64),
}

struct Stream {
    server: Arc<ApiServer>,
    call: Arc<Call>,
    filter: Filter,
    prefix: String,
    watch: Option<Watch<Object>>,
    /// Objects to be sent first.
    initial: VecDeque<Arc<Object>>,
    /// A bookmark ends the initial objects.
    initial_bookmark: Option<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    last_bookmark_sent: bool,
    table_head_sent: bool,
    /// Whether there were changes since the last event that the client was not shown.
    unseen: bool,
    failure: Option<ApiError>,
    done: bool,
}

impl ApiServer {
    pub(crate) fn watch(self: &Arc<Self>, call: Call) -> ApiResult<Response> {
        let filter = Filter::of(&call)?;
        let timeout = call.query.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        check_options(&call)?;
        include(&call)?;
        let asked = call.query.get("resourceVersion");
        let initial_events = match call.query.get("sendInitialEvents") {
            "" => None,
            other => Some(!matches!(other, "false" | "0")),
        };
        let revision = match asked {
            "" => 0,
            text => text.parse::<u64>().map_err(|_| ApiError::internal(bad_revision(text)))?,
        };
        let start = match (initial_events, revision) {
            (Some(true), _) => Start::Now,
            (Some(false), 0) => Start::After(self.store.revision()),
            (None, 0) => Start::Now,
            (_, revision) => Start::After(revision),
        };
        if initial_events == Some(true) && revision > 0 {
            self.reached(revision)?;
        }
        let table = self.table(&call.served);
        let prefix =
            if call.target.namespace.is_empty() { String::new() } else { format!("{}/", call.target.namespace) };
        let mut initial = VecDeque::new();
        let mut failure = None;
        let mut initial_bookmark = None;
        let watch = match start {
            Start::Now => {
                let namespaced = call.served.def.namespaced;
                let keep =
                    |object: &Object| filter.is_empty() || filter.matches(&call, &key_of(object, namespaced), object);
                let snapshot = table.list(&prefix, None, usize::MAX, keep);
                initial.extend(snapshot.entries.into_iter().map(|(_, entry)| entry.record));
                if initial_events == Some(true) && call.query.flag("allowWatchBookmarks") {
                    initial_bookmark = Some(snapshot.revision);
                }
                table.watch(snapshot.revision).ok()
            }
            Start::After(revision) => match table.watch(revision) {
                Ok(watch) => Some(watch),
                Err(compacted) => {
                    failure = Some(too_old(compacted.asked, compacted.oldest));
                    None
                }
            },
        };
        let timeout = timeout.map_or_else(default_timeout, Duration::from_secs);
        let now = Instant::now();
        let content_type = content_type(&call);
        let bookmarks = call.query.flag("allowWatchBookmarks");
        let stream = Stream {
            server: self.clone(),
            call: Arc::new(call),
            filter,
            prefix,
            watch,
            initial,
            initial_bookmark,
            bookmarks,
            next_bookmark: now + BOOKMARK_PERIOD,
            deadline: now + timeout,
            last_bookmark_sent: false,
            table_head_sent: false,
            unseen: false,
            failure,
            done: false,
        };
        let chunks = futures::stream::unfold(stream, |mut stream| async move {
            let chunk = stream.next().await?;
            Some((Ok::<Bytes, BoxError>(chunk), stream))
        });
        let mut response = http::Response::new(body::stream(chunks));
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(response)
    }
}

fn content_type(call: &Call) -> &'static str {
    match call.accepted.notation {
        Notation::Json => "application/json",
        Notation::Yaml => "application/yaml",
    }
}

fn default_timeout() -> Duration {
    let mut byte = [0_u8];
    let _ = getrandom::fill(&mut byte);
    DEFAULT_TIMEOUT + DEFAULT_TIMEOUT * u32::from(byte[0]) / 255
}

fn too_old(asked: u64, oldest: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {asked} ({})", oldest + 1))
}

impl Stream {
    /// The next piece of the body; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut out = BytesMut::new();
        if let Some(failure) = self.failure.take() {
            self.done = true;
            put_event(&mut out, "ERROR", failure.status().to_string().as_bytes());
            return Some(out.freeze());
        }
        while let Some(object) = self.initial.pop_front() {
            self.put_object(&mut out, "ADDED", &object);
            if out.len() >= CHUNK_BYTES {
                return Some(out.freeze());
            }
        }
        if let Some(revision) = self.initial_bookmark.take() {
            self.put_bookmark(&mut out, revision, true);
        }
        if !out.is_empty() {
            return Some(out.freeze());
        }
        self.next_changes(out).await
    }

    async fn next_changes(&mut self, mut out: BytesMut) -> Option<Bytes> {
        loop {
            let last_bookmark = self.deadline.checked_sub(LAST_BOOKMARK).unwrap_or(self.deadline);
            let due = if self.last_bookmark_sent { self.next_bookmark } else { self.next_bookmark.min(last_bookmark) };
            let gone = self.call.served.gone.clone();
            let stop = self.server.stop.clone();
            let watch = self.watch.as_mut()?;
            let bookmarks = self.bookmarks;
            let changes = tokio::select! {
                biased;
                () = gone.cancelled() => return None,
                () = stop.cancelled() => return None,
                changes = watch.next() => changes,
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(due), if bookmarks => {
                    // What came before the bookmark has been sent; nothing older is to come.
                    match watch.ready() {
                        Ok(changes) if changes.is_empty() => {
                            let revision = watch.revision();
                            let is_last = due >= last_bookmark;
                            self.last_bookmark_sent |= is_last;
                            self.next_bookmark = due + BOOKMARK_PERIOD;
                            // From what it has the client can go on, however many other tables were written to.
                            if !is_last && !std::mem::take(&mut self.unseen) {
                                continue;
                            }
                            self.put_bookmark(&mut out, revision, false);
                            return Some(out.freeze());
                        }
                        other => other,
                    }
                }
            };
            match changes {
                Err(compacted) => {
                    self.failure = Some(too_old(compacted.asked, compacted.oldest));
                    self.done = true;
                    let failure = self.failure.take()?;
                    put_event(&mut out, "ERROR", failure.status().to_string().as_bytes());
                    return Some(out.freeze());
                }
                Ok(changes) => {
                    for change in changes {
                        self.put_change(&mut out, &change);
                    }
                    if !out.is_empty() {
                        self.unseen = false;
                        return Some(out.freeze());
                    }
                    self.unseen = true;
                }
            }
        }
    }

    fn put_change(&mut self, out: &mut BytesMut, change: &Change<Object>) {
        if !change.key.starts_with(&self.prefix) {
            return;
        }
        let new = &change.new.record;
        if self.filter.is_empty() {
            let kind = if change.deleted {
                "DELETED"
            } else if change.old.is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            };
            self.put_object(out, kind, new);
            return;
        }
        let matches = |object: &Object| self.filter.matches(&self.call, &change.key, object);
        let before = change.old.as_ref().is_some_and(|old| matches(&old.record));
        let after = !change.deleted && matches(new);
        match (before, after) {
            (false, false) => {}
            (false, true) => self.put_object(out, "ADDED", new),
            (true, true) => self.put_object(out, "MODIFIED", new),
            (true, false) => {
                // The object as the watcher knew it, at the revision at which it went out of sight.
                match change.old.as_ref().filter(|_| !change.deleted) {
                    Some(old) => {
                        let mut last = old.record.value();
                        last["metadata"]["resourceVersion"] = change.revision().to_string().into();
                        self.put_object(out, "DELETED", &Object::encode(&last));
                    }
                    None => self.put_object(out, "DELETED", new),
                }
            }
        }
    }

    fn put_object(&mut self, out: &mut BytesMut, kind: &str, object: &Object) {
        let call = self.call.clone();
        match call.accepted.shape {
            Shape::Object => put_event(out, kind, &self.server.text_of(&call, object)),
            Shape::Partial => {
                put_event(out, kind, &self.server.partial_text(&call, object));
            }
            Shape::Table => {
                let value = self.server.view(&call.served, object);
                let mut table =
                    table::head(&call.served.def, &json!({"resourceVersion": value["metadata"]["resourceVersion"]}));
                if self.table_head_sent {
                    table["columnDefinitions"] = Value::Null;
                }
                self.table_head_sent = true;
                let include = include(&call).unwrap_or(table::Include::Metadata);
                table["rows"] = json!([table::row(&call.served.def, &value, include)]);
                put_event(out, kind, table.to_string().as_bytes());
            }
        }
    }

    fn put_bookmark(&mut self, out: &mut BytesMut, revision: u64, initial: bool) {
        let def = &self.call.served.def;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.call.accepted.shape {
            Shape::Object => {
                if !self.call.custom() && !initial {
                    metadata["creationTimestamp"] = Value::Null;
                    metadata.as_object_mut().map(|m| m.remove("creationTimestamp"));
                }
                json!({"kind": def.kind, "apiVersion": def.api_version(), "metadata": metadata})
            }
            Shape::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table => {
                let mut table = table::head(def, &json!({"resourceVersion": revision.to_string()}));
                if self.table_head_sent {
                    table["columnDefinitions"] = Value::Null;
                }
                self.table_head_sent = true;
                let partial =
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                table["rows"] = json!([{"cells": [], "object": partial}]);
                table
            }
        };
        put_event(out, "BOOKMARK", object.to_string().as_bytes());
    }
}

fn put_event(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.reserve(object.len() + kind.len() + 32);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
