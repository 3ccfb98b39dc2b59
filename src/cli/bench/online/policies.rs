//! What is learned of rows that come faster than that: of the steps that wait, a policy takes some rows and drops all others.

use std::collections::VecDeque;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::streams::gather;
use crate::cli::Failure;
use crate::ferret::input::features;
use crate::network::random;
use crate::rows::{Rows, Target};

/// Which of the rows that wait are learned next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// The newest step (1-Skip, and every pipeline).
    Newest,
    /// So many rows of the steps that wait, by chance (Random-N).
    Random(usize),
    /// So many rows that came last (Last-N).
    Last(usize),
    /// So many rows that stand for the others (Camel's coreset): in each class those that are the most similar to all of it. A
    /// reconstruction from the paper's words, on input features, where Camel goes by gradients.
    Coreset(usize),
}

/// Steps that have arrived and are neither learned nor dropped.
pub(super) struct Waiting {
    policy: Policy,
    /// Steps that are kept at most.
    window: usize,
    steps: VecDeque<(Rows, u64)>,
    generator: ChaCha8Rng,
}

impl Waiting {
    /// Nothing waits. All but the newest policy choose from so many steps.
    pub(super) fn new(policy: Policy, window: usize, seed: u64) -> Waiting {
        let window = if policy == Policy::Newest { 1 } else { window.max(1) };
        Waiting { policy, window, steps: VecDeque::new(), generator: random::stream(seed, 0, "random-n") }
    }

    /// A step arrives.
    pub(super) fn push(&mut self, rows: Rows, now: u64) {
        if self.steps.len() == self.window {
            self.steps.pop_front();
        }
        self.steps.push_back((rows, now));
    }

    /// What is learned next, and when its newest rows arrived; whatever else waits is dropped.
    pub(super) fn take(&mut self) -> Result<Option<(Rows, u64)>, Failure> {
        let steps: Vec<(Rows, u64)> = self.steps.drain(..).collect();
        let Some((newest, arrived)) = steps.last() else { return Ok(None) };
        let parts: Vec<&Rows> = steps.iter().map(|(rows, _)| rows).collect();
        let all = join(&parts);
        let chosen = match self.policy {
            Policy::Newest => return Ok(Some((newest.clone(), *arrived))),
            Policy::Random(count) => by_chance(all.count, count, &mut self.generator),
            Policy::Last(count) => (all.count.saturating_sub(count)..all.count).collect(),
            Policy::Coreset(count) => coreset(&all, count)?,
        };
        Ok(Some((gather(&all, &chosen), *arrived)))
    }
}

/// All rows of some steps, with their labels.
fn join(parts: &[&Rows]) -> Rows {
    let classes = parts.iter().flat_map(|rows| match &rows.target {
        Some(Target::Classes(classes)) => classes.as_slice(),
        _ => &[],
    });
    let target = Some(Target::Classes(classes.copied().collect()));
    Rows { target, ..Rows::concatenate(parts).unwrap_or_default() }
}

/// `count` of `all` numbers, in their order.
fn by_chance(all: usize, count: usize, generator: &mut ChaCha8Rng) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..all).collect();
    let count = count.min(all);
    for at in 0..count {
        let other = at + (generator.next_u64() % (all - at) as u64) as usize;
        numbers.swap(at, other);
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

/// `count` rows that stand for all, in their order. Each class has its share of them, and gets greedily whatever row makes the sum over
/// the class, of the similarity to the most similar row that was chosen, grow the most.
fn coreset(rows: &Rows, count: usize) -> Result<Vec<usize>, Failure> {
    let Some(Target::Classes(classes)) = &rows.target else { return Err("a coreset is chosen by classes".into()) };
    let width = rows.blocks.first().map_or(0, |block| block.width);
    let points: Vec<Vec<f32>> = features(rows, &[width])?.to_vec2()?;
    let count = count.min(rows.count);
    let mut members: Vec<Vec<usize>> = Vec::new();
    for (row, &class) in classes.iter().enumerate() {
        let class = class as usize;
        members.resize(members.len().max(class + 1), Vec::new());
        members[class].push(row);
    }
    let mut similar: Vec<Greedy> =
        members.into_iter().filter(|rows| !rows.is_empty()).map(|of| Greedy::new(of, &points)).collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        // The class that is the furthest behind its share; the lower one of two.
        let behind = |class: &Greedy| class.rows.len() as f64 / (class.chosen + 1) as f64;
        let open = similar.iter_mut().filter(|class| class.chosen < class.rows.len());
        let next = open.max_by(|a, b| behind(a).total_cmp(&behind(b)).then(b.rows.cmp(&a.rows)));
        let Some(class) = next else { break };
        chosen.push(class.take());
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// One class of rows while some of it are chosen.
struct Greedy {
    rows: Vec<usize>,
    /// Between each two of them.
    similarity: Vec<Vec<f32>>,
    /// Of each to the most similar one that is chosen.
    covered: Vec<f32>,
    taken: Vec<bool>,
    chosen: usize,
}

impl Greedy {
    fn new(rows: Vec<usize>, points: &[Vec<f32>]) -> Greedy {
        let distance = |a: usize, b: usize| points[a].iter().zip(&points[b]).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
        let mut similarity: Vec<Vec<f32>> = rows.iter().map(|&a| rows.iter().map(|&b| distance(a, b)).collect()).collect();
        let furthest = similarity.iter().flatten().copied().fold(0.0, f32::max);
        similarity.iter_mut().flatten().for_each(|distance| *distance = furthest - *distance);
        let count = rows.len();
        Greedy { rows, similarity, covered: vec![0.0; count], taken: vec![false; count], chosen: 0 }
    }

    /// The row that gains the most, the first of several.
    fn take(&mut self) -> usize {
        let gain = |row: usize| -> f32 {
            let pairs = self.similarity[row].iter().zip(&self.covered);
            pairs.map(|(similar, covered)| (similar - covered).max(0.0)).sum()
        };
        let open = (0..self.rows.len()).filter(|&row| !self.taken[row]);
        let best = open.max_by(|&a, &b| gain(a).total_cmp(&gain(b)).then(b.cmp(&a))).unwrap_or(0);
        for (covered, similar) in self.covered.iter_mut().zip(&self.similarity[best]) {
            *covered = covered.max(*similar);
        }
        (self.taken[best], self.chosen) = (true, self.chosen + 1);
        self.rows[best]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Block, Element};

    /// Rows of one feature.
    fn rows(values: &[u8], classes: &[u32]) -> Rows {
        let blocks = vec![Block { element: Element::U8, width: 1, bytes: values.to_vec().into() }];
        Rows { count: values.len(), blocks, target: Some(Target::Classes(classes.to_vec())), ..Rows::default() }
    }

    fn taken(policy: Policy, steps: &[Rows]) -> (Vec<u8>, u64) {
        let mut waiting = Waiting::new(policy, 3, 1);
        for (now, rows) in steps.iter().enumerate() {
            waiting.push(rows.clone(), now as u64);
        }
        let (rows, arrived) = waiting.take().unwrap().unwrap();
        assert!(waiting.take().unwrap().is_none(), "the others are dropped");
        (rows.blocks[0].bytes.to_vec(), arrived)
    }

    #[test]
    fn policies_choose_what_they_say() {
        let steps: Vec<Rows> = (0..5u8).map(|step| rows(&[2 * step, 2 * step + 1], &[0, 1])).collect();
        assert_eq!(taken(Policy::Newest, &steps), (vec![8, 9], 4));
        assert_eq!(taken(Policy::Last(3), &steps), (vec![7, 8, 9], 4));
        assert_eq!(taken(Policy::Last(30), &steps), (vec![4, 5, 6, 7, 8, 9], 4), "a window of three steps");
        let (random, _) = taken(Policy::Random(4), &steps);
        assert_eq!(random, taken(Policy::Random(4), &steps).0, "the same seed");
        assert!(random.len() == 4 && random.is_sorted() && random.iter().all(|value| (4..10).contains(value)), "{random:?}");
    }

    #[test]
    fn a_coreset_stands_for_its_classes() {
        // Four rows of class 0 about 13 and one outlier, two of class 1.
        let rows = rows(&[10, 12, 14, 16, 90, 200, 210], &[0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(coreset(&rows, 1).unwrap(), [2], "the middle one of the larger class");
        assert_eq!(coreset(&rows, 3).unwrap(), [2, 4, 5], "then the outlier, and one of the smaller class");
        assert_eq!(coreset(&rows, 9).unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    }
}
