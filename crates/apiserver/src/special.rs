//! The few kinds whose writes do more than store an object: namespaces, services, definitions of custom resources.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::ApiServer;
use crate::auth::User;
use crate::crd;
use crate::error::{ApiError, ApiResult};
use crate::object::{self, Object, is_deleting, meta, meta_mut};
use crate::registry::Served;
use crate::resource::ResourceDef;
use crate::verbs::Call;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

fn is_namespace(def: &ResourceDef) -> bool {
    def.group.is_empty() && def.plural == "namespaces"
}

fn is_crd(def: &ResourceDef) -> bool {
    def.group == crd::GROUP && def.plural == crd::PLURAL
}

fn is_service(def: &ResourceDef) -> bool {
    def.group.is_empty() && def.plural == "services"
}

impl ApiServer {
    /// Nothing is created in a namespace that is missing or going.
    pub(crate) fn admit_namespace(&self, call: &Call, object: &Value) -> ApiResult<()> {
        let def = &call.served.def;
        let namespace = &call.target.namespace;
        if !def.namespaced || def.verbs.iter().all(|verb| verb == "create") {
            return Ok(());
        }
        let Some(entry) = self.store.table("namespaces").get(namespace) else {
            return Err(ApiError::not_found_in("", "namespaces", namespace));
        };
        if !is_deleting(&entry.record.value()) {
            return Ok(());
        }
        let name = Some(meta(object, "name")).filter(|n| !n.is_empty()).unwrap_or_else(|| meta(object, "generateName"));
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(def, name, &why);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        Err(error)
    }

    /// What the server adds to a new object of a special kind.
    pub(crate) fn special_create(&self, call: &Call, object: &mut Value) -> ApiResult<()> {
        let def = &call.served.def;
        self.refuse_escalation(call, object, None)?;
        if is_namespace(def) {
            label_namespace(object);
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        } else if is_crd(def) {
            crd::default(object);
            object["status"] = Value::Null;
            crd::refresh_status(object, &self.registry);
            let mut finalizers: Vec<Value> = object::finalizers(object).into_iter().map(Value::from).collect();
            if !finalizers.iter().any(|f| f == crd::CLEANUP) {
                finalizers.push(crd::CLEANUP.into());
            }
            meta_mut(object).insert("finalizers".into(), finalizers.into());
        } else if is_service(def) {
            self.assign_address(object)?;
        } else if def.group.is_empty() && def.plural == "pods" {
            crate::kinds::admit_pod(object, &call.target.namespace, self)
                .map_err(|why| ApiError::forbidden(def, meta(object, "name"), &why))?;
        }
        Ok(())
    }

    /// What the server keeps right in a changed object of a special kind.
    pub(crate) fn special_update(&self, call: &Call, new: &mut Value, old: &Value) -> ApiResult<()> {
        let def = &call.served.def;
        self.refuse_escalation(call, new, Some(old))?;
        if is_namespace(def) {
            label_namespace(new);
            match call.target.subresource.as_str() {
                "" => new["spec"] = old["spec"].clone(),
                "finalize" => finalize_namespace(call, new, old)?,
                _ => {}
            }
        } else if is_crd(def) && call.target.subresource.is_empty() {
            crd::default(new);
            new["status"] = old["status"].clone();
            crd::refresh_status(new, &self.registry);
            if condition_true(old, "Established") {
                for field in ["/spec/scope", "/spec/names/kind"] {
                    if new.pointer(field) != old.pointer(field) {
                        let path = field.trim_start_matches('/').replace('/', ".");
                        let value = new.pointer(field).cloned().unwrap_or_default();
                        let fault = crate::FieldError::invalid(path, value, "field is immutable");
                        return Err(ApiError::invalid(def, &call.target.name, &[fault]));
                    }
                }
            }
            let finalizers = object::finalizers(new);
            if is_deleting(old)
                && !finalizers.contains(&crd::CLEANUP)
                && object::finalizers(old).contains(&crd::CLEANUP)
            {
                // Only the clean-up removes its own finalizer.
                if call.user.name != CLEANUP_USER {
                    meta_mut(new).insert("finalizers".into(), old["metadata"]["finalizers"].clone());
                }
            }
        } else if is_service(def) && call.target.subresource.is_empty() {
            if new["spec"]["clusterIP"].as_str().unwrap_or_default().is_empty()
                && old["spec"]["clusterIP"].is_string()
                && new["spec"]["type"] != "ExternalName"
            {
                new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
                if !new["spec"]["clusterIPs"].is_array() {
                    new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
                }
            }
            self.assign_address(new)?;
        }
        Ok(())
    }

    /// Refuses a deletion.
    pub(crate) fn special_delete(&self, call: &Call, old: &Value) -> ApiResult<()> {
        let def = &call.served.def;
        if is_namespace(def) && IMMORTAL.contains(&meta(old, "name")) {
            return Err(ApiError::forbidden(def, meta(old, "name"), "this namespace may not be deleted"));
        }
        Ok(())
    }

    /// Changes an object that begins to go.
    pub(crate) fn special_mark(&self, def: &ResourceDef, object: &mut Value) {
        if is_namespace(def) {
            object["status"]["phase"] = "Terminating".into();
            let metadata = meta_mut(object);
            metadata.remove("deletionGracePeriodSeconds");
        }
    }

    /// Whether an object without finalizers may go.
    pub(crate) fn may_go(&self, def: &ResourceDef, object: &Value) -> bool {
        if is_namespace(def) {
            return object.pointer("/spec/finalizers").and_then(Value::as_array).is_none_or(Vec::is_empty);
        }
        if is_crd(def) {
            // A definition waits for its objects.
            return self.instances(meta(object, "name")) == 0;
        }
        true
    }

    /// Whether a deletion answers with the object instead of a Status.
    pub(crate) fn shows_deleted(&self, def: &ResourceDef) -> bool {
        let kinds = [
            "pods",
            "services",
            "serviceaccounts",
            "persistentvolumeclaims",
            "persistentvolumes",
            "podtemplates",
            "replicationcontrollers",
            "resourcequotas",
        ];
        def.group.is_empty() && kinds.contains(&&*def.plural)
            || def.group == "storage.k8s.io"
                && matches!(&*def.plural, "storageclasses" | "volumeattachments" | "csinodes")
    }

    /// Follows a write to a definition of custom resources.
    pub(crate) fn after_write(&self, served: &Served, object: &Arc<Object>) {
        self.recent.push(object);
        if is_crd(&served.def) {
            let value = object.value();
            self.registry.set_custom(meta(&value, "name"), crd::served(&value));
            if is_deleting(&value) {
                self.start_cleanup(meta(&value, "name").to_string());
            }
        }
    }

    /// Follows the end of an object.
    pub(crate) fn after_delete(&self, served: &Served, object: &Object) {
        if is_crd(&served.def) {
            let value = object.value();
            self.registry.set_custom(meta(&value, "name"), Vec::new());
        }
    }

    /// Number of objects of a definition.
    fn instances(&self, crd: &str) -> usize {
        match crd.split_once('.') {
            Some((plural, group)) => self.store.table(&format!("{group}/{plural}")).len(),
            None => 0,
        }
    }

    /// Gives a service an address of its own.
    fn assign_address(&self, service: &mut Value) -> ApiResult<()> {
        let spec = &mut service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(());
        }
        let asked = spec["clusterIP"].as_str().unwrap_or_default().to_string();
        if asked.is_empty() {
            let address = self.addresses.take(&self.store)?;
            spec["clusterIP"] = address.into();
        }
        if !spec["clusterIPs"].is_array() {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
        Ok(())
    }
}

fn condition_true(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Of a finalisation only `spec.finalizers` counts.
fn finalize_namespace(call: &Call, new: &mut Value, old: &Value) -> ApiResult<()> {
    let finalizers = new["spec"]["finalizers"].clone();
    for (index, name) in finalizers.as_array().into_iter().flatten().filter_map(Value::as_str).enumerate() {
        let faults = crate::names::finalizer_faults(name, &format!("spec.finalizers[{index}]"), true);
        if !faults.is_empty() {
            return Err(ApiError::invalid(&call.served.def, &call.target.name, &faults));
        }
    }
    let revision = meta(new, "resourceVersion").to_string();
    let labels = new["metadata"]["labels"].clone();
    *new = old.clone();
    new["metadata"]["labels"] = labels;
    meta_mut(new).insert("resourceVersion".into(), revision.into());
    new["spec"] = if finalizers.as_array().is_some_and(|f| !f.is_empty()) {
        json!({"finalizers": finalizers})
    } else {
        json!({})
    };
    Ok(())
}

impl crate::kinds::Lookup for ApiServer {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let entry =
            self.store.table(&table_name(group, plural)).get(&object::key(!namespace.is_empty(), namespace, name))?;
        Some(entry.record.value())
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let found = self.store.table(&table_name(group, plural)).list(&prefix, None, usize::MAX, |_| true);
        found.entries.iter().map(|(_, entry)| entry.record.value()).collect()
    }
}

fn table_name(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_string() } else { format!("{group}/{plural}") }
}

/// Name under which the clean-up of custom resources works.
pub(crate) const CLEANUP_USER: &str = "system:crd-cleanup";

/// The user of the clean-up.
pub(crate) fn cleanup_user() -> User {
    User::master(CLEANUP_USER)
}

fn label_namespace(object: &mut Value) {
    let name = meta(object, "name").to_string();
    let labels = meta_mut(object).entry("labels").or_insert_with(|| json!({}));
    labels["kubernetes.io/metadata.name"] = name.into();
}
