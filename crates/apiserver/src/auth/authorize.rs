//! Whether a user may do what a request asks for, and as whom he acts.

use http::{HeaderMap, HeaderValue, Method};
use serde_json::json;

use super::rbac::Attributes;
use super::{AUTHENTICATED, User};
use crate::ApiServer;
use crate::error::{ApiError, ApiResult};
use crate::request::Target;

impl ApiServer {
    /// Checks a request to a resource.
    pub(crate) fn authorize(&self, user: &User, target: &Target, verb: &str) -> ApiResult<()> {
        if user.is_master() {
            return Ok(());
        }
        let resource = match target.subresource.split('/').next() {
            None | Some("") => target.resource.clone(),
            Some(sub) => format!("{}/{sub}", target.resource),
        };
        // A namespace is looked at as if it were inside itself.
        let own = target.group.is_empty() && target.resource == "namespaces" && !target.name.is_empty();
        let namespace = if own { target.name.clone() } else { target.namespace.clone() };
        let name = if verb == "create" && target.subresource.is_empty() { "" } else { &target.name };
        let asked = Attributes {
            verb: verb.into(),
            group: target.group.clone(),
            resource: resource.clone(),
            namespace: namespace.clone(),
            name: name.into(),
            path: None,
        };
        if self.allows(user, &asked) {
            return Ok(());
        }
        let place = if namespace.is_empty() {
            "at the cluster scope".to_string()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let why = format!(
            "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {place}",
            user.name, target.group
        );
        Err(forbidden(&target.group, &target.resource, name, &why))
    }

    /// Checks a request to any other path.
    pub(crate) fn authorize_path(&self, user: &User, method: &Method, path: &str) -> ApiResult<()> {
        let verb = method.as_str().to_lowercase();
        let asked = Attributes { verb: verb.clone(), path: Some(path.into()), ..Attributes::default() };
        if self.allows(user, &asked) {
            return Ok(());
        }
        let mut error =
            ApiError::new(403, "Forbidden", format!("forbidden: User \"{}\" cannot {verb} path \"{path}\"", user.name));
        error.details = Some(json!({}));
        Err(error)
    }

    /// The user that the headers ask to act as.
    pub(crate) fn impersonate(&self, user: User, headers: &HeaderMap) -> ApiResult<User> {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_string();
        let mut wanted =
            User { name: headers.get("impersonate-user").map(text).unwrap_or_default(), ..User::default() };
        wanted.uid = headers.get("impersonate-uid").map(text).unwrap_or_default();
        wanted.groups = headers.get_all("impersonate-group").iter().map(text).collect();
        for (name, value) in headers {
            if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
                let key = key.replace("%2f", "/").replace("%2F", "/");
                wanted.extra.entry(key).or_default().push(text(value));
            }
        }
        if wanted.name.is_empty() {
            if wanted == User::default() {
                return Ok(user);
            }
            return Err(ApiError::internal_error("requested [] without impersonating a user"));
        }
        self.may_impersonate(&user, &wanted)?;
        let account = wanted.name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'));
        if let (Some((namespace, _)), true) = (account, wanted.groups.is_empty()) {
            wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        let nobody = wanted.name == "system:anonymous" || wanted.groups.iter().any(|g| g == "system:unauthenticated");
        if !nobody && !wanted.groups.iter().any(|g| g == AUTHENTICATED) {
            wanted.groups.push(AUTHENTICATED.into());
        } else if wanted.name == "system:anonymous" && !wanted.groups.iter().any(|g| g == "system:unauthenticated") {
            wanted.groups.push("system:unauthenticated".into());
        }
        Ok(wanted)
    }

    fn may_impersonate(&self, user: &User, wanted: &User) -> ApiResult<()> {
        if user.is_master() {
            return Ok(());
        }
        let account = wanted.name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'));
        let mut asked: Vec<(&str, &str, String, String)> = Vec::new();
        match account {
            Some((namespace, name)) => asked.push(("", "serviceaccounts", namespace.into(), name.into())),
            None => asked.push(("", "users", String::new(), wanted.name.clone())),
        }
        asked.extend(wanted.groups.iter().map(|group| ("", "groups", String::new(), group.clone())));
        if !wanted.uid.is_empty() {
            asked.push(("authentication.k8s.io", "uids", String::new(), wanted.uid.clone()));
        }
        for (key, values) in &wanted.extra {
            for value in values {
                asked.push(("authentication.k8s.io", "userextras", key.clone(), value.clone()));
            }
        }
        for (group, resource, place, name) in asked {
            let extra = resource == "userextras";
            let shown = if extra { format!("userextras/{place}") } else { resource.to_string() };
            let namespace = if extra { String::new() } else { place };
            let attributes = Attributes {
                verb: "impersonate".into(),
                group: group.into(),
                resource: shown.clone(),
                namespace: namespace.clone(),
                name: name.clone(),
                path: None,
            };
            if !self.allows(user, &attributes) {
                let place = if namespace.is_empty() {
                    "at the cluster scope".to_string()
                } else {
                    format!("in the namespace \"{namespace}\"")
                };
                let why = format!(
                    "User \"{}\" cannot impersonate resource \"{shown}\" in API group \"{group}\" {place}",
                    user.name
                );
                return Err(forbidden(group, resource, &name, &why));
            }
        }
        Ok(())
    }
}

fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> ApiError {
    let qualified = if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") };
    let subject = if name.is_empty() { qualified } else { format!("{qualified} \"{name}\"") };
    let mut details = json!({"kind": resource});
    if !name.is_empty() {
        details["name"] = name.into();
    }
    if !group.is_empty() {
        details["group"] = group.into();
    }
    let mut error = ApiError::new(403, "Forbidden", format!("{subject} is forbidden: {why}"));
    error.details = Some(details);
    error
}
