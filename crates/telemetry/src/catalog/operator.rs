//! Of the operator. Figures of the current plan are exported by the leader alone.

use super::{Kind, Metric, Process, metrics};

metrics! { Operator;
    DECISIONS: Counter "stowage_decisions_total" ["kind", "action", "reason"]
        "Decisions taken, each counted once while it stands";
    WANTED: Gauge "stowage_wanted_replicas" ["namespace", "deployment"]
        "Replicas that the spec or the scaling rule asks for";
    GRANTED: Gauge "stowage_granted_replicas" ["namespace", "deployment"]
        "Replicas of those wanted that quota grants";
    DESIRED: Gauge "stowage_desired_replicas" ["namespace", "deployment"]
        "Replicas after the current plan";
    READY: Gauge "stowage_ready_replicas" ["namespace", "deployment"]
        "Replicas that take requests";
    LIMITED: Gauge "stowage_scaling_limited" ["namespace", "deployment", "by"]
        "1 while the deployment has fewer replicas than its load or spec asks for, by what limits it";
    OFFERED_LOAD: Gauge "stowage_offered_load_replicas" ["namespace", "deployment"]
        "Load of the last interval, in replicas that would be busy all the time";
    FORECAST_LOAD: Gauge "stowage_forecast_load_replicas" ["namespace", "deployment"]
        "Load expected over the cold start, in replicas that would be busy all the time";
    CAPACITY: Gauge "stowage_capacity_replicas" ["namespace", "deployment"]
        "Load that the Ready replicas are planned with, in replicas that would be busy all the time";
    PREDICTED_READY: Gauge "stowage_predicted_ready_seconds" ["namespace", "deployment"]
        "Predicted time until the replicas being created serve";
    COST: Counter "stowage_cost_total" ["tenant", "namespace", "deployment", "currency"]
        "Cost of the GPU shares promised to a deployment, by the prices of their classes";
    IDLE_COST: Counter "stowage_idle_cost_total" ["class", "currency"]
        "Cost of the GPU shares promised to no one, by the price of the class";
    INPUT_AGE: Gauge "stowage_input_age_seconds" ["source"]
        "Time since the last message of an input of decisions";
    PLAN_DURATION: Histogram "stowage_plan_duration_seconds" []
        "Time to decide on one snapshot";
    PLAN_ACTIONS: Gauge "stowage_plan_actions" []
        "Actions in the current plan";
    LEADER: Gauge "stowage_leader" []
        "1 while this process holds the lease";
    FROZEN: Gauge "stowage_frozen" []
        "1 while inputs are incomplete or failing and planning is paused";
    PLANS: Counter "stowage_plans_total" ["outcome"]
        "Plans by outcome";
    WRITES: Counter "stowage_writes_total" ["outcome"]
        "Reconciliations that wrote to the API server, by outcome";
    DECISION_TO_READY: Histogram "stowage_decision_to_ready_seconds" ["stage"]
        "Time from the creation of a replica until it is Ready, by stage; the API server keeps whole seconds";
    PREDICTION_ERROR: Histogram "stowage_prediction_error_ratio" ["of"]
        "Difference between a prediction and what happened, as a share of what happened";
    TENANT_GPUS: Gauge "stowage_tenant_gpus" ["tenant", "class", "state"]
        "GPUs of a tenant: guaranteed, held, borrowed, lent or waiting";
    TENANT_WAITING: Gauge "stowage_tenant_waiting_deployments" ["tenant"]
        "Deployments of the tenant that quota holds back";
    CLUSTER_GPUS: Gauge "stowage_cluster_gpus" ["state"]
        "GPUs of the cluster: total, healthy, promised, or fragmented (free, and too small for what is expected)";
    STALE_NODES: Gauge "stowage_stale_nodes" []
        "Nodes whose data are too old for decisions";
}
