//! Why a deployment has the number of replicas that it has, in words.

use crate::demand::{
    Advice, Frozen, Inputs, LoadFigures, Problem, ScaleReason, ScaleVerdict, Signal, Tier, Withdrawn, WithdrawnFor,
};
use crate::explain::units::{age, clock, gpus};
use crate::snapshot::{CostOrigin, ENOUGH_STARTS, StartStages};

/// What decided the number, as one clause.
pub fn why(verdict: &ScaleVerdict) -> String {
    match verdict {
        ScaleVerdict::Manual { replicas } => format!("spec.replicas is {replicas} (scaling.mode Manual)"),
        ScaleVerdict::Deleting => "the deployment is being deleted".to_owned(),
        ScaleVerdict::Active { advice } => decided_by(advice),
        ScaleVerdict::Advisory { replicas, advice } => format!(
            "the count stays at {replicas} (scaling.mode Advisory); Active would have {}: {}",
            advice.wanted,
            decided_by(advice)
        ),
        ScaleVerdict::Frozen { replicas, cause, .. } => {
            format!("the count stays at {replicas}: {}; {}", problem(cause), remedy(cause))
        }
    }
}

/// The lines below it: what was measured, and what became of it. Each with its label.
pub fn details(verdict: &ScaleVerdict) -> Vec<(&'static str, String)> {
    let (ScaleVerdict::Active { advice } | ScaleVerdict::Advisory { advice, .. }) = verdict else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if advice.load.per_replica_milli > 0 {
        lines.push(("load", load(advice)));
    }
    lines.push(("signals", inputs(&advice.inputs)));
    if let Some(withdrawn) = &advice.withdrawn {
        lines.push(("withdrawn", self::withdrawn(withdrawn, advice.wanted)));
    }
    lines
}

fn decided_by(advice: &Advice) -> String {
    let (least, most) = advice.bounds;
    let needed = match &advice.reference {
        Some(variant) => format!("{} of variant {variant}", advice.needed),
        None => advice.needed.to_string(),
    };
    match advice.reason {
        ScaleReason::Load => format!("the forecast load needs {needed}"),
        ScaleReason::Burst => format!("a burst needs {needed}"),
        ScaleReason::Backlog => format!("the load and the work that is late need {needed}"),
        ScaleReason::KvCache => format!("the KV caches are full, which needs {needed}"),
        ScaleReason::Hold => {
            let until = advice.hold.map_or(String::new(), |hold| format!(" until {}", clock(hold.until_ms)));
            format!("the load needs {needed}, and the largest need of the hold window is kept{until}")
        }
        ScaleReason::Running => format!("the forecast load needs {needed}, and the load of the last interval more"),
        ScaleReason::Minimum => format!("the load needs {needed}, minReplicas is {least}"),
        ScaleReason::Maximum => format!("the load needs {needed}, maxReplicas is {most}"),
        ScaleReason::LastReplica => {
            "the last replica stays until no request came for the idle time and none runs".to_owned()
        }
        ScaleReason::NoColdStart => format!(
            "the last replica stays: a cold start takes {}, longer than objectives.ttft and scaling.coldStart.hold allow",
            age(advice.inputs.cold_start_ms)
        ),
        ScaleReason::Idle => "no request came for longer than the idle time".to_owned(),
        ScaleReason::Wake => "a request waits and no replica runs".to_owned(),
        ScaleReason::Asleep => "scaled to zero; the next request starts a replica".to_owned(),
    }
}

fn load(advice: &Advice) -> String {
    let LoadFigures { offered_milli, forecast_milli, growth_milli, burst_milli, room_milli, .. } = advice.load;
    let LoadFigures { per_replica_milli, backlog_ms, .. } = advice.load;
    let earlier = if growth_milli > 1000 {
        format!(" (on earlier days it grew {} times by then)", gpus(growth_milli))
    } else {
        String::new()
    };
    let burst = burst_milli.map_or(String::new(), |burst| format!(", burst {}", gpus(burst)));
    let late = if backlog_ms > 0 { format!(", {} of work late", age(backlog_ms)) } else { String::new() };
    format!(
        "{} busy replicas now, forecast {}{earlier}{burst}; {} per replica and {} replicas of room{late}",
        gpus(offered_milli),
        gpus(forecast_milli),
        gpus(per_replica_milli),
        gpus(room_milli)
    )
}

fn inputs(i: &Inputs) -> String {
    let cached = if i.cached_tokens > 0 { format!(" ({} cached)", i.cached_tokens) } else { String::new() };
    let held = if i.held > 0 { format!(", {} held for a cold start", i.held) } else { String::new() };
    let mut text = format!(
        "{} requests in {}, {} prompt tokens{cached}, {} queued{held} (gateways, {} old)",
        i.arrivals,
        age(i.interval_ms),
        i.input_tokens,
        i.queued_tokens,
        age(i.gateway_age_ms)
    );
    if let Some(engines) = i.engines_age_ms {
        text.push_str(&format!(", {} not computed (engines, {} old)", i.unprefilled_tokens, age(engines)));
    }
    if let Some(origin) = i.cost_origin {
        let cost = match origin {
            CostOrigin::Fitted => "fitted",
            CostOrigin::Table => "from the table",
            CostOrigin::Reference => "of the reference row",
        };
        text.push_str(&format!(", cost {cost} on {}", i.cost_of));
    }
    text + ", " + &cold_start(i)
}

/// What a start takes, and how that is known.
fn cold_start(i: &Inputs) -> String {
    let known = match (i.cold_start_tier, i.starts) {
        (Tier::Unknown, _) => "assumed".to_owned(),
        (Tier::Asleep, _) => "engine asleep".to_owned(),
        (Tier::Cached, 0) => "weights on a node".to_owned(),
        (Tier::Remote, 0) => "weights remote".to_owned(),
        (_, starts @ 1..ENOUGH_STARTS) => format!("{starts} measured"),
        (_, starts) => format!("nine of ten of the last {starts} starts"),
    };
    let parts = i.start_stages.map_or(String::new(), |parts| {
        let StartStages { schedule_ms, pull_ms, load_ms } = parts;
        let [schedule, pull, load] = [schedule_ms, pull_ms, load_ms].map(age);
        format!("; medians: {schedule} to schedule, {pull} to pull, {load} to load")
    });
    format!("cold start {} ({known}{parts})", age(i.cold_start_ms))
}

fn withdrawn(w: &Withdrawn, wanted: u32) -> String {
    let why = match w.reason {
        WithdrawnFor::NoTenant => "the namespace belongs to no TenantQuota",
        WithdrawnFor::Quota => "quota does not allow more",
        WithdrawnFor::Room => "no node fits more",
    };
    format!("{} of {wanted} are not asked for: {why}", w.replicas)
}

/// What is wrong with which input.
pub fn problem(f: &Frozen) -> String {
    let name = match f.signal {
        Signal::Gateway => "the gateways' signals",
        Signal::Engines => "the engines' signals",
        Signal::Cost => "the cost of a step",
        Signal::Objectives => "the objectives",
        Signal::History => "the loads of earlier days",
    };
    match f.problem {
        Problem::Missing => format!("{name} {} not known", if f.signal == Signal::Cost { "is" } else { "are" }),
        Problem::Stale { age_ms, limit_ms } => format!("{name} are {} old (limit {})", age(age_ms), age(limit_ms)),
        Problem::NotANumber => format!("{name} contain a value that is not a number or is negative"),
        Problem::Absurd => format!("{name} contradict themselves or are beyond anything a GPU can do"),
        Problem::ClockBack { by_ms } => format!("{name} end {} before the last ones did", age(by_ms)),
        Problem::FromTheFuture { by_ms } => format!("{name} are from {} in the future", age(by_ms)),
        Problem::Interval { length_ms } => {
            format!("{name} cover {}, which says nothing about the present load", age(length_ms))
        }
        Problem::TooTight => "one replica alone is slower than objectives.itl".to_owned(),
    }
}

fn remedy(f: &Frozen) -> &'static str {
    match (f.signal, f.problem) {
        (Signal::Objectives, Problem::TooTight) => "choose a faster variant or raise objectives.itl",
        (Signal::Objectives, _) => "write objectives.ttft and objectives.itl",
        (Signal::Cost, _) => "it follows the load once a replica has reported its steps",
        (_, Problem::ClockBack { .. } | Problem::FromTheFuture { .. }) => "check the clocks of the nodes",
        _ => "it follows the load when they report again",
    }
}
