//! The key with which gateways make the salts of tenants' prefix caches: a Secret that the leader creates where
//! there is none.
//!
//! Created here and not by the chart, because a rendered manifest would hold another key at each rendering, and a
//! tool that compares would change it every time. The operator may create Secrets in its namespace and read none: it
//! finds out by creating, once when it begins to lead and again when a gateway reports that it has no key. To rotate
//! the key, delete the Secret; the only loss is what the caches held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ObjectMeta;
use stowage_crds::names::{CACHE_KEY_ENTRY, CACHE_KEY_SECRET, CACHE_KEY_SECRET_TYPE, LABEL_MANAGED_BY, MANAGED_BY};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::execute::write::{WriteError, Writer};
use crate::lead::Term;

/// Between two tries: a gateway needs a moment to see the new key.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the Secret in `namespace` while this process leads; ends with `stop`. `missing`: a gateway has no key.
pub async fn keep(
    writer: Writer,
    namespace: String,
    mut leading: watch::Receiver<Option<Term>>,
    missing: Arc<Notify>,
    stop: CancellationToken,
) {
    let api = Api::namespaced(writer.client(), &namespace);
    loop {
        let leads = leading.borrow_and_update().is_some();
        let there = !leads || create(&writer, &api).await;
        let again = async {
            tokio::time::sleep(AGAIN).await;
            if there {
                missing.notified().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leading.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

/// Whether the Secret is there now, by its own doing or another's.
async fn create(writer: &Writer, api: &Api<Secret>) -> bool {
    let mut key = [0; 32];
    if let Err(err) = getrandom::fill(&mut key) {
        tracing::error!(%err, "no random bytes for the key of the salts; models are not shared between tenants");
        return false;
    }
    match writer.create(api, &secret(&key)).await {
        Ok(_) => tracing::info!(secret = CACHE_KEY_SECRET, "created the key of the salts of prefix caches"),
        Err(WriteError::AlreadyExists | WriteError::NotLeader(_)) => {}
        Err(err) => {
            tracing::warn!(
                %err,
                secret = CACHE_KEY_SECRET,
                "cannot create the key of the salts; where there is none, models are not shared between tenants"
            );
            return false;
        }
    }
    true
}

fn secret(key: &[u8; 32]) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(CACHE_KEY_SECRET.into()),
            labels: Some([(LABEL_MANAGED_BY.into(), MANAGED_BY.into())].into()),
            ..ObjectMeta::default()
        },
        type_: Some(CACHE_KEY_SECRET_TYPE.into()),
        data: Some(BTreeMap::from([(CACHE_KEY_ENTRY.into(), ByteString(key.to_vec()))])),
        ..Secret::default()
    }
}
