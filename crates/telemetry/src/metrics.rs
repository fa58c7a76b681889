//! The `/metrics` route over a `prometheus-client` registry, and the buckets we share.
//!
//! Metrics are registered once at start, with the prefix `stowage`, and handed to the parts that
//! count. `prometheus-client` writes OpenMetrics; scrapers that do not ask for it (curl, promtool)
//! get the older text format, where a counter's name carries `_total` in its HELP and TYPE too.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::Context as _;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;

pub use prometheus_client::registry::{Registry, Unit};

/// An empty registry with our prefix: register `x`, scrape `stowage_x`.
pub fn registry() -> Registry {
    Registry::with_prefix("stowage")
}

/// Seconds from 1 ms to about 2 min: request durations, time to first token.
pub const LATENCY_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Seconds from 0.25 ms to 1 s: one step, one token, one decision.
pub const STEP_SECONDS: [f64; 12] = [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// A histogram with the given upper bounds, for `Family::new_with_constructor` as well.
pub fn histogram(bounds: &[f64]) -> prometheus_client::metrics::histogram::Histogram {
    prometheus_client::metrics::histogram::Histogram::new(bounds.iter().copied())
}

/// Metrics that change together: no page shows them half changed.
#[derive(Clone, Debug, Default)]
pub struct Together(Arc<RwLock<()>>);

impl Together {
    /// Held while they change.
    pub fn change(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `GET /metrics`, for any router state. Registration ends here: the registry is shared from now on.
pub fn router<S: Clone + Send + Sync + 'static>(registry: Registry) -> Router<S> {
    router_of(registry, Together::default())
}

/// The same, of metrics of which some change together.
pub fn router_of<S: Clone + Send + Sync + 'static>(registry: Registry, together: Together) -> Router<S> {
    let registry = Arc::new(registry);
    Router::new().route("/metrics", get(async move |headers: HeaderMap| page(&registry, &together, &headers)))
}

/// Serves these routes alone at an address of their own, so that a scraper needs to reach nothing else of the process.
/// An empty address: nowhere.
pub async fn serve(address: &str, metrics: Router) -> anyhow::Result<()> {
    if address.is_empty() {
        return Ok(());
    }
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen for scrapers on {address} (STOWAGE_METRICS_LISTEN)"))?;
    tokio::spawn(async move { axum::serve(listener, metrics).await });
    Ok(())
}

fn page(registry: &Registry, together: &Together, headers: &HeaderMap) -> Response {
    let mut text = String::new();
    let encoded = {
        let _whole = together.read();
        encode(&mut text, registry)
    };
    if encoded.is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n").into_response();
    }
    let accepts_open = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let (kind, text) = if accepts_open {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", to_prometheus_text(&text))
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// OpenMetrics to Prometheus text 0.0.4: metadata lines name the sample (`_total`, `_info`), and
/// what only OpenMetrics has (`# UNIT`, `# EOF`) is dropped.
pub fn to_prometheus_text(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    // HELP comes before TYPE, and only TYPE tells which name the HELP line needs.
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').or(Some((rest, "")));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take().filter(|(helped, _)| *helped == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    fn sample() -> Registry {
        let mut registry = registry();
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        registry.register("preemptions", "Requests preempted", counter);
        registry.register("running", "Requests running", Gauge::<i64>::default());
        let seconds = histogram(&STEP_SECONDS);
        seconds.observe(0.002);
        registry.register_with_unit("step_duration", "Time of a step", Unit::Seconds, seconds);
        registry
    }

    fn scrape(accept: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        page(&sample(), &Together::default(), &headers)
    }

    #[test]
    fn plain_scrapers_get_counters_whose_metadata_names_the_sample() {
        let mut open = String::new();
        encode(&mut open, &sample()).unwrap();
        let text = to_prometheus_text(&open);
        assert!(text.contains("# HELP stowage_preemptions_total Requests preempted."), "{text}");
        assert!(text.contains("# TYPE stowage_preemptions_total counter\nstowage_preemptions_total 3\n"), "{text}");
        assert!(text.contains("# TYPE stowage_running gauge"), "{text}");
        assert!(text.contains("# TYPE stowage_step_duration_seconds histogram"), "{text}");
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }

    #[test]
    fn the_content_type_follows_what_was_asked_for() {
        let kind = |response: &Response| response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        assert!(kind(&scrape(None)).starts_with("text/plain"));
        assert!(
            kind(&scrape(Some("application/openmetrics-text;version=1.0.0"))).starts_with("application/openmetrics")
        );
    }
}
