//! The protocol for one network: clean rows, detectors, attacks, controls.

use std::path::Path;

use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use serde::Serialize;

use super::attack::{Evasion, Goal, Method, craft, png};
use super::baselines::{disagreement, roughness};
use super::detectors::{Examples, NAMES, Panel, Row, default_detector};
use super::findings::{self, Adaptive, Chosen, Figures, Findings, Line, Sizes, Yardstick};
use super::pictures::{Change, Source, Split};
use super::victim::Victim;
use super::{SEED, in_parallel, overhead};
use crate::cli::Failure;
use crate::disk::{Disk, FileSystem};
use crate::ferret::pool::Pool;
use crate::network::random;

/// How much is done.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Scale {
    /// Pictures of all three parts.
    pub(super) pictures: usize,
    /// Of those that detectors learn from, how many are attacked.
    pub(super) fit_attacked: usize,
    /// Reported pictures that each attack is tried on.
    pub(super) attacked: usize,
    /// Reported pictures that each control changes.
    pub(super) controls: usize,
    /// Calibration and reported benign pictures, and rows of each line, that the mutation baseline is run on: eight forwards each.
    pub(super) mutated_benign: usize,
    pub(super) mutated: usize,
    /// Steps of PGD, each a quarter of ε.
    pub(super) steps: usize,
    /// The strengths, in 255ths, of attacks that come in several.
    pub(super) epsilons: &'static [u8],
    /// What a unit of score counts beside the loss, where the attack knows the detector.
    pub(super) lambdas: &'static [f32],
    /// Rounds of the measurement of time.
    pub(super) rounds: usize,
}

/// Of the encoders, whose gradients take most of the time.
pub(super) const FULL: Scale = Scale {
    pictures: 800,
    fit_attacked: 100,
    attacked: 50,
    controls: 100,
    mutated_benign: 60,
    mutated: 20,
    steps: 10,
    epsilons: &[2, 4, 8, 16],
    lambdas: &[0.1, 0.3, 1.0, 3.0],
    rounds: 200,
};

/// As few as a threshold for 1 % can come from.
pub(super) const QUICK: Scale = Scale {
    pictures: 500,
    fit_attacked: 40,
    attacked: 10,
    controls: 16,
    mutated_benign: 0,
    mutated: 0,
    steps: 4,
    epsilons: &[8],
    lambdas: &[1.0],
    rounds: 24,
};

/// Of the live network, which is small.
pub(super) const LIVE: Scale = Scale {
    pictures: 1500,
    fit_attacked: 600,
    attacked: 400,
    controls: 400,
    mutated_benign: 300,
    mutated: 50,
    rounds: 600,
    ..FULL
};

/// The strength of the attack that detectors learn, and of those that come in one strength.
const EPSILON: u8 = 8;
const SEEN: &str = "PGD, random target";
/// What a hardened detector learns to be harmless.
const HARMLESS: [Change; 5] =
    [Change::SignNoise(EPSILON), Change::UniformNoise(EPSILON), Change::SignNoise(EPSILON / 2), Change::Jpeg, Change::Blur];

/// What is examined.
pub(super) struct Setting<'a> {
    pub(super) victim: &'a dyn Victim,
    pub(super) sources: &'a [Source],
    /// Benign pictures of another kind.
    pub(super) elsewhere: &'a [Source],
    pub(super) scale: &'a Scale,
    /// Blocks that detectors read; chosen where there are none.
    pub(super) blocks: Vec<usize>,
    /// Where adversarial pictures are kept.
    pub(super) keep: Option<&'a Path>,
    pub(super) pool: &'a Pool,
}

/// How the goal of an attack follows from the class that a picture had.
#[derive(Clone, Copy)]
enum Aim {
    Away,
    Random,
    /// Pictures of that class are left out.
    One(usize),
}

/// Runs all of it.
pub(super) fn examine(setting: &Setting<'_>) -> Result<Findings, Failure> {
    let (scale, split) = (setting.scale, Split::of(setting.sources));
    let fit = setting.rows(split.fit, 0)?;
    let calibration = setting.rows(split.calibration, scale.mutated_benign)?;
    let test = setting.rows(split.test, scale.mutated_benign)?;
    let seen = Method { epsilon: EPSILON, steps: scale.steps };
    let attacked = scale.fit_attacked.min(fit.len());
    let (_, learned) = setting.attack(&split.fit[..attacked], &fit[..attacked], ("fit", Aim::Random, seen), None)?;
    let learned: Vec<Row> = learned.into_iter().flatten().collect();
    let widths: Vec<usize> = setting.victim.blocks().iter().map(|(_, width)| *width).collect();
    let changed = setting.changed(&split.fit[..attacked])?;
    let examples = Examples { benign: &fit, changed: &changed, adversarial: &learned };
    let panel = Panel::fit(&examples, &widths, &setting.blocks, setting.pool)?;
    let yardstick = Yardstick::new(&panel, &calibration, &test);
    // The answer that is most usual: then there are benign pictures of it to report as well.
    let goal = most_usual(fit.iter().chain(&calibration), setting.victim.classes());
    let mut lines = Vec::new();
    for (name, aim, method) in attacks(scale, goal) {
        let attacked = scale.attacked.min(test.len());
        let (attempts, rows) = setting.attack(&split.test[..attacked], &test[..attacked], (name, aim, method), None)?;
        lines.push(line(name, Some(method.epsilon), attempts, rows.iter().flatten(), &yardstick));
    }
    let (adaptive, hidden) = setting.adapt(&panel, &yardstick, split.test, &test)?;
    lines.extend(hidden);
    let of_goal = test.iter().filter(|row| row.class == goal);
    let figures = yardstick.figures(of_goal.clone(), |source| test.iter().all(|row| row.source != source || row.class != goal));
    let count = of_goal.count();
    lines.push(Line { detectors: figures, ..control("benign of the goal", None, count) });
    lines.push(Line {
        // The thresholds are theirs, so what share of them is flagged says nothing.
        detectors: yardstick.figures(calibration.iter(), |_| true).into_iter().map(Figures::without_shares).collect(),
        ..control("other clean pictures", None, calibration.len())
    });
    lines.extend(setting.controls(split.test, &yardstick)?);
    let blocks = setting.victim.blocks();
    let named = |places: &[usize]| places.iter().map(|&place| blocks[place].0.clone()).collect();
    let chosen = panel.linear.iter().zip(NAMES);
    let directions =
        chosen.map(|(linear, detector)| Chosen { detector, blocks: named(&linear.blocks), validated_auroc: linear.validated });
    Ok(Findings {
        network: setting.victim.name(),
        scale: *scale,
        sizes: Sizes {
            fit_benign: fit.len(),
            fit_changed: changed.len(),
            fit_adversarial: learned.len(),
            calibration_benign: calibration.len(),
            test_benign: test.len(),
        },
        default_detector: NAMES[default_detector()],
        directions: directions.collect(),
        false_alarms: yardstick.false_alarms(),
        lines,
        adaptive,
        overhead: overhead::measure(
            setting.victim,
            &panel,
            default_detector(),
            &split.test[..scale.rounds.min(split.test.len())],
        )?,
    })
}

/// The attacks that are reported, the seen one among them.
fn attacks(scale: &Scale, goal: usize) -> Vec<(&'static str, Aim, Method)> {
    let pgd = |epsilon| Method { epsilon, steps: scale.steps };
    let mut attacks = Vec::new();
    attacks.extend(scale.epsilons.iter().map(|&epsilon| (SEEN, Aim::Random, pgd(epsilon))));
    attacks.push(("PGD, one goal", Aim::One(goal), pgd(EPSILON)));
    attacks.push(("PGD, untargeted", Aim::Away, pgd(EPSILON)));
    attacks.extend(scale.epsilons.iter().map(|&epsilon| ("FGSM", Aim::Away, Method { epsilon, steps: 1 })));
    attacks
}

fn most_usual<'a>(rows: impl Iterator<Item = &'a Row>, classes: usize) -> usize {
    let mut counts = vec![0; classes];
    rows.for_each(|row| counts[row.class] += 1);
    let counts = counts.iter().enumerate().rev();
    counts.max_by_key(|(_, count)| **count).map_or(0, |(class, _)| class)
}

fn control(name: &str, epsilon: Option<u8>, rows: usize) -> Line {
    Line { name: name.to_owned(), is_attack: false, epsilon, attempts: rows, rows, detectors: Vec::new() }
}

fn line<'r>(
    name: &str,
    epsilon: Option<u8>,
    attempts: usize,
    rows: impl Iterator<Item = &'r Row> + Clone,
    yardstick: &Yardstick<'_>,
) -> Line {
    let detectors = yardstick.figures(rows.clone(), |_| true);
    Line { name: name.to_owned(), is_attack: true, epsilon, attempts, rows: rows.count(), detectors }
}

fn keep(folder: &Path, source: u64, picture: &RgbImage) -> Result<(), Failure> {
    let bytes = png(picture)?;
    FileSystem.create_dir_all(folder)?;
    Ok(FileSystem.write_atomic(&folder.join(format!("{source}.png")), &mut |out| out.write_all(&bytes))?)
}

impl Setting<'_> {
    /// The generator of one picture's draws for one purpose.
    fn generator(&self, source: u64, purpose: &str) -> ChaCha8Rng {
        random::stream(SEED, source, purpose)
    }

    /// A row of a picture; a mutated one where the baseline is to say something of it.
    fn row(&self, source: u64, picture: &RgbImage, is_mutated: bool) -> Result<Row, Failure> {
        let seen = self.victim.look(picture)?;
        let disagreement = if is_mutated { Some(self.disagreement(source, picture)?) } else { None };
        Ok(Row { source, class: seen.class(), states: seen.states, roughness: roughness(picture), disagreement })
    }

    fn disagreement(&self, source: u64, picture: &RgbImage) -> Result<f64, Failure> {
        disagreement(self.victim, picture, &mut self.generator(source, "mutants"))
    }

    fn rows(&self, sources: &[Source], mutated: usize) -> Result<Vec<Row>, Failure> {
        let numbered: Vec<_> = sources.iter().enumerate().collect();
        in_parallel(&numbered, |(at, source)| self.row(source.number, &source.picture, *at < mutated))
    }

    /// Attacks pictures whose clean rows are known; how many were attacked, and the row of each success.
    fn attack(
        &self,
        sources: &[Source],
        clean: &[Row],
        (name, aim, method): (&str, Aim, Method),
        evasion: Option<&Evasion>,
    ) -> Result<(usize, Vec<Option<Row>>), Failure> {
        let purpose = format!("{name} {}", method.epsilon);
        let pairs: Vec<_> = sources.iter().zip(clean).enumerate().collect();
        let pairs: Vec<_> =
            pairs.into_iter().filter(|(_, (_, clean))| !matches!(aim, Aim::One(goal) if goal == clean.class)).collect();
        let rows = in_parallel(&pairs, |(at, (source, clean))| {
            let mut generator = self.generator(source.number, &purpose);
            let goal = match aim {
                Aim::Away => Goal::Away(clean.class),
                Aim::One(goal) => Goal::Toward(goal),
                Aim::Random => {
                    let others = self.victim.classes() as u64 - 1;
                    Goal::Toward((clean.class + 1 + (generator.next_u64() % others) as usize) % self.victim.classes())
                }
            };
            let picture = craft(self.victim, &source.picture, goal, method, evasion, &mut generator)?;
            let mut row = self.row(source.number, &picture, false)?;
            if !goal.is_met(row.class) {
                return Ok(None);
            }
            if let Some(folder) = self.keep {
                let knowing = evasion.map_or_else(String::new, |evasion| format!(", lambda {}", evasion.lambda));
                let folder = std::path::absolute(folder)?.join(self.victim.name()).join(format!("{purpose}{knowing}"));
                keep(&folder, source.number, &picture)?;
            }
            if *at < self.scale.mutated {
                row.disagreement = Some(self.disagreement(source.number, &picture)?);
            }
            Ok(Some(row))
        })?;
        Ok((pairs.len(), rows))
    }

    /// The seen attack once more, by someone who knows the default detector and its threshold for the larger rate.
    fn adapt(
        &self,
        panel: &Panel,
        yardstick: &Yardstick<'_>,
        sources: &[Source],
        clean: &[Row],
    ) -> Result<(Adaptive, Vec<Line>), Failure> {
        let detector = default_detector();
        let (linear, method) = (&panel.linear[detector], Method { epsilon: EPSILON, steps: self.scale.steps });
        let thresholds = [0, 1].map(|target| yardstick.threshold(detector, target));
        let threshold = thresholds[1].ok_or("too few pictures for a threshold")?;
        let mut weights = vec![None; self.victim.blocks().len()];
        let mut rest = linear.probe.weights.as_slice();
        for &block in &linear.blocks {
            let (of_block, others) = rest.split_at(self.victim.blocks()[block].1);
            (weights[block], rest) = (Some(of_block.to_vec()), others);
        }
        let count = self.scale.attacked.min(clean.len());
        let (mut lines, mut attempts) = (Vec::new(), Vec::new());
        for &lambda in self.scale.lambdas {
            let evasion = Evasion { weights: weights.clone(), bias: linear.probe.bias, threshold, lambda };
            // The same targets and starts as the attack that does not know the detector.
            let (tried, rows) = self.attack(&sources[..count], &clean[..count], (SEEN, Aim::Random, method), Some(&evasion))?;
            lines.push(line(&format!("PGD, adaptive λ = {lambda}"), Some(EPSILON), tried, rows.iter().flatten(), yardstick));
            let ends = rows.iter().map(|row| row.as_ref().map_or((false, f64::INFINITY), |row| (true, linear.score(row))));
            attempts.push((lambda, ends.collect()));
        }
        Ok((findings::adaptive(NAMES[detector], EPSILON, &attempts, thresholds)?, lines))
    }

    /// Pictures to learn from, each changed in one of several ways, in turn.
    fn changed(&self, sources: &[Source]) -> Result<Vec<Row>, Failure> {
        let numbered: Vec<_> = sources.iter().zip(HARMLESS.iter().cycle()).collect();
        in_parallel(&numbered, |(source, change)| {
            let picture = change.apply(&source.picture, &mut self.generator(source.number, "harmless"))?;
            self.row(source.number, &picture, false)
        })
    }

    /// Reported pictures, changed without a purpose, and pictures of another kind.
    fn controls(&self, sources: &[Source], yardstick: &Yardstick<'_>) -> Result<Vec<Line>, Failure> {
        let noises = self.scale.epsilons.iter().flat_map(|&epsilon| [Change::UniformNoise(epsilon), Change::SignNoise(epsilon)]);
        let changes = noises.chain([Change::Jpeg, Change::Blur, Change::Crop]);
        let sources: Vec<_> = sources.iter().take(self.scale.controls).enumerate().collect();
        let mut lines = Vec::new();
        for change in changes {
            let rows = in_parallel(&sources, |(at, source)| {
                let purpose = format!("{} {:?}", change.name(), change.epsilon());
                let picture = change.apply(&source.picture, &mut self.generator(source.number, &purpose))?;
                self.row(source.number, &picture, *at < self.scale.mutated)
            })?;
            let detectors = yardstick.figures(rows.iter(), |_| true);
            lines.push(Line { detectors, ..control(change.name(), change.epsilon(), rows.len()) });
        }
        if !self.elsewhere.is_empty() {
            let rows = self.rows(self.elsewhere, self.scale.mutated)?;
            let detectors = yardstick.figures(rows.iter(), |_| true);
            lines.push(Line { detectors, ..control("pictures of another kind", None, rows.len()) });
        }
        Ok(lines)
    }
}
