//! vLLM's OpenAI server (`vllm serve`), 0.10 and later.
//!
//! It sizes itself by a share of the GPU's memory, not by bytes, so it runs on whole GPUs. Nothing is
//! fetched at start: the model is a mounted image.

use super::{Adapter, AllProbes, MetricNames, flag, probe, whole_gpus};
use crate::{Facts, Refusal};

pub struct Vllm;

impl Adapter for Vllm {
    fn command(&self) -> Vec<String> {
        vec!["vllm".to_owned(), "serve".to_owned()]
    }

    fn base(&self, facts: &Facts<'_>) -> Vec<String> {
        let mut args = vec![facts.model_path.clone()];
        flag(&mut args, "--served-model-name", Some(facts.model_name));
        flag(&mut args, "--host", Some("0.0.0.0"));
        flag(&mut args, "--port", Some(facts.runtime.port));
        args
    }

    fn options(&self, facts: &Facts<'_>) -> Result<Vec<String>, Vec<Refusal>> {
        let count = whole_gpus("vLLM", facts.granted).map_err(|refusal| vec![refusal])?;
        let options = facts.options;
        let mut args = Vec::new();
        flag(&mut args, "--tensor-parallel-size", Some(count));
        flag(&mut args, "--max-model-len", options.max_model_len);
        flag(&mut args, "--quantization", options.quantization.as_ref());
        flag(&mut args, "--kv-cache-dtype", options.kv_cache_type.as_ref());
        match options.prefix_caching {
            Some(true) => args.push("--enable-prefix-caching".to_owned()),
            Some(false) => args.push("--no-enable-prefix-caching".to_owned()),
            None => {}
        }
        Ok(args)
    }

    fn env(&self) -> &'static [(&'static str, &'static str)] {
        &[("HOME", "/cache"), ("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")]
    }

    fn probes(&self) -> AllProbes {
        AllProbes {
            readiness: probe("/health", 1, 2),
            liveness: probe("/health", 10, 6),
            startup: probe("/health", 1, 1800),
        }
    }

    fn managed(&self) -> &'static [&'static str] {
        &[
            "--model",
            "--served-model-name",
            "--host",
            "--port",
            "--uds",
            "--api-key",
            "--tensor-parallel-size",
            "-tp",
            "--max-model-len",
            "--quantization",
            "-q",
            "--kv-cache-dtype",
            "--enable-prefix-caching",
            "--no-enable-prefix-caching",
            "--trust-remote-code",
        ]
    }

    fn metrics(&self) -> MetricNames {
        MetricNames {
            running: "vllm:num_requests_running",
            waiting: "vllm:num_requests_waiting",
            kv_usage: Some("vllm:kv_cache_usage_perc"),
            ttft: Some("vllm:time_to_first_token_seconds"),
            itl: Some("vllm:inter_token_latency_seconds"),
        }
    }
}
