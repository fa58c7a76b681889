//! Every format, family and instruction set against goldens of Hugging Face transformers, on small
//! random models. Text is never compared here: on random weights two correct programs differ.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::{Teacher, difference, run, table, testdata};
use serde::Deserialize;
use stowage_engine_core::executor::{ExecError, Executor, LogitsWanted, SeqProblem, SeqStep, StepBatch};
use stowage_engine_kernels::WeightType;
use stowage_engine_models::{Isa, LoadOptions, Oracle, TokenizerSource, load};

#[derive(Deserialize)]
struct Golden {
    arch: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(flatten)]
    teacher: Teacher,
}

fn goldens() -> Vec<Golden> {
    serde_json::from_str(&testdata("tiny.json")).unwrap()
}

fn golden(arch: &str, ty: &str) -> Golden {
    goldens().into_iter().find(|g| g.arch == arch && g.ty == ty).unwrap()
}

fn weight_type(name: &str) -> WeightType {
    use WeightType::*;
    [F32, F16, Bf16, Q8_0, Q4_0, Q4_1].into_iter().find(|t| t.name() == name).unwrap()
}

/// A directory of its own that goes away.
struct Dir(std::path::PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("stowage-tiny-{}-{name}", std::process::id()));
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn options(isa: Isa, kv: &str) -> LoadOptions {
    LoadOptions { isa: Some(isa), kv_type: kv.parse().unwrap(), threads: Some(2), ..LoadOptions::default() }
}

fn quantised(ty: WeightType) -> bool {
    ty.unit().0 > 1
}

#[test]
fn f32_paths_agree_on_every_format_and_family() {
    for g in goldens() {
        let ty = weight_type(&g.ty);
        let dir = Dir::new(&format!("f32-{}-{}", g.arch, g.ty));
        let path = tiny::write(&dir.0, &g.arch, ty, quantised(ty));
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.supported()) {
            let (mut model, _) = load(&path, &options(isa, "f32")).unwrap();
            let ids = g.teacher.inputs();
            let d = difference(&g.teacher, &run(&mut model, ids, &table(ids.len(), 2), &[512]));
            assert!(d.mean <= 1e-3 && d.max <= 1e-2, "{} {} {isa}: {d:?}", g.arch, g.ty);
        }
    }
}

#[test]
fn the_oracle_agrees_on_every_format_and_family() {
    for g in goldens() {
        let ty = weight_type(&g.ty);
        let dir = Dir::new(&format!("oracle-{}-{}", g.arch, g.ty));
        let mut oracle = Oracle::load(&tiny::write(&dir.0, &g.arch, ty, quantised(ty))).unwrap();
        let rows: Vec<_> = g.teacher.inputs().iter().map(|id| oracle.next(*id)).collect();
        let d = difference(&g.teacher, &rows);
        assert!(d.mean <= 1e-3 && d.max <= 1e-2, "{} {}: {d:?}", g.arch, g.ty);
    }
}

#[test]
fn the_default_path_stays_close_on_every_format_and_family() {
    for g in goldens() {
        let ty = weight_type(&g.ty);
        let dir = Dir::new(&format!("default-{}-{}", g.arch, g.ty));
        let path = tiny::write(&dir.0, &g.arch, ty, quantised(ty));
        let (mut model, _) = load(&path, &options(Isa::detect(), "auto")).unwrap();
        let ids = g.teacher.inputs();
        let d = difference(&g.teacher, &run(&mut model, ids, &table(ids.len(), 2), &[512]));
        eprintln!("{} {}: {d:?}", g.arch, g.ty);
        assert!(d.mean <= 0.12 && d.regret <= 0.02, "{} {}: {d:?}", g.arch, g.ty);
    }
}

#[test]
fn floats_in_gguf_are_the_same_model() {
    for ty in ["f32", "f16", "bf16"] {
        let g = golden("llama", ty);
        let dir = Dir::new(&format!("gguf-{ty}"));
        let path = tiny::write(&dir.0, "llama", weight_type(ty), true);
        let (mut model, _) = load(&path, &options(Isa::Portable, "f32")).unwrap();
        let ids = g.teacher.inputs();
        let d = difference(&g.teacher, &run(&mut model, ids, &table(ids.len(), 0), &[512]));
        assert!(d.mean <= 1e-3, "{ty}: {d:?}");
    }
}

/// A loaded model and its golden's inputs, for the tests about steps.
fn q4_model(name: &str, isa: Isa) -> (Dir, Box<dyn Executor>, Vec<u32>) {
    let dir = Dir::new(name);
    let path = tiny::write(&dir.0, "llama", WeightType::Q4_1, true);
    let (model, _) = load(&path, &options(isa, "auto")).unwrap();
    (dir, model, golden("llama", "q4_1").teacher.inputs().to_vec())
}

#[test]
fn cutting_a_prompt_changes_no_bit() {
    for isa in Isa::ALL.into_iter().filter(|i| i.supported()) {
        let (_dir, mut model, ids) = q4_model(&format!("cut-{isa}"), isa);
        let whole = run(&mut model, &ids, &table(ids.len(), 0), &[512]);
        for chunks in [&[1][..], &[16], &[5, 1, 40, 7], &[255, 1, 64]] {
            let cut = run(&mut model, &ids, &table(ids.len(), 7), chunks);
            assert!(whole == cut, "{isa}: chunks {chunks:?} differ");
        }
    }
}

#[test]
fn other_sequences_in_a_batch_change_no_bit() {
    for isa in Isa::ALL.into_iter().filter(|i| i.supported()) {
        let (_dir, mut model, ids) = q4_model(&format!("batch-{isa}"), isa);
        let alone = run(&mut model, &ids, &table(ids.len(), 0), &[512]);
        // Three sequences with the same tokens at different stages; a fourth that shares the
        // first sequence's blocks as its prefix.
        let (a, b, c) = (table(320, 0), table(320, 20), table(320, 40));
        let mut d = a[..4].to_vec();
        d.push(60);
        let vocab = model.info().vocab;
        let mut step = |seqs: &[SeqStep<'_>]| {
            let mut logits = Vec::new();
            model.step(&StepBatch { seqs }, &mut logits).unwrap();
            logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let seq = |from: usize, to: usize, blocks| SeqStep {
            tokens: &ids[from..to],
            position: from,
            blocks,
            want_logits: LogitsWanted::Last,
        };
        step(&[seq(0, 70, &a), seq(0, 3, &b), seq(0, 129, &c)]);
        let rows = step(&[seq(70, 71, &a), seq(3, 90, &b), seq(129, 130, &c), seq(64, 66, &d)]);
        for (row, last) in rows.iter().zip([70, 89, 129, 65]) {
            assert!(*row == alone[last], "{isa}: the row after token {last} differs");
        }
    }
}

#[test]
fn a_block_written_twice_is_refused() {
    let (_dir, mut model, ids) = q4_model("twice", Isa::detect());
    let seq = |blocks| SeqStep { tokens: &ids[..3], position: 0, blocks, want_logits: LogitsWanted::Last };
    let mut logits = Vec::new();
    let error = model.step(&StepBatch { seqs: &[seq(&[4]), seq(&[4])] }, &mut logits).unwrap_err();
    let source = SeqProblem::WrittenTwice { block: 4 };
    assert_eq!(error, ExecError::BadSequence { seq: 1, source });
}

#[test]
fn a_directory_brings_its_template_and_ends() {
    let dir = Dir::new("meta");
    let path = tiny::write(&dir.0, "llama", WeightType::Bf16, false);
    let (_, meta) = load(&path, &options(Isa::Portable, "auto")).unwrap();
    assert_eq!(meta.chat_template.as_deref(), Some("{{ messages[0].content }}"));
    assert_eq!((meta.bos, &meta.eog[..]), (Some(1), &[1, 2][..]));
    let TokenizerSource::Hf(tokenizer) = &meta.tokenizer else { panic!("{:?}", meta.tokenizer) };
    assert_eq!(tokenizer.file, path.join("tokenizer.json"));
}

#[test]
fn models_that_cannot_run_are_refused_in_one_line() {
    let dir = Dir::new("refuse");
    let path = tiny::write(&dir.0, "llama", WeightType::F32, false);
    let refuse = |o: &LoadOptions| {
        let err = load(&path, o).err().unwrap();
        let why = std::error::Error::source(&err).map_or_else(String::new, |why| format!(": {why}"));
        format!("{err}{why}")
    };
    let long = LoadOptions { max_model_len: Some(513), ..options(Isa::Portable, "auto") };
    assert_eq!(refuse(&long), "a context of 513 tokens was asked for, the model was made for 512");
    let small = LoadOptions { max_memory_bytes: Some(1 << 20), ..options(Isa::Portable, "auto") };
    assert!(refuse(&small).contains("its slice has 1,048,576"), "{}", refuse(&small));
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    std::fs::write(path.join("config.json"), config.replace("\"llama\"", "\"mamba\"")).unwrap();
    assert!(refuse(&options(Isa::Portable, "auto")).contains("architecture \"mamba\" is not supported"));
    std::fs::write(path.join("config.json"), config.replace("\"hidden_size\":96", "\"hidden_size\":64")).unwrap();
    assert!(refuse(&options(Isa::Portable, "auto")).contains("the model's shape needs"));
}
