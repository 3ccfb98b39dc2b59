//! What doors ask of a model, and its driver's answers: limits, plans, learning rates, the frontier, and the end.

use std::ops::ControlFlow;

use super::ModelError;
use super::decision::{Planned, What, same_plan};
use super::driver::Driver;
use super::live::{ChangeError, Command, Limits, Live, Wished};
use super::reply::Reply;
use crate::fold::{Change, FoldError};

impl Driver {
    /// The next thing that a door asked.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        let waits = self.is_behind_itself() || self.rows_until.is_some();
        if !waits && let Some(command) = self.deferred.pop_front() {
            return Some(command);
        }
        loop {
            let command = self.commands.try_recv().ok()?;
            match command {
                command if !waits => return Some(command),
                command if command.is_given_up() => {}
                // Of the fold it wants nothing, and no decision that is still to come says otherwise.
                Command::Limits(limits, _) if self.decisions.is_empty() && self.fits(&limits) => return Some(command),
                // A larger share is planned with later; whoever gives it has others to see to.
                Command::Limits(limits, reply) if self.decisions.is_empty() && !limits.anew && self.holds_within(&limits) => {
                    if reply.begin() {
                        self.live.status.lock().allotted_bytes = Some(limits.allotted_bytes);
                        self.unplanned = true;
                        reply.send(Ok(()));
                    }
                }
                Command::Limits(..) | Command::Plan(..) | Command::LearningRate(..) | Command::Setting(..) => {
                    self.deferred.retain(|waiting| !waiting.is_given_up());
                    self.deferred.push_back(command);
                }
                command => return Some(command),
            }
        }
    }

    pub(super) fn answer(&mut self, command: Command) -> ControlFlow<()> {
        match command {
            command if command.reply().is_some_and(|reply| !reply.begin()) => {}
            Command::Limits(limits, reply) => {
                let answer = self.limit(limits);
                self.conclude(reply, answer);
            }
            Command::Plan(wish, reply) => {
                let answer = self.change(|driver| {
                    let plan = driver.fold.complete_plan(&wish, driver.most_bytes())?;
                    Ok(Some(driver.planned(true, plan)))
                });
                self.conclude(reply, answer);
            }
            Command::LearningRate(learning_rate, reply) => {
                let answer = self.change(|_| Ok(Some(What::LearningRate(learning_rate))));
                self.conclude(reply, answer);
            }
            Command::Setting(wish, reply) => {
                let answer = self.change(|driver| {
                    let Some(Wished { value, blob }) = wish().map_err(ChangeError::Refused)? else { return Ok(None) };
                    if driver.fold.holds(&Change::Setting(value.clone())) {
                        return Ok(None);
                    }
                    blob.map_or(Ok(()), |bytes| driver.recovery.blobs.keep_or_end(&driver.ground, &bytes))?;
                    Ok(Some(What::Setting(value)))
                });
                self.conclude(reply, answer);
            }
            Command::Frontier(reply) => {
                let drained = self.drain().and_then(|()| self.publish_if_due(true));
                let answer = drained.map_err(|error| self.lost(error));
                // The client may have gone.
                drop(reply.send(answer.and_then(|()| Ok(self.fold.frontier()?))));
            }
            Command::Publish => self.publish_now = true,
            Command::Stop => {
                if let Err(error) = self.drain().and_then(|()| self.execute_due()).and_then(|()| self.checkpoint()) {
                    tracing::error!(model = self.live.name, %error, "no checkpoint at the end; the log has it all");
                }
                return ControlFlow::Break(());
            }
            Command::Abandon => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Tells whoever asked for a change what came of it. A fold that failed in it is not gone on with: the decision may be written.
    fn conclude(&mut self, reply: Reply, answer: Result<(), ChangeError>) {
        if let Err(ChangeError::Failed(reason)) = &answer
            && self.broken.is_none()
        {
            self.broken = Some(ModelError::Inconsistent(reason.clone()));
        }
        reply.send(answer);
    }

    /// What a door is told of an error that ends the fold as it is; the loop sees to the rest. A fold that panicked over a step comes
    /// back.
    fn lost(&mut self, error: ModelError) -> ChangeError {
        let told = match &error {
            ModelError::Fold(FoldError::Panicked(_)) => ChangeError::Busy(self.live.name.clone()),
            other => ChangeError::Failed(other.to_string()),
        };
        self.broken = Some(error);
        told
    }

    /// Whether the present plan is the best within other limits without a look at any other: one that fits less than it was chosen for
    /// still is. Nothing is decided then, so the fold may be in the middle of whatever it does.
    fn fits(&self, limits: &Limits) -> bool {
        let Limits { allotted_bytes, anew, .. } = *limits;
        let status = self.live.status.lock();
        let less = status.allotted_bytes.is_none_or(|before| allotted_bytes <= before);
        drop(status);
        !anew && less && self.holds_within(limits)
    }

    /// Whether the present plan is one within other limits, be there a better one or not.
    fn holds_within(&self, limits: &Limits) -> bool {
        let Limits { budget_bytes, allotted_bytes, .. } = *limits;
        let status = self.live.status.lock();
        let most = self.ground.within(budget_bytes).min(allotted_bytes);
        status.budget_bytes == budget_bytes && status.planned_bytes <= most
    }

    /// Plans with the share that was only noted while the fold was in the middle of something.
    pub(super) fn plan_as_noted(&mut self) {
        if !self.unplanned || self.is_behind_itself() || self.broken.is_some() {
            return;
        }
        self.unplanned = false;
        let (budget_bytes, allotted_bytes) = {
            let status = self.live.status.lock();
            (status.budget_bytes, status.allotted_bytes.unwrap_or(u64::MAX))
        };
        let answer = self.limit(Limits { budget_bytes, allotted_bytes, anew: true });
        // Nobody waits for it any more.
        self.conclude(Reply::new().0, answer);
    }

    /// Holds the fold to other limits. A plan that would be chosen again is no decision.
    fn limit(&mut self, limits: Limits) -> Result<(), ChangeError> {
        if self.fits(&limits) {
            self.live.status.lock().allotted_bytes = Some(limits.allotted_bytes);
            return Ok(());
        }
        let Limits { budget_bytes, allotted_bytes, .. } = limits;
        let most = self.ground.within(budget_bytes).min(allotted_bytes);
        self.change(|driver| {
            let plan = driver.fold.propose_plan(driver.demand(most))?;
            let mut status = driver.live.status.lock();
            if status.budget_bytes == budget_bytes && same_plan(&status.plan, &plan) {
                status.allotted_bytes = Some(allotted_bytes);
                return Ok(None);
            }
            Ok(Some(What::Plan(Planned { budget_bytes, allotted_bytes: Some(allotted_bytes), by_hand: false, plan })))
        })
    }

    /// Drains, lets `propose` look at the fold, writes its decision down, if it has one, and carries it out.
    fn change(&mut self, propose: impl FnOnce(&mut Driver) -> Result<Option<What>, ChangeError>) -> Result<(), ChangeError> {
        self.drain().and_then(|()| self.execute_due()).map_err(|error| self.lost(error))?;
        let Some(what) = propose(self)? else { return Ok(()) };
        if let Some(change) = what.change() {
            self.fold.check(&change).map_err(ChangeError::Refused)?;
        }
        self.decide(what).map_err(|error| match error {
            ModelError::Storage(error) => ChangeError::Storage(error.to_string()),
            other => ChangeError::Failed(other.to_string()),
        })?;
        self.publish_if_due(true).map_err(|error| self.lost(error))
    }
}

/// Refuses what is asked of a model that stands still, until it is stopped or deleted.
pub(super) fn stand(live: &Live, commands: impl Iterator<Item = Command>) {
    for command in commands {
        match command {
            Command::Limits(_, reply)
            | Command::Plan(_, reply)
            | Command::LearningRate(_, reply)
            | Command::Setting(_, reply) => {
                let failure = live.status.lock().failure.clone().unwrap_or_default();
                reply.send(Err(ChangeError::Failed(failure)));
            }
            Command::Frontier(reply) => {
                let failure = live.status.lock().failure.clone().unwrap_or_default();
                drop(reply.send(Err(ChangeError::Failed(failure))));
            }
            Command::Publish => {}
            Command::Stop | Command::Abandon => return,
        }
    }
}
