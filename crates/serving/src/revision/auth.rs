//! Credentials for registries, from a Revision's pull secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::images::RegistryAuth;
use k8s_openapi::api::core::v1::{LocalObjectReference, Secret};
use kube::{Api, Client};
use serde_json::Value;

/// The credentials in the named Secrets. A Secret that is missing or cannot be read is passed over, as on a node.
pub(super) async fn from_secrets(
    client: &Client,
    namespace: &str,
    references: &[LocalObjectReference],
) -> Vec<RegistryAuth> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let mut found = Vec::new();
    for reference in references {
        match secrets.get_opt(&reference.name).await {
            Ok(Some(secret)) => found.extend(parse(&secret)),
            Ok(None) => tracing::debug!(namespace, secret = reference.name, "pull secret not found"),
            Err(error) => tracing::warn!(%error, namespace, secret = reference.name, "cannot read a pull secret"),
        }
    }
    found
}

fn parse(secret: &Secret) -> Vec<RegistryAuth> {
    let data = secret.data.iter().flatten();
    data.filter_map(|(key, value)| match key.as_str() {
        ".dockerconfigjson" => serde_json::from_slice::<Value>(&value.0).ok().map(|config| config["auths"].clone()),
        ".dockercfg" => serde_json::from_slice(&value.0).ok(),
        _ => None,
    })
    .flat_map(|auths| auths.as_object().cloned().unwrap_or_default())
    .filter_map(|(registry, entry)| credentials(&registry, &entry))
    .collect()
}

fn credentials(registry: &str, entry: &Value) -> Option<RegistryAuth> {
    let host = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default().to_owned();
    let text = |key: &str| entry[key].as_str().map(str::to_owned);
    let (username, password) = match (text("username"), text("password")) {
        (Some(username), Some(password)) => (username, password),
        _ => {
            let decoded = String::from_utf8(STANDARD.decode(text("auth")?).ok()?).ok()?;
            let (username, password) = decoded.split_once(':')?;
            (username.to_owned(), password.to_owned())
        }
    };
    Some(RegistryAuth { registry: host, username, password })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn both_forms_of_credentials_are_read_and_nonsense_is_not() {
        let config = r#"{"auths": {"https://r.example/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "s.example:5000": {"username": "u", "password": "p"}, "bad": {"auth": "%%"}}}"#;
        let data = [(".dockerconfigjson".to_owned(), ByteString(config.into()))].into();
        let secret = Secret { data: Some(data), ..Secret::default() };
        let auth = |registry: &str, username: &str, password: &str| RegistryAuth {
            registry: registry.to_owned(),
            username: username.to_owned(),
            password: password.to_owned(),
        };
        assert_eq!(parse(&secret), [auth("r.example", "user", "pa:ss"), auth("s.example:5000", "u", "p")]);
    }
}
