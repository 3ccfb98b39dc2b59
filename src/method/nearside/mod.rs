//! NEARSIDE.

pub mod evaluation;
