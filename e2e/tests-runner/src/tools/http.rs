//! The gateway as an application developer reaches it.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use serde_json::{Value, json};

/// One caller: an address and a key.
#[derive(Clone)]
pub struct Caller {
    pub url: String,
    pub key: String,
    client: reqwest::Client,
}

/// What came back, whatever the status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

// === impl Answer ===

impl Answer {
    /// The text of the first choice of a chat or text completion.
    pub fn text(&self) -> String {
        let choice = &self.body["choices"][0];
        choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
    }
}

// === impl Caller ===

impl Caller {
    pub fn new(url: &str, key: &str) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(120))
            .no_proxy()
            .build()
            .context("build the HTTP client")?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key: key.to_owned(), client })
    }

    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(self.client.post(format!("{}{path}", self.url)).json(body)).await
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(self.client.get(format!("{}{path}", self.url))).await
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
        let request = if self.key.is_empty() { request } else { request.bearer_auth(&self.key) };
        let response = request.send().await.context("send the request to the gateway")?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.context("read the gateway's answer")?;
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer { status, body })
    }

    /// A greedy chat question.
    pub async fn chat(&self, model: &str, question: &str, max_tokens: u32) -> anyhow::Result<Answer> {
        self.post("/v1/chat/completions", &chat_body(model, question, max_tokens)).await
    }

    /// A streamed chat: the text and whether the stream ended with `[DONE]`.
    pub async fn chat_stream(&self, model: &str, question: &str, max_tokens: u32) -> anyhow::Result<(String, bool)> {
        self.chat_stream_seen(model, question, max_tokens, || ()).await
    }

    /// As [`Self::chat_stream`]; `begun` is called when the first part of the answer is there.
    pub async fn chat_stream_seen(
        &self,
        model: &str,
        question: &str,
        max_tokens: u32,
        begun: impl FnOnce(),
    ) -> anyhow::Result<(String, bool)> {
        let mut body = chat_body(model, question, max_tokens);
        body["stream"] = json!(true);
        let response = self
            .client
            .post(format!("{}/v1/chat/completions", self.url))
            .bearer_auth(&self.key)
            .json(&body)
            .send()
            .await
            .context("open the stream")?;
        anyhow::ensure!(
            response.status().is_success(),
            "stream refused with {}: {}",
            response.status(),
            response.text().await.unwrap_or_default()
        );
        let (mut buffer, mut bytes) = (String::new(), response.bytes_stream());
        let mut begun = Some(begun);
        while let Some(part) = bytes.next().await {
            begun.take().into_iter().for_each(|begun| begun());
            buffer.push_str(&String::from_utf8_lossy(&part.context("read the stream")?));
        }
        let events = buffer.lines().filter_map(|l| l.strip_prefix("data: "));
        let (mut text, mut done) = (String::new(), false);
        for event in events {
            if event == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_str(event).context("parse a stream event")?;
            anyhow::ensure!(event.get("error").is_none(), "the stream ended with an error event: {event}");
            text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
        Ok((text, done))
    }
}

pub fn chat_body(model: &str, question: &str, max_tokens: u32) -> Value {
    json!({"model": model, "temperature": 0, "max_tokens": max_tokens, "messages": [{"role": "user", "content": question}]})
}
