//! `model pack`: an image of a model for registries and nodes, and a deployment that serves it.

use std::path::{Path, PathBuf};

use stowage_contracts::estimate::SEQUENCES;
use stowage_crds::syntax::{is_dns_label, is_image_reference};
use stowage_engine_models::chain;
use stowage_engine_models::inspect::{self, Facts, Served};
use stowage_oci::OciError;
use stowage_oci::model::Packed;

use super::inspect::slice;
use super::within;
use crate::{Answer, Failure};

/// Context of the deployment where the model's is longer, in tokens.
const CONTEXT: usize = 8192;
/// Names of deployments are at most this long: pods are named after them.
const MAX_NAME: usize = stowage_crds::names::MAX_DEPLOYMENT_NAME;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A GGUF file (of a split model the first part), or a directory with safetensors.
    source: PathBuf,
    /// The image's reference; `localhost/models/NAME:1` otherwise.
    #[arg(long)]
    image: Option<String>,
    /// Name of the model and of the deployment; after the file otherwise.
    #[arg(long)]
    name: Option<String>,
    /// GpuClass of the deployment.
    #[arg(long, default_value = "h100-80g")]
    class: String,
    /// Tokens of prompt and answer together; the model's own, at most 8192, otherwise.
    #[arg(long)]
    context: Option<usize>,
}

/// Writes the archive `out`.
pub fn run(args: &Args, out: Option<&Path>) -> Result<Answer, Failure> {
    let out = out.ok_or_else(|| Failure::Usage("name the archive to write, for example: -o model.tar".into()))?;
    let name = args.name.clone().unwrap_or_else(|| name_after(&args.source));
    if !is_dns_label(&name) || name.len() > MAX_NAME || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        let why = format!(
            "{name:?} is no name of a deployment; write --name with lower-case letters, digits and -, at most {MAX_NAME}"
        );
        return Err(Failure::Usage(why));
    }
    let image = args.image.clone().unwrap_or_else(|| format!("localhost/models/{name}:1"));
    if !is_image_reference(&image) {
        let why =
            format!("{image:?} is no image reference; write for example --image registry.example/models/{name}:1");
        return Err(Failure::Usage(why));
    }
    let facts = inspect::path(&args.source).map_err(|e| Failure::Model(chain(&e)))?;
    let memory = memory(&facts, args.context)?;
    let packed =
        stowage_oci::model::pack(&args.source, out, &image).map_err(|e: OciError| Failure::Model(chain(&e)))?;
    eprintln!("{}: {image}, {}", out.display(), packed.digest);
    if !packed.left_out.is_empty() {
        eprintln!("left out, because they are not data: {}", packed.left_out.join(", "));
    }
    Ok(Answer { text: deployment(&name, &image, &packed, &args.class, &memory), yes: true })
}

/// What the deployment asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    memory: String,
    /// Shorter than the model's own.
    max_model_len: Option<usize>,
    /// What the memory consists of, or why it is a guess.
    remark: String,
}

fn memory(facts: &Facts, context: Option<usize>) -> Result<Asked, Failure> {
    let needs = facts
        .engine
        .as_ref()
        .map_err(|e| Failure::Model(format!("the bundled engine does not serve it: {}", chain(e))))?;
    let own = needs.context_len();
    let context = context.unwrap_or(own.min(CONTEXT));
    within(context, own)?;
    let parts = needs.memory(Served { sequences: SEQUENCES as usize, ..Served::one(context) });
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let remark = format!(
        "{} MiB weights, {} MiB KV cache for {SEQUENCES} × {context} tokens, {} MiB scratch",
        mib(parts.weights),
        mib(parts.kv),
        mib(parts.scratch)
    );
    Ok(Asked { memory: slice(parts.total()), max_model_len: (context < own).then_some(context), remark })
}

fn deployment(name: &str, image: &str, packed: &Packed, class: &str, asked: &Asked) -> String {
    let options =
        asked.max_model_len.map(|n| format!("  runtime: {{options: {{maxModelLen: {n}}}}}\n")).unwrap_or_default();
    format!(
        "apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {{name: {name}}}
spec:
  model:
    source: {{image: {{reference: \"{image}\", path: {path:?}}}}}
{options}  variants:
  # {remark}
  - {{name: slice, class: {class}, memory: {memory}, compute: 10}}
  scaling: {{mode: Manual}}
",
        path = packed.path,
        remark = asked.remark,
        memory = asked.memory,
    )
}

/// A deployment's name after a file: lower-case letters, digits and dashes.
fn name_after(source: &Path) -> String {
    let absolute = std::path::absolute(source).unwrap_or_else(|_| source.to_owned());
    let named = if absolute.is_dir() { absolute.file_name() } else { absolute.file_stem() };
    let text = named.map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert_str(0, "m-");
    }
    name.truncate(MAX_NAME);
    while name.contains("--") {
        name = name.replace("--", "-");
    }
    name.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_crds::InferenceDeployment;
    use stowage_crds::validate::validate_deployment;

    #[test]
    fn names_follow_from_files() {
        for (file, name) in [
            ("/m/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct-q4"),
            ("/m/7b.gguf", "m-7b"),
            ("/m/--x__y--.gguf", "m-x-y"),
            ("/m/模型.gguf", "m"),
        ] {
            let found = name_after(Path::new(file));
            assert!(found.starts_with(name), "{file}: {found}");
            assert!(is_dns_label(&found) && found.len() <= MAX_NAME, "{found}");
        }
    }

    #[test]
    fn printed_deployment_is_accepted() {
        let packed = Packed { digest: String::new(), path: "/model.gguf".into(), left_out: vec![] };
        for max_model_len in [None, Some(4096)] {
            let asked = Asked { memory: "512Mi".into(), max_model_len, remark: "parts".into() };
            let text = deployment("mine", "localhost/models/mine:1", &packed, "h100-80g", &asked);
            let parsed: InferenceDeployment = serde_yaml::from_str(&text).unwrap();
            let accepted = validate_deployment("mine", &parsed.spec).unwrap();
            assert_eq!(accepted.options.max_model_len, max_model_len.map(|n| n as u32));
            assert_eq!(parsed.spec.model.source.image.unwrap().path, "/model.gguf");
        }
    }
}
