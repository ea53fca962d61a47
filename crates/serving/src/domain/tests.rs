//! Tables of what is said about a mapping.

use api::conditions::ConditionStatus;
use api::serving::domain::ClusterDomainClaimSpec;
use serde_json::{Value, json};

use super::*;
use crate::write::Object;

const DOMAIN: &str = "app.example.com";
const CLAIMED: &str = "The domain name is already in use by another DomainMapping";
const WAITS: &str = "IngressReady=Unknown IngressNotConfigured: Ingress has not yet been reconciled.";
const NO_TLS: &str = "CertificateProvisioned=True TLSNotEnabled: external-domain-tls is not enabled";

/// A mapping of `default` to the Service `hello`, with its claim, nothing served yet.
fn given() -> Observed {
    Observed {
        mapping: Arc::new(mapping("serving.knative.dev/v1", "Service", "default", Value::Null)),
        claim: claim_of("default"),
        referent: found("http://hello.default.svc.cluster.local", true),
        occupant: None,
        served: false,
        certificate: Ok(()),
    }
}

fn mapping(api_version: &str, kind: &str, namespace: &str, tls: Value) -> DomainMapping {
    let reference = json!({"apiVersion": api_version, "kind": kind, "name": "hello", "namespace": namespace});
    let mapping = json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": DOMAIN, "namespace": "default", "generation": 1, "uid": "1"},
        "spec": {"ref": reference, "tls": tls},
    });
    serde_json::from_value(mapping).unwrap()
}

fn claim_of(namespace: &str) -> Option<Arc<ClusterDomainClaim>> {
    Some(Arc::new(ClusterDomainClaim::new(DOMAIN, ClusterDomainClaimSpec { namespace: namespace.to_owned() })))
}

fn found(address: &str, routed: bool) -> Referent {
    Referent::Found { address: Some(address.to_owned()), routed }
}

fn network(autocreate: bool) -> api::config::network::Network {
    let data = [("autocreate-cluster-domain-claims".to_owned(), autocreate.to_string())];
    api::config::network::Network::parse(&data.into()).unwrap()
}

fn plan_of(observed: &Observed, autocreate: bool) -> plan::Plan {
    let addresses = crate::Addresses { public_port: Some(8080), ..crate::Addresses::default() };
    plan::plan(observed, &addresses, &network(autocreate), jiff::Timestamp::UNIX_EPOCH)
}

/// The status that the plan writes, and its other writes.
fn written(observed: &Observed, autocreate: bool) -> (DomainMapping, Vec<String>) {
    let mut mapping = observed.mapping.as_ref().clone();
    let mut others = Vec::new();
    for write in plan_of(observed, autocreate).writes {
        match write {
            Write::Status(Object::DomainMapping(object)) => mapping = *object,
            other => others.push(other.to_string()),
        }
    }
    (mapping, others)
}

/// Each condition in a line, those without a word left out.
fn conditions(mapping: &DomainMapping) -> Vec<String> {
    let conditions = &mapping.status.as_ref().unwrap().conditions;
    let line = |condition: &api::Condition| {
        let text = |text: &Option<String>, before: &str| {
            text.as_ref().map(|text| format!("{before}{text}")).unwrap_or_default()
        };
        let (reason, message) = (text(&condition.reason, " "), text(&condition.message, ": "));
        format!("{}={:?}{reason}{message}", condition.kind, condition.status)
    };
    let unknown =
        |condition: &&api::Condition| condition.status != ConditionStatus::Unknown || condition.reason.is_some();
    conditions.iter().filter(|condition| condition.kind != "Ready").filter(unknown).map(line).collect()
}

fn target(mapping: &DomainMapping) -> Option<&str> {
    mapping.status.as_ref()?.annotations.get(api::serving::annotations::TARGET_ANNOTATION).map(String::as_str)
}

fn ready(mapping: &DomainMapping) -> ConditionStatus {
    let conditions = &mapping.status.as_ref().unwrap().conditions;
    conditions.iter().find(|condition| condition.kind == "Ready").unwrap().status
}

/// The same, once the status is written.
fn after(observed: &Observed, autocreate: bool) -> Observed {
    Observed { mapping: Arc::new(written(observed, autocreate).0), ..observed.clone() }
}

#[test]
fn a_claimed_domain_is_ready_once_the_gateway_serves_it() {
    let observed = given();
    let (mapping, others) = written(&observed, false);
    assert_eq!(others, Vec::<String>::new());
    assert_eq!(conditions(&mapping), [NO_TLS, "DomainClaimed=True", WAITS, "ReferenceResolved=True"]);
    let status = mapping.status.as_ref().unwrap();
    assert_eq!(status.url.as_deref(), Some("http://app.example.com:8080"));
    assert_eq!(status.address.as_ref().unwrap().url, status.url);
    assert_eq!((status.observed_generation, target(&mapping)), (Some(1), Some("hello")));
    assert!(plan_of(&observed, false).routed);

    let waiting = after(&observed, false);
    assert_eq!(plan_of(&waiting, false).writes, [], "it waits for the gateway");
    let served = Observed { served: true, ..waiting };
    assert_eq!(ready(&written(&served, false).0), ConditionStatus::True);
    let rests = after(&served, false);
    assert_eq!(plan_of(&rests, false).writes, []);
    let forgotten = Observed { served: false, ..rests };
    assert_eq!(plan_of(&forgotten, false).writes, [], "new controllers do not doubt what was said");
}

#[test]
fn the_claim_decides() {
    let rows = [
        (claim_of("other"), false, vec![format!("DomainClaimed=False DomainAlreadyClaimed: {CLAIMED}")], vec![]),
        (claim_of("other"), true, vec![format!("DomainClaimed=False DomainAlreadyClaimed: {CLAIMED}")], vec![]),
        (
            None,
            false,
            vec![
                "DomainClaimed=False DomainAlreadyClaimed: no ClusterDomainClaim found for domain \
                 \"app.example.com\" (and autocreate-cluster-domain-claims property is not true)"
                    .to_owned(),
            ],
            vec![],
        ),
        (None, true, vec![], vec!["create ClusterDomainClaim app.example.com"]),
    ];
    for (claim, autocreate, mut wanted, writes) in rows {
        let served = Observed { served: true, ..given() };
        let was_ready = after(&after(&Observed { served: false, ..served.clone() }, false), false);
        let was_ready = after(&Observed { served: true, ..was_ready }, false);
        assert_eq!(ready(&was_ready.mapping), ConditionStatus::True);
        let observed = Observed { claim, ..was_ready };
        let (mapping, others) = written(&observed, autocreate);
        assert_eq!(others, writes);
        wanted.insert(0, NO_TLS.to_owned());
        wanted.extend([WAITS.to_owned(), "ReferenceResolved=True".to_owned()]);
        assert_eq!(conditions(&mapping), wanted);
        assert_eq!(target(&mapping), None, "the gateway is told to stop");
        assert_ne!(ready(&mapping), ConditionStatus::True);
        assert!(!plan_of(&observed, autocreate).routed);
    }
}

#[test]
fn a_claim_made_here_is_marked() {
    let writes = plan_of(&Observed { claim: None, ..given() }, true).writes;
    let Some(Write::Create(Object::ClusterDomainClaim(claim))) = writes.last() else { panic!("{writes:?}") };
    assert_eq!(claim.spec.namespace, "default");
    assert_eq!(claim.labels().get(AUTOCREATED_LABEL).map(String::as_str), Some("true"));
}

/// API version, kind and namespace of a reference, what it names, and where it leads.
type Row = (&'static str, &'static str, &'static str, Referent, Result<&'static str, String>);

#[test]
fn a_reference_is_resolved_as_the_reference_implementation_does_it() {
    let knative = "serving.knative.dev/v1";
    let not_set = "address not set for Kind = Service, Namespace = default, Name = hello, \
                   APIVersion = serving.knative.dev/v1, Group = , Address = ";
    let unknown = "failed to get lister for batch/v1, Resource=jobs: a domain leads to a Service or Route of \
                   serving.knative.dev/v1, or to a Service of v1";
    let good = "http://hello.default.svc.cluster.local";
    let missing = |resource: &str| format!("failed to get object default/hello: {resource} \"hello\" not found");
    let uri = |url: &str, rest: &str| format!("resolved URI \"{url}\" {rest}");
    let form = "must be of the form {name}.{namespace}.svc.cluster.local";
    let elsewhere = "must be in same namespace as DomainMapping";
    let rows: Vec<Row> = vec![
        (knative, "Service", "default", found(good, true), Ok("hello")),
        (knative, "Service", "", found(good, true), Ok("hello")),
        (knative, "Route", "default", found(good, true), Ok("hello")),
        ("v1", "Service", "default", found("http://next-hello.default.svc.cluster.local", true), Ok("next-hello")),
        (knative, "Service", "default", found(&format!("{good}/"), true), Ok("hello")),
        (knative, "Service", "default", Referent::Missing, Err(missing("services.serving.knative.dev"))),
        (knative, "Route", "default", Referent::Missing, Err(missing("routes.serving.knative.dev"))),
        ("v1", "Service", "default", Referent::Missing, Err(missing("services"))),
        (knative, "Service", "default", Referent::Found { address: None, routed: true }, Err(not_set.to_owned())),
        ("batch/v1", "Job", "default", Referent::Missing, Err(unknown.to_owned())),
        (
            knative,
            "Service",
            "default",
            found(&format!("{good}/path"), true),
            Err(uri(&format!("{good}/path"), "contains a path")),
        ),
        (knative, "Service", "default", found("http://a.b.com", true), Err(uri("http://a.b.com", form))),
        (
            knative,
            "Service",
            "default",
            found("http://a.b.c.svc.cluster.local", true),
            Err(uri("http://a.b.c.svc.cluster.local", form)),
        ),
        (
            knative,
            "Service",
            "default",
            found("http://hello.other.svc.cluster.local", true),
            Err(uri("http://hello.other.svc.cluster.local", elsewhere)),
        ),
        // Even where it exists.
        (knative, "Service", "other", found(good, true), Err(uri("http://hello.other.svc.cluster.local", elsewhere))),
    ];
    for (api_version, kind, namespace, referent, wanted) in rows {
        let mapping = Arc::new(mapping(api_version, kind, namespace, Value::Null));
        let observed = Observed { mapping, referent, ..given() };
        let (mapping, _) = written(&observed, false);
        match wanted {
            Ok(name) => {
                assert_eq!(target(&mapping), Some(name));
                assert!(conditions(&mapping).contains(&"ReferenceResolved=True".to_owned()));
            }
            Err(why) => {
                assert_eq!(target(&mapping), None);
                let refused = format!("ReferenceResolved=False ResolveFailed: {why}");
                assert_eq!(conditions(&mapping), [NO_TLS, "DomainClaimed=True", WAITS, &refused]);
            }
        }
    }
}

#[test]
fn a_reference_that_cannot_be_resolved_leaves_the_traffic() {
    let before = after(&Observed { served: true, ..after(&given(), false) }, false);
    let observed = Observed { referent: Referent::Missing, ..before };
    let (mapping, _) = written(&observed, false);
    assert_eq!(target(&mapping), Some("hello"));
    assert_eq!(ready(&mapping), ConditionStatus::False);
    // When it is back, the gateway is asked again.
    let back = Observed { served: false, referent: given().referent, ..after(&observed, false) };
    assert_eq!(conditions(&written(&back, false).0)[2], WAITS);
}

#[test]
fn the_gateway_serves_routes_only_and_their_own_hosts_first() {
    let plain = Observed {
        mapping: Arc::new(mapping("v1", "Service", "default", Value::Null)),
        referent: found("http://hello.default.svc.cluster.local", false),
        ..given()
    };
    let (mapping, _) = written(&plain, false);
    let refused = "IngressReady=False NotARoute: Service \"hello\" has no Route behind it, and the gateway serves \
                   Routes only: map the domain to a Service or Route of serving.knative.dev/v1";
    assert_eq!(conditions(&mapping)[2], refused);
    assert_eq!(target(&mapping), None);
    for (occupant, whose) in [
        ("default", "The domain name is the host of Route \"web\""),
        ("other", "The domain name is the host of a Route in another namespace"),
    ] {
        let taken = Observed { occupant: Some(ObjectKey::new(occupant, "web")), served: true, ..given() };
        let (mapping, _) = written(&taken, false);
        assert_eq!(conditions(&mapping)[2], format!("IngressReady=False HostInUse: {whose}"));
        assert!(!plan_of(&taken, false).routed);
        let free = Observed { occupant: None, served: false, ..after(&taken, false) };
        assert!(plan_of(&free, false).routed, "it is asked about again once the host is free");
    }
}

#[test]
fn a_certificate_of_the_mappings_own() {
    let tls = Arc::new(mapping("serving.knative.dev/v1", "Service", "default", json!({"secretName": "cert"})));
    let good = Observed { mapping: tls, served: true, ..given() };
    let (mapping, _) = written(&after(&Observed { served: false, ..good.clone() }, false), false);
    let external = "CertificateProvisioned=True CertificateExternallyProvided: TLS certificate was provided externally";
    assert_eq!(conditions(&mapping)[0], external);
    assert_eq!(mapping.status.as_ref().unwrap().url.as_deref(), Some("https://app.example.com"));
    let bad = Observed { certificate: Err("Secret \"cert\" not found".to_owned()), ..good };
    let (mapping, _) = written(&bad, false);
    let why = "CertificateProvisioned=False CertificateNotUsable: Secret \"cert\" not found; ";
    assert!(conditions(&mapping)[0].starts_with(why), "{:?}", conditions(&mapping));
    assert_eq!(ready(&mapping), ConditionStatus::False);
}

#[test]
fn a_moved_mapping_waits_for_the_gateway_again() {
    let before = after(&Observed { served: true, ..after(&given(), false) }, false);
    let mut moved = before.mapping.as_ref().clone();
    moved.metadata.generation = Some(2);
    moved.spec.reference.name = "next".to_owned();
    let referent = found("http://next.default.svc.cluster.local", true);
    let observed = Observed { mapping: Arc::new(moved), referent, served: false, ..before };
    let (mapping, _) = written(&observed, false);
    assert_eq!((target(&mapping), ready(&mapping)), (Some("next"), ConditionStatus::Unknown));
    assert_eq!(mapping.status.as_ref().unwrap().observed_generation, Some(2));
}

#[test]
fn hosts_that_the_public_reaches() {
    let route = |labels: Value| -> Route {
        let route = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Route", "spec": {},
            "metadata": {"name": "hello", "namespace": "default", "labels": labels},
            "status": {
                "url": "http://hello.default.localhost:8080",
                "traffic": [
                    {"revisionName": "a", "tag": "next", "url": "http://next-hello.default.localhost:8080"},
                    {"revisionName": "a", "tag": "in", "url": "http://in-hello.default.svc.cluster.local"},
                ],
            },
        });
        serde_json::from_value(route).unwrap()
    };
    let hosts: Vec<String> = public_hosts(&route(json!({}))).into_iter().collect();
    assert_eq!(hosts, ["hello.default.localhost", "next-hello.default.localhost"]);
    assert!(public_hosts(&route(json!({VISIBILITY_LABEL: "cluster-local"}))).is_empty());
}
