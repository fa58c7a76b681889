//! Goldens: a deployment and a runtime in, a command line or a refusal out.

use std::time::Duration;

use stowage_crds::inference_deployment::{EnvVar, IsolationLevel};
use stowage_crds::inference_runtime::{AdapterName, Capabilities, Probes, PullPolicy};
use stowage_crds::validate::{
    AcceptedAccelerator, AcceptedDeployment, AcceptedImage, AcceptedOptions, AcceptedPod, AcceptedResources,
    AcceptedRuntime, AcceptedScaling, AcceptedSource, AcceptedVariant,
};

use crate::{adapter, check, engine};

fn runtime(adapter: AdapterName) -> AcceptedRuntime {
    AcceptedRuntime {
        adapter,
        version: "1".into(),
        image: "registry/engine:1".into(),
        image_pull_policy: PullPolicy::IfNotPresent,
        command: vec![],
        args: vec![],
        env: vec![],
        port: 8000,
        probes: Probes::default(),
        resources: AcceptedResources::default(),
        allowed_args: vec![],
        allowed_env: vec![],
        capabilities: Capabilities { prefix_caching: true, ..Capabilities::default() },
    }
}

fn slice() -> AcceptedAccelerator {
    AcceptedAccelerator::Gpu {
        class: "h100-80g".into(),
        count: 1,
        memory_bytes: Some(2 << 30),
        estimated: false,
        sm_percent: Some(10),
    }
}

fn whole(count: u32) -> AcceptedAccelerator {
    AcceptedAccelerator::Gpu { class: "h100-80g".into(), count, memory_bytes: None, estimated: false, sm_percent: None }
}

fn cpu() -> AcceptedAccelerator {
    AcceptedAccelerator::Cpu { cpu_milli: 2000, memory_bytes: 1 << 30 }
}

fn deployment(options: AcceptedOptions) -> AcceptedDeployment {
    AcceptedDeployment {
        model_name: "chat".into(),
        source: AcceptedSource::Image(AcceptedImage { reference: "models/m:1".into(), path: "/model.gguf".into() }),
        access: vec![],
        preload_nodes: 0,
        runtime: "r".into(),
        options,
        extra_args: vec![],
        variants: vec![],
        isolation: IsolationLevel::Shared,
        replicas: 1,
        scaling: AcceptedScaling::default(),
        drain_timeout: Duration::from_secs(600),
        pod: AcceptedPod::default(),
    }
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: value.into() }
}

#[test]
fn each_supported_adapter_exists_and_the_rule_of_the_schema_names_it() {
    let rows = stowage_crds::support::rows();
    let row = rows.iter().find(|row| row.kind == "InferenceRuntime" && row.path() == "spec.adapter").unwrap();
    let rule = row.expression();
    for name in AdapterName::ALL {
        assert_eq!(adapter(name).is_ok(), name.supported(), "{name:?}");
        let text = serde_json::to_value(name).unwrap();
        let quoted = format!("self.adapter == '{}'", text.as_str().unwrap());
        assert_eq!(rule.contains(&quoted), name.supported(), "{name:?}");
    }
}

/// The whole command line.
fn line(runtime: &AcceptedRuntime, deployment: &AcceptedDeployment, granted: &AcceptedAccelerator) -> String {
    let engine = engine(runtime, deployment, granted).unwrap();
    [engine.command, engine.args].concat().join(" ")
}

fn refused(runtime: &AcceptedRuntime, deployment: &AcceptedDeployment, granted: &AcceptedAccelerator) -> String {
    let refusals = engine(runtime, deployment, granted).unwrap_err();
    refusals.iter().map(|refusal| format!("{} {refusal}", refusal.reason)).collect::<Vec<_>>().join("\n")
}

#[test]
fn bundled_engine_takes_its_gpu_budget_from_the_claim() {
    let plain = deployment(AcceptedOptions::default());
    assert_eq!(
        line(&runtime(AdapterName::Stowage), &plain, &slice()),
        "serve --model /models/model.gguf --name chat --port 8000 --drain-timeout 600"
    );
}

#[test]
fn bundled_engine_gets_options_and_a_budget_on_cpu() {
    let mut runtime = runtime(AdapterName::Stowage);
    runtime.capabilities.kv_cache_types = vec!["bf16".into()];
    let options = AcceptedOptions {
        max_model_len: Some(2048),
        kv_cache_type: Some("bf16".into()),
        prefix_caching: Some(true),
        quantization: None,
    };
    assert_eq!(
        line(&runtime, &deployment(options), &cpu()),
        "serve --model /models/model.gguf --name chat --port 8000 --memory-bytes 1073741824 --drain-timeout 600 --max-model-len 2048 --kv-type bf16"
    );
}

#[test]
fn vllm_runs_on_whole_gpus() {
    let mut runtime = runtime(AdapterName::Vllm);
    runtime.capabilities.tensor_parallel = true;
    runtime.capabilities.quantizations = vec!["fp8".into()];
    let options = AcceptedOptions {
        max_model_len: Some(8192),
        quantization: Some("fp8".into()),
        kv_cache_type: None,
        prefix_caching: Some(false),
    };
    assert_eq!(
        line(&runtime, &deployment(options), &whole(2)),
        "vllm serve /models/model.gguf --served-model-name chat --host 0.0.0.0 --port 8000 --tensor-parallel-size 2 --max-model-len 8192 --quantization fp8 --no-enable-prefix-caching"
    );
    assert_eq!(
        refused(&runtime, &deployment(AcceptedOptions::default()), &slice()),
        "CapabilityMissing spec.variants[]: vLLM runs on whole GPUs; leave memory and compute out, or write runtime.ref: stowage-engine for a slice"
    );
}

#[test]
fn sglang_runs_on_whole_gpus() {
    let options =
        AcceptedOptions { max_model_len: Some(8192), prefix_caching: Some(false), ..AcceptedOptions::default() };
    assert_eq!(
        line(&runtime(AdapterName::Sglang), &deployment(options), &whole(1)),
        "python3 -m sglang.launch_server --model-path /models/model.gguf --served-model-name chat --host 0.0.0.0 --port 8000 --enable-metrics --tp-size 1 --context-length 8192 --disable-radix-cache"
    );
}

#[test]
fn what_the_image_does_not_declare_is_refused_with_what_it_does() {
    let options = AcceptedOptions { kv_cache_type: Some("fp8".into()), ..AcceptedOptions::default() };
    let mut runtime = runtime(AdapterName::Stowage);
    runtime.capabilities.kv_cache_types = vec!["f32".into(), "bf16".into()];
    assert_eq!(
        refused(&runtime, &deployment(options), &whole(2)),
        "CapabilityMissing spec.runtime.options.kvCacheType: \"fp8\" is not what this runtime can do (f32, bf16); write Auto\n\
         CapabilityMissing spec.variants[].count: this runtime uses one GPU per replica; write count: 1 and more replicas"
    );
}

#[test]
fn engine_that_gets_no_salt_per_tenant_is_not_shared() {
    let shared = AcceptedDeployment { access: vec!["team-b".into()], ..deployment(AcceptedOptions::default()) };
    for adapter in [AdapterName::Vllm, AdapterName::Sglang] {
        let refusal = refused(&runtime(adapter), &shared, &whole(1));
        assert!(refusal.starts_with("CapabilityMissing spec.model.access: "), "{refusal}");
        line(&runtime(adapter), &deployment(AcceptedOptions::default()), &whole(1));
    }
    line(&runtime(AdapterName::Stowage), &shared, &slice());
}

#[test]
fn engines_without_an_adapter_are_refused() {
    for name in [AdapterName::Triton, AdapterName::TensorrtLlm, AdapterName::Deepspeed] {
        let why = refused(&runtime(name), &deployment(AcceptedOptions::default()), &slice());
        assert!(why.starts_with("NotSupportedYet InferenceRuntime spec.adapter: "), "{why}");
    }
}

#[test]
fn runtimes_own_args_replace_the_adapters_and_are_filled_in() {
    let mut runtime = runtime(AdapterName::Stowage);
    runtime.args = ["serve", "--model={model.path}", "--name", "{model.name}", "--json={{\"port\": {port}}}"]
        .map(str::to_owned)
        .into();
    assert_eq!(
        line(&runtime, &deployment(AcceptedOptions::default()), &slice()),
        "serve --model=/models/model.gguf --name chat --json={\"port\": 8000}"
    );
}

#[test]
fn placeholders_that_mean_nothing_are_named() {
    let cases = [
        ("{model.size}", "{model.size} is not a placeholder; known are model.path"),
        ("{", "a \"{\" in \"{\" is not closed; write \"{{\" for a brace"),
        ("}", "a \"}\" in \"}\" closes nothing"),
        ("{cpu.memoryBytes}", "{cpu.memoryBytes} has no value for this deployment"),
        ("{é", "is not closed"),
    ];
    for (template, expected) in cases {
        let mut runtime = runtime(AdapterName::Stowage);
        runtime.args = vec![template.to_owned()];
        let why = refused(&runtime, &deployment(AcceptedOptions::default()), &slice());
        assert!(why.contains(expected) && why.contains("InferenceRuntime spec.args[0]"), "{template}: {why}");
    }
}

#[test]
fn flag_of_the_runtimes_own_args_cannot_be_chosen_again() {
    let mut runtime = runtime(AdapterName::Stowage);
    runtime.args = ["serve", "--max-model-len=512"].map(str::to_owned).into();
    let options = AcceptedOptions { max_model_len: Some(4096), ..AcceptedOptions::default() };
    let why = refused(&runtime, &deployment(options), &slice());
    assert!(why.contains("--max-model-len stands in the runtime's own args"), "{why}");
}

#[test]
fn extra_args_come_from_the_list_and_are_never_the_operators() {
    let mut runtime = runtime(AdapterName::Stowage);
    runtime.allowed_args = vec!["--threads".into(), "--name".into()];
    let mut asked = deployment(AcceptedOptions::default());
    asked.extra_args = vec!["--threads=2".into()];
    assert!(line(&runtime, &asked, &slice()).ends_with("--drain-timeout 600 --threads=2"));
    asked.extra_args = vec!["--max-running=8".into(), "--name=other".into()];
    assert_eq!(
        refused(&runtime, &asked, &slice()),
        "ArgNotAllowed spec.runtime.extraArgs[0]: --max-running is not allowed; this runtime allows --threads, --name\n\
         ArgNotAllowed spec.runtime.extraArgs[1]: --name is set by the operator; use the field of spec.runtime.options or spec.variants instead"
    );
}

#[test]
fn environment_is_the_runtimes_then_what_it_allows_and_last_what_is_fixed() {
    let mut runtime = runtime(AdapterName::Vllm);
    runtime.env = vec![variable("A", "1"), variable("NVIDIA_VISIBLE_DEVICES", "all")];
    runtime.allowed_env = vec!["B".into(), "NOT_ASKED".into()];
    let mut asked = deployment(AcceptedOptions::default());
    asked.pod.env = vec![variable("B", "2")];
    let engine = engine(&runtime, &asked, &whole(1)).unwrap();
    let names: Vec<&str> = engine.env.iter().map(|(name, _)| name.as_str()).collect();
    let own = ["HOME", "HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS"];
    assert_eq!(names, [own.as_slice(), &["A", "B", "NVIDIA_VISIBLE_DEVICES"]].concat());
    assert_eq!(engine.env.last().unwrap().1, "void");
}

#[test]
fn engine_on_cpu_gets_no_devices_of_the_node_either() {
    let engine = engine(&runtime(AdapterName::Stowage), &deployment(AcceptedOptions::default()), &cpu()).unwrap();
    assert_eq!(engine.env, [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())]);
}

#[test]
fn environment_that_the_runtime_does_not_allow_is_refused() {
    let mut runtime = runtime(AdapterName::Vllm);
    let mut asked = deployment(AcceptedOptions::default());
    asked.pod.env = vec![variable("LOG_LEVEL", "debug")];
    assert_eq!(
        refused(&runtime, &asked, &whole(1)),
        "EnvNotAllowed spec.podTemplate.env[0]: LOG_LEVEL is not allowed, this runtime allows no further environment; remove it, or ask the platform team for it in allowedEnv"
    );
    runtime.allowed_env = vec!["LOG_LEVEL".into()];
    assert!(engine(&runtime, &asked, &whole(1)).is_ok());
    asked.pod.env.push(variable("log_level", "debug"));
    assert_eq!(
        refused(&runtime, &asked, &whole(1)),
        "EnvNotAllowed spec.podTemplate.env[1]: log_level is not allowed; this runtime allows LOG_LEVEL"
    );
}

#[test]
fn variable_that_runs_code_or_chooses_devices_is_refused_even_if_listed() {
    for name in [
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PATH",
        "BASH_ENV",
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "HOME",
    ] {
        let mut runtime = runtime(AdapterName::Vllm);
        runtime.allowed_env = vec![name.into()];
        let mut asked = deployment(AcceptedOptions::default());
        asked.pod.env = vec![variable(name, "/models")];
        assert!(refused(&runtime, &asked, &whole(1)).starts_with("EnvNotAllowed spec.podTemplate.env[0]: "), "{name}");
    }
}

#[test]
fn container_has_port_and_probes() {
    let container =
        engine(&runtime(AdapterName::Stowage), &deployment(AcceptedOptions::default()), &slice()).unwrap().container();
    let readiness = container.readiness_probe.unwrap();
    assert_eq!((container.name.as_str(), readiness.period_seconds), ("engine", Some(1)));
    assert_eq!(readiness.http_get.unwrap().path.as_deref(), Some("/readyz"));
    assert_eq!(container.ports.unwrap()[0].container_port, 8000);
    assert_eq!(container.command, None);
}

#[test]
fn every_variant_is_checked_and_the_same_refusal_said_once() {
    let mut asked = deployment(AcceptedOptions { prefix_caching: Some(false), ..AcceptedOptions::default() });
    asked.variants = [slice(), cpu()].map(|accelerator| AcceptedVariant { name: "v".into(), accelerator }).into();
    assert_eq!(check(&runtime(AdapterName::Stowage), &asked).unwrap_err().len(), 1);
    asked.options.prefix_caching = None;
    assert_eq!(check(&runtime(AdapterName::Stowage), &asked), Ok(()));
}
