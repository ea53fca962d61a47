//! From a pod to what the supervisor is told: pure.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use supervisor::{Limits, Mount, MountSource, UserSpec};

use super::machine::{ContainerPlan, RestartPolicy};

/// Processes and threads of a container.
const PIDS: u64 = 4096;

/// Kernel numbers of the capabilities that a container has unless it says otherwise: CHOWN, `DAC_OVERRIDE`, FOWNER,
/// FSETID, KILL, SETGID, SETUID, SETPCAP, `NET_BIND_SERVICE`, `SYS_CHROOT`, SETFCAP. Without `NET_RAW`, MKNOD and
/// `AUDIT_WRITE`, which some engines add: pods may send only what their address allows, and ping needs no raw socket.
pub const DEFAULT_CAPABILITIES: [u8; 11] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31];

/// Names by kernel number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What may be added: nothing that reaches beyond the pod's own namespaces.
const ADDABLE: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "SETFCAP",
    "NET_RAW",
    "IPC_LOCK",
    "AUDIT_WRITE",
];

/// What this node does not do; the text is for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Unsupported {
    /// The field, from the pod's `spec` on.
    pub field: String,
    /// Why, and what to do instead.
    pub why: String,
}

fn unsupported<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, Unsupported> {
    Err(Unsupported { field: field.into(), why: why.into() })
}

/// Refuses what would break out of the sandbox.
///
/// # Errors
///
/// [`Unsupported`] names the first such field.
pub fn check(spec: &PodSpec) -> Result<(), Unsupported> {
    let shared = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    if let Some((field, _)) = shared.iter().find(|(_, value)| *value == Some(true)) {
        return unsupported(*field, "pods do not share namespaces with the host here");
    }
    for container in containers(spec).map(|(container, _)| container) {
        let name = &container.name;
        let security = container.security_context.as_ref();
        if security.is_some_and(|security| security.privileged == Some(true)) {
            return unsupported(
                format!("containers[{name}].securityContext.privileged"),
                "privileged containers are refused",
            );
        }
        capabilities(container)?;
    }
    Ok(())
}

/// All containers with whether they are init containers, those first.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (&Container, bool)> {
    let init = spec.init_containers.iter().flatten().map(|container| (container, true));
    init.chain(spec.containers.iter().map(|container| (container, false)))
}

/// What the machine must know.
pub fn plans(spec: &PodSpec) -> Vec<ContainerPlan> {
    let policy = match spec.restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    };
    let plan = |(container, init): (&Container, bool)| ContainerPlan {
        name: container.name.clone(),
        init,
        restart: policy,
        readiness_probe: !init && container.readiness_probe.is_some(),
        startup_probe: !init && container.startup_probe.is_some(),
    };
    containers(spec).map(plan).collect()
}

/// The pod's host name.
pub fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    let name = own.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_string()
}

/// Content of `/etc/hosts`.
pub fn hosts(pod: &Pod, address: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_string();
    text.push_str(&format!("{address}\t{}\n", hostname(pod)));
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    for alias in aliases {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        ));
    }
    text
}

/// The capabilities of a container.
///
/// # Errors
///
/// [`Unsupported`] when one is added that reaches beyond the sandbox.
pub fn capabilities(container: &Container) -> Result<Vec<u8>, Unsupported> {
    let mut set = DEFAULT_CAPABILITIES.to_vec();
    let Some(wanted) = container.security_context.as_ref().and_then(|security| security.capabilities.as_ref()) else {
        return Ok(set);
    };
    let number = |name: &str| {
        let name = name.trim_start_matches("CAP_").to_ascii_uppercase();
        CAPABILITIES.iter().position(|known| *known == name).and_then(|number| u8::try_from(number).ok())
    };
    for name in wanted.drop.iter().flatten() {
        if name.eq_ignore_ascii_case("all") {
            set.clear();
        } else if let Some(number) = number(name) {
            set.retain(|kept| *kept != number);
        }
    }
    for name in wanted.add.iter().flatten() {
        let field = || format!("containers[{}].securityContext.capabilities.add", container.name);
        let plain = name.trim_start_matches("CAP_").to_ascii_uppercase();
        match number(name).filter(|_| ADDABLE.contains(&plain.as_str())) {
            Some(number) if !set.contains(&number) => set.push(number),
            Some(_) => {}
            None => {
                return unsupported(field(), format!("{name} is not given to containers; {} are", ADDABLE.join(", ")));
            }
        }
    }
    Ok(set)
}

/// Who a container runs as.
pub fn user(spec: &PodSpec, container: &Container, image_user: &str) -> UserSpec {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let id = |value: Option<i64>| value.and_then(|id| u32::try_from(id).ok());
    let groups = pod.and_then(|pod| pod.supplemental_groups.as_ref()).into_iter().flatten().copied();
    let groups = groups.chain(pod.and_then(|pod| pod.fs_group));
    UserSpec {
        image_user: image_user.to_string(),
        uid: id(own.and_then(|own| own.run_as_user).or(pod.and_then(|pod| pod.run_as_user))),
        gid: id(own.and_then(|own| own.run_as_group).or(pod.and_then(|pod| pod.run_as_group))),
        groups: groups.filter_map(|group| u32::try_from(group).ok()).collect(),
        must_not_be_root: own.and_then(|own| own.run_as_non_root).or(pod.and_then(|pod| pod.run_as_non_root))
            == Some(true),
    }
}

/// Limits of a container.
pub fn limits(container: &Container) -> Limits {
    let resources = container.resources.as_ref();
    let limit = |name: &str| resources?.limits.as_ref()?.get(name).and_then(|value| quantity(&value.0));
    let request = |name: &str| resources?.requests.as_ref()?.get(name).and_then(|value| quantity(&value.0));
    let millis = |value: f64| (value * 1000.0).ceil() as u64;
    Limits {
        memory_bytes: limit("memory").map(|bytes| bytes as u64),
        cpu_millis: limit("cpu").map(millis),
        cpu_request_millis: request("cpu").or(limit("cpu")).map(millis),
        pids: Some(PIDS),
    }
}

/// The mounts of a container, in an order in which none hides another.
pub fn mounts(spec: &PodSpec, container: &Container) -> Vec<Mount> {
    let read_only_kind = |name: &str| {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name);
        volume.is_some_and(|volume| volume.empty_dir.is_none())
    };
    let mut mounts: Vec<Mount> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| Mount {
            source: MountSource::Volume {
                name: mount.name.clone(),
                sub_path: mount.sub_path.clone().unwrap_or_default(),
            },
            target: mount.mount_path.clone(),
            read_only: mount.read_only == Some(true) || read_only_kind(&mount.name),
        })
        .collect();
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    mounts
}

/// Command line: what the container says overrules the image's.
pub fn command(container: &Container, entrypoint: &[String], cmd: &[String]) -> Vec<String> {
    let own = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    match (own(&container.command), own(&container.args)) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [entrypoint.to_vec(), args].concat(),
        (None, None) => [entrypoint, cmd].concat(),
    }
}

/// The value of a quantity (`100m`, `64Mi`, `1e3`); `None` if it is none.
pub fn quantity(text: &str) -> Option<f64> {
    let units = [
        ("Ki", 1024f64),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let unit = units.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1.0));
    number.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0).map(|value| value * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(value: serde_json::Value) -> Container {
        let mut value = value;
        value["name"] = json!("c");
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn quantities_are_read() {
        for (text, value) in [
            ("100m", Some(0.1)),
            ("2", Some(2.0)),
            ("64Mi", Some(67_108_864.0)),
            ("1e3", Some(1000.0)),
            ("x", None),
            ("-1", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    #[test]
    fn commands_follow_the_image_unless_told_otherwise() {
        let list = |items: &[&str]| items.iter().map(|item| item.to_string()).collect::<Vec<_>>();
        let (entry, cmd) = (list(&["e"]), list(&["c"]));
        for (given, expected) in [
            (json!({}), list(&["e", "c"])),
            (json!({"args": ["a"]}), list(&["e", "a"])),
            (json!({"command": ["x"]}), list(&["x"])),
            (json!({"command": ["x"], "args": ["a"]}), list(&["x", "a"])),
        ] {
            assert_eq!(command(&container(given.clone()), &entry, &cmd), expected, "{given}");
        }
    }

    #[test]
    fn capabilities_are_dropped_and_only_harmless_ones_added() {
        let with = |value| capabilities(&container(json!({"securityContext": {"capabilities": value}})));
        assert_eq!(with(json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})), Ok(vec![10]));
        assert_eq!(with(json!({"drop": ["CHOWN"]})).map(|set| set.len()), Ok(10));
        assert!(with(json!({"add": ["SYS_ADMIN"]})).unwrap_err().to_string().contains("SYS_ADMIN is not given"));
    }
}
