//! Policies by name, so that everything that compares them means the same by a name.

use crate::cluster::{Decision, Observation};
use crate::planned::Stowage;
use crate::policy::{Hpa, Kpa, Oracle, Policy, Reason, Static, Totals};
use crate::run::Protocol;
use crate::site::Subject;
use crate::trace::Arrival;
use std::fmt;
use std::str::FromStr;
use stowage_planner::Policy as Constants;
use stowage_planner::snapshot::Room;

/// A policy, before it knows the trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Contender {
    /// The product.
    Stowage(Room),
    /// Kubernetes' horizontal pod autoscaler on GPU use.
    Hpa {
        /// Target, a share of the time.
        share: f64,
    },
    /// Knative's autoscaler on requests in flight.
    Kpa {
        /// Target, a share of what the ITL objective allows on a replica.
        share: f64,
        /// Seconds.
        cooldown: f64,
    },
    /// So many replicas.
    Static(usize),
    /// Knows the arrivals ahead.
    Oracle,
}

/// The names, for a message.
pub const NAMES: &str = "stowage, stowage-tight, hpa[:SHARE], kpa[:SHARE:COOLDOWN], static:N, oracle";
/// Most replicas of a fixed count; as many as a spec may ask for.
pub const MAX_STATIC: usize = 1000;
/// Part of the load that the ITL objective allows with which the oracle plans.
const ORACLE_MARGIN: f64 = 0.8;

impl Contender {
    /// Ready to decide on this trace.
    pub fn policy(
        self,
        trace: &[Arrival],
        protocol: &Protocol,
        subject: &Subject,
        constants: Constants,
    ) -> Box<dyn Policy> {
        let (least, most) = (subject.scaling.min_replicas as usize, subject.scaling.max_replicas as usize);
        let bounded = |policy: Box<dyn Policy>| Box::new(Bounded { policy, least, most });
        match self {
            Self::Stowage(room) => {
                let mut subject = subject.clone();
                subject.scaling.room = room;
                Box::new(Stowage::of(protocol, subject, constants))
            }
            Self::Hpa { share } => bounded(Box::new(Hpa::new(share))),
            Self::Kpa { share, cooldown } => {
                bounded(Box::new(Kpa::new(share * protocol.concurrency(trace).max(1.0), cooldown)))
            }
            Self::Static(count) => Box::new(Static(count)),
            Self::Oracle => {
                let oracle = Oracle::new(trace, &protocol.cost, protocol.objective, protocol.cold_start, ORACLE_MARGIN);
                bounded(Box::new(oracle))
            }
        }
    }

    /// Replicas that it starts with, where the others start with `usual`.
    pub fn replicas_at_start(self, usual: usize) -> usize {
        if let Self::Static(count) = self { count } else { usual }
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let words: Vec<&str> = name.split(':').collect();
        Ok(match words[..] {
            ["stowage"] => Self::Stowage(Room::Standard),
            ["stowage-tight"] => Self::Stowage(Room::Tight),
            ["hpa"] => Self::Hpa { share: 0.6 },
            ["hpa", share] => Self::Hpa { share: number(share, 1.0)? },
            // The best single setting of the reference over its traces.
            ["kpa"] => Self::Kpa { share: 0.3, cooldown: 300.0 },
            ["kpa", share, cooldown] => {
                Self::Kpa { share: number(share, 10.0)?, cooldown: number(cooldown, 86_400.0)? }
            }
            ["static", count] => {
                let count = count.parse().ok().filter(|count| *count <= MAX_STATIC);
                Self::Static(count.ok_or_else(|| format!("{name}: N is a whole number up to {MAX_STATIC}"))?)
            }
            ["oracle"] => Self::Oracle,
            _ => return Err(format!("unknown policy {name:?}; known are {NAMES}")),
        })
    }
}

/// As it is written.
impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stowage(Room::Standard) => f.write_str("stowage"),
            Self::Stowage(Room::Tight) => f.write_str("stowage-tight"),
            Self::Hpa { share } => write!(f, "hpa:{share}"),
            Self::Kpa { share, cooldown } => write!(f, "kpa:{share}:{cooldown}"),
            Self::Static(count) => write!(f, "static:{count}"),
            Self::Oracle => f.write_str("oracle"),
        }
    }
}

fn number(text: &str, most: f64) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| *n >= 0.0 && *n <= most);
    number.ok_or_else(|| format!("{text:?} is no number from 0 to {most}"))
}

/// A policy within the bounds of the spec. None of those for comparison goes to zero.
struct Bounded {
    policy: Box<dyn Policy>,
    least: usize,
    most: usize,
}

impl Policy for Bounded {
    fn decide(&mut self, seen: &Observation, totals: &Totals) -> Decision {
        match self.policy.decide(seen, totals) {
            Decision::Count(count) => Decision::Count(count.min(self.most).max(self.least).max(1)),
            other => other,
        }
    }

    fn reason(&self) -> Option<Reason> {
        self.policy.reason()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["stowage", "stowage-tight", "hpa:0.5", "kpa:0.3:300", "static:7", "oracle"] {
            assert_eq!(name.parse::<Contender>().unwrap().to_string(), name);
        }
        assert_eq!("hpa".parse::<Contender>().unwrap().to_string(), "hpa:0.6");
        for (name, want) in [
            ("keda", "unknown policy \"keda\"; known are stowage"),
            ("static:1001", "up to 1000"),
            ("static:-1", "up to 1000"),
            ("hpa:NaN", "no number from 0 to 1"),
            ("kpa:0.3", "unknown policy"),
        ] {
            let error = name.parse::<Contender>().unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
