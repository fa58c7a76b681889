//! `{model.path}` and its kind in a runtime's own `args`. `{{` and `}}` are braces.

use stowage_crds::conditions::reasons;
use stowage_crds::validate::AcceptedAccelerator;

use crate::{Adapter, Facts, Refusal};

/// Names of all placeholders, as messages list them.
const KNOWN: &str = "model.path, model.name, port, gpu.count, gpu.memoryBytes, gpu.smPercent, cpu.memoryBytes, options.maxModelLen, drain.seconds";

/// The runtime's own arguments with placeholders filled, or the adapter's.
pub fn or_default(facts: &Facts<'_>, adapter: &dyn Adapter) -> Result<Vec<String>, Vec<Refusal>> {
    if facts.runtime.args.is_empty() {
        return Ok(adapter.base(facts));
    }
    let mut refusals = Vec::new();
    let mut args = Vec::new();
    for (index, template) in facts.runtime.args.iter().enumerate() {
        match fill(template, facts) {
            Ok(arg) => args.push(arg),
            Err(message) => {
                let field = format!("InferenceRuntime spec.args[{index}]");
                refusals.push(Refusal::new(field, reasons::INVALID, message));
            }
        }
    }
    if refusals.is_empty() { Ok(args) } else { Err(refusals) }
}

fn fill(template: &str, facts: &Facts<'_>) -> Result<String, String> {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        filled.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            filled.push_str(brace);
            rest = after;
        } else if brace == "}" {
            return Err(format!("a \"}}\" in {template:?} closes nothing; write \"}}}}\" for a brace"));
        } else {
            let (name, after) = rest
                .split_once('}')
                .ok_or_else(|| format!("a \"{{\" in {template:?} is not closed; write \"{{{{\" for a brace"))?;
            filled.push_str(&value(name, facts)?);
            rest = after;
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(name: &str, facts: &Facts<'_>) -> Result<String, String> {
    let absent = || {
        format!("{{{name}}} has no value for this deployment; leave it out of args, the adapter adds what is asked for")
    };
    let (count, gpu_memory, sm, cpu_memory) = match facts.granted {
        AcceptedAccelerator::Gpu { count, memory_bytes, sm_percent, .. } => {
            (Some(*count), *memory_bytes, *sm_percent, None)
        }
        AcceptedAccelerator::Cpu { memory_bytes, .. } => (None, None, None, Some(*memory_bytes)),
    };
    match name {
        "model.path" => Ok(facts.model_path.clone()),
        "model.name" => Ok(facts.model_name.to_owned()),
        "port" => Ok(facts.runtime.port.to_string()),
        "drain.seconds" => Ok(facts.drain_seconds.to_string()),
        "gpu.count" => count.map(|n| n.to_string()).ok_or_else(absent),
        "gpu.memoryBytes" => gpu_memory.map(|n| n.to_string()).ok_or_else(absent),
        "gpu.smPercent" => sm.map(|n| n.to_string()).ok_or_else(absent),
        "cpu.memoryBytes" => cpu_memory.map(|n| n.to_string()).ok_or_else(absent),
        "options.maxModelLen" => facts.options.max_model_len.map(|n| n.to_string()).ok_or_else(absent),
        _ => Err(format!("{{{name}}} is not a placeholder; known are {KNOWN}")),
    }
}
