//! The fold that trains networks, after Ferret (Zhou et al., CVPR 2025): a pipeline of stages within a memory budget.
//!
//! The way of a step is the order of the files: [`profile`] knows each layer's bytes, [`plan`] chooses what fits the budget,
//! [`input`] turns rows into tensors, [`stage`] runs a stage's forwards, backwards and updates, [`trainer`] lets the tasks of a
//! step run on the [`pool`] of compute threads and is the [`crate::fold::Fold`], [`snapshot`] serves what it learned.
//!
//! Nothing here reads the clock, and nothing that a forward reads depends on when something ran: it is a function of the plan
//! and of the step's ordinal ([`plan::Plan::read`]).

pub mod core;
pub mod credits;
pub mod input;
pub mod plan;
pub mod pool;
pub mod profile;
pub mod snapshot;
pub mod stage;
pub mod trainer;
