//! The tests by theme, and how one is declared.

use std::pin::Pin;

use crate::world::World;

mod chart;
mod faults;
mod gpus;
mod intruders;
mod lifecycle;
mod objects;
mod placement;
mod quickstart;

type Body = fn(World) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// One named test.
pub struct Test {
    pub name: &'static str,
    /// Runs only with `--long`.
    pub long: bool,
    pub limit_seconds: u64,
    pub body: Body,
}

/// `test!(module::function)`: a test named after its function.
macro_rules! test {
    (long $module:ident :: $function:ident) => {
        Test { name: stringify!($function), long: true, limit_seconds: 7200, body: |w| Box::pin($module::$function(w)) }
    };
    ($module:ident :: $function:ident) => {
        Test { name: stringify!($function), long: false, limit_seconds: 420, body: |w| Box::pin($module::$function(w)) }
    };
}

pub fn all() -> Vec<Test> {
    vec![
        test!(quickstart::quickstart_answers_through_the_gateway_with_the_openai_client),
        test!(quickstart::a_model_is_ready_within_15_seconds_of_apply_when_warm),
        test!(quickstart::our_processes_stay_small),
        test!(placement::two_tenants_share_one_gpu_and_a_third_waits_with_a_true_counterfactual),
        test!(placement::restricted_pod_security_admits_all_but_the_agent),
        test!(placement::the_drivers_sockets_are_registered_with_every_kubelet),
        test!(objects::a_bad_deployment_of_each_rule_is_refused_with_its_message),
        test!(objects::what_cannot_be_honoured_is_not_accepted_and_disturbs_nobody),
        test!(objects::two_quotas_that_claim_one_namespace_leave_it_to_the_older),
        test!(objects::a_tenant_over_its_limit_waits_and_others_do_not_notice),
        test!(objects::a_model_file_that_is_not_there_is_said_in_the_condition),
        test!(intruders::nobody_but_the_operator_gets_a_gpu_of_our_class),
        test!(intruders::an_agent_writes_only_its_own_node),
        test!(intruders::a_stranger_pod_reaches_no_engine_agent_or_operator),
        test!(intruders::keys_decide_who_asks_and_what_they_see),
        test!(intruders::private_routes_of_the_engine_cannot_be_reached_through_the_gateway),
        test!(intruders::no_token_is_cached_across_tenants),
        test!(gpus::who_takes_more_than_its_slice_is_evicted_and_its_neighbour_notices_nothing),
        test!(gpus::a_peak_shorter_than_five_samples_evicts_nobody),
        test!(gpus::an_xid_takes_a_replica_out_of_routing_and_moves_it),
        test!(gpus::a_truncated_scenario_is_survived),
        test!(faults::an_operator_killed_after_a_write_is_taken_over_without_a_trace),
        test!(long faults::an_operator_killed_after_every_write_is_taken_over_without_a_trace),
        test!(faults::a_slow_and_failing_api_server_is_survived_with_bounded_requests),
        test!(faults::a_paused_leader_is_replaced_and_writes_nothing_when_it_wakes),
        test!(faults::without_an_operator_requests_go_on),
        test!(faults::a_hung_engine_leaves_routing_and_its_neighbour_serves),
        test!(faults::a_killed_gateway_ends_only_its_own_streams),
        test!(faults::deleted_resource_slices_come_back_and_pods_stay),
        test!(faults::a_killed_agent_resumes_and_running_pods_stay),
        test!(lifecycle::deleting_under_load_drains_without_a_failed_request),
        test!(lifecycle::a_killed_engine_is_replaced_and_the_other_replica_serves),
        test!(lifecycle::with_one_replica_killed_requests_are_held_until_it_is_back),
        // The last two replace what the others run on.
        test!(chart::helm_test_passes_and_an_upgrade_interrupts_nobody),
        test!(chart::helm_uninstall_leaves_nothing_and_install_works_again),
    ]
}
