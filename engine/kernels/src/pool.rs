//! A few threads that run one loop together, over and over.
//!
//! A model step is hundreds of short loops with a barrier after each, so handing out work must
//! cost nanoseconds, and waiting must not cost a core for ever: a waiter spins for at most 50 µs
//! and then parks. Work is claimed, not assigned: the first worker takes a share of what
//! remains. A worker that the system runs elsewhere therefore delays no step, because the caller does the
//! work itself; only a claim in progress is waited for.
//!
//! Who claims which part varies from run to run. Loops whose result depends on that are wrong.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(50);

/// A loop body: called with ranges `[from, to)` of items.
type Body<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// One word holds everything that a claim depends on, so that a claim is one compare-exchange:
/// generation (24 bits), number of items (20 bits), next unclaimed item (20 bits).
#[derive(Clone, Copy, PartialEq)]
struct Ticket(u64);

const ITEM_BITS: u32 = 20;
/// The most items one loop may have.
pub const MAX_ITEMS: usize = (1 << ITEM_BITS) - 1;

impl Ticket {
    fn new(generation: u64, items: usize) -> Ticket {
        Ticket((generation << (2 * ITEM_BITS)) | ((items as u64) << ITEM_BITS))
    }
    fn generation(self) -> u64 {
        self.0 >> (2 * ITEM_BITS)
    }
    fn items(self) -> usize {
        (self.0 >> ITEM_BITS) as usize & MAX_ITEMS
    }
    fn next(self) -> usize {
        self.0 as usize & MAX_ITEMS
    }
}

struct State {
    ticket: AtomicU64,
    /// The body of the current generation, as the two words of its fat pointer, and the smallest
    /// claim. Written before the ticket is, and only while no item of any loop is unclaimed.
    body: [AtomicUsize; 2],
    grain: AtomicUsize,
    /// Items finished of the current generation.
    done: AtomicU32,
    sleepers: AtomicU32,
    caller_waits: AtomicBool,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    caller: Mutex<Option<Thread>>,
    threads: usize,
}

pub struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    generation: u64,
}

impl Pool {
    /// `threads` in all: the caller is one of them.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let state = Arc::new(State {
            ticket: AtomicU64::new(0),
            body: [AtomicUsize::new(0), AtomicUsize::new(0)],
            grain: AtomicUsize::new(1),
            done: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            caller_waits: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            caller: Mutex::new(None),
            threads,
        });
        // Built up step by step, so that a failed spawn drops (and so ends) the workers before it.
        let mut pool = Pool { state, workers: Vec::new(), generation: 0 };
        for i in 1..threads {
            let state = Arc::clone(&pool.state);
            let worker = std::thread::Builder::new().name(format!("engine-worker-{i}")).spawn(move || state.work())?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.state.threads
    }

    /// Runs `body` over `0..items` in ranges of at least `grain` items (the last may be smaller),
    /// and returns when all are done. A panic in a range is resumed here after the loop.
    pub fn run(&mut self, items: usize, grain: usize, body: &Body<'_>) {
        let grain = grain.max(1);
        if self.workers.is_empty() || items <= grain {
            if items > 0 {
                body(0, items);
            }
            return;
        }
        assert!(items <= MAX_ITEMS, "a loop of {items} items is too long for the pool");
        let state = &*self.state;
        *lock(&state.caller) = Some(std::thread::current());
        // SAFETY: only the lifetime is erased. Workers call the body only for items they claimed,
        // and this function returns only after every item is done.
        let body: *const Body<'static> = unsafe { std::mem::transmute(body) };
        // SAFETY: a fat pointer to a trait object is two words; `State::body` reverses this.
        let words: [usize; 2] = unsafe { std::mem::transmute(body) };
        state.body[0].store(words[0], Ordering::Relaxed);
        state.body[1].store(words[1], Ordering::Relaxed);
        state.grain.store(grain, Ordering::Relaxed);
        state.done.store(0, Ordering::Relaxed);
        self.generation = (self.generation + 1) & 0xff_ffff;
        // SeqCst pairs with `sleep`: either the worker sees this ticket, or we see the sleeper.
        state.ticket.store(Ticket::new(self.generation, items).0, Ordering::SeqCst);
        if state.sleepers.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|w| w.thread().unpark());
        }
        while state.claim_and_run(self.generation) {}
        state.wait_done(items);
        if let Some(panic) = lock(&state.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches every panic of a body, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl State {
    fn work(&self) {
        let mut seen = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let generation = self.ticket().generation();
            if generation == seen {
                self.wait_for_work(seen);
                continue;
            }
            seen = generation;
            while self.claim_and_run(generation) {}
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.ticket.load(Ordering::Acquire))
    }

    /// Takes a share of what is left of `generation` and runs it. False when nothing is left.
    fn claim_and_run(&self, generation: u64) -> bool {
        loop {
            let ticket = self.ticket();
            let (items, next) = (ticket.items(), ticket.next());
            if ticket.generation() != generation || next >= items {
                return false;
            }
            let words = [&self.body[0], &self.body[1]].map(|w| w.load(Ordering::Relaxed));
            let grain = self.grain.load(Ordering::Relaxed);
            // Shares shrink as the end comes near: few claims, and all finish together.
            let share = ((items - next) / (2 * self.threads)).max(grain).min(items - next);
            let claimed =
                self.ticket.compare_exchange(ticket.0, ticket.0 + share as u64, Ordering::AcqRel, Ordering::Relaxed);
            if claimed.is_err() {
                continue;
            }
            // SAFETY: the exchange succeeded, so the ticket was unchanged since before `words` and
            // `grain` were read, and they are only rewritten once all items are claimed and done:
            // the words belong to this generation. Its caller waits until `done` counts our
            // share, so the body is alive.
            let body: &Body<'_> = unsafe { &*std::mem::transmute::<[usize; 2], *const Body<'_>>(words) };
            let result = catch_unwind(AssertUnwindSafe(|| body(next, next + share)));
            if let Err(panic) = result {
                *lock(&self.panic) = Some(panic);
            }
            let done = self.done.fetch_add(share as u32, Ordering::SeqCst) as usize + share;
            if done == items
                && self.caller_waits.load(Ordering::SeqCst)
                && let Some(caller) = lock(&self.caller).as_ref()
            {
                caller.unpark();
            }
            return true;
        }
    }

    fn wait_done(&self, items: usize) {
        let finished = || self.done.load(Ordering::SeqCst) as usize == items;
        if spin_until(&finished) {
            return;
        }
        self.caller_waits.store(true, Ordering::SeqCst);
        while !finished() {
            std::thread::park();
        }
        self.caller_waits.store(false, Ordering::SeqCst);
    }

    fn wait_for_work(&self, seen: u64) {
        let changed =
            || Ticket(self.ticket.load(Ordering::SeqCst)).generation() != seen || self.stop.load(Ordering::SeqCst);
        if spin_until(&changed) {
            return;
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !changed() {
            std::thread::park();
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Spins until `condition` or for [`SPIN`]; true when the condition holds.
fn spin_until(condition: &dyn Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers_each_item_once(threads: usize, items: usize, grain: usize) {
        let mut pool = Pool::new(threads).unwrap();
        for _ in 0..200 {
            let hits: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
            pool.run(items, grain, &|from, to| {
                for hit in &hits[from..to] {
                    hit.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn every_item_runs_exactly_once() {
        for threads in [1, 2, 3, 7] {
            for (items, grain) in [(0, 1), (1, 1), (2, 1), (37, 1), (37, 5), (1000, 64)] {
                covers_each_item_once(threads, items, grain);
            }
        }
    }

    #[test]
    fn parked_workers_wake_for_the_next_loop() {
        let mut pool = Pool::new(3).unwrap();
        let count = AtomicU32::new(0);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            pool.run(64, 1, &|from, to| {
                count.fetch_add((to - from) as u32, Ordering::Relaxed);
            });
        }
        assert_eq!(count.into_inner(), 5 * 64);
    }

    #[test]
    fn a_panic_in_a_range_reaches_the_caller_and_the_pool_survives() {
        let mut pool = Pool::new(2).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, 1, &|from, to| assert!(!(from..to).contains(&5), "item 5"));
        }));
        assert!(caught.is_err());
        covers_each_item_once(2, 10, 1);
        let sum = AtomicU32::new(0);
        pool.run(10, 1, &|from, to| {
            sum.fetch_add((from..to).sum::<usize>() as u32, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
