//! The detectors that are compared: the service's own folds over hidden states, and the baselines, each as one score of a row.

use std::any::Any;

use bytes::Bytes;

use super::baselines::Mahalanobis;
use super::{in_parallel, pictures};
use crate::cli::Failure;
use crate::ferret::pool::Pool;
use crate::fold::{Fold, Step};
use crate::method::nearside::evaluation::auroc;
use crate::method::nearside::{ADVERSARIAL, BENIGN, DetectorSnapshot, Direction, Probe, fold_of_states};
use crate::network::random;
use crate::rows::{Block, Element, Rows, Target};

/// The detectors, in the order of [`Panel::scores`].
pub(super) const NAMES: [&str; 8] = [
    "mean difference",
    "whitened",
    "logistic",
    "logistic, hardened",
    "Mahalanobis",
    "mutation",
    "high frequency",
    "median frequency",
];
/// The linear ones among them. What is hardened learns that harmlessly changed pictures, noisy ones above all, are benign too.
const LINEAR: [(Direction, bool); 4] =
    [(Direction::MeanDifference, false), (Direction::Whitened, false), (Direction::Logistic, false), (Direction::Logistic, true)];

/// Places in [`NAMES`].
pub(super) const MUTATION: usize = 5;
pub(super) const HIGH_FREQUENCIES: [usize; 2] = [6, 7];

/// The one of them that the service has where a spec says nothing.
pub(super) fn default_detector() -> usize {
    LINEAR.iter().position(|(direction, hardened)| *direction == Direction::default() && !hardened).unwrap_or(0)
}

/// Blocks together have no more channels than this where a covariance is inverted: that is done at each step.
const COVARIANCE_WIDTH_MAX: usize = 512;
/// Of the best single blocks, how many are tried together at most.
const TOGETHER_MAX: usize = 4;

/// One picture, and what there is to tell by.
pub(super) struct Row {
    /// The number of the picture that it was made of.
    pub(super) source: u64,
    /// What the network says it is.
    pub(super) class: usize,
    /// By block.
    pub(super) states: Vec<Vec<f32>>,
    /// As [`super::baselines::roughness`].
    pub(super) roughness: [f64; 2],
    /// As [`super::baselines::disagreement`]; for some rows only, because it takes eight forwards.
    pub(super) disagreement: Option<f64>,
}

impl Row {
    /// The states of some blocks, one behind the other.
    fn joined(&self, blocks: &[usize]) -> Vec<f32> {
        blocks.iter().flat_map(|&block| &self.states[block]).copied().collect()
    }
}

/// What detectors learn from.
pub(super) struct Examples<'a> {
    pub(super) benign: &'a [Row],
    /// Benign pictures after a [`pictures::Change`].
    pub(super) changed: &'a [Row],
    pub(super) adversarial: &'a [Row],
}

/// A direction in the states of some blocks.
pub(super) struct Linear {
    pub(super) blocks: Vec<usize>,
    pub(super) probe: Probe,
    /// AUROC on the fitted pictures that were held out while blocks were chosen.
    pub(super) validated: f64,
}

impl Linear {
    pub(super) fn score(&self, row: &Row) -> f64 {
        self.probe.score(&row.joined(&self.blocks))
    }
}

/// All detectors of a victim.
pub(super) struct Panel {
    pub(super) linear: [Linear; 4],
    mahalanobis: Mahalanobis,
}

impl Panel {
    /// Fits them all; `blocks` are read where they are given, and otherwise those that did best, for each direction.
    ///
    /// Chosen by a third of the fitted pictures that the direction had not seen; then all of them are learned from.
    pub(super) fn fit(examples: &Examples<'_>, widths: &[usize], blocks: &[usize], pool: &Pool) -> Result<Panel, Failure> {
        let fitted = LINEAR.map(|(direction, hardened)| {
            let changed = if hardened { examples.changed } else { &[] };
            let benign: Vec<&Row> = examples.benign.iter().chain(changed).collect();
            let classes = [benign, examples.adversarial.iter().collect()];
            let (blocks, validated) = choose(direction, widths, &classes, blocks, pool)?;
            let probe = learn(direction, &blocks, &classes, pool)?;
            Ok::<Linear, Failure>(Linear { blocks, probe, validated })
        });
        let [mean_difference, whitened, logistic, hardened] = fitted;
        let linear = [mean_difference?, whitened?, logistic?, hardened?];
        let states: Vec<Vec<f32>> = examples.benign.iter().map(|row| row.joined(&linear[1].blocks)).collect();
        let mahalanobis = Mahalanobis::fit(&states).ok_or("the covariance of benign states cannot be inverted")?;
        Ok(Panel { linear, mahalanobis })
    }

    /// Those that read hidden states, in the order of [`NAMES`], of which they are the first.
    pub(super) fn readers(&self) -> [Reader<'_>; MUTATION] {
        let [mean_difference, whitened, logistic, hardened] = self.linear.each_ref().map(|linear| {
            let score = Box::new(|state: &[f32]| linear.probe.score(state));
            Reader { blocks: &linear.blocks, score }
        });
        let distance = Reader { blocks: whitened.blocks, score: Box::new(|state| self.mahalanobis.score(state)) };
        [mean_difference, whitened, logistic, hardened, distance]
    }

    /// What each detector says of a row; mutation says something of some rows only.
    pub(super) fn scores(&self, row: &Row) -> [Option<f64>; NAMES.len()] {
        let read = self.readers().map(|reader| Some((reader.score)(&row.joined(reader.blocks))));
        let [mean_difference, whitened, logistic, hardened, distance] = read;
        let [energy, median] = row.roughness.map(Some);
        [mean_difference, whitened, logistic, hardened, distance, row.disagreement, energy, median]
    }
}

/// What a detector makes of a state.
type Score<'a> = Box<dyn Fn(&[f32]) -> f64 + 'a>;

/// A detector that reads hidden states.
pub(super) struct Reader<'a> {
    /// Those of these blocks, one behind the other.
    pub(super) blocks: &'a [usize],
    /// What it makes of them.
    pub(super) score: Score<'a>,
}

/// The blocks that told pictures best that were held out, and how well they did.
fn choose(
    direction: Direction,
    widths: &[usize],
    classes: &[Vec<&Row>; 2],
    given: &[usize],
    pool: &Pool,
) -> Result<(Vec<usize>, f64), Failure> {
    let is_held_out = |row: &&Row| row.source.is_multiple_of(3);
    let [held_out, seen] = [true, false].map(|held_out| {
        classes.each_ref().map(|rows| rows.iter().copied().filter(|row| is_held_out(row) == held_out).collect::<Vec<&Row>>())
    });
    let try_out = |blocks: &Vec<usize>| -> Result<(Vec<usize>, f64), Failure> {
        let probe = learn(direction, blocks, &seen, pool)?;
        let scores = |rows: &Vec<&Row>| rows.iter().map(|row| probe.score(&row.joined(blocks))).collect::<Vec<f64>>();
        let [benign, adversarial] = held_out.each_ref().map(scores);
        let area = auroc(&adversarial, &benign).ok_or("no adversarial pictures to choose blocks by")?;
        Ok((blocks.clone(), area))
    };
    if !given.is_empty() {
        return try_out(&given.to_vec());
    }
    let fits = |blocks: &Vec<usize>| {
        direction != Direction::Whitened || blocks.iter().map(|&block| widths[block]).sum::<usize>() <= COVARIANCE_WIDTH_MAX
    };
    let alone: Vec<Vec<usize>> = (0..widths.len()).map(|block| vec![block]).filter(fits).collect();
    let mut tried = in_parallel(&alone, try_out)?;
    tried.sort_by(|a, b| b.1.total_cmp(&a.1));
    let best: Vec<usize> = tried.iter().map(|(blocks, _)| blocks[0]).collect();
    let mut together: Vec<Vec<usize>> = (2..=TOGETHER_MAX.min(best.len())).map(|count| best[..count].to_vec()).collect();
    together.push((0..widths.len()).collect());
    together.iter_mut().for_each(|blocks| blocks.sort_unstable());
    together.retain(fits);
    tried.extend(in_parallel(&together, try_out)?);
    // The first of equals: fewer blocks.
    tried.into_iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).ok_or_else(|| "there are no blocks to choose from".into())
}

/// What the service's own fold learns of benign and adversarial rows, in a drawn order.
fn learn(direction: Direction, blocks: &[usize], classes: &[Vec<&Row>; 2], pool: &Pool) -> Result<Probe, Failure> {
    let labelled = classes.iter().zip([BENIGN, ADVERSARIAL]);
    let mut rows: Vec<(Vec<f32>, u32)> =
        labelled.flat_map(|(rows, class)| rows.iter().map(move |row| (row.joined(blocks), class))).collect();
    let width = rows.first().map_or(0, |(state, _)| state.len());
    let mut fold = fold_of_states(direction, width, 0, pool.clone())?;
    let (mut outcomes, mut first) = (Vec::new(), 1);
    pictures::shuffle(&mut rows, &mut random::stream(0, 0, "fit"));
    // Once, as a stream comes.
    for step in rows.chunks(fold.step_rows()) {
        let bytes: Bytes = step.iter().flat_map(|(state, _)| state).flat_map(|value| value.to_le_bytes()).collect();
        let target = Some(Target::Classes(step.iter().map(|(_, class)| *class).collect()));
        let blocks = vec![Block { element: Element::F32, width, bytes }];
        let step = Step::starting(first, Rows { count: step.len(), blocks, target, ..Rows::default() });
        first = step.last + 1;
        fold.apply(step, &mut outcomes)?;
    }
    fold.begin_snapshot(&mut outcomes)?;
    let snapshot = fold.snapshot()?.ok_or("a detector gave no snapshot")?;
    let snapshot: &dyn Any = snapshot.as_ref();
    Ok(snapshot.downcast_ref::<DetectorSnapshot>().ok_or("the snapshot is not a detector's")?.probe.clone())
}
