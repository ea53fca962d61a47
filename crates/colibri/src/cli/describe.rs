//! `colibri describe`.

use std::fmt::Write;

use api::functions::Function;
use api::serving::domain::DomainMapping;
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::access::Target;
use super::advice::{self, Advice};
use super::domain;
use super::error::CliError;
use super::output::{OutputArgs, tidy};
use super::seen::{self, Seen};
use super::style::Style;
use super::table;
use super::versions;
use super::workload::{Workload, is_of_function, status_text};

/// Arguments of `colibri describe`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri describe hello                why it is not ready, its versions, its instances
  colibri describe hello -n shop
  colibri describe hello -o json | jq .advice")]
pub struct DescribeArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Prints everything about a function or a service.
pub async fn run(args: DescribeArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let seen = seen::look(&access, &args.name).await?;
    if let Workload::Service(service) = &seen.workload
        && !is_of_function(service)
        && let Ok(function) = Workload::find(&access, &format!("function/{}", seen.workload.name())).await
    {
        let name = function.name();
        eprintln!("note: the function {name} does not get this name; colibri describe function/{name} tells why");
    }
    let name = || format!("{}\n", seen.workload.full_name());
    let domains = domain::leading_to(&access, &seen.workload.name()).await;
    args.output.show(&value(&seen, &domains), name, || render(&seen, &domains, Timestamp::now(), Style::stdout()));
    Ok(())
}

/// For programs: the objects as they are, and what is wrong.
fn value(seen: &Seen, domains: &[DomainMapping]) -> Value {
    let all = |objects: Vec<Result<Value, serde_json::Error>>| -> Vec<Value> {
        objects.into_iter().map(|object| tidy(object.unwrap_or_default())).collect()
    };
    let advice = advice::of(seen)
        .map(|found| json!({"stage": found.stage, "cause": found.cause, "cure": found.cure, "failed": found.failed}));
    json!({
        "object": seen.workload.object(),
        "advice": advice,
        "domains": all(domains.iter().map(serde_json::to_value).collect()),
        "revisions": all(seen.revisions.iter().map(serde_json::to_value).collect()),
        "pods": all(seen.pods.iter().map(serde_json::to_value).collect()),
    })
}

fn render(seen: &Seen, domains: &[DomainMapping], now: Timestamp, style: Style) -> String {
    let workload = &seen.workload;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{:<12} {value}", format!("{name}:"));
        }
    };
    line("Name", &workload.name());
    line("Namespace", &workload.namespace());
    line("Kind", &workload.kind());
    line("URL", workload.url().unwrap_or_default());
    line("Domains", &domain::names(domains));
    line("Version", workload.version().unwrap_or_default());
    line("Age", &table::age(workload.created(), now));
    if let Workload::Function(function) = workload {
        for (name, value) in function_lines(function) {
            line(name, &value);
        }
    }
    if let Some(advice) = advice::of(seen) {
        let _ = write!(text, "\n{}", why(&advice, style));
    }
    let _ = write!(text, "\nConditions:\n{}", indent(&conditions(workload)));
    let _ = write!(text, "\nVersions:\n{}", indent(&versions::render(seen, now)));
    let _ = write!(text, "\nInstances:\n{}", indent(&instances(&seen.pods, now)));
    text
}

/// What is wrong in words, and what to do.
fn why(advice: &Advice, style: Style) -> String {
    let title = if advice.failed { style.bad("Not ready, failed") } else { style.warning("Not ready yet, waiting") };
    let mut text = format!("{title} at {}:\n{}", advice.stage, indent(&advice.cause));
    if !advice.cure.is_empty() {
        let _ = write!(text, "{}", indent(&format!("cure: {}", advice.cure)));
    }
    text
}

fn function_lines(function: &Function) -> Vec<(&'static str, String)> {
    let spec = &function.spec;
    let mut lines = vec![
        ("Handler", spec.handler.clone().unwrap_or_default()),
        ("Timeout", spec.timeout.clone().unwrap_or_default()),
    ];
    if let Some(digest) = function.status.as_ref().and_then(|status| status.build.as_ref()?.digest.clone()) {
        lines.push(("Code", digest));
    }
    if let Some(scaling) = &spec.scaling {
        let set = serde_json::to_value(scaling).unwrap_or_default();
        let parts = set.as_object().into_iter().flatten();
        let part = |(name, value): (&String, &serde_json::Value)| {
            format!("{name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        lines.push(("Scaling", parts.map(part).collect::<Vec<_>>().join(", ")));
    }
    lines
}

fn conditions(workload: &Workload) -> String {
    let row = |condition: &api::Condition| {
        vec![
            condition.kind.clone(),
            status_text(condition.status).to_owned(),
            condition.reason.clone().unwrap_or_default(),
            condition.message.clone().unwrap_or_default().replace('\n', " | "),
        ]
    };
    let rows: Vec<_> = workload.conditions().iter().map(row).collect();
    table::render(&["TYPE", "STATUS", "REASON", "MESSAGE"], &rows)
}

fn instances(pods: &[Pod], now: Timestamp) -> String {
    if pods.is_empty() {
        return "none; the next request starts one\n".to_owned();
    }
    let row = |pod: &Pod| {
        let status = pod.status.as_ref();
        vec![
            pod.name_any(),
            status.and_then(|status| status.phase.clone()).unwrap_or_default(),
            status.and_then(|status| status.pod_ip.clone()).unwrap_or_default(),
            table::age(pod.creation_timestamp().map(|time| time.0), now),
        ]
    };
    table::render(&["NAME", "PHASE", "ADDRESS", "AGE"], &pods.iter().map(row).collect::<Vec<_>>())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use api::serving::annotations::REVISION_LABEL;

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_function_that_failed_once() {
        let function = serde_json::json!({
            "metadata": {"name": "greet", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"runtime": "python", "handler": "main.handle", "scaling": {"max": 3, "idle": "60s"}},
            "status": {
                "url": "http://greet.default.localhost:8080", "version": "greet-00001",
                "conditions": [{"type": "RevisionReady", "status": "False", "reason": "ExitCode1", "message": "main.py:1: SyntaxError: x\n    y"}],
            },
        });
        let revision = |name: &str, status: &str| {
            serde_json::json!({
                "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
                "status": {"conditions": [
                    {"type": "Ready", "status": status, "reason": "ExitCode1", "message": "main.py:1: SyntaxError: x\n    y"},
                ]},
            })
        };
        let pod = serde_json::json!({
            "metadata": {"name": "p", "labels": {REVISION_LABEL: "greet-00001"}, "creationTimestamp": "2026-01-01T00:00:30Z"},
            "status": {"phase": "Running", "podIP": "10.0.0.2"},
        });
        let service = serde_json::json!({
            "metadata": {"name": "greet", "generation": 2}, "spec": {},
            "status": {
                "observedGeneration": 2, "latestCreatedRevisionName": "greet-00002",
                "traffic": [{"revisionName": "greet-00001", "percent": 100}],
            },
        });
        let seen = Seen {
            workload: Workload::Function(object(function)),
            service: Some(object(service)),
            revisions: vec![object(revision("greet-00002", "False")), object(revision("greet-00001", "True"))],
            pods: vec![object(pod)],
        };
        expect_test::expect![[r#"
            Name:        greet
            Namespace:   default
            Kind:        function (python)
            URL:         http://greet.default.localhost:8080
            Version:     greet-00001
            Age:         60s
            Handler:     main.handle
            Scaling:     idle 60s, max 3

            Not ready, failed at container:
              the container ended with exit code 1: main.py:1: SyntaxError: x
                  y
              cure: correct the code and deploy again

            Conditions:
              TYPE            STATUS   REASON      MESSAGE
              RevisionReady   False    ExitCode1   main.py:1: SyntaxError: x |     y

            Versions:
              NAME          TRAFFIC   TAGS   READY   INSTANCES   CONTENT   AGE   REASON
              greet-00002                    False   0                     60s   ExitCode1
              greet-00001   100%             True    1                     60s   ExitCode1

            Instances:
              NAME   PHASE     ADDRESS    AGE
              p      Running   10.0.0.2   30s
        "#]]
        .assert_eq(&render(&seen, &[], "2026-01-01T00:01:00Z".parse().unwrap(), Style::plain()));
    }
}
