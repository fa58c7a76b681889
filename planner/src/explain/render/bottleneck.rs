//! Where requests spend their time, and what to change, in words.

use crate::demand::bottleneck::{Bottleneck, Expected, FaultyGpu, RequestStage, ServedLoad, Shares, Suggestion};
use crate::explain::render::short_uuid;
use crate::explain::units::latency;
use crate::snapshot::ScalingMode;

/// Beginnings and ends of what is said, by which a text is known again.
const KV_USED: &str = " % used";
const PREDICTED: &str = "; predicted ";
const KV_TIMES: &str = " times the KV cache";
const NOT_MORE: &str = "more replicas do not help";

/// What was measured: shares, counts, times beside their objectives, GPUs that are not healthy.
pub fn evidence(found: &Bottleneck) -> String {
    let ServedLoad { requests_milli, running_milli, waiting_milli, prefill_percent, unplaced_percent, .. } = found.load;
    let ServedLoad { ttft_us, itl_us, ttft_objective_us, itl_objective_us, kv_used_percent, .. } = found.load;
    let mut parts = vec![
        format!("{} of request time", shares(&found.shares)),
        format!(
            "{} requests/s {}, {} run, {} wait",
            tenths(requests_milli),
            ready(&found.load),
            tenths(running_milli),
            tenths(waiting_milli)
        ),
        format!("time to first token {} on average (objective p95 {})", latency(ttft_us), latency(ttft_objective_us)),
        format!("between tokens {} (objective p95 {})", latency(itl_us), latency(itl_objective_us)),
    ];
    if unplaced_percent > 0 {
        parts.push(format!("{unplaced_percent} % of the requests got no place"));
    }
    parts.push(format!(
        "prompts take {prefill_percent} % of the engines' time, KV caches are {kv_used_percent}{KV_USED}"
    ));
    parts.join("; ") + &faults(found)
}

/// `on 2 Ready replicas`.
fn ready(load: &ServedLoad) -> String {
    format!("on {} Ready replicas", tenths(load.ready_milli))
}

/// The end of the evidence.
fn faults(found: &Bottleneck) -> String {
    found.faulty.iter().map(|gpu| format!("; {}: {}", place(gpu), gpu.reason)).collect()
}

/// Whether a text of [`evidence`], which may be cut, names so many Ready replicas and these faulty GPUs.
pub fn shows(text: &str, found: &Bottleneck) -> bool {
    let (shown, faults) = (text.split_once(KV_USED).map_or("", |(_, faults)| faults), faults(found));
    let same = shown.strip_suffix('…').map_or(faults == shown, |cut| faults.starts_with(cut));
    same && text.contains(&ready(&found.load))
}

/// The stages that take time, the longest first.
pub fn shares(shares: &Shares) -> String {
    let Shares { queue, prefill, kv_cache, decode, gpu_health } = *shares;
    let mut all = [
        (queue, "queue"),
        (prefill, "prefill"),
        (kv_cache, "KV cache"),
        (decode, "decode"),
        (gpu_health, "GPU health"),
    ];
    all.sort_by_key(|(share, _)| std::cmp::Reverse(*share));
    let said = all.iter().filter(|(share, _)| *share > 0).map(|(share, name)| format!("{name} {share} %"));
    said.collect::<Vec<_>>().join(", ")
}

/// Share of the stage that limits.
pub fn share(found: &Bottleneck) -> Option<u32> {
    let Shares { queue, prefill, kv_cache, decode, gpu_health } = found.shares;
    Some(match found.stage? {
        RequestStage::Queue => queue,
        RequestStage::Prefill => prefill,
        RequestStage::KvCache => kv_cache,
        RequestStage::Decode => decode,
        RequestStage::GpuHealth => gpu_health,
    })
}

/// What to change, and what clients get then.
pub fn advice(suggestion: &Suggestion) -> String {
    match suggestion {
        Suggestion::Replicas { from, to, mode, max, expected } => {
            let how = match mode {
                ScalingMode::Manual => format!("replicas: {to} instead of {from}"),
                ScalingMode::Active if to > max => {
                    format!("{to} replicas instead of {from}: raise scaling.maxReplicas")
                }
                ScalingMode::Active => format!("{to} replicas instead of {from}: raise scaling.minReplicas"),
                ScalingMode::Advisory => {
                    format!("{to} replicas instead of {from}: scaling.mode Active lets them start")
                }
            };
            format!("{how}{}", predicted(Some(expected)))
        }
        Suggestion::Wait { starting, expected } => {
            format!("{starting} replicas are starting and will do{}", predicted(expected.as_ref()))
        }
        Suggestion::KvCache { times_milli, expected } => {
            format!("{}{KV_TIMES}: raise memory in variants{}", tenths(*times_milli), predicted(expected.as_ref()))
        }
        Suggestion::Faster { alone } => format!(
            "{NOT_MORE}, because one without load has {}: raise compute in variants, take a faster class \
             or a smaller quantization, or allow more in objectives",
            after(alone)
        ),
        Suggestion::LeaveGpu { gpu, expected } => format!(
            "move the replica to another GPU: kubectl cordon {}, then repair {}{}",
            gpu.node,
            short_uuid(&gpu.uuid),
            predicted(expected.as_ref())
        ),
    }
}

/// Whether a text of [`advice`] says this change; what is predicted of it moves all the time.
pub fn advises(text: &str, suggestion: &Suggestion) -> bool {
    let change = |text: &str| text.split(PREDICTED).next().unwrap_or_default().to_owned();
    match suggestion {
        Suggestion::KvCache { .. } => text.contains(KV_TIMES),
        Suggestion::Faster { .. } => text.starts_with(NOT_MORE),
        Suggestion::Replicas { .. } | Suggestion::Wait { .. } | Suggestion::LeaveGpu { .. } => {
            change(text) == change(&advice(suggestion))
        }
    }
}

fn predicted(expected: Option<&Expected>) -> String {
    expected.map_or(String::new(), |expected| format!("{PREDICTED}{}", after(expected)))
}

fn after(expected: &Expected) -> String {
    format!("time to first token {}, between tokens {}", latency(expected.ttft_us), latency(expected.itl_us))
}

fn place(gpu: &FaultyGpu) -> String {
    format!("{} on {}", short_uuid(&gpu.uuid), gpu.node)
}

/// `0.3`, `12`.
fn tenths(milli: u64) -> String {
    let tenths = (milli + 50) / 100;
    if tenths >= 100 || tenths.is_multiple_of(10) {
        format!("{}", (tenths + 5 * u64::from(tenths >= 100)) / 10)
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_as_exact_as_they_say_something() {
        assert_eq!([0, 340, 1_000, 2_250, 41_230].map(tenths), ["0", "0.3", "1", "2.3", "41"]);
    }

    #[test]
    fn verdict_reads_as_shares_counts_times_and_one_change() {
        let gpu = FaultyGpu { node: "node2".into(), uuid: "GPU-3f2a1b2c-0001".into(), reason: "Throttled".into() };
        let found = Bottleneck {
            stage: Some(RequestStage::Queue),
            shares: Shares { queue: 71, prefill: 9, decode: 20, ..Shares::default() },
            load: ServedLoad {
                requests_milli: 11_200,
                running_milli: 8_000,
                waiting_milli: 14_200,
                ready_milli: 2_000,
                ttft_us: 3_200_000,
                itl_us: 21_000,
                ttft_objective_us: 2_000_000,
                itl_objective_us: 50_000,
                prefix_hit_percent: 12,
                kv_used_percent: 34,
                prefill_percent: 40,
                unplaced_percent: 3,
            },
            faulty: vec![gpu.clone()],
            suggestion: None,
        };
        assert_eq!(
            evidence(&found),
            "queue 71 %, decode 20 %, prefill 9 % of request time; 11 requests/s on 2 Ready replicas, 8 run, 14 wait; \
             time to first token 3.2 s on average (objective p95 2.0 s); between tokens 21.0 ms (objective p95 50.0 ms); \
             3 % of the requests got no place; prompts take 40 % of the engines' time, KV caches are 34 % used; GPU-3f2a1b2c on node2: Throttled"
        );
        assert_eq!(share(&found), Some(71));
        let expected = Expected { ttft_us: 120_000, itl_us: 14_000 };
        let after = "predicted time to first token 120.0 ms, between tokens 14.0 ms";
        for (suggestion, says) in [
            (
                Suggestion::Replicas { from: 2, to: 3, mode: ScalingMode::Manual, max: 9, expected },
                format!("replicas: 3 instead of 2; {after}"),
            ),
            (
                Suggestion::Replicas { from: 2, to: 3, mode: ScalingMode::Active, max: 2, expected },
                format!("3 replicas instead of 2: raise scaling.maxReplicas; {after}"),
            ),
            (
                Suggestion::Replicas { from: 2, to: 3, mode: ScalingMode::Active, max: 3, expected },
                format!("3 replicas instead of 2: raise scaling.minReplicas; {after}"),
            ),
            (
                Suggestion::LeaveGpu { gpu, expected: Some(expected) },
                format!("move the replica to another GPU: kubectl cordon node2, then repair GPU-3f2a1b2c; {after}"),
            ),
            (
                Suggestion::KvCache { times_milli: 2_250, expected: None },
                "2.3 times the KV cache: raise memory in variants".to_owned(),
            ),
        ] {
            assert_eq!(advice(&suggestion), says);
        }
    }
}
