//! Reviews: kinds that are only created, and answered at once.

use http::StatusCode;
use serde_json::{Value, json};

use super::User;
use super::rbac::Attributes;
use super::tokens::{AUDIENCE, Refusal};
use crate::ApiServer;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::object::time_text;
use crate::verbs::{Call, respond_value};

impl ApiServer {
    /// Creates an object, or answers a review.
    pub(crate) async fn create_or_review(&self, call: &Call) -> ApiResult<Response> {
        let def = call.served.def.clone();
        if def.has_verb("get") {
            return self.create(call).await;
        }
        let mut review = self.decode(call)?;
        match &*def.kind {
            "TokenReview" => self.token_review(&mut review),
            "SelfSubjectReview" => {
                review["metadata"] = json!({"creationTimestamp": time_text(jiff::Timestamp::now())});
                review["status"] = json!({"userInfo": user_info(&call.user)});
            }
            "SelfSubjectAccessReview" => {
                let allowed = self.allows(&call.user, &attributes(&review["spec"]));
                review["status"] = access(allowed);
            }
            "SubjectAccessReview" | "LocalSubjectAccessReview" => {
                let user = user_of(&review["spec"]);
                let allowed = self.allows(&user, &attributes(&review["spec"]));
                review["status"] = access(allowed);
            }
            "SelfSubjectRulesReview" => {
                let namespace = review["spec"]["namespace"].as_str().unwrap_or_default().to_string();
                review["status"] = self.rules_status(&call.user, &namespace);
            }
            "Binding" => {
                let name = crate::object::meta(&review, "name").to_string();
                return self.bind_by_name(call, &name, &review).await;
            }
            other => return Err(ApiError::new(501, "NotImplemented", format!("{other} is not served yet"))),
        }
        Ok(respond_value(call, StatusCode::CREATED, &review))
    }

    fn token_review(&self, review: &mut Value) {
        let token = review["spec"]["token"].as_str().unwrap_or_default().to_string();
        let asked: Vec<String> = review["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_string)
            .collect();
        let audiences = if asked.is_empty() { vec![AUDIENCE.to_string()] } else { asked };
        if let Some(user) = self.admin_of_token(&token) {
            review["status"] = json!({"authenticated": true, "user": user_info(&user), "audiences": audiences});
            return;
        }
        review["status"] = match self.account_of_token(&token, &audiences) {
            Ok((user, shared)) => json!({"authenticated": true, "user": user_info(&user), "audiences": shared}),
            Err(Refusal::Invalid) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(Refusal::Audience(own)) => {
                let quoted = |list: &[String]| list.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(" ");
                let why = format!(
                    "[invalid bearer token, token audiences [{}] is invalid for the target audiences [{}]]",
                    quoted(&own),
                    quoted(&audiences)
                );
                json!({"user": {}, "error": why})
            }
        };
    }

    fn rules_status(&self, user: &User, namespace: &str) -> Value {
        let rules = if user.is_master() {
            vec![
                json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
                json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
            ]
        } else {
            self.rules_for(user, namespace)
        };
        let (paths, resources): (Vec<Value>, Vec<Value>) =
            rules.into_iter().partition(|rule| rule["nonResourceURLs"].is_array());
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }
}

fn access(allowed: bool) -> Value {
    json!({"allowed": allowed})
}

fn attributes(spec: &Value) -> Attributes {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let resource = &spec["resourceAttributes"];
    if resource.is_object() {
        let sub = text(&resource["subresource"]);
        let plural = text(&resource["resource"]);
        return Attributes {
            verb: text(&resource["verb"]),
            group: text(&resource["group"]),
            resource: if sub.is_empty() { plural } else { format!("{plural}/{sub}") },
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            path: None,
        };
    }
    let path = &spec["nonResourceAttributes"];
    Attributes { verb: text(&path["verb"]), path: Some(text(&path["path"])), ..Attributes::default() }
}

fn user_of(spec: &Value) -> User {
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string);
    User {
        name: spec["user"].as_str().unwrap_or_default().to_string(),
        uid: spec["uid"].as_str().unwrap_or_default().to_string(),
        groups: groups.collect(),
        ..User::default()
    }
}

/// A user as reviews show it.
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
