//! Tokens of service accounts: JSON Web Tokens, signed by the server's own key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::{AUTHENTICATED, User};
use crate::ApiServer;
use crate::error::{ApiError, ApiResult};
use crate::object::{meta, time_text};
use crate::resource::FieldError;
use crate::verbs::Call;

/// Audience of tokens for this server.
pub(crate) const AUDIENCE: &str = "https://kubernetes.default.svc";
/// Issuer of the tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Shortest life of a token.
const SHORTEST_SECONDS: i64 = 600;
/// Longest life of a token.
const LONGEST_SECONDS: i64 = 1 << 32;
/// Life of a token for which no time was asked.
const DEFAULT_SECONDS: i64 = 3600;

/// Signs and checks tokens.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// A signer with a key in PKCS#8; `None` if the key is not usable.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &random).ok()?;
        Some(Self { key, random })
    }

    fn sign(&self, claims: &Value) -> Option<String> {
        let head = json!({"alg": "ES256", "kid": "colibri", "typ": "JWT"});
        let text =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(head.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.key.sign(&self.random, text.as_bytes()).ok()?;
        Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of a token that we signed.
    fn verify(&self, token: &str) -> Option<Value> {
        let (text, signature) = token.rsplit_once('.')?;
        let (head, claims) = text.split_once('.')?;
        let head: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).ok()?).ok()?;
        if head["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(text.as_bytes(), &signature).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

/// Why a token was refused, if it was ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not ours, expired, or its account is gone.
    Invalid,
    /// Meant for others.
    Audience(Vec<String>),
}

impl ApiServer {
    /// The user of a service account's token, and the audiences that both sides named.
    pub(crate) fn account_of_token(&self, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), Refusal> {
        let claims = self.signer.verify(token).ok_or(Refusal::Invalid)?;
        let now = jiff::Timestamp::now().as_second();
        if claims["exp"].as_i64().is_none_or(|end| end <= now) {
            return Err(Refusal::Invalid);
        }
        let own: Vec<String> =
            claims["aud"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect();
        let shared: Vec<String> = audiences.iter().filter(|a| own.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(Refusal::Audience(own));
        }
        let bound = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let namespace = text(&bound["namespace"]);
        let (name, uid) = (text(&bound["serviceaccount"]["name"]), text(&bound["serviceaccount"]["uid"]));
        let lives = |table: &str, name: &str, uid: &str| {
            let entry = self.store.table(table).get(&format!("{namespace}/{name}"));
            entry.is_some_and(|entry| meta(&entry.record.value(), "uid") == uid)
        };
        if !lives("serviceaccounts", &name, &uid) {
            return Err(Refusal::Invalid);
        }
        let mut extra = std::collections::BTreeMap::new();
        extra.insert(
            "authentication.kubernetes.io/credential-id".to_string(),
            vec![format!("JTI={}", text(&claims["jti"]))],
        );
        if bound["pod"].is_object() {
            let (pod, pod_uid) = (text(&bound["pod"]["name"]), text(&bound["pod"]["uid"]));
            if !lives("pods", &pod, &pod_uid) {
                return Err(Refusal::Invalid);
            }
            extra.insert("authentication.kubernetes.io/pod-name".into(), vec![pod]);
            extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![pod_uid]);
        }
        let groups =
            vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}"), AUTHENTICATED.into()];
        Ok((User { name: format!("system:serviceaccount:{namespace}:{name}"), uid, groups, extra }, shared))
    }

    /// `serviceaccounts/NAME/token`.
    pub(crate) fn create_token(&self, call: &Call, request: &Value) -> ApiResult<Value> {
        let account = self.existing(call)?.record.value();
        let mut spec = request["spec"].clone();
        if !spec.is_object() {
            spec = json!({});
        }
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
        let mut faults = Vec::new();
        if seconds < SHORTEST_SECONDS {
            faults.push(FieldError::invalid(
                "spec.expirationSeconds",
                seconds,
                "may not specify a duration less than 10 minutes",
            ));
        }
        if seconds > LONGEST_SECONDS {
            faults.push(FieldError::invalid(
                "spec.expirationSeconds",
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            ));
        }
        if !faults.is_empty() {
            return Err(ApiError::invalid_kind("authentication.k8s.io", "TokenRequest", "", &faults));
        }
        let audiences =
            spec["audiences"].as_array().filter(|a| !a.is_empty()).cloned().unwrap_or_else(|| vec![AUDIENCE.into()]);
        let namespace = &call.target.namespace;
        let mut bound = json!({
            "namespace": namespace,
            "serviceaccount": {"name": call.target.name, "uid": meta(&account, "uid")},
        });
        let reference = &spec["boundObjectRef"];
        if reference.is_object() {
            let (kind, name) =
                (reference["kind"].as_str().unwrap_or_default(), reference["name"].as_str().unwrap_or_default());
            let table = match kind {
                "Pod" => "pods",
                "Secret" => "secrets",
                "Node" => "nodes",
                other => {
                    return Err(ApiError::bad_request(format!(
                        "cannot bind token for serviceaccount to an object of kind {other}"
                    )));
                }
            };
            let key = crate::object::key(table != "nodes", namespace, name);
            let entry = self.store.table(table).get(&key).ok_or_else(|| ApiError::not_found_in("", table, name))?;
            let uid = meta(&entry.record.value(), "uid").to_string();
            let asked = reference["uid"].as_str().unwrap_or_default();
            if !asked.is_empty() && asked != uid {
                let why = format!(
                    "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
                );
                return Err(ApiError::new(
                    409,
                    "Conflict",
                    format!("Operation cannot be fulfilled on {table} \"{name}\": {why}"),
                ));
            }
            bound[kind.to_lowercase()] = json!({"name": name, "uid": uid});
        }
        let now = jiff::Timestamp::now();
        let end = now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now);
        let claims = json!({
            "iss": ISSUER, "aud": audiences, "sub": format!("system:serviceaccount:{namespace}:{}", call.target.name),
            "iat": now.as_second(), "nbf": now.as_second(), "exp": end.as_second(), "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": bound,
        });
        let token =
            self.signer.sign(&claims).ok_or_else(|| ApiError::internal_error("the token could not be signed"))?;
        spec["audiences"] = audiences.into();
        spec["expirationSeconds"] = seconds.into();
        if !spec["boundObjectRef"].is_object() {
            spec["boundObjectRef"] = Value::Null;
        }
        Ok(json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": call.target.name, "namespace": namespace, "uid": uuid::Uuid::new_v4().to_string(),
                "creationTimestamp": time_text(now),
            },
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": time_text(end)},
        }))
    }
}
