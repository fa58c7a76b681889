use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::executor::ModelInfo;
use crate::request::Priority;
use crate::sampling::SamplingParams;
use crate::sim::{CostModel, SimConfig, SimExecutor};

const STOP: u32 = 0;

fn sim(num_blocks: usize, max_step_tokens: usize) -> SimExecutor {
    SimExecutor::new(SimConfig {
        vocab: 64,
        context_len: 256,
        num_blocks,
        max_step_tokens,
        alphabet: 1..64,
        stop_token: STOP,
        stop_every: 40,
        cost: CostModel { a: 1.0, d: 0.1, k: 0.01, p: 1.0 },
    })
}

fn engine(num_blocks: usize, max_step_tokens: usize) -> Engine<SimExecutor> {
    let config = EngineConfig { max_step_tokens, max_running: 8, max_waiting: 100 };
    Engine::new(sim(num_blocks, 512), config)
}

fn request(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt,
        max_tokens,
        stop_tokens: vec![STOP],
        sampling: SamplingParams::default(),
        min_tokens: 0,
        logprobs: None,
        prompt_logprobs: None,
        priority: Priority::Interactive,
        tenant: Vec::new(),
        salt: Vec::new(),
        adapter: String::new(),
    }
}

fn prompt(kind: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 1 + (kind + i * 7) % 63).collect()
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    scored: Vec<TokenLogprobs>,
    tokens: Vec<u32>,
    end: Option<(FinishReason, Usage)>,
}

fn note(answers: &mut BTreeMap<RequestId, Answer>, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Admitted { id, .. } => {
                assert!(answers.insert(id, Answer::default()).is_none(), "admitted twice, or after a token");
            }
            Event::Prompt { id, logprobs } => answers.entry(id).or_default().scored.extend(logprobs),
            Event::Token { id, token, .. } => {
                let answer = answers.entry(id).or_default();
                assert!(answer.end.is_none(), "a token after the end");
                answer.tokens.push(token);
            }
            Event::Finished { id, reason, usage, .. } => {
                let answer = answers.entry(id).or_default();
                assert!(answer.end.replace((reason, usage)).is_none(), "finished twice");
            }
        }
    }
}

fn run<E: Executor>(engine: &mut Engine<E>) -> BTreeMap<RequestId, Answer> {
    let mut answers = BTreeMap::new();
    for _ in 0..10_000 {
        if !engine.has_work() {
            return answers;
        }
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        engine.check().unwrap();
        note(&mut answers, events);
    }
    panic!("work is left after 10,000 steps");
}

/// The text a request gets when it has the engine to itself.
fn alone(request: &Request) -> Vec<u32> {
    let mut engine = engine(64, 512);
    engine.submit(request.clone()).unwrap();
    run(&mut engine).remove(&request.id).unwrap().tokens
}

#[test]
fn a_request_ends_at_a_stop_token_which_is_counted_and_not_given_out() {
    let stopping = (0..60).map(|kind| request(kind, prompt(kind as u32, 5), 200)).find(|r| alone(r).len() < 199);
    let request = stopping.expect("one in forty tokens is a stop");
    let mut engine = engine(64, 512);
    engine.submit(request).unwrap();
    let answer = run(&mut engine).into_values().next().unwrap();
    let (reason, usage) = answer.end.unwrap();
    assert_eq!(reason, FinishReason::Stop);
    assert!(!answer.tokens.contains(&STOP));
    assert_eq!(usage.completion_tokens, answer.tokens.len() + 1);
    assert_eq!(engine.load().blocks_used, 0);
}

#[test]
fn max_tokens_and_the_context_bound_the_answer() {
    let mut engine = engine(64, 512);
    for (id, max_tokens) in [(1, 3), (2, usize::MAX)] {
        let mut request = request(id, prompt(9, 20), max_tokens);
        request.stop_tokens.clear();
        engine.submit(request).unwrap();
    }
    let answers = run(&mut engine);
    assert_eq!(answers[&RequestId(1)].tokens.len(), 3);
    assert_eq!(answers[&RequestId(2)].tokens.len(), 256 - 20);
    assert!(answers.values().all(|answer| answer.end.unwrap().0 == FinishReason::Length));
}

#[test]
fn a_cache_smaller_than_the_context_bounds_the_sequence() {
    let mut engine = engine(4, 512);
    assert_eq!(engine.max_sequence(), 64);
    let refusal = engine.submit(request(1, prompt(0, 64), 1)).unwrap_err();
    assert_eq!(refusal, Refusal::PromptTooLong { tokens: 64, limit: 64 });
    engine.submit(request(2, prompt(0, 63), 100)).unwrap();
    assert_eq!(run(&mut engine)[&RequestId(2)].tokens.len(), 1);
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    let mut engine = engine(64, 512);
    assert_eq!(engine.submit(request(1, Vec::new(), 5)), Err(Refusal::EmptyPrompt));
    assert_eq!(engine.submit(request(1, vec![64], 5)), Err(Refusal::NoSuchToken { token: 64, vocab: 64 }));
    let mut biased = request(1, vec![1], 5);
    biased.sampling.logit_bias = vec![(99, 1.0)];
    assert_eq!(engine.submit(biased), Err(Refusal::NoSuchToken { token: 99, vocab: 64 }));
    let stopped = Request { stop_tokens: vec![STOP, 98], ..request(1, vec![1], 5) };
    assert_eq!(engine.submit(stopped), Err(Refusal::NoSuchToken { token: 98, vocab: 64 }));
    engine.submit(request(1, vec![1], 5)).unwrap();
    assert_eq!(engine.submit(request(1, vec![1], 5)), Err(Refusal::Duplicate(RequestId(1))));
    assert_eq!(engine.load().waiting, 1);
}

#[test]
fn the_queue_is_bounded() {
    let config = EngineConfig { max_step_tokens: 64, max_running: 1, max_waiting: 2 };
    let mut engine = Engine::new(sim(64, 512), config);
    engine.submit(request(1, vec![1], 5)).unwrap();
    engine.submit(request(2, vec![1], 5)).unwrap();
    assert_eq!(engine.submit(request(3, vec![1], 5)), Err(Refusal::QueueFull { waiting: 2 }));
}

#[test]
fn cancelled_request_sends_no_event_and_holds_no_block() {
    let mut engine = engine(64, 16);
    engine.submit(request(1, prompt(1, 40), 50)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    assert_eq!(engine.cancel(RequestId(1)).unwrap().prompt_tokens, 40);
    assert_eq!(engine.cancel(RequestId(1)), None);
    assert!(matches!(events[..], [Event::Admitted { cached_tokens: 0, .. }]));
    assert!(!engine.has_work());
    assert_eq!(engine.load().blocks_used, 0);
    // What it computed may be used; what it did not, may not (trap 3).
    engine.submit(request(2, prompt(1, 40), 5)).unwrap();
    let answer = run(&mut engine).remove(&RequestId(2)).unwrap();
    assert_eq!(answer.end.unwrap().1.cached_tokens, 16);
    assert_eq!(answer.tokens, alone(&request(2, prompt(1, 40), 5)));
}

#[test]
fn usage_says_how_much_came_from_the_cache() {
    let mut engine = engine(64, 512);
    let salted = |id, salt: &str| Request { salt: salt.into(), ..request(id, prompt(1, 40), 4) };
    let cached = |engine: &mut Engine<SimExecutor>, request: Request| {
        engine.submit(request).unwrap();
        run(engine).into_values().next().unwrap().end.unwrap().1.cached_tokens
    };
    assert_eq!(cached(&mut engine, salted(1, "a")), 0);
    assert_eq!(cached(&mut engine, salted(2, "a")), 32);
    assert_eq!(cached(&mut engine, salted(3, "b")), 0);
    assert_eq!(cached(&mut engine, Request { adapter: "lora".into(), ..salted(4, "a") }), 0);
}

#[test]
fn an_answer_continued_in_the_next_turn_is_found_in_the_cache() {
    let mut engine = engine(64, 512);
    let mut first = request(1, prompt(1, 20), 30);
    first.stop_tokens.clear();
    engine.submit(first.clone()).unwrap();
    let answer = run(&mut engine).remove(&RequestId(1)).unwrap();
    let next: Vec<u32> = first.prompt.iter().chain(&answer.tokens).copied().chain([5, 6]).collect();
    engine.submit(request(2, next, 1)).unwrap();
    let usage = run(&mut engine).remove(&RequestId(2)).unwrap().end.unwrap().1;
    assert_eq!(usage.cached_tokens, 48, "49 positions were computed: three whole blocks");
}

#[test]
fn preemption_does_not_advance_penalties_or_randomness_twice() {
    // Trap 5: sampled tokens are computed again as if they were prompt.
    let requests: Vec<Request> = (0..4)
        .map(|id| {
            let mut request = request(id, prompt(id as u32 * 11, 20), 60);
            request.stop_tokens.clear();
            request.sampling = SamplingParams {
                temperature: 1.0,
                frequency_penalty: 0.7,
                repetition_penalty: 1.3,
                seed: id,
                ..SamplingParams::default()
            };
            request
        })
        .collect();
    let mut engine = engine(9, 64);
    requests.iter().for_each(|request| engine.submit(request.clone()).unwrap());
    let answers = run(&mut engine);
    assert!(engine.load().preemptions > 0, "nothing was tested");
    for request in &requests {
        assert_eq!(answers[&request.id].tokens, alone(request));
    }
}

#[test]
fn logprobs_come_with_each_token() {
    let mut engine = engine(64, 512);
    engine.submit(Request { logprobs: Some(2), ..request(1, prompt(1, 5), 4) }).unwrap();
    let mut events = Vec::new();
    while engine.has_work() {
        engine.step(&mut events).unwrap();
    }
    for event in events {
        if let Event::Token { token, logprobs, .. } = event {
            let logprobs = logprobs.unwrap();
            assert_eq!(logprobs.top[0].token, token, "greedy takes the likeliest");
            assert_eq!(logprobs.top.len(), 2);
            assert_eq!(logprobs.chosen, logprobs.top[0].logprob);
        }
    }
}

/// A request whose prompt is scored, with the one likeliest token beside each.
fn scoring(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { prompt_logprobs: Some(1), ..request(id, prompt, max_tokens) }
}

/// The scores of a prompt that is computed in one step, with nothing beside it.
fn scores_alone(prompt: Vec<u32>) -> Vec<TokenLogprobs> {
    let mut engine = engine(64, 512);
    engine.submit(scoring(1, prompt, 0)).unwrap();
    run(&mut engine).remove(&RequestId(1)).unwrap().scored
}

#[test]
fn scored_prompt_gets_a_logprob_for_each_token_but_the_first() {
    let answer_tokens = alone(&request(1, prompt(3, 20), 8));
    let continued: Vec<u32> = prompt(3, 20).into_iter().chain(answer_tokens.iter().copied()).collect();
    let scored = scores_alone(continued.clone());
    assert_eq!(scored.len(), continued.len() - 1);
    for (token, scored) in answer_tokens.iter().zip(&scored[19..]) {
        assert_eq!(scored.top[0].token, *token, "greedy chose the likeliest");
        assert_eq!(scored.chosen, scored.top[0].logprob);
    }
    assert!(scored[..19].iter().any(|scored| scored.chosen < scored.top[0].logprob));
}

#[test]
fn scores_do_not_depend_on_chunks_cache_or_preemption() {
    let expected = scores_alone(prompt(5, 60));
    let mut chunked = engine(64, 7);
    let mut cached = engine(64, 512);
    cached.submit(request(9, prompt(5, 60), 1)).unwrap();
    run(&mut cached);
    for engine in [&mut chunked, &mut cached] {
        engine.submit(scoring(1, prompt(5, 60), 4)).unwrap();
        let answer = run(engine).remove(&RequestId(1)).unwrap();
        assert_eq!(answer.scored, expected);
        assert_eq!(answer.tokens, alone(&request(1, prompt(5, 60), 4)));
    }
    let mut crowded = engine(9, 16);
    for id in 0..4 {
        let mut request = scoring(id, prompt(5 + id as u32, 60), 20);
        request.stop_tokens.clear();
        crowded.submit(request).unwrap();
    }
    let answers = run(&mut crowded);
    assert!(crowded.load().preemptions > 0, "nothing was tested");
    for id in 0..4 {
        assert_eq!(answers[&RequestId(id)].scored, scores_alone(prompt(5 + id as u32, 60)), "prompt {id}");
    }
}

#[test]
fn scoring_gives_no_more_rows_per_step_than_fit_and_others_go_on() {
    let vocab = SCORED_BYTES / (8 * size_of::<f32>());
    let sim = SimExecutor::new(SimConfig {
        vocab,
        context_len: 256,
        num_blocks: 64,
        max_step_tokens: 64,
        alphabet: 1..64,
        stop_token: STOP,
        stop_every: 0,
        cost: CostModel::default(),
    });
    let mut engine = Engine::new(sim, EngineConfig { max_step_tokens: 64, max_running: 8, max_waiting: 100 });
    engine.submit(scoring(1, prompt(1, 20), 0)).unwrap();
    engine.submit(scoring(2, prompt(2, 20), 0)).unwrap();
    engine.submit(request(3, prompt(3, 20), 5)).unwrap();
    let (mut sizes, mut answers) = (Vec::new(), BTreeMap::new());
    while engine.has_work() {
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        sizes.extend(events.iter().filter_map(|event| match event {
            Event::Prompt { logprobs, .. } => Some(logprobs.len()),
            _ => None,
        }));
        note(&mut answers, events);
    }
    assert_eq!(sizes, [8, 8, 3, 4, 8, 7], "eight rows fit into a step; the last row of a prompt scores nothing");
    assert_eq!(answers[&RequestId(3)].tokens.len(), 5);
}

#[test]
fn max_tokens_zero_computes_the_prompt_and_generates_nothing() {
    let mut engine = engine(64, 512);
    engine.submit(request(1, prompt(1, 256), 0)).unwrap();
    let answer = run(&mut engine).remove(&RequestId(1)).unwrap();
    assert!(answer.tokens.is_empty());
    let expected = Usage { prompt_tokens: 256, cached_tokens: 0, completion_tokens: 0 };
    assert_eq!(answer.end, Some((FinishReason::Length, expected)));
    assert_eq!(engine.submit(request(2, prompt(1, 257), 0)), Err(Refusal::PromptTooLong { tokens: 257, limit: 256 }));
}

#[test]
fn min_tokens_keeps_the_answer_from_stopping_earlier() {
    let stopping = (0..60).map(|kind| request(kind, prompt(kind as u32, 5), 100)).find(|r| alone(r).len() < 20);
    let early = stopping.expect("one in forty tokens is a stop");
    let length = alone(&early).len();
    let later = alone(&Request { min_tokens: length + 1, ..early.clone() });
    assert!(later.len() > length);
    assert!(!later.contains(&STOP));
    assert_eq!(alone(&Request { min_tokens: length, ..early.clone() }).len(), length);
}

#[test]
fn a_stop_names_the_token_that_ended_the_answer() {
    let mut engine = engine(64, 512);
    let early = (0..60).map(|kind| request(kind, prompt(kind as u32, 5), 100)).find(|r| alone(r).len() < 99);
    let early = early.expect("one in forty tokens is a stop");
    engine.submit(Request { logprobs: Some(1), ..early }).unwrap();
    let mut events = Vec::new();
    while engine.has_work() {
        engine.step(&mut events).unwrap();
    }
    let Some(Event::Finished { stop: Some(stop), .. }) = events.last() else { panic!("{:?}", events.last()) };
    assert_eq!(stop.token, STOP);
    assert_eq!(stop.logprobs.as_ref().unwrap().top[0].token, STOP);
}

/// Fails on the steps given, and like a real device leaves garbage in what it was writing.
struct Flaky {
    inner: SimExecutor,
    fail: Vec<bool>,
}

impl Executor for Flaky {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn step(&mut self, batch: &StepBatch<'_>, logits: &mut Vec<f32>) -> Result<(), ExecError> {
        if self.fail.pop().unwrap_or(false) {
            let garbled: Vec<Vec<u32>> = batch.seqs.iter().map(|seq| vec![1; seq.tokens.len()]).collect();
            let seqs: Vec<SeqStep<'_>> = batch
                .seqs
                .iter()
                .zip(&garbled)
                .map(|(seq, tokens)| SeqStep { tokens, want_logits: LogitsWanted::None, ..*seq })
                .collect();
            self.inner.step(&StepBatch { seqs: &seqs }, &mut Vec::new())?;
            return Err(ExecError::Device("made to fail".to_owned()));
        }
        self.inner.step(batch, logits)
    }
}

fn flaky(fail: Vec<bool>) -> Engine<Flaky> {
    let config = EngineConfig { max_step_tokens: 16, max_running: 8, max_waiting: 100 };
    Engine::new(Flaky { inner: sim(64, 512), fail }, config)
}

#[test]
fn step_that_fails_once_is_repeated_with_the_same_text() {
    let mut engine = flaky(vec![false, true, false, false, true, false, true]);
    let request = request(1, prompt(3, 40), 10);
    engine.submit(request.clone()).unwrap();
    let (mut answers, mut errors) = (BTreeMap::new(), 0);
    while engine.has_work() {
        let mut events = Vec::new();
        errors += usize::from(engine.step(&mut events).is_err());
        note(&mut answers, events);
    }
    assert_eq!(errors, 3);
    assert_eq!(answers[&RequestId(1)].tokens, alone(&request));
}

#[test]
fn a_device_that_keeps_failing_ends_the_requests_of_the_step() {
    let mut engine = flaky(vec![true; 3]);
    engine.submit(request(1, prompt(3, 4), 10)).unwrap();
    let mut events = Vec::new();
    for _ in 0..3 {
        assert!(engine.step(&mut events).is_err());
    }
    assert!(matches!(events[..], [Event::Admitted { .. }, Event::Finished { reason: FinishReason::Failed, .. }]));
    assert!(!engine.has_work());
    assert_eq!(engine.load().blocks_used, 0);
}

#[derive(Debug, Clone)]
struct Case {
    kind: u32,
    prompt_tokens: usize,
    max_tokens: usize,
    temperature: f32,
    frequency_penalty: f32,
    salt: u8,
    /// Steps to wait before it is submitted.
    delay: usize,
    /// Steps after which it is cancelled.
    cancel: Option<usize>,
    batch: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let flags = (prop::option::weighted(0.2, 1_usize..20), any::<bool>(), 0_u8..2, 0_usize..6);
    let sampling = (prop::sample::select(vec![0.0_f32, 1.0]), prop::sample::select(vec![0.0_f32, 0.5]));
    (0_u32..3, 1_usize..50, 1_usize..40, sampling, flags).prop_map(
        |(kind, prompt_tokens, max_tokens, (temperature, frequency_penalty), (cancel, batch, salt, delay))| Case {
            kind,
            prompt_tokens,
            max_tokens,
            temperature,
            frequency_penalty,
            salt,
            delay,
            cancel,
            batch,
        },
    )
}

impl Case {
    fn request(&self, id: u64) -> Request {
        Request {
            sampling: SamplingParams {
                temperature: self.temperature,
                frequency_penalty: self.frequency_penalty,
                seed: id,
                ..SamplingParams::default()
            },
            salt: vec![self.salt],
            priority: if self.batch { Priority::Batch } else { Priority::Interactive },
            ..request(id, prompt(self.kind, self.prompt_tokens), self.max_tokens)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// A request's text is its own: equal alone and in company, in one piece and in chunks, from
    /// the cache and computed, preempted or not. Every request ends, and no block stays held.
    #[test]
    fn the_text_does_not_depend_on_the_company(
        cases in prop::collection::vec(case(), 1..10),
        blocks in 6_usize..24,
        step_tokens in 1_usize..48,
        max_running in 1_usize..9,
    ) {
        let config = EngineConfig { max_step_tokens: step_tokens, max_running, max_waiting: 100 };
        let mut engine = Engine::new(sim(blocks, 512), config);
        let mut answers = BTreeMap::new();
        for step in 0.. {
            for (id, case) in cases.iter().enumerate() {
                if case.delay == step {
                    engine.submit(case.request(id as u64)).unwrap();
                }
                if case.cancel.is_some_and(|after| case.delay + after == step) {
                    engine.cancel(RequestId(id as u64));
                }
            }
            if step > 6 && !engine.has_work() {
                break;
            }
            let mut events = Vec::new();
            engine.step(&mut events).map_err(|err| TestCaseError::fail(err.to_string()))?;
            engine.check().map_err(TestCaseError::fail)?;
            note(&mut answers, events);
            prop_assert!(step < 20_000, "no end in sight");
        }
        for (id, case) in cases.iter().enumerate() {
            let request = case.request(id as u64);
            let answer = answers.remove(&request.id).unwrap_or_default();
            let expected = alone(&request);
            if answer.end.is_some() {
                prop_assert_eq!(answer.tokens, expected);
            } else {
                prop_assert!(case.cancel.is_some(), "request {} never ended", id);
                prop_assert!(expected.starts_with(&answer.tokens));
            }
        }
        prop_assert_eq!(engine.load().blocks_used, 0);
    }
}
