//! Scaling by what pods use, and `kubectl top`, which shows it.

use std::time::Duration;

use anyhow::Result;
use e2e::{Options, Platform, cannot_run, is_of_our_control_plane};

use crate::{SHORT_WINDOW, SOON, host, service_selector, until};

/// How long the numbers and the windows may take on a busy machine.
const LATE: Duration = Duration::from_secs(120);

/// A server that keeps one core busy for so many seconds after `GET /burn/SECONDS`.
const PROGRAM: &str = r#"
import http.server, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/burn/"):
            end = time.monotonic() + float(self.path[6:])
            threading.Thread(target=burn, args=(end,), daemon=True).start()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
def burn(end):
    while time.monotonic() < end:
        pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"#;

fn service() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "busy"},
        "spec": {"template": {
            "metadata": {"annotations": {
                "autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev",
                "autoscaling.knative.dev/metric": "cpu",
                "autoscaling.knative.dev/target": "50",
                "autoscaling.knative.dev/max-scale": "2",
                SHORT_WINDOW.0: SHORT_WINDOW.1,
            }},
            "spec": {"containers": [{
                "image": "runtime.colibri.local/python", "command": ["python3", "-c", PROGRAM],
                "resources": {"requests": {"cpu": "200m"}},
            }]},
        }},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_service_gets_a_second_pod_and_gives_it_back() -> Result<()> {
    if cannot_run(&["kubectl", "python3"]).is_some()
        || is_of_our_control_plane("metrics.k8s.io is metrics-server's there, which is not installed")
    {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.apply(&service().to_string()).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/busy", "--timeout=60s"]).await?.ok()?;
    let selector = service_selector("busy");
    platform.wait_for_pods(&selector, 1, SOON).await?;

    let answer = platform.get(&host("busy"), "/burn/600").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let pod = platform.pods(&selector).await?.remove(0);
    platform.wait_for_pods(&selector, 2, LATE).await?;
    // The status follows what was decided.
    let status = async || Ok(platform.object("podautoscaler", "busy-00001").await?["status"].clone());
    let scaled = |status: &serde_json::Value| {
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let known = conditions.find(|condition| condition["type"] == "ScalingActive");
        status["desiredScale"] == 2 && known.is_some_and(|known| known["status"] == "True")
    };
    until(SOON, status, scaled).await?;

    // One of the two works hard, the other not at all.
    let top = async || {
        let top = platform.kubectl(&["top", "pods", "--no-headers", "-l", &selector]).await?.text();
        let millis = |line: &str| {
            let mut words = line.split_whitespace();
            let (name, cpu) = (words.next()?, words.next()?);
            Some((name.to_owned(), cpu.strip_suffix('m')?.parse::<u32>().ok()?))
        };
        Ok(top.lines().filter_map(millis).collect::<Vec<_>>())
    };
    let uneven = |used: &Vec<(String, u32)>| {
        let busy = used.iter().find(|(name, _)| pod.ends_with(name.as_str()));
        let other = used.iter().find(|(name, _)| !pod.ends_with(name.as_str()));
        busy.zip(other).is_some_and(|((_, busy), (_, other))| *busy > 100 && other < busy)
    };
    until(LATE, top, uneven).await?;
    let nodes = platform.kubectl(&["top", "nodes", "--no-headers"]).await?.ok()?;
    assert!(nodes.split_whitespace().nth(2).is_some_and(|share| share.ends_with('%')), "{nodes}");

    // The busy one is ended by hand: what comes in its place is idle, and two are too many.
    platform.kubectl(&["delete", &pod, "--now", "--wait=false"]).await?.ok()?;
    platform.wait_for_pods(&selector, 1, LATE).await?;
    platform.stop().await
}
