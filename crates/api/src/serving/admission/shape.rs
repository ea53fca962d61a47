//! The reference's types, as far as reading and writing an object changes it: what is empty is left out, what is always
//! written gets its zero value, quantities get their canonical form, and values of another type are refused.
//!
//! Fields that are not in the table stay as they came.
//!
//! Source: the `json` tags of `knative/serving/pkg/apis/serving/v1` and `k8s.io/api/core/v1`.

use std::collections::HashMap;
use std::sync::LazyLock;

use base::quantity::Quantity;
use serde_json::{Map, Value, json};

/// One type a line: its name, then `field:type`. `field!` is always written; `field?` is a pointer, so that its zero
/// value is kept; another empty field is left out. `+name` is embedded. Types are `s` text, `b` truth, `i32`, `i64`,
/// `q` quantity, `p` number or name of a port, `x` anything, `[]` a list, `{}` a map, or a name of this table.
const TABLE: &str = "
Service metadata!:Meta spec!:ServiceSpec
ServiceSpec +ConfigurationSpec +RouteSpec
Configuration metadata!:Meta spec!:ConfigurationSpec
ConfigurationSpec template!:RevisionTemplateSpec
RevisionTemplateSpec metadata!:Meta spec!:RevisionSpec
Revision metadata!:Meta spec!:RevisionSpec
RevisionSpec +PodSpec containerConcurrency?:i64 timeoutSeconds?:i64 responseStartTimeoutSeconds?:i64 idleTimeoutSeconds?:i64
Route metadata!:Meta spec!:RouteSpec
RouteSpec traffic:[]TrafficTarget
TrafficTarget tag:s revisionName:s configurationName:s latestRevision?:b percent?:i64
DomainMapping metadata!:Meta spec!:DomainMappingSpec
DomainMappingSpec ref!:KReference tls?:SecretTLS
KReference kind!:s namespace:s name!:s apiVersion:s group:s address?:s
SecretTLS secretName!:s
Meta name:s generateName:s namespace:s labels:{}s annotations:{}s
PodSpec volumes:[]Volume initContainers:[]Container containers!:[]Container ephemeralContainers:[]Container restartPolicy:s terminationGracePeriodSeconds?:i64 activeDeadlineSeconds?:i64 dnsPolicy:s nodeSelector:{}s serviceAccountName:s automountServiceAccountToken?:b nodeName:s hostNetwork:b hostPID:b hostIPC:b shareProcessNamespace?:b securityContext?:PodSecurityContext imagePullSecrets:[]LocalObjectReference hostname:s subdomain:s affinity?:x schedulerName:s tolerations:[]Toleration hostAliases:[]HostAlias priorityClassName:s priority?:i32 dnsConfig?:x readinessGates:[]x runtimeClassName?:s enableServiceLinks?:b preemptionPolicy?:s overhead:{}q topologySpreadConstraints:[]x setHostnameAsFQDN?:b os?:x hostUsers?:b schedulingGates:[]x resourceClaims:[]x
LocalObjectReference name:s
Toleration key:s operator:s value:s effect:s tolerationSeconds?:i64
HostAlias ip!:s hostnames:[]s
Container name!:s image:s command:[]s args:[]s workingDir:s ports:[]ContainerPort envFrom:[]EnvFromSource env:[]EnvVar resources!:ResourceRequirements resizePolicy:[]x restartPolicy?:s restartPolicyRules:[]x volumeMounts:[]VolumeMount volumeDevices:[]x livenessProbe?:Probe readinessProbe?:Probe startupProbe?:Probe lifecycle?:x terminationMessagePath:s terminationMessagePolicy:s imagePullPolicy:s securityContext?:SecurityContext stdin:b stdinOnce:b tty:b
ContainerPort name:s hostPort:i32 containerPort!:i32 protocol:s hostIP:s
EnvFromSource prefix:s configMapRef?:ConfigMapEnvSource secretRef?:SecretEnvSource
ConfigMapEnvSource name:s optional?:b
SecretEnvSource name:s optional?:b
EnvVar name!:s value:s valueFrom?:EnvVarSource
EnvVarSource fieldRef?:ObjectFieldSelector resourceFieldRef?:ResourceFieldSelector configMapKeyRef?:ConfigMapKeySelector secretKeyRef?:SecretKeySelector
ObjectFieldSelector apiVersion:s fieldPath!:s
ResourceFieldSelector containerName:s resource!:s divisor!:q
ConfigMapKeySelector name:s key!:s optional?:b
SecretKeySelector name:s key!:s optional?:b
ResourceRequirements limits:{}q requests:{}q claims:[]x
VolumeMount name!:s readOnly:b recursiveReadOnly?:s mountPath!:s subPath:s mountPropagation?:s subPathExpr:s
Probe exec?:ExecAction httpGet?:HTTPGetAction tcpSocket?:TCPSocketAction grpc?:GRPCAction initialDelaySeconds:i32 timeoutSeconds:i32 periodSeconds:i32 successThreshold:i32 failureThreshold:i32 terminationGracePeriodSeconds?:i64
ExecAction command:[]s
HTTPGetAction path:s port!:p host:s scheme:s httpHeaders:[]HTTPHeader
HTTPHeader name!:s value!:s
TCPSocketAction port!:p host:s
GRPCAction port!:i32 service?:s
SecurityContext capabilities?:Capabilities privileged?:b seLinuxOptions?:x windowsOptions?:x runAsUser?:i64 runAsGroup?:i64 runAsNonRoot?:b readOnlyRootFilesystem?:b allowPrivilegeEscalation?:b procMount?:s seccompProfile?:SeccompProfile appArmorProfile?:x
Capabilities add:[]s drop:[]s
SeccompProfile type!:s localhostProfile?:s
PodSecurityContext seLinuxOptions?:x windowsOptions?:x runAsUser?:i64 runAsGroup?:i64 runAsNonRoot?:b supplementalGroups:[]i64 fsGroup?:i64 sysctls:[]x fsGroupChangePolicy?:s seccompProfile?:SeccompProfile appArmorProfile?:x
Volume name!:s hostPath?:HostPathVolumeSource emptyDir?:EmptyDirVolumeSource secret?:SecretVolumeSource configMap?:ConfigMapVolumeSource projected?:ProjectedVolumeSource persistentVolumeClaim?:PersistentVolumeClaimVolumeSource image?:ImageVolumeSource csi?:x ephemeral?:x nfs?:x
HostPathVolumeSource path!:s type?:s
EmptyDirVolumeSource medium:s sizeLimit?:q
SecretVolumeSource secretName:s items:[]KeyToPath defaultMode?:i32 optional?:b
ConfigMapVolumeSource name:s items:[]KeyToPath defaultMode?:i32 optional?:b
KeyToPath key!:s path!:s mode?:i32
ProjectedVolumeSource sources!:[]VolumeProjection defaultMode?:i32
VolumeProjection secret?:SecretProjection configMap?:ConfigMapProjection serviceAccountToken?:ServiceAccountTokenProjection downwardAPI?:DownwardAPIProjection
SecretProjection name:s items:[]KeyToPath optional?:b
ConfigMapProjection name:s items:[]KeyToPath optional?:b
ServiceAccountTokenProjection audience:s expirationSeconds?:i64 path!:s
DownwardAPIProjection items:[]DownwardAPIVolumeFile
DownwardAPIVolumeFile path!:s fieldRef?:ObjectFieldSelector resourceFieldRef?:ResourceFieldSelector mode?:i32
PersistentVolumeClaimVolumeSource claimName!:s readOnly:b
ImageVolumeSource reference:s pullPolicy:s
";

#[derive(Clone, Debug)]
enum Type {
    Text,
    Truth,
    Int32,
    Int64,
    Quantity,
    Port,
    Any,
    List(Box<Type>),
    Map(Box<Type>),
    Struct(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    /// Always written, with its zero value if need be.
    Always,
    /// Kept as it is, absent when it was absent or null.
    Pointer,
    /// Left out when it is empty.
    OmitEmpty,
}

struct Field {
    name: &'static str,
    /// The embedded type that it comes from.
    embedded: Option<&'static str>,
    writing: Writing,
    kind: Type,
}

static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let lines = TABLE.lines().filter_map(|line| line.split_once(' '));
    let rows: HashMap<&str, &str> = lines.collect();
    rows.iter().map(|(name, fields)| (*name, parse_fields(fields, &rows, None))).collect()
});

fn parse_fields(
    fields: &'static str,
    rows: &HashMap<&'static str, &'static str>,
    embedded: Option<&'static str>,
) -> Vec<Field> {
    let parse = |word: &'static str| {
        if let Some(name) = word.strip_prefix('+') {
            return parse_fields(rows.get(name).copied().unwrap_or_default(), rows, Some(name));
        }
        let (name, kind) = word.split_once(':').unwrap_or((word, "x"));
        let (name, writing) = match (name.strip_suffix('!'), name.strip_suffix('?')) {
            (Some(name), _) => (name, Writing::Always),
            (_, Some(name)) => (name, Writing::Pointer),
            _ => (name, Writing::OmitEmpty),
        };
        vec![Field { name, embedded, writing, kind: parse_type(kind) }]
    };
    fields.split_whitespace().flat_map(parse).collect()
}

fn parse_type(text: &'static str) -> Type {
    if let Some(item) = text.strip_prefix("[]") {
        return Type::List(Box::new(parse_type(item)));
    }
    if let Some(item) = text.strip_prefix("{}") {
        return Type::Map(Box::new(parse_type(item)));
    }
    match text {
        "s" => Type::Text,
        "b" => Type::Truth,
        "i32" => Type::Int32,
        "i64" => Type::Int64,
        "q" => Type::Quantity,
        "p" => Type::Port,
        "x" => Type::Any,
        name => Type::Struct(name),
    }
}

/// Reads and writes `object` as the reference does.
///
/// # Errors
///
/// The reference's text about the first value of another type.
pub(super) fn normalize(kind: &'static str, object: &mut Value) -> Result<(), String> {
    let mut way = Way { path: Vec::new(), owner: kind };
    structure(kind, object, &mut way)
}

/// Where the reading is: the path as Go names it, and the type whose field is read.
struct Way {
    path: Vec<&'static str>,
    owner: &'static str,
}

fn structure(name: &'static str, value: &mut Value, way: &mut Way) -> Result<(), String> {
    let Some(fields) = TYPES.get(name) else { return Ok(()) };
    let Value::Object(map) = value else { return Err(mismatch(value, &Type::Struct(name), way)) };
    for field in fields {
        let (length, owner) = (way.path.len(), std::mem::replace(&mut way.owner, name));
        way.path.extend(field.embedded);
        way.path.push(field.name);
        let done = self::field(field, map, way);
        way.path.truncate(length);
        way.owner = owner;
        done?;
    }
    Ok(())
}

fn field(field: &Field, map: &mut Map<String, Value>, way: &mut Way) -> Result<(), String> {
    let present = map.get_mut(field.name).filter(|value| !value.is_null());
    match (present, field.writing) {
        (Some(value), writing) => {
            self::value(&field.kind, value, way)?;
            if writing == Writing::OmitEmpty && is_zero(value) {
                map.remove(field.name);
            }
        }
        (None, Writing::Always) => {
            let mut zero = zero(&field.kind);
            self::value(&field.kind, &mut zero, way)?;
            map.insert(field.name.to_owned(), zero);
        }
        (None, _) => {
            map.remove(field.name);
        }
    }
    Ok(())
}

fn value(kind: &Type, value: &mut Value, way: &mut Way) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let valid = match (kind, &mut *value) {
        (Type::Struct(name), _) => return structure(name, value, way),
        (Type::List(item), Value::Array(items)) => {
            items.iter_mut().for_each(|value| null_to_zero(item, value));
            return items.iter_mut().try_for_each(|value| self::value(item, value, way));
        }
        (Type::Map(item), Value::Object(map)) => {
            map.values_mut().for_each(|value| null_to_zero(item, value));
            return map.values_mut().try_for_each(|value| self::value(item, value, way));
        }
        (Type::Quantity, quantity) => {
            let text = quantity.as_str().map_or_else(|| quantity.to_string(), str::to_owned);
            match Quantity::parse(text.trim()) {
                Ok(_) => *quantity = Value::String(canonical(text.trim())),
                Err(_) => return Err(QUANTITY.to_owned()),
            }
            true
        }
        (Type::Text, Value::String(_)) | (Type::Truth, Value::Bool(_)) | (Type::Any, _) => true,
        (Type::Port, Value::String(_)) => true,
        (Type::Int64, Value::Number(number)) => number.is_i64(),
        (Type::Int32 | Type::Port, Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
        }
        _ => false,
    };
    if valid { Ok(()) } else { Err(mismatch(value, kind, way)) }
}

fn null_to_zero(kind: &Type, value: &mut Value) {
    if value.is_null() {
        *value = zero(kind);
    }
}

fn zero(kind: &Type) -> Value {
    match kind {
        Type::Text => json!(""),
        Type::Truth => json!(false),
        Type::Int32 | Type::Int64 | Type::Port => json!(0),
        Type::Quantity => json!("0"),
        Type::Struct(_) => json!({}),
        Type::Any | Type::List(_) | Type::Map(_) => Value::Null,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

const QUANTITY: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

fn mismatch(value: &Value, kind: &Type, way: &Way) -> String {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
        Value::Number(number) if matches!(kind, Type::Int32 | Type::Int64) => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
    };
    let name = type_name(kind);
    if way.path.is_empty() {
        return format!("json: cannot unmarshal {found} into Go value of type {name}");
    }
    let path = way.path.join(".");
    format!("json: cannot unmarshal {found} into Go struct field {}.{path} of type {name}", way.owner)
}

fn type_name(kind: &Type) -> String {
    match kind {
        Type::Text => "string".to_owned(),
        Type::Truth => "bool".to_owned(),
        Type::Int32 | Type::Port => "int32".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        Type::Any => "interface {}".to_owned(),
        Type::List(item) => format!("[]{}", type_name(item)),
        Type::Map(item) => format!("map[string]{}", type_name(item)),
        Type::Struct("Meta") => "v1.ObjectMeta".to_owned(),
        Type::Struct(name) => format!("v1.{name}"),
    }
}

/// A quantity as Kubernetes writes it: in its own family of suffixes, with the largest that leaves a whole number.
fn canonical(text: &str) -> String {
    let Ok(quantity) = Quantity::parse(text) else { return text.to_owned() };
    let milli = quantity.milli();
    if milli == 0 {
        return "0".to_owned();
    }
    let binary = text.ends_with('i');
    let exponent = !binary && text.contains(['e', 'E']) && !text.ends_with(['E', 'i']);
    if binary && milli % 1000 == 0 {
        let (mut number, mut power) = (milli / 1000, 0);
        while number % 1024 == 0 && power < 6 {
            (number, power) = (number / 1024, power + 1);
        }
        return format!("{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
    }
    let (mut number, mut power) = (milli, 0);
    while number % 1000 == 0 && power < 7 {
        (number, power) = (number / 1000, power + 1);
    }
    if exponent {
        let exponent = 3 * power as i32 - 3;
        return if exponent == 0 { number.to_string() } else { format!("{number}e{exponent}") };
    }
    format!("{number}{}", ["m", "", "k", "M", "G", "T", "P", "E"][power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_one_form() {
        let rows = [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("100000", "100k"),
            ("128Mi", "128Mi"),
            ("2e3", "2e3"),
            ("0", "0"),
            ("1500m", "1500m"),
            ("0.5Mi", "512Ki"),
        ];
        for (text, wanted) in rows {
            assert_eq!(canonical(text), wanted, "{text}");
        }
    }

    #[test]
    fn every_type_of_the_table_exists() {
        fn check(kind: &Type) {
            match kind {
                Type::List(item) | Type::Map(item) => check(item),
                Type::Struct(name) => assert!(TYPES.contains_key(name), "{name}"),
                _ => {}
            }
        }
        TYPES.values().flatten().for_each(|field| check(&field.kind));
    }

    #[test]
    fn values_of_another_type_are_named_as_go_names_them() {
        let service = |template: Value| json!({ "spec": { "template": template } });
        let rows = [
            (
                service(json!({"spec": {"timeoutSeconds": "x"}})),
                "json: cannot unmarshal string into Go struct field \
                 RevisionSpec.spec.ConfigurationSpec.template.spec.timeoutSeconds of type int64",
            ),
            (
                service(json!({"spec": {"containers": {}}})),
                "json: cannot unmarshal object into Go struct field \
                 RevisionSpec.spec.ConfigurationSpec.template.spec.PodSpec.containers of type []v1.Container",
            ),
            (
                service(json!({"spec": {"containers": [{"image": 1}]}})),
                "json: cannot unmarshal number into Go struct field \
                 Container.spec.ConfigurationSpec.template.spec.PodSpec.containers.image of type string",
            ),
        ];
        for (mut object, wanted) in rows {
            assert_eq!(normalize("Service", &mut object), Err(wanted.to_owned()));
        }
    }

    #[test]
    fn what_is_unknown_stays_and_what_is_empty_goes() {
        let mut object = json!({"x": {}, "spec": {"template": {"spec": {
            "containers": [{"env": [], "y": null, "resources": {"limits": {"cpu": "1000m"}}}], "hostUsers": false,
        }}}});
        normalize("Service", &mut object).unwrap();
        let wanted = json!({"x": {}, "metadata": {}, "spec": {"template": {"metadata": {}, "spec": {
            "containers": [{"name": "", "y": null, "resources": {"limits": {"cpu": "1"}}}], "hostUsers": false,
        }}}});
        assert_eq!(object, wanted);
    }
}
