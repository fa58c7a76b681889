//! Every rule of the request parsers, as data: a body and what must be said about it.
#![allow(clippy::unwrap_used)]

use stowage_openai_api::{ApiError, ChatRequest, CompletionRequest, Envelope, Limits, Prompt, Role};

fn chat(extra: &str) -> Result<ChatRequest, ApiError> {
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#);
    ChatRequest::parse(body.as_bytes(), &Limits::default())
}

fn chat_body(body: &str) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body.as_bytes(), &Limits::default())
}

fn completion(extra: &str) -> Result<CompletionRequest, ApiError> {
    let body = format!(r#"{{"model":"m"{extra}}}"#);
    CompletionRequest::parse(body.as_bytes(), &Limits::default())
}

/// The refusal's code, parameter, and a part of its message.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, code: &str, param: &str, says: &str) {
    let err = result.unwrap_err();
    assert_eq!(err.code, code, "{}", err.message);
    assert_eq!(err.param.as_deref().unwrap_or(""), param, "{}", err.message);
    assert!(err.message.contains(says), "{:?} does not say {says:?}", err.message);
    assert_eq!(err.status, 400);
}

#[test]
fn bodies_that_are_not_an_object_are_refused() {
    for (body, says) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("null", "must be a JSON object, not null"),
        ("[]", "must be a JSON object, not an array"),
        ("{\"model\":\"m\"} trailing", "trailing"),
        ("{'model': 1}", "not valid JSON"),
        ("{\"model\": \"\\ud800\"}", "not valid JSON"),
    ] {
        refused(chat_body(body), "invalid_json", "", says);
    }
    let deep = format!("{{\"model\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    refused(chat_body(&deep), "invalid_json", "", "recursion limit");
}

#[test]
fn a_body_that_would_take_a_hundred_times_its_size_in_memory_is_refused() {
    let many = vec![r#"{"":0}"#; 70_000].join(",");
    refused(chat(&format!(r#","metadata":[{many}]"#)), "invalid_json", "", "more than 65536");
    // The gateway builds no tree of it, unless something else is wrong as well.
    let envelope = |extra: &str| Envelope::parse(format!(r#"{{"model":"m"{extra},"metadata":[{many}]}}"#).as_bytes());
    assert!(envelope("").is_ok());
    refused(envelope(r#","n":"1""#), "invalid_json", "", "more than 65536");
}

#[test]
fn invalid_utf8_is_refused() {
    let body = b"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}";
    refused(ChatRequest::parse(body, &Limits::default()), "invalid_json", "", "not valid JSON");
}

#[test]
fn chat_needs_a_model_and_messages() {
    refused(chat_body("{}"), "missing_required_parameter", "model", "missing");
    refused(chat_body(r#"{"model":null}"#), "missing_required_parameter", "model", "missing");
    refused(chat_body(r#"{"model":"m"}"#), "missing_required_parameter", "messages", "missing");
    refused(chat_body(r#"{"model":"m","messages":[]}"#), "invalid_value", "messages", "empty");
    refused(chat_body(r#"{"model":"m","messages":"hi"}"#), "invalid_type", "messages", "array of messages");
    refused(chat_body(r#"{"model":"m","messages":["hi"]}"#), "invalid_type", "messages[0]", "an object");
}

#[test]
fn each_message_is_checked_and_named_by_its_index() {
    let message = |m: &str| chat_body(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"a"}},{m}]}}"#));
    refused(message(r#"{"content":"a"}"#), "missing_required_parameter", "messages[1].role", "who speaks");
    refused(message(r#"{"role":"robot","content":"a"}"#), "invalid_value", "messages[1].role", "robot");
    refused(message(r#"{"role":"user"}"#), "missing_required_parameter", "messages[1].content", "missing");
    refused(
        message(r#"{"role":"assistant","content":null}"#),
        "missing_required_parameter",
        "messages[1].content",
        "missing",
    );
    refused(message(r#"{"role":"user","content":7}"#), "invalid_type", "messages[1].content", "not 7");
    refused(message(r#"{"role":"user","content":"a","x":1}"#), "unknown_parameter", "messages[1].x", "remove");
    refused(
        message(r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}"#),
        "unsupported_parameter",
        "messages[1].content[0].type",
        "text only",
    );
    refused(
        message(r#"{"role":"user","content":[{"type":"text"}]}"#),
        "missing_required_parameter",
        "messages[1].content[0].text",
        "missing",
    );
}

#[test]
fn content_parts_are_joined() {
    let request = chat_body(
        r#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#,
    )
    .unwrap();
    assert_eq!(request.messages[0].content, "ab");
    assert_eq!(request.messages[0].role, Role::Developer);
}

#[test]
fn sampling_fields_have_ranges() {
    for (field, value, says) in [
        ("temperature", "2.1", "between 0 and 2"),
        ("temperature", "-0.1", "between 0 and 2"),
        ("top_p", "0", "above 0"),
        ("top_p", "1.01", "above 0"),
        ("min_p", "1.5", "between 0 and 1"),
        ("top_k", "-2", "between -1"),
        ("presence_penalty", "2.5", "between -2 and 2"),
        ("frequency_penalty", "-3", "between -2 and 2"),
        ("repetition_penalty", "0", "between 0.01"),
        ("n", "0", "between 1 and 16"),
        ("n", "17", "between 1 and 16"),
        ("n", "99999999999999999999999", "must be"),
        ("max_tokens", "0", "between 1"),
        ("max_tokens", "-5", "between 1"),
        ("max_completion_tokens", "0", "between 1"),
        ("top_logprobs", "21", "between 0 and 20"),
        ("top_logprobs", "3", "needs `logprobs: true`"),
        ("seed", "18446744073709551615", "between"),
    ] {
        let result = chat(&format!(r#","{field}":{value}"#));
        let err = result.unwrap_err();
        assert_eq!(err.param.as_deref(), Some(field), "{field}={value}");
        assert!(err.message.contains(says), "{field}={value}: {}", err.message);
    }
}

#[test]
fn mistyped_fields_are_told_what_they_must_be() {
    for (field, value, must_be) in [
        ("temperature", r#""hot""#, "a number"),
        ("n", "1.5", "an integer"),
        ("n", "2.0", "an integer"),
        ("max_tokens", r#""10""#, "an integer"),
        ("stream", "1", "true or false"),
        ("stream_options", "true", "an object"),
        ("stop", "3", "a string or an array of strings"),
        ("logprobs", "5", "true or false"),
        ("logit_bias", "[]", "an object from token id to bias"),
        ("seed", r#""x""#, "an integer"),
        ("model", "[]", "a string"),
        ("tools", "{}", "an array"),
        ("ignore_eos", "0", "true or false"),
    ] {
        let extra = format!(r#","{field}":{value}"#);
        refused(chat(&extra), "invalid_type", field, must_be);
    }
}

#[test]
fn stop_lists_are_bounded() {
    let many = format!(r#","stop":[{}]"#, vec![r#""x""#; 17].join(","));
    refused(chat(&many), "invalid_value", "stop", "at most 16");
    refused(chat(r#","stop":"""#), "invalid_value", "stop", "empty");
    refused(chat(r#","stop":["a",""]"#), "invalid_value", "stop", "empty");
    refused(chat(r#","stop":["a",1]"#), "invalid_type", "stop[1]", "a string");
    refused(chat(&format!(r#","stop":"{}""#, "x".repeat(1025))), "invalid_value", "stop", "1024 bytes");
    assert_eq!(chat(r#","stop":"END""#).unwrap().output.stop, ["END"]);
}

#[test]
fn logit_bias_is_checked_entry_by_entry() {
    refused(chat(r#","logit_bias":{"a":1}"#), "invalid_value", "logit_bias", "not a token id");
    refused(chat(r#","logit_bias":{"5":101}"#), "invalid_value", "logit_bias.5", "between -100 and 100");
    refused(chat(r#","logit_bias":{"5":"x"}"#), "invalid_type", "logit_bias.5", "a number");
    assert_eq!(chat(r#","logit_bias":{"5":-100}"#).unwrap().sampling.logit_bias, [(5, -100.0)]);
}

#[test]
fn unknown_fields_are_refused_with_a_suggestion() {
    refused(chat(r#","temprature":1"#), "unknown_parameter", "temprature", "did you mean `temperature`");
    refused(chat(r#","zzz":1"#), "unknown_parameter", "zzz", "remove it");
    refused(
        chat(r#","stream":true,"stream_options":{"usage":true}"#),
        "unknown_parameter",
        "stream_options.usage",
        "remove",
    );
}

#[test]
fn bookkeeping_fields_and_nulls_are_accepted() {
    let request = chat(
        r#","user":"u","metadata":{"a":"b"},"store":false,"temperature":null,"stop":null,"n":null,"unknown_null":null"#,
    );
    // An unknown field stays unknown when it is null: it is still a misspelling.
    refused(request, "unknown_parameter", "unknown_null", "remove");
    assert!(chat(r#","user":"u","metadata":{"a":"b"},"store":false,"temperature":null,"stop":null"#).is_ok());
}

#[test]
fn max_tokens_has_two_names() {
    assert_eq!(chat(r#","max_tokens":5"#).unwrap().output.max_tokens, Some(5));
    assert_eq!(chat(r#","max_completion_tokens":6"#).unwrap().output.max_tokens, Some(6));
    assert_eq!(chat(r#","max_completion_tokens":6,"max_tokens":6"#).unwrap().output.max_tokens, Some(6));
    refused(chat(r#","max_completion_tokens":6,"max_tokens":5"#), "invalid_value", "max_tokens", "differ");
}

#[test]
fn usage_needs_a_stream() {
    refused(chat(r#","stream_options":{"include_usage":true}"#), "invalid_value", "stream_options", "stream: true");
    assert!(chat(r#","stream":true,"stream_options":{"include_usage":true}"#).unwrap().output.include_usage);
}

#[test]
fn what_a_plain_text_server_cannot_do_is_refused_and_its_defaults_are_not() {
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    refused(chat(tools).unwrap().refuse_extras(), "unsupported_parameter", "tools", "Remove");
    let schema = r#","response_format":{"type":"json_schema","json_schema":{}}"#;
    refused(chat(schema).unwrap().refuse_extras(), "unsupported_parameter", "response_format", "structured");
    refused(
        chat(r#","tool_choice":"required""#).unwrap().refuse_extras(),
        "unsupported_parameter",
        "tool_choice",
        "tool",
    );
    let defaults = r#","tools":[],"tool_choice":"auto","response_format":{"type":"text"},"modalities":["text"]"#;
    assert_eq!(chat(defaults).unwrap().refuse_extras(), Ok(()));
    refused(chat(r#","modalities":["text","audio"]"#), "unsupported_parameter", "modalities", "text");
    refused(chat(r#","functions":[]"#), "unsupported_parameter", "functions", "tools");
}

#[test]
fn prompts_come_in_four_shapes() {
    let prompt = |json: &str| completion(&format!(r#","prompt":{json}"#)).map(|request| request.prompt);
    assert_eq!(prompt(r#""a""#).unwrap(), Prompt::Text(vec!["a".into()]));
    assert_eq!(prompt(r#"["a","b"]"#).unwrap(), Prompt::Text(vec!["a".into(), "b".into()]));
    assert_eq!(prompt("[1,2]").unwrap(), Prompt::Tokens(vec![vec![1, 2]]));
    assert_eq!(prompt("[[1],[2,3]]").unwrap(), Prompt::Tokens(vec![vec![1], vec![2, 3]]));
    refused(prompt("[]"), "invalid_value", "prompt", "empty");
    refused(prompt("[[]]"), "invalid_value", "prompt[0]", "empty");
    refused(prompt("null"), "missing_required_parameter", "prompt", "missing");
    refused(prompt("{}"), "invalid_type", "prompt", "an object");
    refused(prompt("[1,-1]"), "invalid_type", "prompt[1]", "a token id");
    refused(prompt("[1,4294967296]"), "invalid_type", "prompt[1]", "a token id");
    refused(prompt(r#"["a",1]"#), "invalid_type", "prompt[1]", "a string");
    refused(prompt(r#"[[1],"a"]"#), "invalid_type", "prompt[1]", "token ids");
    refused(prompt("[true]"), "invalid_type", "prompt[0]", "true");
    refused(prompt(&format!("[{}]", vec![r#""a""#; 33].join(","))), "invalid_value", "prompt", "at most 32");
}

#[test]
fn completions_say_what_they_lack() {
    let with = |extra: &str| completion(&format!(r#","prompt":"a"{extra}"#));
    refused(with(r#","echo":true"#), "unsupported_parameter", "echo", "not supported");
    refused(with(r#","suffix":"x""#), "unsupported_parameter", "suffix", "Remove");
    refused(with(r#","best_of":2"#), "unsupported_parameter", "best_of", "n");
    let fine = with(r#","echo":false,"suffix":"","best_of":1,"logprobs":2"#).unwrap();
    assert_eq!(fine.output.logprobs, Some(2));
    assert_eq!(fine.output.max_tokens, Some(16));
}

mod fuzzed {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever comes, it is parsed or refused with an error that fits its own rules.
        #[test]
        fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            for err in [
                ChatRequest::parse(&body, &Limits::default()).err(),
                CompletionRequest::parse(&body, &Limits::default()).err(),
                Envelope::parse(&body).err(),
            ].into_iter().flatten() {
                prop_assert_eq!(err.status, 400);
                prop_assert!(!err.message.is_empty());
            }
        }

        /// The same for JSON that is nearly right: one known field with any value.
        #[test]
        fn any_value_in_any_field_is_judged_by_name(
            field in prop::sample::select(vec![
                "model", "messages", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "stream",
                "stream_options", "max_tokens", "logprobs", "top_logprobs", "logit_bias", "tools", "response_format",
            ]),
            value in prop::sample::select(vec![
                "0", "-1", "1e308", "1e999", "\"\"", "\"x\"", "[]", "{}", "[[]]", "[null]", "{\"1\":null}", "true",
                "-9223372036854775808", "18446744073709551616", "0.1", "[{}]", "{\"type\":7}",
            ]),
        ) {
            let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"{field}":{value}}}"#);
            if let Err(err) = ChatRequest::parse(body.as_bytes(), &Limits::default()) {
                let named = err.param.as_deref().is_some_and(|param| param.starts_with(field) || field == "stream_options" || field == "max_tokens");
                prop_assert!(named || err.code == "invalid_json", "{:?}", err);
            }
        }
    }
}
