//! Admission webhooks, and what a node is asked, with real servers at the other end.

use std::sync::Arc;

use apiserver::{ApiServer, Config, User};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::https::{self, Body, names};
use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A webhook: adds the label `seen` when asked to mutate; refuses objects with the data `bad`, and every deletion of
/// what is labelled `keep`.
fn decide(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    match (path, request["operation"].as_str()) {
        ("/mutate", Some("CREATE" | "UPDATE")) => {
            let patch = json!([
                {"op": "add", "path": "/data/seen", "value": request["operation"]},
                {"op": "add", "path": "/data/by", "value": request["userInfo"]["username"]},
            ]);
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(patch.to_string()).into();
            response["warnings"] = json!(["it was looked at"]);
        }
        ("/validate", Some("DELETE")) => {
            let keep = request["oldObject"]["data"]["keep"].is_string();
            response["allowed"] = (!keep).into();
            response["status"] = json!({"code": 403, "reason": "Forbidden", "message": "it stays"});
        }
        ("/validate", _) => {
            // What the mutating webhook added is there already.
            assert!(request["object"]["data"]["seen"].is_string(), "{review}");
            response["allowed"] = request["object"]["data"]["bad"].is_null().into();
            response["status"] = json!({"code": 422, "message": "bad data"});
        }
        ("/wrong", _) => response["uid"] = "of another".into(),
        _ => {}
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

struct World {
    server: Arc<ApiServer>,
    /// Address of the webhook.
    url: String,
    stop: CancellationToken,
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    async fn new() -> Self {
        let server = ApiServer::open(Config::default()).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let authority = server.pki().authority();
        let identity = authority.identity("webhook", None, &["127.0.0.1".to_owned()]).unwrap();
        let tls = https::server_tls(identity, None).unwrap();
        let (stop, asked) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
        let log = asked.clone();
        let answer = move |_, request: Request<Body>| {
            let log = log.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let review: Value = serde_json::from_slice(&body).unwrap();
                log.lock().push(format!("{path} {}", review["request"]["name"].as_str().unwrap_or_default()));
                Response::new(https::full(decide(&path, &review).to_string()))
            }
        };
        tokio::spawn(https::serve(listener, tls, TaskTracker::new(), stop.clone(), answer));
        Self { server, url, stop, asked }
    }

    fn client(&self) -> kube::Client {
        self.server.client(User::master("jane"))
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client())
    }

    /// Creates a configuration with one webhook; `more` is laid over it.
    async fn configure(&self, kind: &str, name: &str, path: &str, more: Value) {
        let pem = self.server.pki().authority().pem();
        let mut webhook = json!({
            "name": format!("{name}.example.com"),
            "clientConfig": {"url": format!("{}{path}", self.url), "caBundle": STANDARD.encode(pem)},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "admissionReviewVersions": ["v1"], "sideEffects": "None",
        });
        for (field, value) in more.as_object().unwrap() {
            webhook[field] = value.clone();
        }
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name}, "webhooks": [webhook],
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        self.configurations(kind).create(&PostParams::default(), &object).await.unwrap();
    }

    fn configurations(&self, kind: &str) -> Api<DynamicObject> {
        let kind = kube::core::GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::all_with(self.client(), &kube::core::ApiResource::from_gvk(&kind))
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock())
    }
}

fn map(name: &str, data: Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap()
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_refuse_what_is_written() {
    let world = World::new().await;
    world.configure(VALIDATING, "check", "/validate", json!({})).await;
    world.configure(MUTATING, "fill", "/mutate", json!({})).await;
    let (maps, params) = (world.maps(), PostParams::default());

    let created = maps.create(&params, &map("a", json!({"x": "1"}))).await.unwrap();
    let data = created.data.unwrap();
    assert_eq!((data["seen"].as_str(), data["by"].as_str()), ("CREATE", "jane"));
    assert_eq!(world.asked(), ["/mutate a", "/validate a"]);
    let patch = Patch::Merge(json!({"data": {"x": "2"}}));
    let changed = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(changed.data.unwrap()["seen"], "UPDATE");
    let applied = Patch::Apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"keep": "me"},
    }));
    maps.patch("b", &PatchParams::apply("test"), &applied).await.unwrap();

    let refused = maps.create(&params, &map("c", json!({"bad": "1"}))).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    assert_eq!(status.message, "admission webhook \"check.example.com\" denied the request: bad data");
    assert_eq!(status.code, 422);
    assert!(maps.get_opt("c").await.unwrap().is_none());
    let refused = maps.delete("b", &DeleteParams::default()).await.unwrap_err();
    assert!(refused.to_string().contains("denied the request: it stays"), "{refused}");
    maps.delete("a", &DeleteParams::default()).await.unwrap();

    // Another kind, and the configurations themselves, pass by.
    world.asked();
    world.configurations(VALIDATING).delete("check", &DeleteParams::default()).await.unwrap();
    assert_eq!(world.asked(), Vec::<String>::new());
    maps.delete("b", &DeleteParams::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_and_the_failure_policy_count() {
    let world = World::new().await;
    let elsewhere = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}});
    world.configure(VALIDATING, "a-elsewhere", "/validate", elsewhere).await;
    world
        .configure(VALIDATING, "b-labelled", "/validate", json!({"objectSelector": {"matchLabels": {"l": "1"}}}))
        .await;
    world.configure(VALIDATING, "c-ignored", "/wrong", json!({"failurePolicy": "Ignore"})).await;
    let (maps, params) = (world.maps(), PostParams::default());
    maps.create(&params, &map("a", json!({}))).await.unwrap();
    assert_eq!(world.asked(), ["/wrong a"], "neither selector matches; the broken one is left out");
    let system: Api<ConfigMap> = Api::namespaced(world.client(), "kube-system");
    system.create(&params, &map("a", json!({"seen": "x"}))).await.unwrap();
    assert_eq!(world.asked(), ["/validate a", "/wrong a"]);
    let mut labelled = map("b", json!({"seen": "x"}));
    labelled.metadata.labels = Some([("l".to_owned(), "1".to_owned())].into());
    maps.create(&params, &labelled).await.unwrap();
    assert_eq!(world.asked(), ["/validate b", "/wrong b"]);

    world.configure(VALIDATING, "d-strict", "/wrong", json!({"failurePolicy": "Fail"})).await;
    let failed = maps.create(&params, &map("c", json!({}))).await.unwrap_err().to_string();
    assert!(failed.contains("failed calling webhook \"d-strict.example.com\"") && failed.contains("uid"), "{failed}");
    world.configurations(VALIDATING).delete("d-strict", &DeleteParams::default()).await.unwrap();

    // A server of which nothing is left, and one that another authority vouches for.
    let other = ApiServer::open(Config::default()).await.unwrap();
    let bundle = STANDARD.encode(other.pki().authority().pem());
    let config = json!({"clientConfig": {"url": format!("{}/mutate", world.url), "caBundle": bundle}});
    world.configure(VALIDATING, "e-forged", "/mutate", config).await;
    let failed = maps.create(&params, &map("d", json!({}))).await.unwrap_err().to_string();
    assert!(failed.contains("e-forged.example.com") && failed.contains("ertificate"), "{failed}");
    world.configurations(VALIDATING).delete("e-forged", &DeleteParams::default()).await.unwrap();
    world.configure(VALIDATING, "f-gone", "/validate", json!({})).await;
    world.stop.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while maps.create(&params, &map("e", json!({"seen": "x"}))).await.is_ok() {
            let _ = maps.delete("e", &DeleteParams::default()).await;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("a webhook that is gone fails the write");
}

/// What the node says that it and its pods use: one that was never here among them, and one that was another of the name.
fn summary() -> Value {
    let time = "2026-01-01T00:00:00Z";
    let usage = |name: &str| {
        json!({
            "name": name, "cpu": {"time": time, "usageNanoCores": 5_000_000, "usageCoreNanoSeconds": 1},
            "memory": {"time": time, "usageBytes": 4096, "workingSetBytes": 2048},
        })
    };
    let pod = |name: &str, uid: &str| json!({"podRef": {"name": name, "namespace": "default", "uid": uid}, "containers": [usage("c")]});
    let mut node = usage("n");
    node["nodeName"] = "n".into();
    json!({"node": node, "pods": [pod("p", POD_UID.get().unwrap()), pod("q", "another"), pod("lost", "u")]})
}

/// Of the pod `p` of the test.
static POD_UID: std::sync::OnceLock<String> = std::sync::OnceLock::new();

#[tokio::test(flavor = "multi_thread")]
async fn logs_metrics_and_proxied_requests_come_from_the_node() {
    let server = ApiServer::open(Config::default()).await.unwrap();
    let client = server.client(User::master("jane"));
    let authority = server.pki().authority();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = authority.identity("node", None, &["127.0.0.1".to_owned(), names::NODE.to_owned()]).unwrap();
    let tls = https::server_tls(identity, Some(authority.roots().unwrap())).unwrap();
    let answer = move |peer: Arc<https::Peer>, request: Request<Body>| async move {
        let user = apiserver::auth::user_of_certificate(peer.certificate.as_ref().unwrap()).unwrap();
        assert!(user.is_master() && user.name == "kube-apiserver-kubelet-client", "{user:?}");
        assert!(request.headers().get("authorization").is_none());
        let asked = format!("{} {}", request.method(), request.uri());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let answer = if asked == "GET /stats/summary" {
            summary().to_string()
        } else {
            format!("{asked} {}", String::from_utf8_lossy(&body))
        };
        let mut response = Response::new(https::full(answer));
        if asked.contains("/refused") {
            *response.status_mut() = http::StatusCode::BAD_REQUEST;
        }
        response
    };
    tokio::spawn(https::serve(listener, tls, TaskTracker::new(), CancellationToken::new(), answer));
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    nodes.patch_status("n", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let account: k8s_openapi::api::core::v1::ServiceAccount = serde_json::from_value(account).unwrap();
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &account).await.unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::default_namespaced(client.clone());
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    for name in ["p", "q"] {
        let mut pod = pod.clone();
        pod["metadata"] = json!({"name": name, "labels": {"app": name}});
        let made = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        POD_UID.get_or_init(|| made.metadata.uid.unwrap());
    }

    let params = kube::api::LogParams { tail_lines: Some(3), ..kube::api::LogParams::default() };
    let log = pods.logs("p", &params).await.unwrap();
    assert_eq!(log, "GET /containerLogs/default/p/c?tailLines=3 ");
    let proxied = |path: &str| Request::post(format!("/api/v1/nodes/n/proxy{path}")).body(b"body".to_vec()).unwrap();
    assert_eq!(client.request_text(proxied("/a%2Fb?c=d")).await.unwrap(), "POST /a%2Fb?c=d body");
    let refused = client.request_text(proxied("/refused")).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 400), "{refused}");
    // Who may not use nodes/proxy does not get that far; nor does a node that is not there.
    let nobody = server.client(User { name: "nobody".into(), ..User::default() });
    let refused = nobody.request_text(proxied("/a")).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    let missing = Request::get("/api/v1/nodes/m/proxy/").body(Vec::new()).unwrap();
    assert!(client.request_text(missing).await.is_err());

    let get = |path: &str| Request::get(format!("/apis/metrics.k8s.io/v1beta1/{path}")).body(Vec::new()).unwrap();
    let names = async |path: &str| {
        let list = client.request::<Value>(get(path)).await.unwrap();
        let items = list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone());
        Value::from_iter(items)
    };
    assert_eq!(names("pods").await, json!(["p"]));
    assert_eq!(names("pods?labelSelector=app%3Dp").await, json!(["p"]));
    for other in ["namespaces/kube-system/pods", "pods?labelSelector=app%3Dq", "pods?fieldSelector=metadata.name%3Dq"] {
        assert_eq!(names(other).await, json!([]), "{other}");
    }
    assert_eq!(names("nodes").await, json!(["n"]));
    let one: Value = client.request(get("namespaces/default/pods/p")).await.unwrap();
    assert_eq!(one["containers"], json!([{"name": "c", "usage": {"cpu": "5000000n", "memory": "2Ki"}}]));
    let node: Value = client.request(get("nodes/n")).await.unwrap();
    assert_eq!(node["usage"], json!({"cpu": "5000000n", "memory": "2Ki"}));
    let code = async |client: &kube::Client, path: &str| match client.request::<Value>(get(path)).await {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!(code(&client, "namespaces/default/pods/q").await, 404);
    assert_eq!(code(&client, "nodes/m").await, 404);
    assert_eq!(code(&nobody, "namespaces/default/pods").await, 403);
    assert_eq!(code(&client, "pods?watch=true").await, 405);
}
