use super::*;

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    change(&mut params);
    params
}

fn sample(logits: &[f32], params: &SamplingParams, position: usize) -> u32 {
    let counts = TokenCounts::new(&[], params);
    Sampler::default().sample(logits, params, &counts, &[], position).unwrap()
}

/// How often each token is drawn over many positions.
fn histogram(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    const DRAWS: usize = 20_000;
    let counts = TokenCounts::new(&[], params);
    let mut sampler = Sampler::default();
    let mut seen = vec![0.0; logits.len()];
    for position in 0..DRAWS {
        seen[sampler.sample(logits, params, &counts, &[], position).unwrap() as usize] += 1.0 / DRAWS as f64;
    }
    seen
}

#[track_caller]
fn near(found: &[f64], expected: &[f64]) {
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 0.015, "{found:?} against {expected:?}");
    }
}

#[test]
fn greedy_takes_the_largest_and_the_smaller_id_among_equals() {
    let greedy = SamplingParams::default();
    assert_eq!(sample(&[0.0, 3.0, 1.0], &greedy, 0), 1);
    assert_eq!(sample(&[1.0, 3.0, 3.0], &greedy, 0), 1);
    assert_eq!(sample(&[f32::NAN, -1.0, f32::NEG_INFINITY], &greedy, 0), 1);
}

#[test]
fn a_row_without_a_finite_number_is_an_error_and_not_token_zero() {
    let counts = TokenCounts::default();
    for row in [vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 3], Vec::new()] {
        let result = Sampler::default().sample(&row, &params(|_| {}), &counts, &[], 0);
        assert_eq!(result, Err(NoFiniteLogit));
    }
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.6_f32.ln(), 0.3_f32.ln(), 0.1_f32.ln()];
    near(&histogram(&logits, &params(|_| {})), &[0.6, 0.3, 0.1]);
    // Temperature 0.5 squares the odds: 36 : 9 : 1.
    near(&histogram(&logits, &params(|p| p.temperature = 0.5)), &[36.0 / 46.0, 9.0 / 46.0, 1.0 / 46.0]);
}

#[test]
fn filters_cut_and_renormalise() {
    let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
    near(&histogram(&logits, &params(|p| p.top_k = 2)), &[0.625, 0.375, 0.0, 0.0]);
    near(&histogram(&logits, &params(|p| p.top_k = 1)), &[1.0, 0.0, 0.0, 0.0]);
    near(&histogram(&logits, &params(|p| p.top_p = 0.75)), &[0.625, 0.375, 0.0, 0.0]);
    near(&histogram(&logits, &params(|p| p.top_p = 0.5)), &[1.0, 0.0, 0.0, 0.0]);
    near(&histogram(&logits, &params(|p| p.min_p = 0.25)), &[0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]);
    near(&histogram(&logits, &params(|p| (p.top_k, p.top_p) = (3, 0.8))), &[0.625, 0.375, 0.0, 0.0]);
}

#[test]
fn top_p_agrees_with_a_full_sort_on_a_wide_flat_row() {
    // 1,000 nearly equal tokens: the partial sort has to go around several times.
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 * 1e-4).collect();
    let mut candidates: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, l)| (i as u32, l - 0.0999)).collect();
    let mut sorted = candidates.clone();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    keep_top_p(&mut candidates, 0.7, order);
    sorted.sort_by(order);
    let total: f64 = sorted.iter().map(|(_, e)| f64::from(*e).exp()).sum();
    let mut mass = 0.0;
    let wanted = sorted.iter().take_while(|(_, e)| {
        let before = mass;
        mass += f64::from(*e).exp();
        before < 0.7 * total
    });
    assert_eq!(candidates, wanted.copied().collect::<Vec<_>>());
}

#[test]
fn the_draw_depends_on_seed_and_position_alone() {
    let logits = vec![0.0; 1000];
    let seeded = |seed| params(|p| p.seed = seed);
    assert_eq!(sample(&logits, &seeded(1), 5), sample(&logits, &seeded(1), 5));
    assert_ne!(sample(&logits, &seeded(1), 5), sample(&logits, &seeded(1), 6));
    assert_ne!(sample(&logits, &seeded(1), 5), sample(&logits, &seeded(2), 5));
    let mut sampler = Sampler::default();
    let counts = TokenCounts::default();
    sampler.sample(&[5.0, 1.0], &seeded(9), &counts, &[], 0).unwrap();
    assert_eq!(sampler.sample(&logits, &seeded(1), &counts, &[], 5), Ok(sample(&logits, &seeded(1), 5)));
}

#[test]
fn choices_of_one_request_differ_and_the_first_keeps_the_seed() {
    assert_eq!(choice_seed(42, 0), 42);
    let seeds: std::collections::HashSet<u64> = (0..100).map(|i| choice_seed(42, i)).collect();
    assert_eq!(seeds.len(), 100);
}

#[test]
fn penalties_look_at_what_was_said() {
    let greedy = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        params
    };
    let after = |params: &SamplingParams, prompt: &[u32], generated: &[u32], logits: &[f32]| {
        let mut counts = TokenCounts::new(prompt, params);
        generated.iter().for_each(|token| counts.push(*token));
        Sampler::default().sample(logits, params, &counts, &[], 0).unwrap()
    };
    let presence = greedy(|p| p.presence_penalty = 1.0);
    assert_eq!(after(&presence, &[], &[0], &[1.5, 1.0]), 1);
    assert_eq!(after(&presence, &[0], &[], &[1.5, 1.0]), 0, "the prompt is not penalised by presence");
    let frequency = greedy(|p| p.frequency_penalty = 0.3);
    assert_eq!(after(&frequency, &[], &[0], &[1.5, 1.0]), 0);
    assert_eq!(after(&frequency, &[], &[0, 0], &[1.5, 1.0]), 1);
    let repetition = greedy(|p| p.repetition_penalty = 2.0);
    assert_eq!(after(&repetition, &[0], &[], &[1.5, 1.0]), 1);
    assert_eq!(after(&repetition, &[0], &[], &[-1.0, -1.5]), 1, "negative logits are multiplied");
}

#[test]
fn logit_bias_moves_the_choice() {
    let mut params = SamplingParams { logit_bias: vec![(2, 100.0)], ..SamplingParams::default() };
    assert_eq!(sample(&[5.0, 4.0, 0.0], &params, 0), 2);
    params.logit_bias = vec![(0, -100.0), (99, 1.0)];
    assert_eq!(sample(&[5.0, 4.0, 0.0], &params, 0), 1);
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = [0.5_f32.ln() + 3.0, 0.2_f32.ln() + 3.0, 0.3_f32.ln() + 3.0];
    let found = logprobs(&logits, 1, 2);
    assert!((found.chosen - 0.2_f32.ln()).abs() < 1e-6);
    assert_eq!(found.top.iter().map(|scored| scored.token).collect::<Vec<_>>(), [0, 2]);
    assert!((found.top[0].logprob - 0.5_f32.ln()).abs() < 1e-6);
    assert!(logprobs(&logits, 0, 0).top.is_empty());
    assert_eq!(logprobs(&logits, 0, 20).top.len(), 3);
}

#[test]
fn forbidden_tokens_are_never_sampled() {
    let counts = TokenCounts::default();
    let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    for position in 0..100 {
        let token = Sampler::default().sample(&[9.0, 1.0, 8.0], &params, &counts, &[0, 2, 77], position);
        assert_eq!(token, Ok(1));
    }
    let none_left = Sampler::default().sample(&[9.0], &params, &counts, &[0], 0);
    assert_eq!(none_left, Err(NoFiniteLogit));
}

#[test]
fn the_likeliest_are_in_order_and_ties_go_to_the_smaller_id() {
    let logits = [1.0, 3.0, f32::NAN, 3.0, f32::NEG_INFINITY, 2.0];
    let ids = |top| logprobs(&logits, 0, top).top.into_iter().map(|scored| scored.token).collect::<Vec<_>>();
    assert_eq!(ids(0), Vec::<u32>::new());
    assert_eq!(ids(1), [1]);
    assert_eq!(ids(3), [1, 3, 5]);
    assert_eq!(ids(9), [1, 3, 5, 0, 4]);
}
