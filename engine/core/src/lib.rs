//! What to compute next, and what is known about what was computed: requests, blocks, scheduling,
//! sampling. No I/O, no clock, no threads; kernels are behind [`executor::Executor`].

pub mod executor;
