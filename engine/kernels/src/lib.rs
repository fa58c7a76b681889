//! Arithmetic for decoder models on CPUs: packed matrices, matrix products, paged attention and
//! the small operators between them, plus a slow oracle that shares none of that code.
//!
//! Kernels know shapes, not models. Activations stay floating point: quantising them to int8 would
//! be faster, and makes small models answer nonsense.
//!
//! Every result is a function of its own row only. A row's sum runs in an order fixed by the
//! matrix, never by how many rows run beside it or how a prompt was cut into chunks, so a request
//! gets the same bits alone and among others (on one instruction set; between two it does not).

#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cpu;
pub mod half;
pub mod isa;
pub mod mem;
pub mod pool;
pub mod quant;
pub mod reference;

pub use isa::Isa;
pub use quant::WeightType;
