//! Models whose answer is known in advance, through HTTP: what loads answers as its authors' code does, and
//! what would not is refused with the reason.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use support::clockwork::{CHATML, Clockwork, Directory, Gguf, Meta, NORMAL, USER_DEFINED, byte_level};
use support::{MODEL, Running, serve};
use tempfile::TempDir;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn start_gguf(gguf: &Gguf<'_>) -> (TempDir, Result<Running, String>) {
    let dir = dir();
    let server = serve(&gguf.write(&dir.path().join("model.gguf")));
    (dir, server)
}

fn start_directory(directory: &Directory<'_>) -> (TempDir, Result<Running, String>) {
    let dir = dir();
    let server = serve(&directory.write(&dir.path().join("model")));
    (dir, server)
}

/// The answer to a chat.
fn ask(server: &Running) -> String {
    let body =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 16});
    let answer = server.post("/v1/chat/completions", &body.to_string()).json();
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn complete(server: &Running, prompt: &str, extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 16});
    extra.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    server.post("/v1/completions", &body.to_string()).json()
}

fn prompt_tokens(server: &Running, prompt: &str) -> u64 {
    let answer = complete(server, prompt, json!({"max_tokens": 1}));
    answer["usage"]["prompt_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

#[track_caller]
fn answers(server: (TempDir, Result<Running, String>), want: &str) {
    assert_eq!(ask(&server.1.unwrap()), want);
}

#[track_caller]
fn refused(server: (TempDir, Result<Running, String>), says: &str) {
    let error = server.1.err().expect("the model was loaded");
    assert!(error.contains(says) && !error.contains('\n'), "{error}");
}

// Tensors.

type Tensors = BTreeMap<String, ((usize, usize), Vec<f32>)>;

fn with_bias(model: &Clockwork, name: &str) -> Tensors {
    let mut tensors = model.tensors();
    tensors.insert(name.to_owned(), model.push_towards(model.id("!")));
    tensors
}

#[test]
fn biases_of_output_and_down_projection_are_used_where_the_configuration_declares_them() {
    let model = Clockwork::hello();
    for (name, field) in [("blk.0.attn_output.bias", "attention_bias"), ("blk.0.ffn_down.bias", "mlp_bias")] {
        let mut tensors = with_bias(&model, name);
        let rest: &[(&str, usize)] = if field == "mlp_bias" {
            &[("ffn_gate", 32), ("ffn_up", 32)]
        } else {
            &[("attn_q", 512), ("attn_k", 256), ("attn_v", 256)]
        };
        for (part, len) in rest {
            tensors.insert(format!("blk.0.{part}.bias"), ((1, *len), vec![0.0; *len]));
        }
        let directory = Directory { tensors, ..Directory::new(&model) };
        // The bias makes every token be followed by what follows `!`, the end.
        answers(start_directory(&directory.config(json!({field: true}))), "");
        answers(start_gguf(&Gguf { tensors: with_bias(&model, name), ..Gguf::new(&model) }), "");
    }
}

#[test]
fn tensor_without_a_place_in_the_model_is_refused_by_name() {
    let model = Clockwork::hello();
    for (name, says) in [
        ("blk.0.attn_output.bias", "model.layers.0.self_attn.o_proj.bias"),
        ("blk.0.ffn_down.bias", "model.layers.0.mlp.down_proj.bias"),
        ("blk.0.attn_q_norm.weight", "attn_q_norm.weight"),
        ("model.layers.1.input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
        ("vision_tower.weight", "vision_tower.weight"),
    ] {
        let directory = Directory { tensors: with_bias(&model, name), ..Directory::new(&model) };
        refused(start_directory(&directory), says);
    }
    for name in ["blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.1.attn_norm.weight"] {
        refused(start_gguf(&Gguf { tensors: with_bias(&model, name), ..Gguf::new(&model) }), name);
    }
}

#[test]
fn tensors_that_no_code_reads_are_no_obstacle() {
    let model = Clockwork::hello();
    let mut tensors = model.tensors();
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), ((1, 128), vec![1.0; 128]));
    answers(start_directory(&Directory { tensors, ..Directory::new(&model) }), "Hello world!");
}

#[test]
fn declared_bias_may_be_missing_and_untied_head_may_not() {
    let model = Clockwork::hello();
    // What `transformers` starts with zeros.
    let declared = Directory::new(&model).config(json!({"attention_bias": true, "mlp_bias": true}));
    answers(start_directory(&declared), "Hello world!");
    let mut directory = Directory::new(&model);
    directory.tensors.remove("output.weight");
    refused(start_directory(&directory), "tensor lm_head.weight is missing");
}

#[test]
fn configuration_that_changes_the_computation_is_refused_by_its_field() {
    let model = Clockwork::hello();
    for (fields, says) in [
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"layer_types": ["sliding_attention"]}), "layer_types"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "rope_scaling"),
    ] {
        refused(start_directory(&Directory::new(&model).config(fields)), says);
    }
    for (key, value) in [
        ("llama.rope.scaling.factor", Meta::Float(8.0)),
        ("llama.expert_count", Meta::Uint(8)),
        ("llama.attention.scale", Meta::Float(0.5)),
    ] {
        let says = if key.contains("rope") { "rope.scaling" } else { key };
        refused(start_gguf(&Gguf::new(&model).with(key, value)), says);
    }
    answers(start_gguf(&Gguf::new(&model).with("llama.rope.scaling.factor", Meta::Float(1.0))), "Hello world!");
}

// Ends and beginnings.

/// The model goes on after `<|im_end|>`, so it matters that the answer ends there.
fn endless() -> Clockwork {
    let mut model = Clockwork::hello();
    model.chain(&[model.id("<|im_end|>"), model.id(&byte_level(b"\n"))]);
    model
}

#[test]
fn end_token_of_any_source_ends_the_answer() {
    let model = endless();
    let end = model.id("<|im_end|>");
    let tokenizer = |fields: Value| {
        let mut config = json!({"chat_template": CHATML});
        fields.as_object().unwrap().iter().for_each(|(name, value)| config[name] = value.clone());
        config
    };
    let sources: [(&str, Value); 4] = [
        ("tokenizer_config.json", tokenizer(json!({"eos_token": "<|im_end|>"}))),
        ("tokenizer_config.json", tokenizer(json!({"eos_token": {"content": "<|im_end|>", "lstrip": false}}))),
        ("generation_config.json", json!({"eos_token_id": [0, end]})),
        ("special_tokens_map.json", json!({"eos_token": "<|im_end|>"})),
    ];
    for (name, content) in sources {
        let directory = Directory::new(&model).file(name, content);
        answers(start_directory(&directory), "Hello world!");
    }
    answers(start_directory(&Directory::new(&model).config(json!({"eos_token_id": [256, end]}))), "Hello world!");
}

#[test]
fn end_token_that_the_tokenizer_does_not_call_special_is_not_shown_and_not_written_by_users() {
    let model = endless();
    let mut directory = Directory::new(&model)
        .file("tokenizer_config.json", json!({"chat_template": CHATML, "eos_token": "<|im_end|>"}));
    for token in directory.tokenizer["added_tokens"].as_array_mut().unwrap() {
        token["special"] = false.into();
    }
    let (_dir, server) = start_directory(&directory);
    let server = server.unwrap();
    assert_eq!(ask(&server), "Hello world!");
    let count = |content: &str| {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 1});
        server.post("/v1/chat/completions", &body.to_string()).json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(count("<|im_end|>") - count(""), 10);
}

#[test]
fn flags_in_the_tokenizers_settings_win() {
    let model = endless();
    let added = json!({model.id("<|im_end|>").to_string(): {"content": "<|im_end|>", "special": true, "rstrip": true}});
    let settings = json!({"chat_template": CHATML, "eos_token": "<|im_end|>", "added_tokens_decoder": added});
    let (_dir, server) = start_directory(&Directory::new(&model).file("tokenizer_config.json", settings));
    let server = server.unwrap();
    assert_eq!(prompt_tokens(&server, "<|im_end|>  \n a"), 2);
}

#[test]
fn control_token_of_the_wrong_type_still_ends_the_answer() {
    for kind in [USER_DEFINED, NORMAL] {
        let mut model = endless();
        let end = model.id("<|im_end|>");
        model.types[end] = kind;
        answers(start_gguf(&Gguf::new(&model)), "Hello world!");
    }
}

#[test]
fn first_token_in_templates_is_that_of_the_tokenizers_settings() {
    let mut model = Clockwork::byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]);
    model.says(&[b"\n", b"Hi"], "<|im_end|>");
    let template = format!("{{{{ bos_token }}}}{CHATML}");
    let count = |settings: Value| {
        let (_dir, server) = start_directory(&Directory::new(&model).file("tokenizer_config.json", settings));
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
        let answer = server.unwrap().post("/v1/chat/completions", &body.to_string()).json();
        answer["usage"]["prompt_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    };
    let without = count(json!({"chat_template": CHATML}));
    assert_eq!(count(json!({"chat_template": template, "bos_token": "<s>"})), without + 1);
    assert_eq!(count(json!({"chat_template": template, "bos_token": null})), without);
}

// Tokenizers.

#[test]
fn first_token_is_put_before_a_prompt_when_the_kind_of_tokenizer_says_so() {
    let mut model = Clockwork::byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]);
    model.says(&[b"\n", b"Hi"], "<|im_end|>");
    let bos = model.id("<s>") as u32;
    for (pre, flag, want) in [
        ("llama-bpe", None, 3),
        ("llama-bpe", Some(false), 2),
        ("smollm", None, 2),
        ("smollm", Some(true), 3),
        ("tekken", None, 3),
    ] {
        let mut gguf = Gguf::new(&model)
            .with("tokenizer.ggml.pre", Meta::Text(pre.to_owned()))
            .with("tokenizer.ggml.bos_token_id", Meta::Uint(bos));
        if let Some(flag) = flag {
            gguf = gguf.with("tokenizer.ggml.add_bos_token", Meta::Flag(flag));
        }
        let (_dir, server) = start_gguf(&gguf);
        assert_eq!(prompt_tokens(&server.unwrap(), "ab"), want, "{pre} {flag:?}");
    }
}

#[test]
fn whole_word_of_a_llama_3_vocabulary_is_one_token_whatever_merges_say() {
    let mut model = Clockwork::hello();
    for word in [" V", " Việt", " Vi", "ệ"] {
        model.add(&byte_level(word.as_bytes()), NORMAL);
    }
    model.add(&byte_level(&"ệ".as_bytes()[..2]), NORMAL);
    let parts: Vec<String> = "ệ".bytes().map(|b| byte_level(&[b])).collect();
    model.merges = vec![
        format!("{} V", byte_level(b" ")),
        format!("{} i", byte_level(b" V")),
        format!("{} {}", parts[0], parts[1]),
        format!("{}{} {}", parts[0], parts[1], parts[2]),
    ];
    let count = |pre: &str| {
        let (_dir, server) = start_gguf(&Gguf::new(&model).with("tokenizer.ggml.pre", Meta::Text(pre.to_owned())));
        prompt_tokens(&server.unwrap(), " Việt")
    };
    assert_eq!(count("llama-bpe"), 1);
    assert_eq!(count("smollm"), 3);
}

#[test]
fn user_defined_token_is_found_in_users_text_and_shown_in_answers() {
    let mut model = Clockwork::byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    let tool = model.add("<tool call>", USER_DEFINED);
    model.chain(&[model.id(&byte_level(b"\n")), tool, model.id("<|im_end|>")]);
    let (_dir, server) = start_gguf(&Gguf::new(&model));
    let server = server.unwrap();
    assert_eq!(prompt_tokens(&server, "a<tool call>b"), 3);
    assert_eq!(ask(&server), "<tool call>");
}

#[test]
fn control_tokens_of_a_plain_prompt_count() {
    let model = Clockwork::hello();
    let (_dir, server) = start_gguf(&Gguf::new(&model));
    let server = server.unwrap();
    assert_eq!(prompt_tokens(&server, "<|im_start|>a<|im_end|>"), 3);
    let off = support::args(&["--parse-special", "false"]);
    let model = stowage_engine::process::load_model(&off).unwrap();
    assert_eq!(prompt_tokens(&support::start_with(&off, model), "<|im_start|>"), 12);
}

/// Llama 2's kind of vocabulary, with a token that begins as a space of byte-level BPE is spelt.
fn llama_2() -> Clockwork {
    let mut model = Clockwork::sentence_piece(&["▁", "H", "i", "▁H", "▁Hi", "▁Hello", "▁world", "▁ok", "Ġx", "ok"]);
    let ids = ["i", "▁Hello", "▁world", "<0x0A>", "▁ok", "</s>"].map(|text| model.id(text));
    model.chain(&ids);
    let hi = model.id("▁Hi");
    model.next.insert(hi, ids[1]);
    model
}

fn sentence_piece_json(model: &Clockwork, pre_tokenizer: Value, normalizer: Value, decoder: Value) -> Value {
    let vocab: BTreeMap<&str, usize> = model.tokens.iter().map(String::as_str).zip(0..).collect();
    let added: Vec<Value> = (0..3)
        .map(|i| {
            json!({"id": i, "content": model.tokens[i], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "decoder": decoder,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["▁ H", "▁H i"]},
    })
}

const INST: &str = "{% for m in messages %}{{ '[I]' + m['content'] }}{% endfor %}";

#[test]
fn sentence_piece_of_a_tokenizer_json_is_decoded_as_its_decoder_says() {
    let model = llama_2();
    let legacy = (
        Value::Null,
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
        json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
    );
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let fallback = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁",
        "prepend_scheme": "first", "split": false}]});
    for (pre_tokenizer, normalizer, decoder) in [legacy, (metaspace, Value::Null, fallback)] {
        let tokenizer = sentence_piece_json(&model, pre_tokenizer, normalizer, decoder);
        let directory = Directory { tokenizer, ..Directory::new(&model) }
            .file("tokenizer_config.json", json!({"chat_template": INST}));
        let (_dir, server) = start_directory(&directory);
        let server = server.unwrap();
        // `<s>`, `▁Hi`.
        assert_eq!(prompt_tokens(&server, "Hi"), 2);
        assert_eq!(ask(&server), "Hello world\n ok");
        // What follows a prompt keeps its space.
        assert_eq!(complete(&server, "Hi", json!({}))["choices"][0]["text"], " Hello world\n ok");
    }
}

#[test]
fn space_is_put_before_the_first_text_only_when_the_scheme_says_first() {
    let model = llama_2();
    let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
    for (scheme, want) in [("first", 4), ("always", 3), ("never", 4)] {
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let tokenizer = sentence_piece_json(&model, metaspace, Value::Null, decoder.clone());
        let (_dir, server) = start_directory(&Directory { tokenizer, ..Directory::new(&model) });
        // `<s>` of its own, the one written out, then `▁Hi` or `H`, `i`.
        assert_eq!(prompt_tokens(&server.unwrap(), "<s>Hi"), want, "{scheme}");
    }
}

#[test]
fn decoder_that_is_not_known_is_refused_by_name() {
    let model = Clockwork::hello();
    let mut directory = Directory::new(&model);
    directory.tokenizer["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    refused(start_directory(&directory), "decoder is WordPiece");
}

#[test]
fn truncation_and_padding_of_training_do_not_touch_prompts() {
    let model = Clockwork::hello();
    let mut directory = Directory::new(&model);
    directory.tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let (_dir, server) = start_directory(&directory);
    assert_eq!(prompt_tokens(&server.unwrap(), "abcdef"), 6);
}

#[test]
fn sentence_piece_of_a_gguf_file_is_read() {
    let model = llama_2();
    let scores: Vec<f32> = (0..model.tokens.len()).map(|i| if i < 259 { 0.0 } else { -(i as f32) }).collect();
    let gguf = Gguf::new(&model)
        .with("tokenizer.ggml.model", Meta::Text("llama".to_owned()))
        .with("tokenizer.ggml.pre", Meta::Missing)
        .with("tokenizer.ggml.eos_token_id", Meta::Missing)
        .with("tokenizer.ggml.scores", Meta::Floats(scores))
        .with("tokenizer.chat_template", Meta::Text(INST.to_owned()));
    let (_dir, server) = start_gguf(&gguf);
    let server = server.unwrap();
    // `<s>`, `▁Hi`; `é` has no token and becomes two bytes.
    assert_eq!(prompt_tokens(&server, "Hi"), 2);
    assert_eq!(prompt_tokens(&server, "Hié"), 4);
    assert_eq!(ask(&server), "Hello world\n ok");
}

// Files.

#[test]
fn split_gguf_is_loaded_from_its_first_part() {
    let model = Clockwork::hello();
    let dir = dir();
    let tensors = model.tensors();
    let part = |number: u16, tensors: Tensors| {
        Gguf { tensors, ..Gguf::new(&model) }
            .with("split.no", Meta::Short(number))
            .with("split.count", Meta::Short(2))
            .with("split.tensors.count", Meta::Int(12))
    };
    let (first, second): (Tensors, Tensors) = tensors.into_iter().partition(|(name, _)| name.starts_with("blk"));
    let name = |number: usize| dir.path().join(format!("m-{number:05}-of-00002.gguf"));
    part(0, first.clone()).write(&name(1));
    let missing = serve(&name(1)).err().unwrap();
    assert!(missing.contains("m-00002-of-00002.gguf: cannot be opened"), "{missing}");
    part(1, second.clone()).write(&name(2));
    assert_eq!(ask(&serve(&name(1)).unwrap()), "Hello world!");
    let wrong = serve(&name(2)).err().unwrap();
    assert!(wrong.contains("part 2 of 2 of a split model") && wrong.contains("m-00001-of-00002.gguf"), "{wrong}");
    let renamed = part(0, first).write(&dir.path().join("model.gguf"));
    let renamed = serve(&renamed).err().unwrap();
    assert!(renamed.contains("must be called NAME-00001-of-00002.gguf"), "{renamed}");
    part(0, second).write(&name(2));
    let twice = serve(&name(1)).err().unwrap();
    assert!(twice.contains("it is not part 2 of 2"), "{twice}");
}

#[test]
fn what_is_no_model_is_named_as_what_it_is() {
    let model = Clockwork::hello();
    let dir = dir();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98362432\n";
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let check = |path: &Path, says: &str| {
        let error = serve(path).err().unwrap();
        assert!(error.contains(says), "{error}");
    };
    check(&put("pointer.gguf", pointer.as_bytes()), "Git LFS pointer");
    check(&put("page.gguf", b"<!DOCTYPE html><html></html>"), "web page");
    check(&put("empty.gguf", b""), "empty");
    let mut big_endian = Gguf::new(&model).bytes();
    big_endian[4..8].reverse();
    check(&put("big.gguf", &big_endian), "big-endian");
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let path = Directory::new(&model).write(&dir.path().join("model"));
        std::fs::write(path.join(name), pointer).unwrap();
        check(&path, &format!("{name}: it is a Git LFS pointer"));
    }
}

// Log-probabilities and cut text.

#[test]
fn offsets_and_keys_of_tokens_are_those_of_their_bytes() {
    let mut model = Clockwork::byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    let smile = "😀".as_bytes();
    model.says(&[b"\n", b"Hi ", &smile[..2], &smile[2..3], &smile[3..], b"!"], "<|im_end|>");
    let (_dir, server) = start_gguf(&Gguf::new(&model));
    let server = server.unwrap();
    let whole = complete(&server, "x\n", json!({"max_tokens": 6, "logprobs": 1}))["choices"][0].clone();
    assert_eq!(whole["text"], "Hi 😀!");
    let logprobs = &whole["logprobs"];
    assert_eq!(logprobs["text_offset"], json!([0, 3, 3, 3, 4]));
    assert_eq!(logprobs["tokens"], json!(["Hi ", "bytes:\\xf0\\x9f", "bytes:\\x98", "bytes:\\x80", "!"]));
    assert!(logprobs["top_logprobs"][1].get("bytes:\\xf0\\x9f").is_some(), "{logprobs}");
    let body =
        json!({"model": MODEL, "prompt": "x\n", "temperature": 0, "max_tokens": 6, "logprobs": 1, "stream": true});
    let events = server.post("/v1/completions", &body.to_string()).events();
    let offsets = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array()).flatten();
    assert_eq!(offsets.cloned().collect::<Vec<_>>(), logprobs["text_offset"].as_array().unwrap().clone());
}

#[test]
fn character_that_the_limit_cuts_is_dropped() {
    let mut model = Clockwork::byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    let smile = "😀".as_bytes();
    model.says(&[b"\n", b"Hi ", &smile[..2], &smile[2..]], "<|im_end|>");
    let (_dir, server) = start_gguf(&Gguf::new(&model));
    let server = server.unwrap();
    let text = |max: usize| complete(&server, "x\n", json!({"max_tokens": max}))["choices"][0]["text"].clone();
    assert_eq!(text(2), "Hi ");
    assert_eq!(text(3), "Hi 😀");
}

#[test]
fn four_megabytes_of_any_text_are_refused_before_they_become_tokens() {
    let model = Clockwork::hello();
    let (_dir, server) = start_gguf(&Gguf::new(&model));
    let server = server.unwrap();
    for unit in ["1", " ", "a", "é", "<|im_end|>", "Hello world! "] {
        let prompt = unit.repeat((4_000_000 / unit.len()).max(1));
        let answer = complete(&server, &prompt, json!({}));
        assert_eq!(answer["error"]["code"], "context_length_exceeded", "{unit:?}: {answer}");
        let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]});
        let answer = server.post("/v1/chat/completions", &chat.to_string()).json();
        assert_eq!(answer["error"]["code"], "context_length_exceeded", "{unit:?} in a chat: {answer}");
    }
}
