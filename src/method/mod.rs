//! What live models are used for.

pub mod nearside;
