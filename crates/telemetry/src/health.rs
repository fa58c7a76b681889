//! `/healthz` and `/readyz`: is this process alive, and should traffic come here?
//!
//! Both answer 200 with `ok`, or 503 with the reason in one line, because the reason ends up in the
//! kubelet's event. The two differ in what a failure costs: not ready takes the pod out of routing,
//! not healthy restarts it. So only what a restart cures belongs in `healthz`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

/// A check, called on each probe. It must not block: keep the answer elsewhere and read it here.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Whether this process wants traffic, and if not, why. Starts as not ready.
#[derive(Debug, Clone)]
pub struct Readiness(watch::Sender<Option<String>>);

impl Default for Readiness {
    fn default() -> Self {
        Self::starting("starting")
    }
}

impl Readiness {
    /// Not ready yet, for this reason.
    pub fn starting(reason: &str) -> Self {
        Self(watch::Sender::new(Some(reason.to_owned())))
    }

    pub fn set_ready(&self) {
        self.0.send_replace(None);
    }

    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.0.send_replace(Some(reason.into()));
    }

    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Follows the changes; `None` is ready, otherwise the reason.
    pub fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }

    /// This readiness as a [`Check`].
    pub fn check(&self) -> Check {
        let this = self.clone();
        Arc::new(move || this.0.borrow().clone().map_or(Ok(()), Err))
    }
}

/// When a loop last came round, for a `healthz` that fails once the loop hangs: only a restart ends that.
#[derive(Debug, Clone)]
pub struct Heartbeat(watch::Sender<Instant>);

impl Default for Heartbeat {
    /// Beats now.
    fn default() -> Self {
        Self(watch::Sender::new(Instant::now()))
    }
}

impl Heartbeat {
    pub fn beat(&self) {
        self.0.send_replace(Instant::now());
    }

    /// Fails once the last beat is older than `limit`. `of`: what the loop makes, for the reason.
    pub fn check(&self, limit: Duration, of: &'static str) -> Check {
        let this = self.clone();
        Arc::new(move || {
            let silent = this.0.borrow().elapsed();
            if silent <= limit { Ok(()) } else { Err(format!("no {of} for {} s", silent.as_secs())) }
        })
    }
}

/// A check that always passes: for processes whose answering is all the health there is.
pub fn always() -> Check {
    Arc::new(|| Ok(()))
}

/// The two probe routes, for any router state.
pub fn router<S: Clone + Send + Sync + 'static>(healthz: Check, readyz: Check) -> Router<S> {
    Router::new()
        .route("/healthz", get(async move || answer(&healthz)))
        .route("/readyz", get(async move || answer(&readyz)))
}

fn answer(check: &Check) -> Response {
    match check() {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_starts_false_with_a_reason_and_follows_changes() {
        let ready = Readiness::starting("loading the model");
        let check = ready.check();
        assert_eq!(check(), Err("loading the model".to_owned()));
        ready.set_ready();
        assert!(ready.is_ready());
        assert_eq!(check(), Ok(()));
        ready.set_not_ready("draining");
        assert_eq!(check(), Err("draining".to_owned()));
    }

    #[test]
    fn loop_that_hangs_is_not_healthy() {
        let heartbeat = Heartbeat::default();
        let (patient, impatient) =
            (heartbeat.check(Duration::from_secs(60), "plan"), heartbeat.check(Duration::ZERO, "plan"));
        while heartbeat.0.borrow().elapsed().is_zero() {}
        assert_eq!((patient(), impatient()), (Ok(()), Err("no plan for 0 s".to_owned())));
    }

    #[test]
    fn a_failing_check_is_503_with_its_reason() {
        let failing: Check = Arc::new(|| Err("engine thread stuck".to_owned()));
        assert_eq!(answer(&failing).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer(&always()).status(), StatusCode::OK);
    }
}
