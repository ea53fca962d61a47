//! The version of the API.

use serde_json::{Value, json};

/// Version of Kubernetes whose API is spoken.
pub const KUBERNETES: &str = "v1.35.0";

/// The answer of `/version`.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "35", "emulationMajor": "1", "emulationMinor": "35", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "34", "gitVersion": format!("{KUBERNETES}+colibri"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}
