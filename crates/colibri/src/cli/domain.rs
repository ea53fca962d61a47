//! `colibri domain`.

use std::time::Duration;

use api::conditions::{ConditionStatus, READY};
use api::serving::domain::{ClusterDomainClaim, ClusterDomainClaimSpec, DomainMapping, DomainMappingSpec, Reference};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::{Access, Target};
use super::error::CliError;
use super::output::{Format, OutputArgs, list_of, tidy};
use super::table;
use super::workload::status_text;

/// Longest wait until a domain answers, or is gone.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(50);
/// Reasons that do not pass by themselves.
const FINAL: [&str; 3] = ["DomainAlreadyClaimed", "HostInUse", "NotARoute"];

/// Arguments of `colibri domain`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri domain create app.example.com --ref hello --claim
  colibri domain update app.example.com --ref greet
  colibri domain list -A
  colibri domain delete app.example.com")]
pub struct DomainArgs {
    #[command(subcommand)]
    command: DomainCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum DomainCommand {
    /// Let a domain lead to a service or a function, and wait until it answers
    Create(CreateArgs),
    /// Let a mapped domain lead elsewhere, and wait until it does
    Update(UpdateArgs),
    /// List the domains and where they lead
    List(ListArgs),
    /// Let domains lead nowhere any more
    Delete(DeleteArgs),
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri domain create app.example.com --ref hello            a service or function of the namespace
  colibri domain create app.example.com --ref kroute:hello     a Route
  colibri domain create app.example.com --ref hello --claim    as the administrator, who claims it too")]
struct CreateArgs {
    /// The domain
    domain: String,
    /// Where it leads: NAME or ksvc:NAME, kroute:NAME for a Route, svc:NAME for a Kubernetes Service of a Route
    #[arg(long = "ref", value_name = "REF", value_parser = parse_reference)]
    reference: Reference,
    /// Claim the domain for the namespace too, which the administrator may
    #[arg(long)]
    claim: bool,
    /// Do not wait until it answers
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri domain update app.example.com --ref greet")]
struct UpdateArgs {
    /// The domain
    domain: String,
    /// Where it leads from now on, as create takes it
    #[arg(long = "ref", value_name = "REF", value_parser = parse_reference)]
    reference: Reference,
    /// Do not wait until it leads there
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri domain list -A                of every namespace
  colibri domain list -o name")]
struct ListArgs {
    /// Of every namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri domain delete app.example.com
  colibri domain delete a.example.com b.example.com -n shop --no-wait")]
struct DeleteArgs {
    /// Domains
    #[arg(required = true)]
    domains: Vec<String>,
    /// Do not wait until they are gone
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

/// Does what the subcommand says.
pub async fn run(args: DomainArgs) -> Result<(), CliError> {
    match args.command {
        DomainCommand::Create(args) => create(args).await,
        DomainCommand::Update(args) => update(args).await,
        DomainCommand::List(args) => list(args).await,
        DomainCommand::Delete(args) => delete(args).await,
    }
}

/// `KIND:NAME:NAMESPACE`, of which the name alone must be there; as `kn` takes it.
fn parse_reference(text: &str) -> Result<Reference, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (kind, name, namespace) = match *parts.as_slice() {
        [name] => ("ksvc", name, ""),
        [kind, name] => (kind, name, ""),
        [kind, name, namespace] => (kind, name, namespace),
        _ => return Err("it is NAME, KIND:NAME or KIND:NAME:NAMESPACE".to_owned()),
    };
    let (api_version, kind) = match kind {
        "ksvc" => ("serving.knative.dev/v1", "Service"),
        "kroute" => ("serving.knative.dev/v1", "Route"),
        "svc" => ("v1", "Service"),
        other => return Err(format!("there is no kind {other:?}: it is ksvc, kroute or svc")),
    };
    if name.is_empty() {
        return Err("the name is missing".to_owned());
    }
    let owned = str::to_owned;
    Ok(Reference {
        api_version: owned(api_version),
        kind: owned(kind),
        name: owned(name),
        namespace: owned(namespace),
        address: None,
    })
}

async fn create(args: CreateArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    if args.claim {
        claim(&access, &args.domain).await?;
    }
    let mappings: Api<DomainMapping> = Api::namespaced(access.client.clone(), &access.namespace);
    let spec = DomainMappingSpec { reference: args.reference, tls: None };
    let mapping = DomainMapping::new(&args.domain, spec);
    mappings.create(&PostParams::default(), &mapping).await.map_err(|error| {
        let known = matches!(&error, kube::Error::Api(status) if status.reason == "AlreadyExists");
        let cure =
            if known { format!("colibri domain update {} lets it lead elsewhere", args.domain) } else { String::new() };
        CliError::api(&format!("map {}", args.domain), &error).cured_by(&cure)
    })?;
    if args.no_wait {
        return Ok(());
    }
    tell_once_it_answers(&mappings, &args.domain, &access).await
}

async fn update(args: UpdateArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let mappings: Api<DomainMapping> = Api::namespaced(access.client.clone(), &access.namespace);
    let patch = Patch::Merge(json!({ "spec": { "ref": args.reference } }));
    let patched = mappings.patch(&args.domain, &PatchParams::default(), &patch).await;
    patched.map_err(|error| CliError::api(&format!("change {}", args.domain), &error))?;
    if args.no_wait {
        return Ok(());
    }
    tell_once_it_answers(&mappings, &args.domain, &access).await
}

async fn tell_once_it_answers(mappings: &Api<DomainMapping>, domain: &str, access: &Access) -> Result<(), CliError> {
    let mapping = answers(mappings, domain, access).await?;
    let url = mapping.status.as_ref().and_then(|status| status.url.as_deref()).unwrap_or_default();
    eprintln!("{domain} leads to {}: {url}", shown(&mapping.spec.reference));
    Ok(())
}

/// Claims a domain that nobody has.
async fn claim(access: &Access, domain: &str) -> Result<(), CliError> {
    let claims: Api<ClusterDomainClaim> = Api::all(access.client.clone());
    let spec = ClusterDomainClaimSpec { namespace: access.namespace.clone() };
    match claims.create(&PostParams::default(), &ClusterDomainClaim::new(domain, spec)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            let found = claims.get_opt(domain).await.map_err(|error| CliError::api("read the claim", &error))?;
            match found.filter(|found| found.spec.namespace != access.namespace) {
                Some(found) => Err(CliError::new(format!(
                    "{domain} is claimed for the namespace {}: kubectl delete clusterdomainclaim {domain} takes it away",
                    found.spec.namespace
                ))),
                None => Ok(()),
            }
        }
        Err(error) => Err(CliError::api(&format!("claim {domain}"), &error)),
    }
}

/// Waits until the domain answers.
async fn answers(mappings: &Api<DomainMapping>, domain: &str, access: &Access) -> Result<DomainMapping, CliError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = mappings.get_opt(domain).await.map_err(|error| CliError::api("read the mapping", &error))?;
        let mapping = found.ok_or_else(|| CliError::new(format!("{domain} was deleted meanwhile")))?;
        let status = mapping.status.clone().unwrap_or_default();
        let is_current = status.observed_generation == mapping.metadata.generation;
        let ready = status.conditions.iter().find(|condition| condition.kind == READY).filter(|_| is_current);
        let is = |wanted| ready.is_some_and(|ready| ready.status == wanted);
        if is(ConditionStatus::True) {
            return Ok(mapping);
        }
        let reason = ready.and_then(|ready| ready.reason.clone()).unwrap_or_default();
        let message = ready.and_then(|ready| ready.message.clone()).unwrap_or_default();
        if Instant::now() >= deadline || is(ConditionStatus::False) && FINAL.contains(&reason.as_str()) {
            let why = if message.is_empty() { "no controller has looked at it".to_owned() } else { message };
            let cure = cure_of(&reason, &why, domain, &access.namespace);
            return Err(CliError::new(format!("{domain} is mapped, but does not answer: {why}")).cured_by(&cure));
        }
        tokio::time::sleep(STEP).await;
    }
}

fn cure_of(reason: &str, message: &str, domain: &str, namespace: &str) -> String {
    match reason {
        "DomainAlreadyClaimed" if message.starts_with("no ClusterDomainClaim") => format!(
            "an administrator claims it for the namespace {namespace}, as colibri domain create --claim does, or lets \
             everybody claim what is free: kubectl -n {} patch configmap config-network --type merge -p \
             '{{\"data\":{{\"autocreate-cluster-domain-claims\":\"true\"}}}}'",
            api::SYSTEM_NAMESPACE
        ),
        "DomainAlreadyClaimed" => format!("take another domain than {domain}, or ask the administrator for this one"),
        "HostInUse" => format!("take another domain than {domain}"),
        "ResolveFailed" => "colibri list shows what there is in the namespace".to_owned(),
        _ => String::new(),
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let mappings: Api<DomainMapping> = if args.all_namespaces {
        Api::all(access.client.clone())
    } else {
        Api::namespaced(access.client.clone(), &access.namespace)
    };
    let found = mappings.list(&ListParams::default()).await;
    let found = found.map_err(|error| CliError::api("list domains", &error))?.items;
    if found.is_empty() && args.output.output == Format::Table {
        let place =
            if args.all_namespaces { "any namespace".to_owned() } else { format!("namespace {}", access.namespace) };
        eprintln!("no domain in {place}; colibri domain create DOMAIN --ref NAME maps one");
        return Ok(());
    }
    let objects = found.iter().map(|mapping| tidy(serde_json::to_value(mapping).unwrap_or(Value::Null)));
    let all = list_of(objects.collect());
    let name = |mapping: &DomainMapping| format!("domainmapping.serving.knative.dev/{}\n", mapping.name_any());
    let names = || found.iter().map(name).collect();
    args.output.show(&all, names, || render(&found, args.all_namespaces, Timestamp::now()));
    Ok(())
}

fn render(found: &[DomainMapping], with_namespace: bool, now: Timestamp) -> String {
    let mut header = vec!["NAME", "REFERENCE", "READY", "URL", "AGE", "REASON"];
    if with_namespace {
        header.insert(0, "NAMESPACE");
    }
    let row = |mapping: &DomainMapping| {
        let status = mapping.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().find(|condition| condition.kind == READY);
        let mut row = vec![
            mapping.name_any(),
            shown(&mapping.spec.reference),
            ready.map_or("Unknown", |ready| status_text(ready.status)).to_owned(),
            status.url.clone().unwrap_or_default(),
            table::age(mapping.creation_timestamp().map(|time| time.0), now),
            ready.and_then(|ready| ready.reason.clone()).unwrap_or_default(),
        ];
        if with_namespace {
            row.insert(0, mapping.namespace().unwrap_or_default());
        }
        row
    };
    table::render(&header, &found.iter().map(row).collect::<Vec<_>>())
}

/// A reference as `--ref` takes it.
fn shown(reference: &Reference) -> String {
    let kind = match (reference.api_version.as_str(), reference.kind.as_str()) {
        ("serving.knative.dev/v1", "Service") => "ksvc",
        ("serving.knative.dev/v1", "Route") => "kroute",
        ("v1", "Service") => "svc",
        (_, kind) => kind,
    };
    format!("{kind}:{}", reference.name)
}

/// The mappings that lead to a service or function. Whoever may not read them sees none.
pub async fn leading_to(access: &Access, name: &str) -> Vec<DomainMapping> {
    let mappings: Api<DomainMapping> = Api::namespaced(access.client.clone(), &access.namespace);
    let found = mappings.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
    found.into_iter().filter(|mapping| mapping.spec.reference.name == name).collect()
}

/// The domains of some mappings, and which of them do not answer.
pub fn names(mappings: &[DomainMapping]) -> String {
    let text = |mapping: &DomainMapping| {
        let status = mapping.status.clone().unwrap_or_default();
        let is_ready = status.conditions.iter().any(|c| c.kind == READY && c.status == ConditionStatus::True);
        format!("{}{}", mapping.name_any(), if is_ready { "" } else { " (not ready)" })
    };
    mappings.iter().map(text).collect::<Vec<_>>().join(", ")
}

async fn delete(args: DeleteArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let mappings: Api<DomainMapping> = Api::namespaced(access.client.clone(), &access.namespace);
    for domain in &args.domains {
        let deleted = mappings.delete(domain, &DeleteParams::background()).await;
        deleted.map_err(|error| CliError::api(&format!("delete {domain}"), &error))?;
        if !args.no_wait {
            gone(&mappings, domain).await?;
        }
        eprintln!("domain {domain} deleted");
    }
    Ok(())
}

async fn gone(mappings: &Api<DomainMapping>, domain: &str) -> Result<(), CliError> {
    let deadline = Instant::now() + LIMIT;
    while mappings.get_opt(domain).await.map_err(|error| CliError::api("read the mapping", &error))?.is_some() {
        if Instant::now() >= deadline {
            return Err(CliError::new(format!(
                "{domain} is still there after {}s: a finalizer may hold it, kubectl get dm {domain} -o yaml shows which",
                LIMIT.as_secs()
            )));
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_kns() {
        let rows = [
            ("hello", Ok("ksvc:hello")),
            ("ksvc:hello", Ok("ksvc:hello")),
            ("kroute:hello:shop", Ok("kroute:hello")),
            ("svc:hello", Ok("svc:hello")),
            ("broker:hello", Err("there is no kind \"broker\": it is ksvc, kroute or svc")),
            ("ksvc:", Err("the name is missing")),
            ("a:b:c:d", Err("it is NAME, KIND:NAME or KIND:NAME:NAMESPACE")),
        ];
        for (text, wanted) in rows {
            let parsed = parse_reference(text).map(|reference| shown(&reference));
            assert_eq!(parsed.as_deref().map_err(String::as_str), wanted, "{text}");
        }
        assert_eq!(parse_reference("kroute:hello:shop").unwrap().namespace, "shop");
    }

    #[test]
    fn domains_stand_in_a_table() {
        let mapping = |domain: &str, status: Value| -> DomainMapping {
            let mapping = serde_json::json!({
                "metadata": {"name": domain, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "web"}},
                "status": status,
            });
            serde_json::from_value(mapping).unwrap()
        };
        let ready = serde_json::json!({
            "url": "http://a.example.com:8080", "conditions": [{"type": "Ready", "status": "True"}],
        });
        let taken = serde_json::json!({
            "conditions": [{"type": "Ready", "status": "False", "reason": "DomainAlreadyClaimed"}],
        });
        let found = [mapping("a.example.com", ready), mapping("b.example.com", taken)];
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        expect_test::expect![[r#"
            NAMESPACE   NAME            REFERENCE   READY   URL                         AGE   REASON
            shop        a.example.com   ksvc:web    True    http://a.example.com:8080   60s
            shop        b.example.com   ksvc:web    False                               60s   DomainAlreadyClaimed
        "#]]
        .assert_eq(&render(&found, true, now));
        assert_eq!(names(&found), "a.example.com, b.example.com (not ready)");
    }
}
