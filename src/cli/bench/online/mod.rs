//! `mustela bench online`: what systems learn of a stream that does not wait for them, on a virtual clock.
//!
//! Ferret's comparison (section 6 of the paper): each system follows each stream at several ratios of the interval between two steps
//! to the time that one sequential step takes. Each row that arrives is predicted by the newest weights of that moment, and then
//! learned, or dropped. Gradients are real, times come from committed profiles, and nothing depends on the machine's speed: the same
//! seed gives the same bits, on one thread or on several. Predictions and the choice of rows take no virtual time.

mod axes;
mod cells;
mod clock;
mod peers;
mod policies;
mod report;
mod streams;
mod systems;
mod times;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytesize::ByteSize;
use clap::Args;
use parking_lot::Mutex;

use self::cells::{Cell, Figures, Key, Store, Streams};
use self::streams::Stream;
use self::systems::System;
use crate::cli::{Failure, complain, plot};
use crate::fold::BelowMinimum;

/// Rows of a stream, and test rows, with `--quick`.
const QUICK_ROWS: usize = 3000;
const QUICK_TEST_ROWS: usize = 2000;

/// Flags of `bench online`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One seed, two streams of 3,000 rows, two ratios: under ten minutes on two cores
    #[arg(long)]
    quick: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// All cells as CSV, beside the table
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Draws online accuracy over memory to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Keeps each cell here as soon as it was run, and runs none that is here
    #[arg(long)]
    cells: Option<PathBuf>,
    /// Streams: folders of IDX files and NAME.csv; ~/.cache/mustela/data where it is left out
    #[arg(long)]
    data: Option<PathBuf>,
    /// Which of them; `split-` before a name brings its classes in pairs, one after the other
    #[arg(long, value_delimiter = ',')]
    streams: Vec<String>,
    /// mnistnet, convnet or mlp (two hidden layers of 256); where it is left out, what suits the stream
    #[arg(long)]
    network: Option<String>,
    /// Which systems; all where it is left out
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Ferret's best plans within these bytes too (snapshots not counted), such as 4MiB
    #[arg(long, value_delimiter = ',')]
    budgets: Vec<ByteSize>,
    /// Intervals between two steps, in times of one sequential step
    #[arg(long, value_delimiter = ',')]
    ratios: Vec<f64>,
    /// Each draws first weights, and an order of the stream
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Rows of a stream, at most
    #[arg(long)]
    rows: Option<usize>,
    /// Rows of a step
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// none, fisher, iter-fisher, iter-fisher-descent, end-points, step-aware, gap-aware
    #[arg(long, value_delimiter = ',', default_value = "none")]
    compensations: Vec<String>,
    /// vanilla, er, mir, lwf, mas
    #[arg(long, value_delimiter = ',', default_value = "vanilla")]
    learners: Vec<String>,
    /// Tables beside River and Vowpal Wabbit instead, row by row, with one setting for all of them
    #[arg(long)]
    peers: bool,
    /// What those made of the tables
    #[arg(long, default_value = "loadtest/peers/results.json")]
    peer_results: PathBuf,
    /// Tasks that run at once on the virtual clock; 0: as many as a plan has pairs of a worker and a stage
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=64))]
    units: u32,
    /// Steps from which Random-N, Last-N and Camel choose
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    window: u32,
    /// Steps' rows that those learn at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    select: u32,
    /// Of plain SGD, the same for all systems
    #[arg(long, default_value_t = 0.05)]
    learning_rate: f64,
    /// Cells at a time, a thread each; no figure depends on it
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Where the profiles of networks are
    #[arg(long, default_value = "loadtest/online/profiles")]
    profiles: PathBuf,
    /// Measures the networks whose profiles are missing, writes those, and runs nothing
    #[arg(long)]
    measure: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.ratios.iter().any(|ratio| !ratio.is_finite() || *ratio <= 0.0) {
        return Err("a ratio is a number above 0".into());
    }
    let data = arguments.data.clone().unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        home.join(".cache/mustela/data")
    });
    if arguments.peers {
        return peers::run(&data, &arguments.peer_results, &arguments.streams, arguments.threads as usize, arguments.json);
    }
    let mut streams = Streams::new();
    for name in names(arguments) {
        let stream = Stream::read(&name, &data)?;
        streams.insert(name, stream);
    }
    if arguments.measure {
        return measure(arguments, &streams);
    }
    let (keys, store) = (keys(arguments, &streams)?, Store::open(arguments.cells.as_ref())?);
    let cells = run_all(&keys, &streams, &store, arguments)?;
    if let Some(path) = &arguments.csv {
        report::write_csv(path, &cells)?;
    }
    if let Some(path) = &arguments.plot {
        plot::write(path, &report::charts(&cells))?;
    }
    if arguments.json {
        println!("{}", report::document(&cells));
    } else {
        report::print(&cells);
    }
    Ok(())
}

fn names(arguments: &Arguments) -> Vec<String> {
    let all: &[&str] = match () {
        () if !arguments.streams.is_empty() => return arguments.streams.clone(),
        () if arguments.quick => &["fashion-mnist", "split-fashion-mnist"],
        () => &["mnist", "fashion-mnist", "split-mnist", "split-fashion-mnist"],
    };
    all.iter().map(ToString::to_string).collect()
}

/// The network of a stream.
fn network_of(arguments: &Arguments, stream: &Stream) -> String {
    let suits = match stream.input_shape.as_slice() {
        [_] => "mlp",
        [1, ..] => "mnistnet",
        _ => "convnet",
    };
    arguments.network.clone().unwrap_or_else(|| suits.into())
}

fn measure(arguments: &Arguments, streams: &Streams) -> Result<(), Failure> {
    for name in names(arguments) {
        let stream = &streams[&name];
        let of = network_of(arguments, stream);
        let network = cells::network(&of, stream)?;
        let batch = arguments.batch as usize;
        for learner in axes::learners(&arguments.learners)? {
            for rows in [batch, batch * arguments.select as usize] {
                times::measure(&arguments.profiles, &of, &network, rows + learner.replay_rows())?;
            }
        }
    }
    Ok(())
}

/// All cells that are asked for, in the order of the table.
fn keys(arguments: &Arguments, streams: &Streams) -> Result<Vec<Key>, Failure> {
    let or = |given: &[f64], otherwise: &[f64]| if given.is_empty() { otherwise.to_vec() } else { given.to_vec() };
    let ratios = or(&arguments.ratios, if arguments.quick { &[0.5, 0.125] } else { &[0.5, 0.25, 0.125] });
    let seeds = match arguments.seeds.as_slice() {
        [] if arguments.quick => vec![0],
        [] => vec![0, 1, 2],
        given => given.to_vec(),
    };
    let mut systems = if arguments.systems.is_empty() { System::ALL.to_vec() } else { arguments.systems.clone() };
    systems.extend(arguments.budgets.iter().map(|bytes| System::FerretWithin(bytes.as_u64())));
    let limit = arguments.rows.or(arguments.quick.then_some(QUICK_ROWS)).unwrap_or(usize::MAX);
    let test_limit = if arguments.quick { QUICK_TEST_ROWS } else { usize::MAX };
    let (compensations, learners) = (axes::compensations(&arguments.compensations)?, axes::learners(&arguments.learners)?);
    let mut keys = Vec::new();
    for name in names(arguments) {
        let (stream, batch) = (&streams[&name], arguments.batch as usize);
        let network = network_of(arguments, stream);
        let built = cells::network(&network, stream)?;
        let profile = times::read(&arguments.profiles, &network, &built, batch)?;
        for &ratio in &ratios {
            let rules =
                learners.iter().flat_map(|learner| compensations.iter().map(move |compensation| (*learner, *compensation)));
            let lines = rules.flat_map(|rule| systems.iter().map(move |system| (rule, *system)));
            for ((learner, compensation), system) in lines {
                keys.extend(seeds.iter().map(|&seed| Key {
                    compensation,
                    learner,
                    stream: name.clone(),
                    network: network.clone(),
                    system: system.to_string(),
                    ratio,
                    units: arguments.units as usize,
                    batch,
                    window: arguments.window as usize,
                    select: arguments.select as usize,
                    learning_rate: arguments.learning_rate,
                    seed,
                    rows: stream.rows.count.min(limit),
                    rows_there: stream.rows.count,
                    test_rows: stream.test.count.min(test_limit),
                    step_nanoseconds: profile.step(),
                }));
            }
        }
    }
    Ok(keys)
}

/// Runs the cells that are not there yet, some at a time. Budgets that are too small for a network are left out.
fn run_all(keys: &[Key], streams: &Streams, store: &Store, arguments: &Arguments) -> Result<Vec<Cell>, Failure> {
    let next = AtomicUsize::new(0);
    let figures: Mutex<Vec<Option<Figures>>> = Mutex::new(keys.iter().map(|key| store.find(key).cloned()).collect());
    let work = || -> Result<(), Failure> {
        while let Some((number, key)) = keys.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            if store.find(key).is_some() {
                continue;
            }
            let of_cell = match cells::run(key, &streams[&key.stream], &arguments.profiles) {
                // A budget for smaller networks than this one; the table goes on without it.
                Err(error) if error.is::<BelowMinimum>() => {
                    complain(&format!("{} on {}: {error}", key.system, key.stream));
                    continue;
                }
                of_cell => of_cell?,
            };
            store.keep(&Cell { key: key.clone(), figures: of_cell.clone() })?;
            figures.lock()[number] = Some(of_cell);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.threads).map(|_| scope.spawn(work)).collect();
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ends.into_iter().try_for_each(|end| end.unwrap_or_else(|_| Err("a cell has panicked".into())))
    })?;
    let cells = keys.iter().zip(figures.into_inner());
    Ok(cells.filter_map(|(key, figures)| Some(Cell { key: key.clone(), figures: figures? })).collect())
}
