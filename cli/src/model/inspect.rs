//! What `model inspect` prints.

use serde::Serialize;
use stowage_crds::names::MEMORY_STEP_BYTES;
use stowage_crds::quantity::bytes_quantity;
use stowage_engine_models::inspect::{Needs, Served};
use stowage_engine_models::{Memory, chain};

use super::source::Found;
use crate::out::{Format, Paint, Table, Tone, machine};

/// Context lengths that are shown where none is asked for, below the model's own.
const CONTEXTS: [usize; 4] = [2048, 8192, 32_768, 131_072];

/// What programs read.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    source: &'a str,
    format: &'a str,
    name: Option<&'a str>,
    architecture: &'a str,
    parameters: u64,
    types: &'a std::collections::BTreeMap<String, u64>,
    context_len: Option<u64>,
    chat_template: bool,
    licence: Option<&'a str>,
    file_bytes: u64,
    /// The field of a deployment's source that names exactly this, and its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned: Option<std::collections::BTreeMap<&'a str, &'a str>>,
    /// Why the bundled engine refuses it; absent: it does not.
    refused: Option<String>,
    memory: Vec<Estimate>,
}

/// The memory of so many sequences of a context, in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Estimate {
    context_len: usize,
    sequences: usize,
    #[serde(flatten)]
    parts: Memory,
    /// What to write as a variant's `memory`.
    memory: String,
}

/// What is to be estimated.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Empty: some usual ones.
    pub contexts: &'a [usize],
    pub sequences: usize,
}

pub fn render(source: &str, found: &Found, asked: Asked<'_>, format: Option<Format>, paint: Paint) -> String {
    let Found { facts, pinned } = found;
    let report = Report {
        source,
        format: facts.format.name(),
        name: facts.name.as_deref(),
        architecture: &facts.architecture,
        parameters: facts.parameters,
        types: &facts.types,
        context_len: facts.context_len,
        chat_template: facts.chat_template,
        licence: facts.licence.as_deref(),
        file_bytes: facts.file_bytes,
        pinned: pinned.as_ref().map(|(field, value)| [(*field, value.as_str())].into()),
        refused: facts.engine.as_ref().err().map(|e| chain(e)),
        memory: facts.engine.as_ref().map(|needs| estimates(needs, asked)).unwrap_or_default(),
    };
    machine(format, &report).unwrap_or_else(|| text(&report, asked.sequences, paint))
}

fn estimates(needs: &Needs, asked: Asked<'_>) -> Vec<Estimate> {
    let Asked { contexts, sequences } = asked;
    let own = needs.context_len();
    let mut lengths: Vec<usize> =
        if contexts.is_empty() { CONTEXTS.into_iter().chain([own]).collect() } else { contexts.to_vec() };
    lengths.retain(|length| (1..=own).contains(length));
    lengths.sort_unstable();
    lengths.dedup();
    let estimate = |context_len| {
        let parts = needs.memory(Served { sequences, ..Served::one(context_len) });
        Estimate { context_len, sequences, parts, memory: slice(parts.total()) }
    };
    lengths.into_iter().map(estimate).collect()
}

/// A slice's memory that holds these bytes, as a quantity.
pub fn slice(bytes: u64) -> String {
    bytes_quantity(bytes.next_multiple_of(MEMORY_STEP_BYTES)).0
}

fn text(report: &Report<'_>, sequences: usize, paint: Paint) -> String {
    let mut table = Table::default();
    table.row(["model", report.name.unwrap_or("(no name)")]);
    table.row(["file", &format!("{}, {}", report.format, bytes(report.file_bytes))]);
    table.row(["architecture", report.architecture]);
    table.row(["parameters", &parameters(report.parameters)]);
    table.row(["weights", &types(report)]);
    table.row(["context", &report.context_len.map_or("unknown".into(), |n| format!("{n} tokens"))]);
    table.row(["chat template", if report.chat_template { "yes" } else { "no" }]);
    table.row(["licence", report.licence.unwrap_or("not named in the file")]);
    for (field, value) in report.pinned.iter().flatten() {
        table.row([*field, *value]);
    }
    let mut out = table.render("", paint);
    if let Some(why) = &report.refused {
        out += &paint.paint(Tone::Bad, &format!("\nThe bundled engine does not serve it: {why}\n"));
        return out;
    }
    let kept = if sequences == 1 { "one sequence".to_owned() } else { format!("{sequences} sequences") };
    out += &format!("\nMemory in the bundled engine, KV cache of {kept} of the whole context:\n");
    let mut table = Table::default();
    table.row(["CONTEXT", "WEIGHTS", "KV CACHE", "SCRATCH", "TOTAL", "WRITE"]);
    for Estimate { context_len, sequences: _, parts, memory } in &report.memory {
        let cells = [parts.weights, parts.kv, parts.scratch, parts.total()].map(bytes);
        table.row([vec![context_len.to_string()], cells.to_vec(), vec![format!("memory: {memory}")]].concat());
    }
    out += &table.render("", paint);
    out
}

/// The types of the weights, the most frequent first.
fn types(report: &Report<'_>) -> String {
    let mut types: Vec<(&String, &u64)> = report.types.iter().collect();
    types.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    let share = |(name, count): (&String, &u64)| {
        let percent = 100.0 * *count as f64 / report.parameters.max(1) as f64;
        if percent > 99.95 { name.clone() } else { format!("{name} {percent:.1} %") }
    };
    types.into_iter().map(share).collect::<Vec<_>>().join(", ")
}

fn parameters(count: u64) -> String {
    let count = count as f64;
    if count >= 1e9 { format!("{:.2} billion", count / 1e9) } else { format!("{:.1} million", count / 1e6) }
}

fn bytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}
