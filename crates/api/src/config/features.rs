//! `config-features`: what users may ask for beyond the plain contract.
//!
//! Source: `knative/serving/pkg/apis/config/features.go`.

use std::collections::BTreeMap;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-features";

/// State of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// On for everybody.
    Enabled,
    /// Users may ask for it.
    Allowed,
    /// Off.
    Disabled,
    /// Of `secure-pod-defaults`: secure, but root may be used.
    AllowRootBounded,
}

impl Flag {
    /// Whether pods get secure defaults.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Enabled | Self::AllowRootBounded)
    }
}

macro_rules! features {
    ($($field:ident, $key:literal, $default:ident, $in_force:literal, $about:literal;)*) => {
        /// Keys, in the order of the documentation.
        pub const KEYS: &[Key] = &[$(
            Key { name: $key, default: stringify!($default), about: $about, in_force: $in_force },
        )*];

        /// The values of `config-features`.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Features {
            $(#[doc = concat!("`", $key, "`: ", $about, ". Default ", stringify!($default), ".")] pub $field: Flag,)*
        }

        impl Default for Features {
            fn default() -> Self {
                Self { $($field: Flag::$default,)* }
            }
        }

        impl Features {
            /// Reads the ConfigMap's data; absent keys have their defaults.
            ///
            /// # Errors
            ///
            /// The first value that is not a state.
            pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
                let read = Reader { map: NAME, data };
                Ok(Self { $($field: flag(&read, $key, Flag::$default)?,)* })
            }
        }
    };
}

features! {
    multi_container, "multi-container", Enabled, true, "more than one container in a pod";
    multi_container_probing, "multi-container-probing", Disabled, true, "probes of containers that do not serve";
    pod_spec_affinity, "kubernetes.podspec-affinity", Disabled, true, "the field affinity";
    pod_spec_topology_spread_constraints, "kubernetes.podspec-topologyspreadconstraints", Disabled, true,
        "the field topologySpreadConstraints";
    pod_spec_field_ref, "kubernetes.podspec-fieldref", Disabled, true,
        "environment variables from the pod's own fields";
    pod_spec_host_aliases, "kubernetes.podspec-hostaliases", Disabled, true, "the field hostAliases";
    pod_spec_node_selector, "kubernetes.podspec-nodeselector", Disabled, true, "the field nodeSelector";
    pod_spec_runtime_class_name, "kubernetes.podspec-runtimeclassname", Disabled, true, "the field runtimeClassName";
    pod_spec_security_context, "kubernetes.podspec-securitycontext", Disabled, true, "the pod's securityContext";
    pod_spec_share_process_namespace, "kubernetes.podspec-shareprocessnamespace", Disabled, true,
        "the field shareProcessNamespace";
    pod_spec_host_ipc, "kubernetes.podspec-hostipc", Disabled, true, "the field hostIPC";
    pod_spec_host_pid, "kubernetes.podspec-hostpid", Disabled, true, "the field hostPID";
    pod_spec_host_network, "kubernetes.podspec-hostnetwork", Disabled, true, "the field hostNetwork";
    pod_spec_priority_class_name, "kubernetes.podspec-priorityclassname", Disabled, true, "the field priorityClassName";
    pod_spec_scheduler_name, "kubernetes.podspec-schedulername", Disabled, true, "the field schedulerName";
    pod_spec_tolerations, "kubernetes.podspec-tolerations", Disabled, true, "the field tolerations";
    pod_spec_init_containers, "kubernetes.podspec-init-containers", Disabled, true, "init containers";
    pod_spec_dns_policy, "kubernetes.podspec-dnspolicy", Disabled, true, "the field dnsPolicy";
    pod_spec_dns_config, "kubernetes.podspec-dnsconfig", Disabled, true, "the field dnsConfig";
    pod_spec_volumes_empty_dir, "kubernetes.podspec-volumes-emptydir", Enabled, true, "emptyDir volumes";
    pod_spec_volumes_host_path, "kubernetes.podspec-volumes-hostpath", Disabled, true, "hostPath volumes";
    pod_spec_volumes_mount_propagation, "kubernetes.podspec-volumes-mount-propagation", Disabled, true,
        "mountPropagation of volume mounts";
    pod_spec_volumes_csi, "kubernetes.podspec-volumes-csi", Disabled, true, "csi volumes";
    pod_spec_volumes_ephemeral, "kubernetes.podspec-volumes-ephemeral", Disabled, true, "ephemeral volumes";
    pod_spec_volumes_image, "kubernetes.podspec-volumes-image", Disabled, true, "image volumes";
    pod_spec_persistent_volume_claim, "kubernetes.podspec-persistent-volume-claim", Disabled, true,
        "persistent volume claims";
    pod_spec_persistent_volume_write, "kubernetes.podspec-persistent-volume-write", Disabled, true,
        "persistent volume claims that are written";
    container_spec_add_capabilities, "kubernetes.containerspec-addcapabilities", Disabled, true,
        "capabilities beyond the default ones";
    secure_pod_defaults, "secure-pod-defaults", Disabled, true,
        "secure settings for containers that say nothing; AllowRootBounded leaves the user open";
    tag_header_based_routing, "tag-header-based-routing", Disabled, true, "the header Knative-Serving-Tag";
    auto_detect_http2, "autodetect-http2", Disabled, false, "finding out whether a container speaks HTTP/2";
    queue_proxy_mount_pod_info, "queueproxy.mount-podinfo", Disabled, false, "of the reference's sidecar; there is none";
    queue_proxy_resource_defaults, "queueproxy.resource-defaults", Disabled, false,
        "of the reference's sidecar; there is none";
}

fn flag(read: &Reader<'_>, key: &str, default: Flag) -> Result<Flag, SettingError> {
    let secure = key == "secure-pod-defaults";
    let wanted = if secure { "Enabled, AllowRootBounded or Disabled" } else { "Enabled, Allowed or Disabled" };
    read.value(key, default, wanted, |text| match text.to_ascii_lowercase().as_str() {
        "enabled" => Some(Flag::Enabled),
        "disabled" => Some(Flag::Disabled),
        "allowed" if !secure => Some(Flag::Allowed),
        "allowrootbounded" if secure => Some(Flag::AllowRootBounded),
        _ => None,
    })
}
