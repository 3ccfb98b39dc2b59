//! What tasks take on the virtual clock: a committed profile of the network, summed up by the stages of a plan.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::disk::{Disk, FileSystem};
use crate::ferret::plan::Plan;
use crate::ferret::pool::Pool;
use crate::ferret::profile::{LayerTimes, Profile};
use crate::ferret::schedule::Task;
use crate::ferret::trainer::Recipe;
use crate::learner::Learner;
use crate::network::Network;

/// How often a network is measured.
const ROUNDS: usize = 14;

/// What the tasks of a plan take, in nanoseconds of the virtual clock.
#[derive(Clone, Debug)]
pub(super) struct Times {
    admission: u64,
    /// Of each stage: forward, backward, update.
    stages: Vec<[u64; 3]>,
}

impl Times {
    /// Times by hand.
    #[cfg(test)]
    pub(super) fn by_hand(admission: u64, stages: Vec<[u64; 3]>) -> Times {
        Times { admission, stages }
    }

    /// No time at all: the clock stands still while all is learned.
    pub(super) fn none(plan: &Plan) -> Times {
        Times { admission: 0, stages: vec![[0; 3]; plan.stages.len()] }
    }

    /// What the profile says of a plan's stages. Every task is handed over once, as it would be between threads; an update that only
    /// adds to a sum counts as a whole one.
    pub(super) fn new(plan: &Plan, profile: &Profile) -> Times {
        let handover = profile.handover;
        let of_stage = |(number, stage): (usize, &crate::ferret::plan::StagePlan)| {
            let layers = &profile.layers[stage.layers.clone()];
            let forward: u64 = layers.iter().map(|layer| layer.forward).sum();
            let backward: u64 = layers.iter().map(|layer| layer.backward).sum();
            let update: u64 = layers.iter().map(|layer| layer.update).sum();
            let copy: u64 = if plan.versions(number) > 1 { layers.iter().map(|layer| layer.copy).sum() } else { 0 };
            let again = if stage.recompute.is_empty() { 0 } else { forward };
            let loss = if number + 1 == plan.stages.len() { profile.loss } else { 0 };
            [forward + loss + handover, again + backward + handover, update + copy + handover]
        };
        let stages = plan.stages.iter().enumerate().map(of_stage).collect();
        Times { admission: profile.admission + handover, stages }
    }

    /// The same with what a learner adds beside replayed rows, which `profile` has: LwF's teacher goes forward at admission; MIR goes
    /// forward and backward with the step's own rows, and twice forward with the candidates, before it goes forward. Times are taken
    /// in proportion to rows; consolidations take none.
    pub(super) fn learning(mut self, learner: &Learner, profile: &Profile) -> Times {
        let sum = |of: fn(&LayerTimes) -> u64| profile.layers.iter().map(of).sum::<u64>();
        let (forward, backward) = (sum(|layer| layer.forward), sum(|layer| layer.backward));
        let rows = profile.step_rows.max(1) as u64;
        match *learner {
            Learner::Lwf { .. } => self.admission += forward,
            Learner::Mir { replay_rows, candidate_rows, .. } => {
                let own = rows.saturating_sub(replay_rows as u64);
                let more = ((forward + backward) * own + 2 * forward * candidate_rows as u64) / rows;
                self.stages[0][0] += more;
            }
            Learner::Vanilla {} | Learner::Er { .. } | Learner::Mas { .. } => {}
        }
        self
    }

    /// What a task takes.
    pub(super) fn of(&self, task: Task) -> u64 {
        match task {
            Task::Admit => self.admission,
            Task::Forward { stage, .. } => self.stages[stage][0],
            Task::Backward { stage, .. } => self.stages[stage][1],
            Task::Update { stage, .. } => self.stages[stage][2],
        }
    }
}

/// Where the profile of a network is, by its name, its input and its outputs, for steps of so many rows.
pub(super) fn path(folder: &Path, name: &str, network: &Network, step_rows: usize) -> PathBuf {
    let shape: Vec<String> = network.input_shape.iter().map(ToString::to_string).collect();
    folder.join(format!("{name}-{}-{}-{step_rows}.json", shape.join("x"), network.outputs))
}

/// Reads a profile and holds it to the network.
pub(super) fn read(folder: &Path, name: &str, network: &Network, step_rows: usize) -> Result<Profile, Failure> {
    let path = path(folder, name, network, step_rows);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("{}: {error}; `--measure` writes the profiles that are missing", path.display()))?;
    let profile: Profile = serde_json::from_str(&text)?;
    if profile.layers.len() != network.layers.len() || profile.step_rows != step_rows {
        return Err(format!("{} is the profile of another network", path.display()).into());
    }
    Ok(profile)
}

/// Measures a network on one thread and writes its profile, unless it is there.
pub(super) fn measure(folder: &Path, name: &str, network: &Arc<Network>, step_rows: usize) -> Result<(), Failure> {
    let path = path(folder, name, network, step_rows);
    if path.exists() {
        return Ok(());
    }
    let planner = Recipe::new(network.clone(), step_rows, 1).planner();
    let pool = Pool::new(1, 0)?;
    let mut profile = planner.measure(&pool, u64::MAX)?;
    for _ in 1..ROUNDS {
        profile = least(profile, &planner.measure(&pool, u64::MAX)?);
    }
    std::fs::create_dir_all(folder)?;
    let text = serde_json::to_string_pretty(&profile)? + "\n";
    FileSystem.write_atomic(&std::path::absolute(&path)?, &mut |out| out.write_all(text.as_bytes()))?;
    println!("{}: {:.3} ms a step", path.display(), profile.step() as f64 / 1e6);
    Ok(())
}

/// The least of each figure: whatever else needs the processors only makes it longer.
fn least(profile: Profile, other: &Profile) -> Profile {
    let of_layer = |(layer, other): (&LayerTimes, &LayerTimes)| LayerTimes {
        forward: layer.forward.min(other.forward),
        backward: layer.backward.min(other.backward),
        update: layer.update.min(other.update),
        copy: layer.copy.min(other.copy),
    };
    Profile {
        admission: profile.admission.min(other.admission),
        loss: profile.loss.min(other.loss),
        handover: profile.handover.min(other.handover),
        layers: profile.layers.iter().zip(&other.layers).map(of_layer).collect(),
        ..profile
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ferret::plan::StagePlan;

    #[test]
    fn the_least_of_each_figure_is_believed() {
        let layer = |forward, backward| LayerTimes { forward, backward, update: 5, copy: 3 };
        let one = Profile { admission: 7, loss: 4, layers: vec![layer(10, 90), layer(20, 40)], ..Profile::default() };
        let other = Profile { admission: 9, loss: 2, layers: vec![layer(80, 20), layer(30, 30)], ..Profile::default() };
        let expected = Profile { admission: 7, loss: 2, layers: vec![layer(10, 20), layer(20, 30)], ..Profile::default() };
        assert_eq!(least(one, &other), expected);
    }

    #[test]
    fn stages_are_sums_of_layers_with_what_the_plan_adds() {
        let layer = |forward| LayerTimes { forward, backward: 2 * forward, update: 5, copy: 3 };
        let layers = vec![layer(10), layer(20), layer(40)];
        let profile = Profile { admission: 7, loss: 4, handover: 1, layers, ..Profile::default() };
        let first = StagePlan { recompute: vec![0], ..StagePlan::whole(0..2) };
        let plan = Plan::bare(0, vec![first, StagePlan::whole(2..3)], 1, 1);
        let times = Times::new(&plan, &profile);
        let of = |stage| {
            let ordinal = 0;
            let tasks = [Task::Forward { ordinal, stage }, Task::Backward { ordinal, stage }, Task::Update { ordinal, stage }];
            tasks.map(|task| times.of(task))
        };
        assert_eq!((times.of(Task::Admit), of(0), of(1)), (8, [31, 91, 17], [45, 81, 6]));
    }
}
