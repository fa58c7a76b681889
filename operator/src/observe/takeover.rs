//! What a new leader does before its first plan: a quorum list of pods and claims, because its
//! watches may not show yet what the old leader wrote last.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stowage_crds::names::{LABEL_MANAGED_BY, MANAGED_BY};

use crate::observe::journal::{Journal, Journals};
use crate::observe::parsed::{Parse, Parsed};
use crate::observe::source::{Key, Source};
use crate::observe::view::{KnownClaim, KnownPod};
use crate::observe::{PAGE, Sources};

/// For one page of a list.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);
/// For all questions of [`confirm`] together.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error("cannot list {kind}: {source}")]
    List { kind: &'static str, source: kube::Error },
    #[error("no page of a list of {kind} within {PAGE_TIMEOUT:?}")]
    Slow { kind: &'static str },
}

/// Rebuilds both journals from fresh lists.
pub async fn take_over(client: &Client, sources: &Sources, journals: &Journals) -> Result<(), TakeOverError> {
    let pods: Vec<KnownPod> = list(client, "pods").await?;
    let claims: Vec<KnownClaim> = list(client, "resourceclaims").await?;
    tracing::info!(pods = pods.len(), claims = claims.len(), "took over with a fresh list");
    rebuild(&mut journals.pods(), pods, &sources.pods);
    rebuild(&mut journals.claims(), claims, &sources.claims);
    Ok(())
}

/// Entries of the journals asked for in one go; the others wait for the next.
const CONFIRM_AT_ONCE: usize = 16;

/// Asks for what was written or deleted a while ago and never shown by the watch.
pub async fn confirm(client: &Client, journals: &Journals) {
    let now = Instant::now();
    let (pods, claims) = (journals.pods().unconfirmed(now), journals.claims().unconfirmed(now));
    let pods = pods.into_iter().take(CONFIRM_AT_ONCE).map(|key| async move {
        if let Some(found) = find::<Pod>(client, &key).await {
            journals.pods().confirm(&key, found, Instant::now());
        }
    });
    let claims = claims.into_iter().take(CONFIRM_AT_ONCE).map(|key| async move {
        if let Some(found) = find::<ResourceClaim>(client, &key).await {
            journals.claims().confirm(&key, found, Instant::now());
        }
    });
    // The plan waits for the answers; those that come late are asked for again.
    let all = async { tokio::join!(join_all(pods), join_all(claims)) };
    let _ = tokio::time::timeout(CONFIRM_TIMEOUT, all).await;
}

/// `None`: no answer, ask again later.
async fn find<K>(client: &Client, (namespace, name): &Key) -> Option<Option<K>>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.get_opt(name).await.ok()
}

/// Without a resource version the list is read from the quorum, not from a cache; all its pages show one state.
async fn list<K>(client: &Client, kind: &'static str) -> Result<Vec<Parsed<K>>, TakeOverError>
where
    K: Parse + Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}")).limit(PAGE);
    let (api, mut all): (Api<K>, Vec<Parsed<K>>) = (Api::all(client.clone()), Vec::new());
    loop {
        let page = tokio::time::timeout(PAGE_TIMEOUT, api.list(&params)).await;
        let page = page.map_err(|_| TakeOverError::Slow { kind })?;
        let page = page.map_err(|source| TakeOverError::List { kind, source })?;
        all.extend(page.items.into_iter().map(Parsed::from));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// What is listed stands; what the watch still shows of ours and is not listed is gone.
fn rebuild<K>(journal: &mut Journal<K>, listed: Vec<Parsed<K>>, source: &Arc<Source<Parsed<K>>>)
where
    K: Parse,
{
    let now = Instant::now();
    journal.clear();
    let uids: HashSet<&str> = listed.iter().filter_map(|object| object.meta().uid.as_deref()).collect();
    for (key, watched) in source.all().iter() {
        let ours = watched.labels().get(LABEL_MANAGED_BY).is_some_and(|value| value == MANAGED_BY);
        if ours && watched.meta().uid.as_deref().is_none_or(|uid| !uids.contains(uid)) {
            journal.gone(key.clone(), watched.uid().unwrap_or_default(), now);
        }
    }
    for object in listed {
        journal.written(object, now);
    }
}
