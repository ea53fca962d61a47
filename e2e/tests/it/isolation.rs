//! What a pod must not reach of the platform and the host. The probes of the sandbox itself are tests of crate `node`.

use anyhow::Result;
use e2e::{Options, Platform, cannot_run};

use crate::host;

const FUNCTION: &str = "apiVersion: functions.colibri.dev/v1
kind: Function
metadata:
  name: probe
spec:
  runtime: python
";

/// Tries each thing and answers a line for it.
const CODE: &str = r#"
import os
import socket
import ssl
import urllib.error
import urllib.request


def connect(host, port):
    try:
        with socket.create_connection((host, port), timeout=2):
            return "reached"
    except OSError as error:
        return f"refused {type(error).__name__}"


def api(path):
    context = ssl._create_unverified_context()
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    port = os.environ["KUBERNETES_SERVICE_PORT"]
    try:
        with urllib.request.urlopen(f"https://{host}:{port}{path}", timeout=5, context=context) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except OSError as error:
        return f"refused {error}"


def handle(request):
    port = int(request.query["port"])
    lines = {
        "secrets": api("/api/v1/secrets"),
        "loopback": connect("127.0.0.1", port),
        "metadata": connect("169.254.169.254", 80),
        "host": connect(request.query["host"], port),
        "dns": socket.gethostbyname("kubernetes.default.svc.cluster.local"),
        "root": ",".join(sorted(os.listdir("/"))),
        "marker": str(os.path.exists(request.query["marker"])),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_the_api_only_with_a_token_and_nothing_of_the_host() -> Result<()> {
    if cannot_run(&["kubectl", "python3"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let dir = platform.scratch().join("probe");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("function.yml"), FUNCTION)?;
    std::fs::write(dir.join("main.py"), CODE)?;
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    let marker = platform.data_dir().join("kubeconfig");
    let port = platform.endpoint("api").rsplit(':').next().unwrap_or_default().to_owned();
    let path = format!("/?port={port}&host={}&marker={}", host_address(), marker.display());
    let answer = platform.get(&host("probe"), &path).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let value = |key: &str| {
        let line = answer.body.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_default().to_owned()
    };
    assert!(matches!(value("secrets").as_str(), "401" | "403"), "the API without a token: {}", answer.body);
    for key in ["loopback", "metadata", "host"] {
        assert!(value(key).starts_with("refused"), "{key}: {}", answer.body);
    }
    assert!(!value("dns").is_empty(), "{}", answer.body);
    assert_eq!(value("marker"), "False", "a file of the host is visible");
    for name in value("root").split(',') {
        let allowed = [
            "bin", "code", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc", "root", "run",
            "sbin", "sys", "tmp", "usr", "var",
        ];
        assert!(allowed.contains(&name), "/{name} of the host is visible: {}", answer.body);
    }
    platform.stop().await
}

/// An address of the host that is not loopback, or one that nobody has.
fn host_address() -> String {
    let any = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    any.map_or_else(|_| "192.0.2.1".to_owned(), |address| address.ip().to_string())
}
