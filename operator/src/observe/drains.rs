//! What gateways report of replicas that drain: when the work of one is over. Pure.
//!
//! A gateway that names a pod as draining sends nothing new there, so its count only falls, and a zero that came after
//! the drain began stays true however old it is. One that came before is of an earlier drain, which was cancelled: the
//! gateway has sent requests there since. The work is over when every gateway that runs, Ready or not, reports zero.
//! One that cannot be asked may still have requests there: then the engine's own report counts, once it was idle for
//! [`ENGINE_IDLE_MS`] after the drain began, and without such a report the deadline.

use std::collections::BTreeMap;

use stowage_planner::snapshot::TimeMs;

/// A gateway that cannot be asked has this long to see that the replica drains. It is longer than a gateway's report
/// may be late.
pub const ENGINE_IDLE_MS: TimeMs = 6_000;

/// What gateways report of draining replicas.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Drains {
    /// By the gateway's pod.
    pub gateways: BTreeMap<String, Answer>,
    /// Reports of engines that ran nothing, by the UID of the pod: when they were made.
    pub idle: BTreeMap<String, TimeMs>,
}

/// What one gateway reports of draining replicas.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Sequences in flight by the UID of the pod, as last reported.
    pub in_flight: BTreeMap<String, u32>,
    /// When that report came, by the operator's clock; 0: there is none.
    pub at: TimeMs,
    /// Why more than a zero in it cannot be believed; `None`: it is fresh.
    pub unread: Option<String>,
}

/// What is known of one replica that drains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainState {
    /// Sequences in flight, as all gateways count.
    Counted(u32),
    /// Not every gateway can be asked, and the engine reports that nothing runs there.
    EngineIdle,
    /// A gateway cannot be asked: which, and why.
    Unread { gateway: String, why: String },
    /// A gateway has not reported yet that it took the replica out of routing.
    Routed { gateway: String },
}

impl Drains {
    /// Of the pod with this UID, which drains since then.
    pub fn of(&self, uid: &str, since: TimeMs) -> DrainState {
        let mut count = 0u32;
        let mut missing = None;
        for (gateway, answer) in &self.gateways {
            let reported = answer.in_flight.get(uid).filter(|_| answer.at >= since);
            match (reported, &answer.unread) {
                (Some(0), _) => {}
                (Some(more), None) => count = count.saturating_add(*more),
                (_, Some(why)) => missing = Some(DrainState::Unread { gateway: gateway.clone(), why: why.clone() }),
                (None, None) => {
                    missing = missing.or_else(|| Some(DrainState::Routed { gateway: gateway.clone() }));
                }
            }
        }
        let Some(missing) = missing else { return DrainState::Counted(count) };
        let idle = self.idle.get(uid).is_some_and(|at| *at >= since.saturating_add(ENGINE_IDLE_MS));
        // What one gateway counts is in flight, whatever the engine reports.
        if idle && count == 0 { DrainState::EngineIdle } else { missing }
    }
}

impl DrainState {
    /// Requests in flight; `None`: not known.
    pub fn in_flight(&self) -> Option<u32> {
        match self {
            Self::Counted(count) => Some(*count),
            Self::EngineIdle => Some(0),
            Self::Unread { .. } | Self::Routed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: TimeMs = 100_000;

    /// `gateways`: (what it counts for the pod, whether it can be read), reported when the drain began. `idle`: when the
    /// engine reported so.
    fn check(gateways: &[(Option<u32>, bool)], idle: Option<TimeMs>, want: &DrainState) {
        check_at(SINCE, gateways, idle, want);
    }

    fn check_at(at_ms: TimeMs, gateways: &[(Option<u32>, bool)], idle: Option<TimeMs>, want: &DrainState) {
        let answer = |(at, (count, read)): (usize, &(Option<u32>, bool))| {
            let in_flight = count.iter().map(|count| ("u".to_owned(), *count)).collect();
            (format!("g{at}"), Answer { in_flight, at: at_ms, unread: (!read).then(|| "silent".to_owned()) })
        };
        let drains = Drains {
            gateways: gateways.iter().enumerate().map(answer).collect(),
            idle: idle.iter().map(|at| ("u".to_owned(), *at)).collect(),
        };
        assert_eq!(drains.of("u", SINCE), *want, "{gateways:?} {idle:?}");
    }

    fn unread(gateway: &str) -> DrainState {
        DrainState::Unread { gateway: gateway.into(), why: "silent".into() }
    }

    #[test]
    fn counts_of_all_gateways_are_summed() {
        check(&[(Some(2), true), (Some(0), true), (Some(1), true)], None, &DrainState::Counted(3));
        check(&[(Some(0), true), (Some(0), true)], None, &DrainState::Counted(0));
        check(&[], None, &DrainState::Counted(0));
    }

    #[test]
    fn gateway_that_still_routes_there_is_waited_for() {
        check(&[(Some(0), true), (None, true)], None, &DrainState::Routed { gateway: "g1".into() });
    }

    #[test]
    fn zero_stays_true_and_more_is_not_believed_of_a_silent_gateway() {
        check(&[(Some(0), false), (Some(0), true)], None, &DrainState::Counted(0));
        check(&[(Some(3), false), (Some(0), true)], None, &unread("g0"));
        check(&[(None, false), (Some(0), true)], None, &unread("g0"));
    }

    #[test]
    fn count_of_an_earlier_drain_is_no_evidence() {
        let routed = DrainState::Routed { gateway: "g0".into() };
        for count in [0, 3] {
            check_at(SINCE - 1, &[(Some(count), false)], None, &unread("g0"));
            check_at(SINCE - 1, &[(Some(count), true)], None, &routed);
            check_at(SINCE - 1, &[(Some(count), false)], Some(SINCE + ENGINE_IDLE_MS), &DrainState::EngineIdle);
        }
    }

    #[test]
    fn idle_engine_counts_after_a_while_where_a_gateway_cannot_be_asked() {
        let silent = [(None, false), (Some(0), true)];
        check(&silent, Some(SINCE + ENGINE_IDLE_MS), &DrainState::EngineIdle);
        check(&silent, Some(SINCE + ENGINE_IDLE_MS - 1), &unread("g0"));
        check(&[(None, false), (Some(1), true)], Some(SINCE + 60_000), &unread("g0"));
    }
}
