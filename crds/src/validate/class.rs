//! `GpuClass`, narrow.

use super::{Refusal, Refusals};
use crate::gpu_class::GpuSelector;
use crate::quantity::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, parse_bytes, parse_micros};
use crate::rules::class as rules;
use crate::{GpuClassSpec, gpu_node::GpuDevice, support};

/// An accepted GpuClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedClass {
    /// Empty: any.
    pub product_names: Vec<String>,
    /// Bytes; 0: any.
    pub min_memory_bytes: u64,
    /// Empty: any.
    pub architectures: Vec<String>,
    /// Price of a whole GPU in millionths of the currency, and the currency.
    pub price: Option<(u64, String)>,
    /// Whether two tenants may share a GPU without MIG.
    pub allow_soft_sharing: bool,
}

impl AcceptedClass {
    /// Whether a GPU with this much promisable memory belongs to the class.
    pub fn selects(&self, device: &GpuDevice, memory_bytes: u64) -> bool {
        let architecture = device.architecture.as_deref().unwrap_or_default();
        (self.product_names.is_empty() || self.product_names.contains(&device.product))
            && (self.architectures.is_empty() || self.architectures.iter().any(|wanted| wanted == architecture))
            && memory_bytes >= self.min_memory_bytes
    }
}

/// Parses and checks a GpuClass.
pub fn validate_class(spec: &GpuClassSpec) -> Result<AcceptedClass, Vec<Refusal>> {
    let GpuClassSpec { selector, price_per_hour, currency, allowed_sharing: _, allow_soft_sharing } = spec;
    let GpuSelector { product_names, min_memory, architectures } = selector;
    let mut refusals = Refusals::default();
    refusals.unsupported(spec, support::CLASS);

    let selects = !product_names.is_empty() || min_memory.is_some() || !architectures.is_empty();
    refusals.require(selects, "spec.selector", &rules::SELECTS);
    let min_memory_bytes = match min_memory {
        None => 0,
        Some(quantity) => refusals.parsed("spec.selector.minMemory", parse_bytes(quantity)).unwrap_or(MIN_MEMORY_BYTES),
    };
    refusals.require(min_memory.is_none() || min_memory_bytes > 0, "spec.selector.minMemory", &rules::MIN_MEMORY);
    let sane = matches!(min_memory_bytes, 0 | MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES);
    refusals.require(sane, "spec.selector.minMemory", &rules::MIN_MEMORY_RANGE);

    refusals.require(price_per_hour.is_some() == currency.is_some(), "spec", &rules::PRICE_NEEDS_CURRENCY);
    let micros = price_per_hour.as_deref().and_then(|text| refusals.parsed("spec.pricePerHour", parse_micros(text)));
    if let Some(code) = currency {
        let known = code.len() == 3 && code.bytes().all(|letter| letter.is_ascii_uppercase());
        refusals.require(known, "spec.currency", &rules::CURRENCY);
    }

    refusals.into_result(AcceptedClass {
        product_names: product_names.clone(),
        min_memory_bytes,
        architectures: architectures.clone(),
        price: micros.zip(currency.clone()),
        allow_soft_sharing: *allow_soft_sharing,
    })
}
