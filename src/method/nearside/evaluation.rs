//! How well scores tell adversarial inputs (positives) from benign ones (negatives), and how sure that is.
//!
//! A score is flagged where it lies above a threshold; more is more adversarial. Figures that come from no rows are none, not 0.
//! Rows that were made of one source picture are not independent of each other, so intervals are bootstrapped by source
//! (a cluster bootstrap: Field and Welsh, 2007): a source is drawn with all its rows or not at all.

use rand_chacha::rand_core::RngCore;
use serde::Serialize;
use statrs::distribution::{Beta, ContinuousCDF};

use crate::network::random;

/// Where a figure lies, with some confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether a figure lies in it, ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// A score, and the source that its row was made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The number of the source.
    pub source: u64,
    /// The score.
    pub score: f64,
}

/// The chance that a positive scores higher than a negative, where equal scores count half (Mann and Whitney's U).
pub fn auroc(positives: &[f64], negatives: &[f64]) -> Option<f64> {
    let (of_positives, of_negatives) = (positives.len() as f64, negatives.len() as f64);
    let mut below = 0.0;
    let mut wins = 0.0;
    for (positive, negative) in ties(positives, negatives) {
        wins += positive as f64 * (below + negative as f64 / 2.0);
        below += negative as f64;
    }
    (!positives.is_empty() && !negatives.is_empty()).then(|| wins / (of_positives * of_negatives))
}

/// The area under the curve of precision over recall, by steps and without interpolation (average precision).
pub fn auprc(positives: &[f64], negatives: &[f64]) -> Option<f64> {
    let (mut hits, mut flagged, mut area) = (0, 0, 0.0);
    for (positive, negative) in ties(positives, negatives).into_iter().rev() {
        hits += positive;
        flagged += positive + negative;
        area += (positive * hits) as f64 / flagged as f64;
    }
    // Divided once, so that a perfect order has 1 and not a rounding more.
    (!positives.is_empty() && !negatives.is_empty()).then(|| area / positives.len() as f64)
}

/// For each score that occurs, ascending: how many positives and how many negatives have it.
fn ties(positives: &[f64], negatives: &[f64]) -> Vec<(usize, usize)> {
    let marked = |scores: &[f64], mark: bool| scores.iter().map(|&score| (score, mark)).collect::<Vec<_>>();
    let mut all = [marked(positives, true), marked(negatives, false)].concat();
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let same = all.chunk_by(|a, b| a.0 == b.0);
    same.map(|tied| {
        let hits = tied.iter().filter(|(_, positive)| *positive).count();
        (hits, tied.len() - hits)
    })
    .collect()
}

/// The share of scores above a threshold: of positives the rate of true alarms, of negatives that of false ones.
pub fn flagged(scores: &[f64], threshold: f64) -> Option<f64> {
    let above = scores.iter().filter(|&&score| score > threshold).count();
    (!scores.is_empty()).then(|| above as f64 / scores.len() as f64)
}

/// What a threshold makes of positives and negatives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// Positives that were flagged.
    pub true_positives: u64,
    /// Negatives that were.
    pub false_positives: u64,
    /// Negatives that were not.
    pub true_negatives: u64,
    /// Positives that were not.
    pub false_negatives: u64,
}

impl Confusion {
    /// Counts them.
    pub fn at(threshold: f64, positives: &[f64], negatives: &[f64]) -> Confusion {
        let above = |scores: &[f64]| scores.iter().filter(|&&score| score > threshold).count() as u64;
        let (true_positives, false_positives) = (above(positives), above(negatives));
        Confusion {
            true_positives,
            false_positives,
            true_negatives: negatives.len() as u64 - false_positives,
            false_negatives: positives.len() as u64 - true_positives,
        }
    }

    /// The share that was judged right.
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.true_positives + self.true_negatives;
        share(right, right + self.false_positives + self.false_negatives)
    }

    /// The share of what was flagged that is positive.
    pub fn precision(&self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_positives)
    }

    /// The share of positives that was flagged.
    pub fn recall(&self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// The harmonic mean of precision and recall.
    pub fn f1(&self) -> Option<f64> {
        share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)
    }
}

fn share(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| part as f64 / of as f64)
}

/// Where a chance lies of which `hits` in `of` independent trials came true: exact (Clopper and Pearson, 1934).
pub fn clopper_pearson(hits: u64, of: u64, confidence: f64) -> Option<Interval> {
    if of == 0 || hits > of || !(0.0..1.0).contains(&confidence) {
        return None;
    }
    let tail = (1.0 - confidence) / 2.0;
    let misses = of - hits;
    let quantile = |a: u64, b: u64, at: f64| Beta::new(a as f64, b as f64).ok().map(|beta| beta.inverse_cdf(at));
    let low = if hits == 0 { 0.0 } else { quantile(hits, misses + 1, tail)? };
    let high = if misses == 0 { 1.0 } else { quantile(hits + 1, misses, 1.0 - tail)? };
    Some(Interval { low, high })
}

/// How a bootstrap draws.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// How often.
    pub rounds: u64,
    /// Between 0 and 1.
    pub confidence: f64,
    /// The same seed draws the same sources.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { rounds: 1000, confidence: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The percentile interval of a statistic of positives and negatives, whose sources are drawn again and again; draws that have
    /// no statistic do not count. None where all draws agree: that no row contradicts a figure does not say that none would.
    pub fn interval(
        &self,
        positives: &[Scored],
        negatives: &[Scored],
        statistic: impl Fn(&[f64], &[f64]) -> Option<f64>,
    ) -> Option<Interval> {
        let groups = by_source(positives, negatives);
        let mut generator = random::stream(self.seed, 0, "bootstrap");
        let (mut drawn, mut draws) = ([Vec::new(), Vec::new()], Vec::with_capacity(self.rounds as usize));
        for _ in 0..self.rounds {
            drawn.iter_mut().for_each(Vec::clear);
            for _ in 0..groups.len() {
                let [of_positives, of_negatives] = &groups[(generator.next_u64() % groups.len() as u64) as usize];
                drawn[0].extend(of_positives);
                drawn[1].extend(of_negatives);
            }
            draws.extend(statistic(&drawn[0], &drawn[1]));
        }
        draws.sort_unstable_by(f64::total_cmp);
        let at = |quantile: f64| draws.get((quantile * draws.len().saturating_sub(1) as f64).round() as usize).copied();
        let tail = (1.0 - self.confidence) / 2.0;
        let interval = Interval { low: at(tail)?, high: at(1.0 - tail)? };
        (draws.first() != draws.last()).then_some(interval)
    }
}

/// The positives' and the negatives' scores of each source.
fn by_source(positives: &[Scored], negatives: &[Scored]) -> Vec<[Vec<f64>; 2]> {
    let mut groups = std::collections::BTreeMap::<u64, [Vec<f64>; 2]>::new();
    for (class, rows) in [positives, negatives].into_iter().enumerate() {
        for row in rows {
            groups.entry(row.source).or_default()[class].push(row.score);
        }
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Made by scikit-learn and SciPy: `tests/fixtures/evaluation.py`.
    fn oracle() -> Value {
        serde_json::from_str(include_str!("../../../tests/fixtures/evaluation.json")).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    }

    #[test]
    fn figures_are_those_of_scikit_learn() {
        for case in oracle()["scores"].as_array().unwrap() {
            let (positives, negatives) = (numbers(&case["positives"]), numbers(&case["negatives"]));
            let confusion = Confusion::at(case["threshold"].as_f64().unwrap(), &positives, &negatives);
            let ours = [
                ("auroc", auroc(&positives, &negatives)),
                ("auprc", auprc(&positives, &negatives)),
                ("accuracy", confusion.accuracy()),
                ("precision", confusion.precision()),
                ("recall", confusion.recall()),
                ("f1", confusion.f1()),
            ];
            for (name, ours) in ours {
                let theirs = case[name].as_f64().unwrap();
                assert!((ours.unwrap() - theirs).abs() < 1e-12, "{name}: {ours:?} and {theirs}");
            }
        }
    }

    #[test]
    fn intervals_are_those_of_scipy() {
        for case in oracle()["clopper_pearson"].as_array().unwrap() {
            let [hits, of] = ["hits", "of"].map(|name| case[name].as_u64().unwrap());
            let ours = clopper_pearson(hits, of, case["confidence"].as_f64().unwrap()).unwrap();
            for (ours, name) in [(ours.low, "low"), (ours.high, "high")] {
                let theirs = case[name].as_f64().unwrap();
                assert!((ours - theirs).abs() < 1e-8, "{hits} of {of}, {name}: {ours} and {theirs}");
            }
        }
    }

    #[test]
    fn nothing_comes_of_no_rows() {
        assert_eq!([auroc(&[], &[1.0]), auroc(&[1.0], &[]), auprc(&[], &[1.0]), flagged(&[], 0.0)], [None; 4]);
        assert_eq!(Confusion::at(0.0, &[], &[]).accuracy(), None);
        assert_eq!(clopper_pearson(0, 0, 0.95), None);
        assert_eq!(clopper_pearson(2, 1, 0.95), None);
        assert_eq!(Bootstrap::default().interval(&[], &[], auroc), None);
        let of = |score: f64| (0..30).map(|source| Scored { source, score }).collect::<Vec<_>>();
        assert_eq!(Bootstrap::default().interval(&of(1.0), &of(0.0), auroc), None, "every draw is right");
    }

    #[test]
    fn a_score_at_the_threshold_is_not_flagged() {
        assert_eq!(flagged(&[1.0, 2.0, 3.0, 4.0], 2.0), Some(0.5));
    }

    fn drawn(seed: u64, sources: u64, rows: u64, shift: f64) -> Vec<Scored> {
        let mut generator = random::stream(seed, 0, "scores");
        let mut scored = Vec::new();
        for source in 0..sources {
            let of_source = f64::from(random::uniform(&mut generator)) + shift;
            scored.extend((0..rows).map(|_| Scored { source: seed * 1000 + source, score: of_source }));
        }
        scored
    }

    /// Of uniform scores and such that are 0.3 higher, the area is 1 − 0.7²/2.
    #[test]
    fn the_bootstrap_covers_as_often_as_it_says() {
        let (truth, bootstrap) = (1.0 - 0.7 * 0.7 / 2.0, Bootstrap { rounds: 200, ..Bootstrap::default() });
        let covers = (0..200).filter(|trial| {
            let (positives, negatives) = (drawn(2 * trial, 60, 1, 0.3), drawn(2 * trial + 1, 60, 1, 0.0));
            bootstrap.interval(&positives, &negatives, auroc).unwrap().contains(truth)
        });
        let covers = covers.count();
        assert!((180..=198).contains(&covers), "{covers} of 200");
    }

    #[test]
    fn more_rows_of_the_same_sources_make_nothing_surer() {
        let width = |rows: u64| {
            let (positives, negatives) = (drawn(1, 40, rows, 0.3), drawn(2, 40, rows, 0.0));
            let interval = Bootstrap::default().interval(&positives, &negatives, auroc).unwrap();
            interval.high - interval.low
        };
        assert!((width(1) - width(10)).abs() < 1e-12, "{} and {}", width(1), width(10));
    }
}
