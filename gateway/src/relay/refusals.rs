//! The errors that clients read when a request finds no replica or its engine is lost.
//!
//! Code, status, message and `Retry-After` of one cause stand side by side.

use std::time::Duration;

use stowage_contracts::names::{CACHE_KEY_SECRET, SYSTEM_NAMESPACE};
use stowage_openai_api::{ApiError, Envelope, ErrorKind};

use crate::outcome::{Outcome, Refused};
use crate::queue::limits::Limited;
use crate::queue::pool::Unplaced;
use crate::relay::attempts::GiveUp;
use crate::world::snapshot::{Deployment, Tenant};

/// Code of the refusal of a request that ended two processes.
pub const PROBABLE_CAUSE: &str = "probable_cause";

/// The refusal of another tenant's model while no salt keeps the caches of the two apart.
pub fn not_shared(model: &str) -> Refused {
    let message = format!(
        "{model} belongs to another tenant, and models are not shared now: the key that keeps the cached prompts of tenants apart cannot be read. \
         Ask your platform team to look at the Secret {CACHE_KEY_SECRET} in {SYSTEM_NAMESPACE}."
    );
    Refused::new(Outcome::NoReplica, ApiError::unavailable("sharing_unavailable", message, 30))
}

/// The refusal of a request that got no replica. `ready_in`: when a first one is expected, as far as starts of the model
/// were measured; without that the client comes again soon.
pub fn unplaced(reason: Unplaced, deployment: &Deployment, ready_in: Option<Duration>) -> Refused {
    let model = &deployment.model;
    let again = |otherwise: u32| ready_in.map_or(otherwise, whole_seconds);
    match reason {
        Unplaced::SwitchedOff => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "no_replica",
                format!(
                    "{model} has no replica and none is wanted: its owner set replicas to 0. Ask for at least 1 (kubectl scale infd)."
                ),
                30,
            ),
        ),
        Unplaced::Deleted => Refused::new(Outcome::ModelNotFound, ApiError::model_not_found(model)),
        Unplaced::QueueFull { limit } => Refused::new(
            Outcome::QueueFull,
            ApiError::rate_limited(
                "queue_full",
                format!("{limit} requests wait for {model} already. Send fewer at once, or ask for more replicas."),
                2,
            ),
        ),
        Unplaced::TenantQueueFull { limit } => Refused::new(
            Outcome::TenantLimited,
            ApiError::rate_limited(
                "tenant_queue",
                format!(
                    "{limit} requests of your tenant wait for {model} already, as many as its quota lets wait (tokens.maxQueued)."
                ),
                again(2),
            ),
        ),
        Unplaced::TenantPart => Refused::new(
            Outcome::TenantLimited,
            ApiError::rate_limited(
                "tenant_queue",
                format!(
                    "So many requests of your tenant wait for {model} already that the rest of the queue is kept for others. \
                     Send fewer at once."
                ),
                again(2),
            ),
        ),
        Unplaced::QueueTimeout { waited } => Refused::new(
            Outcome::QueueFull,
            ApiError::unavailable("queue_timeout", format!("{model} is busy: no room within {}.", seconds(waited)), 5),
        ),
        Unplaced::HoldFull { limit } => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "model_waking",
                format!(
                    "{model} has no ready replica, and {limit} requests wait for one already.{}",
                    expected(ready_in)
                ),
                again(5),
            ),
        ),
        Unplaced::NoReplica { waited, starting: true } => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "model_waking",
                format!(
                    "{model} has no ready replica; the request was held for {}. It is starting or waits for a GPU (kubectl stowage explain shows which).{}",
                    seconds(waited),
                    expected(ready_in)
                ),
                again(5),
            ),
        ),
        Unplaced::NoReplica { waited, starting: false } => Refused::new(
            Outcome::NoReplica,
            ApiError::unavailable(
                "no_replica",
                format!(
                    "No replica of {model} takes requests: those it has do not answer or drain. The request was held for {}.",
                    seconds(waited)
                ),
                5,
            ),
        ),
    }
}

/// The refusal of a request beyond its tenant's limits.
pub fn limited(reason: Limited, envelope: &Envelope, tenant: &Tenant) -> Refused {
    let name = &tenant.name;
    let error = match reason {
        Limited::TooManySequences { limit } => {
            // Waiting does not help.
            let (prompts, limit) = (envelope.prompts as usize, limit as usize);
            return Refused::invalid(ApiError::too_many_sequences(prompts, envelope.n, limit));
        }
        Limited::Tokens { retry_after } => {
            let wait = whole_seconds(retry_after);
            let limit = tenant.limits.per_minute.unwrap_or_default();
            ApiError::rate_limited(
                "tenant_tokens",
                format!("{name} used its {limit} tokens per minute; enough are free in {wait} s."),
                wait,
            )
        }
        Limited::Concurrent { limit } => ApiError::rate_limited(
            "tenant_concurrency",
            format!(
                "{name} has as many sequences in flight as its quota allows (tokens.maxConcurrent: {limit}). Wait for a request to end."
            ),
            1,
        ),
    };
    Refused::new(Outcome::TenantLimited, error)
}

/// The request is not sent again.
pub fn given_up(reason: GiveUp, model: &str) -> Refused {
    let (code, message) = match reason {
        GiveUp::ProbableCause => (
            PROBABLE_CAUSE,
            format!(
                "Two processes of {model} ended while they worked on this request, so it is the probable cause and is \
                 not sent again. Change the request, or ask the owner of {model} to look at its engine's log."
            ),
        ),
        GiveUp::Failed => (
            "engine_lost",
            format!(
                "The replicas of {model} that had this request failed before they answered. Nothing was sent; try again."
            ),
        ),
    };
    let error = ApiError::new(502, ErrorKind::Internal, code, message);
    Refused::new(Outcome::EngineFailed, if reason == GiveUp::Failed { error.with_retry_after(1) } else { error })
}

/// The last event of a stream whose replica went away.
pub fn stream_broken(model: &str) -> ApiError {
    ApiError::new(
        502,
        ErrorKind::Internal,
        "stream_broken",
        format!(
            "The replica of {model} that wrote this answer was lost. What was sent is valid but not complete; ask again."
        ),
    )
}

fn expected(ready_in: Option<Duration>) -> String {
    ready_in.map_or(String::new(), |left| format!(" By its last starts one is expected in {} s.", whole_seconds(left)))
}

fn whole_seconds(wait: Duration) -> u32 {
    (wait.as_secs_f64().ceil() as u32).max(1)
}

fn seconds(wait: Duration) -> String {
    if wait < Duration::from_secs(1) { format!("{} ms", wait.as_millis()) } else { format!("{} s", wait.as_secs()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::facts::{DeploymentFact, Facts, QuotaFact, SecretKeys};
    use crate::world::snapshot::World;

    fn deployment() -> std::sync::Arc<Deployment> {
        let quota = QuotaFact { name: "t".into(), namespaces: vec!["a".into()], ..QuotaFact::default() };
        let fact = DeploymentFact { namespace: "a".into(), model: "m".into(), ..DeploymentFact::default() };
        let mut facts = Facts { quotas: vec![quota], deployments: vec![fact], ..Facts::default() };
        facts.secrets.insert("k".into(), SecretKeys::default());
        World::build(&facts).deployments[0].clone()
    }

    #[test]
    fn client_comes_again_when_a_replica_is_expected() {
        let waited = Duration::from_secs(30);
        let starting = Unplaced::NoReplica { waited, starting: true };
        let broken = Unplaced::NoReplica { waited, starting: false };
        let full = Unplaced::HoldFull { limit: 2 };
        for (reason, ready_in_ms, expect) in [
            (starting, None, 5),
            (starting, Some(41_200), 42),
            (starting, Some(1), 1),
            (full, None, 5),
            (full, Some(12_000), 12),
            (Unplaced::TenantPart, None, 2),
            (Unplaced::TenantPart, Some(12_000), 12),
            (Unplaced::TenantQueueFull { limit: 1 }, Some(12_000), 12),
            (broken, Some(12_000), 5),
            (Unplaced::QueueTimeout { waited }, Some(12_000), 5),
        ] {
            let refused = unplaced(reason, &deployment(), ready_in_ms.map(Duration::from_millis));
            assert_eq!(refused.error.retry_after, Some(expect), "{reason:?}, {ready_in_ms:?}");
        }
        let words = unplaced(full, &deployment(), Some(waited)).error.message;
        assert!(words.ends_with("By its last starts one is expected in 30 s."), "{words}");
    }
}
