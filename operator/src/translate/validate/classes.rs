//! Which class a GPU belongs to: the first accepted GpuClass, by name, that selects it.

use std::collections::BTreeMap;

use stowage_crds::conditions::reasons;
use stowage_crds::gpu_node::GpuDevice;
use stowage_crds::validate::{AcceptedClass, validate_class};
use stowage_planner::snapshot::Class;

use super::{Refusal, refusal};
use crate::observe::view::{Objects, StoredClass};

/// The accepted classes, and why the others are not.
#[derive(Debug, Clone, Default)]
pub struct Classes {
    accepted: BTreeMap<String, AcceptedClass>,
    /// Condition reason and message, by name.
    pub refused: BTreeMap<String, Refusal>,
}

impl Classes {
    pub fn read(stored: &Objects<StoredClass>) -> Self {
        let mut classes = Self::default();
        for class in stored.values() {
            let judged = match &class.spec {
                Ok(spec) => validate_class(spec).map_err(|refusals| refusal(&refusals)),
                Err(err) => Err((reasons::MALFORMED, err.to_string())),
            };
            let name = class.name().to_owned();
            match judged {
                Ok(accepted) => drop(classes.accepted.insert(name, accepted)),
                Err(why) => drop(classes.refused.insert(name, why)),
            }
        }
        classes
    }

    pub fn for_planner(&self) -> Vec<Class> {
        let class = |(name, class): (&String, &AcceptedClass)| Class {
            name: name.clone(),
            allow_soft_sharing: class.allow_soft_sharing,
            price_per_hour_micros: class.price.as_ref().map(|(micros, _)| *micros),
            currency: class.price.as_ref().map(|(_, currency)| currency.clone()).unwrap_or_default(),
        };
        self.accepted.iter().map(class).collect()
    }

    /// Price of a whole GPU per hour: millionths of the currency, and the currency.
    pub fn price(&self, name: &str) -> Option<&(u64, String)> {
        self.accepted.get(name)?.price.as_ref()
    }

    /// Whether there is an accepted class of this name; the error says which there are.
    pub fn exists(&self, name: &str) -> Result<(), String> {
        if self.accepted.contains_key(name) {
            return Ok(());
        }
        let known = || self.accepted.keys().cloned().collect::<Vec<_>>().join(", ");
        Err(match self.refused.get(name) {
            Some((_, why)) => format!("GpuClass {name} is not accepted: {why}"),
            None => format!("there is no GpuClass \"{name}\"; known are: {}", known()),
        })
    }

    /// Name of the class that this GPU belongs to.
    pub fn of(&self, device: &GpuDevice, memory_bytes: u64) -> Option<&str> {
        self.accepted.iter().find(|(_, class)| class.selects(device, memory_bytes)).map(|(name, _)| name.as_str())
    }
}
