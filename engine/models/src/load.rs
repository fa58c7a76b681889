//! Opening a model: find out what it is, check it, see whether it fits, pack it.

use std::path::Path;
use std::str::FromStr;

use stowage_engine_core::executor::{BLOCK_TOKENS, Executor};
use stowage_engine_kernels::cpu::KvType;
use stowage_engine_kernels::isa::{ISA_ENV, Isa};

use crate::meta::ModelMeta;
use crate::read::error::LoadError;
use crate::read::{self, Opened};
use crate::run::{CpuModel, Memory, Plan, weight_bytes};

/// What the caller decides about an instance.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Bounds weights + KV + scratch, in bytes. `None`: as much KV as `DEFAULT_SEQUENCES` sequences
    /// of full length need, at most `DEFAULT_KV_BYTES`.
    pub max_memory_bytes: Option<u64>,
    pub kv_type: KvChoice,
    /// `None`: one per core this process may use.
    pub threads: Option<usize>,
    /// A shorter context than the model's, in tokens.
    pub max_model_len: Option<usize>,
    /// `None`: `STOWAGE_ENGINE_ISA` if set, else the best the processor has.
    pub isa: Option<Isa>,
    /// The most tokens a step may carry. More is no faster and costs scratch memory.
    pub max_step_tokens: usize,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            max_memory_bytes: None,
            kv_type: KvChoice::Auto,
            threads: None,
            max_model_len: None,
            isa: None,
            max_step_tokens: 512,
        }
    }
}

/// What the server sets [`LoadOptions::max_step_tokens`] to where it is not asked for another number.
pub const SERVER_STEP_TOKENS: u32 = 128;

/// How K and V are kept. `Auto` is what the fidelity tests allow by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvChoice {
    #[default]
    Auto,
    Type(KvType),
}

impl FromStr for KvChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<KvChoice, String> {
        if s == "auto" { Ok(KvChoice::Auto) } else { s.parse().map(KvChoice::Type) }
    }
}

impl KvChoice {
    pub(crate) fn resolve(self) -> KvType {
        match self {
            KvChoice::Auto => KvType::Bf16,
            KvChoice::Type(ty) => ty,
        }
    }
}

/// The cache's size when no budget is given: memory becomes resident only where used.
const DEFAULT_SEQUENCES: usize = 4;
const DEFAULT_KV_BYTES: usize = 4 << 30;
/// Fewer blocks than this cannot serve a useful request.
const MIN_BLOCKS: usize = 16;

/// Loads a GGUF file or a safetensors directory.
pub fn load(path: &Path, options: &LoadOptions) -> Result<(Box<dyn Executor>, ModelMeta), LoadError> {
    let opened = read::open(path)?;
    let isa = choose_isa(options.isa, std::env::var(ISA_ENV).ok().as_deref())?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(cores).max(1);
    let plan = plan(&opened, options, isa, threads)?;
    let model = CpuModel::build(&opened, plan)?;
    Ok((Box::new(model), opened.meta))
}

fn choose_isa(option: Option<Isa>, env: Option<&str>) -> Result<Isa, LoadError> {
    let forced = match (option, env) {
        (Some(isa), _) => Some(isa),
        (None, Some(name)) if !name.is_empty() => Some(name.parse().map_err(LoadError::Isa)?),
        _ => None,
    };
    match forced {
        Some(isa) if !isa.supported() => Err(LoadError::IsaMissing(isa)),
        Some(isa) => Ok(isa),
        None => Ok(Isa::detect()),
    }
}

/// Divides the byte budget between weights, scratch and KV.
fn plan(opened: &Opened, options: &LoadOptions, isa: Isa, threads: usize) -> Result<Plan, LoadError> {
    let config = &opened.config;
    let wanted = match options.max_model_len {
        Some(asked) if asked > config.context_len => {
            return Err(LoadError::ContextTooLong { asked, model: config.context_len });
        }
        Some(asked) => asked.max(1),
        None => config.context_len,
    };
    let mut plan = Plan {
        isa,
        threads,
        kv_type: options.kv_type.resolve(),
        context_len: wanted,
        max_step_tokens: options.max_step_tokens.clamp(BLOCK_TOKENS, 1 << 14),
        num_blocks: 0,
    };
    let weights = weight_bytes(config, &opened.weights);
    let block = plan.kv_layout(config).block_bytes();
    let full = wanted.div_ceil(BLOCK_TOKENS);
    // With an explicit length the whole of it must fit; else a shorter context will do.
    let least = if options.max_model_len.is_some() { full } else { full.min(MIN_BLOCKS) };
    plan.num_blocks = match options.max_memory_bytes {
        None => (DEFAULT_SEQUENCES * full).min(DEFAULT_KV_BYTES / block).max(full),
        Some(budget) => {
            let Memory { weights, scratch, kv } =
                Memory::of(config, weights, &Plan { num_blocks: least, ..plan.clone() });
            let left = budget.saturating_sub(weights + scratch);
            if left < kv {
                return Err(LoadError::DoesNotFit { weights, scratch, kv, tokens: least * BLOCK_TOKENS, budget });
            }
            usize::try_from(left / block as u64).unwrap_or(usize::MAX)
        }
    };
    // Block ids are u32, and no model needs more than this.
    plan.num_blocks = plan.num_blocks.min(1 << 24);
    plan.context_len = wanted.min(plan.num_blocks * BLOCK_TOKENS);
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_wins_over_the_environment_and_that_over_detection() {
        let chosen = choose_isa(Some(Isa::Portable), Some("avx2")).unwrap();
        assert_eq!(chosen, Isa::Portable);
        assert_eq!(choose_isa(None, Some("portable")).unwrap(), Isa::Portable);
        assert_eq!(choose_isa(None, Some("")).unwrap(), Isa::detect());
        assert_eq!(choose_isa(None, None).unwrap(), Isa::detect());
    }

    #[test]
    fn an_unknown_kernel_set_is_refused_by_name() {
        let error = choose_isa(None, Some("sse")).unwrap_err().to_string();
        assert!(error.starts_with("STOWAGE_ENGINE_ISA: unknown kernel set \"sse\""), "{error}");
    }
}
