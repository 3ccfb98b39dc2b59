//! Which task may run when: the pipeline's state machine, without a single number of a network in it.
//!
//! A step is admitted, goes forward through the stages, backward through them from the last, and each stage is updated by it in
//! turn. What a task reads follows from the plan and the step's ordinal ([`Plan::read`]), so tasks may run in any order that this
//! machine allows, on any number of threads, and every weight comes out the same. Its rules:
//!
//! 1. Steps are admitted in order, one at a time, and at most N·P are in flight; a plan may ask for more ([`Plan::admits`]).
//! 2. A forward waits for the stage below and for exactly the version that it reads, never for a newer one. It also waits until no
//!    more than lag(j) steps are between their forward and their update at its stage, itself among them; by Ferret's rule the version
//!    says that already.
//! 3. A backward waits for its forward and for the stage above. It also waits until the step N before it has been updated at its
//!    stage: that changes no value, and bounds what the gradients of steps that ran ahead would hold.
//! 4. The updates of a stage happen in the order of ordinals. A step that the stage does not learn (omitted, or refused) is passed
//!    once its forward has been there.
//!
//! Everything waits for older steps only, or for an earlier task of the same step, so the oldest step in flight can always go on:
//! there is no deadlock. The tests search every order for small plans.

use std::collections::VecDeque;
use std::sync::Arc;

use super::plan::Plan;

/// One piece of work; none of them waits for anything while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Takes the next step in.
    Admit,
    /// The forward of a step through one stage.
    Forward {
        /// The step.
        ordinal: u64,
        /// The stage.
        stage: usize,
    },
    /// Its backward.
    Backward {
        /// The step.
        ordinal: u64,
        /// The stage.
        stage: usize,
    },
    /// Its update of the stage's weights.
    Update {
        /// The step.
        ordinal: u64,
        /// The stage.
        stage: usize,
    },
}

/// A step in flight.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    /// Stages whose forward has ended; those are the lowest ones.
    forwarded: usize,
    /// Stages whose backward is yet to end; those are the lowest ones.
    backward: usize,
    /// The lowest stage that learns this step; the number of stages where none does.
    lowest: usize,
    /// A forward or a backward of it runs.
    running: bool,
    /// Stages whose gradients wait for their turn, a bit each.
    waiting: u64,
    /// Stages that are being updated by it, a bit each.
    updating: u64,
}

/// Where every step in flight is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Steps that were admitted.
    admitted: u64,
    admitting: bool,
    /// Of each stage: every step before this one has updated it, or never will.
    done: Vec<u64>,
    /// Steps that have ended.
    ended: u64,
    /// Those in flight, oldest first.
    flights: VecDeque<Flight>,
}

/// The state machine of one plan.
#[derive(Clone, Debug)]
pub struct Schedule {
    plan: Arc<Plan>,
    /// [`Plan::learns_every`] of each stage.
    every: Vec<u64>,
    at: Position,
}

impl Schedule {
    /// Nothing in flight, at step `next` of `plan`.
    pub fn new(plan: Arc<Plan>, next: u64) -> Schedule {
        let stages = plan.stages.len();
        let every = (0..stages).map(|stage| plan.learns_every(stage)).collect();
        let at = Position { admitted: next, admitting: false, done: vec![next; stages], ended: next, flights: VecDeque::new() };
        Schedule { plan, every, at }
    }

    /// Steps that were admitted; the next one's ordinal.
    pub fn admitted(&self) -> u64 {
        self.at.admitted
    }

    /// Whether a step is being admitted.
    pub fn is_admitting(&self) -> bool {
        self.at.admitting
    }

    /// Steps that have ended: every stage is past them.
    pub fn ended(&self) -> u64 {
        self.at.ended
    }

    /// The first step that `stage` is not past.
    pub fn done(&self, stage: usize) -> u64 {
        self.at.done[stage]
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.at.ended == self.at.admitted && !self.at.admitting
    }

    /// Whether `stage` learns the step, as far as is known: a refusal may still come.
    pub fn learns(&self, ordinal: u64, stage: usize) -> bool {
        self.flight(ordinal).lowest <= stage
    }

    /// Whether any stage learned the step, and whether every one did; of a step that has not ended, as far as is known.
    pub fn learned(&self, ordinal: u64) -> (bool, bool) {
        let lowest = self.flight(ordinal).lowest;
        (lowest < self.every.len(), lowest == 0)
    }

    /// All tasks that may start now: updates first, because they free versions and bytes, then those of older steps before those
    /// of younger ones, and admission last. `offered` says that there is a step to admit.
    pub fn ready(&self, offered: bool) -> impl Iterator<Item = Task> + '_ {
        let room = !self.at.admitting && self.plan.admits(self.at.admitted, self.at.ended);
        let admit = (offered && room).then_some(Task::Admit);
        self.updates().chain(self.passes()).chain(admit)
    }

    fn updates(&self) -> impl Iterator<Item = Task> + '_ {
        self.at.done.iter().enumerate().filter_map(|(stage, &ordinal)| {
            let flight = self.at.flights.get((ordinal - self.at.ended) as usize)?;
            let bit = 1 << stage;
            (flight.waiting & bit != 0 && flight.updating & bit == 0).then_some(Task::Update { ordinal, stage })
        })
    }

    fn passes(&self) -> impl Iterator<Item = Task> + '_ {
        let stages = self.every.len();
        self.at.flights.iter().zip(self.at.ended..).filter(|(flight, _)| !flight.running).filter_map(move |(flight, ordinal)| {
            if flight.forwarded < stages {
                let stage = flight.forwarded;
                let done = self.at.done[stage];
                let may = done >= self.plan.read(ordinal, stage) && done + self.plan.lag(stage) > ordinal;
                return may.then_some(Task::Forward { ordinal, stage });
            }
            let stage = flight.backward.checked_sub(1)?;
            let in_turn = self.at.done[stage] + self.plan.workers > ordinal;
            (stage >= flight.lowest && in_turn).then_some(Task::Backward { ordinal, stage })
        })
    }

    /// Notes that a task runs; it must be ready.
    pub fn start(&mut self, task: Task) {
        match task {
            Task::Admit => self.at.admitting = true,
            Task::Forward { ordinal, .. } | Task::Backward { ordinal, .. } => self.flight_mut(ordinal).running = true,
            Task::Update { ordinal, stage } => self.flight_mut(ordinal).updating |= 1 << stage,
        }
    }

    /// Notes the end of a task. `refused`: the last stage's forward came to a loss that teaches nothing, or a backward to a
    /// gradient that does, so that neither its stage nor any below learns the step.
    pub fn finish(&mut self, task: Task, refused: bool) {
        let stages = self.every.len();
        match task {
            Task::Admit => {
                let (ordinal, since) = (self.at.admitted, self.at.admitted - self.plan.start);
                let lowest = self.every.iter().position(|every| since.is_multiple_of(*every)).unwrap_or(stages);
                assert!(self.at.admitting && lowest < stages, "the last stage learns every step");
                (self.at.admitting, self.at.admitted) = (false, ordinal + 1);
                let flight = Flight { forwarded: 0, backward: stages, lowest, running: false, waiting: 0, updating: 0 };
                self.at.flights.push_back(flight);
            }
            Task::Forward { ordinal, stage } => {
                let flight = self.flight_mut(ordinal);
                assert!(flight.running && flight.forwarded == stage, "a forward ends at the stage where it began");
                (flight.running, flight.forwarded) = (false, stage + 1);
                if refused {
                    assert_eq!(stage + 1, stages, "only the last stage knows the loss");
                    flight.lowest = stages;
                }
            }
            Task::Backward { ordinal, stage } => {
                let flight = self.flight_mut(ordinal);
                assert!(flight.running && flight.backward == stage + 1, "a backward ends at the stage where it began");
                (flight.running, flight.backward) = (false, stage);
                if refused {
                    flight.lowest = stage + 1;
                } else {
                    flight.waiting |= 1 << stage;
                }
            }
            Task::Update { ordinal, stage } => {
                assert_eq!(self.at.done[stage], ordinal, "updates come in the order of ordinals");
                let flight = self.flight_mut(ordinal);
                (flight.waiting, flight.updating) = (flight.waiting & !(1 << stage), flight.updating & !(1 << stage));
                self.at.done[stage] = ordinal + 1;
            }
        }
        self.settle();
    }

    /// Passes steps that a stage will not learn, and lets go of those that every stage is past.
    fn settle(&mut self) {
        let Position { done, ended, flights, .. } = &mut self.at;
        for (stage, done) in done.iter_mut().enumerate() {
            while let Some(flight) = flights.get((*done - *ended) as usize)
                && flight.lowest > stage
                && flight.forwarded > stage
            {
                *done += 1;
            }
        }
    }

    /// Takes out the steps that every stage is past, oldest first: their ordinals, and what [`Schedule::learned`] says of them.
    pub fn end(&mut self) -> Option<(u64, (bool, bool))> {
        let ordinal = self.at.ended;
        let past = self.at.done.iter().all(|&done| done > ordinal);
        let over = past && self.at.flights.front().is_some_and(|flight| flight.forwarded == self.every.len());
        if !over {
            return None;
        }
        let learned = self.learned(ordinal);
        self.at.flights.pop_front();
        self.at.ended += 1;
        Some((ordinal, learned))
    }

    fn flight(&self, ordinal: u64) -> &Flight {
        &self.at.flights[(ordinal - self.at.ended) as usize]
    }

    fn flight_mut(&mut self, ordinal: u64) -> &mut Flight {
        &mut self.at.flights[(ordinal - self.at.ended) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::plan::Reads;
    use super::super::plan::tests::{grouped, plan};
    use super::*;

    /// A schedule with the tasks that run, so that a test can hold each moment to the invariants.
    #[derive(Clone)]
    struct Explored {
        schedule: Schedule,
        running: BTreeSet<Task>,
    }

    impl Explored {
        fn key(&self) -> (Position, BTreeSet<Task>) {
            (self.schedule.at.clone(), self.running.clone())
        }

        /// Steps whose forward has begun at `stage` and whose update there has not ended.
        fn residents(&self, stage: usize) -> u64 {
            let Position { done, ended, flights, .. } = &self.schedule.at;
            let begun = |(flight, ordinal): &(&Flight, u64)| {
                flight.forwarded > stage || self.running.contains(&Task::Forward { ordinal: *ordinal, stage })
            };
            flights.iter().zip(*ended..).filter(begun).filter(|(_, ordinal)| *ordinal >= done[stage]).count() as u64
        }

        fn check(&self) {
            let plan = &self.schedule.plan;
            assert!(self.schedule.at.flights.len() as u64 <= plan.in_flight());
            for stage in 0..plan.stages.len() {
                assert!(self.residents(stage) <= plan.lag(stage), "stage {stage}: {:?}", self.key());
                let backwards = self.schedule.at.flights.iter().zip(self.schedule.at.ended..);
                let begun = |ordinal| self.running.contains(&Task::Backward { ordinal, stage });
                let ahead = backwards.filter(|(flight, ordinal)| {
                    *ordinal >= self.schedule.done(stage) && (flight.waiting >> stage & 1 == 1 || begun(*ordinal))
                });
                assert!(ahead.count() as u64 <= plan.workers, "stage {stage}: {:?}", self.key());
            }
        }
    }

    /// Goes through every reachable state of `steps` steps with at most `threads` tasks at once, where the task `refused` refuses.
    fn explore(plan: Plan, steps: u64, threads: usize, refused: Option<Task>) -> usize {
        let start = plan.start;
        let first = Explored { schedule: Schedule::new(Arc::new(plan), start), running: BTreeSet::new() };
        let mut seen = BTreeSet::from([first.key()]);
        let mut frontier = vec![first];
        let mut reads = BTreeMap::new();
        while let Some(state) = frontier.pop() {
            state.check();
            let offered = state.schedule.admitted() < start + steps;
            let ready: Vec<Task> = state.schedule.ready(offered).collect();
            if state.running.is_empty() && ready.is_empty() {
                assert!(state.schedule.is_idle() && !offered, "stands still: {:?}", state.key());
            }
            let mut next = Vec::new();
            if state.running.len() < threads {
                for &task in &ready {
                    let mut after = state.clone();
                    after.schedule.start(task);
                    after.running.insert(task);
                    if let Task::Forward { ordinal, stage } = task {
                        // The version that it reads is there, and it is the same in every order.
                        let read = after.schedule.plan.read(ordinal, stage);
                        assert!(after.schedule.done(stage) >= read);
                        assert_eq!(*reads.entry((ordinal, stage)).or_insert(read), read);
                    }
                    next.push(after);
                }
            }
            for &task in &state.running {
                let mut after = state.clone();
                after.running.remove(&task);
                after.schedule.finish(task, Some(task) == refused);
                while after.schedule.end().is_some() {}
                next.push(after);
            }
            for after in next {
                if seen.insert(after.key()) {
                    frontier.push(after);
                }
            }
        }
        seen.len()
    }

    #[test]
    fn no_order_of_tasks_stands_still_or_exceeds_its_bounds() {
        let mut states = 0;
        for (stages, workers, steps, threads) in
            [(1, 1, 4, 2), (1, 2, 5, 3), (1, 3, 5, 3), (2, 1, 5, 3), (2, 2, 5, 2), (3, 1, 5, 2), (4, 1, 4, 2), (3, 2, 4, 2)]
        {
            let loss = Task::Forward { ordinal: 1, stage: stages - 1 };
            let gradient = Task::Backward { ordinal: 1, stage: stages / 2 };
            for refused in [None, Some(loss), Some(gradient)] {
                states += explore(plan(0, stages, workers), steps, threads, refused);
            }
        }
        for strides in [vec![2, 1], vec![3, 2, 1], vec![4, 2, 1]] {
            let mut omitting = plan(3, strides.len(), 1);
            for (stage, stride) in omitting.stages.iter_mut().zip(strides) {
                stage.stride = stride;
            }
            let last = omitting.stages.len() - 1;
            states += explore(omitting, 6, 2, Some(Task::Forward { ordinal: 5, stage: last }));
        }
        for reads in [Reads::Dapple, Reads::TwoBuffered] {
            for (stages, group, steps, threads) in
                [(1, 3, 5, 3), (2, 2, 6, 3), (2, 3, 7, 2), (3, 3, 6, 2), (3, 2, 5, 3), (3, 5, 6, 2)]
            {
                let loss = Task::Forward { ordinal: 4, stage: stages - 1 };
                let gradient = Task::Backward { ordinal: 4, stage: stages / 2 };
                for refused in [None, Some(loss), Some(gradient)] {
                    states += explore(grouped(3, stages, group, reads), steps, threads, refused);
                }
            }
        }
        assert!(states > 10_000, "{states} states");
    }

    #[test]
    fn a_step_runs_alone_where_nothing_else_may() {
        let mut schedule = Schedule::new(Arc::new(plan(0, 1, 1)), 0);
        let mut order = Vec::new();
        while order.len() < 8 {
            let task = schedule.ready(true).next().unwrap();
            order.push(task);
            schedule.start(task);
            schedule.finish(task, false);
            while schedule.end().is_some() {}
        }
        let of = |ordinal| {
            let stage = 0;
            [Task::Admit, Task::Forward { ordinal, stage }, Task::Backward { ordinal, stage }, Task::Update { ordinal, stage }]
        };
        assert_eq!(order, [of(0), of(1)].concat());
    }
}
