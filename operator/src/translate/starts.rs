//! How long replicas take from their creation until they serve, as their pods' conditions tell, and what is expected of
//! the next one. Kept per namespace, model, runtime and GPU class, so that a deployment which is made anew, or made
//! twice, begins with what is known; of another tenant's starts nothing is taken. Lost in a crash and learned again,
//! from the pods that are there then.
//!
//! The condition `Ready` has the time of its last change alone, which is that of the start only until a probe fails for
//! once. Of a pod that was there before this process it counts therefore for no more than what the deployment's status
//! says of earlier starts, and without such a statement it is one of the few starts that may only shorten what is assumed.
//!
//! Left out: whether the weights lay on the node, and how much of the load was the engine's warming up. The cluster does
//! not tell the one from the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use stowage_crds::names::ENGINE_CONTAINER;
use stowage_planner::snapshot::{Accelerator, ColdStart, ENOUGH_STARTS, StartStages};

use crate::translate::snapshot::replicas::{condition, millis};
use crate::translate::validate::Wanted;

/// Starts that are remembered of each kind.
const STARTS: usize = 20;
/// Kinds that are remembered; beyond, of the namespace that has the most the one goes that was started the longest time
/// ago. So no namespace's many kinds take another one's few away.
const KINDS: usize = 2_000;
/// A pod that became Ready after longer was Ready before, or waited for something else than its start.
const LONGEST: Duration = Duration::from_secs(3600);

/// What starts alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    namespace: String,
    model: Weights,
    runtime: String,
    /// `None`: on CPUs.
    class: Option<String>,
}

/// What identifies the weights.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weights {
    Key(String),
    /// Nothing does: they are this deployment's, by its UID.
    Of(String),
}

/// One start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub ready_ms: u64,
    pub took_ms: u64,
    /// `None`: the pod does not tell.
    pub stages: Option<StartStages>,
    /// The pod was made while this process ran.
    pub seen: bool,
}

/// The last starts of each kind.
#[derive(Clone, Debug, Default)]
pub struct Starts(BTreeMap<Kind, VecDeque<Start>>);

// === impl Kind ===

impl Kind {
    /// Of a replica of this variant; `None`: there is no such variant any more.
    pub fn of(namespace: &str, uid: &str, wanted: &Wanted, variant: &str) -> Option<Self> {
        let class = match &wanted.variant(variant)?.accelerator {
            Accelerator::Gpu { class, .. } => Some(class.clone()),
            Accelerator::Cpu { .. } => None,
        };
        let key = wanted.model_key();
        let model = if key.is_unknown() { Weights::Of(uid.to_owned()) } else { Weights::Key(key.as_str().to_owned()) };
        Some(Self { namespace: namespace.to_owned(), model, runtime: wanted.deployment.runtime.clone(), class })
    }

    fn is_gone(&self, uids: &BTreeSet<&str>) -> bool {
        matches!(&self.model, Weights::Of(uid) if !uids.contains(uid.as_str()))
    }
}

// === impl Start ===

impl Start {
    /// Of a pod that is Ready; `None`: it is not, or its times contradict themselves. The API server keeps whole seconds.
    pub fn of(pod: &Pod) -> Option<Self> {
        let at = |kind| {
            let found = condition(pod, kind).filter(|found| found.status == "True")?;
            Some(millis(found.last_transition_time.as_ref()?.0))
        };
        let (created_ms, ready_ms) = (millis(pod.metadata.creation_timestamp.as_ref()?.0), at("Ready")?);
        let took_ms = ready_ms.checked_sub(created_ms).filter(|took| Duration::from_millis(*took) <= LONGEST)?;
        let running = engine(pod).and_then(|engine| engine.state.as_ref()?.running.as_ref()?.started_at.as_ref());
        let stages = at("PodScheduled").zip(running).map(|(bound_ms, ran)| {
            // Scheduler and kubelet have clocks of their own; the parts make up the whole all the same.
            let bound_ms = bound_ms.clamp(created_ms, ready_ms);
            let ran_ms = millis(ran.0).clamp(bound_ms, ready_ms);
            StartStages { schedule_ms: bound_ms - created_ms, pull_ms: ran_ms - bound_ms, load_ms: ready_ms - ran_ms }
        });
        Some(Self { ready_ms, took_ms, stages, seen: true })
    }

    /// The same, of a pod that was there before this process. `stated`: what earlier starts took, as the status says it.
    pub fn from_before(self, stated: Option<Duration>) -> Self {
        match stated.map(|stated| u64::try_from(stated.as_millis()).unwrap_or(u64::MAX)) {
            Some(stated) if self.took_ms > stated => Self { took_ms: stated, stages: None, ..self },
            Some(_) => self,
            None => Self { seen: false, ..self },
        }
    }
}

/// An engine that ended and began again says nothing of how long a start takes.
pub fn restarted(pod: &Pod) -> bool {
    engine(pod).is_some_and(|engine| engine.restart_count > 0)
}

fn engine(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.iter().flatten().find(|status| status.name == ENGINE_CONTAINER)
}

// === impl Starts ===

impl Starts {
    /// A replica became Ready for the first time.
    pub fn note(&mut self, kind: Kind, start: Start) {
        let starts = self.0.entry(kind).or_default();
        starts.push_back(start);
        starts.drain(..starts.len().saturating_sub(STARTS));
        if self.0.len() > KINDS {
            self.forget_the_oldest();
        }
    }

    /// What is expected of the next start of a deployment that may be of any of these kinds: of the slowest one, because
    /// nothing has decided yet which it will be.
    pub fn cold_start(&self, kinds: &[Kind]) -> ColdStart {
        let known = kinds.iter().filter_map(|kind| self.0.get(kind)).map(expected);
        known.max_by_key(|known| (known.starts >= ENOUGH_STARTS, known.remote_ms)).unwrap_or_default()
    }

    /// Whether it holds starts of deployments that are gone, of which nothing else could make use.
    pub fn has_gone(&self, uids: &BTreeSet<&str>) -> bool {
        self.0.keys().any(|kind| kind.is_gone(uids))
    }

    /// Keeps of those known by their UID only these.
    pub fn forget_gone(&mut self, uids: &BTreeSet<&str>) {
        self.0.retain(|kind, _| !kind.is_gone(uids));
    }

    fn forget_the_oldest(&mut self) {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        self.0.keys().for_each(|kind| *kinds.entry(&kind.namespace).or_default() += 1);
        let Some((most, _)) = kinds.into_iter().max_by_key(|(_, count)| *count) else { return };
        let last = |starts: &VecDeque<Start>| starts.iter().map(|start| start.ready_ms).max();
        let theirs = self.0.iter().filter(|(kind, _)| kind.namespace == most);
        let oldest = theirs.min_by_key(|(_, starts)| last(starts)).map(|(kind, _)| kind.clone());
        if let Some(oldest) = oldest {
            self.0.remove(&oldest);
        }
    }
}

/// The time within which nine of ten starts were over, and the medians of their parts. Whether the weights lay on the
/// node is not looked at, so that it stands for both tiers.
fn expected(all: &VecDeque<Start>) -> ColdStart {
    let seen: Vec<&Start> = all.iter().filter(|start| start.seen).collect();
    let few = ENOUGH_STARTS as usize - 1;
    let starts: Vec<&Start> = if seen.len() > few { seen } else { all.iter().rev().take(few).collect() };
    let p90 = rank(starts.iter().map(|start| start.took_ms), 9, 10);
    let part =
        |of: fn(&StartStages) -> u64| rank(starts.iter().filter_map(|start| start.stages.as_ref()).map(of), 1, 2);
    let stages = || {
        Some(StartStages {
            schedule_ms: part(|stages| stages.schedule_ms)?,
            pull_ms: part(|stages| stages.pull_ms)?,
            load_ms: part(|stages| stages.load_ms)?,
        })
    };
    ColdStart {
        cached_ms: p90,
        remote_ms: p90,
        starts: u32::try_from(starts.len()).unwrap_or(u32::MAX),
        stages: stages(),
        ..ColdStart::default()
    }
}

/// The least figure that `part` of `of` do not exceed; `None`: there is none.
fn rank(figures: impl Iterator<Item = u64>, part: usize, of: usize) -> Option<u64> {
    let mut sorted: Vec<u64> = figures.collect();
    sorted.sort_unstable();
    sorted.get((sorted.len() * part).div_ceil(of).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(model: &str, class: &str) -> Kind {
        let [namespace, runtime] = ["a", "bundled"].map(str::to_owned);
        Kind { namespace, model: Weights::Key(model.into()), runtime, class: Some(class.into()) }
    }

    fn took(seconds: u64) -> Start {
        Start { ready_ms: seconds, took_ms: seconds * 1000, stages: None, seen: true }
    }

    /// Created at 12:00:00 and bound a second later. `status`: more of it, in YAML.
    fn pod(ready: &str, status: &str) -> Pod {
        let yaml = format!(
            "{{metadata: {{creationTimestamp: '2026-01-01T12:00:00Z'}}, status: {{conditions: [\
               {{type: PodScheduled, status: 'True', lastTransitionTime: '2026-01-01T12:00:01Z'}}, {ready}]{status}}}}}"
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    fn ready(at: &str) -> String {
        format!("{{type: Ready, status: 'True', lastTransitionTime: '2026-01-0{at}Z'}}")
    }

    fn ran(at: &str, restarts: u32) -> String {
        format!(
            ", containerStatuses: [{{name: side, image: i, imageID: '', ready: true, restartCount: 7}}, \
             {{name: engine, image: i, imageID: '', ready: true, restartCount: {restarts}, \
             state: {{running: {{startedAt: '2026-01-01T{at}Z'}}}}}}]"
        )
    }

    #[test]
    fn start_is_read_from_conditions_and_absurd_times_are_none() {
        let stages = |schedule_ms, pull_ms, load_ms| Some(StartStages { schedule_ms, pull_ms, load_ms });
        for (name, pod, expect) in [
            ("whole", pod(&ready("1T12:00:12"), &ran("12:00:05", 0)), Some((12_000, stages(1_000, 4_000, 7_000)))),
            ("without container", pod(&ready("1T12:00:12"), ""), Some((12_000, None))),
            (
                "a clock that is late",
                pod(&ready("1T12:00:12"), &ran("11:59:59", 0)),
                Some((12_000, stages(1_000, 0, 11_000))),
            ),
            (
                "a clock that is early",
                pod(&ready("1T12:00:12"), &ran("12:00:13", 0)),
                Some((12_000, stages(1_000, 11_000, 0))),
            ),
            ("an hour", pod(&ready("1T13:00:00"), ""), Some((3_600_000, None))),
            ("longer", pod(&ready("1T13:00:01"), ""), None),
            ("a day", pod(&ready("2T12:00:00"), ""), None),
            ("Ready before it was created", pod(&ready("1T11:59:59"), ""), None),
            ("not Ready", pod("{type: Ready, status: 'False', lastTransitionTime: '2026-01-01T12:00:12Z'}", ""), None),
            ("no time", pod("{type: Ready, status: 'True'}", ""), None),
        ] {
            assert_eq!(Start::of(&pod).map(|start| (start.took_ms, start.stages)), expect, "{name}");
        }
        assert!(restarted(&pod(&ready("1T12:00:12"), &ran("12:00:05", 1))));
        assert!(
            !restarted(&pod(&ready("1T12:00:12"), &ran("12:00:05", 0))),
            "another container's are not the engine's"
        );
    }

    #[test]
    fn nine_of_ten_of_the_last_twenty_starts_are_within_the_cold_start() {
        for (name, seconds, expect) in [
            ("none", vec![], (None, 0)),
            ("one", vec![7], (Some(7_000), 1)),
            ("the longest of few", vec![3, 9, 5], (Some(9_000), 3)),
            ("nine of ten", (1..=10).collect(), (Some(9_000), 10)),
            ("the last twenty", (1..=40).collect(), (Some(38_000), 20)),
            ("one that took long does not count", [vec![600], vec![8; 19]].concat(), (Some(8_000), 20)),
        ] {
            let mut starts = Starts::default();
            seconds.into_iter().for_each(|seconds| starts.note(kind("m", "h100"), took(seconds)));
            let known = starts.cold_start(&[kind("m", "h100")]);
            assert_eq!((known.remote_ms, known.starts), expect, "{name}");
            assert_eq!(known.cached_ms, known.remote_ms, "{name}");
        }
    }

    #[test]
    fn start_of_a_pod_from_before_counts_for_what_is_stated_of_earlier_ones() {
        let flapped = Start::of(&pod(&ready("1T12:38:00"), &ran("12:00:05", 0))).unwrap();
        for (stated, expect) in [
            (None, (2_280_000, true, false)),
            (Some(45), (45_000, false, true)),
            (Some(3_000), (2_280_000, true, true)),
        ] {
            let start = flapped.from_before(stated.map(Duration::from_secs));
            assert_eq!((start.took_ms, start.stages.is_some(), start.seen), expect, "{stated:?}");
        }
    }

    #[test]
    fn starts_that_were_not_seen_are_never_enough() {
        let known = |seen: u64, before: u64| {
            let mut starts = Starts::default();
            (0..before).for_each(|_| starts.note(kind("m", "h100"), Start { seen: false, ..took(2_280) }));
            (0..seen).for_each(|_| starts.note(kind("m", "h100"), took(9)));
            let known = starts.cold_start(&[kind("m", "h100")]);
            (known.starts, known.remote_ms)
        };
        assert_eq!(known(0, 3), (2, Some(2_280_000)));
        assert_eq!(known(2, 3), (2, Some(9_000)));
        assert_eq!(known(3, 17), (3, Some(9_000)));
    }

    #[test]
    fn kinds_known_by_their_deployment_go_with_it() {
        let mut starts = Starts::default();
        let own = |uid: &str| Kind { model: Weights::Of(uid.into()), ..kind("", "h100") };
        [own("u1"), own("u2"), kind("u3", "h100")].into_iter().for_each(|kind| starts.note(kind, took(1)));
        assert!(!starts.has_gone(&["u1", "u2"].into()) && starts.has_gone(&["u2"].into()));
        starts.forget_gone(&["u2"].into());
        let left = [own("u1"), own("u2"), kind("u3", "h100")].map(|kind| starts.cold_start(&[kind]).starts);
        assert_eq!(left, [0, 1, 1]);
    }

    #[test]
    fn parts_are_medians_of_the_starts_that_tell_them() {
        let mut starts = Starts::default();
        for load_ms in [9_000, 1_000, 5_000] {
            let stages = Some(StartStages { schedule_ms: 0, pull_ms: 2_000, load_ms });
            starts.note(kind("m", "h100"), Start { stages, ..took(10) });
        }
        starts.note(kind("m", "h100"), took(10));
        let expect = StartStages { schedule_ms: 0, pull_ms: 2_000, load_ms: 5_000 };
        assert_eq!(starts.cold_start(&[kind("m", "h100")]).stages, Some(expect));
    }

    #[test]
    fn slowest_kind_counts_and_one_with_enough_starts_before_others() {
        let mut starts = Starts::default();
        let mut note = |class: &str, seconds: u64, times: usize| {
            (0..times).for_each(|_| starts.note(kind("m", class), took(seconds)));
        };
        note("fast", 5, 3);
        note("slow", 50, 3);
        note("new", 500, 1);
        let known = |classes: &[&str]| {
            let kinds: Vec<Kind> = classes.iter().map(|class| kind("m", class)).collect();
            starts.cold_start(&kinds).remote_ms
        };
        assert_eq!(known(&["fast"]), Some(5_000));
        assert_eq!(known(&["slow", "fast", "unknown"]), Some(50_000));
        assert_eq!(known(&["new", "fast"]), Some(5_000));
        assert_eq!(known(&["new"]), Some(500_000));
        assert_eq!(known(&["unknown"]), None);
    }

    #[test]
    fn kinds_are_kept_apart_and_bounded() {
        let mut starts = Starts::default();
        for n in 0..KINDS + 5 {
            starts.note(kind(&format!("m{n}"), "h100"), Start { ready_ms: n as u64, ..took(1) });
        }
        assert_eq!(starts.0.len(), KINDS);
        let known = |model: &str| starts.cold_start(&[kind(model, "h100")]).starts;
        assert_eq!((known("m4"), known("m5"), known(&format!("m{}", KINDS + 4))), (0, 1, 1));
        let others = Kind { namespace: "b".into(), ..kind("m5", "h100") };
        assert_eq!(starts.cold_start(std::slice::from_ref(&others)).starts, 0, "another namespace");
        starts.note(others.clone(), Start { ready_ms: 0, ..took(1) });
        for n in 0..5 {
            starts.note(kind(&format!("n{n}"), "h100"), Start { ready_ms: 10_000, ..took(1) });
        }
        assert_eq!((starts.0.len(), starts.cold_start(&[others]).starts), (KINDS, 1), "of those who have the most");
        let other = Kind { runtime: "vllm".into(), ..kind("m5", "h100") };
        assert_eq!(starts.cold_start(&[other]).starts, 0, "another runtime");
    }
}
