//! Who runs the tasks. Whoever it is and in whatever order, the weights are the same.
//!
//! [`Executor::Threads`] is the real one: *runners* on the compute threads take ready tasks until there are none. A runner holds the
//! lock only between tasks. The thread that ends a backward goes on with the update that this made ready, because updates come
//! first, and a runner gives its thread to other models in between.
//!
//! [`Executor::Seeded`] runs everything on the caller's thread in an order drawn from a seed, with several tasks taken at once as
//! threads would have them, and [`Executor::Filling`] lets the pipeline fill as far as it may, so that it holds the most bytes
//! that a plan reckons with. Tests hold the three to the same bits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::bounded;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::pipeline::Pipeline;
use super::pool::Pool;
use super::schedule::Task;
use super::work::{Done, Work};
use crate::fold::{FoldError, Outcome, Step};
use crate::network::random;

/// Tasks that the seeded order has taken and not run, at most.
const SEEDED_TAKEN_MAX: usize = 3;

/// How the tasks of a pipeline are run.
#[derive(Clone, Debug)]
pub enum Executor {
    /// On the process's compute threads.
    Threads(Pool),
    /// On the caller's thread, in an order that is drawn from this seed.
    Seeded(u64),
    /// On the caller's thread, the youngest step's forwards first.
    Filling,
}

/// A pipeline with whoever runs it.
pub struct Engine {
    runs: Runs,
    /// The pipeline while nothing of it runs; otherwise the runners have it.
    resting: Option<Box<Pipeline>>,
}

enum Runs {
    Threads(Arc<Shared>),
    Seeded(Box<ChaCha8Rng>),
    Filling,
}

/// What the runners of one pipeline share.
struct Shared {
    pool: Pool,
    running: Mutex<Running>,
    /// What is awaited is there.
    there: Condvar,
}

#[derive(Default)]
struct Running {
    pipeline: Option<Box<Pipeline>>,
    runners: usize,
    /// What the driver sleeps for, if it does: waking it costs as much as a small task, so it is not woken for less.
    awaited: Option<Awaited>,
}

/// What a driver may wait for.
#[derive(Clone, Copy)]
enum Awaited {
    /// The next step can be offered.
    Room,
    /// Nothing is in flight.
    Idle,
}

impl Awaited {
    fn is_there(self, pipeline: &Pipeline, runners: usize) -> bool {
        let there = match self {
            Awaited::Room => pipeline.has_room(),
            Awaited::Idle => pipeline.is_idle(),
        };
        // Of a pipeline that failed nothing may come back later.
        there || (pipeline.has_failed() && runners == 0)
    }
}

impl Engine {
    /// A pipeline at rest.
    pub fn new(pipeline: Pipeline, executor: Executor) -> Engine {
        let runs = match executor {
            Executor::Threads(pool) => Runs::Threads(Arc::new(Shared { pool, running: Mutex::default(), there: Condvar::new() })),
            Executor::Seeded(seed) => Runs::Seeded(Box::new(random::stream(seed, 0, "order of tasks"))),
            Executor::Filling => Runs::Filling,
        };
        Engine { runs, resting: Some(Box::new(pipeline)) }
    }

    /// The pipeline, if nothing of it runs.
    pub fn at_rest(&self) -> Result<&Pipeline, FoldError> {
        self.resting.as_deref().ok_or_else(in_flight)
    }

    /// See [`Engine::at_rest`].
    pub fn at_rest_mut(&mut self) -> Result<&mut Pipeline, FoldError> {
        self.resting.as_deref_mut().ok_or_else(in_flight)
    }

    /// Does something long with the pipeline at rest where its tasks run.
    pub fn work(&mut self, work: impl FnOnce(&mut Pipeline) -> Result<(), FoldError> + Send + 'static) -> Result<(), FoldError> {
        let Runs::Threads(shared) = &self.runs else { return work(self.at_rest_mut()?) };
        let mut pipeline = self.resting.take().ok_or_else(in_flight)?;
        let (tell, told) = bounded(1);
        shared.pool.spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| work(&mut pipeline)))
                .unwrap_or_else(|payload| Err(FoldError::of_panic(payload.as_ref())));
            drop(tell.send((pipeline, ended)));
        });
        let (pipeline, ended) = told.recv().map_err(|_| FoldError::Panicked("a consolidation".into()))?;
        self.resting = Some(pipeline);
        ended
    }

    /// A look at the pipeline between tasks.
    pub fn look<T>(&mut self, look: impl FnOnce(&mut Pipeline) -> T) -> Result<T, FoldError> {
        if let Some(pipeline) = &mut self.resting {
            return Ok(look(pipeline));
        }
        match &self.runs {
            Runs::Threads(shared) => shared.running.lock().pipeline.as_deref_mut().map(look).ok_or_else(in_flight),
            Runs::Seeded(_) | Runs::Filling => Err(in_flight()),
        }
    }

    /// Gives it the next step, waiting until there is room for it, and takes the ends of steps.
    pub fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        match (&mut self.runs, &mut self.resting) {
            (Runs::Threads(shared), resting) => {
                let mut running = shared.running.lock();
                if let Some(pipeline) = resting.take() {
                    running.pipeline = Some(pipeline);
                }
                shared.wait(&mut running, Awaited::Room);
                let pipeline = running.pipeline.as_deref_mut().ok_or_else(in_flight)?;
                pipeline.take_outcomes(outcomes);
                pipeline.check()?;
                pipeline.offer(step);
                shared.pump(&mut running);
                Ok(())
            }
            (Runs::Seeded(generator), Some(pipeline)) => {
                pipeline.check()?;
                pipeline.offer(step);
                run_seeded(pipeline, generator, Pipeline::has_room);
                pipeline.take_outcomes(outcomes);
                pipeline.check()
            }
            (Runs::Filling, Some(pipeline)) => {
                pipeline.check()?;
                pipeline.offer(step);
                run_filling(pipeline, Pipeline::has_room);
                pipeline.take_outcomes(outcomes);
                pipeline.check()
            }
            _ => Err(in_flight()),
        }
    }

    /// Waits until nothing is in flight, and takes the ends of steps.
    pub fn drain(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        if let (Runs::Threads(shared), None) = (&self.runs, &self.resting) {
            let mut running = shared.running.lock();
            shared.wait(&mut running, Awaited::Idle);
            self.resting = running.pipeline.take();
        }
        let pipeline = self.resting.as_deref_mut().ok_or_else(in_flight)?;
        match &mut self.runs {
            Runs::Threads(_) => {}
            Runs::Seeded(generator) => run_seeded(pipeline, generator, Pipeline::is_idle),
            Runs::Filling => run_filling(pipeline, Pipeline::is_idle),
        }
        pipeline.take_outcomes(outcomes);
        pipeline.check()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Runs::Threads(shared) = &self.runs {
            // Runners that come back find nothing to do.
            drop(shared.running.lock().pipeline.take());
        }
    }
}

impl Shared {
    /// Waits for something, or until the pipeline has failed.
    fn wait(&self, running: &mut MutexGuard<'_, Running>, awaited: Awaited) {
        while running.pipeline.as_deref().is_some_and(|pipeline| !awaited.is_there(pipeline, running.runners)) {
            running.awaited = Some(awaited);
            self.there.wait(running);
        }
        running.awaited = None;
    }

    /// Starts as many runners as there are tasks for, within the plan's number.
    fn pump(self: &Arc<Self>, running: &mut Running) {
        let Some(pipeline) = running.pipeline.as_deref() else { return };
        let threads = pipeline.plan().threads.min(self.pool.threads());
        let tasks = pipeline.ready().take(threads).count();
        for _ in 0..tasks.min(threads.saturating_sub(running.runners)) {
            running.runners += 1;
            self.spawn();
        }
    }

    fn spawn(self: &Arc<Self>) {
        let shared = self.clone();
        self.pool.spawn(move || {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| shared.run())) {
                // Not in a task, whose panics are its error, but in the bookkeeping between two: the state is lost all the same.
                let mut running = shared.running.lock();
                if let Some(pipeline) = running.pipeline.as_deref_mut() {
                    pipeline.fail(FoldError::of_panic(payload.as_ref()));
                }
                running.runners -= 1;
                shared.tell(&mut running);
            }
        });
    }

    /// Takes ready tasks until there are none.
    fn run(self: &Arc<Self>) {
        let mut running = self.running.lock();
        while let Some(work) = running.pipeline.as_deref_mut().and_then(Pipeline::take_next) {
            // This runner is counted, so what is ready beside its task is for others.
            self.pump(&mut running);
            let done = MutexGuard::unlocked(&mut running, || perform(work));
            // It is gone where the model was deleted meanwhile.
            let Some(pipeline) = running.pipeline.as_deref_mut() else { break };
            complete(pipeline, done);
            let update_waits = matches!(pipeline.ready().next(), Some(Task::Update { .. }));
            self.tell(&mut running);
            if !update_waits && self.pool.is_wanted() {
                // Another model waits for a thread: this one goes to the end of the line.
                drop(running);
                self.spawn();
                return;
            }
        }
        running.runners -= 1;
        self.tell(&mut running);
    }

    /// Wakes the driver if what it sleeps for is there.
    fn tell(&self, running: &mut Running) {
        let Running { pipeline: Some(pipeline), awaited, runners } = running else { return };
        if awaited.take_if(|awaited| awaited.is_there(pipeline, *runners)).is_some() {
            self.there.notify_one();
        }
    }
}

/// Runs a task; a panic in it is its error.
fn perform(work: Work) -> Result<Done, FoldError> {
    catch_unwind(AssertUnwindSafe(|| work.run())).map_err(|payload| FoldError::of_panic(payload.as_ref()))
}

fn complete(pipeline: &mut Pipeline, done: Result<Done, FoldError>) {
    match done {
        Ok(done) => pipeline.complete(done),
        Err(error) => pipeline.fail(error),
    }
}

fn draw(generator: &mut ChaCha8Rng, below: usize) -> usize {
    (generator.next_u64() % below.max(1) as u64) as usize
}

/// Takes and runs tasks in a drawn order until `there`, and until no task is left that was taken.
fn run_seeded(pipeline: &mut Pipeline, generator: &mut ChaCha8Rng, there: impl Fn(&Pipeline) -> bool) {
    let mut taken: Vec<Work> = Vec::new();
    while !pipeline.has_failed() && (!there(pipeline) || !taken.is_empty()) {
        let ready: Vec<_> = pipeline.ready().collect();
        let takes = !ready.is_empty() && taken.len() < SEEDED_TAKEN_MAX && !there(pipeline);
        if takes && (taken.is_empty() || draw(generator, 2) == 0) {
            match pipeline.take(ready[draw(generator, ready.len())]) {
                Ok(work) => taken.push(work),
                Err(error) => pipeline.fail(error),
            }
        } else if taken.is_empty() {
            pipeline.fail(FoldError::Contract("the pipeline stands still".into()));
        } else {
            let work = taken.swap_remove(draw(generator, taken.len()));
            complete(pipeline, perform(work));
        }
    }
}

/// Runs tasks until `there`: updates that are due, then whatever goes up, and what goes down last and from the lowest stage on, so
/// that every backward runs while all other places are taken.
fn run_filling(pipeline: &mut Pipeline, there: impl Fn(&Pipeline) -> bool) {
    while !pipeline.has_failed() && !there(pipeline) {
        let rank = |task: &Task| match *task {
            Task::Update { .. } => (0, 0),
            Task::Forward { stage, .. } => (1, stage),
            Task::Admit => (2, 0),
            Task::Backward { stage, .. } => (3, stage),
        };
        let Some(task) = pipeline.ready().min_by_key(rank) else {
            pipeline.fail(FoldError::Contract("the pipeline stands still".into()));
            return;
        };
        match pipeline.take(task) {
            Ok(work) => complete(pipeline, perform(work)),
            Err(error) => pipeline.fail(error),
        }
    }
}

fn in_flight() -> FoldError {
    FoldError::Contract("steps are in flight: drain first".into())
}
