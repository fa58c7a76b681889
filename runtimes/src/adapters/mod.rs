//! What differs between engines.

mod sglang;
mod stowage;
mod vllm;

use stowage_crds::conditions::reasons;
use stowage_crds::inference_runtime::{AdapterName, HttpProbe};
use stowage_crds::validate::AcceptedAccelerator;

use crate::{Facts, Refusal};

/// One engine's flags, probes and metrics.
pub trait Adapter: Sync {
    /// Entry point where neither runtime nor image gives one; empty: the image's.
    fn command(&self) -> Vec<String> {
        Vec::new()
    }

    /// Arguments that every start needs: model, name, port, budget. A runtime's own `args` replace them.
    fn base(&self, facts: &Facts<'_>) -> Vec<String>;

    /// Arguments for what the deployment asks for; a refusal for each that this engine cannot honour.
    fn options(&self, facts: &Facts<'_>) -> Result<Vec<String>, Vec<Refusal>>;

    /// Environment that the engine needs in a read-only container.
    fn env(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Probes where the runtime gives none.
    fn probes(&self) -> AllProbes;

    /// Flags that the operator sets; a deployment cannot pass them in `extraArgs`, whatever `allowedArgs` lists.
    fn managed(&self) -> &'static [&'static str];

    /// Command and arguments of a container of the engine's image that ends when this file exists.
    fn wait_for(&self, file: &str) -> (Vec<String>, Vec<String>) {
        let script = "until [ -e \"$0\" ]; do sleep 0.1; done";
        (["sh", "-c", script, file].map(str::to_owned).to_vec(), Vec::new())
    }

    /// Whether it keeps the prefix caches of tenants apart by the salt in the header
    /// [`HEADER_TENANT_SALT`](stowage_crds::names::HEADER_TENANT_SALT).
    fn separates_tenants(&self) -> bool {
        false
    }

    /// Where its figures are on `/metrics`.
    fn metrics(&self) -> MetricNames;
}

/// The three probes of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct AllProbes {
    /// Takes requests.
    pub readiness: HttpProbe,
    /// Is restarted when it fails.
    pub liveness: HttpProbe,
    /// Has started; the others wait for it.
    pub startup: HttpProbe,
}

/// Names of an engine's own figures; `None` where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricNames {
    /// Requests being computed.
    pub running: &'static str,
    /// Requests accepted and not begun.
    pub waiting: &'static str,
    /// Used part of the KV cache, 0 to 1.
    pub kv_usage: Option<&'static str>,
    /// Histogram of the time to the first token.
    pub ttft: Option<&'static str>,
    /// Histogram of the time between tokens.
    pub itl: Option<&'static str>,
}

/// The adapter of this name. An error for those that `AdapterName::supported` does not list.
pub fn adapter(name: AdapterName) -> Result<&'static dyn Adapter, Refusal> {
    match name {
        AdapterName::Stowage => Ok(&stowage::Stowage),
        AdapterName::Vllm => Ok(&vllm::Vllm),
        AdapterName::Sglang => Ok(&sglang::Sglang),
        AdapterName::TensorrtLlm
        | AdapterName::Triton
        | AdapterName::Onnxruntime
        | AdapterName::Pytorch
        | AdapterName::Deepspeed => Err(Refusal::new(
            "InferenceRuntime spec.adapter",
            reasons::NOT_SUPPORTED_YET,
            stowage_crds::support::ADAPTERS,
        )),
    }
}

fn probe(path: &str, period: u32, failures: u32) -> HttpProbe {
    HttpProbe { path: path.to_owned(), period_seconds: Some(period), failure_threshold: Some(failures) }
}

/// `--flag` and its value, when there is one.
fn flag(args: &mut Vec<String>, name: &str, value: Option<impl ToString>) {
    args.extend(value.into_iter().flat_map(|value| [name.to_owned(), value.to_string()]));
}

/// GPUs of an engine that takes all of each GPU's memory; it has no flag for a number of bytes of its own.
fn whole_gpus(engine: &str, granted: &AcceptedAccelerator) -> Result<u32, Refusal> {
    match granted {
        AcceptedAccelerator::Gpu { count, memory_bytes: None, sm_percent: None, .. } => Ok(*count),
        AcceptedAccelerator::Gpu { .. } => Err(Refusal::missing(
            "spec.variants[]",
            format!(
                "{engine} runs on whole GPUs; leave memory and compute out, or write runtime.ref: stowage-engine for a slice"
            ),
        )),
        AcceptedAccelerator::Cpu { .. } => Err(Refusal::missing(
            "spec.variants[].accelerator",
            format!(
                "the image of {engine} computes on GPUs; write accelerator: GPU, or runtime.ref: stowage-engine for CPU"
            ),
        )),
    }
}
