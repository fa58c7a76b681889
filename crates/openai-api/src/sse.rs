//! Server-sent events, as OpenAI's streams use them: `data:` lines only.

use serde::Serialize;

/// The last event of a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// One event with a JSON payload. JSON text holds no raw line breaks, so one `data:` line is enough.
pub fn data_line<T: Serialize>(payload: &T) -> String {
    let json = serde_json::to_string(payload).unwrap_or_else(|_| "{}".to_owned());
    format!("data: {json}\n\n")
}
