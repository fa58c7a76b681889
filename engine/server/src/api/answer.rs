//! How an answer is sent, whichever API asked: parse, submit, then at once or as a stream.

use axum::Json;
use axum::response::{IntoResponse, Response};
use stowage_openai_api::ApiError;
use stowage_telemetry::traces::traceparent::TraceParent;

use super::account::Account;
use super::choice::{Choice, Delta};
use super::job::{Generation, Job, random, start};
use super::stream::{Answer, Header, stream_events};
use super::{App, respond};

/// Parses, submits and answers. Counts the request whatever happens.
pub(super) async fn answer<A: Answer>(
    app: App,
    caller: Option<TraceParent>,
    parse: impl AsyncFnOnce(&App) -> Result<Job, ApiError>,
) -> Response {
    let mut account = Account::new(&app, A::OPERATION, caller);
    if app.engine.is_draining() {
        let err = ApiError::unavailable(
            "draining",
            "This replica is shutting down. Try again at once: another one answers.",
            1,
        );
        account.refused(&err);
        return respond(&err);
    }
    let job = match parse(&app).await {
        Ok(job) => job,
        Err(err) => {
            account.refused(&err);
            return respond(&err);
        }
    };
    let output = job.output.clone();
    let header = Header {
        id: format!("{}{:016x}", A::ID_PREFIX, random()),
        created: now(),
        model: app.model.clone(),
        logprobs: output.logprobs.is_some(),
    };
    match start(&app, job, account).await {
        Err((err, mut account)) => {
            account.refused(&err);
            respond(&err)
        }
        Ok(generation) if output.stream => stream_events::<A>(app, header, generation, &output),
        Ok(generation) => at_once::<A>(app, header, generation).await,
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

async fn at_once<A: Answer>(app: App, header: Header, generation: Generation) -> Response {
    let Generation { choices, mut account } = generation;
    let mut whole = Vec::with_capacity(choices.len());
    // One after the other: all of them run meanwhile, and their channels hold a whole answer.
    for mut choice in choices {
        match collect(&app, &mut choice, &mut account).await {
            Ok(delta) => whole.push(delta),
            Err(err) => {
                account.refused(&err);
                return respond(&err);
            }
        }
    }
    account.completed();
    let usage = account.usage();
    Json(A::whole(header, whole, usage, &app.text)).into_response()
}

async fn collect(app: &App, choice: &mut Choice, account: &mut Account) -> Result<Delta, ApiError> {
    let mut all = Delta { index: 0, text: String::new(), scored: Vec::new(), finish: None };
    while let Some(delta) = choice.next(app, account).await {
        let delta = delta?;
        all.index = delta.index;
        all.text.push_str(&delta.text);
        all.scored.extend(delta.scored);
        all.finish = delta.finish.or(all.finish);
    }
    Ok(all)
}
