#!/usr/bin/env python3
"""Generates types.txt, the table of Kubernetes' built-in types, from two crates in cargo's registry.

    generate.py K8S_OPENAPI_DIR K8S_PB_DIR > types.txt

k8s-openapi says each field's JSON name, type and whether it is required; k8s-pb says the protobuf
field numbers and, in its comments, list types and merge keys. `pointers.txt` beside this script says
what neither knows: which scalars keep a zero, and which structs are always written.

One line per type:  `T name [atomic]`
One line per field: `jsonName number type flags...`; number 0 = not in protobuf messages.
A line `+ number Type` is a message whose fields lie inlined in the JSON of the type above it.
"""
import os
import re
import sys

OPENAPI, PB = sys.argv[1], sys.argv[2]
VERSION = "v1_35"
HERE = os.path.dirname(os.path.abspath(__file__))

ROOTS = """
core.v1: Namespace Pod PodTemplate Service Endpoints ConfigMap Secret ServiceAccount Event Node Binding
core.v1: PersistentVolume PersistentVolumeClaim ReplicationController LimitRange ResourceQuota
apps.v1: Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision
batch.v1: Job CronJob
discovery.v1: EndpointSlice
coordination.v1: Lease
autoscaling.v1: HorizontalPodAutoscaler Scale
autoscaling.v2: HorizontalPodAutoscaler
networking.v1: Ingress IngressClass NetworkPolicy
policy.v1: PodDisruptionBudget Eviction
rbac.v1: Role RoleBinding ClusterRole ClusterRoleBinding
storage.v1: StorageClass CSIDriver CSINode VolumeAttachment
scheduling.v1: PriorityClass
node.v1: RuntimeClass
admissionregistration.v1: MutatingWebhookConfiguration ValidatingWebhookConfiguration
events.v1: Event
authentication.v1: TokenReview TokenRequest SelfSubjectReview
authorization.v1: SubjectAccessReview SelfSubjectAccessReview LocalSubjectAccessReview SelfSubjectRulesReview
apiextensions.v1: CustomResourceDefinition
meta.v1: DeleteOptions
"""

SCALARS = {
    "std::string::String": "s",
    "bool": "b",
    "i32": "i",
    "i64": "l",
    "f64": "d",
    "crate::ByteString": "y",
    "crate::apimachinery::pkg::api::resource::Quantity": "q",
    "crate::apimachinery::pkg::apis::meta::v1::Time": "t",
    "crate::apimachinery::pkg::apis::meta::v1::MicroTime": "m",
    "crate::apimachinery::pkg::util::intstr::IntOrString": "x",
    "crate::apimachinery::pkg::runtime::RawExtension": "*",
    "crate::apimachinery::pkg::apis::meta::v1::FieldsV1": "*",
    "crate::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON": "*",
    "crate::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrBool": "*B",
    "crate::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray": "*A",
    "crate::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrStringArray": "*S",
    "crate::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceSubresourceStatus": "*",
    "crate::serde_json::Value": "*",
}
# Members of the three unions above, reached only through them.
SCHEMA = "apiextensions.v1.JSONSchemaProps"


def short(path):
    """crate::api::core::v1::Pod -> core.v1.Pod"""
    parts = path.split("::")
    return ".".join(parts[-3:])


def read_openapi():
    """name -> {json: (type, required)} of every struct."""
    types = {}
    base = os.path.join(OPENAPI, "src", VERSION)
    for folder, _, files in os.walk(base):
        for name in files:
            text = open(os.path.join(folder, name)).read()
            found = re.search(r"^// Generated from definition (\S+)", text)
            struct = re.search(r"^pub struct (\w+) \{\n(.*?)^\}", text, re.M | re.S)
            if not found or not struct:
                continue
            full = found.group(1).split(".")
            keys = {rust: json for json, rust in re.findall(r'"([^"]+)" => Field::Key_(\w+),', text)}
            fields = {}
            for rust, kind in re.findall(r"^    pub (\w+): (.*),$", struct.group(2), re.M):
                required = not kind.startswith("Option<")
                kind = kind if required else kind[len("Option<"):-1]
                fields[keys[rust.strip("_")] if rust.strip("_") in keys else keys[rust]] = (kind, required)
            if '"apiVersion" => Field::Key_api_version' in text and "Key_kind" in text:
                fields.setdefault("apiVersion", ("std::string::String", False))
                fields.setdefault("kind", ("std::string::String", False))
            types[".".join(full[-3:])] = fields
    return types


def read_pb():
    """name -> (atomic, [(rust name, number, wire, message, markers)]) of every message."""
    types = {}
    for folder, _, files in os.walk(os.path.join(PB, "src")):
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), os.path.join(PB, "src"))
            if name != "mod.rs":
                continue
            module = path.split(os.sep)[:-1]
            text = open(os.path.join(folder, name)).read()
            comments, attr, current = [], "", None
            for line in text.split("\n"):
                line = line.strip()
                if line.startswith("///"):
                    comments.append(line[3:].strip())
                elif line.startswith("#[prost("):
                    attr = line
                elif line.startswith("pub struct"):
                    current = line.split()[2]
                    markers = [c for c in comments if c.startswith("+")]
                    types[".".join(module[-2:] + [current]).lower()] = ("+structType=atomic" in markers, [])
                    comments, attr = [], ""
                elif line.startswith("pub ") and attr and current:
                    field = re.match(r"pub (\S+):\s*(.*),?$", line)
                    number = int(re.search(r'tag = "(\d+)"', attr).group(1))
                    wire = attr[len("#[prost("):].split(",")[0].split("(")[0].strip("= ")
                    message = re.findall(r"[\w:]+", line.split(":", 1)[1])
                    markers = [c for c in comments if c.startswith("+")]
                    key = ".".join(module[-2:] + [current]).lower()
                    types[key][1].append((field.group(1), number, wire, line.split(":", 1)[1], markers, module))
                    comments, attr = [], ""
                elif line == "}":
                    comments, attr = [], ""
    return types


def plain(name):
    return name.replace("_", "").replace("r#", "").lower()


def code(kind, todo):
    """Type code of a Rust type; types that are met are added to todo."""
    kind = kind.strip()
    box = re.match(r"std::boxed::Box<(.*)>$", kind)
    if box:
        return code(box.group(1), todo)
    vec = re.match(r"std::vec::Vec<(.*)>$", kind)
    if vec:
        return "[" + code(vec.group(1), todo)
    table = re.match(r"std::collections::BTreeMap<std::string::String, (.*)>$", kind)
    if table:
        return "{" + code(table.group(1), todo)
    if kind in SCALARS:
        if SCALARS[kind] in ("*A", "*B", "*S"):
            todo.append(SCHEMA)
        return SCALARS[kind]
    todo.append(short(kind))
    return "@" + short(kind)


def read_facts():
    facts = {}
    for line in open(os.path.join(HERE, "pointers.txt")):
        line = line.split("#")[0].split()
        for field in line[1:]:
            facts.setdefault(line[0], set()).add(field)
    return facts


def inlined(pb, message, module):
    """Name of the message type in a field declaration."""
    name = re.findall(r"[\w]+(?:::[\w]+)*", message)[-1]
    parts = name.split("::")
    if parts[0] != "super":
        return ".".join(module[-2:] + [parts[-1]])
    base = list(module)
    while parts[0] == "super":
        parts.pop(0)
        base.pop()
    return ".".join((base + parts)[-3:])


def main():
    openapi, pb, facts = read_openapi(), read_pb(), read_facts()
    names = {"meta.v1": "meta.v1"}
    todo, done, out = [], set(), []
    for line in ROOTS.strip().split("\n"):
        group, kinds = line.split(": ")
        todo += [f"{group}.{kind}" for kind in kinds.split()]
    used = {k: set() for k in facts}
    while todo:
        name = todo.pop(0)
        if name in done:
            continue
        done.add(name)
        if name not in openapi:
            print("no such type", name, file=sys.stderr)
            continue
        fields = openapi[name]
        if name == "meta.v1.DeleteOptions":
            fields = {k: v for k, v in fields.items()}
        atomic, messages = pb.get(name.lower(), (False, []))
        lines, numbered, extra = [], {}, []
        lookup = {plain(json): json for json in fields}
        special = {"ref": "$ref", "schema": "$schema"}
        for rust, number, wire, declared, markers, module in messages:
            json = lookup.get(plain(rust)) or (special.get(rust.replace("r#", "")) if special.get(rust.replace("r#", "")) in fields else None)
            if json is None and name.endswith("JSONSchemaProps") and rust.startswith("x_kubernetes"):
                json = next((f for f in fields if plain(f.replace("-", "")) == plain(rust)), None)
            if json:
                numbered[json] = (number, markers)
            elif wire == "message":
                target = inlined(pb, declared, module)
                inner = {plain(f[0]) for f in pb.get(target.lower(), (0, []))[1]}
                if target.lower() in pb and inner & set(lookup):
                    extra.append((number, target))
                else:
                    print("skipped", name, rust, file=sys.stderr)
            else:
                print("skipped", name, rust, file=sys.stderr)
        for json, (kind, required) in sorted(fields.items()):
            number, markers = numbered.get(json, (0, []))
            if not number:
                for _, target in extra:
                    for f in pb[target.lower()][1]:
                        if plain(f[0]) == plain(json):
                            markers = f[4]
            flags = []
            typ = code(kind, todo)
            if required:
                flags.append("!")
            for fact in facts:
                for want in (json, f"{name.split('.')[-1]}.{json}", f"{name}.{json}"):
                    if want in facts[fact] and f"-{name.split('.')[-1]}.{json}" not in facts[fact]:
                        fits = {"p": typ in "sbild" and not required, "e": typ[0] in "@tmq" and not required,
                                "z": not required, "n": required}[fact]
                        if not fits:
                            continue
                        flags.append(fact)
                        used[fact].add(want)
            value = lambda m: [x.split("=")[1] for x in markers if x.startswith(m + "=")]
            keys = value("+listMapKey")
            if "+listType=map" in markers and keys:
                flags.append("k=" + ",".join(keys))
            elif "+listType=set" in markers:
                flags.append("S")
            elif "+mapType=atomic" in markers or "+structType=atomic" in markers or "+mapType = atomic" in markers:
                flags.append("A")
            if value("+patchMergeKey") and any("merge" in v for v in value("+patchStrategy")):
                flags.append("P=" + value("+patchMergeKey")[0])
            elif any("merge" in v for v in value("+patchStrategy")):
                flags.append("M")
            if any("retainKeys" in v for v in value("+patchStrategy")):
                flags.append("R")
            flags = list(dict.fromkeys(flags))
            lines.append(" ".join([json, str(number), typ] + flags))
        out.append((name, atomic, lines, extra))
    # Inlined messages are needed by number only; their JSON types are those of the outer type.
    need, seen = [(t, name) for name, _, _, extra in out for _, t in extra], set()
    while need:
        target, outer = need.pop()
        if target in seen or target in done:
            continue
        seen.add(target)
        lines, extra = [], []
        lookup = {plain(json): json for json in openapi[outer]}
        for rust, number, wire, declared, markers, module in pb[target.lower()][1]:
            json = lookup.get(plain(rust))
            if json:
                lines.append(f"{json} {number} ?")
            else:
                print("skipped", target, rust, file=sys.stderr)
        out.append((target, False, lines, extra))
    for name, atomic, lines, extra in sorted(out):
        print("T", name, *(["atomic"] if atomic else []))
        for number, target in extra:
            print("+", number, target)
        for line in lines:
            print(line)
    for fact in facts:
        for missing in sorted(facts[fact] - used[fact]):
            if not missing.startswith("-"):
                print("unused fact", fact, missing, file=sys.stderr)


main()
