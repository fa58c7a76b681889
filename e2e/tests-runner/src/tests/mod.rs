//! The tests by theme, and how one is declared.

use std::pin::Pin;

use crate::schedule::Needs;
use crate::tools::world::World;

mod chart;
mod failing;
mod gitops;
mod isolation;
mod isolation_objects;
mod observing;
mod page;
mod placing;
mod serving;

use failing::{faults, gpus, nodes, operators, refusals};
use placing::{capacity, moves, objects, placement, plans, reclaim};
use serving::{clients, follow, hubs, lifecycle, models, quickstart, quiet, scale};

type Body = fn(World) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// One named test.
pub struct Test {
    pub name: &'static str,
    /// Runs only with `--long`.
    pub long: bool,
    /// What no other test uses meanwhile.
    pub needs: Needs,
    pub limit_seconds: u64,
    pub body: Body,
}

/// `test!(module::function)`: a test named after its function. Before it stands what it needs for itself: `alone`
/// (the cluster), `node`, `agents`; `long` is a test that needs the cluster and runs only with `--long`.
macro_rules! test {
    (long $module:ident :: $function:ident) => {
        test!($module::$function, long: true, needs: Needs::Cluster, limit: 7200)
    };
    (alone $module:ident :: $function:ident) => {
        test!($module::$function, long: false, needs: Needs::Cluster, limit: 420)
    };
    (node $module:ident :: $function:ident) => {
        test!($module::$function, long: false, needs: Needs::Node, limit: 420)
    };
    (agents $module:ident :: $function:ident) => {
        test!($module::$function, long: false, needs: Needs::Agents, limit: 420)
    };
    ($module:ident :: $function:ident) => {
        test!($module::$function, long: false, needs: Needs::Nothing, limit: 420)
    };
    ($module:ident :: $function:ident, long: $long:expr, needs: $needs:expr, limit: $limit:expr) => {
        Test {
            name: stringify!($function),
            long: $long,
            needs: $needs,
            limit_seconds: $limit,
            body: |w| Box::pin($module::$function(w)),
        }
    };
}

pub fn all() -> Vec<Test> {
    vec![
        test!(quickstart::quickstart_answers_through_the_gateway_with_the_openai_client),
        test!(clients::clients_of_python_and_node_are_served_unchanged),
        test!(long clients::an_evaluation_harness_scores_as_transformers_does),
        test!(alone quickstart::a_model_is_ready_within_15_seconds_of_apply_when_warm),
        test!(quickstart::our_processes_stay_small),
        test!(models::readme_serves_a_model_of_the_readers_own_in_three_lines),
        test!(models::a_model_behind_a_url_is_fetched_once_and_started_from_the_cache_after_that),
        test!(models::a_preloaded_model_is_on_nodes_before_a_replica_and_its_source_is_not_needed_then),
        test!(models::memory_auto_is_what_the_engine_takes_and_its_parts_are_in_the_status),
        test!(models::a_model_that_cannot_be_fetched_is_reported_and_harms_nobody),
        test!(hubs::a_model_on_a_hub_is_fetched_at_one_commit_with_its_token_and_served),
        test!(node placement::two_tenants_share_one_gpu_and_a_third_waits_with_a_true_counterfactual),
        test!(placement::restricted_pod_security_admits_all_but_the_agent),
        test!(agents placement::the_drivers_sockets_are_registered_with_every_kubelet),
        test!(objects::a_bad_object_of_each_rule_is_refused_with_its_message),
        test!(objects::what_cannot_be_honoured_is_not_accepted_and_other_deployments_start),
        test!(objects::two_quotas_that_claim_one_namespace_leave_it_to_the_older),
        test!(objects::a_tenant_over_its_limit_waits_while_others_are_placed),
        test!(objects::a_model_that_cannot_be_loaded_is_reported_and_its_restarts_are_bounded),
        test!(alone capacity::a_replica_that_fits_nowhere_asks_for_a_node_and_gets_it),
        test!(long moves::a_replica_moves_so_that_another_fits_and_no_request_is_lost),
        test!(alone plans::ten_changes_do_what_plan_said),
        test!(plans::plan_says_which_right_is_missing_and_changes_nothing),
        test!(gitops::manifest_applied_twice_is_unchanged),
        test!(long gitops::argo_and_flux_see_no_difference_after_a_sync),
        test!(gitops::omitted_replicas_are_one_and_scaling_is_kept),
        test!(gitops::kstatus_is_current_in_progress_or_failed),
        test!(isolation::nobody_but_the_operator_gets_a_gpu_of_our_class),
        test!(isolation::an_agent_writes_only_its_own_node),
        test!(isolation::a_pod_of_another_tenant_reaches_no_engine_agent_or_operator),
        test!(isolation::keys_decide_who_asks_and_what_they_see),
        test!(isolation::keys_that_give_no_access_are_named_and_their_values_are_not),
        test!(isolation::private_routes_of_the_engine_cannot_be_reached_through_the_gateway),
        test!(isolation::no_token_is_cached_across_tenants),
        test!(isolation_objects::editor_changes_nothing_that_the_operator_set_in_a_pod),
        test!(isolation_objects::editor_changes_nothing_that_the_operator_set_in_a_claim),
        test!(isolation_objects::stock_editor_has_claims_of_its_own_and_none_of_ours),
        test!(isolation_objects::stock_edit_role_has_no_right_beyond_the_documented_ones),
        test!(isolation_objects::hostile_container_fills_only_its_own_report_directory),
        test!(node gpus::a_replica_over_its_slice_is_evicted_and_its_neighbour_keeps_serving),
        test!(node gpus::a_short_peak_and_a_small_excess_evict_nobody),
        test!(node gpus::an_xid_takes_a_replica_out_of_routing_and_moves_it),
        test!(node gpus::an_uncorrectable_memory_error_moves_a_replica_until_the_device_is_reset),
        test!(alone gpus::an_xid_stops_routing_within_two_seconds_without_an_operator),
        test!(node gpus::a_truncated_scenario_is_survived),
        test!(alone operators::an_operator_killed_after_a_write_is_replaced_and_nothing_is_doubled),
        test!(long operators::an_operator_killed_after_every_write_is_replaced_and_nothing_is_doubled),
        test!(alone operators::a_slow_and_failing_api_server_is_survived_with_bounded_requests),
        test!(alone operators::an_empty_list_deletes_nothing),
        test!(alone reclaim::leader_killed_in_the_middle_of_a_reclaim_loses_nothing),
        test!(alone operators::an_api_server_that_restarts_loses_nothing),
        test!(alone operators::a_paused_leader_is_replaced_and_writes_nothing_when_it_wakes),
        test!(alone operators::without_an_operator_requests_go_on),
        test!(long operators::without_an_operator_for_five_minutes_no_stream_is_lost),
        test!(faults::a_hung_engine_leaves_routing_and_its_neighbour_serves),
        test!(alone faults::a_killed_gateway_ends_only_its_own_streams),
        test!(agents faults::deleted_resource_slices_come_back_and_pods_stay),
        test!(agents faults::a_killed_agent_resumes_and_running_pods_stay),
        test!(node lifecycle::deleting_under_load_drains_without_a_failed_request),
        test!(node lifecycle::draining_the_node_of_the_only_replica_loses_no_request),
        test!(node lifecycle::replica_on_a_cordoned_node_stays_without_another_place),
        test!(lifecycle::load_is_scaled_out_without_a_lost_request),
        test!(follow::idle_model_goes_to_zero_and_its_first_request_is_held_and_answered),
        test!(follow::scale_in_loses_no_request_over_three_cycles),
        test!(long follow::scale_in_loses_no_request_over_twenty_cycles),
        test!(follow::hpa_drives_a_manual_deployment),
        test!(follow::advisory_changes_nothing_and_says_what_it_would_do),
        test!(follow::spend_limit_holds_replicas_back_and_names_the_sum_that_would_do),
        test!(page::dashboard_serves_the_live_state_on_loopback),
        test!(page::dashboard_page_works_in_a_browser),
        test!(observing::top_shows_a_placed_replica_and_ends_on_q),
        test!(long observing::dashboards_have_data_and_an_alert_fires_on_a_real_prometheus),
        test!(alone quiet::idle_operators_write_nothing),
        test!(alone quiet::deleted_key_of_the_salts_is_made_anew),
        test!(alone follow::without_gateways_counts_are_frozen_and_reported),
        test!(alone follow::burst_without_an_operator_is_held_and_scaled_out_when_it_is_back),
        test!(node reclaim::lender_gets_its_gpus_back_within_the_grace_and_no_request_is_lost),
        test!(lifecycle::a_killed_engine_is_replaced_and_the_other_replica_serves),
        test!(lifecycle::with_one_replica_killed_requests_are_held_until_it_is_back),
        test!(alone scale::two_hundred_deployments_of_one_tenant_do_not_delay_another),
        // A ratio of times: on two cores, which the slow clients use as well, it is no condition of every change.
        test!(long scale::a_thousand_slow_clients_do_not_delay_others),
        test!(long refusals::fifty_refused_deployments_cost_few_revisions),
        test!(node nodes::an_agent_killed_between_the_steps_of_prepare_and_unprepare_resumes),
        test!(node nodes::a_truncated_checkpoint_is_rebuilt_and_running_pods_stay),
        test!(node nodes::a_full_disk_is_reported_and_the_replica_goes_to_another_node),
        test!(node nodes::a_lost_node_leaves_routing_and_its_return_doubles_nothing),
        // The last two replace what the others run on.
        test!(alone chart::helm_test_passes_and_an_upgrade_interrupts_no_request),
        test!(alone chart::helm_uninstall_leaves_nothing_and_install_works_again),
    ]
}
