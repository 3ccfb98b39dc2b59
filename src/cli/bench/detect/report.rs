//! The findings as tables for people, and as JSON.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::detectors::NAMES;
use super::findings::{Figures, Findings, Line, TARGETS};
use super::overhead::Added;
use crate::method::nearside::evaluation::Interval;

/// AUROC of noise that a detector does not tell from clean pictures.
const NOT_TOLD: RangeInclusive<f64> = 0.45..=0.55;

pub(super) fn document(all: &[Findings]) -> Value {
    json!({ "targets": TARGETS, "networks": all })
}

pub(super) fn print(findings: &Findings) {
    let sizes = &findings.sizes;
    println!(
        "{}: {} benign (and {} changed) and {} adversarial pictures to learn from, {} benign for thresholds, {} benign reported; default: {}",
        findings.network,
        sizes.fit_benign,
        sizes.fit_changed,
        sizes.fit_adversarial,
        sizes.calibration_benign,
        sizes.test_benign,
        findings.default_detector
    );
    for chosen in &findings.directions {
        let (blocks, area) = (chosen.blocks.join(", "), chosen.validated_auroc);
        println!("  {} reads {blocks} (AUROC {area:.3} on pictures held out of the fit)", chosen.detector);
    }
    println!("  false alarms on reported benign pictures, with 95 % intervals:");
    for alarms in &findings.false_alarms {
        let met = if alarms.as_promised { "" } else { "  NOT AS PROMISED" };
        println!(
            "    {:<18} target {:>4.1} %: {:>5.2} % {} ({} of {}, threshold from {}; promised {} %){met}",
            alarms.detector,
            100.0 * alarms.target,
            100.0 * alarms.rate,
            percent(alarms.interval),
            alarms.flagged,
            alarms.of,
            alarms.calibration_rows,
            percent(alarms.expected)
        );
    }
    let heading = "AUROC against reported benign pictures (!: noise is told from them, 0.45 to 0.55 being none)";
    table(heading, findings, |line, figures| {
        let is_told = line.is_noise() && figures.auroc.is_some_and(|area| !NOT_TOLD.contains(&area));
        cell(figures.auroc, figures.auroc_interval) + if is_told { "!" } else { "" }
    });
    for (at, target) in TARGETS.iter().enumerate() {
        let heading = format!("share flagged at the threshold for {} % false alarms", 100.0 * target);
        table(&heading, findings, |_, figures| cell(figures.flagged[at], figures.flagged_intervals[at]));
    }
    print_rest(findings);
}

fn percent(interval: Interval) -> String {
    format!("[{:.2}, {:.2}]", 100.0 * interval.low, 100.0 * interval.high)
}

fn table(heading: &str, findings: &Findings, cell: impl Fn(&Line, &Figures) -> String) {
    println!("  {heading}, with 95 % intervals by source picture (mutation: of fewer rows):");
    let names: String = NAMES.iter().map(|name| format!(" {name:>19}")).collect();
    println!("    {:<24} {:>3} {:>9}{names}", "", "ε", "rows");
    for line in &findings.lines {
        let cells: String = line.detectors.iter().map(|figures| format!(" {:>19}", cell(line, figures))).collect();
        println!("    {:<24} {:>3} {:>9}{cells}", line.name, epsilon(line), rows(line));
    }
}

fn epsilon(line: &Line) -> String {
    line.epsilon.map_or_else(String::new, |epsilon| epsilon.to_string())
}

/// Successes of attempts, or just how many there are.
fn rows(line: &Line) -> String {
    if line.is_attack { format!("{} of {}", line.rows, line.attempts) } else { line.rows.to_string() }
}

fn cell(value: Option<f64>, interval: Option<Interval>) -> String {
    match (value, interval) {
        (Some(value), Some(Interval { low, high })) => format!("{value:.3} [{low:.2}, {high:.2}]"),
        (Some(value), None) => format!("{value:.3}"),
        (None, _) => "-".to_owned(),
    }
}

fn print_rest(findings: &Findings) {
    let adaptive = &findings.adaptive;
    println!(
        "  an attack that knows the detector ({}, ε = {}, {} attempts), shares of attempts:",
        adaptive.detector, adaptive.epsilon, adaptive.attempts
    );
    let shares = |shares: &[f64]| {
        let each = TARGETS.iter().zip(shares).map(|(target, share)| format!("{:.3} at {} %", share, 100.0 * target));
        each.collect::<Vec<_>>().join(", ")
    };
    for evaded in &adaptive.by_lambda {
        let undetected = shares(&evaded.undetected);
        println!("    λ = {:<4} succeeded {:.3}, and undetected {undetected}", evaded.lambda, evaded.succeeded);
    }
    println!("    best λ: {}; best λ for each picture: {}", shares(&adaptive.best), shares(&adaptive.best_by_picture));
    let overhead = &findings.overhead;
    println!(
        "  time for a picture, medians of {} rounds in turn: forward {:.2} ms; the default detector adds at most {:.2} %, and mutation at \
         least {:.0} times as much",
        overhead.rounds,
        overhead.forward_ms,
        100.0 * overhead.share_at_most,
        overhead.mutation_ratio_at_least
    );
    for Added { detector, ms, ms_at_most } in &overhead.added {
        println!("    {detector:<18} {ms:>8.3} ms, at most {ms_at_most:.3} ms");
    }
    println!();
}
