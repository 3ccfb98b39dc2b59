//! Poison pills: rows over which a step panics, or the process ends.
//!
//! A fold that panicked is lost, and is brought back from its checkpoint and the log as after a crash. It would come to the same
//! rows and panic for ever. So the rows that were under way are suspected: when the fold comes to them again it is given one step at a
//! time, and the step over which it falls once more is known. The rest of its record is quarantined by a decision, which every replay
//! finds, and the rows after it are learned.
//!
//! A step that ends the process is known from the file that the driver writes before each ([`super::attempt`]): rows that were under
//! way then are suspected by the next process, and quarantined by the one after, if they were in a step alone when it ended as well.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ModelError;
use super::attempt::{Attempt, Unended};
use super::decision::What;
use super::driver::{Driver, Ears};
use super::events::Kind;
use super::live::{Command, Live};
use super::recovery::Recovery;
use crate::fold::Sequence;

/// Records that are quarantined one after the other, without a step that is learned, before it is not the rows that are to blame.
const CONDEMNED_MAX: u32 = 3;
/// Characters of a reason that are written down.
const REASON_CHARS_MAX: usize = 400;

/// Rows, one of which is a poison pill, as it seems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    /// They come after this one.
    pub(super) after: Sequence,
    /// The last of them.
    pub(super) through: Sequence,
    /// They were in a step alone when it happened again.
    proven: bool,
    fell: Fell,
    /// What happened.
    reason: String,
}

/// What fell over suspected rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fell {
    /// The fold, in a step.
    Step,
    /// The process, by whatever.
    Process,
}

impl Suspect {
    /// What the process before this one left, if it ended over rows that a state at `version` does not hold.
    pub(super) fn of_attempt(attempt: &Attempt, version: Sequence) -> Option<Suspect> {
        let Unended { after, through, deaths } = attempt.before().filter(|before| before.through > version)?;
        let reason = format!("{deaths} processes ended over a step of these rows");
        Some(Suspect { after: after.max(version), through, proven: deaths > 1, fell: Fell::Process, reason })
    }
}

/// What is left of a driver whose fold has panicked.
pub(super) struct Fallen {
    live: Arc<Live>,
    recovery: Recovery,
    ears: Ears,
    deferred: VecDeque<Command>,
    unplanned: bool,
    suspect: Suspect,
    condemned: u32,
}

impl Fallen {
    /// A driver with the fold brought back. Where that cannot be, its ears and what they have heard.
    pub(super) fn revive(self) -> Result<Driver, Box<(ModelError, VecDeque<Command>, Ears)>> {
        let Fallen { live, recovery, ears, deferred, unplanned, suspect, condemned } = self;
        let Suspect { after, through, ref reason, .. } = suspect;
        tracing::error!(
            model = live.name,
            after,
            through,
            reason,
            "a step of these rows panicked; its checkpoint and the log take over"
        );
        match recovery.bring_back() {
            Ok(recovered) => {
                *live.ledger.lock() = recovered.fold.ledger().clone();
                // Those were learned, and seen to be.
                let known = live.status_lent().version.sequence;
                let text = format!("brought back, after a step of rows {} to {through} had panicked", after + 1);
                live.note(Kind::ModelRestored, recovered.version, text);
                let driver = Driver::new(live, recovery, recovered, ears, known);
                Ok(Driver { deferred, unplanned, suspect: Some(suspect), condemned, ..driver })
            }
            Err(error) => Err(Box::new((ModelError::Inconsistent(error.to_string()), deferred, ears))),
        }
    }
}

impl Driver {
    /// Whether the newest passage is given to the fold in a step alone.
    pub(super) fn is_suspected(&self) -> bool {
        let (Some(suspect), Some(passage)) = (&self.suspect, self.flight.back()) else { return false };
        suspect.after < passage.last && passage.first <= suspect.through
    }

    /// Quarantines the rows after the cursor, where they are proven to be what made the fold fall; true if so.
    pub(super) fn condemn_if_proven(&mut self) -> Result<bool, ModelError> {
        let cursor = self.cursor.sequence;
        if self.suspect.as_ref().is_some_and(|suspect| suspect.through <= cursor) {
            self.suspect = None;
        }
        let Some(suspect) = self.suspect.take_if(|suspect| suspect.proven && suspect.after == cursor) else { return Ok(false) };
        if self.is_behind_itself() {
            // A process before, or this one, has learned these rows and gone on: they cannot be given away any more.
            return match suspect.fell {
                Fell::Step => {
                    let text =
                        format!("the rows after {cursor}, which were learned once, cannot be any more: {}", suspect.reason);
                    Err(ModelError::Inconsistent(text))
                }
                // It is not their fault, then, that processes have ended.
                Fell::Process => Ok(false),
            };
        }
        if self.condemned >= CONDEMNED_MAX {
            let text = format!("steps fail whatever their rows are, since {cursor}: {}", suspect.reason);
            return Err(ModelError::Inconsistent(text));
        }
        self.drain()?;
        let end = self.queue.record_end(&self.live.stream, cursor + 1, self.fold.as_ref())?;
        let (through, reason) = (end.max(suspect.through), suspect.reason);
        tracing::error!(model = self.live.name, first = cursor + 1, last = through, reason, "rows are quarantined");
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        self.condemned += 1;
        self.decide(What::Quarantine { through, reason })?;
        Ok(true)
    }

    /// What is left of this driver after a panic of its fold; itself, where no step was under way that could be to blame.
    pub(super) fn fall(mut self, reason: &str) -> Result<Fallen, Box<Driver>> {
        let after = self.flight.front().map_or(self.cursor.sequence, |passage| passage.first - 1);
        let through = self.cursor.sequence;
        if after == through {
            return Err(Box::new(self));
        }
        // It fell before over these, and they were alone this time.
        let again = self.suspect.as_ref().is_some_and(|suspect| suspect.after <= after && through <= suspect.through);
        let alone = self.flight.iter().filter(|passage| passage.rows > 0).count() == 1;
        let reason = format!("a step of these rows panicked: {reason}");
        let suspect = Suspect { after, through, proven: again && alone, fell: Fell::Step, reason };
        // It was the fold that fell, and not the process.
        self.attempt.rest(after);
        let Driver { live, recovery, commands, wake, deferred, unplanned, condemned, .. } = self;
        Ok(Fallen { live, recovery, ears: Ears { commands, wake }, deferred, unplanned, suspect, condemned })
    }
}
