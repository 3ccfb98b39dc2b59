//! The kinds of model that a binary knows. `main` registers them, so that this floor need not know a single method.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::blobs::Blobs;
use crate::fold::{BelowMinimum, Fold, FoldError, ProposalError};
use crate::stream::Schema;

/// Why a model cannot be made as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// No such kind is registered.
    #[error("unknown kind `{kind}`: this binary has {known}")]
    UnknownKind {
        /// What was asked for.
        kind: String,
        /// What there is.
        known: String,
    },
    /// The kind refuses its settings, or the stream does not suit it.
    #[error("{0}")]
    Settings(String),
    /// No plan fits the budget.
    #[error(transparent)]
    BelowMinimum(#[from] BelowMinimum),
    /// The fold could not be built.
    #[error(transparent)]
    Fold(#[from] FoldError),
}

impl From<ProposalError> for SpecError {
    fn from(error: ProposalError) -> Self {
        match error {
            ProposalError::BelowMinimum(error) => SpecError::BelowMinimum(error),
            ProposalError::Fold(error) => SpecError::Fold(error),
        }
    }
}

/// A kind of model: how its settings and its stream become a fold.
pub trait Kind: Send + Sync {
    /// The name that a spec's `kind` says.
    fn name(&self) -> &'static str;

    /// The best plan for a budget in bytes (none: unconstrained), before anything is allocated that stays; as
    /// [`Fold::propose_plan`] gives it.
    fn propose_plan(&self, given: Given<'_>, budget_bytes: Option<u64>) -> Result<serde_json::Value, SpecError>;

    /// A fold at the start of a stream, under its smallest plan; the first decision gives it another.
    fn build(&self, given: Given<'_>) -> Result<Box<dyn Fold>, SpecError>;

    /// The name of the blob without which this setting cannot be carried out, if it needs one. A later setting that needs one takes the
    /// place of this one.
    fn blob_of(&self, _setting: &serde_json::Value) -> Option<String> {
        None
    }
}

/// What a kind makes a fold from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What the spec says beside the common part.
    pub settings: &'a serde_json::Map<String, serde_json::Value>,
    /// Of the rows.
    pub schema: &'a Schema,
    /// What the driver will hold of records, to be counted in the fold's plans.
    pub queued_bytes: u64,
    /// Whether rows may be given away: the model has a skip policy.
    pub may_skip: bool,
    /// What the model's decisions name; none where a fold is only looked at, and carries out none that names any.
    pub blobs: Option<&'a Blobs>,
}

/// All kinds by name.
#[derive(Clone, Default)]
pub struct Kinds(BTreeMap<&'static str, Arc<dyn Kind>>);

impl Kinds {
    /// Registers one more kind.
    pub fn with(mut self, kind: impl Kind + 'static) -> Kinds {
        self.0.insert(kind.name(), Arc::new(kind));
        self
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn Kind>, SpecError> {
        self.0.get(name).ok_or_else(|| SpecError::UnknownKind {
            kind: name.to_owned(),
            known: self.0.keys().copied().collect::<Vec<_>>().join(", "),
        })
    }
}
