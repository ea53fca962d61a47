//! HTTPS: certificates by name from Secrets, and what becomes of plain HTTP.

use std::sync::Arc;

use base::MappingId;
use client::link::GatewayLink;
use futures::FutureExt;
use http::Request;
use hyper::body::Incoming;
use k8s_openapi::ByteString;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::seeded;
use crate::world::{CONFIG_MAPS, PODS, ROUTES, Workload, World, bytes, full, pod};

const MAPPINGS: &str = "/apis/serving.knative.dev/v1beta1/domainmappings";
const CLAIMS: &str = "/apis/networking.internal.knative.dev/v1alpha1/clusterdomainclaims";
const SECRETS: &str = "/api/v1/secrets";
const DOMAIN: &str = "app.example.com";

/// A certificate and its key.
struct Pair(rcgen::CertifiedKey<rcgen::KeyPair>);

impl Pair {
    fn new(host: &str) -> Self {
        Self(rcgen::generate_simple_self_signed([host.to_owned()]).unwrap())
    }

    fn der(&self) -> CertificateDer<'static> {
        self.0.cert.der().clone()
    }

    fn secret(&self, namespace: &str) -> Value {
        secret(namespace, &self.0.cert.pem(), &self.0.signing_key.serialize_pem())
    }
}

fn secret(namespace: &str, certificate: &str, key: &str) -> Value {
    let text = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "cert", "namespace": namespace},
        "data": {"tls.crt": text(certificate), "tls.key": text(key)}})
}

fn server(own: &Pair) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(own.0.signing_key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(vec![own.der()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Connects and asks for `host`, which must show that certificate.
async fn connect(world: &World, host: &str, shown: &Pair, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(shown.der()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(world.tls.unwrap()).await?;
    TlsConnector::from(Arc::new(config)).connect(host.to_owned().try_into().unwrap(), stream).await
}

async fn shows(world: &World, host: &str, pair: &Pair) -> bool {
    connect(world, host, pair, b"http/1.1").await.is_ok()
}

async fn until_shown(world: &World, host: &str, pair: &Pair) {
    while !shows(world, host, pair).await {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

async fn get(world: &World, host: &str, shown: &Pair) -> String {
    let mut stream = connect(world, host, shown, b"http/1.1").await.unwrap();
    let ask = format!("GET /x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn told(request: Request<Incoming>) -> http::Response<crate::world::Body> {
    full(format!("{} {}", request.uri(), request.headers()["x-forwarded-proto"].to_str().unwrap()))
}

#[tokio::test]
async fn a_mapped_domain_shows_the_certificate_of_its_secret_as_it_is_now() {
    let own = Pair::new("localhost");
    let world = World::start_with(seeded(1), Some(server(&own))).await;
    let workload = Workload::start(201, 0, told).await;
    world.service("app", workload.port, json!({})).await;
    world.api.put(PODS, pod("app-1", "p", Some(workload.ip)));
    let reference = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "app"});
    let status = json!({"observedGeneration": 1, "annotations": {"networking.internal.knative.dev/target": "app"}});
    let (first, second, foreign) = (Pair::new(DOMAIN), Pair::new(DOMAIN), Pair::new(DOMAIN));
    world.api.put(
        CLAIMS,
        json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ClusterDomainClaim",
            "metadata": {"name": DOMAIN}, "spec": {"namespace": "ns"}}),
    );
    world.api.put(
        MAPPINGS,
        json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
            "metadata": {"name": DOMAIN, "namespace": "ns"}, "status": status,
            "spec": {"ref": reference, "tls": {"secretName": "cert"}}}),
    );
    // Without its certificate it is not served as it should be; another namespace's is none.
    let mapped = || world.gateway.mapped(MappingId::new("ns", DOMAIN), 1);
    world.api.put(SECRETS, foreign.secret("other"));
    while world.get(DOMAIN).await.0 != 200 {}
    assert!(mapped().now_or_never().is_none());
    assert!(!shows(&world, DOMAIN, &foreign).await);
    world.api.put(SECRETS, first.secret("ns"));
    mapped().await;
    let answer = get(&world, DOMAIN, &first).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/x https"), "{answer}");
    let by_h2 = connect(&world, DOMAIN, &first, b"h2").await.unwrap();
    assert_eq!(by_h2.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert!(shows(&world, "localhost", &own).await, "any other name gets the listener's own");
    assert!(!shows(&world, "localhost", &first).await);
    // Renewed while it runs; a connection that is open stays.
    world.api.put(SECRETS, second.secret("ns"));
    until_shown(&world, DOMAIN, &second).await;
    assert!(!shows(&world, DOMAIN, &first).await);
    // Half of a renewal changes nothing; what follows on the same watch shows that it was seen.
    let half = secret("ns", &first.0.cert.pem(), &second.0.signing_key.serialize_pem());
    for broken in [half, secret("ns", "no", "thing")] {
        world.api.put(SECRETS, broken);
    }
    assert!(shows(&world, DOMAIN, &second).await);
    world.api.put(SECRETS, first.secret("ns"));
    until_shown(&world, DOMAIN, &first).await;
    world.api.delete(SECRETS, "cert");
    while shows(&world, DOMAIN, &first).await {}
}

#[tokio::test]
async fn plain_http_is_redirected_where_it_is_wanted() {
    let own = Pair::new("to.ns.localhost");
    let world = World::start_with(seeded(1), Some(server(&own))).await;
    let workload = Workload::start(202, 0, told).await;
    world.service("to", workload.port, json!({})).await;
    world.api.put(PODS, pod("to-1", "p", Some(workload.ip)));
    let ask = |method: &str, host: &str, more: &str| {
        format!("{method} /a?b HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}content-length: 0\r\n\r\n")
    };
    let network = |value: &str| {
        let network = json!({"metadata": {"name": "config-network", "namespace": "colibri-system"},
            "data": {"http-protocol": value}});
        world.api.put(CONFIG_MAPS, network);
    };
    let plain = ask("GET", "to.ns.localhost", "");
    assert!(bytes(world.public, &plain).await.starts_with("HTTP/1.1 200 OK\r\n"));
    network("Redirected");
    while bytes(world.public, &plain).await.starts_with("HTTP/1.1 200") {}
    let port = world.tls.unwrap().port();
    let rows = [
        ("GET", "To.ns.localhost", "301 Moved Permanently", String::new()),
        ("HEAD", "to.ns.localhost:8080", "301 Moved Permanently", format!(":{port}")),
        ("POST", "to.ns.localhost:8080", "308 Permanent Redirect", format!(":{port}")),
    ];
    for (method, host, status, port) in rows {
        let answer = bytes(world.public, &ask(method, host, "")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(answer.contains(&format!("location: https://to.ns.localhost{port}/a?b\r\n")), "{answer}");
    }
    assert!(get(&world, "to.ns.localhost", &own).await.ends_with("/x https"));
    // Pods have no certificate to trust; a proxy in front that speaks TLS would be redirected for ever.
    assert!(bytes(world.inside, &ask("GET", "to.ns", "")).await.starts_with("HTTP/1.1 200"));
    let behind = ask("GET", "to.ns.localhost", "x-forwarded-proto: https\r\n");
    assert!(bytes(world.public, &behind).await.starts_with("HTTP/1.1 200"));
    // The annotation goes before the setting.
    let status = json!({"observedGeneration": 2, "url": "http://to.ns.localhost",
        "traffic": [{"revisionName": "to-1", "percent": 100}]});
    let metadata = |value: &str| json!({"name": "to", "namespace": "ns", "annotations": {"networking.knative.dev/http-protocol": value}});
    let route = |value: &str| {
        world.api.put(
            ROUTES,
            json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": metadata(value), "spec": {},
                "status": status}),
        );
    };
    route("Enabled");
    while !bytes(world.public, &plain).await.starts_with("HTTP/1.1 200") {}
    route("Disabled");
    while bytes(world.public, &plain).await.starts_with("HTTP/1.1 200") {}
    let refused = bytes(world.public, &plain).await;
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("served over HTTPS only"), "{refused}");
}
