//! Tokens and templates against independent implementations: PyPI `tokenizers`, the npm packages
//! `llama-tokenizer-js` and `llama3-tokenizer-js` with the real vocabularies, and Jinja2. `make test-long`
//! installs them and names them in the environment; without them these tests say so and pass.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use serde_json::{Value, json};
use stowage_engine::text::{Chat, ParseSpecial, TextModel, simulated_meta};
use stowage_engine_models::{GgufTokenizer, HfTokenizer, ModelMeta, TokenType, TokenizerSource};
use stowage_openai_api::{Message, OrderedMap, OrderedValue, Role, TemplateFields};

/// A Python with `tokenizers` and `jinja2`.
const PYTHON: &str = "STOWAGE_ORACLE_PYTHON";
/// A folder in which node finds both packages.
const NODE: &str = "STOWAGE_ORACLE_NODE";

fn oracle(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {name} is not set; `make test-long` sets it");
    }
    path
}

fn tools() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tools").canonicalize().unwrap()
}

/// Gives a program the question on its standard input.
fn ask(program: &mut Command, question: &Value) -> Value {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let question = question.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(question.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{program:?}: {}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn python(question: &Value) -> Option<Value> {
    Some(ask(Command::new(oracle(PYTHON)?).arg(tools().join("oracle.py")), question))
}

/// The npm packages' vocabularies and ids.
fn node(texts: &[String]) -> Option<Value> {
    let folder = oracle(NODE)?;
    // Modules are looked for beside the script.
    let script = folder.join("oracle_tokens.mjs");
    std::fs::copy(tools().join("oracle_tokens.mjs"), &script).unwrap();
    Some(ask(Command::new("node").arg(&script).current_dir(&folder), &json!(texts)))
}

/// More than twenty scripts, and what splitting rules treat differently.
fn texts() -> Vec<String> {
    let short = [
        "The quick brown fox can't jump over 12345 lazy dogs; they're asleep.",
        "Große Bäume wachsen über 3,5 Meter — naïve façade, œuvre",
        "Быстрая коричневая лиса прыгает через ленивую собаку",
        "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί",
        "快速的棕色狐狸跳过懒狗。今天是2026年11月29日",
        "素早い茶色の狐がのろまな犬を飛び越えるカタカナ",
        "빠른 갈색 여우가 게으른 개를 뛰어넘습니다",
        "الثعلب البني السريع يقفز فوق الكلب الكسول ١٢٣",
        "השועל החום המהיר קופץ מעל הכלב העצלן",
        "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है १२३",
        "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর লাফ দেয়",
        "விரைவான பழுப்பு நரி சோம்பேறி நாயின் மேல் குதிக்கிறது",
        "త్వరిత గోధుమ నక్క సోమరి కుక్కపై దూకుతుంది",
        "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
        "სწრაფი ყავისფერი მელა ზარმაც ძაღლს გადაახტა",
        "Արագ շագանակագույն աղվեսը ցատկում է ծույլ շան վրայով",
        "ፈጣኑ ቡናማ ቀበሮ በሰነፍ ውሻ ላይ ይዘላል",
        "ល្បឿនលឿន កញ្ជ្រោងពណ៌ត្នោតលោតលើឆ្កែខ្ជិល",
        "လျင်မြန်သော အညိုရောင် မြေခွေးက ပျင်းရိသော ခွေးကို ခုန်ကျော်သည်",
        "ඉක්මන් දුඹුරු නරියා කම්මැලි බල්ලා උඩින් පනියි",
        "ઝડપી ભૂરું શિયાળ આળસુ કૂતરા પર કૂદે છે ૧૨૩",
        "ཝ་སྨུག་པོ་མགྱོགས་པོ་ཞིག་གིས་ཁྱི་ལེ་ལོ་ཅན་གྱི་ཐོག་ནས་མཆོང་།",
        "Con cáo nâu nhanh nhẹn nhảy qua con chó lười Việt",
        "ᚠᛇᚻ᛫ᛒᛦᚦ ⠠⠞⠓⠑ 𐎠𐎼 𓀀𓁐",
        "😀👩‍👩‍👧‍👦🏳️‍🌈 é e\u{301} ﬁ \u{200b}\u{feff}",
        "fn main() {\n\tprintln!(\"{:>8}\", x);\r\n}\n\n\n    // done   \n",
        "   three spaces   and\ttabs\t\tand trailing   ",
        "1 12 123 1234 12345 1e-5 0x1F 3.14159",
        "don't DON'T we'll WE'LL I'm I'M",
        "a",
        " ",
        "\n",
        "▁▁ already ▁ here",
        "<s> </s> <unk> <0x0A> <|x|>",
    ];
    let mut texts: Vec<String> = short.map(str::to_owned).into();
    // Longer than what is encoded at once, so that pieces are cut.
    texts.push(short.concat().repeat(20));
    texts.push(short[..3].join("\n").repeat(150));
    texts.push("x = [1, 2, 3]  # comment\n".repeat(1500));
    texts.push("0123456789".repeat(4000));
    texts
}

fn model(tokenizer: TokenizerSource) -> TextModel {
    TextModel::new(&ModelMeta { tokenizer, ..simulated_meta(8192) }).unwrap()
}

#[track_caller]
fn compare(name: &str, model: &TextModel, texts: &[String], ids: &Value) {
    assert_eq!(ids.as_array().unwrap().len(), texts.len());
    for (text, ids) in texts.iter().zip(ids.as_array().unwrap()) {
        let want: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
        let found = model.encode(text, ParseSpecial::No, usize::MAX).unwrap();
        let first = found.iter().zip(&want).position(|(a, b)| a != b);
        let shown: String = text.chars().take(60).collect();
        assert!(
            found == want,
            "{name}, {shown:?}: {} tokens, want {}, first other at {first:?}",
            found.len(),
            want.len()
        );
        let bytes: Vec<u8> = found.iter().flat_map(|id| model.pieces().bytes(*id)).copied().collect();
        let decoded = String::from_utf8(bytes).unwrap();
        // SentencePiece puts a space before the text and has one spelling for `▁` and a space.
        let plain = |text: &str| text.replace('▁', " ");
        assert!(plain(&decoded).trim_start() == plain(text).trim_start(), "{name}, {shown:?}: {decoded:?}");
    }
}

/// As in the published model: by rank, and runs of spaces last.
fn score(text: &str, i: usize) -> f32 {
    match i {
        0..259 => 0.0,
        _ if text.chars().all(|c| c == '▁') => -1e9,
        _ => -((i - 259) as f32),
    }
}

#[test]
fn sentence_piece_of_gguf_has_the_tokens_of_llama_2() {
    let texts = texts();
    let Some(answer) = node(&texts) else { return };
    let tokens: Vec<String> = serde_json::from_value(answer["llama2"]["tokens"].clone()).unwrap();
    let kind = |i: usize| match i {
        0 => TokenType::UNKNOWN,
        1 | 2 => TokenType::CONTROL,
        3..259 => TokenType::BYTE,
        _ => TokenType::NORMAL,
    };
    let gguf = GgufTokenizer {
        model: "llama".to_owned(),
        types: (0..tokens.len()).map(kind).collect(),
        scores: tokens.iter().zip(0..).map(|(text, i)| score(text, i)).collect(),
        tokens,
        ..GgufTokenizer::default()
    };
    compare("llama 2", &model(TokenizerSource::Gguf(Box::new(gguf))), &texts, &answer["llama2"]["ids"]);
}

/// Llama 3's vocabulary, without its control tokens.
fn llama_3(answer: &Value) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = serde_json::from_value(answer["llama3"]["tokens"].clone()).unwrap();
    tokens.truncate(128_000);
    (tokens, serde_json::from_value(answer["llama3"]["merges"].clone()).unwrap())
}

#[test]
fn byte_level_of_gguf_has_the_tokens_of_llama_3() {
    let texts = texts();
    let Some(answer) = node(&texts) else { return };
    let (tokens, merges) = llama_3(&answer);
    let types = vec![TokenType::NORMAL; tokens.len()];
    let gguf = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        tokens,
        types,
        merges,
        ..GgufTokenizer::default()
    };
    compare("llama 3", &model(TokenizerSource::Gguf(Box::new(gguf))), &texts, &answer["llama3"]["ids"]);
}

/// Ways in which published tokenizer.json files set up the same vocabulary.
fn tokenizer_jsons(answer: &Value) -> Vec<(&'static str, Value)> {
    let (tokens, merges) = llama_3(answer);
    let vocab =
        |tokens: &[String]| tokens.iter().cloned().zip(0..).map(|(t, i): (String, u32)| (t, json!(i))).collect();
    let byte_level = |pre: Value, normalizer: Value| {
        let vocab: serde_json::Map<String, Value> = vocab(&tokens);
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges}})
    };
    let regex = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let gpt2 = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let llama2: Vec<String> = serde_json::from_value(answer["llama2"]["tokens"].clone()).unwrap();
    let merges_of = |tokens: &[String]| {
        let known: std::collections::HashSet<&str> = tokens[259..].iter().map(String::as_str).collect();
        let cut = |text: &String| {
            let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
            cuts.filter(|(a, b)| known.contains(a) && known.contains(b)).map(|(a, b)| json!([a, b])).collect::<Vec<_>>()
        };
        tokens[259..].iter().flat_map(cut).collect::<Vec<_>>()
    };
    let pieces = merges_of(&llama2);
    let sentence_piece = |pre: Value, normalizer: Value| {
        let vocab: serde_json::Map<String, Value> = vocab(&llama2);
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": null, "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": pieces}})
    };
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let legacy = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    vec![
        ("qwen's", byte_level(regex(qwen), json!({"type": "NFC"}))),
        ("gpt-2's", byte_level(gpt2(false), Value::Null)),
        ("roberta's", byte_level(gpt2(true), Value::Null)),
        ("metaspace first", sentence_piece(metaspace("first"), Value::Null)),
        ("metaspace always", sentence_piece(metaspace("always"), Value::Null)),
        ("llama 2's legacy", sentence_piece(Value::Null, legacy)),
    ]
}

#[test]
fn tokenizer_json_has_the_tokens_of_the_python_package() {
    let texts = texts();
    let Some(answer) = node(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, tokenizer) in tokenizer_jsons(&answer) {
        let Some(ids) = python(&json!({"tokenizer": tokenizer.to_string(), "texts": texts})) else { return };
        let file = dir.path().join("tokenizer.json");
        std::fs::write(&file, tokenizer.to_string()).unwrap();
        let hf = HfTokenizer { file, ..HfTokenizer::default() };
        let model = model(TokenizerSource::Hf(Box::new(hf)));
        for (text, ids) in texts.iter().zip(ids.as_array().unwrap()) {
            let want: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let found = model.encode(text, ParseSpecial::No, usize::MAX).unwrap();
            let first = found.iter().zip(&want).position(|(a, b)| a != b);
            let shown: String = text.chars().take(60).collect();
            assert!(
                found == want,
                "{name}, {shown:?}: {} tokens, want {}, first other at {first:?}",
                found.len(),
                want.len()
            );
        }
    }
}

fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned(), name: None, tool_calls: Vec::new(), tool_call_id: None }
}

/// Keys in no alphabetical order.
const TOOLS: &str = r#"[{"type": "function", "function": {"name": "weather", "description": "It's the weather <now>",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "day": {"enum": ["a", 1, 2.5, null]}},
    "required": ["place"], "additionalProperties": false}}}]"#;

fn conversations() -> Vec<Vec<Message>> {
    let user = |text: &str| message(Role::User, text);
    let assistant = |text: &str| message(Role::Assistant, text);
    let system = |text: &str| message(Role::System, text);
    vec![
        vec![user("Hi")],
        vec![system("Be brief. /no_think "), user("  What is 2 + 2?\n")],
        vec![user("a"), assistant(" b "), user("c 'quoted' \"twice\" é")],
        vec![
            system("s"),
            user("a"),
            assistant("<think>\nwhy\n</think>\n\nb"),
            user("c"),
            assistant("<think>x</think>d"),
        ],
        vec![user("a"), user("b")],
        vec![assistant("b"), user("a")],
    ]
}

#[test]
fn templates_of_common_families_render_as_in_jinja2() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/templates");
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 9, "{names:?}");
    let (mut cases, mut questions) = (Vec::new(), Vec::new());
    for path in &names {
        let source = std::fs::read_to_string(path).unwrap();
        for messages in conversations() {
            for (prompt, thinking, tools) in
                [(true, None, "null"), (false, None, "null"), (true, Some(false), "null"), (true, None, TOOLS)]
            {
                let turns: Vec<Value> =
                    messages.iter().map(|m| json!({"role": m.role.as_str(), "content": m.content})).collect();
                let mut variables = json!({"messages": turns, "documents": null,
                    "add_generation_prompt": prompt, "continue_final_message": false, "bos_token": "<s>", "eos_token": "</s>"});
                let mut kwargs = OrderedMap::new();
                if let Some(thinking) = thinking {
                    variables["enable_thinking"] = json!(thinking);
                    kwargs.insert("enable_thinking".to_owned(), OrderedValue::Bool(thinking));
                }
                questions.push(json!({"source": source, "variables": variables, "tools": tools}));
                let fields = TemplateFields { add_generation_prompt: prompt, kwargs, ..TemplateFields::default() };
                let tools: Option<Vec<OrderedValue>> = serde_json::from_str(tools).unwrap();
                cases.push((path, source.clone(), messages.clone(), fields, tools.unwrap_or_default()));
            }
        }
    }
    let Some(answers) = python(&json!({"templates": questions})) else { return };
    // 2026-11-29, 12:34:56 UTC, as in oracle.py.
    let now = Timestamp::from_second(1_795_955_696).unwrap();
    for ((path, source, messages, fields, tools), want) in cases.into_iter().zip(answers.as_array().unwrap()) {
        let found = render(&source, &Chat { tools: &tools, ..Chat::new(&messages, &fields, now) });
        let want =
            want.as_str().map_or_else(|| Err(want["refused"].as_str().unwrap().to_owned()), |text| Ok(text.to_owned()));
        assert_eq!(found, want, "{} for {messages:?}, {fields:?}", path.display());
    }
}

/// The rendered text: every character is one token per byte, and the two named tokens are spelt out.
fn render(source: &str, chat: &Chat<'_>) -> Result<String, String> {
    let mut meta = ModelMeta { chat_template: Some(source.to_owned()), ..simulated_meta(8192) };
    let TokenizerSource::Gguf(gguf) = &mut meta.tokenizer else { panic!("the simulated model has a GGUF tokenizer") };
    for name in ["<s>", "</s>"] {
        gguf.tokens.push(name.to_owned());
        gguf.types.push(TokenType::CONTROL);
    }
    (gguf.bos, gguf.eos) = (Some(258), Some(259));
    let model = TextModel::new(&meta).unwrap();
    let ids = model.encode_chat(chat, usize::MAX).map_err(|err| {
        let text = err.to_string();
        text.split_once("refuses these messages: ").map_or(text.clone(), |(_, why)| why.to_owned())
    })?;
    let bytes: Vec<u8> = ids.iter().flat_map(|id| model.shown_bytes(*id)).copied().collect();
    Ok(String::from_utf8(bytes).unwrap())
}
