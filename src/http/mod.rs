//! The doors: bodies under caps, and one shape for every refusal. No door touches a weight or a file.

pub mod body;
pub mod problem;
