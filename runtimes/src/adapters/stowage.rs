//! The bundled engine. Its GPU budget comes through the claim's environment, so that it is what was
//! granted; only on CPU is it an argument.

use stowage_crds::names::{PATH_HEALTHZ, PATH_READYZ};
use stowage_crds::validate::AcceptedAccelerator;

use super::{Adapter, AllProbes, MetricNames, flag, probe};
use crate::{Facts, Refusal};

pub struct Stowage;

impl Adapter for Stowage {
    fn separates_tenants(&self) -> bool {
        true
    }

    fn base(&self, facts: &Facts<'_>) -> Vec<String> {
        let mut args = vec!["serve".to_owned()];
        flag(&mut args, "--model", Some(&facts.model_path));
        flag(&mut args, "--name", Some(facts.model_name));
        flag(&mut args, "--port", Some(facts.runtime.port));
        if let AcceptedAccelerator::Cpu { memory_bytes, .. } = facts.granted {
            flag(&mut args, "--memory-bytes", Some(memory_bytes));
        }
        flag(&mut args, "--drain-timeout", Some(facts.drain_seconds));
        args
    }

    fn options(&self, facts: &Facts<'_>) -> Result<Vec<String>, Vec<Refusal>> {
        let options = facts.options;
        let mut refusals = Vec::new();
        if options.quantization.is_some() {
            let message = "the bundled engine takes weights as they are stored; write Auto and name a quantised model";
            refusals.push(Refusal::missing("spec.runtime.options.quantization", message));
        }
        if options.prefix_caching == Some(false) {
            let message = "the bundled engine always reuses prefixes, within one tenant; leave prefixCaching out";
            refusals.push(Refusal::missing("spec.runtime.options.prefixCaching", message));
        }
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let mut args = Vec::new();
        flag(&mut args, "--max-model-len", options.max_model_len);
        flag(&mut args, "--kv-type", options.kv_cache_type.as_ref());
        Ok(args)
    }

    fn probes(&self) -> AllProbes {
        AllProbes {
            readiness: probe(PATH_READYZ, 1, 2),
            liveness: probe(PATH_HEALTHZ, 2, 5),
            startup: probe(PATH_HEALTHZ, 1, 600),
        }
    }

    fn wait_for(&self, file: &str) -> (Vec<String>, Vec<String>) {
        (Vec::new(), ["wait-model", "--file", file].map(str::to_owned).to_vec())
    }

    fn managed(&self) -> &'static [&'static str] {
        &["--model", "--name", "--port", "--host", "--max-model-len", "--kv-type", "--memory-bytes", "--drain-timeout"]
    }

    fn metrics(&self) -> MetricNames {
        MetricNames {
            running: "stowage_engine_running_requests",
            waiting: "stowage_engine_waiting_requests",
            kv_usage: None,
            ttft: Some("stowage_engine_time_to_first_token_seconds"),
            itl: Some("stowage_engine_inter_token_latency_seconds"),
        }
    }
}
