//! The only way to change anything in the cluster: fenced, bounded, retried a little.
//!
//! Each attempt asks the [`Fence`] right before it is sent, retries included, which is why kube's own
//! retry layer is switched off for this client. A failed write is attempted three times within a few
//! seconds and then given up: the next plan finds the same work again, after a back-off of its own,
//! so that an API server in trouble sees a bounded number of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stowage_crds::names::FIELD_MANAGER;
use tokio::time::{sleep, timeout};

use crate::lead::{Fence, NotLeader, Term};

const ATTEMPTS: u32 = 3;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Why a write did not happen, as far as callers treat it differently. Names are metric labels.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The object exists already; not necessarily ours.
    #[error("it exists already")]
    AlreadyExists,
    /// An object of that name exists and is not ours: kind and name.
    #[error("{0} exists and does not belong to this deployment")]
    Foreign(String),
    /// The object changed, or is another one than we meant.
    #[error("it changed meanwhile: {0}")]
    Conflict(String),
    #[error("it does not exist")]
    NotFound,
    /// The API server will answer the same again: a policy, a quota, an invalid object.
    #[error("refused by the API server: {0}")]
    Refused(String),
    /// Overload, network, time-out: may well work later.
    #[error("the API server did not carry it out: {0}")]
    Unavailable(String),
}

/// Writes on behalf of the leader.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    fence: Arc<Fence>,
    count: Arc<AtomicU64>,
}

impl Writer {
    pub fn new(client: Client, fence: Arc<Fence>) -> Self {
        Self { client, fence, count: Arc::default() }
    }

    /// The term in which a write would be made now.
    pub fn term(&self) -> Option<Term> {
        self.fence.check(Instant::now()).ok()
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Requests sent so far, failed ones included.
    pub fn requests(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub async fn create<K>(&self, api: &Api<K>, object: &K) -> Result<K, WriteError>
    where
        K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        self.attempts(|| api.create(&params, object)).await
    }

    /// A dry run of [`create`](Self::create): everything is judged (schema, quota, admission), nothing is stored.
    pub async fn try_create<K>(&self, api: &Api<K>, object: &K) -> Result<(), WriteError>
    where
        K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.into()) };
        match self.attempts(|| api.create(&params, object)).await {
            Ok(_) => Ok(()),
            // A webhook with side effects: only the real request shows it.
            Err(WriteError::Refused(words)) if words.contains("dry run") => Ok(()),
            Err(err) => Err(err),
        }
    }

    /// The object as it is stored now; read before a write that depends on it.
    pub async fn find<K>(&self, api: &Api<K>, name: &str) -> Result<K, WriteError>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        match timeout(ATTEMPT_TIMEOUT, api.get(name)).await {
            Ok(found) => found.map_err(classify),
            Err(_) => Err(WriteError::Unavailable(format!("no answer within {ATTEMPT_TIMEOUT:?}"))),
        }
    }

    /// Server-side apply of an object of ours: the second time changes nothing, and fields that
    /// another one changed are taken back. Put `metadata.uid` into it: it is a precondition.
    pub async fn apply<K>(&self, api: &Api<K>, name: &str, object: &K) -> Result<K, WriteError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let (params, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(to_value(object)?));
        self.attempts(|| api.patch(name, &params, &patch)).await
    }

    /// Server-side apply of the status subresource.
    pub async fn apply_status<K>(&self, api: &Api<K>, name: &str, object: &impl Serialize) -> Result<K, WriteError>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let (params, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(to_value(object)?));
        self.attempts(|| api.patch_status(name, &params, &patch)).await
    }

    /// JSON merge patch. Put `metadata.uid` or `metadata.resourceVersion` into it: they are preconditions.
    pub async fn merge<K>(&self, api: &Api<K>, name: &str, patch: Value) -> Result<K, WriteError>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(patch);
        self.attempts(|| api.patch(name, &params, &patch)).await
    }

    /// Deletes this object and no later one of the same name. Gone already is success. Answers the
    /// object as it ends, if it takes its time.
    pub async fn delete<K>(
        &self,
        api: &Api<K>,
        name: &str,
        uid: &str,
        grace: Option<u32>,
    ) -> Result<Option<K>, WriteError>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug + Resource,
    {
        let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { grace_period_seconds: grace, ..DeleteParams::background() }.preconditions(only);
        match self.attempts(|| api.delete(name, &params)).await {
            Ok(answer) => Ok(answer.left()),
            // With a conflict the name belongs to another object by now: ours is gone.
            Err(WriteError::NotFound | WriteError::Conflict(_)) => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn attempts<T, F>(&self, request: impl Fn() -> F) -> Result<T, WriteError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            self.fence.check(Instant::now())?;
            self.count.fetch_add(1, Ordering::Relaxed);
            let err = match timeout(ATTEMPT_TIMEOUT, request()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(err)) => classify(err),
                Err(_) => WriteError::Unavailable(format!("no answer within {ATTEMPT_TIMEOUT:?}")),
            };
            if attempt >= ATTEMPTS || !matches!(err, WriteError::Unavailable(_)) {
                return Err(err);
            }
            tracing::debug!(%err, attempt, "write failed, trying again in {pause:?}");
            sleep(pause).await;
            pause *= 3;
        }
        unreachable!("the loop returns at the last attempt")
    }
}

fn to_value(object: &impl Serialize) -> Result<Value, WriteError> {
    serde_json::to_value(object).map_err(|err| WriteError::Refused(format!("cannot be written as JSON: {err}")))
}

fn classify(err: kube::Error) -> WriteError {
    let kube::Error::Api(status) = err else { return WriteError::Unavailable(err.to_string()) };
    match status.code {
        409 if status.is_already_exists() => WriteError::AlreadyExists,
        409 => WriteError::Conflict(status.message.clone()),
        404 => WriteError::NotFound,
        408 | 410 | 425 | 429 | 500.. => WriteError::Unavailable(format!("{} {}", status.code, status.message)),
        _ => WriteError::Refused(status.message.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn check(code: u16, reason: &str, expect: &str) {
        let err = kube::Error::Api(Status::failure("words", reason).with_code(code).boxed());
        assert!(format!("{:?}", classify(err)).starts_with(expect), "{code} {reason}");
    }

    #[test]
    fn answers_of_the_api_server_are_classified_by_what_to_do_next() {
        check(409, "AlreadyExists", "AlreadyExists");
        check(409, "Conflict", "Conflict");
        check(404, "NotFound", "NotFound");
        check(403, "Forbidden", "Refused");
        check(422, "Invalid", "Refused");
        check(429, "TooManyRequests", "Unavailable");
        check(500, "InternalError", "Unavailable");
        check(410, "Expired", "Unavailable");
    }
}
