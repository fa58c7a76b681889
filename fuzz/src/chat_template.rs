//! A model's chat template and a conversation: `template`, a line `====`, then messages, each
//! `@role text`. Both are foreign: the template comes with the model, the messages with a request.

use std::cell::LazyCell;

use jiff::Timestamp;
use stowage_engine::text::{Chat, SIMULATED_VOCAB, TemplateError, TextModel, longest_prompt, simulated_meta};
use stowage_engine_models::ModelMeta;
use stowage_openai_api::{Message, Role, TemplateFields};

use crate::{memory, one_line};

/// Tokio's, on which requests are rendered.
const STACK: usize = 2 << 20;

/// The template ends, whatever it does, with a prompt of bounded length or with words why not; and
/// in the template that everybody uses no message writes a control token.
pub fn chat_template(data: &[u8]) {
    memory::begin();
    let text = String::from_utf8_lossy(data);
    let (template, conversation) = text.split_once("\n====\n").unwrap_or((&text, "@user hi"));
    let messages: Vec<Message> = conversation.split("\n@").map(message).collect();
    std::thread::scope(|scope| {
        let rendering = std::thread::Builder::new()
            .name(std::thread::current().name().unwrap_or("template").to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                the_template_ends(template, &messages);
                markers_are_the_templates(&messages);
            });
        let ended = rendering.expect("a thread").join();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn message(text: &str) -> Message {
    let (role, content) = text.trim_start_matches('@').split_once(' ').unwrap_or(("user", text));
    let role = match role {
        "system" => Role::System,
        "developer" => Role::Developer,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => Role::User,
    };
    Message { role, content: content.to_owned(), name: None, tool_calls: Vec::new(), tool_call_id: None }
}

fn the_template_ends(template: &str, messages: &[Message]) {
    let meta = ModelMeta { chat_template: Some(template.to_owned()), ..simulated_meta(128) };
    let text = match TextModel::new(&meta) {
        Ok(text) => text,
        Err(err) => return one_line(&err.to_string()),
    };
    let fields = TemplateFields::default();
    let chat = Chat::new(messages, &fields, Timestamp::UNIX_EPOCH);
    match text.encode_chat(&chat, usize::MAX) {
        Ok(ids) => {
            // One token per byte, at most.
            assert!(ids.len() <= longest_prompt(&chat), "{} tokens", ids.len());
            assert!(ids.iter().all(|id| (*id as usize) < SIMULATED_VOCAB));
        }
        Err(err) => one_line(&err.to_string()),
    }
}

/// ChatML has one marker before each message and one after, and one for the answer.
fn markers_are_the_templates(messages: &[Message]) {
    thread_local! {
        static CHATML: LazyCell<TextModel> =
            LazyCell::new(|| TextModel::new(&simulated_meta(128)).expect("our own model"));
    }
    let fields = TemplateFields::default();
    let chat = Chat::new(messages, &fields, Timestamp::UNIX_EPOCH);
    CHATML.with(|text| match text.encode_chat(&chat, usize::MAX) {
        Ok(ids) => {
            assert_eq!(ids.iter().filter(|id| **id >= 256).count(), 2 * messages.len() + 1, "a message wrote a marker");
            let bytes: Vec<u8> = ids.iter().flat_map(|id| text.pieces().bytes(*id)).copied().collect();
            assert_eq!(String::from_utf8_lossy(&bytes), expected(messages), "a message was changed");
        }
        Err(TemplateError::NoGuard) => {}
        Err(err) => panic!("{err}"),
    });
}

fn expected(messages: &[Message]) -> String {
    let role = |role| if role == Role::Developer { "system" } else { Role::as_str(role) };
    let turns = messages.iter().map(|message| format!("{}\n{}\n", role(message.role), message.content));
    turns.collect::<String>() + "assistant\n"
}
