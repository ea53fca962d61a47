//! The built-in kinds, as data.

use crate::resource::ResourceDef;

/// Every built-in resource.
pub fn builtin() -> Vec<ResourceDef> {
    Vec::new()
}
