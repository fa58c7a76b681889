//! What others read of an operator: the metrics page, as the catalog lists it, and how large it gets; the decision log.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/objects.rs"]
mod objects;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use stowage_operator::observe::view::View;
use stowage_operator::serve::decisions::{Annotation, DecisionLog, Logged, Query};
use stowage_operator::serve::metrics::Metrics;
use stowage_operator::serve::metrics::startup::Started;
use stowage_operator::translate::build;
use stowage_operator::translate::memory::Memory;
use stowage_operator::translate::snapshot::replicas::millis;
use stowage_planner::report::RecordAction;
use stowage_planner::snapshot::{Policy, ReplicaId};
use stowage_planner::{DecisionReport, Snapshot};
use stowage_telemetry::catalog::{Process, page};
use stowage_telemetry::metrics::{Registry, to_prometheus_text};

const QUICKSTART: &str = include_str!("golden/quickstart.in.yaml");

fn planned(view: &View) -> (Snapshot, DecisionReport) {
    let built = build(view, &Memory::default(), 1);
    let (_, report) = stowage_planner::plan(&built.snapshot, &Policy::default(), millis(view.now));
    (built.snapshot, report)
}

fn shown(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    to_prometheus_text(&text)
}

fn started() -> Started {
    let deployment = stowage_planner::snapshot::DeploymentId::new("team-a", "chat");
    Started {
        replica: stowage_planner::snapshot::ReplicaId { deployment, index: 0, incarnation: 1 },
        ready_ms: 0,
        took: Duration::from_secs(10),
        stages: vec![("schedule", Duration::from_secs(1)), ("pull", Duration::from_secs(9))],
        predicted: Some(Duration::from_secs(12)),
    }
}

#[test]
fn page_is_as_the_catalog_lists_and_a_standby_shows_no_plan() {
    let (snapshot, report) = planned(&objects::view(QUICKSTART));
    let (metrics, registry) = Metrics::new();
    metrics.planned(Duration::from_millis(2), 1);
    metrics.ages([("pods", Duration::from_secs(3))]);
    metrics.plan_outcome("checked");
    metrics.write_outcome("ok");
    metrics.started(&started());
    report.records.iter().for_each(|record| metrics.decided(record));
    let start = Instant::now();
    metrics.leads(&snapshot, &report, start);
    metrics.leads(&snapshot, &report, start + Duration::from_secs(60));
    let text = shown(&registry);
    page::assert_clean(Process::Operator, &text);
    // No rule decides here, and nothing is promised yet in this snapshot.
    let absent = page::missing(Process::Operator, &text);
    let rule = ["stowage_offered_load_replicas", "stowage_forecast_load_replicas", "stowage_capacity_replicas"];
    let rest = ["stowage_scaling_limited", "stowage_predicted_ready_seconds", "stowage_cost_total"];
    assert!(absent.iter().all(|name| rule.contains(name) || rest.contains(name)), "{absent:?}");
    assert!(text.contains("stowage_desired_replicas{namespace="), "{text}");
    metrics.stands_by();
    let text = shown(&registry);
    for name in ["stowage_desired_replicas{", "stowage_tenant_gpus{", "stowage_cluster_gpus{"] {
        assert!(!text.contains(name), "{name} in\n{text}");
    }
}

#[test]
fn page_of_a_thousand_deployments_and_more_stays_bounded() {
    let mut view = objects::view(QUICKSTART);
    let (key, one) = view.deployments.iter().find(|(key, _)| key.1 == "chat").unwrap();
    let (namespace, one) = (key.0.clone(), one.as_ref().clone());
    view.deployments.clear();
    for n in 0..1100 {
        let mut next = one.clone();
        next.meta.name = Some(format!("one-{n:04}"));
        next.meta.uid = Some(format!("7f1d3c1e-0000-4000-8000-{n:012}"));
        if let Ok(spec) = &mut next.spec {
            spec.model.name = None;
        }
        view.deployments.insert((namespace.clone(), format!("one-{n:04}")), Arc::new(next));
    }
    let (snapshot, report) = planned(&view);
    let (metrics, registry) = Metrics::new();
    metrics.leads(&snapshot, &report, Instant::now());
    let start = Instant::now();
    let text = shown(&registry);
    println!("{} bytes, {} series, {:?}", text.len(), page::series(&text).values().sum::<usize>(), start.elapsed());
    let series = page::series(&text);
    assert_eq!(series["stowage_desired_replicas"], 1001, "1,000 deployments, and the others as one");
    assert!(text.contains(r#"stowage_wanted_replicas{namespace="other",deployment="other"} "#));
    assert!(text.len() < 5_000_000, "{} bytes", text.len());
}

/// The deployments that the plan creates replicas of, by the records of their creation.
fn created(found: &[Logged]) -> Vec<&Logged> {
    found.iter().filter(|logged| logged.record.action == RecordAction::Create).collect()
}

#[test]
fn decision_is_kept_once_and_has_its_outcome_beside_what_was_predicted() {
    let (_, mut report) = planned(&objects::view(QUICKSTART));
    for deployment in &mut report.deployments {
        deployment.prediction.ready_in_ms = Some(12_000);
    }
    let log = DecisionLog::default();
    let fresh = log.take(&report);
    assert!(!created(&fresh).is_empty() && log.take(&report).is_empty(), "the same plan decides nothing new");
    let replica = created(&fresh)[0].record.replica.clone().unwrap();
    let logged = log.happened(&Started { replica: replica.clone(), ready_ms: 7_000, ..started() }).unwrap();
    assert_eq!(logged.prediction.unwrap().ready_in_ms, Some(12_000));
    let line = serde_json::to_value(&logged).unwrap();
    assert_eq!((&line["id"], &line["outcome"]["readyInMs"]), (&logged.record.id.clone().into(), &10_000.into()));
    let kept = log.find(Query::default());
    assert_eq!(kept.len(), fresh.len(), "the outcome is in the record that is there");
    assert_eq!(kept.iter().filter(|logged| logged.outcome.is_some()).count(), 1);
    let mark = Annotation::from(&logged);
    assert_eq!((mark.time, mark.time_end), (logged.record.time, Some(7_000)));
    assert_eq!((mark.tags[1].as_str(), mark.tags[3].as_str()), ("Create", logged.record.object.to_string().as_str()));
    let unknown = Started { replica: ReplicaId { index: 99, ..replica }, ..started() };
    assert!(log.happened(&unknown).is_none());
}

#[test]
fn records_are_found_by_time_namespace_and_object() {
    let (_, report) = planned(&objects::view(QUICKSTART));
    let log = DecisionLog::default();
    let all = log.take(&report).len();
    let (time, object) = (report.records[0].time, report.records[0].object.clone());
    let name = object.to_string();
    let check = |query: Query<'_>, want: bool| assert_eq!(log.find(query).len() == all, want, "{query:?}");
    let every = Query::default();
    check(every, true);
    check(Query { since: time, ..every }, true);
    check(Query { since: time + 1, ..every }, false);
    check(Query { until: Some(time), ..every }, false);
    check(Query { until: Some(time + 1), ..every }, true);
    check(Query { namespace: Some("elsewhere"), ..every }, false);
    assert!(!log.find(Query { namespace: Some(&object.namespace), object: Some(&name), ..every }).is_empty());
}

#[test]
fn decisions_without_end_in_one_namespace_leave_others_theirs() {
    let (_, report) = planned(&objects::view(QUICKSTART));
    let log = DecisionLog::default();
    log.take(&report);
    let namespace = report.records[0].object.namespace.clone();
    let of = |namespace: &str| log.find(Query { namespace: Some(namespace), ..Query::default() }).len();
    let before = of(&namespace);
    let mut noisy = report.clone();
    noisy.records.truncate(1);
    noisy.records[0].object.namespace = "noisy".into();
    for n in 0..10_050 {
        noisy.records[0].fingerprint = n;
        log.take(&noisy);
    }
    assert!(before > 0);
    assert_eq!(of(&namespace), before);
    assert_eq!(log.find(Query::default()).len(), 10_000);
}
