//! What each kind says of itself in each situation: status, reason and message of every condition, as the reference's.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::fake::{Api, Pods};
use super::{AUTOSCALERS, CONFIGURATIONS, GIVEN_UP, Platform, REVISIONS, ROUTES, SERVICES, platform, service};

const CORE_SERVICES: &str = "/api/v1/services";
/// Until nothing more is about to be written.
const SETTLED: Duration = Duration::from_secs(3);

const NOT_RECEIVING: &str = "The target is not receiving traffic.";
const BUFFERED: &str = "Requests to the target are being buffered as resources are provisioned.";
const CRASHED: &str = "Container failed with: main.py:3: SyntaxError: invalid syntax";
const NO_IMAGE: &str = "Unable to fetch image \"r.example/missing:v1\": r.example/missing:v1: not found";
const REFUSED: &str = "Forbidden";
const NO_INGRESS: &str = "Ingress has not yet been reconciled.";

/// Kind, name, and the conditions that are looked at: type, status, reason, message.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str, &'a str, &'a str)]);

fn check(situation: &str, platform: &Platform, rows: &[Row<'_>]) {
    for (kind, name, wanted) in rows {
        let object = platform.api.get(kind, name).unwrap_or_default();
        let present = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        for (condition, status, reason, message) in *wanted {
            let found = present.iter().find(|found| found["type"] == *condition).cloned().unwrap_or_default();
            let text = |key: &str| found[key].as_str().unwrap_or_default();
            assert_eq!(
                (text("status"), text("reason"), text("message")),
                (*status, *reason, *message),
                "{situation}: {condition} of {kind} {name}: {object:#}"
            );
        }
        let seen = &object["status"]["observedGeneration"];
        assert_eq!(*seen, object["metadata"]["generation"], "{situation}: {kind} {name}");
    }
}

/// A platform with `objects`, some time later.
async fn with(pods: Pods, objects: &[(&str, Value)]) -> Platform {
    let api = Api::new();
    let platform = platform(api).await;
    platform.api.set_pods(pods);
    for (kind, object) in objects {
        platform.api.put(kind, object.clone());
    }
    sleep(SETTLED).await;
    platform
}

fn hello() -> Value {
    service("r.example/hello:v1", json!({}))
}

/// An object of that name which is nobody's child.
fn stray(api_version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(start_paused = true)]
async fn a_service_that_starts_serves_and_rests() {
    let platform = with(Pods::Hang, &[(SERVICES, hello())]).await;
    let waiting = "Configuration \"hello\" is waiting for a Revision to become ready.";
    check(
        "starting",
        &platform,
        &[
            (
                REVISIONS,
                "hello-00001",
                &[
                    ("ResourcesAvailable", "Unknown", "Deploying", ""),
                    ("ContainerHealthy", "Unknown", "Deploying", ""),
                    ("Active", "Unknown", "Queued", BUFFERED),
                    ("Ready", "Unknown", "Deploying", ""),
                ],
            ),
            (AUTOSCALERS, "hello-00001", &[("Active", "Unknown", "Queued", BUFFERED)]),
            (CONFIGURATIONS, "hello", &[("Ready", "Unknown", "", "")]),
            (
                ROUTES,
                "hello",
                &[
                    ("AllTrafficAssigned", "Unknown", "RevisionMissing", waiting),
                    ("IngressReady", "Unknown", "IngressNotConfigured", NO_INGRESS),
                    ("CertificateProvisioned", "True", "TLSNotEnabled", "external-domain-tls is not enabled"),
                    ("Ready", "Unknown", "RevisionMissing", waiting),
                ],
            ),
            (
                SERVICES,
                "hello",
                &[("ConfigurationsReady", "Unknown", "", ""), ("RoutesReady", "Unknown", "RevisionMissing", waiting)],
            ),
        ],
    );

    let platform = with(Pods::Start, &[(SERVICES, hello())]).await;
    let ready: &[(&str, &str, &str, &str)] = &[("Ready", "True", "", "")];
    let serving: [Row<'_>; 4] = [
        (CONFIGURATIONS, "hello", ready),
        (ROUTES, "hello", &[("AllTrafficAssigned", "True", "", ""), ("IngressReady", "True", "", ""), ready[0]]),
        (SERVICES, "hello", &[("ConfigurationsReady", "True", "", ""), ("RoutesReady", "True", "", ""), ready[0]]),
        (
            REVISIONS,
            "hello-00001",
            &[("ResourcesAvailable", "True", "", ""), ("ContainerHealthy", "True", "", ""), ready[0]],
        ),
    ];
    check("serving", &platform, &serving);
    check("serving", &platform, &[(REVISIONS, "hello-00001", &[("Active", "True", "", "")])]);
    check("serving", &platform, &[(AUTOSCALERS, "hello-00001", &[("Active", "True", "", ""), ready[0]])]);

    platform.report(0.0);
    platform.until_pods(0).await;
    sleep(SETTLED).await;
    let resting: &[(&str, &str, &str, &str)] = &[("Active", "False", "NoTraffic", NOT_RECEIVING)];
    check("at zero", &platform, &serving);
    check("at zero", &platform, &[(REVISIONS, "hello-00001", resting), (AUTOSCALERS, "hello-00001", resting)]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails() {
    let platform = with(Pods::Crash, &[(SERVICES, hello())]).await;
    let failed = format!("Revision \"hello-00001\" failed with message: {CRASHED}.");
    let none = "Configuration \"hello\" does not have any ready Revision.";
    check(
        "crashing",
        &platform,
        &[
            (
                REVISIONS,
                "hello-00001",
                &[("ContainerHealthy", "False", "ExitCode1", CRASHED), ("Ready", "False", "ExitCode1", CRASHED)],
            ),
            (CONFIGURATIONS, "hello", &[("Ready", "False", "RevisionFailed", &failed)]),
            (ROUTES, "hello", &[("AllTrafficAssigned", "False", "RevisionMissing", none)]),
            (
                SERVICES,
                "hello",
                &[
                    ("ConfigurationsReady", "False", "RevisionFailed", &failed),
                    ("RoutesReady", "False", "RevisionMissing", none),
                    ("Ready", "False", "RevisionFailed", &failed),
                ],
            ),
        ],
    );
    sleep(GIVEN_UP).await;
    let given_up = "The target could not be activated.";
    check(
        "given up",
        &platform,
        &[
            (AUTOSCALERS, "hello-00001", &[("Active", "False", "TimedOut", given_up)]),
            (REVISIONS, "hello-00001", &[("ContainerHealthy", "False", "ExitCode1", CRASHED)]),
        ],
    );

    let platform = with(Pods::Start, &[(SERVICES, service("r.example/missing:v1", json!({})))]).await;
    let failed = format!("Revision \"hello-00001\" failed with message: {NO_IMAGE}.");
    check(
        "no such image",
        &platform,
        &[
            (
                REVISIONS,
                "hello-00001",
                &[
                    ("ContainerHealthy", "False", "ContainerMissing", NO_IMAGE),
                    ("ResourcesAvailable", "Unknown", "ResolvingDigests", ""),
                    ("Ready", "False", "ContainerMissing", NO_IMAGE),
                ],
            ),
            (CONFIGURATIONS, "hello", &[("Ready", "False", "RevisionFailed", &failed)]),
        ],
    );

    let platform = with(Pods::Start, &[(SERVICES, service("r.example/silent:v1", json!({})))]).await;
    check(
        "no answer about the image",
        &platform,
        &[(
            REVISIONS,
            "hello-00001",
            &[
                ("ContainerHealthy", "Unknown", "ResolvingDigests", ""),
                ("ResourcesAvailable", "Unknown", "ResolvingDigests", ""),
                ("Ready", "Unknown", "ResolvingDigests", ""),
            ],
        )],
    );

    let platform = with(Pods::Start, &[]).await;
    platform.api.refuse_pods(Some((403, "Forbidden")));
    platform.api.put(SERVICES, hello());
    sleep(SETTLED).await;
    check(
        "pods refused",
        &platform,
        &[(
            REVISIONS,
            "hello-00001",
            &[("ResourcesAvailable", "False", "FailedCreate", REFUSED), ("Ready", "False", "FailedCreate", REFUSED)],
        )],
    );

    let platform = with(Pods::Hang, &[(SERVICES, hello())]).await;
    sleep(GIVEN_UP).await;
    let late = "Initial scale was never achieved";
    check(
        "hanging",
        &platform,
        &[(
            REVISIONS,
            "hello-00001",
            &[
                ("ResourcesAvailable", "False", "ProgressDeadlineExceeded", late),
                ("Ready", "False", "ProgressDeadlineExceeded", late),
            ],
        )],
    );
}

#[tokio::test(start_paused = true)]
async fn names_that_are_taken() {
    let template = json!({"spec": {"containers": [{"name": "user-container", "image": "r.example/other:v1"}]}});
    let serving = "serving.knative.dev/v1";
    let configuration = stray(serving, "Configuration", "hello", json!({"template": template}));
    let platform = with(Pods::Start, &[(CONFIGURATIONS, configuration), (SERVICES, hello())]).await;
    let told = "There is an existing Configuration \"hello\" that we do not own.";
    let conditions: &[(&str, &str, &str, &str)] =
        &[("ConfigurationsReady", "False", "NotOwned", told), ("Ready", "False", "NotOwned", told)];
    check("a stray Configuration", &platform, &[(SERVICES, "hello", conditions)]);

    let traffic = json!({"traffic": [{"revisionName": "none", "percent": 100}]});
    let route = stray(serving, "Route", "hello", traffic);
    let platform = with(Pods::Start, &[(ROUTES, route), (SERVICES, hello())]).await;
    let told = "There is an existing Route \"hello\" that we do not own.";
    check("a stray Route", &platform, &[(SERVICES, "hello", &[("RoutesReady", "False", "NotOwned", told)])]);

    let placeholder = stray("v1", "Service", "hello", json!({"ports": [{"port": 80}]}));
    let platform = with(Pods::Start, &[(CORE_SERVICES, placeholder), (SERVICES, hello())]).await;
    let told = "There is an existing placeholder Service \"hello\" that we do not own.";
    let conditions: &[(&str, &str, &str, &str)] =
        &[("IngressReady", "False", "NotOwned", told), ("Ready", "False", "NotOwned", told)];
    check("a stray Kubernetes Service", &platform, &[(ROUTES, "hello", conditions)]);

    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001"});
    let autoscaler = stray(
        "autoscaling.internal.knative.dev/v1alpha1",
        "PodAutoscaler",
        "hello-00001",
        json!({"scaleTargetRef": target, "protocolType": "http1", "reachability": "Unknown"}),
    );
    let platform = with(Pods::Start, &[(AUTOSCALERS, autoscaler), (SERVICES, hello())]).await;
    let told = "There is an existing PodAutoscaler \"hello-00001\" that we do not own.";
    let conditions: &[(&str, &str, &str, &str)] = &[("ResourcesAvailable", "False", "NotOwned", told)];
    check("a stray PodAutoscaler", &platform, &[(REVISIONS, "hello-00001", conditions)]);

    // The name that a template asks for: another's Revision, then one of its own that says something else.
    let mut named = hello();
    named["spec"]["template"]["metadata"]["name"] = json!("hello-mine");
    let taken = "The revision name \"hello-mine\" is taken by a conflicting Revision, so traffic will not be migrated";
    let exists = "Revision creation failed with message: revisions.serving.knative.dev \"hello-mine\" already exists.";
    let rows: [Row<'_>; 2] = [
        (CONFIGURATIONS, "hello", &[("Ready", "False", "RevisionFailed", exists)]),
        (
            SERVICES,
            "hello",
            &[
                ("ConfigurationsReady", "False", "RevisionFailed", exists),
                ("RoutesReady", "False", "RevisionNameTaken", taken),
            ],
        ),
    ];
    let revision = stray(serving, "Revision", "hello-mine", template["spec"].clone());
    let platform = with(Pods::Start, &[(REVISIONS, revision), (SERVICES, named.clone())]).await;
    check("another's Revision", &platform, &rows);

    let platform = with(Pods::Start, &[(SERVICES, named.clone())]).await;
    platform.until("Ready", "True").await;
    named["spec"]["template"]["spec"]["timeoutSeconds"] = json!(7);
    platform.api.put(SERVICES, named);
    sleep(SETTLED).await;
    check("its own Revision with another spec", &platform, &rows);
    let route = platform.api.get(ROUTES, "hello").unwrap();
    assert_eq!(route["status"]["traffic"][0]["revisionName"], "hello-mine", "traffic stays where it was");
}

#[tokio::test(start_paused = true)]
async fn traffic_that_leads_nowhere() {
    let route = |target: Value| stray("serving.knative.dev/v1", "Route", "hello", json!({"traffic": [target]}));
    let rows = [
        (
            json!({"revisionName": "none", "percent": 100}),
            "RevisionMissing",
            "Revision \"none\" referenced in traffic not found.",
        ),
        (
            json!({"configurationName": "none", "percent": 100}),
            "ConfigurationMissing",
            "Configuration \"none\" referenced in traffic not found.",
        ),
    ];
    for (target, reason, message) in rows {
        let platform = with(Pods::Start, &[(ROUTES, route(target))]).await;
        let conditions: &[(&str, &str, &str, &str)] =
            &[("AllTrafficAssigned", "False", reason, message), ("Ready", "False", reason, message)];
        check("a target that is not there", &platform, &[(ROUTES, "hello", conditions)]);
    }

    let platform = with(Pods::Crash, &[(SERVICES, hello())]).await;
    let mut pinned = hello();
    pinned["spec"]["traffic"] = json!([{"revisionName": "hello-00001", "latestRevision": false, "percent": 100}]);
    platform.api.put(SERVICES, pinned);
    sleep(SETTLED).await;
    let told = "Revision \"hello-00001\" failed to become ready.";
    check(
        "a Revision that failed",
        &platform,
        &[(ROUTES, "hello", &[("AllTrafficAssigned", "False", "RevisionMissing", told)])],
    );

    let platform = with(Pods::Start, &[(SERVICES, hello())]).await;
    platform.api.delete(REVISIONS, "hello-00001");
    sleep(SETTLED).await;
    let deleted = "Revision \"hello-00001\" was deleted.";
    check(
        "the latest Revision was deleted",
        &platform,
        &[
            (CONFIGURATIONS, "hello", &[("Ready", "False", "RevisionDeleted", deleted)]),
            (SERVICES, "hello", &[("ConfigurationsReady", "False", "RevisionDeleted", deleted)]),
        ],
    );
}

/// Labels and annotations: what is handed on from parent to child, and what is not.
#[tokio::test(start_paused = true)]
async fn labels_and_annotations_go_where_the_reference_puts_them() {
    let mut object = service("r.example/hello:v1", json!({"of/template": "t"}));
    object["metadata"]["labels"] = json!({"of": "service"});
    object["metadata"]["annotations"] = json!({
        "of/service": "s", "serving.knative.dev/creator": "jane", "serving.knative.dev/lastModifier": "joe",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    });
    object["spec"]["template"]["metadata"]["labels"] = json!({"of": "template"});
    let platform = with(Pods::Start, &[(SERVICES, object)]).await;
    let metadata = |kind: &str, name: &str| platform.api.get(kind, name).unwrap()["metadata"].clone();
    let uid = metadata(SERVICES, "hello")["uid"].clone();
    for kind in [CONFIGURATIONS, ROUTES, CORE_SERVICES] {
        let metadata = metadata(kind, "hello");
        assert_eq!(metadata["labels"]["of"], "service", "{kind}");
        assert_eq!(metadata["labels"]["serving.knative.dev/service"], "hello", "{kind}");
        let annotations = &metadata["annotations"];
        assert_eq!(annotations["of/service"], "s", "{kind}");
        assert_eq!(annotations["serving.knative.dev/creator"], "jane", "{kind}");
        assert_eq!(annotations["serving.knative.dev/lastModifier"], "joe", "{kind}");
        assert!(annotations.get("kubectl.kubernetes.io/last-applied-configuration").is_none(), "{kind}: {annotations}");
    }
    assert_eq!(metadata(CONFIGURATIONS, "hello")["labels"]["serving.knative.dev/serviceUID"], uid);
    assert_eq!(metadata(CORE_SERVICES, "hello")["labels"]["serving.knative.dev/route"], "hello");

    let configuration = metadata(CONFIGURATIONS, "hello")["uid"].clone();
    let revision = metadata(REVISIONS, "hello-00001");
    let labels = &revision["labels"];
    for (key, wanted) in [
        ("of", json!("template")),
        ("serving.knative.dev/service", json!("hello")),
        ("serving.knative.dev/serviceUID", uid),
        ("serving.knative.dev/configuration", json!("hello")),
        ("serving.knative.dev/configurationUID", configuration),
        ("serving.knative.dev/configurationGeneration", json!("1")),
        ("serving.knative.dev/routingState", json!("active")),
    ] {
        assert_eq!(labels[key], wanted, "{key}: {labels}");
    }
    let annotations = &revision["annotations"];
    assert_eq!(annotations["of/template"], "t");
    assert_eq!(annotations["serving.knative.dev/routes"], "hello");
    // A Revision is made by whoever changed its Configuration last.
    assert_eq!(annotations["serving.knative.dev/creator"], "joe");
    assert!(annotations.get("of/service").is_none(), "{annotations}");

    let uid = revision["uid"].clone();
    let pod = platform.api.list("pods").pop().unwrap()["metadata"].clone();
    for (key, wanted) in [
        ("of", json!("template")),
        ("app", json!("hello-00001")),
        ("serving.knative.dev/service", json!("hello")),
        ("serving.knative.dev/configuration", json!("hello")),
        ("serving.knative.dev/revision", json!("hello-00001")),
        ("serving.knative.dev/revisionUID", uid),
    ] {
        assert_eq!(pod["labels"][key], wanted, "{key}: {pod}");
    }
    assert!(pod["labels"].get("serving.knative.dev/routingState").is_none(), "{pod}");
    assert_eq!(pod["annotations"]["of/template"], "t");
    let autoscaler = metadata(AUTOSCALERS, "hello-00001");
    assert_eq!(
        (&autoscaler["labels"]["of"], &autoscaler["annotations"]["of/template"]),
        (&json!("template"), &json!("t"))
    );
}
