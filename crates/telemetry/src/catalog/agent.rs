//! Of the node agent.

use super::{Kind, Metric, Process, metrics};

metrics! { NodeAgent;
    INFO: Gauge "stowage_gpu_info" ["uuid", "node", "product", "index"]
        "1 for each GPU of the node";
    MEMORY: Gauge "stowage_gpu_memory_bytes" ["uuid"]
        "Memory of the GPU that can be promised";
    MEMORY_USED: Gauge "stowage_gpu_memory_used_bytes" ["uuid"]
        "Memory in use on the GPU";
    MEMORY_PROMISED: Gauge "stowage_gpu_memory_promised_bytes" ["uuid", "tenant"]
        "Memory promised to claims";
    MEMORY_CLAIMED: Gauge "stowage_gpu_memory_claimed_bytes" ["uuid", "tenant"]
        "Memory in use by the processes of claims";
    MEMORY_UNCLAIMED: Gauge "stowage_gpu_memory_unclaimed_bytes" ["uuid"]
        "Memory in use by processes of no claim";
    SM_PROMISED: Gauge "stowage_gpu_sm_promised_ratio" ["uuid", "tenant"]
        "Share of the SMs promised to claims";
    BUSY: Gauge "stowage_gpu_busy_ratio" ["uuid"]
        "Share of time in which some kernel ran";
    HEALTH: Gauge "stowage_gpu_health" ["uuid", "health"]
        "1 for the current verdict";
    XID: Counter "stowage_gpu_xid_errors_total" ["uuid", "class"]
        "Xid errors since the agent started";
    TEMPERATURE: Gauge "stowage_gpu_temperature_celsius" ["uuid"]
        "Temperature of the GPU";
    POWER: Gauge "stowage_gpu_power_watts" ["uuid"]
        "Power drawn by the GPU";
    SLOWED: Gauge "stowage_gpu_slowed_down" ["uuid"]
        "1 while heat or the power supply holds the clocks down";
    CLAIMS: Gauge "stowage_agent_claims" []
        "Claims prepared on this node";
    OVERSHOOTS: Gauge "stowage_agent_overshoots" []
        "Claims that use more memory than promised";
    TROUBLE: Gauge "stowage_agent_trouble" ["kind"]
        "1 while the agent has this trouble";
    MODEL_SECONDS: Histogram "stowage_model_fetch_seconds" ["phase"]
        "Time that a model took on its way to this node, by phase: queue, fetch, verify";
    MODEL_FETCHES: Counter "stowage_model_fetches_total" ["outcome"]
        "Fetches of models by how they ended: complete, failed";
    MODEL_BYTES: Counter "stowage_model_fetched_bytes_total" []
        "Bytes of models that were fetched completely";
    MODEL_CACHE_BYTES: Gauge "stowage_model_cache_bytes" []
        "Bytes of complete models in the cache of the node";
    MODELS_CACHED: Gauge "stowage_model_cache_models" []
        "Complete models in the cache of the node";
    READING_AGE: Gauge "stowage_agent_reading_age_seconds" []
        "Age of the oldest GPU reading";
}
