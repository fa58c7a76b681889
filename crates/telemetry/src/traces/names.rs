//! Names of attributes. Those of the GenAI conventions change between versions, so they stand here, and nowhere else.

/// Version of OpenTelemetry's semantic conventions that the names below are from; collectors that translate between
/// versions read it. To follow another version, change this and the table.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.41.0";

// GenAI.
pub const OPERATION: &str = "gen_ai.operation.name";
pub const PROVIDER: &str = "gen_ai.provider.name";
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// Seconds.
pub const TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";

// Of all services.
pub const METHOD: &str = "http.request.method";
pub const ROUTE: &str = "http.route";
pub const STATUS: &str = "http.response.status_code";
pub const RESEND: &str = "http.request.resend_count";
pub const ERROR_TYPE: &str = "error.type";

// Ours.
pub const TENANT: &str = "stowage.tenant";
pub const NAMESPACE: &str = "stowage.namespace";
pub const DEPLOYMENT: &str = "stowage.deployment";
pub const POD: &str = "stowage.replica.pod";
pub const OUTCOME: &str = "stowage.outcome";
pub const REQUEST_ID: &str = "stowage.request.id";

/// Value of [`PROVIDER`].
pub const STOWAGE: &str = "stowage";
