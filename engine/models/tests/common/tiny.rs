//! Small models that exist only as a rule: a counter-based generator fills every tensor from its
//! name, here and in `engine/tools/make_goldens.py` alike, so that only expected numbers need to
//! be kept. This side writes them as real GGUF and safetensors files.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use stowage_engine_kernels::WeightType;
use stowage_engine_kernels::half::{f32_to_bf16, f32_to_f16};

pub const VOCAB: usize = 384;
const HIDDEN: usize = 96;
const FFN: usize = 160;
const LAYERS: usize = 3;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const DIM: usize = 32;

/// splitmix64 on a counter, seeded by the FNV-1a of a name.
fn stream(name: &str, n: usize) -> impl Iterator<Item = u64> + use<> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (1..=n as u64).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Uniform in [-1, 1), 24 bits.
fn unit(word: u64) -> f64 {
    (word >> 40) as f64 / f64::from(1 << 23) - 1.0
}

/// A tensor's bytes as a file has them, row after row.
fn tensor(name: &str, n: usize, ty: WeightType, scale: f64) -> Vec<u8> {
    let words: Vec<u64> = stream(name, n).collect();
    let floats = words.iter().map(|w| (unit(*w) * scale) as f32);
    match ty {
        WeightType::F32 => floats.flat_map(f32::to_le_bytes).collect(),
        WeightType::F16 => floats.flat_map(|x| f32_to_f16(x).to_le_bytes()).collect(),
        WeightType::Bf16 => floats.flat_map(|x| f32_to_bf16(x).to_le_bytes()).collect(),
        _ => groups(name, &words, ty, scale),
    }
}

fn groups(name: &str, words: &[u64], ty: WeightType, scale: f64) -> Vec<u8> {
    let steps = match ty {
        WeightType::Q8_0 => 127.0,
        WeightType::Q4_0 => 8.0,
        _ => 7.5,
    };
    let heads = stream(&format!("{name}.d"), words.len() / 32).map(|w| unit(w) * 0.25 + 1.0);
    let mut out = Vec::new();
    for (head, words) in heads.zip(words.chunks_exact(32)) {
        out.extend(f32_to_f16((head * scale / steps) as f32).to_le_bytes());
        if ty == WeightType::Q4_1 {
            out.extend(f32_to_f16((-head * scale) as f32).to_le_bytes());
        }
        if ty == WeightType::Q8_0 {
            out.extend(words.iter().map(|w| ((w >> 56) as i16 - 128).max(-127) as i8 as u8));
        } else {
            out.extend((0..16).map(|i| (words[i] >> 60) as u8 | ((words[i + 16] >> 60) as u8) << 4));
        }
    }
    out
}

/// One tensor of the model, under transformers' name.
struct Part {
    name: String,
    gguf: String,
    rows: usize,
    cols: usize,
    ty: WeightType,
    bytes: Vec<u8>,
}

fn parts(arch: &str, ty: WeightType) -> Vec<Part> {
    let mut out = Vec::new();
    let mut add = |name: String, gguf: String, rows: usize, cols: usize| {
        let (part_ty, bytes) = if rows == 1 {
            let bias = name.ends_with("bias");
            let mut bytes = tensor(&name, cols, WeightType::F32, 0.3);
            for x in bytes.chunks_exact_mut(4).filter(|_| !bias) {
                let value = f32::from_le_bytes(x.try_into().unwrap()) + 1.0;
                x.copy_from_slice(&value.to_le_bytes());
            }
            (WeightType::F32, bytes)
        } else {
            let sharp = name.contains(".q_proj") || name.contains(".k_proj");
            let wide = name.contains("embed") || name.contains("lm_head");
            let scale = if wide {
                0.5
            } else if sharp {
                0.35
            } else {
                0.15
            };
            (ty, tensor(&name, rows * cols, ty, scale))
        };
        out.push(Part { name, gguf, rows, cols, ty: part_ty, bytes });
    };
    add("model.embed_tokens.weight".into(), "token_embd.weight".into(), VOCAB, HIDDEN);
    add("model.norm.weight".into(), "output_norm.weight".into(), 1, HIDDEN);
    if arch == "llama" {
        add("lm_head.weight".into(), "output.weight".into(), VOCAB, HIDDEN);
    }
    for i in 0..LAYERS {
        let mut both = |hf: &str, gguf: &str, rows, cols| {
            add(format!("model.layers.{i}.{hf}"), format!("blk.{i}.{gguf}"), rows, cols);
        };
        let (q, kv) = (HEADS * DIM, KV_HEADS * DIM);
        both("input_layernorm.weight", "attn_norm.weight", 1, HIDDEN);
        both("self_attn.q_proj.weight", "attn_q.weight", q, HIDDEN);
        both("self_attn.k_proj.weight", "attn_k.weight", kv, HIDDEN);
        both("self_attn.v_proj.weight", "attn_v.weight", kv, HIDDEN);
        both("self_attn.o_proj.weight", "attn_output.weight", HIDDEN, q);
        if arch == "qwen2" {
            both("self_attn.q_proj.bias", "attn_q.bias", 1, q);
            both("self_attn.k_proj.bias", "attn_k.bias", 1, kv);
            both("self_attn.v_proj.bias", "attn_v.bias", 1, kv);
        }
        if arch == "qwen3" {
            both("self_attn.q_norm.weight", "attn_q_norm.weight", 1, DIM);
            both("self_attn.k_norm.weight", "attn_k_norm.weight", 1, DIM);
        }
        both("post_attention_layernorm.weight", "ffn_norm.weight", 1, HIDDEN);
        both("mlp.gate_proj.weight", "ffn_gate.weight", FFN, HIDDEN);
        both("mlp.up_proj.weight", "ffn_up.weight", FFN, HIDDEN);
        both("mlp.down_proj.weight", "ffn_down.weight", HIDDEN, FFN);
    }
    out
}

/// Writes the model below `dir` and returns what to load: a directory of safetensors for float
/// types, a GGUF file for quantised ones (and for floats when `gguf` asks for it).
pub fn write(dir: &Path, arch: &str, ty: WeightType, gguf: bool) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    if gguf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, gguf_bytes(arch, ty)).unwrap();
        return path;
    }
    let float = |t: WeightType| t.name().to_uppercase();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for p in parts(arch, ty) {
        let start = data.len();
        data.extend(&p.bytes);
        let shape = if p.rows == 1 { vec![p.cols] } else { vec![p.rows, p.cols] };
        let entry = serde_json::json!({
            "dtype": float(p.ty), "shape": shape, "data_offsets": [start, data.len()],
        });
        header.insert(p.name, entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    let config = serde_json::json!({
        "model_type": arch, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": DIM, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "eos_token_id": [2, 1], "bos_token_id": 1, "tie_word_embeddings": arch != "llama",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let template = serde_json::json!({ "chat_template": "{{ messages[0].content }}" });
    std::fs::write(dir.join("tokenizer_config.json"), template.to_string()).unwrap();
    dir.to_owned()
}

pub fn gguf_bytes(arch: &str, ty: WeightType) -> Vec<u8> {
    let parts = parts(arch, ty);
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut meta: Vec<Vec<u8>> = Vec::new();
    let mut string = |key: &str, value: &str| {
        meta.push([text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat());
    };
    string("general.architecture", arch);
    string("general.name", "tiny");
    for (key, value) in [
        ("block_count", LAYERS),
        ("context_length", 512),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", DIM),
        ("attention.value_length", DIM),
    ] {
        let key = text(&format!("{arch}.{key}"));
        meta.push([key, 4u32.to_le_bytes().to_vec(), (value as u32).to_le_bytes().to_vec()].concat());
    }
    for (key, value) in [("rope.freq_base", 10000f32), ("attention.layer_norm_rms_epsilon", 1e-5)] {
        let key = text(&format!("{arch}.{key}"));
        meta.push([key, 6u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
    }
    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    file.extend((parts.len() as u64).to_le_bytes());
    file.extend((meta.len() as u64).to_le_bytes());
    meta.iter().for_each(|m| file.extend(m));
    let mut data: Vec<u8> = Vec::new();
    for p in &parts {
        data.resize(data.len().next_multiple_of(32), 0);
        file.extend(text(&p.gguf));
        let dims: &[usize] = if p.rows == 1 { &[p.cols] } else { &[p.cols, p.rows] };
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| file.extend((*d as u64).to_le_bytes()));
        file.extend(type_id(p.ty).to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(interleave(arch, p));
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

fn type_id(ty: WeightType) -> u32 {
    match ty {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::Q4_0 => 2,
        WeightType::Q4_1 => 3,
        WeightType::Q8_0 => 8,
        WeightType::Bf16 => 30,
    }
}

/// What GGUF's converter does to Q and K of the llama architecture: row `(head, half, i)` goes to
/// `(head, i, half)`.
fn interleave(arch: &str, p: &Part) -> Vec<u8> {
    let permuted = p.gguf.ends_with("attn_q.weight") || p.gguf.ends_with("attn_k.weight");
    if arch != "llama" || !permuted {
        return p.bytes.clone();
    }
    let row = p.bytes.len() / p.rows;
    let source = |r: usize| r / DIM * DIM + r % 2 * (DIM / 2) + r % DIM / 2;
    (0..p.rows).flat_map(|r| p.bytes[source(r) * row..][..row].to_vec()).collect()
}
