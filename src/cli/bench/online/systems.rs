//! What is compared: how each system learns a stream that does not wait for it, as a plan of the same engine and a policy of what is
//! dropped. All share versions between whoever reads them, and their bytes are counted alike.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::policies::Policy;
use crate::cli::Failure;
use crate::ferret::plan::{Plan, Publication, Reads, StagePlan};
use crate::ferret::planner::Planner;
use crate::ferret::profile::Profile;
use crate::ferret::rate::Objective;
use crate::fold::BelowMinimum;

/// Tasks at once that Ferret's plans are made for, where there are as many units as a plan can use.
pub(super) const UNITS_OF_PLANS: usize = 16;

/// One of the systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// One step after the other, and the clock stands still meanwhile.
    Oracle,
    /// One step after the other, the newest each time.
    OneSkip,
    /// Some of the newest rows by chance.
    RandomN,
    /// The newest rows.
    LastN,
    /// A coreset of the newest rows.
    Camel,
    /// Synchronous 1F1B: groups of as many steps as there are stages share an update, and the pipeline is flushed in between.
    Dapple,
    /// Stashed weights: Ferret's rule with one worker.
    PipeDream,
    /// The same groups as DAPPLE's, one group late.
    TwoBuffered,
    /// Ferret's smallest plan.
    FerretMinus,
    /// Ferret's best plan within the bytes of the two-buffered pipeline.
    Ferret,
    /// Ferret's best plan of all.
    FerretPlus,
    /// Ferret's best plan within so many bytes, snapshots not counted.
    FerretWithin(u64),
}

impl System {
    /// All that need no further word.
    pub(super) const ALL: [System; 11] = [
        System::Oracle,
        System::OneSkip,
        System::RandomN,
        System::LastN,
        System::Camel,
        System::Dapple,
        System::PipeDream,
        System::TwoBuffered,
        System::FerretMinus,
        System::Ferret,
        System::FerretPlus,
    ];

    /// Whether it chooses rows from several steps that wait, and learns several steps' rows at once.
    pub(super) fn selects(self) -> bool {
        matches!(self, System::RandomN | System::LastN | System::Camel)
    }

    /// What it takes of what waits, where it takes `rows` at a time.
    pub(super) fn policy(self, rows: usize) -> Policy {
        match self {
            System::RandomN => Policy::Random(rows),
            System::LastN => Policy::Last(rows),
            System::Camel => Policy::Coreset(rows),
            _ => Policy::Newest,
        }
    }

    /// Its plan, where a step arrives every `interval` nanoseconds.
    pub(super) fn plan(self, planner: &Planner, profile: &Profile, interval: f64) -> Result<Plan, Failure> {
        let within = |bytes: u64| -> Result<Plan, BelowMinimum> {
            let prospects = planner.prospects(profile.clone());
            let point = prospects.frontier.best(bytes, Some(interval));
            let point =
                point.ok_or_else(|| BelowMinimum { budget_bytes: bytes, minimum_bytes: planner.minimum(0).bytes.total() })?;
            Ok(planner.plan(0, point.stages.clone(), point.workers, point.publication))
        };
        let snapshot = planner.footprint().weights();
        let plan = match self {
            System::Oracle | System::OneSkip | System::RandomN | System::LastN | System::Camel => {
                planner.sequential(0, Publication::AtDrain)
            }
            System::Dapple => grouped(planner, profile, Reads::Dapple),
            System::PipeDream => planner.plan(0, balanced(planner, profile), 1, Publication::AtDrain),
            System::TwoBuffered => grouped(planner, profile, Reads::TwoBuffered),
            System::FerretMinus => planner.minimum(0),
            System::Ferret => within(grouped(planner, profile, Reads::TwoBuffered).bytes.total())?,
            System::FerretPlus => within(u64::MAX)?,
            System::FerretWithin(bytes) => within(bytes.saturating_add(snapshot))?,
        };
        plan.check(&planner.network)?;
        Ok(plan)
    }
}

/// Readers take what is there: publications stop nobody, so that Ferret's plans are compared by learning alone.
pub(super) fn objective(units: usize) -> Objective {
    Objective { publish_interval: Duration::from_secs(3600), in_flight_max: Some(units as u64), ..Objective::default() }
}

/// What a plan holds; readers' copies are not the pipeline's.
pub(super) fn bytes_of(plan: &Plan) -> u64 {
    plan.bytes.total() - plan.bytes.snapshots
}

/// A pipeline that goes by groups of as many steps as it has stages.
fn grouped(planner: &Planner, profile: &Profile, reads: Reads) -> Plan {
    let mut stages = balanced(planner, profile);
    let group = stages.len() as u64;
    stages.iter_mut().for_each(|stage| stage.accumulation = group);
    planner.reading(planner.plan(0, stages, 1, Publication::AtDrain), reads)
}

/// The stages of the pipelines that are no planner's: as few as keep the slowest at the slowest layer's time.
fn balanced(planner: &Planner, profile: &Profile) -> Vec<StagePlan> {
    let times: Vec<u64> = profile.layers.iter().map(|layer| layer.forward + layer.backward + layer.update).collect();
    let slowest = times.iter().copied().max().unwrap_or(0);
    let learning = planner.network.first_learning_layer();
    let (mut stages, mut first, mut sum) = (Vec::new(), 0, 0);
    for (layer, &time) in times.iter().enumerate() {
        // A stage must have something to learn.
        if sum + time > slowest && layer > learning {
            stages.push(StagePlan::whole(first..layer));
            (first, sum) = (layer, 0);
        }
        sum += time;
    }
    stages.push(StagePlan::whole(first..times.len()));
    stages
}

impl fmt::Display for System {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            System::Oracle => "oracle",
            System::OneSkip => "1-skip",
            System::RandomN => "random-n",
            System::LastN => "last-n",
            System::Camel => "camel",
            System::Dapple => "dapple",
            System::PipeDream => "pipedream",
            System::TwoBuffered => "2bw",
            System::FerretMinus => "ferret-minus",
            System::Ferret => "ferret",
            System::FerretPlus => "ferret-plus",
            System::FerretWithin(bytes) => return write!(to, "ferret@{bytes}"),
        };
        to.pad(name)
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> Result<System, String> {
        if let Some(bytes) = text.strip_prefix("ferret@") {
            let bytes: bytesize::ByteSize = bytes.parse()?;
            return Ok(System::FerretWithin(bytes.as_u64()));
        }
        let known = System::ALL.into_iter().find(|system| system.to_string() == text);
        known.ok_or_else(|| {
            format!("no system `{text}`; there are {}, and ferret@BYTES", System::ALL.map(|system| system.to_string()).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ferret::profile::LayerTimes;
    use crate::ferret::trainer::Recipe;
    use crate::network::{Architecture, Loss, Network};

    fn planner() -> (Planner, Profile) {
        let architecture = Architecture::ConvNet { standardise: Some(false) };
        let network = Network::build(&architecture, &[3, 32, 32], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
        let recipe = Recipe { may_omit: true, objective: objective(8), ..Recipe::new(Arc::new(network), 16, 8) };
        let layers = [40, 4, 4, 60, 3, 3, 1, 2].map(|time| LayerTimes {
            forward: time * 1000,
            backward: time * 2000,
            update: time * 10,
            copy: time,
        });
        let profile =
            Profile { step_rows: 16, threads: 8, slowdown_thousandths: 1000, layers: layers.to_vec(), ..Profile::default() };
        (recipe.planner(), profile)
    }

    #[test]
    fn systems_are_named_as_they_are_read() {
        for system in System::ALL.into_iter().chain([System::FerretWithin(4096)]) {
            assert_eq!(system.to_string().parse::<System>(), Ok(system));
        }
        assert_eq!("ferret@4KiB".parse::<System>(), Ok(System::FerretWithin(4096)));
        assert!("ferrets".parse::<System>().is_err());
    }

    #[test]
    fn pipelines_share_one_cut_and_ferret_keeps_to_their_bytes() {
        let (planner, profile) = planner();
        let plan = |system: System| system.plan(&planner, &profile, 50_000.0).unwrap();
        let [flushed, stashed, two, minus, within, most] =
            [System::Dapple, System::PipeDream, System::TwoBuffered, System::FerretMinus, System::Ferret, System::FerretPlus]
                .map(plan);
        assert_eq!(flushed.stages.iter().map(|stage| stage.layers.clone()).collect::<Vec<_>>(), [0..3, 3..4, 4..8]);
        assert!(flushed.stages.iter().all(|stage| stage.accumulation == 3) && stashed.stages.len() == 3);
        assert!(bytes_of(&flushed) < bytes_of(&two));
        assert!(bytes_of(&within) <= bytes_of(&two), "{} in {}", bytes_of(&within), bytes_of(&two));
        assert!(bytes_of(&minus) <= bytes_of(&within) && bytes_of(&within) <= bytes_of(&most));
        let bytes = bytes_of(&within);
        assert!(bytes_of(&plan(System::FerretWithin(bytes))) <= bytes);
        assert!(System::FerretWithin(1).plan(&planner, &profile, 50_000.0).is_err());
    }
}
