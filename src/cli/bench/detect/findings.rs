//! What came out for one network: a line for each attack and control, and how thresholds did.

use serde::Serialize;

use super::detectors::{NAMES, Panel, Row};
use super::experiment::Scale;
use super::overhead::Overhead;
use crate::cli::Failure;
use crate::method::nearside::Threshold;
use crate::method::nearside::calibration::achieved_rate;
use crate::method::nearside::evaluation::{Bootstrap, Interval, Scored, auroc, clopper_pearson, flagged};

/// The rates of false alarms that thresholds are made for.
pub(super) const TARGETS: [f64; 2] = [0.01, 0.05];
const CONFIDENCE: f64 = 0.95;

/// All of one network.
#[derive(Serialize)]
pub(super) struct Findings {
    pub(super) network: String,
    pub(super) scale: Scale,
    pub(super) sizes: Sizes,
    /// Which of the detectors is the default.
    pub(super) default_detector: &'static str,
    /// By direction: the blocks that are read, and the AUROC that they were chosen by.
    pub(super) directions: Vec<Chosen>,
    /// By detector and target.
    pub(super) false_alarms: Vec<FalseAlarms>,
    pub(super) lines: Vec<Line>,
    pub(super) adaptive: Adaptive,
    pub(super) overhead: Overhead,
}

/// How many pictures there were.
#[derive(Serialize)]
pub(super) struct Sizes {
    pub(super) fit_benign: usize,
    /// Harmlessly changed pictures, for the hardened detector alone.
    pub(super) fit_changed: usize,
    pub(super) fit_adversarial: usize,
    pub(super) calibration_benign: usize,
    pub(super) test_benign: usize,
}

#[derive(Serialize)]
pub(super) struct Chosen {
    pub(super) detector: &'static str,
    pub(super) blocks: Vec<String>,
    pub(super) validated_auroc: f64,
}

/// How often a threshold called reported benign pictures adversarial.
#[derive(Serialize)]
pub(super) struct FalseAlarms {
    pub(super) detector: &'static str,
    pub(super) target: f64,
    pub(super) calibration_rows: usize,
    pub(super) threshold: f64,
    pub(super) flagged: u64,
    pub(super) of: u64,
    pub(super) rate: f64,
    /// Of the rate, by those counts.
    pub(super) interval: Interval,
    /// Where such rates lie in 95 of 100 draws of thresholds and reported pictures, if the promise holds.
    pub(super) expected: Interval,
    /// Whether this one does.
    pub(super) as_promised: bool,
}

/// An attack or a control.
#[derive(Serialize)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) is_attack: bool,
    pub(super) epsilon: Option<u8>,
    /// Pictures that were attacked, or changed.
    pub(super) attempts: usize,
    /// Those of them that make the rows: all of a control, the successes of an attack.
    pub(super) rows: usize,
    pub(super) detectors: Vec<Figures>,
}

impl Line {
    /// Whether it is noise, which nobody should find: an AUROC of one half.
    pub(super) fn is_noise(&self) -> bool {
        !self.is_attack && self.name.ends_with("noise")
    }
}

/// How one detector told a line's rows from reported benign pictures.
#[derive(Serialize)]
pub(super) struct Figures {
    pub(super) detector: &'static str,
    pub(super) rows: usize,
    pub(super) auroc: Option<f64>,
    pub(super) auroc_interval: Option<Interval>,
    /// By target: the share that is flagged, and where it lies.
    pub(super) flagged: Vec<Option<f64>>,
    pub(super) flagged_intervals: Vec<Option<Interval>>,
}

/// What an attack that knows the default detector comes to: shares of all attempts.
#[derive(Serialize)]
pub(super) struct Adaptive {
    pub(super) detector: &'static str,
    pub(super) epsilon: u8,
    pub(super) attempts: usize,
    pub(super) by_lambda: Vec<Evaded>,
    /// The largest share of any λ, by target.
    pub(super) best: Vec<f64>,
    /// Where for each picture the attacker takes the λ that serves, by target.
    pub(super) best_by_picture: Vec<f64>,
}

#[derive(Serialize)]
pub(super) struct Evaded {
    pub(super) lambda: f32,
    pub(super) succeeded: f64,
    /// Succeeded and was not flagged, by target.
    pub(super) undetected: Vec<f64>,
}

/// Reported benign pictures, as each detector scores them, with thresholds from others.
pub(super) struct Yardstick<'a> {
    panel: &'a Panel,
    /// By detector.
    benign: Vec<Vec<Scored>>,
    /// By detector and target; none where there were too few rows.
    thresholds: Vec<[Option<f64>; TARGETS.len()]>,
    calibration_rows: Vec<usize>,
}

impl<'a> Yardstick<'a> {
    pub(super) fn new(panel: &'a Panel, calibration: &[Row], benign: &[Row]) -> Yardstick<'a> {
        let calibration = scored(panel, calibration.iter());
        let threshold = |scores: &Vec<Scored>, target| {
            Threshold::conformal(scores.iter().map(|scored| scored.score).collect(), target).map(|threshold| threshold.score)
        };
        let thresholds = calibration.iter().map(|scores| TARGETS.map(|target| threshold(scores, target))).collect();
        let calibration_rows = calibration.iter().map(Vec::len).collect();
        Yardstick { panel, benign: scored(panel, benign.iter()), thresholds, calibration_rows }
    }

    /// The threshold of a detector for a target.
    pub(super) fn threshold(&self, detector: usize, target: usize) -> Option<f64> {
        self.thresholds[detector][target]
    }

    pub(super) fn false_alarms(&self) -> Vec<FalseAlarms> {
        let mut all = Vec::new();
        for (detector, benign) in self.benign.iter().enumerate() {
            for (at, &target) in TARGETS.iter().enumerate() {
                let Some(threshold) = self.thresholds[detector][at] else { continue };
                let flagged = benign.iter().filter(|row| row.score > threshold).count() as u64;
                let of = benign.len() as u64;
                let (calibration_rows, rate) = (self.calibration_rows[detector], flagged as f64 / of as f64);
                let intervals = clopper_pearson(flagged, of, CONFIDENCE).zip(achieved_rate(calibration_rows, target, of));
                let Some((interval, expected)) = intervals else { continue };
                all.push(FalseAlarms {
                    detector: NAMES[detector],
                    target,
                    calibration_rows,
                    threshold,
                    flagged,
                    of,
                    rate,
                    interval,
                    expected,
                    as_promised: expected.contains(rate),
                });
            }
        }
        all
    }

    /// What the detectors make of rows; `among` says which benign pictures they are held against.
    pub(super) fn figures<'r>(&self, rows: impl Iterator<Item = &'r Row>, among: impl Fn(u64) -> bool) -> Vec<Figures> {
        let by_detector = scored(self.panel, rows).into_iter().zip(&self.benign).zip(&self.thresholds).enumerate();
        by_detector
            .map(|(detector, ((rows, benign), thresholds))| {
                let benign: Vec<Scored> = benign.iter().copied().filter(|row| among(row.source)).collect();
                figures(NAMES[detector], &rows, &benign, thresholds)
            })
            .collect()
    }
}

impl Figures {
    /// The same, where nothing is to be said of shares.
    pub(super) fn without_shares(self) -> Figures {
        let (flagged, flagged_intervals) = (vec![None; TARGETS.len()], vec![None; TARGETS.len()]);
        Figures { flagged, flagged_intervals, ..self }
    }
}

fn figures(detector: &'static str, rows: &[Scored], benign: &[Scored], thresholds: &[Option<f64>]) -> Figures {
    let (bootstrap, plain) = (Bootstrap::default(), |rows: &[Scored]| rows.iter().map(|row| row.score).collect::<Vec<_>>());
    let (positives, negatives) = (plain(rows), plain(benign));
    let rate = |threshold: &Option<f64>| threshold.and_then(|threshold| flagged(&positives, threshold));
    let interval = |threshold: &Option<f64>| {
        let threshold = (*threshold)?;
        bootstrap.interval(rows, &[], |positives, _| flagged(positives, threshold))
    };
    Figures {
        detector,
        rows: rows.len(),
        auroc: auroc(&positives, &negatives),
        auroc_interval: if rows.is_empty() { None } else { bootstrap.interval(rows, benign, auroc) },
        flagged: thresholds.iter().map(rate).collect(),
        flagged_intervals: thresholds.iter().map(interval).collect(),
    }
}

/// By detector: the rows that it says something of.
fn scored<'r>(panel: &Panel, rows: impl Iterator<Item = &'r Row>) -> Vec<Vec<Scored>> {
    let mut all = vec![Vec::new(); NAMES.len()];
    for row in rows {
        for (scores, score) in all.iter_mut().zip(panel.scores(row)) {
            scores.extend(score.map(|score| Scored { source: row.source, score }));
        }
    }
    all
}

/// What each λ came to: by λ, each attempt's success and score.
pub(super) fn adaptive(
    detector: &'static str,
    epsilon: u8,
    attempts: &[(f32, Vec<(bool, f64)>)],
    thresholds: [Option<f64>; TARGETS.len()],
) -> Result<Adaptive, Failure> {
    let thresholds: Option<Vec<f64>> = thresholds.into_iter().collect();
    let thresholds = thresholds.ok_or("too few pictures for the thresholds")?;
    let count = attempts.first().map_or(0, |(_, attempts)| attempts.len());
    let share = |hits: usize| hits as f64 / count.max(1) as f64;
    let slips = |&(succeeded, score): &(bool, f64), threshold: f64| succeeded && score <= threshold;
    let by_lambda = attempts.iter().map(|(lambda, attempts)| Evaded {
        lambda: *lambda,
        succeeded: share(attempts.iter().filter(|(succeeded, _)| *succeeded).count()),
        undetected: thresholds.iter().map(|&t| share(attempts.iter().filter(|attempt| slips(attempt, t)).count())).collect(),
    });
    let by_lambda: Vec<Evaded> = by_lambda.collect();
    let best = |target: usize| by_lambda.iter().map(|evaded| evaded.undetected[target]).fold(0.0, f64::max);
    let best = (0..thresholds.len()).map(best).collect();
    let any = |t: f64| share((0..count).filter(|&at| attempts.iter().any(|(_, attempts)| slips(&attempts[at], t))).count());
    let best_by_picture = thresholds.iter().map(|&threshold| any(threshold)).collect();
    Ok(Adaptive { detector, epsilon, attempts: count, by_lambda, best, best_by_picture })
}
