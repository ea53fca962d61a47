//! Tables of plans, and that planning again after a plan was applied yields nothing.

mod failures;

use std::sync::Arc;
use std::time::Duration;

use api::conditions::ConditionStatus;
use api::functions::Function;
use api::serving::{Revision, Service};
use client::queue::Outcome;
use expect_test::{Expect, expect};
use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::observe::{Observed, Source};
use super::plan::{Plan, ServiceWrite, plan};
use super::resources::service::{self, Code};
use crate::code::CodeStore;
use crate::code::memory::MemoryStore;
use crate::fetch::Progress;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn function(spec: Value) -> Function {
    object(json!({
        "metadata": {"name": "greet", "namespace": "default", "uid": "u1", "generation": 2, "resourceVersion": "7"},
        "spec": spec,
    }))
}

fn given(spec: Value) -> Observed {
    let source = Source::Archive { digest: DIGEST.to_owned() };
    Observed { function: Arc::new(function(spec)), source, service: None, revision: None }
}

fn simple() -> Observed {
    given(json!({"runtime": "python", "source": {"archive": {"digest": DIGEST}}}))
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

impl Observed {
    fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// The Service as it is once it was applied and the controllers of Knative wrote that status.
    fn service(mut self, status: Value) -> Self {
        let mut service = service::make(&self.function, &Code::Archive { digest: DIGEST });
        service.metadata.generation = Some(3);
        service.status = Some(object(status));
        self.service = Some(Arc::new(service));
        self
    }

    /// The newest Revision, made from the template that is wanted now.
    fn revision(self, status: &str, reason: &str, message: &str) -> Self {
        let wanted = service::make(&self.function, &Code::Archive { digest: DIGEST });
        let annotations = wanted.spec.template.metadata.unwrap().annotations.unwrap();
        self.revision_of(json!(annotations), status, reason, message)
    }

    fn revision_of(mut self, annotations: Value, status: &str, reason: &str, message: &str) -> Self {
        let ready = json!({"type": "Ready", "status": status, "reason": reason, "message": message});
        let metadata = json!({"name": "greet-00002", "annotations": annotations});
        let revision = json!({"metadata": metadata, "spec": {}, "status": {"conditions": [ready]}});
        self.revision = Some(Arc::new(object::<Revision>(revision)));
        self
    }

    fn foreign(mut self) -> Self {
        let service = json!({"metadata": {"name": "greet", "namespace": "default"}, "spec": {}});
        self.service = Some(Arc::new(object::<Service>(service)));
        self
    }

    fn status(mut self, status: Value) -> Self {
        let mut function = Function::clone(&self.function);
        function.status = Some(object(status));
        self.function = Arc::new(function);
        self
    }
}

fn show(plan: &Plan) -> String {
    let mut lines = Vec::new();
    match &plan.service {
        Some(ServiceWrite::Create(_)) => lines.push("create Service".to_owned()),
        Some(ServiceWrite::Replace(_)) => lines.push("replace Service".to_owned()),
        None => {}
    }
    if let Some(status) = &plan.status {
        for condition in &status.conditions {
            let word = match condition.status {
                ConditionStatus::True => "True",
                ConditionStatus::False => "False",
                ConditionStatus::Unknown => "Unknown",
            };
            let reason = condition.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let message = condition.message.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
            lines.push(format!("{}={word}{reason}{message}", condition.kind));
        }
        let version = status.version.as_deref().unwrap_or("-");
        lines.push(format!("version {version}, url {}", status.url.as_deref().unwrap_or("-")));
    }
    if let Outcome::After(delay) = plan.outcome {
        lines.push(format!("again in {delay:?}"));
    }
    lines.join("\n") + "\n"
}

fn check(observed: Observed, expected: Expect) {
    expected.assert_eq(&show(&plan(&observed, now())));
}

/// The status of a Service whose newest Revision is `newest` and that routes to `ready`.
fn serving(newest: &str, ready: &str) -> Value {
    json!({
        "observedGeneration": 3, "url": "http://greet.default.localhost:8080",
        "latestCreatedRevisionName": newest, "latestReadyRevisionName": ready,
        "conditions": [
            {"type": "ConfigurationsReady", "status": if newest == ready { "True" } else { "Unknown" }},
            {"type": "RoutesReady", "status": "True"},
        ],
    })
}

#[test]
fn a_new_function_gets_a_service() {
    check(
        simple(),
        expect![[r#"
            create Service
            BuildReady=True
            Ready=Unknown (Deploying): the service is being made
            RevisionReady=Unknown (Deploying): the service is being made
            RouteReady=Unknown (Deploying): the service is being made
            SourceReady=True
            version -, url -
        "#]],
    );
}

#[test]
fn ready_is_ready() {
    check(
        simple().service(serving("greet-00002", "greet-00002")).revision("True", "", ""),
        expect![[r#"
            BuildReady=True
            Ready=True
            RevisionReady=True
            RouteReady=True
            SourceReady=True
            version greet-00002, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn a_failed_version_says_what_the_interpreter_said_and_the_one_before_serves() {
    let message = "Container failed with: main.py:2: SyntaxError: '(' was never closed\n    print(\n         ^";
    check(
        simple().service(serving("greet-00002", "greet-00001")).revision("False", "ExitCode1", message),
        expect![[r#"
            BuildReady=True
            Ready=False (ExitCode1): main.py:2: SyntaxError: '(' was never closed
                print(
                     ^
            RevisionReady=False (ExitCode1): main.py:2: SyntaxError: '(' was never closed
                print(
                     ^
            RouteReady=True
            SourceReady=True
            version greet-00001, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn the_failure_of_the_version_before_is_not_that_of_the_new_code() {
    let old = json!({service::APPLIED_ANNOTATION: "of other code"});
    check(
        simple().service(serving("greet-00002", "greet-00001")).revision_of(old, "False", "ExitCode1", "old"),
        expect![[r#"
            BuildReady=True
            Ready=Unknown (Deploying): the new version is being made
            RevisionReady=Unknown (Deploying): the new version is being made
            RouteReady=True
            SourceReady=True
            version greet-00001, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn a_version_is_ready_only_once_it_is_routed() {
    check(
        simple().service(serving("greet-00002", "greet-00001")).revision("True", "", ""),
        expect![[r#"
            BuildReady=True
            Ready=Unknown (Deploying): the new version is being routed
            RevisionReady=True
            RouteReady=Unknown (Deploying): the new version is being routed
            SourceReady=True
            version greet-00001, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn a_version_that_starts_is_waited_for() {
    check(
        simple().service(serving("greet-00002", "greet-00001")).revision("Unknown", "Deploying", "starting"),
        expect![[r#"
            BuildReady=True
            Ready=Unknown (Deploying): starting
            RevisionReady=Unknown (Deploying): starting
            RouteReady=True
            SourceReady=True
            version greet-00001, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn a_service_whose_status_is_of_before_says_nothing_yet() {
    let mut old = serving("greet-00001", "greet-00001");
    old["observedGeneration"] = json!(2);
    check(
        simple().service(old),
        expect![[r#"
            BuildReady=True
            Ready=Unknown (Deploying): the new version is being made
            RevisionReady=Unknown (Deploying): the new version is being made
            RouteReady=Unknown (Deploying): the new version is being made
            SourceReady=True
            version greet-00001, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn new_code_replaces_the_service() {
    let mut observed = simple().service(serving("greet-00001", "greet-00001"));
    observed.source = Source::Archive { digest: DIGEST.replace('a', "b") };
    check(
        observed,
        expect![[r#"
            replace Service
            BuildReady=True
            Ready=Unknown (Deploying): the new version is being made
            RevisionReady=Unknown (Deploying): the new version is being made
            RouteReady=Unknown (Deploying): the new version is being made
            SourceReady=True
            version greet-00001, url http://greet.default.localhost:8080
        "#]],
    );
}

#[test]
fn an_archive_that_was_not_uploaded_here_is_named_and_what_serves_goes_on() {
    let missing = Source::Missing { digest: DIGEST.to_owned() };
    check(
        simple().service(serving("greet-00001", "greet-00001")).source(missing),
        expect![[r#"
            BuildReady=Unknown
            Ready=False (ArchiveNotFound): spec.source.archive.digest: sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa was not uploaded to this namespace; run colibri deploy DIR
            RevisionReady=Unknown
            RouteReady=Unknown
            SourceReady=False (ArchiveNotFound): spec.source.archive.digest: sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa was not uploaded to this namespace; run colibri deploy DIR
            version greet-00001, url http://greet.default.localhost:8080
            again in 5s
        "#]],
    );
}

#[test]
fn a_wrong_object_writes_no_service() {
    check(
        simple().source(Source::Invalid { message: "spec.runtime: unknown runtime \"x\"".to_owned() }),
        expect![[r#"
            BuildReady=Unknown
            Ready=False (InvalidSpec): spec.runtime: unknown runtime "x"
            RevisionReady=Unknown
            RouteReady=Unknown
            SourceReady=False (InvalidSpec): spec.runtime: unknown runtime "x"
            version -, url -
        "#]],
    );
}

#[test]
fn a_service_of_somebody_else_is_left_alone() {
    check(
        simple().foreign(),
        expect![[r#"
            BuildReady=True
            Ready=False (ServiceNotOwned): there is a service.serving.knative.dev greet that does not belong to this function; delete it or choose another name
            RevisionReady=Unknown (ServiceNotOwned): there is a service.serving.knative.dev greet that does not belong to this function; delete it or choose another name
            RouteReady=False (ServiceNotOwned): there is a service.serving.knative.dev greet that does not belong to this function; delete it or choose another name
            SourceReady=True
            version -, url -
        "#]],
    );
}

#[test]
fn the_service_says_everything_that_the_function_says() {
    let observed = given(json!({
        "runtime": "python", "handler": "app.serve", "signature": "wsgi", "timeout": "1500ms",
        "source": {"archive": {"digest": DIGEST}},
        "env": [{"name": "SIZE", "value": "128"}], "envFrom": [{"secretRef": {"name": "s3"}}],
        "volumes": [{"name": "settings", "configMap": {"name": "c"}}, {"name": "scratch", "emptyDir": {}}],
        "resources": {"limits": {"memory": "256Mi"}},
        "scaling": {"min": 1, "max": 5, "concurrency": 10, "target": "70%", "idle": "90s"},
        "traffic": [{"revisionName": "greet-00001", "percent": 100}],
    }));
    let Some(ServiceWrite::Create(service)) = plan(&observed, now()).service else { panic!("no Service is created") };
    let mut value = serde_json::to_value(&service).unwrap();
    value["metadata"]["annotations"][service::APPLIED_ANNOTATION] = json!("HASH");
    value["spec"]["template"]["metadata"]["annotations"][service::APPLIED_ANNOTATION] = json!("HASH");
    expect![[r#"
        {
          "apiVersion": "serving.knative.dev/v1",
          "kind": "Service",
          "metadata": {
            "annotations": {
              "functions.colibri.dev/applied": "HASH"
            },
            "labels": {
              "functions.colibri.dev/function": "greet"
            },
            "name": "greet",
            "namespace": "default",
            "ownerReferences": [
              {
                "apiVersion": "functions.colibri.dev/v1",
                "controller": true,
                "kind": "Function",
                "name": "greet",
                "uid": "u1"
              }
            ]
          },
          "spec": {
            "template": {
              "metadata": {
                "annotations": {
                  "autoscaling.knative.dev/max-scale": "5",
                  "autoscaling.knative.dev/min-scale": "1",
                  "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "30s",
                  "autoscaling.knative.dev/target-utilization-percentage": "70",
                  "autoscaling.knative.dev/window": "60s",
                  "functions.colibri.dev/applied": "HASH"
                },
                "labels": {
                  "functions.colibri.dev/function": "greet"
                }
              },
              "spec": {
                "containerConcurrency": 10,
                "containers": [
                  {
                    "command": [
                      "python3",
                      "-I",
                      "-S",
                      "-B",
                      "-X",
                      "utf8",
                      "/opt/colibri/runtime/python/boot.py"
                    ],
                    "env": [
                      {
                        "name": "COLIBRI_FUNCTION",
                        "value": "greet"
                      },
                      {
                        "name": "COLIBRI_NAMESPACE",
                        "value": "default"
                      },
                      {
                        "name": "COLIBRI_HANDLER",
                        "value": "app.serve"
                      },
                      {
                        "name": "COLIBRI_SIGNATURE",
                        "value": "wsgi"
                      },
                      {
                        "name": "COLIBRI_CONCURRENCY",
                        "value": "10"
                      },
                      {
                        "name": "COLIBRI_TIMEOUT_MS",
                        "value": "1500"
                      },
                      {
                        "name": "SIZE",
                        "value": "128"
                      }
                    ],
                    "envFrom": [
                      {
                        "secretRef": {
                          "name": "s3"
                        }
                      }
                    ],
                    "image": "runtime.colibri.local/python",
                    "name": "user-container",
                    "resources": {
                      "limits": {
                        "memory": "256Mi"
                      }
                    },
                    "volumeMounts": [
                      {
                        "mountPath": "/code",
                        "name": "colibri-code",
                        "readOnly": true
                      },
                      {
                        "mountPath": "/mnt/settings",
                        "name": "settings",
                        "readOnly": true
                      },
                      {
                        "mountPath": "/mnt/scratch",
                        "name": "scratch"
                      }
                    ]
                  }
                ],
                "timeoutSeconds": 2,
                "volumes": [
                  {
                    "csi": {
                      "driver": "code.colibri.dev",
                      "readOnly": true,
                      "volumeAttributes": {
                        "digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                      }
                    },
                    "name": "colibri-code"
                  },
                  {
                    "configMap": {
                      "name": "c"
                    },
                    "name": "settings"
                  },
                  {
                    "emptyDir": {},
                    "name": "scratch"
                  }
                ]
              }
            },
            "traffic": [
              {
                "percent": 100,
                "revisionName": "greet-00001"
              }
            ]
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&value).unwrap());
}

#[test]
fn a_function_of_an_image_runs_it_as_it_is() {
    let observed = given(json!({"runtime": "any", "source": {"image": "a/b:c"}}))
        .source(Source::Image { reference: "a/b:c".to_owned() });
    let Some(ServiceWrite::Create(service)) = plan(&observed, now()).service else { panic!("no Service is created") };
    let container = &service.spec.template.spec.pod.containers[0];
    assert_eq!((container.image.as_deref(), &container.command), (Some("a/b:c"), &None));
    assert_eq!((&container.volume_mounts, &service.spec.template.spec.pod.volumes), (&None, &None));
}

#[test]
fn fields_that_the_server_fills_in_are_no_difference() {
    let wanted = service::make(&simple().function, &Code::Archive { digest: DIGEST });
    let mut value = serde_json::to_value(&wanted).unwrap();
    value["spec"]["template"]["spec"]["containerConcurrency"] = json!(0);
    value["spec"]["template"]["spec"]["timeoutSeconds"] = json!(300);
    value["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 0}});
    value["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100}]);
    value["metadata"]["annotations"]["serving.knative.dev/creator"] = json!("admin");
    let present: Service = object(value.clone());
    assert!(service::is_as_wanted(&present, &wanted));
    assert!(
        service::merge(&present, wanted.clone())
            .metadata
            .annotations
            .unwrap()
            .contains_key("serving.knative.dev/creator")
    );
    value["spec"]["template"]["spec"]["containers"][0]["image"] = json!("changed/by:hand");
    assert!(!service::is_as_wanted(&object(value), &wanted));
}

#[test]
fn a_field_that_was_taken_away_is_a_difference() {
    let before = given(json!({"runtime": "python", "scaling": {"min": 1}}));
    let after = given(json!({"runtime": "python"}));
    let present = service::make(&before.function, &Code::Archive { digest: DIGEST });
    let wanted = service::make(&after.function, &Code::Archive { digest: DIGEST });
    assert!(!service::is_as_wanted(&present, &wanted));
}

fn elsewhere(progress: Progress) -> Source {
    Source::Elsewhere { url: "https://example.com/a.tar".to_owned(), digest: DIGEST.to_owned(), progress }
}

#[test]
fn code_at_a_url_is_awaited_and_what_serves_goes_on() {
    let served = || simple().service(serving("greet-00001", "greet-00001")).status(json!({"version": "greet-00001"}));
    check(
        served().source(elsewhere(Progress::Running)),
        expect![[r#"
        BuildReady=Unknown
        Ready=Unknown (Fetching): the code is being fetched from https://example.com/a.tar
        RevisionReady=Unknown
        RouteReady=Unknown
        SourceReady=Unknown (Fetching): the code is being fetched from https://example.com/a.tar
        version greet-00001, url http://greet.default.localhost:8080
    "#]],
    );
    let failed = Progress::Failed {
        message: "spec.source.archive.url: no answer".to_owned(),
        again: Some(Duration::from_secs(4)),
    };
    check(
        served().source(elsewhere(failed)),
        expect![[r#"
        BuildReady=Unknown
        Ready=False (FetchFailed): spec.source.archive.url: no answer
        RevisionReady=Unknown
        RouteReady=Unknown
        SourceReady=False (FetchFailed): spec.source.archive.url: no answer
        version greet-00001, url http://greet.default.localhost:8080
        again in 4s
    "#]],
    );
}

#[test]
fn planning_again_after_a_plan_was_applied_yields_nothing() {
    let cases = [
        simple(),
        simple().foreign(),
        simple().service(serving("greet-00002", "greet-00002")).revision("True", "", ""),
        simple().service(serving("greet-00002", "greet-00001")).revision("False", "ExitCode1", "x"),
        simple().source(Source::Missing { digest: DIGEST.to_owned() }),
        simple().source(Source::Invalid { message: "x".to_owned() }),
        simple().source(elsewhere(Progress::Running)),
        simple().status(json!({"version": "greet-00001", "url": "http://x", "conditions": []})),
    ];
    for mut observed in cases {
        let mut second = now();
        for round in 0..3 {
            let made = plan(&observed, second);
            second = Timestamp::from_second(second.as_second() + 60).unwrap();
            let wrote = made.service.is_some() || made.status.is_some();
            assert!(round < 2 || !wrote, "{observed:#?} is never at rest: {}", show(&made));
            if let Some(ServiceWrite::Create(service) | ServiceWrite::Replace(service)) = made.service {
                observed.service = Some(Arc::from(service));
            }
            if let Some(status) = made.status {
                observed = observed.status(serde_json::to_value(status).unwrap());
            }
        }
    }
}

#[test]
fn inline_files_are_packed_into_the_store_once() {
    let store = MemoryStore::default();
    let function = function(json!({"runtime": "python", "source": {"inline": {"main.py": "x = 1\n"}}}));
    let read = || super::observe::source(&function, &store, "default").now_or_never().unwrap().unwrap();
    let Source::Archive { digest } = read() else { panic!("no archive") };
    assert_eq!(read(), Source::Archive { digest: digest.clone() });
    assert_eq!(store.0.lock().unwrap().len(), 1);
    let there = |namespace: &str| store.contains(namespace, &digest).now_or_never().unwrap().unwrap();
    assert_eq!((there("default"), there("other")), (true, false), "a digest gives no other namespace a right");
}
