//! Of the gateway.

use super::{Kind, Metric, Process, metrics};

metrics! { Gateway;
    REQUESTS: Counter "stowage_requests_total" ["tenant", "model", "outcome"]
        "Requests by how they ended; the tenant is the caller's";
    TOKENS: Counter "stowage_tokens_total" ["tenant", "model", "direction", "cached"]
        "Tokens as the engines counted them; the tenant is the caller's";
    REQUEST_DURATION: Histogram "stowage_request_duration_seconds" ["namespace", "deployment"]
        "From the request's head to the answer's last byte";
    TIME_TO_FIRST_TOKEN: Histogram "stowage_time_to_first_token_seconds" ["namespace", "deployment"]
        "From the request's head to the first byte of a streamed answer";
    INTER_TOKEN_LATENCY: Histogram "stowage_inter_token_latency_seconds" ["namespace", "deployment"]
        "Mean time between the events of one stream";
    QUEUE_WAIT: Histogram "stowage_queue_wait_seconds" ["namespace", "deployment"]
        "Time a request waited for a replica";
    OBJECTIVE_REQUESTS: Counter "stowage_objective_requests_total" ["namespace", "deployment", "objective", "attained"]
        "Streamed requests that attained or missed an objective of their deployment";
    OBJECTIVE: Gauge "stowage_objective_seconds" ["namespace", "deployment", "objective"]
        "Objective of the deployment: time to first token or time between tokens";
    OBJECTIVE_TARGET: Gauge "stowage_objective_target_ratio" ["namespace", "deployment"]
        "Share of requests that must attain the objectives";
    WAITING: Gauge "stowage_gateway_waiting_requests" ["namespace", "deployment"]
        "Requests that wait at this gateway for a replica";
    IN_FLIGHT: Gauge "stowage_gateway_in_flight_sequences" ["namespace", "deployment"]
        "Sequences that this gateway has in flight at replicas";
    ROUTABLE: Gauge "stowage_gateway_routable_replicas" ["namespace", "deployment"]
        "Replicas that this gateway sends requests to";
    RETRIES: Counter "stowage_gateway_retries_total" ["reason"]
        "Requests sent to another replica before their first byte";
    IMPLAUSIBLE_USAGE: Counter "stowage_gateway_implausible_usage_total" []
        "Answers whose reported usage the request cannot have had; they are charged as estimated";
    CONNECTIONS: Gauge "stowage_gateway_connections" []
        "Open client connections";
    REFUSED_CONNECTIONS: Counter "stowage_gateway_refused_connections_total" []
        "Connections refused because their address has as many as it may";
    BUFFERED: Gauge "stowage_gateway_buffered_bytes" []
        "Bytes of request bodies held";
    MALFORMED_OBJECTS: Counter "stowage_gateway_malformed_objects_total" []
        "Malformed API objects passed over";
    WORLD_CHANGES: Counter "stowage_gateway_world_changes_total" []
        "Changes of what the gateway knows of tenants, keys, models and replicas";
    TRACE_SPANS: Counter "stowage_gateway_trace_spans_total" ["outcome"]
        "Spans by what became of them: sent, dropped (the queue was full) or failed (the collector did not take them)";
}
