//! How a fold is brought back: from its newest whole checkpoint, or from the start, with the decisions that follow. It is so at the
//! start of a process, and when a step has panicked.

use std::sync::Arc;

use super::blobs::Blobs;
use super::checkpoint::{self, CheckpointError, Loaded};
use super::decision::{Decision, Planned, What};
use super::kind::{Given, Kind};
use super::queue::{Queue, queued_bytes_max};
use super::reaction::Reaction;
use super::registry::{Record, RegistryError};
use super::status::CheckpointFigures;
use super::{Ground, ModelError};
use crate::disk::is_sync_failure;
use crate::fold::{Fold, Sequence, Version};
use crate::stream::{Stream, Streams};

/// All that it takes to bring the fold of one model back.
pub(super) struct Recovery {
    pub(super) ground: Arc<Ground>,
    pub(super) streams: Arc<Streams>,
    pub(super) kind: Arc<dyn Kind>,
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) record: Record,
    pub(super) stream: Arc<Stream>,
    pub(super) blobs: Blobs,
}

/// A fold where its state stands, and what a driver goes on with.
pub(super) struct Recovered {
    pub(super) fold: Box<dyn Fold>,
    pub(super) queue: Queue,
    /// The checkpoint that the fold holds.
    pub(super) loaded: Option<(checkpoint::Head, CheckpointFigures)>,
    pub(super) version: Version,
    /// The plan that the state follows, where it follows one.
    pub(super) followed: Option<Planned>,
    /// The reaction to a drift that the state is in the middle of.
    pub(super) reaction: Option<Reaction>,
    /// Decisions that the state does not hold yet.
    pub(super) decisions: Vec<Decision>,
}

/// The plan that the last of these decisions followed.
pub(super) fn newest_plan(decisions: &[Decision]) -> Option<&Planned> {
    decisions.iter().rev().find_map(|decision| match &decision.what {
        What::Plan(planned) => Some(planned),
        What::LearningRate(_) | What::Setting(_) | What::React { .. } | What::Skip { .. } | What::Quarantine { .. } => None,
    })
}

impl Recovery {
    /// What the kind makes a fold from.
    pub(super) fn given(&self) -> Given<'_> {
        let spec = &self.record.spec;
        let window = spec.overload.window(self.ground.settings.lag_rows_max);
        let queued_bytes = queued_bytes_max(&self.stream.schema, window);
        let (schema, may_skip) = (&self.stream.schema, spec.overload.may_skip());
        Given { settings: &spec.settings, schema, queued_bytes, may_skip, blobs: Some(&self.blobs) }
    }

    /// A new model's fold, at its origin.
    pub(super) fn begin(&self, fold: Box<dyn Fold>, decisions: Vec<Decision>) -> Result<Recovered, ModelError> {
        let version = Version { epoch: 0, sequence: self.record.origin };
        let queue = queue_at(&self.stream, self.record.origin, &[], version, fold.as_ref())?;
        Ok(Recovered { fold, queue, loaded: None, version, followed: None, reaction: None, decisions })
    }

    /// The fold at its newest whole checkpoint, or at its origin.
    pub(super) fn bring_back(&self) -> Result<Recovered, RegistryError> {
        let mut fold = self.kind.build(self.given())?;
        let loaded = self.restore(fold.as_mut())?;
        let mut decisions = Vec::new();
        for bytes in self.streams.log().decisions(self.id)? {
            decisions.push(Decision::decode(&bytes).map_err(ModelError::from)?);
        }
        let origin = Version { epoch: 0, sequence: self.record.origin };
        let (version, held) = loaded.as_ref().map_or((origin, 0), |(head, _)| (head.version, head.decisions as usize));
        let head = self.stream.head();
        if loaded.is_some() && (version.sequence > head || held > decisions.len()) {
            let (kept, of) = (decisions.len(), &self.record.spec.stream);
            let text = format!(
                "the checkpoint at {version} with {held} decisions is ahead of the log, which has {kept} decisions and row {head} of \
                 stream `{of}`: they are not of one moment"
            );
            return Err(ModelError::Inconsistent(text).into());
        }
        let pending = decisions.split_off(held);
        let queue = queue_at(&self.stream, self.record.origin, &decisions, version, fold.as_ref())?;
        // The state follows a plan already; which budget it answers stands in the decision.
        let (followed, reaction) = (newest_plan(&decisions).cloned(), Reaction::unfinished(&decisions));
        Ok(Recovered { fold, queue, loaded, version, followed, reaction, decisions: pending })
    }

    /// Puts the newest whole checkpoint into a fresh fold, if there is one.
    fn restore(&self, fold: &mut dyn Fold) -> Result<Option<(checkpoint::Head, CheckpointFigures)>, ModelError> {
        let (ground, name) = (&self.ground, &self.name);
        let folder = checkpoint::folder(&ground.folder.path, self.id);
        let newest = checkpoint::Store::new(ground.disk.as_ref(), folder).load_newest();
        if let Err(CheckpointError::Io(error)) = &newest
            && is_sync_failure(error)
        {
            ground.end(error);
        }
        let (loaded, faults) = newest?;
        for fault in faults {
            tracing::warn!(model = name, %fault, "an older checkpoint and the log take over");
        }
        let Some(Loaded { head, state, entry, oldest_kept }) = loaded else { return Ok(None) };
        if head.folder != ground.folder.identity {
            let text = format!("the checkpoint of model `{name}` belongs to data folder {}", head.folder);
            return Err(ModelError::Inconsistent(text));
        }
        let identity = fold.identity();
        if head.identity != identity {
            let then = &head.identity;
            let text = format!("model `{name}` was folded by [{then}], this process is [{identity}]: its bits would differ");
            return Err(ModelError::Inconsistent(text));
        }
        fold.restore(state)?;
        let figures = CheckpointFigures {
            version: head.version,
            oldest_kept,
            state_hash: entry.state_hash,
            unix_seconds: entry.unix_seconds,
            seconds: 0.0,
        };
        Ok(Some((head, figures)))
    }
}

/// The queue of a state at `version` that holds these decisions: it may be in the middle of what one of them says of rows.
pub(super) fn queue_at(
    stream: &Stream,
    origin: Sequence,
    held: &[Decision],
    version: Version,
    fold: &dyn Fold,
) -> Result<Queue, ModelError> {
    let mut queue = Queue::default();
    queue.recall(stream, origin, version.sequence, fold)?;
    let skip = held.iter().rev().find_map(|decision| match &decision.what {
        What::Skip { through, kept } => Some((*through, kept)),
        _ => None,
    });
    if let Some((through, kept)) = skip.filter(|(through, _)| *through > version.sequence) {
        let kept: Vec<Sequence> = kept.iter().copied().filter(|&row| row > version.sequence).collect();
        queue.select(through, &kept);
    }
    let refused = held.iter().rev().find_map(|decision| match &decision.what {
        What::Quarantine { through, .. } => Some(*through),
        _ => None,
    });
    if let Some(through) = refused {
        queue.refuse(through);
    }
    Ok(queue)
}
