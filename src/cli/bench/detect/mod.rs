//! `mustela bench detect`: which detectors tell attacked pictures, at which rate of false alarms, and what that costs.
//!
//! For each network that is attacked: pictures (of a folder none that looks like another) are divided by source into those that detectors learn from (40 %), those that their
//! thresholds come from (20 %) and those that are reported (40 %). The detectors learn one attack, PGD towards random targets at ε = 8/255;
//! all others are new to them. Which blocks are read is chosen by pictures of the first part alone; the default detector is the service's.
//! An adversarial row is a picture that was written as PNG, read again, and then was not what the network had said before (or was the
//! target, where there is one); pictures where the attack fails are counted and left out. Every benign picture goes the same way
//! through the same size and PNG.
//!
//! Nothing is drawn without a seed: the figures are the same on one thread or on several, times aside.

mod attack;
mod baselines;
mod detectors;
mod experiment;
mod findings;
mod live;
mod overhead;
mod pictures;
mod report;
#[cfg(test)]
mod tests;
mod victim;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use parking_lot::Mutex;

use self::experiment::{Scale, Setting};
use self::findings::Findings;
use self::pictures::Source;
use self::victim::{Frozen, Victim};
use crate::cli::{Failure, complain};
use crate::encoder::{Encoder, Weights};
use crate::ferret::pool::Pool;

/// The encoders that are attacked, with how many classes they tell.
const ENCODERS: [&str; 2] = ["efficientnet-lite0", "squeezenet1.1"];
const CLASSES: usize = 1000;
/// Draws pictures, targets, noise and starts.
const SEED: u64 = 0;

/// Flags of `bench detect`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Fewer pictures and attacks on the encoders, and no mutants there
    #[arg(long)]
    quick: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// The folder with the encoders' weights, NAME.safetensors
    #[arg(long)]
    models: PathBuf,
    /// Folders of pictures: PNG, JPEG, WebP
    #[arg(long, required = true, num_args = 1..)]
    pictures: Vec<PathBuf>,
    /// CIFAR-10 as records of split, label, length and JPEG: adds a live network, and pictures of another kind for the encoders
    #[arg(long)]
    cifar: Option<PathBuf>,
    /// Only the networks whose names hold this
    #[arg(long, default_value = "")]
    network: String,
    /// Blocks that detectors read; where it is left out, those that did best on pictures that are not reported
    #[arg(long, value_delimiter = ',')]
    blocks: Vec<String>,
    /// Keeps the adversarial pictures here, as PNG
    #[arg(long)]
    keep: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (scale, pool) = (if arguments.quick { experiment::QUICK } else { experiment::FULL }, Pool::new(0, 0)?);
    let drawn = pictures::read(&arguments.pictures, scale.pictures, SEED)?;
    let records = match &arguments.cifar {
        Some(path) => pictures::records(path, live::ROWS, experiment::LIVE.pictures)?,
        None => {
            complain(&"without --cifar there is no live network, and there are no pictures of another kind");
            Vec::new()
        }
    };
    let (of_test, of_training): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.is_test);
    let small: Vec<_> = of_test.into_iter().map(|record| record.picture).collect();
    let mut all = Vec::new();
    let examine = |victim: &dyn Victim, own: &[_], others: &[_], scale: &Scale| -> Result<Findings, Failure> {
        let sources = pictures::sources(own, victim.side(), 0)?;
        let elsewhere: Vec<Source> =
            pictures::sources(&others[..others.len().min(scale.controls)], victim.side(), own.len() as u64)?;
        experiment::examine(&Setting {
            victim,
            sources: &sources,
            elsewhere: &elsewhere,
            scale,
            blocks: places(victim, &arguments.blocks)?,
            keep: arguments.keep.as_deref(),
            pool: &pool,
        })
    };
    let mut add = |findings: Findings| {
        if !arguments.json {
            report::print(&findings);
        }
        all.push(findings);
    };
    for name in ENCODERS.iter().filter(|name| name.contains(&arguments.network)) {
        let path = arguments.models.join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let encoder = Encoder::load(name, &Weights::from_safetensors(&bytes)?).ok_or("the encoder is not known")??;
        add(examine(&Frozen { encoder, classes: CLASSES }, &drawn, &small, &scale)?);
    }
    if !of_training.is_empty() && live::NAME.contains(&arguments.network) {
        let (victim, accuracy) = live::train(&of_training, &pool)?;
        complain(&format!("{} was right about {:.1} % of its last rows before it learned them", live::NAME, 100.0 * accuracy));
        add(examine(&victim, &small, &drawn, &experiment::LIVE)?);
    }
    if arguments.json {
        println!("{}", report::document(&all));
    }
    Ok(())
}

/// The places of blocks by their names.
fn places(victim: &dyn Victim, names: &[String]) -> Result<Vec<usize>, Failure> {
    let known = victim.blocks();
    let place = |name: &String| {
        let known_names = || known.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let place = known.iter().position(|(known, _)| known == name);
        place.ok_or_else(|| format!("{} has no block `{name}`; it has {}", victim.name(), known_names()).into())
    };
    names.iter().map(place).collect()
}

/// What `work` makes of each item, in their order, on as many threads as there are cores.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R, Failure> + Sync) -> Result<Vec<R>, Failure> {
    let (next, threads) = (AtomicUsize::new(0), std::thread::available_parallelism()?.get());
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let run = || -> Result<(), Failure> {
        while let Some((number, item)) = items.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            let made = work(item)?;
            done.lock().push((number, made));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ends.into_iter().try_for_each(|end| end.unwrap_or_else(|_| Err("a thread has panicked".into())))
    })?;
    let mut done = done.into_inner();
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, made)| made).collect())
}
