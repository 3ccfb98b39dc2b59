//! What is learned of rows that come faster than that: of the steps that wait, a policy takes some rows and drops all others.

use std::collections::VecDeque;

use rand_chacha::ChaCha8Rng;

use crate::model::choice::{by_chance, coreset};
use crate::network::random;
use crate::rows::Rows;

/// Which of the rows that wait are learned next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// The newest step (1-Skip, and every pipeline).
    Newest,
    /// So many rows of the steps that wait, by chance (Random-N).
    Random(usize),
    /// So many rows that came last (Last-N).
    Last(usize),
    /// So many rows that stand for the others (Camel's coreset).
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
    pub(super) fn take(&mut self) -> Option<(Rows, u64)> {
        let steps: Vec<(Rows, u64)> = self.steps.drain(..).collect();
        let (newest, arrived) = steps.last()?;
        let parts: Vec<&Rows> = steps.iter().map(|(rows, _)| rows).collect();
        let all = Rows::concatenate(&parts)?;
        let chosen = match self.policy {
            Policy::Newest => return Some((newest.clone(), *arrived)),
            Policy::Random(count) => by_chance(all.count, count, &mut self.generator),
            Policy::Last(count) => (all.count.saturating_sub(count)..all.count).collect(),
            Policy::Coreset(count) => coreset(&all, count),
        };
        Some((all.gather(&chosen), *arrived))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Block, Element, Target};

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
        let (rows, arrived) = waiting.take().unwrap();
        assert!(waiting.take().is_none(), "the others are dropped");
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
}
