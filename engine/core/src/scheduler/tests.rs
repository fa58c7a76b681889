use proptest::prelude::*;

use super::*;
use crate::sampling::SamplingParams;

fn request(id: u64, prompt: Vec<u32>, priority: Priority) -> Request {
    Request {
        id: RequestId(id),
        prompt,
        max_tokens: 1000,
        stop_tokens: Vec::new(),
        sampling: SamplingParams::default(),
        min_tokens: 0,
        logprobs: None,
        prompt_logprobs: None,
        priority,
        tenant: Vec::new(),
        salt: Vec::new(),
        adapter: String::new(),
    }
}

/// A scheduler whose every plan is carried out at once.
struct Driver {
    scheduler: Scheduler,
}

impl Driver {
    fn new(max_step_tokens: usize, max_running: usize, num_blocks: usize) -> Self {
        Self {
            scheduler: Scheduler::new(SchedulerConfig {
                max_step_tokens,
                max_running,
                max_scored_rows: 16,
                num_blocks,
            }),
        }
    }

    fn submit(&mut self, id: u64, prompt: Vec<u32>) {
        self.submit_as(id, prompt, Priority::Interactive, "");
    }

    fn submit_as(&mut self, id: u64, prompt: Vec<u32>, priority: Priority, salt: &str) {
        let root = BlockHash::root(&[0; 32], "f32", "", salt.as_bytes());
        self.scheduler.submit(Request { tenant: salt.into(), ..request(id, prompt, priority) }, root);
    }

    /// One step; sampled requests get `token`.
    fn step(&mut self, token: u32) -> Plan {
        let plan = self.scheduler.schedule();
        for grant in &plan.grants {
            self.scheduler.commit(grant.id, grant.tokens);
            if grant.sample {
                self.scheduler.push(grant.id, token);
            }
        }
        self.scheduler.check().unwrap();
        plan
    }

    fn cached(&self, id: u64) -> Option<usize> {
        self.scheduler.sequence(RequestId(id)).unwrap().cached_tokens
    }
}

fn grants(plan: &Plan) -> Vec<(u64, usize, bool)> {
    plan.grants.iter().map(|grant| (grant.id.0, grant.tokens, grant.sample)).collect()
}

/// Prompts of different numbers share no block.
fn prompt(kind: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| kind * 1000 + i).collect()
}

#[test]
fn a_long_prompt_is_cut_to_the_budget_and_samples_at_its_end_only() {
    let mut driver = Driver::new(20, 4, 100);
    driver.submit(1, prompt(1, 50));
    assert_eq!(grants(&driver.step(0)), [(1, 20, false)]);
    assert_eq!(grants(&driver.step(0)), [(1, 20, false)]);
    assert_eq!(grants(&driver.step(0)), [(1, 10, true)]);
    assert_eq!(grants(&driver.step(0)), [(1, 1, true)]);
}

#[test]
fn running_ones_come_before_newcomers_and_a_long_prompt_leaves_each_a_token() {
    let mut driver = Driver::new(8, 4, 100);
    driver.submit(1, prompt(1, 30));
    driver.step(0);
    driver.submit(2, prompt(2, 3));
    assert_eq!(grants(&driver.step(0)), [(1, 8, false)], "the older prompt takes the whole budget");
    driver.step(0);
    assert_eq!(grants(&driver.step(0)), [(1, 6, true), (2, 2, false)]);
    assert_eq!(grants(&driver.step(0)), [(1, 1, true), (2, 1, true)]);
    let mut driver = Driver::new(8, 4, 100);
    driver.submit_as(1, prompt(1, 2), Priority::Batch, "");
    driver.step(0);
    driver.submit(2, prompt(2, 30));
    driver.step(0);
    assert_eq!(grants(&driver.step(0)), [(2, 7, false), (1, 1, true)], "urgent first, the other keeps its token");
}

#[test]
fn interactive_requests_are_admitted_before_older_batch_ones() {
    let mut driver = Driver::new(64, 1, 100);
    driver.submit_as(1, prompt(1, 4), Priority::Batch, "");
    driver.submit_as(2, prompt(2, 4), Priority::Interactive, "");
    assert_eq!(grants(&driver.step(0)), [(2, 4, true)]);
}

#[test]
fn an_equal_prefix_is_reused_up_to_the_last_token() {
    // Trap 2: a prompt of exactly two blocks hits only one, so that a token is left to compute.
    let mut driver = Driver::new(100, 4, 100);
    driver.submit(1, prompt(1, 32));
    driver.step(0);
    driver.submit(2, prompt(1, 32));
    assert_eq!(grants(&driver.step(0)), [(1, 1, true), (2, 16, true)]);
    assert_eq!(driver.cached(2), Some(16));
    driver.submit(3, prompt(1, 33));
    assert_eq!(grants(&driver.step(0))[2], (3, 1, true));
    assert_eq!(driver.cached(3), Some(32));
}

#[test]
fn different_salts_never_share() {
    // Trap 1.
    let mut driver = Driver::new(100, 4, 100);
    driver.submit_as(1, prompt(1, 40), Priority::Interactive, "tenant-a");
    driver.step(0);
    driver.submit_as(2, prompt(1, 40), Priority::Interactive, "tenant-b");
    driver.submit_as(3, prompt(1, 40), Priority::Interactive, "tenant-a");
    driver.step(0);
    assert_eq!((driver.cached(2), driver.cached(3)), (Some(0), Some(32)));
}

#[test]
fn blocks_are_offered_only_after_they_were_computed() {
    // Trap 3: planned and not carried out, as in a step that fails, or a request that is cancelled.
    let mut driver = Driver::new(100, 4, 100);
    driver.submit(1, prompt(1, 40));
    let plan = driver.scheduler.schedule();
    assert_eq!(grants(&plan), [(1, 40, true)]);
    driver.scheduler.remove(RequestId(1));
    driver.submit(2, prompt(1, 40));
    driver.step(0);
    assert_eq!(driver.cached(2), Some(0));
}

#[test]
fn a_burst_of_equal_prompts_is_computed_once() {
    let mut driver = Driver::new(16, 4, 100);
    for id in 1..=3 {
        driver.submit(id, prompt(1, 33));
    }
    driver.submit(4, prompt(4, 4));
    assert_eq!(grants(&driver.step(0)), [(1, 16, false)]);
    assert_eq!(grants(&driver.step(0)), [(1, 16, false)]);
    // Requests 2 and 3 could have had a block by now; they wait for the whole prefix.
    assert_eq!(grants(&driver.step(0)), [(1, 1, true), (2, 1, true), (3, 1, true), (4, 4, true)]);
    assert_eq!((driver.cached(2), driver.cached(3)), (Some(32), Some(32)));
}

#[test]
fn waiting_for_a_prefix_ends_when_the_one_computing_it_goes_away() {
    let mut driver = Driver::new(16, 4, 100);
    driver.submit(1, prompt(1, 64));
    driver.submit(2, prompt(1, 64));
    driver.step(0);
    driver.scheduler.remove(RequestId(1));
    assert_eq!(grants(&driver.step(0)), [(2, 16, false)]);
    assert_eq!(driver.cached(2), Some(16), "what was computed before is used");
}

#[test]
fn the_newest_gives_up_its_blocks_and_keeps_its_turn() {
    let mut driver = Driver::new(64, 4, 4);
    driver.submit(1, prompt(1, 16));
    driver.submit(2, prompt(2, 16));
    driver.step(0);
    driver.submit(3, prompt(3, 4));
    // Both need a second block; four are there.
    for _ in 0..16 {
        driver.step(0);
    }
    // Request 1 needs a third.
    let plan = driver.step(0);
    assert_eq!(plan.preempted, [RequestId(2)]);
    assert_eq!(grants(&plan), [(1, 1, true)]);
    driver.scheduler.remove(RequestId(1));
    let plan = driver.step(0);
    assert_eq!(plan.grants[0].id, RequestId(2), "before the younger request 3");
    assert!(plan.grants[0].tokens <= 17, "what is still cached is not computed again");
}

#[test]
fn batch_requests_are_preempted_before_interactive_ones() {
    let mut driver = Driver::new(64, 4, 4);
    driver.submit_as(1, prompt(1, 16), Priority::Batch, "");
    driver.submit(2, prompt(2, 16));
    driver.step(0);
    let plans: Vec<Plan> = (0..17).map(|_| driver.step(0)).collect();
    assert_eq!(plans.iter().flat_map(|plan| plan.preempted.clone()).collect::<Vec<_>>(), [RequestId(1)]);
}

#[test]
fn who_does_not_fit_now_is_not_overtaken() {
    let mut driver = Driver::new(64, 4, 6);
    driver.submit(1, prompt(1, 48));
    driver.step(0);
    driver.submit(2, prompt(2, 64));
    driver.submit(3, prompt(3, 4));
    assert_eq!(grants(&driver.step(0)), [(1, 1, true)]);
    driver.scheduler.remove(RequestId(1));
    assert_eq!(driver.step(0).grants[0].id, RequestId(2));
}

fn admitted(plan: &Plan) -> Vec<u64> {
    plan.admitted.iter().map(|(id, _)| id.0).collect()
}

#[test]
fn tenants_take_turns_while_both_wait() {
    let mut driver = Driver::new(64, 4, 64);
    for id in 0..6 {
        driver.submit_as(id, prompt(id as u32, 4), Priority::Interactive, "a");
    }
    for id in 10..12 {
        driver.submit_as(id, prompt(id as u32, 4), Priority::Interactive, "b");
    }
    assert_eq!(admitted(&driver.step(1)), [0, 10, 1, 11]);
}

#[test]
fn a_tenant_with_all_places_makes_way_until_the_tenants_run_equally_many() {
    let mut driver = Driver::new(64, 4, 64);
    for id in 0..8 {
        driver.submit_as(id, prompt(id as u32, 4), Priority::Interactive, "a");
    }
    assert_eq!(admitted(&driver.step(1)), [0, 1, 2, 3]);
    assert_eq!(admitted(&driver.step(1)), [] as [u64; 0], "no other request wants a place");
    for id in 10..14 {
        driver.submit_as(id, prompt(id as u32, 4), Priority::Interactive, "b");
    }
    let newcomers: Vec<u64> = (0..6).flat_map(|_| admitted(&driver.step(1))).collect();
    assert_eq!(newcomers, [10, 11]);
    assert_eq!(driver.scheduler.preemptions(), 2);
    let running: Vec<u64> = driver.scheduler.running.iter().map(|turn| turn.2.0).collect();
    assert_eq!(running, [0, 1, 10, 11], "the oldest of each tenant run");
}

#[test]
fn an_interactive_request_does_not_make_way_for_a_batch_one() {
    let mut driver = Driver::new(64, 2, 64);
    for id in 0..2 {
        driver.submit_as(id, prompt(id as u32, 4), Priority::Interactive, "a");
    }
    driver.step(1);
    driver.submit_as(10, prompt(10, 4), Priority::Batch, "b");
    assert_eq!(admitted(&driver.step(1)), [] as [u64; 0]);
    assert_eq!(driver.scheduler.preemptions(), 0);
}

/// Submits requests of a tenant with prompts of so many blocks, from this number on.
fn submit_many(driver: &mut Driver, tenant: &str, first: u64, blocks: &[usize]) {
    for (id, blocks) in (first..).zip(blocks) {
        // The last block has room for twelve more tokens.
        let prompt = prompt(id as u32, blocks * BLOCK_TOKENS - 12);
        driver.submit_as(id, prompt, Priority::Interactive, tenant);
    }
}

fn running(driver: &Driver) -> Vec<u64> {
    driver.scheduler.running.iter().map(|turn| turn.2.0).collect()
}

#[test]
fn tenant_with_most_blocks_gives_up_its_newest_requests_to_another_that_waits() {
    let mut driver = Driver::new(1000, 10, 20);
    submit_many(&mut driver, "a", 0, &[4, 4, 4]);
    driver.step(0);
    submit_many(&mut driver, "b", 10, &[4]);
    assert_eq!(admitted(&driver.step(0)), [10], "with room, no request gives way");
    assert_eq!(driver.scheduler.preemptions(), 0);
    submit_many(&mut driver, "c", 20, &[4]);
    assert_eq!(admitted(&driver.step(0)), [20]);
    assert_eq!(running(&driver), [0, 1, 10, 20]);
}

#[test]
fn only_request_of_a_tenant_keeps_its_blocks_until_it_ends() {
    let mut driver = Driver::new(1000, 10, 20);
    submit_many(&mut driver, "a", 0, &[18]);
    driver.step(0);
    submit_many(&mut driver, "b", 10, &[4]);
    assert_eq!(admitted(&driver.step(0)), [] as [u64; 0]);
    assert_eq!((running(&driver), driver.scheduler.preemptions()), (vec![0], 0));
    driver.scheduler.remove(RequestId(0));
    assert_eq!(admitted(&driver.step(0)), [10]);
}

#[test]
fn tenants_do_not_take_the_same_blocks_from_each_other_in_turns() {
    let mut driver = Driver::new(1000, 10, 20);
    submit_many(&mut driver, "a", 0, &[4, 4, 4, 4]);
    driver.step(0);
    submit_many(&mut driver, "b", 10, &[4, 4, 4, 4]);
    for _ in 0..10 {
        driver.step(0);
    }
    assert_eq!(running(&driver), [0, 1, 10, 11]);
    assert_eq!(driver.scheduler.preemptions(), 2);
}

#[test]
fn tenant_above_its_part_that_finds_no_room_does_not_hold_up_others() {
    let mut driver = Driver::new(1000, 10, 20);
    submit_many(&mut driver, "a", 0, &[12]);
    submit_many(&mut driver, "b", 10, &[1, 1]);
    driver.step(0);
    // The next of a, which runs fewer requests than b, comes first and finds no room.
    submit_many(&mut driver, "a", 1, &[8, 1]);
    submit_many(&mut driver, "b", 12, &[1]);
    assert_eq!(admitted(&driver.step(0)), [12], "and its small one does not overtake its large one");
}

#[test]
fn tenant_that_runs_nothing_is_not_overtaken_by_smaller_requests_of_others() {
    let mut driver = Driver::new(1000, 10, 20);
    submit_many(&mut driver, "a", 0, &[6]);
    submit_many(&mut driver, "b", 10, &[3]);
    driver.step(0);
    submit_many(&mut driver, "c", 20, &[15]);
    submit_many(&mut driver, "b", 11, &[1]);
    assert_eq!(admitted(&driver.step(0)), [] as [u64; 0]);
    driver.scheduler.remove(RequestId(0));
    assert_eq!(admitted(&driver.step(0)), [20]);
}

#[test]
fn when_blocks_run_out_the_largest_tenant_gives_up_its_newest_request_even_after_its_grant() {
    let mut driver = Driver::new(1000, 10, 10);
    submit_many(&mut driver, "a", 0, &[4, 2]);
    submit_many(&mut driver, "b", 10, &[2]);
    driver.step(0);
    assert_eq!(running(&driver), [0, 1, 10]);
    // Two blocks are free, and all three need another one at the same time.
    let plan = (0..30).map(|_| driver.step(0)).find(|plan| !plan.preempted.is_empty()).unwrap();
    assert_eq!(plan.preempted, [RequestId(1)]);
    assert_eq!(grants(&plan), [(0, 1, true), (10, 1, true)]);
}

#[test]
fn the_backlog_counts_uncomputed_prompt_tokens() {
    let mut driver = Driver::new(10, 4, 100);
    driver.submit(1, prompt(1, 25));
    assert_eq!(driver.scheduler.prefill_backlog(), 25);
    driver.step(0);
    assert_eq!(driver.scheduler.prefill_backlog(), 15);
    driver.step(0);
    driver.step(0);
    assert_eq!(driver.scheduler.prefill_backlog(), 0, "decoding is no backlog");
}

#[derive(Debug, Clone)]
enum Op {
    Submit {
        kind: u32,
        tokens: usize,
        batch: bool,
        tenant: usize,
    },
    Remove(usize),
    Step(u32),
    /// Planned, and not carried out: the executor failed.
    FailedStep,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_u32..3, 1_usize..60, any::<bool>(), 0_usize..3)
            .prop_map(|(kind, tokens, batch, tenant)| Op::Submit { kind, tokens, batch, tenant }),
        1 => any::<usize>().prop_map(Op::Remove),
        6 => (0_u32..3).prop_map(Op::Step),
        1 => Just(Op::FailedStep),
    ]
}

proptest! {
    /// Whatever happens: the budget holds, no block leaks or has two writers, and once no new request
    /// comes, every request is computed in a bounded number of steps.
    #[test]
    fn budget_blocks_and_liveness(
        ops in prop::collection::vec(op(), 0..80),
        max_step in 1_usize..40,
        max_running in 1_usize..6,
        blocks in 6_usize..14,
    ) {
        let mut driver = Driver::new(max_step, max_running, blocks);
        let mut alive: Vec<u64> = Vec::new();
        let mut next = 0;
        for op in ops {
            match op {
                Op::Submit { kind, tokens, batch, tenant } => {
                    let priority = if batch { Priority::Batch } else { Priority::Interactive };
                    driver.submit_as(next, prompt(kind, tokens), priority, ["", "s", "t"][tenant]);
                    alive.push(next);
                    next += 1;
                }
                Op::Remove(i) if !alive.is_empty() => {
                    let id = alive.swap_remove(i % alive.len());
                    prop_assert!(driver.scheduler.remove(RequestId(id)).is_some());
                }
                Op::Step(token) => {
                    let plan = driver.step(token);
                    prop_assert!(plan.tokens() <= max_step);
                    prop_assert!(plan.grants.len() <= max_running);
                    let mut ids: Vec<_> = plan.grants.iter().map(|grant| grant.id).collect();
                    ids.sort();
                    ids.dedup();
                    prop_assert_eq!(ids.len(), plan.grants.len(), "twice in one step");
                    prop_assert!(plan.grants.iter().all(|grant| grant.tokens > 0));
                    prop_assert!(alive.is_empty() || !plan.grants.is_empty(), "there is work and none is done");
                    // A request ends before it outgrows the cache, as the engine sees to.
                    alive.retain(|id| {
                        let long = driver.scheduler.sequence(RequestId(*id)).unwrap().tokens.len() >= 6 * BLOCK_TOKENS;
                        if long {
                            driver.scheduler.remove(RequestId(*id));
                        }
                        !long
                    });
                }
                Op::FailedStep => {
                    driver.scheduler.schedule();
                }
                Op::Remove(_) => {}
            }
            driver.scheduler.check().map_err(TestCaseError::fail)?;
        }
        for _ in 0..5000 {
            let plan = driver.step(0);
            for grant in plan.grants.iter().filter(|grant| grant.sample) {
                driver.scheduler.remove(grant.id);
                alive.retain(|id| *id != grant.id.0);
            }
            if alive.is_empty() {
                break;
            }
        }
        prop_assert!(alive.is_empty(), "never computed: {alive:?}");
        prop_assert_eq!(driver.scheduler.pool().used(), 0);
    }
}
