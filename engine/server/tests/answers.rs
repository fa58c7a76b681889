//! What answers hold: where they end, what is echoed, and log-probabilities.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use serde_json::Value;
use stowage_engine::process::Model;
use stowage_engine::text::{self, TextModel};
use stowage_engine_core::executor::{ExecError, Executor, ModelInfo, StepBatch};
use support::{CHAT, MODEL, TEXT, model_info, start, start_with, stream_text};

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = start(&[]);
    let full = server.complete(r#","max_tokens":30"#).json()["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop = &full[10..13];
    let expected = &full[..full.find(stop).unwrap()];
    let whole = server.complete(&format!(r#","max_tokens":30,"stop":["{stop}"]"#)).json();
    assert_eq!(whole["choices"][0]["text"].as_str().unwrap(), expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let stream = server.complete(&format!(r#","max_tokens":8000,"stream":true,"stop":"{stop}""#)).events();
    assert_eq!(stream_text(&stream, 0), expected);
    server.wait(Duration::from_secs(2), "the engine stops too", |server| server.running() == 0);
}

#[test]
fn logprobs_come_in_the_shape_of_each_api() {
    let server = start(&[]);
    let chat = server.chat(r#","max_tokens":3,"logprobs":true,"top_logprobs":2"#).json();
    let content = chat["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["token"], content[0]["top_logprobs"][0]["token"]);
    assert!(content[0]["logprob"].as_f64().unwrap() <= 0.0);
    let text = server.complete(r#","max_tokens":3,"logprobs":2"#).json();
    let logprobs = &text["choices"][0]["logprobs"];
    assert_eq!(logprobs["text_offset"], serde_json::json!([0, 1, 2]));
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
    let stream = server.chat(r#","max_tokens":3,"logprobs":true,"stream":true"#).events();
    let streamed = stream.iter().filter(|event| event["choices"][0]["logprobs"].is_object()).count();
    assert_eq!(streamed, 3);
}

#[test]
fn text_logprobs_hold_the_chosen_token_beside_the_likeliest() {
    let server = start(&[]);
    let body = format!(r#"{{"model":"{MODEL}","prompt":"ab","max_tokens":40,"temperature":2,"seed":3,"logprobs":0}}"#);
    let logprobs = |top: u8| {
        let body = body.replace("\"logprobs\":0", &format!("\"logprobs\":{top}"));
        server.post(TEXT, &body).json()["choices"][0]["logprobs"].clone()
    };
    for top in [0, 1, 5] {
        let logprobs = logprobs(top);
        let tokens = logprobs["tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), 40);
        let mut beyond = 0;
        for (token, alternatives) in tokens.iter().zip(logprobs["top_logprobs"].as_array().unwrap()) {
            let alternatives = alternatives.as_object().unwrap();
            assert!(alternatives.contains_key(token.as_str().unwrap()), "{token} is not in {alternatives:?}");
            assert!(alternatives.len() - usize::from(top) <= 1);
            beyond += alternatives.len() - usize::from(top);
        }
        assert!(beyond > 0, "at this temperature some choice is not among the likeliest");
    }
}

#[test]
fn an_echoed_prompt_is_scored_as_a_client_expects() {
    let server = start(&[]);
    let post = |fields: &str| {
        let response = server.post(TEXT, &format!(r#"{{"model":"{MODEL}","temperature":0{fields}}}"#));
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    };
    let plain = post(r#","prompt":"hello","max_tokens":6"#)["choices"][0]["text"].as_str().unwrap().to_owned();
    let echoed = post(r#","prompt":"hello","max_tokens":6,"echo":true"#);
    assert_eq!(echoed["choices"][0]["text"], format!("hello{plain}"));
    assert_eq!(echoed["choices"][0]["logprobs"], Value::Null);

    // The whole text as a prompt, and nothing generated: what evaluation harnesses ask.
    let whole = format!("hello{plain}");
    let scored = post(&format!(r#","prompt":"{whole}","max_tokens":0,"echo":true,"logprobs":1"#));
    let choice = &scored["choices"][0];
    assert_eq!((choice["text"].as_str().unwrap(), choice["finish_reason"].as_str().unwrap()), (&*whole, "length"));
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 11);
    assert_eq!(logprobs["text_offset"], serde_json::json!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    for i in 5..11 {
        let token = logprobs["tokens"][i].as_str().unwrap();
        assert_eq!(token, &whole[i..=i]);
        let best = logprobs["top_logprobs"][i].as_object().unwrap();
        assert_eq!(best.len(), 1, "greedy chose the likeliest: {best:?}");
        assert_eq!(best[token], logprobs["token_logprobs"][i]);
    }
    // One request that generates the rest says the same, and so does a stream of it.
    let at_once = post(r#","prompt":"hello","max_tokens":6,"echo":true,"logprobs":1"#);
    assert_eq!(at_once["choices"][0]["logprobs"], *logprobs);
    let body = format!(
        r#"{{"model":"{MODEL}","temperature":0,"prompt":"hello","max_tokens":6,"echo":true,"logprobs":1,"stream":true}}"#
    );
    let events = server.post(TEXT, &body).events();
    assert_eq!(stream_text(&events, 0), whole);
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let joined: Vec<Value> = events
            .iter()
            .filter_map(|event| event["choices"][0]["logprobs"][field].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(Value::Array(joined), logprobs[field], "{field}");
    }
}

#[test]
fn echo_gives_back_what_was_sent_for_texts_and_ids_with_several_choices() {
    let server = start(&[]);
    let body = format!(
        r#"{{"model":"{MODEL}","prompt":["é<|im_end|>","b"],"n":2,"max_tokens":1,"echo":true,"logprobs":0,"temperature":0}}"#
    );
    let json = server.post(TEXT, &body).json();
    let texts: Vec<&str> = json["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert!(texts[0].starts_with("é<|im_end|>") && texts[1] == texts[0] && texts[2].starts_with('b'), "{texts:?}");
    // The two bytes of é are tokens that share a character.
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!((&logprobs["tokens"][0], &logprobs["tokens"][1]), (&"bytes:\\xc3".into(), &"bytes:\\xa9".into()));
    assert_eq!((&logprobs["text_offset"][1], &logprobs["text_offset"][2]), (&0.into(), &1.into()));
    let ids = format!(r#"{{"model":"{MODEL}","prompt":[104,257,105],"max_tokens":0,"echo":true,"logprobs":0}}"#);
    let choice = server.post(TEXT, &ids).json()["choices"][0].clone();
    assert_eq!(choice["text"], "h<|im_end|>i");
    assert_eq!(choice["logprobs"]["tokens"], serde_json::json!(["h", "<|im_end|>", "i"]));
    assert_eq!(choice["logprobs"]["text_offset"], serde_json::json!([0, 1, 11]));
}

#[test]
fn a_prompt_of_one_token_is_scored_with_nothing() {
    let server = start(&[]);
    let body = format!(r#"{{"model":"{MODEL}","prompt":"h","max_tokens":0,"echo":true,"logprobs":1}}"#);
    let choice = server.post(TEXT, &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], "h");
    assert_eq!(choice["logprobs"]["token_logprobs"], serde_json::json!([null]));
}

/// Says the given tokens one after the other, whatever the prompt: token `i` follows token `i - 1`.
fn script(tokens: &[u32]) -> Model {
    let mut info = model_info();
    info.num_blocks = 256;
    info.context_len = 1024;
    let text = TextModel::new(&text::simulated_meta(1024)).unwrap();
    Model { executor: Box::new(Script { info, tokens: tokens.to_vec() }), text }
}

struct Script {
    info: ModelInfo,
    tokens: Vec<u32>,
}

impl Executor for Script {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError> {
        logits.clear();
        for seq in batch.seqs {
            for row in seq.tokens.len() - seq.want_logits.rows(seq.tokens.len())..seq.tokens.len() {
                // Prompts are one token long here, so that positions count the answer.
                let next = self.tokens[(seq.position + row).min(self.tokens.len() - 1)];
                let start = logits.len();
                logits.resize(start + self.info.vocab, 0.0);
                logits[start + next as usize] = 30.0;
            }
        }
        Ok(())
    }
}

const END: u32 = text::SIMULATED_END;
const START: u32 = END - 1;

fn scripted(tokens: &[u32]) -> support::Running {
    start_with(&support::args(&[]), script(tokens))
}

fn answer(server: &support::Running, fields: &str) -> (String, String) {
    let body = format!(r#"{{"model":"{MODEL}","prompt":"x","temperature":0{fields}}}"#);
    let json = server.post(TEXT, &body).json();
    let choice = &json["choices"][0];
    let text = |field: &str| choice[field].as_str().unwrap_or_else(|| panic!("{json}")).to_owned();
    (text("text"), text("finish_reason"))
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn what_ends_an_answer_and_what_is_shown_of_it() {
    let tokens = [bytes("ab"), vec![START], bytes("cd"), vec![END], bytes("ef"), vec![END], bytes("gh")].concat();
    let server = scripted(&tokens);
    let stop = |text: &str| (text.to_owned(), "stop".to_owned());
    let cases = [
        // The model's own end token.
        ("", stop("abcd")),
        (r#","include_stop_str_in_output":true"#, stop("abcd")),
        (r#","skip_special_tokens":false"#, stop("ab<|im_start|>cd")),
        (r#","skip_special_tokens":false,"include_stop_str_in_output":true"#, stop("ab<|im_start|>cd<|im_end|>")),
        // A stop string that is a control token's name, also past the end of text.
        (r#","stop":"<|im_start|>""#, stop("ab")),
        (r#","stop":"<|im_start|>","include_stop_str_in_output":true"#, stop("ab<|im_start|>")),
        (r#","stop":["<|im_end|>"],"ignore_eos":true"#, stop("abcd")),
        // Token ids.
        (r#","stop_token_ids":[99]"#, stop("ab")),
        (r#","stop_token_ids":[99],"include_stop_str_in_output":true"#, stop("abc")),
        // Ordinary stop strings.
        (r#","stop":"bc""#, stop("a")),
        (r#","stop":"bc","include_stop_str_in_output":true"#, stop("abc")),
        // Not before so many tokens: the model's second choice stands in for the end token.
        (r#","stop":"b","min_tokens":3"#, stop("abcd")),
        (r#","ignore_eos":true,"max_tokens":11"#, ("abcdefgh".to_owned(), "length".to_owned())),
    ];
    for (fields, expected) in cases {
        assert_eq!(answer(&server, fields), expected, "{fields}");
    }
    let (text, _) = answer(&server, r#","min_tokens":7,"max_tokens":16"#);
    assert!(text.starts_with("abcd") && text.ends_with("ef"), "the first end token was not sampled: {text:?}");
}

#[test]
fn an_incomplete_character_at_the_end_is_dropped_and_scored_by_its_bytes() {
    let server = scripted(&[u32::from(b'a'), 0xF0, 0x9F, 0x98, 0x80, 0xC3, END]);
    assert_eq!(answer(&server, ""), ("a😀".to_owned(), "stop".to_owned()));
    assert_eq!(answer(&server, r#","max_tokens":3"#), ("a".to_owned(), "length".to_owned()));
    let body = format!(r#"{{"model":"{MODEL}","prompt":"x","temperature":0,"logprobs":20}}"#);
    let whole = server.post(TEXT, &body).json()["choices"][0]["logprobs"].clone();
    let labels = ["a", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80", "bytes:\\xc3"];
    assert_eq!(whole["tokens"], serde_json::json!(labels));
    assert_eq!(whole["text_offset"], serde_json::json!([0, 1, 1, 1, 1, 2]));
    for alternatives in whole["top_logprobs"].as_array().unwrap() {
        assert!(alternatives.as_object().unwrap().len() >= 20, "no two tokens share a key: {alternatives}");
    }
    let events = server.post(TEXT, &body.replace("}", r#","stream":true}"#)).events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(Value::Array(streamed), whole["text_offset"]);
}

#[test]
fn control_tokens_have_their_names_in_logprobs() {
    let server = scripted(&[START, u32::from(b'a'), END]);
    let body = format!(r#"{{"model":"{MODEL}","prompt":"x","temperature":0,"logprobs":1}}"#);
    let logprobs = server.post(TEXT, &body).json()["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"], serde_json::json!(["<|im_start|>", "a"]));
    assert_eq!(logprobs["text_offset"], serde_json::json!([0, 0]), "the name is not in the text");
    let echoed = server.post(TEXT, &body.replace("}", r#","echo":true}"#)).json()["choices"][0]["logprobs"].clone();
    assert_eq!(echoed["tokens"], serde_json::json!(["x", "<|im_start|>", "a", "<|im_end|>"]), "the end has one, too");
    let body = format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"x"}}],"max_tokens":1,"logprobs":true,"top_logprobs":1,"temperature":0}}"#
    );
    let server = scripted(&[vec![START; 64], vec![END]].concat());
    let content = server.post(CHAT, &body).json()["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(
        (&content[0]["token"], &content[0]["top_logprobs"][0]["token"]),
        (&"<|im_start|>".into(), &"<|im_start|>".into())
    );
}

/// lm-evaluation-harness takes the entries after the context and leaves out the last, which it asked to be
/// generated.
#[test]
fn one_generated_token_is_one_entry_even_where_it_ends_the_answer() {
    let server = scripted(&[END]);
    let body = format!(
        r#"{{"model":"{MODEL}","prompt":[[104],[104]],"temperature":0,"max_tokens":1,"logprobs":1,"seed":1234,"echo":true}}"#
    );
    let json = server.post(TEXT, &body).json();
    for choice in json["choices"].as_array().unwrap() {
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&"h".into(), &"stop".into()));
        assert_eq!(choice["logprobs"]["tokens"], serde_json::json!(["h", "<|im_end|>"]));
        assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), 2);
    }
    let chat = format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"x"}}],"logprobs":true,"temperature":0}}"#
    );
    assert_eq!(server.post(CHAT, &chat).json()["choices"][0]["logprobs"]["content"], serde_json::json!([]));
}

#[test]
fn top_p_zero_is_greedy() {
    let server = start(&[]);
    let text = |fields: &str| {
        let body = format!(r#"{{"model":"{MODEL}","prompt":"ab","max_tokens":24{fields}}}"#);
        server.post(TEXT, &body).json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(r#","temperature":1,"top_p":0"#), text(r#","temperature":0"#));
}

#[test]
fn a_conversation_that_other_servers_wrote_into_is_answered() {
    let server = start(&[]);
    let answer = |messages: &str| {
        let body = format!(r#"{{"model":"{MODEL}","messages":[{messages}],"max_tokens":8,"temperature":0}}"#);
        let response = server.post(CHAT, &body);
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let user = r#"{"role":"user","content":"hi"}"#;
    let plain = answer(&format!(r#"{user},{{"role":"assistant","content":"Hi"}},{user}"#));
    let annotated = answer(&format!(
        r#"{user},{{"role":"assistant","content":"Hi","id":"x","finish_reason":"stop","reasoning":"r","annotations":[],"refusal":null,"provider_specific_fields":{{}}}},{{"role":"user","content":[{{"type":"text","text":"hi","cache_control":{{"type":"ephemeral"}}}}]}}"#
    ));
    assert_eq!(annotated, plain);
}

#[test]
fn the_last_message_can_be_continued() {
    let server = start(&[]);
    let body = |extra: &str| {
        format!(
            r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"hi"}},{{"role":"assistant","content":"I am"}}],"max_tokens":8,"temperature":0{extra}}}"#
        )
    };
    let continued = server.post(CHAT, &body(r#","continue_final_message":true,"add_generation_prompt":false"#)).json();
    let by_hand = format!(
        r#"{{"model":"{MODEL}","prompt":{},"max_tokens":8,"temperature":0}}"#,
        serde_json::json!(
            [vec![START], bytes("user\nhi"), vec![END], bytes("\n"), vec![START], bytes("assistant\nI am")].concat()
        )
    );
    let expected = server.post(TEXT, &by_hand).json();
    assert_eq!(continued["choices"][0]["message"]["content"], expected["choices"][0]["text"]);
    assert_eq!(continued["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
}
