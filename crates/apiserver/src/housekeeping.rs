//! What the server forgets with time: history for watches, and Events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use crate::ApiServer;
use crate::registry::Served;
use crate::resource::ResourceDef;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// How long an Event is kept after it was last seen.
const EVENT_TTL: Duration = Duration::from_secs(3600);

impl ApiServer {
    /// Looks from time to time, until the server is closed.
    pub(crate) fn start_housekeeping(self: &Arc<Self>) {
        let (server, stop) = (Arc::downgrade(self), self.stop.clone());
        tokio::spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
                let Some(server) = server.upgrade() else { return };
                server.expire_events(Timestamp::now()).await;
                server.store.forget_old(Instant::now());
            }
        });
    }

    /// Deletes the Events that nobody has seen again for [`EVENT_TTL`].
    async fn expire_events(self: &Arc<Self>, now: Timestamp) {
        let kinds = self.registry.all();
        let events = |served: &&Served| {
            served.def.plural == "events" && ["", "events.k8s.io"].contains(&served.def.group.as_ref())
        };
        for served in kinds.values().filter(events) {
            let old = |value: &Value| last_seen(value).is_none_or(|seen| is_over(seen, now));
            let entries = self.table(served).list("", None, usize::MAX, |_| true).entries;
            for (key, _) in entries.iter().filter(|(_, entry)| old(&entry.record.value())) {
                self.send(Method::DELETE, &path_of(&served.def, key), "").await;
            }
        }
    }
}

fn is_over(seen: Timestamp, now: Timestamp) -> bool {
    now.duration_since(seen).unsigned_abs() > EVENT_TTL && seen < now
}

/// The latest of the times that an Event carries.
fn last_seen(event: &Value) -> Option<Timestamp> {
    let times = ["/metadata/creationTimestamp", "/eventTime", "/lastTimestamp", "/series/lastObservedTime"];
    times.iter().filter_map(|time| event.pointer(time)?.as_str()?.parse::<Timestamp>().ok()).max()
}

/// The path of an object whose key in its table is `NAMESPACE/NAME` or `NAME`.
pub(crate) fn path_of(def: &ResourceDef, key: &str) -> String {
    let base = match def.group.as_ref() {
        "" => format!("/api/{}", def.version),
        group => format!("/apis/{group}/{}", def.version),
    };
    match key.split_once('/') {
        Some((namespace, name)) => format!("{base}/namespaces/{namespace}/{}/{name}", def.plural),
        None => format!("{base}/{}/{key}", def.plural),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;
    use crate::auth::User;
    use crate::body;

    async fn send(server: &Arc<ApiServer>, method: Method, path: &str, value: Option<Value>) -> (u16, Value) {
        let request = http::Request::builder().method(method).uri(path);
        let text = value.map(|value| value.to_string()).unwrap_or_default();
        let response = server.handle(User::master("test"), request.body(body::full(text)).unwrap()).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[tokio::test]
    async fn events_go_an_hour_after_they_were_last_seen() {
        let server = ApiServer::open(crate::Config::default()).await.unwrap();
        let now = Timestamp::now();
        let long_ago = now - jiff::SignedDuration::from_mins(59);
        for (name, seen) in [("old", Some(long_ago)), ("new", None)] {
            let mut event = json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
                "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "reason": "R", "type": "Normal",
            });
            if let Some(seen) = seen {
                event["lastTimestamp"] = seen.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
            }
            let (status, answer) = send(&server, Method::POST, "/api/v1/namespaces/default/events", Some(event)).await;
            assert_eq!(status, 201, "{answer}");
        }
        let names = async || {
            let (_, list) = send(&server, Method::GET, "/api/v1/events", None).await;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            items
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        server.expire_events(now + jiff::SignedDuration::from_mins(30)).await;
        assert_eq!(names().await, ["new", "old"], "both were created within the hour");
        server.expire_events(now + jiff::SignedDuration::from_mins(61)).await;
        assert!(names().await.is_empty());
    }

    #[test]
    fn the_latest_time_of_an_event_counts() {
        let event = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "lastTimestamp": "2026-01-01T00:10:00Z", "eventTime": null,
            "series": {"lastObservedTime": "2026-01-01T00:30:00.000000Z"},
        });
        let seen = last_seen(&event).unwrap();
        assert_eq!(seen, "2026-01-01T00:30:00Z".parse().unwrap());
        assert!(!is_over(seen, "2026-01-01T01:29:00Z".parse().unwrap()));
        assert!(is_over(seen, "2026-01-01T01:31:00Z".parse().unwrap()));
        assert!(!is_over("2026-01-01T09:00:00Z".parse().unwrap(), seen), "a clock that went back");
    }
}
