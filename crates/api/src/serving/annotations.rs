//! Names of labels and annotations.

use std::collections::BTreeMap;

/// Label and annotation keys of `serving.knative.dev`.
pub const SERVICE_LABEL: &str = "serving.knative.dev/service";
/// Configuration that an object belongs to.
pub const CONFIGURATION_LABEL: &str = "serving.knative.dev/configuration";
/// Generation of the Configuration that a Revision was made from.
pub const CONFIGURATION_GENERATION_LABEL: &str = "serving.knative.dev/configurationGeneration";
/// UID of that Configuration.
pub const CONFIGURATION_UID_LABEL: &str = "serving.knative.dev/configurationUID";
/// UID of the Service.
pub const SERVICE_UID_LABEL: &str = "serving.knative.dev/serviceUID";
/// Revision that a pod is an instance of. The gateway selects instances by it.
pub const REVISION_LABEL: &str = "serving.knative.dev/revision";
/// UID of the Revision.
pub const REVISION_UID_LABEL: &str = "serving.knative.dev/revisionUID";
/// Route that an object belongs to.
pub const ROUTE_LABEL: &str = "serving.knative.dev/route";
/// `pending`, `active` or `reserve`.
pub const ROUTING_STATE_LABEL: &str = "serving.knative.dev/routingState";
/// When the routing state changed.
pub const ROUTING_STATE_MODIFIED_ANNOTATION: &str = "serving.knative.dev/routingStateModified";
/// Routes that a Revision serves.
pub const ROUTES_ANNOTATION: &str = "serving.knative.dev/routes";
/// `true` keeps a Revision that nobody uses.
pub const NO_GC_ANNOTATION: &str = "serving.knative.dev/no-gc";
/// How far traffic has moved to a new Revision; in a Route's status.
pub const ROLLOUT_ANNOTATION: &str = "networking.internal.knative.dev/rollout";
/// Name inside its namespace that a DomainMapping's requests go to; in its status. The gateway routes by it.
pub const TARGET_ANNOTATION: &str = "networking.internal.knative.dev/target";
/// Bears `true` on a ClusterDomainClaim that was made for a DomainMapping and goes with it.
pub const AUTOCREATED_LABEL: &str = "networking.internal.knative.dev/autocreated";
/// User who made the object.
pub const CREATOR_ANNOTATION: &str = "serving.knative.dev/creator";
/// User who changed it last.
pub const LAST_MODIFIER_ANNOTATION: &str = "serving.knative.dev/lastModifier";
/// Time until a Revision that never became ready has failed.
pub const PROGRESS_DEADLINE_ANNOTATION: &str = "serving.knative.dev/progress-deadline";
/// `cluster-local` keeps an object off the public gateway.
pub const VISIBILITY_LABEL: &str = "networking.knative.dev/visibility";
/// Prefix of the autoscaler's annotations.
pub const AUTOSCALING_PREFIX: &str = "autoscaling.knative.dev/";
/// Function that an object belongs to.
pub const FUNCTION_LABEL: &str = "functions.colibri.dev/function";
/// Name of the container that serves, as Knative's default.
pub const USER_CONTAINER: &str = "user-container";

/// Autoscaler classes.
pub const CLASS_KPA: &str = "kpa.autoscaling.knative.dev";
/// Class that hands over to a HorizontalPodAutoscaler.
pub const CLASS_HPA: &str = "hpa.autoscaling.knative.dev";

/// The spellings of one annotation; the first that is present counts.
pub type Spellings = &'static [&'static str];

/// Autoscaler class.
pub const CLASS: Spellings = &["autoscaling.knative.dev/class"];
/// What is counted.
pub const METRIC: Spellings = &["autoscaling.knative.dev/metric"];
/// How samples are averaged.
pub const METRIC_AGGREGATION_ALGORITHM: Spellings =
    &["autoscaling.knative.dev/metric-aggregation-algorithm", "autoscaling.knative.dev/metricAggregationAlgorithm"];
/// What one pod should bear.
pub const TARGET: Spellings = &["autoscaling.knative.dev/target"];
/// Share of it that is planned for.
pub const TARGET_UTILIZATION_PERCENTAGE: Spellings =
    &["autoscaling.knative.dev/target-utilization-percentage", "autoscaling.knative.dev/targetUtilizationPercentage"];
/// Stable window.
pub const WINDOW: Spellings = &["autoscaling.knative.dev/window"];
/// Panic window as a share of the stable one.
pub const PANIC_WINDOW_PERCENTAGE: Spellings =
    &["autoscaling.knative.dev/panic-window-percentage", "autoscaling.knative.dev/panicWindowPercentage"];
/// Load for each ready pod that starts a panic.
pub const PANIC_THRESHOLD_PERCENTAGE: Spellings =
    &["autoscaling.knative.dev/panic-threshold-percentage", "autoscaling.knative.dev/panicThresholdPercentage"];
/// Requests that must fit in on top.
pub const TARGET_BURST_CAPACITY: Spellings =
    &["autoscaling.knative.dev/target-burst-capacity", "autoscaling.knative.dev/targetBurstCapacity"];
/// Fewest pods.
pub const MIN_SCALE: Spellings = &["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"];
/// Most pods.
pub const MAX_SCALE: Spellings = &["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"];
/// Pods of a new Revision.
pub const INITIAL_SCALE: Spellings = &["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"];
/// Fewest pods as soon as one is wanted.
pub const ACTIVATION_SCALE: Spellings =
    &["autoscaling.knative.dev/activation-scale", "autoscaling.knative.dev/activationScale"];
/// How long fewer pods must be wanted.
pub const SCALE_DOWN_DELAY: Spellings =
    &["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"];
/// How long the last pod is kept.
pub const SCALE_TO_ZERO_POD_RETENTION_PERIOD: Spellings = &[
    "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
    "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
];

/// All annotations of the autoscaler.
pub const AUTOSCALING: &[Spellings] = &[
    CLASS,
    METRIC,
    METRIC_AGGREGATION_ALGORITHM,
    TARGET,
    TARGET_UTILIZATION_PERCENTAGE,
    WINDOW,
    PANIC_WINDOW_PERCENTAGE,
    PANIC_THRESHOLD_PERCENTAGE,
    TARGET_BURST_CAPACITY,
    MIN_SCALE,
    MAX_SCALE,
    INITIAL_SCALE,
    ACTIVATION_SCALE,
    SCALE_DOWN_DELAY,
    SCALE_TO_ZERO_POD_RETENTION_PERIOD,
];

/// Time over which traffic moves to a new Revision.
pub const ROLLOUT_DURATION: Spellings =
    &["serving.knative.dev/rollout-duration", "serving.knative.dev/rolloutDuration"];
/// Time until a Revision that never became ready has failed.
pub const PROGRESS_DEADLINE: Spellings = &[PROGRESS_DEADLINE_ANNOTATION];
/// Share of the container's resources that the reference's sidecar gets.
pub const SIDECAR_PERCENTAGE: Spellings =
    &["queue.sidecar.serving.knative.dev/resource-percentage", "queue.sidecar.serving.knative.dev/resourcePercentage"];
/// Resources of the reference's sidecar.
pub const SIDECAR_RESOURCES: &[&str] = &[
    "queue.sidecar.serving.knative.dev/cpu-resource-request",
    "queue.sidecar.serving.knative.dev/cpu-resource-limit",
    "queue.sidecar.serving.knative.dev/memory-resource-request",
    "queue.sidecar.serving.knative.dev/memory-resource-limit",
    "queue.sidecar.serving.knative.dev/ephemeral-storage-resource-request",
    "queue.sidecar.serving.knative.dev/ephemeral-storage-resource-limit",
];
/// Annotations of `networking.knative.dev` that a Revision's template may have.
pub const NETWORKING: &[&str] = &[
    "networking.knative.dev/ingress.class",
    "networking.knative.dev/ingress-class",
    "networking.knative.dev/certificate.class",
    "networking.knative.dev/certificate-class",
    "networking.knative.dev/disableAutoTLS",
    "networking.knative.dev/disable-auto-tls",
    "networking.knative.dev/disable-external-domain-tls",
    "networking.knative.dev/httpOption",
    "networking.knative.dev/http-protocol",
];

/// What requests without TLS get: `Enabled`, `Redirected` or `Disabled`.
pub const HTTP_PROTOCOL: Spellings = &["networking.knative.dev/http-protocol", "networking.knative.dev/httpOption"];

/// Whether a client's requests go to the instance that served it first; of Colibri's own. `cookie` or `none`.
pub const SESSION_AFFINITY: Spellings = &["gateway.colibri.dev/session-affinity"];
/// The client keeps a cookie that names the instance.
pub const AFFINITY_COOKIE: &str = "cookie";

/// The value of an annotation in whichever spelling it is there.
pub fn value(annotations: &BTreeMap<String, String>, spellings: Spellings) -> Option<&str> {
    spellings.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}
