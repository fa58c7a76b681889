//! SGLang's server (`python3 -m sglang.launch_server`), 0.5 and later. Whole GPUs, for the same reason
//! as vLLM.

use super::{Adapter, AllProbes, MetricNames, flag, probe, whole_gpus};
use crate::{Facts, Refusal};

pub struct Sglang;

impl Adapter for Sglang {
    fn command(&self) -> Vec<String> {
        ["python3", "-m", "sglang.launch_server"].map(str::to_owned).into()
    }

    fn base(&self, facts: &Facts<'_>) -> Vec<String> {
        let mut args = Vec::new();
        flag(&mut args, "--model-path", Some(&facts.model_path));
        flag(&mut args, "--served-model-name", Some(facts.model_name));
        flag(&mut args, "--host", Some("0.0.0.0"));
        flag(&mut args, "--port", Some(facts.runtime.port));
        args.push("--enable-metrics".to_owned());
        args
    }

    fn options(&self, facts: &Facts<'_>) -> Result<Vec<String>, Vec<Refusal>> {
        let count = whole_gpus("SGLang", facts.granted).map_err(|refusal| vec![refusal])?;
        let options = facts.options;
        let mut args = Vec::new();
        flag(&mut args, "--tp-size", Some(count));
        flag(&mut args, "--context-length", options.max_model_len);
        flag(&mut args, "--quantization", options.quantization.as_ref());
        flag(&mut args, "--kv-cache-dtype", options.kv_cache_type.as_ref());
        if options.prefix_caching == Some(false) {
            args.push("--disable-radix-cache".to_owned());
        }
        Ok(args)
    }

    fn env(&self) -> &'static [(&'static str, &'static str)] {
        &[("HOME", "/cache"), ("HF_HUB_OFFLINE", "1")]
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
            "--model-path",
            "--model",
            "--served-model-name",
            "--host",
            "--port",
            "--api-key",
            "--enable-metrics",
            "--tp-size",
            "--tensor-parallel-size",
            "--tp",
            "--context-length",
            "--quantization",
            "--kv-cache-dtype",
            "--disable-radix-cache",
            "--trust-remote-code",
        ]
    }

    fn metrics(&self) -> MetricNames {
        MetricNames {
            running: "sglang:num_running_reqs",
            waiting: "sglang:num_queue_reqs",
            kv_usage: Some("sglang:token_usage"),
            ttft: Some("sglang:time_to_first_token_seconds"),
            itl: Some("sglang:inter_token_latency_seconds"),
        }
    }
}
