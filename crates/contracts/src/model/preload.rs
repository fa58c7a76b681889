//! Models that a node is to hold before a claim needs them: the operator sends the list, the node's agent fetches them.
//!
//! Each request is the whole list, and holds for [`HOLDS`]: what is not asked for again is an ordinary cached model.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{ClaimModel, ModelKey};

/// Most models of one node.
pub const MAX_PRELOADS: usize = 64;
/// Most models of one tenant on one node.
pub const MAX_PRELOADS_OF_TENANT: usize = 8;
/// An agent that receives no list for so long forgets the last one.
pub const HOLDS: Duration = Duration::from_secs(60);
/// How often the operator sends it again.
pub const RESEND_EVERY: Duration = Duration::from_secs(20);

/// The whole list of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preloads {
    /// Tenants take turns; of a tenant, the first is fetched first.
    pub models: Vec<Preload>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preload {
    /// What is fetched.
    pub model: ClaimModel,
    /// Who wants it there.
    pub tenant: String,
}

impl Preload {
    /// What identifies it; `None`: it cannot be fetched ahead, because it needs a login or its commit is not known yet.
    pub fn key(&self) -> Option<ModelKey> {
        let key = self.model.key();
        (self.model.is_open() && self.model.is_sound("") && key.directory().is_some()).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HubModel;
    use crate::model::FileModel;
    use crate::s3::S3Login;

    #[test]
    fn only_open_models_of_known_content_are_fetched_ahead() {
        let login = S3Login { region: "us-east-1".into(), namespace: "a".into(), secret: "s".into() };
        let open = FileModel::open("https://h/m.gguf", "a".repeat(64));
        let closed = FileModel { s3: Some(login), ..open.clone() };
        let hub = |revision: &str| HubModel { repo: "o/n".into(), revision: revision.into(), path: None, token: None };
        for (model, fetched) in [
            (ClaimModel::File(open), true),
            (ClaimModel::File(closed), false),
            (ClaimModel::File(FileModel::open("https://h/m.gguf", "short")), false),
            (ClaimModel::Hub(hub(&"b".repeat(40))), true),
            (ClaimModel::Hub(hub("main")), false),
        ] {
            let preload = Preload { model, tenant: "a".into() };
            assert_eq!(preload.key().is_some(), fetched, "{preload:?}");
        }
    }
}
