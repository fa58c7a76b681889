//! Reasons: the report as data, the decision log, the changes that would help, and the text.
//! Reads a finished decision; decides nothing.

pub(crate) mod assemble;
pub mod difference;
pub mod overview;
mod records;
pub mod render;
pub mod report;
mod units;
pub(crate) mod whatif;
