//! Clockwork models: small real model files whose answer is known in advance.
//!
//! The embedding is one-hot, attention and feed-forward weights are zero, and row `j` of the output
//! matrix is 1 wherever token `j` follows. So the greedy next token is a function of the last token and
//! nothing else, and what a server makes of it (which tokens a prompt becomes, when an answer ends, how
//! tokens are spelt) can be compared with the right value exactly.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Width of the model; the vocabulary may not be larger.
const HIDDEN: usize = 512;
const FFN: usize = 32;
const HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;

pub const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A vocabulary and what follows each of its tokens.
#[derive(Clone, Default)]
pub struct Clockwork {
    /// As the file spells them.
    pub tokens: Vec<String>,
    /// GGUF's types.
    pub types: Vec<u32>,
    pub merges: Vec<String>,
    pub next: BTreeMap<usize, usize>,
    /// What follows where nothing is said.
    pub end: usize,
}

pub const NORMAL: u32 = 1;
pub const CONTROL: u32 = 3;
pub const USER_DEFINED: u32 = 4;

/// GPT-2's spelling of bytes.
pub fn byte_level(bytes: &[u8]) -> String {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others: Vec<u8> = (0..=255).filter(|b| !printable(*b)).collect();
    let spelt = |b: &u8| match others.iter().position(|o| o == b) {
        None => char::from(*b),
        Some(at) => char::from_u32(0x100 + at as u32).unwrap(),
    };
    bytes.iter().map(spelt).collect()
}

impl Clockwork {
    /// All bytes, then control tokens.
    pub fn byte_level(specials: &[&str]) -> Self {
        let mut model = Self::default();
        for byte in 0..=255u8 {
            model.add(&byte_level(&[byte]), NORMAL);
        }
        for special in specials {
            model.add(special, CONTROL);
        }
        model.end = 256;
        model
    }

    /// The usual: ChatML, and the answer to everything is `Hello world!`.
    pub fn hello() -> Self {
        let mut model = Self::byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
        model.says(&[b"\n", b"Hel", b"lo", b" wor", b"ld", b"!"], "<|im_end|>");
        model
    }

    /// SentencePiece's first tokens: `<unk>`, `<s>`, `</s>`, 256 bytes.
    pub fn sentence_piece(words: &[&str]) -> Self {
        let mut model = Self { end: 2, ..Self::default() };
        for (text, kind) in [("<unk>", 2), ("<s>", CONTROL), ("</s>", CONTROL)] {
            model.add(text, kind);
        }
        for byte in 0..=255u8 {
            model.add(&format!("<0x{byte:02X}>"), 6);
        }
        for word in words {
            model.add(word, NORMAL);
        }
        model
    }

    pub fn add(&mut self, text: &str, kind: u32) -> usize {
        if let Some(at) = self.tokens.iter().position(|token| token == text) {
            return at;
        }
        self.tokens.push(text.to_owned());
        self.types.push(kind);
        self.tokens.len() - 1
    }

    pub fn id(&self, text: &str) -> usize {
        self.tokens.iter().position(|token| token == text).unwrap_or_else(|| panic!("no token {text:?}"))
    }

    /// After the first come the others, then a token by its name.
    pub fn says(&mut self, words: &[&[u8]], last: &str) {
        let mut ids: Vec<usize> = words.iter().map(|word| self.add(&byte_level(word), NORMAL)).collect();
        ids.push(self.id(last));
        self.chain(&ids);
    }

    pub fn chain(&mut self, ids: &[usize]) {
        for pair in ids.windows(2) {
            let before = self.next.insert(pair[0], pair[1]);
            assert!(before.is_none_or(|before| before == pair[1]), "two followers of {}", pair[0]);
        }
    }

    /// Tensors by GGUF name: shape (rows, columns; one row for vectors) and values.
    pub fn tensors(&self) -> BTreeMap<String, ((usize, usize), Vec<f32>)> {
        let vocab = self.tokens.len();
        assert!(vocab <= HIDDEN, "{vocab} tokens");
        let (mut embedding, mut output) = (vec![0.0; vocab * HIDDEN], vec![0.0; vocab * HIDDEN]);
        for i in 0..vocab {
            embedding[i * HIDDEN + i] = 1.0;
            output[self.next.get(&i).unwrap_or(&self.end) * HIDDEN + i] = 1.0;
        }
        let zeros = |rows: usize, cols: usize| ((rows, cols), vec![0.0; rows * cols]);
        let ones = || ((1, HIDDEN), vec![1.0; HIDDEN]);
        [
            ("token_embd.weight", ((vocab, HIDDEN), embedding)),
            ("output.weight", ((vocab, HIDDEN), output)),
            ("output_norm.weight", ones()),
            ("blk.0.attn_norm.weight", ones()),
            ("blk.0.ffn_norm.weight", ones()),
            ("blk.0.attn_q.weight", zeros(HIDDEN, HIDDEN)),
            ("blk.0.attn_k.weight", zeros(HEAD_DIM, HIDDEN)),
            ("blk.0.attn_v.weight", zeros(HEAD_DIM, HIDDEN)),
            ("blk.0.attn_output.weight", zeros(HIDDEN, HIDDEN)),
            ("blk.0.ffn_gate.weight", zeros(FFN, HIDDEN)),
            ("blk.0.ffn_up.weight", zeros(FFN, HIDDEN)),
            ("blk.0.ffn_down.weight", zeros(HIDDEN, FFN)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
    }

    /// A vector of zeros but for one large number at a token: added to the residual stream, it makes the
    /// model continue as after that token.
    pub fn push_towards(&self, token: usize) -> ((usize, usize), Vec<f32>) {
        let mut values = vec![0.0; HIDDEN];
        values[token] = 1000.0;
        ((1, HIDDEN), values)
    }

    /// A tokenizer.json of byte-level BPE.
    pub fn tokenizer_json(&self) -> Value {
        let vocab: BTreeMap<&str, usize> = self.tokens.iter().map(String::as_str).zip(0..).collect();
        let added: Vec<Value> = (0..self.tokens.len())
            .filter(|i| self.types[*i] != NORMAL)
            .map(|i| {
                json!({"id": i, "content": self.tokens[i], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": self.types[i] == CONTROL})
            })
            .collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": self.merges},
        })
    }
}

/// A model as a GGUF file.
pub struct Gguf<'a> {
    pub model: &'a Clockwork,
    pub tensors: BTreeMap<String, ((usize, usize), Vec<f32>)>,
    /// Metadata beside what every model has, or in its place.
    pub metadata: BTreeMap<String, Meta>,
}

#[derive(Clone)]
pub enum Meta {
    Text(String),
    Uint(u32),
    Int(i32),
    Short(u16),
    Float(f32),
    Flag(bool),
    Texts(Vec<String>),
    Uints(Vec<u32>),
    Floats(Vec<f32>),
    /// Not there at all.
    Missing,
}

impl<'a> Gguf<'a> {
    pub fn new(model: &'a Clockwork) -> Self {
        let text = |s: &str| Meta::Text(s.to_owned());
        let metadata = [
            ("general.architecture", text("llama")),
            ("general.name", text("clockwork")),
            ("llama.context_length", Meta::Uint(2048)),
            ("llama.embedding_length", Meta::Uint(HIDDEN as u32)),
            ("llama.block_count", Meta::Uint(1)),
            ("llama.feed_forward_length", Meta::Uint(FFN as u32)),
            ("llama.attention.head_count", Meta::Uint(HEADS as u32)),
            ("llama.attention.head_count_kv", Meta::Uint(1)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::Float(1e-5)),
            ("llama.rope.freq_base", Meta::Float(10000.0)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            ("tokenizer.ggml.tokens", Meta::Texts(model.tokens.clone())),
            ("tokenizer.ggml.token_type", Meta::Uints(model.types.clone())),
            ("tokenizer.ggml.eos_token_id", Meta::Uint(model.end as u32)),
            ("tokenizer.chat_template", text(CHATML)),
        ];
        let mut metadata: BTreeMap<String, Meta> = metadata.map(|(key, value)| (key.to_owned(), value)).into();
        if !model.merges.is_empty() {
            metadata.insert("tokenizer.ggml.merges".to_owned(), Meta::Texts(model.merges.clone()));
        }
        Self { model, tensors: model.tensors(), metadata }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: Meta) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
        let metadata: Vec<_> = self.metadata.iter().filter(|(_, value)| !matches!(value, Meta::Missing)).collect();
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            file.extend(text(key));
            file.extend(value.bytes());
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, ((rows, cols), values)) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            file.extend(text(name));
            let dims: &[usize] = if *rows == 1 { &[*cols] } else { &[*cols, *rows] };
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| file.extend((*d as u64).to_le_bytes()));
            file.extend(0u32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }

    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.bytes()).unwrap();
        path.to_owned()
    }
}

impl Meta {
    fn bytes(&self) -> Vec<u8> {
        let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
        let one = |ty: u32, bytes: &[u8]| [&ty.to_le_bytes()[..], bytes].concat();
        let many = |ty: u32, n: usize, bytes: Vec<u8>| {
            [&9u32.to_le_bytes()[..], &ty.to_le_bytes(), &(n as u64).to_le_bytes(), &bytes].concat()
        };
        match self {
            Meta::Text(s) => one(8, &text(s)),
            Meta::Uint(n) => one(4, &n.to_le_bytes()),
            Meta::Int(n) => one(5, &n.to_le_bytes()),
            Meta::Short(n) => one(2, &n.to_le_bytes()),
            Meta::Float(x) => one(6, &x.to_le_bytes()),
            Meta::Flag(b) => one(7, &[u8::from(*b)]),
            Meta::Texts(all) => many(8, all.len(), all.iter().flat_map(|s| text(s)).collect()),
            Meta::Uints(all) => many(4, all.len(), all.iter().flat_map(|n| n.to_le_bytes()).collect()),
            Meta::Floats(all) => many(6, all.len(), all.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Meta::Missing => Vec::new(),
        }
    }
}

/// A model as a directory with safetensors.
pub struct Directory<'a> {
    pub model: &'a Clockwork,
    pub tensors: BTreeMap<String, ((usize, usize), Vec<f32>)>,
    pub config: Value,
    pub tokenizer: Value,
    /// More files, by name.
    pub files: BTreeMap<String, String>,
}

impl<'a> Directory<'a> {
    pub fn new(model: &'a Clockwork) -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
            "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": 1, "vocab_size": model.tokens.len(),
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": false, "eos_token_id": model.end,
        });
        let files = [("tokenizer_config.json".to_owned(), json!({"chat_template": CHATML}).to_string())];
        Self { model, tensors: model.tensors(), config, tokenizer: model.tokenizer_json(), files: files.into() }
    }

    /// Changes fields of `config.json`.
    #[must_use]
    pub fn config(mut self, fields: Value) -> Self {
        for (name, value) in fields.as_object().unwrap() {
            self.config[name] = value.clone();
        }
        self
    }

    #[must_use]
    pub fn file(mut self, name: &str, content: impl ToString) -> Self {
        self.files.insert(name.to_owned(), content.to_string());
        self
    }

    pub fn write(&self, dir: &Path) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
        put("config.json", self.config.to_string().as_bytes());
        put("tokenizer.json", self.tokenizer.to_string().as_bytes());
        self.files.iter().for_each(|(name, content)| put(name, content.as_bytes()));
        put("model.safetensors", &self.safetensors());
        dir.to_owned()
    }

    fn safetensors(&self) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, ((rows, cols), values)) in &self.tensors {
            let from = data.len();
            data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            let shape = if *rows == 1 { json!([cols]) } else { json!([rows, cols]) };
            header.insert(hf_name(name), json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]}));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }
}

/// `blk.0.attn_q.weight` → `model.layers.0.self_attn.q_proj.weight`; other names stay.
fn hf_name(name: &str) -> String {
    let Some(part) = name.strip_prefix("blk.0.") else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
            "output_norm.weight" => "model.norm.weight".to_owned(),
            "output.weight" => "lm_head.weight".to_owned(),
            other => other.to_owned(),
        };
    };
    let parts = [
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let (stem, kind) = part.rsplit_once('.').unwrap();
    let hf = parts.iter().find(|(gguf, _)| *gguf == stem).map_or(stem, |(_, hf)| hf);
    format!("model.layers.0.{hf}.{kind}")
}
