//! Every rule of the request parsers, as data: a body and how it is answered.
#![allow(clippy::unwrap_used)]

use stowage_openai_api::policy::{Place, Treatment, rules_of};
use stowage_openai_api::{ApiError, ChatRequest, CompletionRequest, Envelope, Limits, OrderedValue, Prompt, Role};

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
fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, code: &str, param: &str, expected: &str) {
    let err = result.unwrap_err();
    assert_eq!(err.code, code, "{}", err.message);
    assert_eq!(err.param.as_deref().unwrap_or(""), param, "{}", err.message);
    assert!(err.message.contains(expected), "{:?} does not contain {expected:?}", err.message);
    assert_eq!(err.status, 400);
}

#[test]
fn bodies_that_are_not_an_object_are_refused() {
    for (body, expected) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("null", "must be a JSON object, not null"),
        ("[]", "must be a JSON object, not an array"),
        ("{\"model\":\"m\"} trailing", "trailing"),
        ("{'model': 1}", "not valid JSON"),
        ("{\"model\": \"\\ud800\"}", "not valid JSON"),
    ] {
        refused(chat_body(body), "invalid_json", "", expected);
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
    refused(message(r#"{"content":"a"}"#), "missing_required_parameter", "messages[1].role", "the author");
    refused(message(r#"{"role":"robot","content":"a"}"#), "invalid_value", "messages[1].role", "robot");
    refused(message(r#"{"role":"user"}"#), "missing_required_parameter", "messages[1].content", "missing");
    refused(message(r#"{"role":"user","content":7}"#), "invalid_type", "messages[1].content", "not 7");
    refused(message(r#"{"role":"user","content":"a","names":1}"#), "unknown_parameter", "messages[1].names", "`name`");
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
    for (field, value, expected) in [
        ("temperature", "2.1", "between 0 and 2"),
        ("temperature", "-0.1", "between 0 and 2"),
        ("top_p", "-0.1", "between 0 and 1"),
        ("top_p", "1.01", "between 0 and 1"),
        ("min_p", "1.5", "between 0 and 1"),
        ("top_k", "-2", "between -1"),
        ("presence_penalty", "2.5", "between -2 and 2"),
        ("frequency_penalty", "-3", "between -2 and 2"),
        ("repetition_penalty", "0", "between 0.01"),
        ("n", "0", "between 1 and 128"),
        ("n", "129", "between 1 and 128"),
        ("n", "99999999999999999999999", "must be"),
        ("max_tokens", "0", "between 1"),
        ("max_tokens", "-1", "Leave it out"),
        ("min_tokens", "-1", "between 0"),
        ("stop_token_ids", "[1,-1]", "must be"),
        ("max_completion_tokens", "0", "between 1"),
        ("top_logprobs", "21", "between 0 and 20"),
        ("top_logprobs", "3", "needs `logprobs: true`"),
        ("seed", "18446744073709551615", "between"),
    ] {
        let result = chat(&format!(r#","{field}":{value}"#));
        let err = result.unwrap_err();
        assert!(err.param.as_deref().is_some_and(|param| param.starts_with(field)), "{field}={value}");
        assert!(err.message.contains(expected), "{field}={value}: {}", err.message);
    }
}

#[test]
fn fields_of_a_wrong_type_are_refused_with_the_right_type() {
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
        ("stop_token_ids", "5", "an array of token ids"),
        ("skip_special_tokens", "1", "true or false"),
        ("chat_template_kwargs", "[]", "an object"),
        ("cache_salt", "5", "a string"),
    ] {
        let extra = format!(r#","{field}":{value}"#);
        refused(chat(&extra), "invalid_type", field, must_be);
    }
}

#[test]
fn stop_lists_are_bounded() {
    let many = |n: usize| chat(&format!(r#","stop":[{}]"#, vec![r#""x""#; n].join(",")));
    assert_eq!(many(17).unwrap().output.stop.len(), 17);
    refused(many(257), "invalid_value", "stop", "at most 256");
    let long = vec![format!("{:?}", "x".repeat(1000)); 9].join(",");
    refused(chat(&format!(r#","stop":[{long}]"#)), "invalid_value", "stop", "8192 bytes long together");
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
fn tools_and_structured_output_are_refused_and_their_defaults_accepted() {
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
    refused(chat(r#","functions":[]"#), "unsupported_parameter", "functions", "tool calling");
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
    assert_eq!(prompt(&format!("[{}]", vec![r#""a""#; 33].join(","))).unwrap().count(), 33);
    refused(prompt(&format!("[{}]", vec![r#""a""#; 1025].join(","))), "invalid_value", "prompt", "at most 1024");
}

#[test]
fn completions_refuse_what_they_cannot_do() {
    let with = |extra: &str| completion(&format!(r#","prompt":"a"{extra}"#));
    refused(with(r#","suffix":"x""#), "unsupported_parameter", "suffix", "Remove");
    refused(with(r#","best_of":2"#), "unsupported_parameter", "best_of", "n");
    let fine = with(r#","echo":false,"suffix":"","best_of":1,"logprobs":2"#).unwrap();
    assert_eq!(fine.output.logprobs, Some(2));
    assert_eq!(fine.output.max_tokens, Some(16));
}

#[test]
fn completions_echo_and_may_generate_nothing() {
    let with = |extra: &str| completion(&format!(r#","prompt":"a"{extra}"#)).unwrap();
    let scoring = with(r#","echo":true,"logprobs":1,"max_tokens":0"#);
    assert!(scoring.echo);
    assert_eq!((scoring.output.max_tokens, scoring.output.logprobs), (Some(0), Some(1)));
    assert!(!with("").echo);
    assert_eq!(with(r#","min_tokens":20"#).output.max_tokens, Some(20), "the default of 16 makes room");
}

#[test]
fn common_extensions_are_read() {
    let output = chat(
        r#","min_tokens":3,"max_tokens":9,"stop_token_ids":[7,8],"skip_special_tokens":false,
           "include_stop_str_in_output":true,"top_p":0"#,
    )
    .unwrap();
    assert_eq!((output.output.min_tokens, output.output.stop_token_ids.as_slice()), (3, [7, 8].as_slice()));
    assert!(!output.output.skip_special_tokens && output.output.include_stop);
    assert_eq!(output.sampling.top_p, Some(0.0));
    let plain = chat("").unwrap().output;
    assert!(plain.skip_special_tokens && !plain.include_stop && plain.stop_token_ids.is_empty());
    refused(chat(r#","min_tokens":10,"max_tokens":9"#), "invalid_value", "min_tokens", "larger than `max_tokens`");
    let ids = vec!["1"; 257].join(",");
    refused(chat(&format!(r#","stop_token_ids":[{ids}]"#)), "invalid_value", "stop_token_ids", "at most 256");
}

/// What programs send when nothing is configured, as their sources have it.
#[test]
fn default_bodies_of_benchmarks_and_harnesses_are_read() {
    let usage = r#""stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}"#;
    // guidellm 0.8.1, with and without a wanted length.
    for length in [r#""max_completion_tokens":9,"stop":null,"ignore_eos":true"#, r#""max_completion_tokens":9"#] {
        let content = r#"[{"type":"text","text":"hi"}]"#;
        let body = format!(r#"{{"model":"m",{usage},{length},"messages":[{{"role":"user","content":{content}}}]}}"#);
        assert!(chat_body(&body).is_ok(), "{body}");
    }
    for length in [r#""max_tokens":9,"stop":null,"ignore_eos":true"#, r#""max_tokens":9"#] {
        assert!(completion(&format!(r#","prompt":"hi",{usage},{length}"#)).is_ok(), "{length}");
    }
    // lm-evaluation-harness 0.4.13: log-likelihoods, and texts.
    let scored =
        completion(r#","prompt":[[1,2],[3]],"temperature":0,"max_tokens":1,"logprobs":1,"seed":1234,"echo":true"#);
    assert!(scored.unwrap().echo);
    let generated = r#","prompt":["a"],"max_tokens":256,"temperature":0,"stop":["\n\n","Q:"],"seed":1234"#;
    assert!(completion(generated).is_ok());
}

#[test]
fn template_fields_are_read_and_contradictions_refused() {
    let template = |extra: &str| chat(extra).map(|request| request.template);
    assert_eq!(template("").unwrap(), Default::default());
    assert!(!template(r#","add_generation_prompt":false"#).unwrap().add_generation_prompt);
    let continued = template(r#","continue_final_message":true"#).unwrap();
    assert!(continued.continue_final_message && !continued.add_generation_prompt);
    let both = r#","continue_final_message":true,"add_generation_prompt":true"#;
    refused(template(both), "invalid_value", "continue_final_message", "exclude each other");
    let kwargs = template(r#","chat_template_kwargs":{"enable_thinking":false}"#).unwrap().kwargs;
    assert_eq!(kwargs["enable_thinking"], OrderedValue::Bool(false));
    refused(
        template(r#","chat_template_kwargs":{"messages":[]}"#),
        "invalid_value",
        "chat_template_kwargs.messages",
        "top level",
    );
    let empty =
        chat_body(r#"{"model":"m","messages":[{"role":"assistant","content":null}],"continue_final_message":true}"#);
    refused(empty, "invalid_value", "continue_final_message", "content");
}

/// What a template shows of a request is shown in the client's order.
#[test]
fn keys_that_reach_a_template_keep_their_order() {
    let tool =
        r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"z":1,"a":{"y":2,"b":3}}}}"#;
    let request = chat(&format!(r#","tools":[{tool}],"chat_template_kwargs":{{"z":{{"b":1,"a":2}},"a":0}}"#)).unwrap();
    assert_eq!(serde_json::to_string(&request.tools).unwrap(), format!("[{tool}]"));
    let kwargs = OrderedValue::Object(request.template.kwargs);
    assert_eq!(serde_json::to_string(&kwargs).unwrap(), r#"{"z":{"b":1,"a":2},"a":0}"#);
    let call = r#"{"type":"function","id":"c","function":{"name":"f","arguments":"{}"}}"#;
    let body = format!(r#"{{"model":"m","messages":[{{"tool_calls":[{call}],"role":"assistant"}}]}}"#);
    let request = ChatRequest::parse(body.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(serde_json::to_string(&request.messages[0].tool_calls).unwrap(), format!("[{call}]"));
}

#[test]
fn a_long_cache_salt_is_refused() {
    assert_eq!(chat(r#","cache_salt":"a""#).unwrap().cache_salt, "a");
    assert_eq!(completion(r#","prompt":"a","cache_salt":"b""#).unwrap().cache_salt, "b");
    let long = format!(r#","cache_salt":{:?}"#, "x".repeat(257));
    refused(chat(&long), "invalid_value", "cache_salt", "256 bytes");
}

/// What agents and other servers leave in a conversation that is sent back.
#[test]
fn fields_inside_messages_that_cannot_change_the_answer_are_ignored() {
    let text = |message: &str| {
        let body = format!(r#"{{"model":"m","messages":[{message},{{"role":"user","content":"x"}}]}}"#);
        chat_body(&body).map(|request| request.messages[0].content.clone())
    };
    for (message, content) in [
        (r#"{"role":"assistant","content":"Hi","finish_reason":"stop"}"#, "Hi"),
        (r#"{"role":"assistant","content":"Hi","reasoning":"r"}"#, "Hi"),
        (r#"{"role":"assistant","content":"Hi","reasoning_content":"r","reasoning_details":[{"type":"x"}]}"#, "Hi"),
        (r#"{"role":"assistant","content":"Hi","id":"msg_1","provider_specific_fields":{"a":[1]}}"#, "Hi"),
        (r#"{"role":"assistant","content":"Hi","some_field_of_next_year":{"a":1}}"#, "Hi"),
        (r#"{"role":"assistant","content":"Hi","audio":null,"function_call":null,"tool_calls":null}"#, "Hi"),
        (r#"{"role":"assistant","content":"Hi","prefix":false}"#, "Hi"),
        (r#"{"role":"assistant","content":null,"reasoning":"r"}"#, ""),
        (r#"{"role":"assistant"}"#, ""),
        (r#"{"role":"assistant","content":null,"refusal":"No."}"#, "No."),
        (r#"{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]}"#, "a"),
        (
            r#"{"role":"user","content":[{"type":"text","text":"a","id":1,"x":{}},{"type":"input_text","text":"b"}]}"#,
            "ab",
        ),
        (
            r#"{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"text","text":"a"}]}"#,
            "a",
        ),
        (
            r#"{"role":"assistant","content":[{"type":"output_text","text":"a","annotations":[]},{"type":"refusal","refusal":"b"}]}"#,
            "ab",
        ),
    ] {
        assert_eq!(text(message).as_deref(), Ok(content), "{message}");
    }
}

#[test]
fn fields_inside_messages_that_would_change_the_answer_are_refused() {
    let message = |m: &str| chat_body(&format!(r#"{{"model":"m","messages":[{m}]}}"#));
    for (body, param) in [
        (r#"{"role":"user","content":"a","images":["x"]}"#, "messages[0].images"),
        (r#"{"role":"assistant","content":"a","audio":{"id":"x"}}"#, "messages[0].audio"),
        (r#"{"role":"assistant","content":"a","function_call":{"name":"f"}}"#, "messages[0].function_call"),
        (r#"{"role":"assistant","content":"a","prefix":true}"#, "messages[0].prefix"),
    ] {
        refused(message(body), "unsupported_parameter", param, ".");
    }
    let part =
        r#"{"role":"user","content":[{"type":"text","text":"a","txet":"b"},{"type":"text","text":"b","txt":"b"}]}"#;
    refused(message(part), "unknown_parameter", "messages[0].content[1].txt", "`text`");
    let call = r#"{"role":"assistant","content":"a","tool_call":[{"id":"c"}]}"#;
    refused(message(call), "unknown_parameter", "messages[0].tool_call", "`tool_calls`");
}

/// Each row of the table, tried.
#[test]
fn parsers_follow_the_table_of_the_policy() {
    // As the engine does: it parses, then refuses what it cannot honour.
    let served = |request: ChatRequest| request.refuse_extras();
    let with = |place: Place, field: &str| match place {
        Place::Chat => chat(&format!(",{field}")).and_then(served),
        Place::Completion => completion(&format!(r#","prompt":"a",{field}"#)).map(drop),
        Place::Message => {
            chat_body(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"a",{field}}}]}}"#))
                .and_then(served)
        }
        Place::Part => chat_body(&format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"a",{field}}}]}}]}}"#
        ))
        .and_then(served),
    };
    for place in [Place::Chat, Place::Completion, Place::Message, Place::Part] {
        for rule in rules_of(place) {
            let try_value = |value: &str| with(place, &format!(r#""{}":{value}"#, rule.name));
            match rule.treatment {
                // Whatever is wrong with the value, the name is known.
                Treatment::Honoured => {
                    if let Err(err) = try_value("{}") {
                        assert_ne!(err.code, "unknown_parameter", "{place:?} {}", rule.name);
                    }
                }
                Treatment::Ignored => {
                    for value in ["null", "{}", "[1]", r#""x""#, "-1"] {
                        assert_eq!(try_value(value), Ok(()), "{place:?} {}", rule.name);
                    }
                }
                Treatment::OnlyDefault(values) => {
                    for value in values.iter().chain(&["null"]) {
                        assert_eq!(try_value(value), Ok(()), "{place:?} {} {value}", rule.name);
                    }
                    // One of the two has the type that the field wants.
                    let refused = [r#"{"x":1}"#, r#"[{"x":1}]"#].map(|value| try_value(value).unwrap_err());
                    let refused = refused.iter().find(|err| err.code == "unsupported_parameter").unwrap();
                    assert_eq!(refused.message, rule.note, "{place:?}");
                }
                Treatment::Refused => {
                    assert_eq!(try_value("null"), Ok(()), "{place:?} {}", rule.name);
                    let err = try_value("[7]").unwrap_err();
                    assert_eq!((err.code, err.message.as_str()), ("unsupported_parameter", rule.note));
                }
            }
        }
    }
}

mod fuzzed {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Any bytes are parsed or refused with an error that fits its own rules.
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
        fn a_refusal_of_any_value_names_the_field(
            field in prop::sample::select(vec![
                "model", "messages", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "stream",
                "stream_options", "max_tokens", "logprobs", "top_logprobs", "logit_bias", "tools", "response_format",
                "min_tokens", "stop_token_ids", "chat_template_kwargs", "continue_final_message", "cache_salt",
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
