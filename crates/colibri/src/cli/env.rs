//! `colibri env`: the environment of a function or a service.

use std::collections::BTreeMap;

use api::functions::Function;
use api::serving::Service;
use clap::Args;
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, SecretEnvSource};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::access::{Access, Target};
use super::error::CliError;
use super::output::{OutputArgs, list_of};
use super::table;
use super::workload::Workload;

/// Tries to write an object that somebody else changes too.
const TRIES: usize = 5;

/// Arguments of `colibri env`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri env hello                             what is set
  colibri env hello SIZE=128 MODE=fast          set or change: a new version
  colibri env hello MODE-                       take away
  colibri env hello --from-secret s3            a variable for each key of the secret")]
pub struct EnvArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    /// NAME=VALUE sets a variable, NAME- takes it away
    #[arg(value_name = "CHANGE", value_parser = parse_change)]
    changes: Vec<(String, Option<String>)>,
    /// Secret of the namespace whose keys become variables; may be given several times
    #[arg(long, value_name = "NAME")]
    from_secret: Vec<String>,
    /// Secret whose keys are variables no more; may be given several times
    #[arg(long, value_name = "NAME")]
    not_from_secret: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Shows the environment, or changes it.
pub async fn run(args: EnvArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let mut workload = Workload::find(&access, &args.name).await?;
    let is_change = !(args.changes.is_empty() && args.from_secret.is_empty() && args.not_from_secret.is_empty());
    if is_change {
        workload = write(&access, workload, &args).await?;
        let name = workload.name();
        eprintln!("{name}: a new version is being made; colibri describe {name} tells when it serves");
    }
    let environment = environment(&mut workload)?;
    let value = list_of(environment.variables.iter().map(|variable| json!(variable)).collect());
    let names = || environment.variables.iter().map(|variable| format!("{}\n", variable.name)).collect();
    args.output.show(&value, names, || render(&environment));
    Ok(())
}

fn parse_change(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((name, value)), _) => (name, Some(value.to_owned())),
        (None, Some(name)) => (name, None),
        (None, None) => return Err("it is NAME=VALUE, or NAME- to take it away".to_owned()),
    };
    if name.is_empty() {
        return Err("the name is missing: it is NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value))
}

/// The two lists of variables, wherever they stand.
struct Environment<'a> {
    variables: &'a mut Vec<EnvVar>,
    sources: &'a mut Vec<EnvFromSource>,
}

fn environment(workload: &mut Workload) -> Result<Environment<'_>, CliError> {
    match workload {
        Workload::Function(function) => {
            Ok(Environment { variables: &mut function.spec.env, sources: &mut function.spec.env_from })
        }
        Workload::Service(service) => {
            let name = service.metadata.name.clone().unwrap_or_default();
            let containers = &mut service.spec.template.spec.pod.containers;
            // The one that gets the requests: the one with a port, else the first.
            let place = containers.iter().position(|container| container.ports.as_ref().is_some_and(|p| !p.is_empty()));
            let container = containers.get_mut(place.unwrap_or(0));
            let container = container.ok_or_else(|| CliError::new(format!("service {name} has no container")))?;
            let variables = container.env.get_or_insert_default();
            Ok(Environment { variables, sources: container.env_from.get_or_insert_default() })
        }
    }
}

fn change(environment: &mut Environment, args: &EnvArgs) -> Result<(), CliError> {
    for (name, value) in &args.changes {
        let place = environment.variables.iter().position(|variable| variable.name == *name);
        match (place, value) {
            (Some(place), Some(value)) => {
                environment.variables[place] =
                    EnvVar { name: name.clone(), value: Some(value.clone()), value_from: None };
            }
            (None, Some(value)) => {
                let variable = EnvVar { name: name.clone(), value: Some(value.clone()), value_from: None };
                environment.variables.push(variable);
            }
            (Some(place), None) => drop(environment.variables.remove(place)),
            (None, None) => {
                let there: Vec<&str> = environment.variables.iter().map(|variable| variable.name.as_str()).collect();
                return Err(missing("variable", name, &there));
            }
        }
    }
    for secret in &args.from_secret {
        if !environment.sources.iter().any(|source| secret_of(source) == Some(secret)) {
            let secret_ref = Some(SecretEnvSource { name: secret.clone(), optional: None });
            environment.sources.push(EnvFromSource { secret_ref, ..EnvFromSource::default() });
        }
    }
    for secret in &args.not_from_secret {
        let there: Vec<&str> = environment.sources.iter().filter_map(secret_of).collect();
        if !there.contains(&secret.as_str()) {
            return Err(missing("secret", secret, &there));
        }
        environment.sources.retain(|source| secret_of(source) != Some(secret));
    }
    Ok(())
}

fn missing(what: &str, name: &str, there: &[&str]) -> CliError {
    let list = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    CliError::new(format!("there is no {what} {name}; there are: {list}"))
}

fn secret_of(source: &EnvFromSource) -> Option<&str> {
    source.secret_ref.as_ref().map(|secret| secret.name.as_str())
}

/// Changes and writes the object, again where somebody else was quicker.
async fn write(access: &Access, mut workload: Workload, args: &EnvArgs) -> Result<Workload, CliError> {
    let (client, namespace, params) = (access.client.clone(), &access.namespace, PostParams::default());
    for attempt in 1.. {
        change(&mut environment(&mut workload)?, args)?;
        let name = workload.name();
        let written = match &workload {
            Workload::Function(function) => {
                let api: Api<Function> = Api::namespaced(client.clone(), namespace);
                api.replace(&name, &params, function).await.map(|written| Workload::Function(Box::new(written)))
            }
            Workload::Service(service) => {
                let api: Api<Service> = Api::namespaced(client.clone(), namespace);
                api.replace(&name, &params, service).await.map(|written| Workload::Service(Box::new(written)))
            }
        };
        match written {
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < TRIES => {
                workload = Workload::find(access, &workload.full_name()).await?;
            }
            written => return written.map_err(|error| CliError::api(&format!("change {name}"), &error)),
        }
    }
    unreachable!("the last attempt returns")
}

fn render(environment: &Environment) -> String {
    let variable = |variable: &EnvVar| {
        let from = variable.value_from.as_ref().map(|from| serde_json::to_value(from).unwrap_or_default());
        let source = |reference: &Value, what: &str| {
            format!("{what} {}, key {}", text(&reference["name"]), text(&reference["key"]))
        };
        let (value, source) = match (&variable.value, from) {
            (value, None) => (value.clone().unwrap_or_default(), String::new()),
            (_, Some(from)) if from.get("secretKeyRef").is_some() => {
                (String::new(), source(&from["secretKeyRef"], "secret"))
            }
            (_, Some(from)) if from.get("configMapKeyRef").is_some() => {
                (String::new(), source(&from["configMapKeyRef"], "config map"))
            }
            (_, Some(from)) => (String::new(), from.to_string()),
        };
        vec![variable.name.clone(), value, source]
    };
    let all = |from: &EnvFromSource| {
        let prefix = from.prefix.clone().unwrap_or_default();
        let name = match (secret_of(from), &from.config_map_ref) {
            (Some(secret), _) => format!("secret {secret}"),
            (None, Some(map)) => format!("config map {}", map.name),
            (None, None) => String::new(),
        };
        vec![format!("{prefix}*"), String::new(), name]
    };
    let rows: Vec<_> = environment.variables.iter().map(variable).chain(environment.sources.iter().map(all)).collect();
    table::render(&["NAME", "VALUE", "FROM"], &rows)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Names of workloads that take variables from a secret.
pub fn users_of_secret(workloads: &mut [Workload]) -> BTreeMap<String, Vec<String>> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for workload in workloads {
        let name = workload.name();
        let Ok(environment) = environment(workload) else { continue };
        let single = environment.variables.iter().filter_map(|variable| {
            let secret = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
            Some(secret.name.clone())
        });
        let whole = environment.sources.iter().filter_map(secret_of).map(str::to_owned);
        for secret in single.chain(whole) {
            let names = users.entry(secret).or_default();
            if !names.contains(&name) {
                names.push(name.clone());
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EnvArgs,
    }

    fn workload(env: Value, from: Value) -> Workload {
        let function = json!({"metadata": {"name": "a"}, "spec": {"runtime": "python", "env": env, "envFrom": from}});
        Workload::Function(serde_json::from_value(function).unwrap())
    }

    /// The environment after a command line, or what is said of it.
    fn check(words: &[&str], expected: &str) {
        let env = json!([{"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
        let mut workload = workload(env, json!([{"secretRef": {"name": "all"}}]));
        let line = Line::try_parse_from(["env", "a"].iter().chain(words)).unwrap();
        let mut environment = environment(&mut workload).unwrap();
        let found = match change(&mut environment, &line.args) {
            Ok(()) => render(&environment)
                .lines()
                .skip(1)
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
                .join(" | "),
            Err(error) => error.message,
        };
        assert_eq!(found, expected, "{words:?}");
    }

    #[test]
    fn variables_are_set_changed_and_taken_away() {
        check(&[], "A 1 | B secret s, key k | * secret all");
        check(&["A=2", "C=x=y"], "A 2 | B secret s, key k | C x=y | * secret all");
        check(&["A-", "B=plain"], "B plain | * secret all");
        check(&["--from-secret", "s3", "--from-secret", "all"], "A 1 | B secret s, key k | * secret all | * secret s3");
        check(&["--not-from-secret", "all"], "A 1 | B secret s, key k");
        check(&["D-"], "there is no variable D; there are: A, B");
        check(&["--not-from-secret", "s"], "there is no secret s; there are: all");
    }

    #[test]
    fn changes_are_checked_as_they_are_typed() {
        for (text, expected) in
            [("A", "it is NAME=VALUE, or NAME- to take it away"), ("=1", "the name is missing: it is NAME=VALUE")]
        {
            assert_eq!(parse_change(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn of_several_containers_the_one_with_a_port_has_the_environment() {
        let service = json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {"containers": [
            {"name": "side", "image": "a"}, {"name": "main", "image": "b", "ports": [{"containerPort": 80}], "env": [{"name": "X", "value": "1"}]}]}}}});
        let mut service = Workload::Service(serde_json::from_value(service).unwrap());
        assert_eq!(environment(&mut service).unwrap().variables[0].name, "X");
        let users = users_of_secret(&mut [
            workload(
                json!([{"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
                json!([{"secretRef": {"name": "s"}}]),
            ),
            service,
        ]);
        assert_eq!(users, BTreeMap::from([("s".to_owned(), vec!["a".to_owned()])]));
    }
}
