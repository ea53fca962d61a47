//! `colibri list`.

use clap::Args;
use jiff::Timestamp;

use super::access::Target;
use super::error::CliError;
use super::output::{Format, OutputArgs, list_of};
use super::table;
use super::workload::Workload;

/// Arguments of `colibri list`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri list -A                       of every namespace
  colibri list -o name                  function.functions.colibri.dev/hello, as kubectl takes it
  colibri list -o json | jq '.items[].status.url'")]
pub struct ListArgs {
    /// Of every namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Prints a table of functions and services.
pub async fn run(args: ListArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let namespace = (!args.all_namespaces).then_some(access.namespace.as_str());
    let found = Workload::list(&access.client, namespace).await?;
    if found.is_empty() && args.output.output == Format::Table {
        let place = namespace.map_or_else(|| "any namespace".to_owned(), |name| format!("namespace {name}"));
        eprintln!("no function or service in {place}; colibri deploy DIR makes a function");
        return Ok(());
    }
    let all = list_of(found.iter().map(Workload::object).collect());
    let names = || found.iter().map(|workload| format!("{}\n", workload.full_name())).collect();
    args.output.show(&all, names, || render(&found, args.all_namespaces, Timestamp::now()));
    Ok(())
}

fn render(found: &[Workload], with_namespace: bool, now: Timestamp) -> String {
    let mut header = vec!["NAME", "KIND", "READY", "URL", "VERSION", "AGE", "REASON"];
    if with_namespace {
        header.insert(0, "NAMESPACE");
    }
    let row = |workload: &Workload| {
        let (ready, reason) = workload.ready();
        let mut row = vec![
            workload.name(),
            workload.kind(),
            ready.to_owned(),
            workload.url().unwrap_or_default().to_owned(),
            workload.version().unwrap_or_default().to_owned(),
            table::age(workload.created(), now),
            reason,
        ];
        if with_namespace {
            row.insert(0, workload.namespace());
        }
        row
    };
    table::render(&header, &found.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_services_stand_in_one_table() {
        let function = serde_json::json!({
            "metadata": {"name": "greet", "namespace": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"runtime": "python"},
            "status": {
                "url": "http://greet.a.localhost:8080", "version": "greet-00002",
                "conditions": [{"type": "Ready", "status": "False", "reason": "ExitCode1"}],
            },
        });
        let service = serde_json::json!({
            "metadata": {"name": "web", "namespace": "b", "creationTimestamp": "2026-01-01T00:00:50Z"}, "spec": {},
        });
        let found = [
            Workload::Function(serde_json::from_value(function).unwrap()),
            Workload::Service(serde_json::from_value(service).unwrap()),
        ];
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        expect_test::expect![[r#"
            NAMESPACE   NAME    KIND                READY     URL                             VERSION       AGE   REASON
            a           greet   function (python)   False     http://greet.a.localhost:8080   greet-00002   60s   ExitCode1
            b           web     service             Unknown                                                 10s
        "#]]
        .assert_eq(&render(&found, true, now));
    }
}
