//! Ends objects that no deployment has owned for long.

use std::time::Instant;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;

use super::apply::Object;
use super::backoff::Failing;
use super::write::{WriteError, Writer};
use crate::observe::journal::Journals;
use crate::translate::snapshot::strays::{Stray, StrayKind};

/// Deletes them; answers how those that could not be deleted are to be met.
pub async fn end(strays: &[Stray], writer: &Writer, journals: &Journals) -> Vec<Failing> {
    let mut failed = Vec::new();
    for stray in strays {
        match end_one(stray, writer, journals).await {
            Ok(()) => tracing::info!(?stray, "ended: no deployment has owned it for ten minutes"),
            Err(err) => {
                tracing::warn!(?stray, %err, "cannot delete an object that no deployment owns");
                failed.push(Failing::of(&err));
            }
        }
    }
    failed
}

async fn end_one(stray: &Stray, writer: &Writer, journals: &Journals) -> Result<(), WriteError> {
    let (key, uid) = ((stray.namespace.clone(), stray.name.clone()), stray.uid.clone());
    match stray.kind {
        StrayKind::Pod => match delete::<Pod>(stray, writer).await? {
            Some(pod) => journals.pods().written(pod, Instant::now()),
            None => journals.pods().gone(key, uid, Instant::now()),
        },
        StrayKind::Claim => match delete::<ResourceClaim>(stray, writer).await? {
            Some(claim) => journals.claims().written(claim, Instant::now()),
            None => journals.claims().gone(key, uid, Instant::now()),
        },
        StrayKind::Service => drop(delete::<Service>(stray, writer).await?),
        StrayKind::Budget => drop(delete::<PodDisruptionBudget>(stray, writer).await?),
        StrayKind::Policy => drop(delete::<NetworkPolicy>(stray, writer).await?),
    }
    Ok(())
}

async fn delete<K: Object>(stray: &Stray, writer: &Writer) -> Result<Option<K>, WriteError> {
    let api: Api<K> = Api::namespaced(writer.client(), &stray.namespace);
    writer.delete(&api, &stray.name, &stray.uid, None).await
}
