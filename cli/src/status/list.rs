//! All deployments, a line each.

use jiff::Timestamp;
use stowage_crds::InferenceDeployment;
use stowage_crds::conditions::types;

use super::{ready, short_age};
use crate::out::{Paint, Table, Tone};

pub(crate) fn render(
    all: &[InferenceDeployment],
    namespace: Option<&str>,
    wide: bool,
    now: Timestamp,
    paint: Paint,
) -> String {
    if all.is_empty() {
        let place = namespace.map_or("in any namespace".to_owned(), |n| format!("in namespace {n}"));
        return format!("No InferenceDeployment {place}.\n");
    }
    let mut table = Table::default();
    let mut header = vec!["NAME", "MODEL", "READY", "WANTED", "GPUS", "CLASS", "REASON", "COST/H", "AGE"];
    if namespace.is_none() {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.push("MESSAGE");
    }
    table.row(header);
    for d in all {
        let mut cells = cells(d, wide, now);
        let mut reason_at = 6;
        if namespace.is_none() {
            cells.insert(0, d.metadata.namespace.clone().unwrap_or_default());
            reason_at += 1;
        }
        table.row(cells);
        table.tone(reason_at, if ready(d) { Tone::Good } else { Tone::Warn });
    }
    table.render("", paint)
}

fn cells(d: &InferenceDeployment, wide: bool, now: Timestamp) -> Vec<String> {
    let status = d.status.as_ref();
    let summary = status.and_then(|s| s.summary.as_ref());
    let ready = status.and_then(|s| s.conditions.iter().find(|c| c.type_ == types::READY));
    let text =
        |f: fn(&stowage_crds::deployment_status::Summary) -> &String| summary.map(f).cloned().unwrap_or_default();
    let cost = status.and_then(|s| s.cost.as_ref()).map(|c| money(&c.per_hour, &c.currency));
    let mut cells = vec![
        d.metadata.name.clone().unwrap_or_default(),
        text(|s| &s.model),
        text(|s| &s.ready),
        status.map(|s| s.desired_replicas.to_string()).unwrap_or_default(),
        text(|s| &s.gpus),
        text(|s| &s.class),
        ready.map(|c| c.reason.clone()).unwrap_or_else(|| "NoStatusYet".to_owned()),
        cost.unwrap_or_default(),
        short_age(d.metadata.creation_timestamp.as_ref().map(|t| t.0), now),
    ];
    if wide {
        cells.push(ready.map(|c| c.message.clone()).unwrap_or_default());
    }
    cells
}

/// `$0.90` or `0.90 EUR`.
pub(crate) fn money(amount: &str, currency: &str) -> String {
    if currency == "USD" { format!("${amount}") } else { format!("{amount} {currency}") }
}
