//! Managed fields: who set what.

use http::StatusCode;
use serde_json::Value;

use crate::ApiServer;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::object::meta_mut;
use crate::verbs::{Call, Style};

impl ApiServer {
    pub(crate) fn track_create(&self, _call: &Call, object: &mut Value) {
        meta_mut(object).remove("managedFields");
    }

    pub(crate) fn track_update(&self, _call: &Call, _new: &mut Value, _old: &Value, _style: &Style) -> ApiResult<()> {
        Ok(())
    }

    /// Server-side apply.
    pub(crate) async fn apply(&self, call: &Call, dry_run: bool) -> ApiResult<Response> {
        let mut config = crate::negotiate::parse_text(&call.body, true)
            .map_err(|why| ApiError::bad_request(format!("error decoding YAML: {why}")))?;
        meta_mut(&mut config).remove("managedFields");
        if self.existing(call).is_err() && call.target.subresource.is_empty() {
            self.accept_fields(call, &mut config, None)?;
            meta_mut(&mut config).insert("name".into(), call.target.name.as_str().into());
            let created = self.create_object(call, config, dry_run).await?;
            return self.respond(call, StatusCode::CREATED, &created);
        }
        let patch = crate::patch::parse(crate::patch::PatchKind::Merge, config.to_string().as_bytes())?;
        let def = call.served.def.clone();
        let make = |old: &Value| {
            let mut new = patch.apply(old, &*def.strategy)?;
            self.accept_fields(call, &mut new, None)?;
            Ok(new)
        };
        let object = self.update_object(call, &make, Style::Update, dry_run).await?;
        self.respond(call, StatusCode::OK, &object)
    }
}
