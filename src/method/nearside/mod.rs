//! NEARSIDE: adversarial inputs are found by one direction in the hidden states of the model that they are made against.
//!
//! After Huang et al., *Effective and Efficient Adversarial Detection for Vision-Language Models via A Single Vector* (2024, arXiv
//! 2410.22888). With `e` a hidden state, `μ₀` and `μ₁` the means of benign and adversarial ones, and `d = μ₁ − μ₀`, an input is called
//! adversarial where `e · d/‖d‖` lies above the midpoint of the classes. Here that is one of three [`Direction`]s, one of two
//! [`Mode`]s of a threshold, and a fold like any other: it learns while it answers, and it has a version, a budget and crash safety.
//!
//! An [`Eye`](eye::Eye) turns rows into hidden states (`eye`), running statistics of them (`moments`) or a logistic regression
//! (`logistic`) give a linear score (`probe`), benign states that are held out give its threshold (`calibration`), and [`detector`] folds
//! all of that over a stream. `carried` brings a direction
//! over from another encoder by a [`map`]. A live network is looked through at a version that is adopted ([`parent`]), and what was learned is
//! learned once more (`lessons`) with the next one. [`kind`] makes detectors of specs.
//!
//! What differs from the paper, and why: states are means over positions of a block's channels, because an image encoder has no last
//! token; a threshold can be held to a rate of false alarms; a direction is carried over without being centred
//! ([`map`]: the authors' code subtracts the mean of states from a difference of states).

pub mod calibration;
pub mod carried;
pub mod detector;
pub mod evaluation;
pub mod eye;
pub mod kind;
mod lessons;
mod logistic;
pub mod map;
mod moments;
pub mod parent;
pub mod probe;

pub use calibration::{Mode, Threshold};
pub use detector::{Detector, DetectorSnapshot, Judging, Setting, fold_of_states};
pub use probe::Probe;

use serde::{Deserialize, Serialize};

/// The class of benign rows.
pub const BENIGN: u32 = 0;
/// The class of adversarial rows.
pub const ADVERSARIAL: u32 = 1;

/// Which direction in the hidden states tells adversarial rows from benign ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The difference of the classes' means: the paper's.
    MeanDifference,
    /// That difference by the inverse of the covariance within classes: Fisher's discriminant.
    Whitened,
    /// The weights of a logistic regression, which the pipelined trainer trains.
    #[default]
    Logistic,
}
