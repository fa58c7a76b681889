//! The body of a request, as engine and gateway read it.

use serde_json::{Map, Value, json};
use stowage_openai_api::{
    ApiError, ChatRequest, CompletionRequest, Envelope, Limits, Message, OrderedValue, Output, Prompt, SamplingFields,
    TemplateFields,
};

use crate::{one_line, within};

/// What is parsed and written again is parsed to the same; the gateway reads the same model, length
/// and number of answers as the engine; what is refused is a 400 that names the field.
pub fn openai_request(data: &[u8]) {
    let limits = Limits::default();
    let envelope = refused_well(within(PER_BYTE, data, || Envelope::parse(data)));
    let chat = refused_well(within(PER_BYTE, data, || ChatRequest::parse(data, &limits)));
    let completion = refused_well(within(PER_BYTE, data, || CompletionRequest::parse(data, &limits)));
    if let Some(request) = chat {
        agrees(envelope.as_ref(), &request.model, &request.output, None);
        let body = chat_body(&request);
        let again = ChatRequest::parse(body.to_string().as_bytes(), &limits);
        let again = chat_body(&again.expect("what was accepted is accepted again"));
        assert!(same(&again, &body), "{again}\n is not\n{body}");
    }
    if let Some(request) = completion {
        agrees(envelope.as_ref(), &request.model, &request.output, Some(request.output.min_tokens.max(16)));
        let sequences = request.prompt.count() as u64 * u64::from(request.output.n);
        assert_eq!(envelope.as_ref().map(Envelope::sequences), Some(sequences));
        let again = CompletionRequest::parse(completion_body(&request).to_string().as_bytes(), &limits);
        assert_eq!(again.expect("what was accepted is accepted again"), request);
    }
}

/// JSON of one-entry objects is the dearest: seven bytes become a tree of one node.
const PER_BYTE: usize = 128;

fn refused_well<T>(result: Result<T, ApiError>) -> Option<T> {
    match result {
        Ok(request) => Some(request),
        Err(err) => {
            one_line(&err.message);
            assert_eq!(err.status, 400, "{err:?}");
            assert!(err.param.is_some() || err.code == "invalid_json", "{err:?} names no field");
            None
        }
    }
}

/// The gateway limits and accounts by its envelope: it may not differ from what the engine does.
fn agrees(envelope: Option<&Envelope>, model: &str, output: &Output, default: Option<u32>) {
    let envelope = envelope.expect("the engine accepts what the gateway refuses");
    assert_eq!(envelope.model, model);
    assert_eq!((envelope.stream, envelope.include_usage), (output.stream, output.include_usage));
    assert_eq!((envelope.max_tokens.or(default), envelope.n), (output.max_tokens, output.n));
}

fn chat_body(request: &ChatRequest) -> Value {
    let ChatRequest { model, messages, template, sampling, output, cache_salt, tools, tool_choice, response_format } =
        request;
    let TemplateFields { add_generation_prompt, continue_final_message, kwargs } = template;
    let mut body = shared(model, sampling, output, cache_salt);
    body.insert("add_generation_prompt".into(), (*add_generation_prompt).into());
    body.insert("continue_final_message".into(), (*continue_final_message).into());
    body.insert("chat_template_kwargs".into(), OrderedValue::Object(kwargs.clone()).into());
    body.insert("messages".into(), messages.iter().map(message).collect());
    body.insert("logprobs".into(), output.logprobs.is_some().into());
    body.insert("top_logprobs".into(), output.logprobs.into());
    body.insert("tools".into(), json!(tools));
    body.insert("tool_choice".into(), tool_choice.clone().into());
    body.insert("response_format".into(), response_format.clone().into());
    body.into()
}

fn message(message: &Message) -> Value {
    let Message { role, content, name, tool_calls, tool_call_id } = message;
    json!({"role": role.as_str(), "content": content, "name": name, "tool_calls": tool_calls, "tool_call_id": tool_call_id})
}

fn completion_body(request: &CompletionRequest) -> Value {
    let CompletionRequest { model, prompt, sampling, output, echo, cache_salt } = request;
    let mut body = shared(model, sampling, output, cache_salt);
    body.insert("echo".into(), (*echo).into());
    let prompt = match prompt {
        Prompt::Text(texts) => json!(texts),
        Prompt::Tokens(lists) => json!(lists),
    };
    body.insert("prompt".into(), prompt);
    body.insert("logprobs".into(), output.logprobs.into());
    body.into()
}

fn shared(model: &str, sampling: &SamplingFields, output: &Output, cache_salt: &str) -> Map<String, Value> {
    let SamplingFields {
        temperature,
        top_p,
        top_k,
        min_p,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        logit_bias,
        seed,
    } = sampling;
    let Output {
        stream,
        include_usage,
        n,
        stop,
        stop_token_ids,
        include_stop,
        skip_special_tokens,
        max_tokens,
        min_tokens,
        logprobs: _,
        ignore_eos,
    } = output;
    let biases: Map<String, Value> = logit_bias.iter().map(|(id, bias)| (id.to_string(), number(*bias))).collect();
    assert_eq!(biases.len(), logit_bias.len(), "a token with two biases");
    let body = json!({
        "model": model,
        "temperature": temperature.map(number),
        "top_p": top_p.map(number),
        "top_k": top_k,
        "min_p": min_p.map(number),
        "presence_penalty": number(*presence_penalty),
        "frequency_penalty": number(*frequency_penalty),
        "repetition_penalty": number(*repetition_penalty),
        "logit_bias": biases,
        "seed": seed,
        "stream": stream,
        "stream_options": stream.then(|| json!({"include_usage": include_usage})),
        "n": n,
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "include_stop_str_in_output": include_stop,
        "skip_special_tokens": skip_special_tokens,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "cache_salt": cache_salt,
        "ignore_eos": ignore_eos,
    });
    match body {
        Value::Object(body) => body,
        _ => unreachable!("it is written as an object"),
    }
}

/// The shortest decimal that is this number: what a client would write.
fn number(x: f32) -> Value {
    serde_json::from_str(&x.to_string()).expect("a finite number")
}

/// Equal, but for the last digit of fractions, which JSON's reader may lose.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or(0.0), b.as_f64().unwrap_or(0.0));
            (a - b).abs() <= a.abs() * 1e-14
        }
        _ => one == other,
    }
}
