//! SmolLM2-135M-Instruct against Hugging Face transformers on the exactly dequantised weights.
//!
//! The model is looked for at `STOWAGE_TEST_MODEL`, else in the cache (`cargo xtask model` puts it
//! there); without it these tests say so and pass.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use common::{Difference, Teacher, argmax, difference, greedy, run, table, testdata};
use serde::Deserialize;
use stowage_engine_core::executor::Executor;
use stowage_engine_kernels::half::{f32_to_bf16, f32_to_f16};
use stowage_engine_models::gguf::Gguf;
use stowage_engine_models::{Isa, KvChoice, LoadOptions, Oracle, TokenizerSource, load};

#[derive(Deserialize)]
struct Golden {
    passage: Teacher,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
}

fn golden() -> Golden {
    serde_json::from_str(&testdata("smollm2-135m-instruct.json")).unwrap()
}

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn model_path() -> Option<PathBuf> {
    let cache = || {
        let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
        Some(cache.join("stowage/models").join(FILE))
    };
    let path = std::env::var_os("STOWAGE_TEST_MODEL").map(PathBuf::from).or_else(cache)?;
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no model at {} (get it with `cargo xtask model`)", path.display());
    None
}

fn options(isa: Isa, kv: &str) -> LoadOptions {
    LoadOptions { isa: Some(isa), kv_type: kv.parse().unwrap(), ..LoadOptions::default() }
}

/// How far the passage is off on a kernel set, prefilled in chunks.
fn passage(isa: Isa, kv: &str) -> Option<(Box<dyn Executor>, Golden, Difference)> {
    let path = model_path()?;
    if !isa.supported() {
        eprintln!("skipped: this processor has no {isa}");
        return None;
    }
    let golden = golden();
    let (mut model, _) = load(&path, &options(isa, kv)).unwrap();
    let ids = golden.passage.inputs();
    let rows = run(&mut model, ids, &table(ids.len(), 3), &[100]);
    let difference = difference(&golden.passage, &rows);
    eprintln!("{isa}, {kv} KV: {difference:?}");
    Some((model, golden, difference))
}

/// What f32 arithmetic must reach.
const F32_LIMIT: f64 = 1e-3;
/// llama.cpp's distance on the same file and text, as `cargo xtask bench engine --fidelity` measured it.
const LLAMA_CPP: f64 = 0.0515;

#[test]
fn f32_paths_agree_with_transformers_on_512_tokens() {
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable] {
        if let Some((_, _, d)) = passage(isa, "f32") {
            assert!(d.mean <= F32_LIMIT && d.mean_top <= F32_LIMIT, "{isa}: {d:?}");
        }
    }
}

#[test]
fn the_f32_path_writes_the_same_text_for_every_prompt() {
    let isa = if Isa::Avx512.supported() { Isa::Avx512 } else { Isa::detect() };
    let Some(path) = model_path() else { return };
    let (mut model, _) = load(&path, &options(isa, "f32")).unwrap();
    for p in golden().prompts {
        assert_eq!(greedy(&mut model, &p.ids, p.greedy.len()), p.greedy, "{}", p.prompt);
    }
}

#[test]
fn the_oracle_agrees_with_transformers() {
    let Some(path) = model_path() else { return };
    let golden = golden();
    let mut oracle = Oracle::load(&path).unwrap();
    // A quarter of the passage: the oracle is slow on purpose. The f32 paths take all of it.
    let n = 128;
    let short = Teacher {
        ids: golden.passage.ids[..n + 1].to_vec(),
        target: golden.passage.target[..n].to_vec(),
        top_ids: golden.passage.top_ids[..n].to_vec(),
        top: golden.passage.top[..n].to_vec(),
    };
    let rows: Vec<_> = short.inputs().iter().map(|id| oracle.next(*id)).collect();
    let d = difference(&short, &rows);
    eprintln!("oracle: {d:?}");
    assert!(d.mean <= F32_LIMIT && d.mean_top <= F32_LIMIT, "{d:?}");
}

#[test]
fn the_default_path_is_nearer_to_the_weights_than_llama_cpp() {
    let Some((_, _, d)) = passage(Isa::detect(), "auto") else { return };
    assert!(d.mean < LLAMA_CPP / 2.0 && d.regret < 0.01, "{d:?}");
}

#[test]
fn the_default_path_knows_the_capital_of_france() {
    let Some(path) = model_path() else { return };
    let (mut model, meta) = load(&path, &LoadOptions::default()).unwrap();
    let golden = golden();
    let p = golden.prompts.iter().find(|p| p.prompt.contains("France")).unwrap();
    let out = greedy(&mut model, &p.ids, 16);
    let end = out.iter().position(|t| meta.eog.contains(t)).expect("the answer ends");
    assert_eq!(text(&meta.tokenizer, &out[..end]), "The capital of France is Paris.");
}

/// Byte-level BPE, backwards: enough for ASCII answers.
fn text(tokenizer: &TokenizerSource, ids: &[u32]) -> String {
    let TokenizerSource::Gguf(t) = tokenizer else { panic!("a GGUF tokenizer") };
    ids.iter().map(|id| t.tokens[*id as usize].replace('Ġ', " ")).collect()
}

#[test]
fn what_the_file_says_about_itself_is_read() {
    let Some(path) = model_path() else { return };
    let (model, meta) = load(&path, &LoadOptions::default()).unwrap();
    let TokenizerSource::Gguf(t) = &meta.tokenizer else { panic!("a GGUF tokenizer") };
    assert_eq!((meta.architecture.as_str(), meta.context_len), ("llama", 8192));
    assert_eq!((t.model.as_str(), t.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((t.tokens.len(), t.merges.len(), t.types.len()), (49152, 48900, 49152));
    assert_eq!((meta.bos, t.eos, t.add_bos), (Some(1), Some(2), Some(false)));
    assert_eq!(meta.eog, [0, 2]);
    assert!(meta.chat_template.unwrap().contains("<|im_start|>"));
    assert_eq!(model.info().vocab, 49152);
}

#[test]
fn the_budget_bounds_everything() {
    let Some(path) = model_path() else { return };
    let budget = |bytes| LoadOptions { max_memory_bytes: Some(bytes), ..LoadOptions::default() };
    let (model, _) = load(&path, &budget(256 << 20)).unwrap();
    let info = model.info();
    let total = info.weight_bytes + info.scratch_bytes + info.num_blocks * info.block_bytes;
    assert!(total <= 256 << 20 && total + info.block_bytes > 256 << 20, "{info:?}");
    assert_eq!(info.context_len, (info.num_blocks * 16).min(8192));
    let error = load(&path, &budget(64 << 20)).err().unwrap().to_string();
    assert!(error.contains("its slice has 67,108,864"), "{error}");
}

#[test]
fn a_full_budget_keeps_its_first_token() {
    // The likeliest first token does not depend on where blocks lie or how the prompt was cut.
    let Some(path) = model_path() else { return };
    let golden = golden();
    let p = &golden.prompts[0];
    let options = LoadOptions { kv_type: KvChoice::Auto, ..LoadOptions::default() };
    let (mut model, _) = load(&path, &options).unwrap();
    let whole = run(&mut model, &p.ids, &table(p.ids.len(), 0), &[64]);
    let cut = run(&mut model, &p.ids, &table(p.ids.len(), 9), &[1, 7, 3, 16]);
    assert_eq!(whole, cut);
    assert_eq!(argmax(whole.last().unwrap()), p.greedy[0]);
}

/// The model's weights in a float type, as a safetensors directory that goes away.
struct Converted(PathBuf);

impl Drop for Converted {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Row `r` of a Q or K in transformers' order, in GGUF's: pairs that rotate are neighbours there.
fn gguf_row(r: usize) -> usize {
    let (head, d) = (r / 64 * 64, r % 64);
    head + 2 * (d % 32) + d / 32
}

fn hf_name(name: &str) -> String {
    let name = match name {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => "model.norm.weight".to_owned(),
        other => other.replace("blk.", "model.layers."),
    };
    [
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ]
    .iter()
    .fold(name, |name, (from, to)| name.replace(from, to))
}

fn convert(path: &std::path::Path, dtype: &str, round: fn(f32) -> u16) -> Converted {
    let bytes = std::fs::read(path).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for t in Gguf::parse(&bytes).unwrap().tensors {
        let cols = t.dims[0] as usize;
        let rows = t.dims.get(1).map_or(1, |r| *r as usize);
        let (row_bytes, start) = (t.ty.row_bytes(cols).unwrap(), data.len());
        let permuted = t.name.contains("attn_q.") || t.name.contains("attn_k.");
        let mut values = vec![0.0; cols];
        for r in 0..rows {
            let from = if permuted { gguf_row(r) } else { r };
            t.ty.dequantize_row(&bytes[t.range.clone()][from * row_bytes..][..row_bytes], &mut values);
            data.extend(values.iter().flat_map(|x| round(*x).to_le_bytes()));
        }
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        let entry = serde_json::json!({
            "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()],
        });
        header.insert(hf_name(&t.name), entry);
    }
    let dir = std::env::temp_dir().join(format!("stowage-{dtype}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let header = serde_json::to_vec(&header).unwrap();
    let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    std::fs::write(dir.join("model.safetensors"), [head, data].concat()).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "tie_word_embeddings": true, "eos_token_id": 2,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    Converted(dir)
}

#[test]
fn the_same_weights_in_bf16_and_f16_know_the_capital_of_france_too() {
    let Some(path) = model_path() else { return };
    let golden = golden();
    let p = golden.prompts.iter().find(|p| p.prompt.contains("France")).unwrap();
    let end = p.greedy.iter().position(|t| *t == 2).unwrap();
    for (dtype, round) in [("BF16", f32_to_bf16 as fn(f32) -> u16), ("F16", f32_to_f16)] {
        let dir = convert(&path, dtype, round);
        let (mut model, _) = load(&dir.0, &LoadOptions::default()).unwrap();
        assert_eq!(greedy(&mut model, &p.ids, end + 1), p.greedy[..=end], "{dtype}");
    }
}
