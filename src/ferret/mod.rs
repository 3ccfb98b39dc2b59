//! The fold that trains networks, after Ferret (Zhou et al., CVPR 2025): a pipeline of stages within a memory budget.
//!
//! The way of a step is the order of the files. [`plan`] says how the network is cut and what is read when, [`footprint`] what that
//! holds; [`profile`] measures what steps cost, [`rate`] reckons what a plan brings, [`frontier`] finds the plans worth having (beside
//! it `greedy`, the paper's search), and [`planner`] chooses. [`input`] turns rows into tensors, [`stage`] has the arithmetic of a stage's forward, backward and
//! update, [`work`] a task with all that it reads; [`schedule`] says which tasks may run, [`pipeline`] gives them out and takes
//! their results, [`executor`] runs them on the [`pool`] of compute threads. [`state`] is a pipeline as a checkpoint keeps it,
//! [`snapshot`] what readers get of it, and [`trainer`] makes it all a [`crate::fold::Fold`].
//!
//! Nothing here but [`profile`] reads the clock, replay never looks at what that measured, and nothing that a forward reads depends on when something ran: it is a function of the plan
//! and of the step's ordinal ([`plan::Plan::read`]).

pub mod compensation;
mod consolidate;
pub mod executor;
pub mod footprint;
pub mod frontier;
mod greedy;
pub mod input;
pub mod pipeline;
pub mod plan;
pub mod planner;
pub mod pool;
pub mod profile;
pub mod rate;
pub mod schedule;
pub mod snapshot;
pub mod stage;
pub mod state;
pub mod trainer;
pub mod work;
