//! What live models are used for: each method is a fold, or is built of folds, and knows no door.

pub mod nearside;
