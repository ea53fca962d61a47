//! `colibri install`: prints what a Kubernetes API server must know before the roles can work with it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use crate::admission::{CONFIGURATION, DEFAULTING, DEFAULTING_PATH, VALIDATION, VALIDATION_PATH};

/// What `serving.knative.dev/v1` has.
const SERVING: [&str; 4] = ["services", "configurations", "revisions", "routes"];

/// Print the objects that a Kubernetes cluster needs for Colibri, as YAML for `kubectl apply -f -`.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// The kinds (CustomResourceDefinitions) and the system namespace
    #[arg(long)]
    crds: bool,
    /// Accounts of controller, gateway and node in the system namespace, and what each must be allowed
    #[arg(long)]
    rbac: bool,
    /// The admission webhooks, which the controller serves
    #[arg(long, requires = "ca")]
    webhooks: bool,
    /// Address of the controller's webhooks [default: the Service controller in colibri-system]
    #[arg(long, value_name = "https://HOST:PORT", requires = "webhooks")]
    url: Option<String>,
    /// Certificates that the webhooks' certificate is signed by, PEM
    #[arg(long, value_name = "FILE", requires = "webhooks")]
    ca: Option<PathBuf>,
}

/// Prints the objects.
///
/// # Errors
///
/// When nothing was asked for, or the certificates cannot be read.
pub fn install(args: &InstallArgs) -> Result<()> {
    if !args.crds && !args.rbac && !args.webhooks {
        bail!("say what to print: colibri install --crds, --rbac, or --webhooks --ca FILE");
    }
    let mut documents = Vec::new();
    if args.crds || args.rbac {
        // The label, which the webhook for ConfigMaps goes by, is not set by API servers before 1.21.
        let labels = json!({"kubernetes.io/metadata.name": api::SYSTEM_NAMESPACE});
        let metadata = json!({"name": api::SYSTEM_NAMESPACE, "labels": labels});
        documents.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    if args.crds {
        for definition in api::crds::all() {
            documents.push(serde_json::to_value(&definition).context("printing a definition")?);
        }
    }
    if args.rbac {
        documents.extend(super::rbac::objects());
    }
    if let Some(file) = &args.ca {
        let ca = std::fs::read(file).with_context(|| format!("--ca {} cannot be read", file.display()))?;
        client::https::roots(&ca, &format!("--ca {}", file.display()))?;
        if let Some(url) = args.url.as_deref().filter(|url| !url.starts_with("https://")) {
            bail!("--url {url:?} is not https://HOST:PORT: API servers call webhooks by HTTPS only");
        }
        documents.extend(webhooks(args.url.as_deref(), &STANDARD.encode(ca)));
    }
    let texts: Result<Vec<String>, _> = documents.iter().map(serde_yaml_ng::to_string).collect();
    print!("{}", texts?.join("---\n"));
    Ok(())
}

fn webhooks(url: Option<&str>, ca: &str) -> [Value; 3] {
    let configuration = |kind: &str, name: &str, path: &str| {
        let at = match url {
            Some(url) => json!({"url": format!("{}{path}", url.trim_end_matches('/'))}),
            None => json!({
                "service": {"namespace": api::SYSTEM_NAMESPACE, "name": "controller", "port": 443, "path": path},
            }),
        };
        let mut client = at;
        client["caBundle"] = ca.into();
        let rule = |group: &str, version: &str, resources: &[&str], scope: &str| {
            json!({
                "operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": [version],
                "resources": resources, "scope": scope,
            })
        };
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name},
            "webhooks": [{
                "name": name,
                "clientConfig": client,
                "rules": [
                    rule("serving.knative.dev", "v1", &SERVING, "Namespaced"),
                    rule("serving.knative.dev", "v1beta1", &["domainmappings"], "Namespaced"),
                    rule("networking.internal.knative.dev", "v1alpha1", &["clusterdomainclaims"], "Cluster"),
                    rule("functions.colibri.dev", "v1", &["functions"], "Namespaced"),
                ],
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 10,
            }],
        })
    };
    let mut config_maps = configuration("ValidatingWebhookConfiguration", CONFIGURATION, VALIDATION_PATH);
    let webhook = &mut config_maps["webhooks"][0];
    webhook["rules"] = json!([{
        "operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["configmaps"], "scope": "Namespaced",
    }]);
    webhook["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": api::SYSTEM_NAMESPACE}});
    [
        configuration("MutatingWebhookConfiguration", DEFAULTING, DEFAULTING_PATH),
        configuration("ValidatingWebhookConfiguration", VALIDATION, VALIDATION_PATH),
        config_maps,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_say_what_they_are() {
        for definition in api::crds::all() {
            let value = serde_json::to_value(&definition).unwrap();
            assert_eq!(value["apiVersion"], "apiextensions.k8s.io/v1");
            assert_eq!(value["kind"], "CustomResourceDefinition");
            assert!(value.get("status").is_none_or(Value::is_null), "{value}");
        }
    }

    #[test]
    fn every_kind_that_admission_speaks_of_is_asked_about() {
        let [_, validation, _] = webhooks(None, "Y2E=");
        let rules = validation["webhooks"][0]["rules"].as_array().unwrap();
        for definition in api::crds::all() {
            let (spec, version) = (&definition.spec, json!(definition.spec.versions[0].name));
            let asked = rules.iter().find(|rule| {
                rule["resources"].as_array().unwrap().contains(&json!(spec.names.plural))
                    && rule["apiGroups"] == json!([spec.group])
                    && rule["apiVersions"] == json!([version])
            });
            // PodAutoscalers are the controllers' own.
            assert_eq!(asked.is_some(), spec.names.kind != "PodAutoscaler", "{}", spec.names.kind);
            assert!(asked.is_none_or(|rule| rule["scope"] == spec.scope), "{}", spec.names.kind);
        }
    }

    #[test]
    fn webhooks_are_reached_by_url_or_by_service() {
        let [defaulting, validation, config_maps] = webhooks(Some("https://127.0.0.1:9443/"), "Y2E=");
        let client = |configuration: &Value| configuration["webhooks"][0]["clientConfig"].clone();
        assert_eq!(
            client(&defaulting),
            json!({"url": "https://127.0.0.1:9443/admission/defaulting", "caBundle": "Y2E="})
        );
        assert_eq!(config_maps["webhooks"][0]["rules"][0]["resources"], json!(["configmaps"]));
        assert_eq!(validation["webhooks"][0]["name"], "validation.webhook.serving.knative.dev");
        let [_, validation, _] = webhooks(None, "Y2E=");
        assert_eq!(client(&validation)["service"]["path"], "/admission/validation");
    }
}
