//! Jobs and CronJobs.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/batch`.

use base::duration;
use serde_json::{Value, json};

use super::columns::{AGE, Doc, NAME, age, columns as make, selector, since};
use super::json::{at, child, fill, is_true, items, number, set, text, value_mut};
use super::pod::defaults as pod_defaults;
use super::pod::validate as pod_validate;
use super::workloads::containers;
use super::{Faults, Rules};
use crate::resource::{Columns, FieldError};

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

pub const JOBS: Rules = Rules {
    default: |job| {
        pod_defaults::template(job);
        if let Some(spec) = job.get_mut("spec") {
            default_job(spec);
        }
    },
    prepare_create: label_pods,
    validate: |job, faults| validate_job(at(job, "spec"), "spec", faults),
    validate_update: |new, old, faults| {
        for name in
            ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
        {
            let (after, before) = (at(at(new, "spec"), name), at(at(old, "spec"), name));
            if after != before {
                faults.push(FieldError::invalid(format!("spec.{name}"), after.clone(), "field is immutable"));
            }
        }
        let indexed = text(old, "spec.completionMode") == "Indexed";
        let (after, before) = (at(new, "spec.completions"), at(old, "spec.completions"));
        if after != before && !indexed {
            faults.push(FieldError::invalid("spec.completions", after.clone(), "field is immutable"));
        }
        let suspended = is_true(old, "spec.suspend") && at(old, "status.startTime").is_null();
        if at(new, "spec.template") != at(old, "spec.template") && !suspended {
            faults.push(FieldError::invalid("spec.template", at(new, "spec.template").clone(), "field is immutable"));
        }
    },
    ..Rules::NONE
};

pub const CRON_JOBS: Rules = Rules {
    default: |cron| {
        if let Some(spec) = value_mut(cron, "spec.jobTemplate") {
            pod_defaults::template(spec);
        }
        let Some(spec) = cron.get_mut("spec") else { return };
        fill(spec, "concurrencyPolicy", "Allow");
        fill(spec, "suspend", false);
        fill(spec, "successfulJobsHistoryLimit", 3);
        fill(spec, "failedJobsHistoryLimit", 1);
    },
    validate: |cron, faults| {
        let spec = at(cron, "spec");
        let schedule = text(spec, "schedule");
        if schedule.is_empty() {
            faults.push(FieldError::required("spec.schedule", ""));
        } else if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            faults.push(FieldError::invalid("spec.schedule", schedule, why));
        } else if !schedule.starts_with('@') && schedule.split_whitespace().count() != 5 {
            let found = schedule.split_whitespace().count();
            let why = format!(
                "expected exactly 5 fields, found {found}: [{}]",
                schedule.split_whitespace().collect::<Vec<_>>().join(" ")
            );
            faults.push(FieldError::invalid("spec.schedule", schedule, why));
        }
        match text(spec, "concurrencyPolicy") {
            "Allow" | "Forbid" | "Replace" => {}
            other => {
                faults.push(FieldError::not_supported("spec.concurrencyPolicy", other, &["Allow", "Forbid", "Replace"]))
            }
        }
        for name in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            if let Some(value) = number(spec, name).filter(|value| *value < 0) {
                faults.push(FieldError::invalid(format!("spec.{name}"), value, NOT_NEGATIVE));
            }
        }
        validate_job(at(spec, "jobTemplate.spec"), "spec.jobTemplate.spec", faults);
        if text(cron, "metadata.name").len() > 52 {
            faults.push(FieldError::invalid(
                "metadata.name",
                text(cron, "metadata.name"),
                "must be no more than 52 bytes",
            ));
        }
    },
    ..Rules::NONE
};

fn default_job(spec: &mut Value) {
    if at(spec, "completions").is_null() && at(spec, "parallelism").is_null() {
        set(spec, "completions", 1);
        set(spec, "parallelism", 1);
    }
    fill(spec, "parallelism", 1);
    let per_index = !at(spec, "backoffLimitPerIndex").is_null();
    fill(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let policy = if at(spec, "podFailurePolicy").is_null() { "TerminatingOrFailed" } else { "Failed" };
    fill(spec, "podReplacementPolicy", policy);
    for rule in super::json::items_mut(spec, "podFailurePolicy.rules") {
        for pattern in super::json::items_mut(rule, "onPodConditions") {
            fill(pattern, "status", "True");
        }
    }
}

/// A job finds its pods by its own uid.
fn label_pods(job: &mut Value) {
    if is_true(job, "spec.manualSelector") {
        return;
    }
    let (name, uid) = (text(job, "metadata.name").to_string(), text(job, "metadata.uid").to_string());
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    let label = |metadata: &mut Value| {
        if let Some(map) = child(metadata, "labels") {
            labels.iter().for_each(|(key, value)| set(map, key, value.as_str()));
        }
    };
    if let Some(template) = value_mut(job, "spec.template")
        && let Some(metadata) = child(template, "metadata")
    {
        label(metadata);
    }
    if let Some(spec) = job.get_mut("spec")
        && let Some(selector) = child(spec, "selector")
        && let Some(map) = child(selector, "matchLabels")
    {
        set(map, labels[0].0, uid.as_str());
    }
    // The job carries its template's labels where it has none of its own.
    let own = at(job, "metadata.labels").as_object().is_some_and(|map| !map.is_empty());
    if !own {
        let labels = at(job, "spec.template.metadata.labels").clone();
        if let Some(metadata) = job.get_mut("metadata") {
            set(metadata, "labels", labels);
        }
    }
}

fn validate_job(spec: &Value, path: &str, faults: &mut Faults) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ] {
        if let Some(value) = number(spec, name).filter(|value| *value < 0) {
            faults.push(FieldError::invalid(format!("{path}.{name}"), value, NOT_NEGATIVE));
        }
    }
    let mode = text(spec, "completionMode");
    if !matches!(mode, "" | "NonIndexed" | "Indexed") {
        faults.push(FieldError::not_supported(format!("{path}.completionMode"), mode, &["Indexed", "NonIndexed"]));
    }
    if mode == "Indexed" && at(spec, "completions").is_null() {
        faults.push(FieldError::required(format!("{path}.completions"), "when completion mode is Indexed"));
    }
    let template = format!("{path}.template.spec");
    let pod = at(spec, "template.spec");
    pod_validate::spec(pod, &template, faults);
    let restart = text(pod, "restartPolicy");
    if restart == "Always" {
        faults
            .push(FieldError::required(format!("{template}.restartPolicy"), "valid values: \"OnFailure\", \"Never\""));
    }
}

/// Columns of Jobs.
pub fn job_columns() -> Columns {
    make(
        &[
            NAME,
            ("Status", "string", 0, Doc::Own("Status of the job.")),
            ("Completions", "string", 0, Doc::Of("batch.v1.JobStatus", "succeeded")),
            ("Duration", "string", 0, Doc::Own("Time required to complete the job.")),
            AGE,
            ("Containers", "string", 1, Doc::Own("Names of each container in the template.")),
            ("Images", "string", 1, Doc::Own("Images referenced by each container in the template.")),
            ("Selector", "string", 1, Doc::Of("batch.v1.JobSpec", "selector")),
        ],
        |job, now| {
            let succeeded = number(job, "status.succeeded").unwrap_or(0);
            let completions = match (number(job, "spec.completions"), number(job, "spec.parallelism").unwrap_or(0)) {
                (Some(wanted), _) => format!("{succeeded}/{wanted}"),
                (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
                (None, _) => format!("{succeeded}/1"),
            };
            let time = |path: &str| text(job, path).parse::<jiff::Timestamp>().ok();
            let duration = match (time("status.startTime"), time("status.completionTime")) {
                (None, _) => String::new(),
                (Some(start), end) => duration::human(end.unwrap_or(now).as_second() - start.as_second()),
            };
            let [names, images] = containers(job, "spec.template.spec");
            vec![
                json!(text(job, "metadata.name")),
                json!(job_status(job)),
                json!(completions),
                json!(duration),
                age(job, now),
                names,
                images,
                json!(selector(at(job, "spec.selector"))),
            ]
        },
    )
}

fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| {
        items(job, "status.conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if !at(job, "metadata.deletionTimestamp").is_null() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// Columns of CronJobs.
pub fn cron_job_columns() -> Columns {
    make(
        &[
            NAME,
            ("Schedule", "string", 0, Doc::Own("When the jobs run.")),
            ("Timezone", "string", 0, Doc::Own("Time zone of the schedule.")),
            ("Suspend", "boolean", 0, Doc::Own("Whether no more jobs are started.")),
            ("Active", "integer", 0, Doc::Own("Number of jobs that run now.")),
            ("Last Schedule", "string", 0, Doc::Own("Time since the last job was started.")),
            AGE,
            ("Containers", "string", 1, Doc::Own("Names of each container in the template.")),
            ("Images", "string", 1, Doc::Own("Images referenced by each container in the template.")),
            ("Selector", "string", 1, Doc::Own("Selector of the pods.")),
        ],
        |cron, now| {
            let zone = match text(cron, "spec.timeZone") {
                "" => "<none>",
                zone => zone,
            };
            let last = match text(cron, "status.lastScheduleTime") {
                "" => json!("<none>"),
                time => since(time, now),
            };
            let suspend = if is_true(cron, "spec.suspend") { "True" } else { "False" };
            let [names, images] = containers(cron, "spec.jobTemplate.spec.template.spec");
            vec![
                json!(text(cron, "metadata.name")),
                json!(text(cron, "spec.schedule")),
                json!(zone),
                json!(suspend),
                json!(items(cron, "status.active").len()),
                last,
                age(cron, now),
                names,
                images,
                json!(selector(at(cron, "spec.jobTemplate.spec.selector"))),
            ]
        },
    )
}
