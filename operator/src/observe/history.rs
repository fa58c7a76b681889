//! The load of earlier days, from a Prometheus where one is configured: the forecast multiplies the present load by how
//! it grew at this minute then.
//!
//! Once a minute, for all deployments at once. Where the answer is missing, late or makes no sense, nothing is known of
//! those days and nothing else changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_http_query::Client;
use prometheus_http_query::response::PromqlResult;
use stowage_planner::snapshot::{DeploymentId, History};
use stowage_telemetry::catalog::operator::OFFERED_LOAD;

/// How often it is asked.
const PERIOD: Duration = Duration::from_secs(60);
/// For one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// What is known is used for so long.
const KEPT: Duration = Duration::from_secs(300);
/// So many seconds ago a minute was like this one: the last days, and the last weeks.
const BACK_S: [i64; 4] = [86_400, 2 * 86_400, 7 * 86_400, 14 * 86_400];
/// How far ahead of the present minute is asked, in seconds: a deployment takes the first that its start is no longer than.
const AHEAD_S: [u64; 4] = [30, 60, 120, 300];
/// Series that are taken of one answer.
const MAX_SERIES: usize = 20_000;
/// Where no start was measured.
const ASSUMED_START: Duration = Duration::from_secs(60);

/// One number for each of [`BACK_S`].
type Then = [Option<f64>; BACK_S.len()];

/// One deployment's load of earlier days, in replicas that would be busy all the time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Earlier {
    now: Then,
    /// For each of [`AHEAD_S`].
    ahead: [Then; AHEAD_S.len()],
}

impl Earlier {
    /// What the forecast of a deployment uses that starts a replica in so long. `None`: no day has both minutes.
    pub fn history(&self, start: Option<Duration>) -> Option<History> {
        let start = start.unwrap_or(ASSUMED_START).as_secs();
        let at = AHEAD_S.iter().position(|ahead| start <= *ahead).unwrap_or(AHEAD_S.len() - 1);
        let both: Vec<(f64, f64)> =
            self.now.iter().zip(&self.ahead[at]).filter_map(|(now, ahead)| Some(((*now)?, (*ahead)?))).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| both.iter().map(of).sum::<f64>() / both.len() as f64;
        (!both.is_empty()).then(|| History { now: mean(|b| b.0), ahead: mean(|b| b.1), periods: both.len() as u32 })
    }
}

/// Of all deployments.
pub type EarlierLoads = BTreeMap<DeploymentId, Earlier>;

/// What is known, and since when.
#[derive(Debug, Default)]
pub struct Histories(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: Arc<EarlierLoads>,
    at: Option<Instant>,
    /// Set once something is read; before, it has no age.
    asked: Option<Instant>,
}

impl Histories {
    pub fn known(&self, now: Instant) -> Arc<EarlierLoads> {
        let state = self.lock();
        let fresh = state.at.is_some_and(|at| now.saturating_duration_since(at) <= KEPT);
        if fresh { state.known.clone() } else { Arc::default() }
    }

    /// Since the last answer, or since the first question; `None`: nothing is configured.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        state.at.or(state.asked).map(|at| now.saturating_duration_since(at))
    }

    /// Asks for ever.
    pub async fn follow(self: Arc<Self>, prometheus: Client) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tick.tick().await;
            self.lock().asked.get_or_insert_with(Instant::now);
            match read(&prometheus, Timestamp::now().as_second()).await {
                Ok(known) => {
                    let mut state = self.lock();
                    (state.known, state.at) = (Arc::new(known), Some(Instant::now()));
                    failing = false;
                }
                Err(error) if failing => tracing::debug!(error, "no load of earlier days"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(error, "no load of earlier days from Prometheus: forecasts do without it");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that is known at this second, a Unix time.
pub async fn read(prometheus: &Client, now: i64) -> Result<EarlierLoads, String> {
    let mut loads = EarlierLoads::new();
    for (back, before) in BACK_S.into_iter().enumerate() {
        for (id, load) in ask(prometheus, now - before).await? {
            loads.entry(id).or_default().now[back] = Some(load);
        }
        for (at, ahead) in AHEAD_S.into_iter().enumerate() {
            for (id, load) in ask(prometheus, now - before + ahead as i64).await? {
                loads.entry(id).or_default().ahead[at][back] = Some(load);
            }
        }
    }
    Ok(loads)
}

/// The load of each deployment around this second. Only the leader exports it. Where several did, one of them may be a pod of
/// anybody that says it is the operator, so that none counts.
async fn ask(prometheus: &Client, at: i64) -> Result<Vec<(DeploymentId, f64)>, String> {
    let (load, by) = (format!("avg_over_time({}[2m])", OFFERED_LOAD.name), "by (namespace, deployment)");
    let query = format!("sum {by} ({load}) unless count {by} ({load}) > 1");
    let answer = prometheus.query(query).at(at).timeout(LIMIT.as_millis() as i64).get();
    let answer =
        tokio::time::timeout(LIMIT, answer).await.map_err(|_| format!("no answer within {} s", LIMIT.as_secs()))?;
    Ok(series(&answer.map_err(|err| err.to_string())?))
}

/// Loads that make sense, of series that name a deployment.
fn series(answer: &PromqlResult) -> Vec<(DeploymentId, f64)> {
    let vector = answer.data().as_vector().map(Vec::as_slice).unwrap_or_default();
    let one = |series: &prometheus_http_query::response::InstantVector| {
        let label = |name: &str| series.metric().get(name).filter(|value| !value.is_empty()).cloned();
        let load = series.sample().value();
        let makes_sense = load.is_finite() && (0.0..1e6).contains(&load);
        makes_sense.then_some(())?;
        Some((DeploymentId { namespace: label("namespace")?, name: label("deployment")? }, load))
    };
    vector.iter().filter_map(one).take(MAX_SERIES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minute_ahead_is_the_first_that_a_start_is_no_longer_than() {
        let mut earlier = Earlier { now: [Some(1.0), Some(3.0), None, Some(2.0)], ..Earlier::default() };
        for (at, load) in [4.0, 5.0, 6.0, 7.0].into_iter().enumerate() {
            earlier.ahead[at] = [Some(load), Some(load), Some(99.0), None];
        }
        for (start, ahead) in
            [(Some(5), 4.0), (Some(30), 4.0), (Some(31), 5.0), (None, 5.0), (Some(300), 7.0), (Some(9_000), 7.0)]
        {
            let history = earlier.history(start.map(Duration::from_secs)).unwrap();
            assert_eq!((history.now, history.ahead, history.periods), (2.0, ahead, 2), "{start:?}");
        }
        assert_eq!(Earlier::default().history(None), None);
    }
}
