//! Fetches what a container needs before it can start: image, environment, volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::functions::{CODE_DIGEST, CODE_DRIVER};
use client::images::{ImageError, RegistryAuth};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    CSIVolumeSource, ConfigMap, Container, KeyToPath, Pod, PodSpec, ProjectedVolumeSource, Secret, ServiceAccount,
    Volume as PodVolume,
};
use kube::{Api, ResourceExt};
use store::cas::Digest;
use supervisor::{ContainerSpec, Content, Mount, MountSource, PodConfig, Root, Volume, VolumeFile};

use super::env::{self, Own};
use super::spec;
use crate::images::{Images, PullPolicy};
use crate::network::Network;
use crate::{Config, runtimes};

/// What the preparation of all pods shares.
pub struct Supplies {
    /// The node's configuration.
    pub config: Config,
    /// Client of the API server.
    pub client: kube::Client,
    /// Images.
    pub images: Images,
    /// The pod network.
    pub network: Network,
}

/// Why a container cannot start now; in a container status's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// `ErrImagePull`, `InvalidImageName`, `CreateContainerConfigError` and so on.
    pub reason: &'static str,
    /// For the user.
    pub message: String,
}

fn config_error(message: impl std::fmt::Display) -> Refusal {
    Refusal { reason: "CreateContainerConfigError", message: message.to_string() }
}

/// A container that can start.
#[derive(Clone, Debug)]
pub struct Ready {
    /// What all its pod's containers share.
    pub pod: PodConfig,
    /// The container.
    pub spec: ContainerSpec,
    /// The image as it was found.
    pub image_id: String,
}

struct FoundImage {
    root: Root,
    id: String,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    working_dir: String,
    user: String,
    mounts: Vec<Mount>,
}

/// Prepares run `run` of a container.
pub async fn prepare(
    supplies: &Supplies,
    pod: &Pod,
    container: &Container,
    run: u32,
    own: &Own,
    logs: PathBuf,
) -> Result<Ready, Refusal> {
    let pod_spec = pod.spec.as_ref().ok_or_else(|| config_error("the pod has no spec"))?;
    spec::check(pod_spec).map_err(config_error)?;
    let (image, sources, volumes) = tokio::try_join!(
        find_image(supplies, pod, container),
        sources(supplies, pod, container),
        volumes(supplies, pod, pod_spec, own),
    )?;
    let env = env::make(pod, container, &image.env, &sources, own).map_err(config_error)?;
    let args = spec::command(container, &image.entrypoint, &image.cmd);
    if args.is_empty() {
        return Err(config_error("no command is given, neither by the image nor by the container"));
    }
    let cwd = container.working_dir.clone().filter(|dir| !dir.is_empty()).unwrap_or(image.working_dir);
    let security = container.security_context.as_ref();
    let log = logs.join(&container.name);
    std::fs::create_dir_all(&log).map_err(|error| config_error(format!("the log folder cannot be made: {error}")))?;
    let spec = ContainerSpec {
        name: container.name.clone(),
        run,
        note: String::new(),
        root: image.root,
        read_only_root: security.and_then(|security| security.read_only_root_filesystem) == Some(true),
        mounts: [image.mounts, spec::mounts(pod_spec, container)].concat(),
        args: args.iter().map(|arg| env::expand(arg, &env)).collect(),
        env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: if cwd.is_empty() { "/".into() } else { cwd },
        user: spec::user(pod_spec, container, &image.user),
        capabilities: spec::capabilities(container).map_err(config_error)?,
        allow_privilege_escalation: security.and_then(|security| security.allow_privilege_escalation) == Some(true),
        unconfined: false,
        limits: spec::limits(container),
        log: log.join(format!("{run}.log")),
        termination_log: container
            .termination_message_path
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "/dev/termination-log".into()),
        message_from_log: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_config = PodConfig {
        hostname: spec::hostname(pod),
        hosts: spec::hosts(pod, &own.pod_ip),
        resolv_conf: supplies.network.resolv_conf(namespace),
        volumes,
        fs_group: pod_spec
            .security_context
            .as_ref()
            .and_then(|security| security.fs_group)
            .and_then(|group| u32::try_from(group).ok()),
    };
    Ok(Ready { pod: pod_config, spec, image_id: image.id })
}

async fn find_image(supplies: &Supplies, pod: &Pod, container: &Container) -> Result<FoundImage, Refusal> {
    let reference = container.image.clone().unwrap_or_default();
    if let Some(name) = runtimes::name_of(&reference) {
        let name = name.to_string();
        let found = tokio::task::spawn_blocking(move || runtimes::find(&name)).await;
        let runtime = found.map_err(config_error)?.map_err(config_error)?;
        let own_files = Mount {
            source: MountSource::Host(supplies.config.runtimes_dir.clone()),
            target: api::functions::RUNTIME_PATH.into(),
            read_only: true,
        };
        return Ok(FoundImage {
            root: Root::Host(runtime.root),
            id: reference,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: vec![format!("PATH={}", runtime.path)],
            working_dir: "/".into(),
            user: String::new(),
            mounts: vec![own_files],
        });
    }
    let policy = match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    };
    let (id, image) = pull(supplies, pod, &reference, policy).await?;
    let config = image.config.clone();
    Ok(FoundImage {
        root: Root::Layers(image.layers.clone()),
        id,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: config.working_dir,
        user: config.user,
        mounts: Vec::new(),
    })
}

async fn pull(
    supplies: &Supplies,
    pod: &Pod,
    reference: &str,
    policy: PullPolicy,
) -> Result<(String, std::sync::Arc<crate::images::UnpackedImage>), Refusal> {
    let auth = pull_secrets(supplies, pod).await;
    let pulled = supplies.images.pull(reference, auth, policy).await.map_err(|error| match error {
        ImageError::Reference { .. } => Refusal { reason: "InvalidImageName", message: error.to_string() },
        _ if policy == PullPolicy::Never => Refusal { reason: "ErrImageNeverPull", message: error.to_string() },
        _ => Refusal { reason: "ErrImagePull", message: error.to_string() },
    })?;
    let unpacked = supplies.images.unpack(pulled.digest).await;
    let image = unpacked.map_err(|error| Refusal { reason: "ErrImagePull", message: error.text() })?;
    Ok((pulled.reference.to_string(), image))
}

/// Credentials of the pod's pull secrets; those that cannot be read are left out.
async fn pull_secrets(supplies: &Supplies, pod: &Pod) -> Vec<RegistryAuth> {
    let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let mut found = Vec::new();
    for name in names.map(|secret| secret.name.clone()) {
        let secrets =
            Api::<Secret>::namespaced(supplies.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        if let Ok(Some(secret)) = secrets.get_opt(&name).await
            && let Some(text) = secret.data.as_ref().and_then(|data| data.get(".dockerconfigjson"))
        {
            found.extend(registry_auths(&text.0));
        }
    }
    found
}

fn registry_auths(text: &[u8]) -> Vec<RegistryAuth> {
    use base64::Engine;
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(text) else { return Vec::new() };
    let each = config["auths"].as_object().into_iter().flatten().filter_map(|(registry, entry)| {
        let text = |name: &str| entry[name].as_str().map(String::from);
        let pair = || {
            let bytes = base64::engine::general_purpose::STANDARD.decode(entry["auth"].as_str()?).ok()?;
            String::from_utf8(bytes).ok()?.split_once(':').map(|(user, secret)| (user.to_string(), secret.to_string()))
        };
        let (username, password) = text("username").zip(text("password")).or_else(pair)?;
        let host = registry.trim_start_matches("https://").trim_start_matches("http://");
        let registry = host.split('/').next().unwrap_or(host).to_string();
        Some(RegistryAuth { registry, username, password })
    });
    each.collect()
}

async fn sources(supplies: &Supplies, pod: &Pod, container: &Container) -> Result<env::Sources, Refusal> {
    let mut found = env::Sources::new();
    for (kind, name) in env::wanted(container) {
        if !found.contains_key(&(kind, name.clone())) {
            let data = object_data(supplies, pod, kind, &name).await?;
            let text = |data: BTreeMap<String, Vec<u8>>| {
                data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value).into_owned())).collect()
            };
            found.insert((kind, name), data.map(text));
        }
    }
    Ok(found)
}

/// The data of a ConfigMap or Secret of the pod's namespace; `None` if there is none.
async fn object_data(
    supplies: &Supplies,
    pod: &Pod,
    kind: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, Refusal> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let client = supplies.client.clone();
    if kind == "Secret" {
        let secret = Api::<Secret>::namespaced(client, namespace).get_opt(name).await.map_err(config_error)?;
        let data =
            |secret: Secret| secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        return Ok(secret.map(data));
    }
    let map = Api::<ConfigMap>::namespaced(client, namespace).get_opt(name).await.map_err(config_error)?;
    Ok(map.map(|map| {
        let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
        text.chain(map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0))).collect()
    }))
}

async fn volumes(
    supplies: &Supplies,
    pod: &Pod,
    spec: &PodSpec,
    own: &Own,
) -> Result<BTreeMap<String, Volume>, Refusal> {
    let mut found = BTreeMap::new();
    for volume in spec.volumes.iter().flatten() {
        found.insert(volume.name.clone(), make_volume(supplies, pod, volume, own).await?);
    }
    Ok(found)
}

async fn make_volume(supplies: &Supplies, pod: &Pod, volume: &PodVolume, own: &Own) -> Result<Volume, Refusal> {
    if let Some(empty) = &volume.empty_dir {
        let size_bytes = empty.size_limit.as_ref().and_then(|size| spec::quantity(&size.0)).map(|size| size as u64);
        return Ok(if empty.medium.as_deref() == Some("Memory") {
            Volume::Memory { size_bytes }
        } else {
            Volume::Disk
        });
    }
    if let Some(image) = &volume.image {
        return image_volume(supplies, pod, image.reference.as_deref().unwrap_or_default()).await;
    }
    if let Some(source) = volume.csi.as_ref().filter(|source| source.driver == CODE_DRIVER) {
        return code_volume(supplies, pod, source).await;
    }
    let mut files = Vec::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(0o644);
        files = keyed(supplies, pod, "ConfigMap", &source.name, source.items.as_deref(), source.optional, mode).await?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(0o644);
        files = keyed(supplies, pod, "Secret", name, source.items.as_deref(), source.optional, mode).await?;
    } else if let Some(source) = &volume.downward_api {
        for item in source.items.iter().flatten() {
            files.push(downward(pod, item, source.default_mode.unwrap_or(0o644), own)?);
        }
    } else if let Some(source) = &volume.projected {
        files = projected(supplies, pod, source, own).await?;
    } else {
        let why =
            "this node has emptyDir, configMap, secret, downwardAPI, projected and image volumes, and functions' code";
        return Err(config_error(format!("volume {:?} is of another kind: {why}", volume.name)));
    }
    Ok(Volume::Files(files))
}

/// A function's code, if the pod's namespace has it.
async fn code_volume(supplies: &Supplies, pod: &Pod, source: &CSIVolumeSource) -> Result<Volume, Refusal> {
    let attributes = source.volume_attributes.as_ref();
    let text = attributes.and_then(|attributes| attributes.get(CODE_DIGEST)).map(String::as_str).unwrap_or_default();
    let digest: Digest = text
        .parse()
        .map_err(|_| config_error(format!("{text:?} of the volume {CODE_DRIVER} is no digest of an archive")))?;
    let namespace = pod.namespace().unwrap_or_default();
    if !supplies.images.has_archive(&namespace, &digest) {
        return Err(config_error(format!("namespace {namespace:?} has no archive {digest} on this node")));
    }
    let dir = supplies.images.code_dir(digest).await;
    dir.map(Volume::Host).map_err(|error| config_error(error.text()))
}

/// An image of one layer.
async fn image_volume(supplies: &Supplies, pod: &Pod, reference: &str) -> Result<Volume, Refusal> {
    let (_, image) = pull(supplies, pod, reference, PullPolicy::IfNotPresent).await?;
    match image.layers.as_slice() {
        [layer] => Ok(Volume::Host(layer.clone())),
        layers => Err(config_error(format!(
            "image volume {reference} has {} layers; only images of one layer can be mounted as a volume",
            layers.len()
        ))),
    }
}

async fn keyed(
    supplies: &Supplies,
    pod: &Pod,
    kind: &'static str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<Vec<VolumeFile>, Refusal> {
    let Some(data) = object_data(supplies, pod, kind, name).await? else {
        let missing = config_error(format!("{kind} {name:?} not found"));
        return if optional == Some(true) { Ok(Vec::new()) } else { Err(missing) };
    };
    let file = |path: &str, mode: i32, content: &[u8]| VolumeFile {
        path: path.to_string(),
        mode: mode.unsigned_abs(),
        content: Content(content.to_vec()),
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.iter().map(|(key, content)| file(key, mode, content)).collect());
    };
    let mut files = Vec::new();
    for item in items {
        match data.get(&item.key) {
            Some(content) => files.push(file(&item.path, item.mode.unwrap_or(mode), content)),
            None if optional == Some(true) => {}
            None => return Err(config_error(format!("couldn't find key {} in {kind} {name}", item.key))),
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    item: &k8s_openapi::api::core::v1::DownwardAPIVolumeFile,
    mode: i32,
    own: &Own,
) -> Result<VolumeFile, Refusal> {
    let spec = pod.spec.as_ref();
    let text = if let Some(field) = &item.field_ref {
        env::pod_field(pod, &field.field_path, own).map_err(config_error)?
    } else if let Some(resource) = &item.resource_field_ref {
        let name = resource.container_name.as_deref().unwrap_or_default();
        let container = spec.and_then(|spec| spec.containers.iter().find(|container| container.name == name));
        let container = container.ok_or_else(|| config_error(format!("there is no container {name:?}")))?;
        let divisor = resource.divisor.as_ref().map(|divisor| divisor.0.as_str());
        env::resource_field(container, &resource.resource, divisor).map_err(config_error)?
    } else {
        String::new()
    };
    Ok(VolumeFile {
        path: item.path.clone(),
        mode: item.mode.unwrap_or(mode).unsigned_abs(),
        content: Content(text.into_bytes()),
    })
}

async fn projected(
    supplies: &Supplies,
    pod: &Pod,
    volume: &ProjectedVolumeSource,
    own: &Own,
) -> Result<Vec<VolumeFile>, Refusal> {
    let mode = volume.default_mode.unwrap_or(0o644);
    let mut files = Vec::new();
    for source in volume.sources.iter().flatten() {
        if let Some(map) = &source.config_map {
            files.extend(keyed(supplies, pod, "ConfigMap", &map.name, map.items.as_deref(), map.optional, mode).await?);
        }
        if let Some(secret) = &source.secret {
            files.extend(
                keyed(supplies, pod, "Secret", &secret.name, secret.items.as_deref(), secret.optional, mode).await?,
            );
        }
        for item in source.downward_api.iter().flat_map(|source| source.items.iter().flatten()) {
            files.push(downward(pod, item, mode, own)?);
        }
        if let Some(token) = &source.service_account_token {
            let audiences = token.audience.clone().into_iter().collect();
            let content = account_token(supplies, pod, audiences, token.expiration_seconds).await?;
            files.push(VolumeFile {
                path: token.path.clone(),
                mode: mode.unsigned_abs(),
                content: Content(content.into_bytes()),
            });
        }
    }
    Ok(files)
}

async fn account_token(
    supplies: &Supplies,
    pod: &Pod,
    audiences: Vec<String>,
    expiration_seconds: Option<i64>,
) -> Result<String, Refusal> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let account = account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let accounts = Api::<ServiceAccount>::namespaced(supplies.client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec { audiences, expiration_seconds, bound_object_ref: None },
        ..TokenRequest::default()
    };
    let answer = accounts.create_token_request(&account, &kube::api::PostParams::default(), &request).await;
    let answer = answer.map_err(|error| config_error(format!("no token for service account {account}: {error}")))?;
    answer.status.map(|status| status.token).ok_or_else(|| config_error("the API server gave no token"))
}
