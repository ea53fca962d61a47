//! Names of labels and annotations.

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
