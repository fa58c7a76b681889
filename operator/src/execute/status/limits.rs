//! Load and bottleneck in the status. Both move with every second, so what is stored stays until there is something
//! else to say: another stage, suggestion, number of Ready replicas or faulty GPU, or figures that are clearly others.

use stowage_crds::deployment_status::{Bottleneck, InferenceDeploymentStatus, ServedLoad, Stage};
use stowage_planner::demand::bottleneck::{Bottleneck as Found, RequestStage, Verdict};
use stowage_planner::render::bottleneck::{advice, advises, evidence, share, shows};

/// Points by which a share must differ.
const SHARE_POINTS: u32 = 10;

/// What the status says of the load, and of what limits.
pub fn limits(
    verdict: &Verdict,
    stored: Option<&InferenceDeploymentStatus>,
) -> (Option<ServedLoad>, Option<Bottleneck>) {
    let before = || stored.map(|status| (status.load.clone(), status.bottleneck.clone())).unwrap_or_default();
    match verdict {
        Verdict::TooEarly => before(),
        Verdict::TooLittle => (None, None),
        Verdict::Found(found) => match before() {
            (Some(load), Some(bottleneck)) if alike(&load, &bottleneck, found) => (Some(load), Some(bottleneck)),
            _ => (Some(load(found)), Some(bottleneck(found))),
        },
    }
}

fn alike(load: &ServedLoad, bottleneck: &Bottleneck, found: &Found) -> bool {
    let fresh = &found.load;
    let milli = load.requests_per_second.parse::<f64>().map_or(0, |rate| (rate * 1000.0).round() as u64);
    let advised = match (&bottleneck.suggestion, &found.suggestion) {
        (Some(text), Some(suggestion)) => advises(text, suggestion),
        (None, None) => true,
        _ => false,
    };
    bottleneck.stage == stage(found.stage)
        && advised
        && shows(&bottleneck.evidence, found)
        && bottleneck.share_percent.unwrap_or(0).abs_diff(share(found).unwrap_or(0)) < SHARE_POINTS
        && near(milli, fresh.requests_milli)
        && near(load.time_to_first_token_micros, fresh.ttft_us)
        && near(load.inter_token_micros, fresh.itl_us)
}

/// Within a third of the larger one.
fn near(a: u64, b: u64) -> bool {
    3 * a.abs_diff(b) <= a.max(b)
}

fn load(found: &Found) -> ServedLoad {
    let fresh = &found.load;
    let whole = |milli: u64| u32::try_from((milli + 500) / 1000).unwrap_or(u32::MAX);
    ServedLoad {
        requests_per_second: format!("{}.{}", fresh.requests_milli / 1000, fresh.requests_milli % 1000 / 100),
        running: whole(fresh.running_milli),
        waiting: whole(fresh.waiting_milli),
        time_to_first_token_micros: fresh.ttft_us,
        inter_token_micros: fresh.itl_us,
        prefix_hit_percent: fresh.prefix_hit_percent,
    }
}

fn bottleneck(found: &Found) -> Bottleneck {
    Bottleneck {
        stage: stage(found.stage),
        share_percent: share(found),
        evidence: bounded(evidence(found)),
        suggestion: found.suggestion.as_ref().map(|suggestion| bounded(advice(suggestion))),
    }
}

fn stage(stage: Option<RequestStage>) -> Stage {
    match stage {
        None => Stage::None,
        Some(RequestStage::Queue) => Stage::Queue,
        Some(RequestStage::Prefill) => Stage::Prefill,
        Some(RequestStage::KvCache) => Stage::KVCache,
        Some(RequestStage::Decode) => Stage::Decode,
        Some(RequestStage::GpuHealth) => Stage::GPUHealth,
    }
}

/// As long as the schema allows: the names of many GPUs may be in it.
fn bounded(text: String) -> String {
    const MOST: usize = 1024;
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::{differs, differs_materially};
    use super::*;
    use serde_json::json;
    use stowage_planner::demand::bottleneck::{Bottleneck as Found, Expected, FaultyGpu, ServedLoad as Measured};
    use stowage_planner::demand::bottleneck::{Shares, Suggestion};
    use stowage_planner::snapshot::ScalingMode;

    fn found(stage: Option<RequestStage>, queue: u32, requests_milli: u64) -> Found {
        let load = Measured {
            requests_milli,
            ttft_us: 3_000_000,
            itl_us: 20_000,
            running_milli: 7_600,
            ..Measured::default()
        };
        let shares = Shares { queue, decode: 100 - queue, ..Shares::default() };
        Found { stage, shares, load, faulty: Vec::new(), suggestion: None }
    }

    /// What is stored after a verdict of 70 % queue at 10 requests per second and then this one.
    fn after(next: Verdict) -> (Option<ServedLoad>, Option<Bottleneck>) {
        let first = Verdict::Found(Box::new(found(Some(RequestStage::Queue), 70, 10_000)));
        let (load, bottleneck) = limits(&first, None);
        let stored = InferenceDeploymentStatus { load, bottleneck, ..InferenceDeploymentStatus::default() };
        limits(&next, Some(&stored))
    }

    #[test]
    fn stored_figures_stay_until_others_say_something_else() {
        let queue = Some(RequestStage::Queue);
        let says = |next: Found| {
            let (load, bottleneck) = after(Verdict::Found(Box::new(next)));
            let bottleneck = bottleneck.unwrap();
            (bottleneck.stage, bottleneck.share_percent, load.unwrap().requests_per_second)
        };
        let stored = (Stage::Queue, Some(70), "10.0".to_owned());
        for (next, now) in [
            (found(queue, 79, 11_900), stored.clone()),
            (found(queue, 61, 7_000), stored),
            (found(queue, 80, 10_000), (Stage::Queue, Some(80), "10.0".to_owned())),
            (found(queue, 70, 15_200), (Stage::Queue, Some(70), "15.2".to_owned())),
            (found(None, 70, 10_000), (Stage::None, None, "10.0".to_owned())),
        ] {
            assert_eq!(says(next.clone()), now, "{next:?}");
        }
    }

    #[test]
    fn another_suggestion_number_of_replicas_or_faulty_gpu_is_stored_and_another_prediction_is_not() {
        let gpu = |uuid: &str| FaultyGpu { node: "n1".into(), uuid: uuid.into(), reason: "Xid 79".into() };
        let expected = |itl_us| Expected { ttft_us: 90_000, itl_us };
        let more = |from, to, itl_us| {
            let (mode, max) = (ScalingMode::Manual, u32::MAX);
            Some(Suggestion::Replicas { from, to, mode, max, expected: expected(itl_us) })
        };
        let starts = Some(Suggestion::Wait { starting: 1, expected: None });
        let larger = |times_milli| Some(Suggestion::KvCache { times_milli, expected: None });
        let faster = |itl_us| Some(Suggestion::Faster { alone: expected(itl_us) });
        let of = |suggestion: &Option<Suggestion>, ready_milli, faulty: &[FaultyGpu]| {
            let mut found = found(Some(RequestStage::Queue), 70, 10_000);
            (found.suggestion, found.load.ready_milli, found.faulty) =
                (suggestion.clone(), ready_milli, faulty.to_vec());
            found
        };
        for (before, next, anew) in [
            (of(&more(2, 3, 9), 2_000, &[]), of(&more(2, 3, 8), 2_000, &[]), false),
            (of(&more(2, 3, 9), 2_000, &[]), of(&more(3, 4, 9), 2_000, &[]), true),
            (of(&more(2, 3, 9), 2_000, &[]), of(&starts, 2_000, &[]), true),
            (of(&more(2, 3, 9), 2_000, &[]), of(&None, 2_000, &[]), true),
            (of(&more(2, 3, 9), 2_000, &[]), of(&more(2, 3, 9), 3_000, &[]), true),
            (of(&larger(1_500), 2_000, &[]), of(&larger(1_600), 2_000, &[]), false),
            (of(&larger(1_500), 2_000, &[]), of(&faster(9), 2_000, &[]), true),
            (of(&faster(9), 2_000, &[]), of(&faster(8), 2_000, &[]), false),
            (of(&None, 2_000, &[gpu("a")]), of(&None, 2_000, &[gpu("a")]), false),
            (of(&None, 2_000, &[]), of(&None, 2_000, &[gpu("a")]), true),
            (of(&None, 2_000, &[gpu("a"), gpu("b")]), of(&None, 2_000, &[gpu("a")]), true),
        ] {
            let (load, bottleneck) = limits(&Verdict::Found(Box::new(before.clone())), None);
            let stored = InferenceDeploymentStatus { load, bottleneck, ..InferenceDeploymentStatus::default() };
            let next = Found { load: Measured { running_milli: 8_900, ..next.load }, ..next };
            let (load, _) = limits(&Verdict::Found(Box::new(next.clone())), Some(&stored));
            assert_eq!(load.unwrap().running == 9, anew, "{before:?} {next:?}");
        }
    }

    #[test]
    fn evidence_that_is_cut_is_known_again() {
        let mut found = found(Some(RequestStage::Queue), 70, 10_000);
        let gpu = |n: u32| FaultyGpu { node: format!("node{n}"), uuid: format!("GPU-{n:08}"), reason: "Xid 79".into() };
        found.faulty = (0..100).map(gpu).collect();
        assert!(shows(&bounded(evidence(&found)), &found));
    }

    #[test]
    fn nothing_is_said_without_requests_and_nothing_is_forgotten_before_signals_have_begun_again() {
        assert_eq!(after(Verdict::TooLittle), (None, None));
        let (load, bottleneck) = after(Verdict::TooEarly);
        assert_eq!((load.unwrap().running, bottleneck.unwrap().stage), (8, Stage::Queue));
    }

    #[test]
    fn load_and_bottleneck_alone_wait_for_the_next_refresh() {
        let status = |replicas: u32, running: u32, stage: &str| json!({"replicas": replicas, "load": {"running": running}, "bottleneck": {"stage": stage}});
        let before = status(1, 5, "None");
        assert!(differs(&before, &status(1, 9, "Queue")) && !differs_materially(&before, &status(1, 9, "Queue")));
        assert!(differs_materially(&before, &status(2, 5, "None")));
    }

    #[test]
    fn another_decision_of_the_same_kind_waits_for_the_next_refresh_too() {
        let status = |id: &str, reason: &str, message: &str, per_hour: &str| {
            json!({"decision": {"id": id, "time": "2026-01-01T12:00:00Z", "reason": reason, "message": message},
                "cost": {"perHour": per_hour, "currency": "USD"}})
        };
        let before = status("a1", "Hold", "load 1.2 of 3", "0.30");
        for (after, at_once) in [
            (status("b2", "Hold", "load 1.4 of 3", "0.30"), false),
            (status("a1", "Hold", "load 1.2 of 3", "0.45"), false),
            (status("b2", "Burst", "load 1.2 of 3", "0.30"), true),
            (status("b2", "Hold", "no signals", "0.30"), true),
        ] {
            assert!(differs(&before, &after), "{after}");
            assert_eq!(differs_materially(&before, &after), at_once, "{after}");
        }
    }

    #[test]
    fn evidence_fits_the_schema_however_many_gpus_are_faulty() {
        assert_eq!(bounded("ab".repeat(600)).chars().count(), 1024);
        assert_eq!(bounded("ü".repeat(1024)).chars().count(), 1024);
    }
}
