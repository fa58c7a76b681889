//! What a new leader does before its first plan: a quorum list of pods and claims, because its
//! watches may not show yet what the old leader wrote last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stowage_crds::names::{LABEL_MANAGED_BY, MANAGED_BY};

use crate::observe::identity::Identified;
use crate::observe::journal::{Journal, Journals};
use crate::observe::source::{Kept, Key, Source};
use crate::observe::view::{KnownClaim, KnownPod};
use crate::observe::{PAGE, Sources};

const LIST_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error("cannot list {kind}: {source}")]
    List { kind: &'static str, source: kube::Error },
    #[error("no list of {kind} within {LIST_TIMEOUT:?}")]
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
    for key in pods.into_iter().take(CONFIRM_AT_ONCE) {
        if let Some(found) = find::<Pod>(client, &key).await {
            journals.pods().confirm(&key, found, Instant::now());
        }
    }
    for key in claims.into_iter().take(CONFIRM_AT_ONCE) {
        if let Some(found) = find::<ResourceClaim>(client, &key).await {
            journals.claims().confirm(&key, found, Instant::now());
        }
    }
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
    tokio::time::timeout(Duration::from_secs(3), api.get_opt(name)).await.ok()?.ok()
}

/// Without a resource version the list is read from the quorum, not from a cache; all its pages show one state.
async fn list<K>(client: &Client, kind: &'static str) -> Result<Vec<Identified<K>>, TakeOverError>
where
    K: Kept + Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}")).limit(PAGE);
    let (api, mut all): (Api<K>, Vec<Identified<K>>) = (Api::all(client.clone()), Vec::new());
    let pages = async {
        loop {
            let page = api.list(&params).await?;
            all.extend(page.items.into_iter().map(Identified::from));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.clone().continue_token(&token),
                None => return Ok(()),
            }
        }
    };
    match tokio::time::timeout(LIST_TIMEOUT, pages).await {
        Ok(Ok(())) => Ok(all),
        Ok(Err(source)) => Err(TakeOverError::List { kind, source }),
        Err(_) => Err(TakeOverError::Slow { kind }),
    }
}

/// What is listed stands; what the watch still shows of ours and is not listed is gone.
fn rebuild<K>(journal: &mut Journal<K>, listed: Vec<Identified<K>>, source: &Arc<Source<Identified<K>>>)
where
    K: Resource + Kept,
{
    let now = Instant::now();
    journal.clear();
    let uids: Vec<Option<String>> = listed.iter().map(|object| object.meta().uid.clone()).collect();
    for (key, watched) in source.all() {
        let ours = watched.labels().get(LABEL_MANAGED_BY).is_some_and(|value| value == MANAGED_BY);
        if ours && !uids.contains(&watched.meta().uid) {
            journal.gone(key, watched.uid().unwrap_or_default(), now);
        }
    }
    for object in listed {
        journal.written(object, now);
    }
}
