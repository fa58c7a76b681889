//! Events on InferenceDeployments: one per decision, when it is taken, not each time we look.
//!
//! The event's name follows from the decision record's id, so an event that was written before a
//! crash is not written again. Events are for people: a failed write is logged and forgotten.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as KubeEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use sha2::{Digest, Sha256};
use stowage_crds::conditions::reasons;
use stowage_crds::names::{API_VERSION, FIELD_MANAGER};
use stowage_planner::report::{DecisionRecord, RecordAction, RecordKind};

use super::backoff::Failing;
use super::case::Case;
use super::refusal::Obstacle;
use crate::execute::write::{WriteError, Writer};
use crate::serve::metrics::trigger;

/// Longest note that the API server takes.
const MAX_NOTE: usize = 1024;

/// An event that is to be written.
#[derive(Debug, Clone)]
pub struct Event(KubeEvent);

impl Event {
    pub fn of(case: &Case, record: &DecisionRecord) -> Self {
        let warning = matches!(record.action, RecordAction::Wait)
            || matches!(record.kind, RecordKind::Evict | RecordKind::Health);
        Self(KubeEvent {
            action: Some(format!("{:?}", record.action)),
            reason: Some(trigger(record)),
            note: Some(shortened(&record.message)),
            type_: Some(if warning { "Warning" } else { "Normal" }.into()),
            event_time: Some(MicroTime(
                i64::try_from(record.time).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default(),
            )),
            ..blank(case, &record.id)
        })
    }
}

impl Event {
    /// A write that the API server does not carry out, once per distinct reason.
    pub fn refused(case: &Case, obstacle: &Obstacle, now: Timestamp) -> Self {
        let reason = if obstacle.failing == Failing::Clash { reasons::NAME_CLASH } else { reasons::API_REFUSED };
        Self::warning(case, reason, &obstacle.key(), &obstacle.message, now)
    }

    /// A warning that is emitted once for this deployment and key.
    pub fn warning(case: &Case, reason: &str, key: &str, message: &str, now: Timestamp) -> Self {
        let id = format!("{} {reason} {key}", case.stored.uid());
        Self(KubeEvent {
            action: Some("Reconcile".into()),
            reason: Some(reason.to_owned()),
            note: Some(shortened(message)),
            type_: Some("Warning".into()),
            event_time: Some(MicroTime(now)),
            ..blank(case, &id)
        })
    }
}

/// An event on the deployment. Its name follows from the id, so that it is written once.
fn blank(case: &Case, id: &str) -> KubeEvent {
    KubeEvent {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", case.id.name, digest(id))),
            namespace: Some(case.id.namespace.clone()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(API_VERSION.into()),
            kind: Some("InferenceDeployment".into()),
            name: Some(case.id.name.clone()),
            namespace: Some(case.id.namespace.clone()),
            uid: Some(case.stored.uid().to_owned()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(format!("stowage.dev/{FIELD_MANAGER}")),
        reporting_instance: Some(FIELD_MANAGER.into()),
        ..KubeEvent::default()
    }
}

/// Writes the events; those that exist already were written before.
pub async fn emit(writer: &Writer, namespace: &str, events: Vec<Event>) {
    let api: Api<KubeEvent> = Api::namespaced(writer.client(), namespace);
    for Event(event) in events {
        match writer.create(&api, &event).await {
            Ok(_) | Err(WriteError::AlreadyExists) => {}
            Err(err) => tracing::debug!(%err, note = event.note, "an event was not written"),
        }
    }
}

fn digest(id: &str) -> String {
    Sha256::digest(id).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn shortened(text: &str) -> String {
    if text.len() <= MAX_NOTE {
        return text.to_owned();
    }
    let end = (0..=MAX_NOTE - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}
