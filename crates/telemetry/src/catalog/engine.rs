//! Of the engine. The prefix keeps them apart from the gateway's: a request passes both.

use super::{Kind, Metric, Process, metrics};

metrics! { Engine;
    REQUESTS: Counter "stowage_engine_requests_total" ["outcome"]
        "Requests by how they ended";
    TOKENS: Counter "stowage_engine_tokens_total" ["direction", "cached"]
        "Tokens in and out, and prompt tokens from the prefix cache";
    REQUEST_DURATION: Histogram "stowage_engine_request_duration_seconds" []
        "From request to last token";
    TIME_TO_FIRST_TOKEN: Histogram "stowage_engine_time_to_first_token_seconds" []
        "From request to first token";
    INTER_TOKEN_LATENCY: Histogram "stowage_engine_inter_token_latency_seconds" []
        "Between two tokens of a request";
    QUEUE_WAIT: Histogram "stowage_engine_queue_wait_seconds" []
        "From request to its first step";
    STEP_DURATION: Histogram "stowage_engine_step_duration_seconds" ["phase"]
        "One step of the engine";
    RUNNING: Gauge "stowage_engine_running_requests" []
        "Requests being computed";
    WAITING: Gauge "stowage_engine_waiting_requests" []
        "Requests waiting for room";
    KV_BLOCKS_USED: Gauge "stowage_engine_kv_blocks_used" []
        "KV blocks held by requests";
    KV_BLOCKS: Gauge "stowage_engine_kv_blocks" []
        "KV blocks there are";
    KV_BLOCKS_TOUCHED: Gauge "stowage_engine_kv_blocks_touched" []
        "KV blocks that occupy memory";
    PREFILL_BACKLOG: Gauge "stowage_engine_prefill_backlog_tokens" []
        "Prompt tokens not computed yet";
    DRAINING: Gauge "stowage_engine_draining" []
        "1 while no new requests are taken";
    PREEMPTIONS: Counter "stowage_engine_preemptions_total" []
        "Requests that gave up their KV blocks";
    KV_EVICTIONS: Counter "stowage_engine_kv_evictions_total" []
        "Cached KV blocks given up for others";
    STEP_FAILURES: Counter "stowage_engine_step_failures_total" []
        "Steps that the device failed";
    BATCH: Histogram "stowage_engine_batch_sequences" []
        "Sequences in a step";
    CONNECTIONS: Gauge "stowage_engine_connections" []
        "Open HTTP connections";
    TRACE_SPANS: Counter "stowage_engine_trace_spans_total" ["outcome"]
        "Spans by what became of them: sent, dropped (the queue was full) or failed (the collector did not take them)";
}
