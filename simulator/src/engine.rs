//! One replica: continuous batching, iteration by iteration, timed by the cost model.
//!
//! An iteration takes `a + d·B + k·KV/1000 + p·P/1000` milliseconds, with B decoding sequences, KV
//! resident tokens and P prompt tokens of this iteration (at most a chunk). A prompt's last chunk
//! gives the first token.

use stowage_contracts::load::Coefficients;

/// Prompt tokens that one iteration computes at most.
pub const PREFILL_CHUNK: u32 = 8192;
/// Sequences that a replica runs at most.
pub const MAX_SEQUENCES: usize = 256;

/// A request on its way, in milliseconds since the start of the run.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// When it arrived.
    pub arrived: f64,
    /// Prompt tokens.
    pub input: u32,
    /// Answer tokens.
    pub output: u32,
    /// Prompt tokens that are not computed yet.
    pub left: u32,
    /// Answer tokens so far.
    pub generated: u32,
    /// Arrival to first token; absent: none yet.
    pub ttft: Option<f64>,
    /// When the last token came; absent: it did not yet.
    pub finished: Option<f64>,
}

impl Request {
    /// Forgets all progress: the replica that made it is gone.
    pub fn restart(&mut self) {
        (self.left, self.generated, self.ttft) = (0, 0, None);
    }
}

/// A sequence in the batch.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    request: usize,
    /// Prompt tokens in the iteration that runs.
    chunk: u32,
}

/// The batch of one replica.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    sequences: Vec<Sequence>,
    decoding: usize,
    /// Tokens in the KV cache.
    resident: u64,
    /// Tokens that the running requests will need at their longest.
    reserved: u64,
    /// Prompt tokens that are not computed yet.
    unprefilled: u64,
}

impl Batch {
    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.sequences.len()
    }

    /// Prompt tokens that are not computed yet.
    pub fn unprefilled(&self) -> u64 {
        self.unprefilled
    }

    /// Tokens in the KV cache.
    pub fn resident(&self) -> u64 {
        self.resident
    }

    /// KV tokens that the running requests will need at their longest.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Takes the request into the batch.
    pub fn admit(&mut self, index: usize, request: &mut Request) {
        request.left = request.input;
        self.unprefilled += u64::from(request.input);
        self.reserved += u64::from(request.input) + u64::from(request.output);
        self.sequences.push(Sequence { request: index, chunk: 0 });
    }

    /// Starts an iteration and returns its length in milliseconds.
    pub fn start_iteration(&mut self, requests: &[Request], cost: &Coefficients) -> f64 {
        let mut budget = PREFILL_CHUNK;
        for sequence in &mut self.sequences {
            sequence.chunk = requests[sequence.request].left.min(budget);
            budget -= sequence.chunk;
        }
        let prefill = f64::from(PREFILL_CHUNK - budget);
        cost.a + cost.d * self.decoding as f64 + (cost.k * self.resident as f64 + cost.p * prefill) / 1000.0
    }

    /// Ends the iteration: chunks are resident, decoding sequences have one more token, those with
    /// their last leave. Returns how many left, and the tokens of their answers.
    pub fn end_iteration(&mut self, requests: &mut [Request], now: f64) -> (usize, u64) {
        let (before, mut output) = (self.sequences.len(), 0);
        let mut index = 0;
        while index < self.sequences.len() {
            let Sequence { request, chunk } = self.sequences[index];
            self.advance(&mut requests[request], chunk, now);
            self.sequences[index].chunk = 0;
            if requests[request].generated >= requests[request].output {
                self.finish(&mut requests[request], now);
                output += u64::from(requests[request].generated);
                self.sequences.swap_remove(index);
            } else {
                index += 1;
            }
        }
        (before - self.sequences.len(), output)
    }

    /// Empties the batch and returns the requests that were in it, in the order of their admission.
    pub fn take_all(&mut self) -> Vec<usize> {
        let taken = std::mem::take(self);
        taken.sequences.iter().map(|sequence| sequence.request).collect()
    }

    fn advance(&mut self, request: &mut Request, chunk: u32, now: f64) {
        if chunk > 0 {
            request.left -= chunk;
            self.unprefilled -= u64::from(chunk);
            self.resident += u64::from(chunk);
            if request.left == 0 {
                request.ttft = Some(now - request.arrived);
                request.generated = 1;
                self.decoding += 1;
                self.resident += 1;
            }
        } else if request.generated > 0 {
            request.generated += 1;
            self.resident += 1;
        }
    }

    fn finish(&mut self, request: &mut Request, now: f64) {
        request.finished = Some(now);
        self.decoding -= 1;
        self.resident -= u64::from(request.input) + u64::from(request.generated);
        self.reserved -= u64::from(request.input) + u64::from(request.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Coefficients = Coefficients { a: 10.0, d: 1.0, k: 0.0, p: 1.0 };

    fn request(input: u32, output: u32) -> Request {
        Request { arrived: 0.0, input, output, left: 0, generated: 0, ttft: None, finished: None }
    }

    #[test]
    fn prompt_is_computed_in_chunks_and_then_decoded() {
        let mut requests = [request(10_000, 2)];
        let mut batch = Batch::default();
        batch.admit(0, &mut requests[0]);
        assert_eq!(batch.start_iteration(&requests, &COST), 10.0 + 8.192);
        batch.end_iteration(&mut requests, 18.0);
        assert_eq!((requests[0].ttft, batch.unprefilled()), (None, 1808));
        assert_eq!(batch.start_iteration(&requests, &COST), 10.0 + 1.808);
        batch.end_iteration(&mut requests, 30.0);
        assert_eq!((requests[0].ttft, requests[0].generated), (Some(30.0), 1));
        assert_eq!(batch.start_iteration(&requests, &COST), 11.0);
        assert_eq!(batch.end_iteration(&mut requests, 41.0), (1, 2));
        assert_eq!((requests[0].finished, batch.running(), batch.reserved()), (Some(41.0), 0, 0));
    }
}
