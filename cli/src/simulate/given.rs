//! What is simulated: from the manifest, then from the options, which win.

use std::time::Duration;

use stowage_contracts::load::Coefficients;
use stowage_crds::inference_deployment::ScalingMode;
use stowage_crds::quantity::{parse_duration, parse_micros};
use stowage_crds::validate::{AcceptedAccelerator, AcceptedScaling, AcceptedVariant};
use stowage_planner::render;
use stowage_planner::snapshot::{Accelerator, CostOrigin};
use stowage_simulator::contender::Contender;
use stowage_simulator::record::Scenario;
use stowage_simulator::run::Protocol;
use stowage_simulator::site::{START_MS, Subject};

use super::Args;
use super::manifest::Manifest;

/// A start that takes longer than a day is a mistake.
const MAX_COLD_START: Duration = Duration::from_secs(24 * 3600);
const MAX_COEFFICIENT: f64 = 1e6;
/// What the API server accepts.
const MAX_REPLICAS: u32 = 1000;
const MAX_GPUS: u32 = 64;

/// What is simulated, and what must be said about it.
pub(super) struct Given {
    pub name: String,
    pub scenario: Scenario,
    /// Of a replica per hour: millionths, and the currency if one is known.
    pub price: Option<(u64, String)>,
    /// What the reader should know of these inputs.
    pub notes: Vec<String>,
}

impl Given {
    /// `compared` may need more places than the deployment.
    pub fn read(args: &Args, manifest: Option<&Manifest>, compared: &[Contender]) -> Result<Self, String> {
        let mut notes = Vec::new();
        let scaling = scaling(args, manifest, &mut notes)?;
        let cold_start = seconds("--cold-start", &args.cold_start)?;
        let scaling = stowage_translate::scaling(&scaling, u32::MAX, Some(cold_start));
        let replicas = manifest.map_or(1, |manifest| manifest.deployment.replicas);
        if scaling.max_replicas.max(replicas) > MAX_REPLICAS {
            return Err(format!("more than {MAX_REPLICAS} replicas: a deployment cannot have so many"));
        }
        let (cost, origin) = cost(args, &mut notes)?;
        let fixed = compared.iter().map(|contender| contender.replicas_at_start(0)).max().unwrap_or(0);
        let objective = scaling.objectives.ok_or("the deployment has no objectives")?;
        let protocol = Protocol {
            cost,
            objective,
            kv_capacity: args.kv_tokens,
            cold_start: cold_start.as_secs_f64(),
            max_replicas: fixed.max(scaling.max_replicas.max(replicas) as usize),
            warm_up: 0.0,
            ..Protocol::published(0.0)
        };
        let variant = variant(manifest, &mut notes);
        if let Accelerator::Gpu { count, .. } = variant.accelerator
            && count > MAX_GPUS
        {
            return Err(format!("variant {}: more than {MAX_GPUS} GPUs", variant.name));
        }
        let subject = Subject { scaling, replicas, variant, origin, starts_ms: START_MS };
        Ok(Self {
            name: manifest.map_or("a deployment with the defaults", |manifest| &manifest.name).to_owned(),
            scenario: Scenario { protocol, subject, start: args.start.map(|start| start as usize) },
            price: price(args, manifest, &mut notes)?,
            notes,
        })
    }

    /// What a replica takes, as in `1 × h100-80g 20 GiB 40 % SM`.
    pub fn slice(&self) -> String {
        match &self.scenario.subject.variant.accelerator {
            Accelerator::Gpu { class, count, partition } => {
                let memory = partition.memory_bytes().map(|bytes| format!(" {}", render::bytes(bytes)));
                let compute = partition.sm_percent().map(|percent| format!(" {percent} % SM"));
                format!("{count} × {class}{}{}", memory.unwrap_or_default(), compute.unwrap_or_default())
            }
            Accelerator::Cpu { cpu_milli, memory_bytes } => {
                format!("{} CPUs {}", render::gpus(*cpu_milli), render::bytes(*memory_bytes))
            }
        }
    }
}

fn scaling(args: &Args, manifest: Option<&Manifest>, notes: &mut Vec<String>) -> Result<AcceptedScaling, String> {
    let mut scaling = manifest.map(|manifest| manifest.deployment.scaling.clone()).unwrap_or_default();
    match scaling.mode {
        ScalingMode::Active => {}
        ScalingMode::Manual if !args.active => {
            notes.push(
                "scaling.mode is Manual, so the count is spec.replicas; --active shows what Active would do".into(),
            );
        }
        ScalingMode::Manual => notes.push("scaling.mode is Manual; shown is what Active would do".into()),
        ScalingMode::Advisory => notes.push("scaling.mode is Advisory; shown is what Active would do".into()),
    }
    if args.active || scaling.mode == ScalingMode::Advisory {
        scaling.mode = ScalingMode::Active;
    }
    let time = |name: &str, text: &Option<String>| text.as_deref().map(|text| positive(name, text)).transpose();
    scaling.ttft = time("--ttft", &args.ttft)?.unwrap_or(scaling.ttft);
    scaling.itl = time("--itl", &args.itl)?.unwrap_or(scaling.itl);
    scaling.min_replicas =
        args.min_replicas.unwrap_or_else(|| scaling.min_replicas.min(args.max_replicas.unwrap_or(u32::MAX)));
    scaling.max_replicas = args.max_replicas.unwrap_or_else(|| scaling.max_replicas.max(scaling.min_replicas));
    if scaling.min_replicas > scaling.max_replicas {
        return Err(format!(
            "at least {} and at most {} replicas cannot be",
            scaling.min_replicas, scaling.max_replicas
        ));
    }
    Ok(scaling)
}

fn positive(name: &str, text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|e| format!("{name}: {e}"))?;
    if time.is_zero() {
        Err(format!("{name}: a time of zero can never be kept; write for example 800ms"))
    } else {
        Ok(time)
    }
}

/// A number of seconds, or a duration with its unit.
fn seconds(name: &str, text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let time = number.map_or_else(|| parse_duration(text).map_err(|e| format!("{name}: {e}")), Ok)?;
    if time > MAX_COLD_START { Err(format!("{name}: {text} is more than a day")) } else { Ok(time) }
}

fn cost(args: &Args, notes: &mut Vec<String>) -> Result<(Coefficients, CostOrigin), String> {
    let Some(text) = &args.cost else {
        notes.push("the cost of a step and the KV cache are built-in figures of Llama-3.1-70B FP8 on four H100; --cost and --kv-tokens give those of your engine (GET /stowage/v1/load)".into());
        return Ok((Coefficients::REFERENCE, CostOrigin::Reference));
    };
    let wrong = || format!("--cost {text:?}: give four numbers above zero, a,d,k,p; zero would be unknown, not free");
    let numbers: Vec<f64> = text.split(',').map_while(|part| part.trim().parse().ok()).collect();
    let &[a, d, k, p] = numbers.as_slice() else { return Err(wrong()) };
    if numbers.len() != text.split(',').count() || !numbers.iter().all(|n| *n > 0.0 && *n <= MAX_COEFFICIENT) {
        return Err(wrong());
    }
    Ok((Coefficients { a, d, k, p }, CostOrigin::Table))
}

/// The first one: a run has one shape of replicas.
fn variant(manifest: Option<&Manifest>, notes: &mut Vec<String>) -> stowage_planner::snapshot::Variant {
    let variants = manifest.map(|manifest| manifest.deployment.variants.as_slice()).unwrap_or_default();
    if let [first, _, ..] = variants {
        notes.push(format!("of {} variants, all replicas are of the first, {}", variants.len(), first.name));
    }
    let whole = || AcceptedVariant {
        name: "gpu".to_owned(),
        accelerator: AcceptedAccelerator::Gpu {
            class: "GPU".to_owned(),
            count: 1,
            memory_bytes: None,
            estimated: false,
            sm_percent: None,
        },
    };
    stowage_translate::variant(&variants.first().cloned().unwrap_or_else(whole))
}

fn price(args: &Args, manifest: Option<&Manifest>, notes: &mut Vec<String>) -> Result<Option<(u64, String)>, String> {
    if let Some(text) = &args.price {
        return Ok(Some((parse_micros(text).map_err(|e| format!("--price: {e}"))?, String::new())));
    }
    match manifest.map(|manifest| &manifest.price) {
        Some(Ok(price)) => Ok(Some(price.clone())),
        Some(Err(why)) => {
            notes.push(format!("no cost is shown: {why}; --price gives that of a replica per hour"));
            Ok(None)
        }
        None => Ok(None),
    }
}
