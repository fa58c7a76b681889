//! From an admitted request to its answer: a place, an attempt, and again until a replica answers.

use std::sync::Arc;
use std::time::Instant;

use http::Response;

use crate::listen::body::HeldBody;
use crate::metrics::{Metrics, Retry};
use crate::outcome::{Outcome, Refused};
use crate::queue::ask::Ask;
use crate::queue::client::EngineClient;
use crate::queue::pool::Pool;
use crate::relay::account::Account;
use crate::relay::answers;
use crate::relay::attempt::{self, Attempt};
use crate::relay::attempts::{Attempts, GiveUp};
use crate::relay::outgoing::Outgoing;
use crate::relay::refusals;
use crate::relay::stream::{self, OutBody, Relay, StreamPatience};
use crate::world::snapshot::Deployment;

/// A request that may be sent to an engine.
pub struct Admitted {
    /// Kept until the answer begins, because a retry sends it again.
    pub held: HeldBody,
    pub deployment: Arc<Deployment>,
    pub pool: Arc<Pool>,
    pub account: Account,
    pub ask: Ask,
    pub out: Outgoing,
}

/// What all exchanges share.
pub struct Exchanges {
    pub client: EngineClient,
    pub metrics: Arc<Metrics>,
    pub patience: StreamPatience,
}

impl Exchanges {
    /// Finds a replica, sends the request until one answers, and hands the answer to the relay. Of a refusal,
    /// the path is the request's.
    pub async fn run(&self, request: Admitted, path: &str) -> Response<OutBody> {
        let Admitted { held: _held, deployment, pool, mut account, mut ask, out } = request;
        let refuse = |account: &mut Account, refused: Refused| {
            account.answered(refused.error.status);
            account.finish(refused.outcome, None);
            answers::refusal(&refused.error, path)
        };
        let mut attempts = Attempts::default();
        loop {
            let since = Instant::now();
            let lease = match pool.acquire(ask.clone(), attempts.tried().to_vec()).await {
                Ok(lease) => lease,
                Err(reason) => {
                    account.spans.unplaced(since);
                    return refuse(&mut account, refusals::unplaced(reason, &deployment, pool.ready_in()));
                }
            };
            account.on_placed();
            account.spans.placed(since, &lease);
            if let Some(reason) = attempts.give_up(|incarnation| pool.has_ended(incarnation)) {
                return refuse(&mut account, refusals::given_up(reason, &deployment.model));
            }
            let traceparent = account.spans.sent(&lease);
            let again = match attempt::attempt(&self.client, &lease, &out, traceparent).await {
                Attempt::Whole { content_type, body } => {
                    account.on_first_byte();
                    return answers::success(content_type, out.stream, stream::whole(body, out.stream, account));
                }
                Attempt::Begun { content_type, first, rest } => {
                    account.on_first_byte();
                    let relay = Relay::new(first, rest, out.stream, lease, account, self.patience);
                    return answers::success(content_type, out.stream, OutBody::Relay(relay));
                }
                Attempt::Refused { status, body, retry_after } => {
                    account.answered(status.as_u16());
                    account.finish(Outcome::EngineRefused, None);
                    return answers::passed_on(status, body, retry_after);
                }
                Attempt::Busy { status, body, retry_after } => {
                    if !pool.has_alternative(&lease.replica) || attempts.is_last_refusal() {
                        account.answered(status.as_u16());
                        account.finish(Outcome::EngineFailed, None);
                        return answers::passed_on(status, body, retry_after);
                    }
                    Retry::Refused
                }
                Attempt::Failed(reason) => reason,
            };
            tracing::info!(
                pod = lease.replica.pod,
                request = account.request_id(),
                reason = again.label(),
                "the request is sent again"
            );
            self.metrics.count_retry(again);
            account.spans.sent_again(again);
            attempts.record(lease.incarnation, again);
            if attempts.is_exhausted() {
                return refuse(&mut account, refusals::given_up(GiveUp::Failed, &deployment.model));
            }
            if again != Retry::Unreachable {
                // Its wait for a replica begins anew; without a connection it has not ended.
                ask.since = Instant::now();
            }
        }
    }
}
