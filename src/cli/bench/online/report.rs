//! The comparison as a table for people, as CSV, and as JSON.

use std::path::Path;

use serde_json::{Value, json};

use super::axes;
use super::cells::{Cell, Key};
use crate::cli::Failure;
use crate::cli::plot::{Chart, Drawn, Series};

/// The system that gains are told against.
const BASE: &str = "1-skip";

/// Ferret's agm: how many percentage points of online accuracy a system has more than another one, less the logarithm of how many times
/// the memory it takes.
pub(super) fn agm(accuracy: f64, bytes: u64, base_accuracy: f64, base_bytes: u64) -> f64 {
    100.0 * (accuracy - base_accuracy) - (bytes as f64 / base_bytes as f64).ln()
}

/// The cell's agm against 1-Skip in the same place, if that was run.
fn gain(cell: &Cell, cells: &[Cell]) -> Option<f64> {
    // The base is the plain one, whatever the system compensates or remembers.
    let (compensation, learner) = Default::default();
    let place = Key { system: BASE.into(), compensation, learner, ..cell.key.clone() };
    let base = &cells.iter().find(|other| other.key == place)?.figures;
    Some(agm(cell.figures.online_accuracy, cell.figures.bytes, base.online_accuracy, base.bytes))
}

/// The mean, and the standard deviation of one.
fn mean(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

/// The cells of one line: they differ by their seed alone.
fn lines(cells: &[Cell]) -> Vec<Vec<&Cell>> {
    let mut lines: Vec<Vec<&Cell>> = Vec::new();
    for cell in cells {
        let same = |line: &&mut Vec<&Cell>| {
            line.first().is_some_and(|first| Key { seed: cell.key.seed, ..first.key.clone() } == cell.key)
        };
        match lines.iter_mut().find(same) {
            Some(line) => line.push(cell),
            None => lines.push(vec![cell]),
        }
    }
    lines
}

/// Prints the table.
pub(super) fn print(cells: &[Cell]) {
    let mut place = String::new();
    for line in lines(cells) {
        let Some(Cell { key, figures }) = line.first() else { continue };
        let units = if key.units == 0 { "a unit for each worker and stage".to_owned() } else { format!("{} units", key.units) };
        let heading = format!(
            "{} ({} rows of steps of {}), {}, a step every {} of a step's time, {units}, {} seeds",
            key.stream,
            key.rows,
            key.batch,
            key.network,
            key.ratio,
            line.len()
        );
        if heading != place {
            println!("{heading}");
            println!(
                "  {:<30} {:>9} {:>5} {:>9} {:>10} {:>8} {:>8} {:>8}  plan",
                "system", "online %", "±", "test %", "KiB", "learned", "latency", "agm"
            );
            place = heading;
        }
        let of = |figure: &dyn Fn(&Cell) -> f64| mean(&line.iter().map(|cell| figure(cell)).collect::<Vec<_>>());
        let (online, deviation) = of(&|cell| 100.0 * cell.figures.online_accuracy);
        let gains: Vec<f64> = line.iter().filter_map(|cell| gain(cell, cells)).collect();
        let gain = if gains.is_empty() { "-".to_owned() } else { format!("{:+.2}", mean(&gains).0) };
        println!(
            "  {:<30} {online:>9.2} {deviation:>5.2} {:>9.2} {:>10.0} {:>8.3} {:>8.2} {gain:>8}  {}",
            name(key),
            of(&|cell| 100.0 * cell.figures.test_accuracy).0,
            figures.bytes as f64 / 1024.0,
            of(&|cell| cell.figures.learned).0,
            of(&|cell| cell.figures.latency).0,
            figures.plan
        );
    }
    print_summary(cells);
}

/// A system with what it compensates and remembers.
fn name(key: &Key) -> String {
    key.system.clone() + &axes::words(&key.compensation, &key.learner)
}

/// What each system came to over all places: streams and ratios count alike, and so do seeds.
fn summaries(cells: &[Cell]) -> Vec<Value> {
    let mut names: Vec<String> = Vec::new();
    for cell in cells {
        if !names.contains(&name(&cell.key)) {
            names.push(name(&cell.key));
        }
    }
    let of = |system: String| {
        let lines = lines(cells).into_iter().filter(|line| line.first().is_some_and(|cell| name(&cell.key) == system));
        let of_line = |line: Vec<&Cell>| {
            let online = mean(&line.iter().map(|cell| 100.0 * cell.figures.online_accuracy).collect::<Vec<_>>()).0;
            let gains: Vec<f64> = line.iter().filter_map(|cell| gain(cell, cells)).collect();
            (online, mean(&gains).0)
        };
        let (online, gains): (Vec<f64>, Vec<f64>) = lines.map(of_line).unzip();
        json!({ "system": system, "places": online.len(), "online_accuracy": mean(&online).0, "agm": mean(&gains).0 })
    };
    names.into_iter().map(of).collect()
}

/// For each line of another system: how many times the memory of the smallest plan of Ferret's it takes that is at least as accurate in
/// the same place. None where no plan of Ferret's is.
fn memory_ratios(cells: &[Cell]) -> Vec<(String, Option<f64>)> {
    let lines = lines(cells);
    let place = |key: &Key| Key { system: String::new(), seed: 0, ..key.clone() };
    let accuracy = |line: &[&Cell]| mean(&line.iter().map(|cell| cell.figures.online_accuracy).collect::<Vec<_>>()).0;
    let is_ferret = |line: &[&Cell]| line.first().is_some_and(|cell| cell.key.system.starts_with("ferret"));
    let bytes = |line: &[&Cell]| line.first().map_or(0, |cell| cell.figures.bytes) as f64;
    let ratio = |line: &Vec<&Cell>| {
        let key = &line.first()?.key;
        let as_good = lines.iter().filter(|other| {
            is_ferret(other)
                && other.first().is_some_and(|cell| place(&cell.key) == place(key))
                && accuracy(other) >= accuracy(line)
        });
        let least = as_good.map(|other| bytes(other)).min_by(f64::total_cmp);
        Some((format!("{} on {} at {}", name(key), key.stream, key.ratio), least.map(|least| bytes(line) / least)))
    };
    lines.iter().filter(|line| !is_ferret(line)).filter_map(ratio).collect()
}

/// For each ratio the online accuracy of each system over its memory, in the mean over streams; memory in times of what 1-Skip takes.
pub(super) fn charts(cells: &[Cell]) -> Vec<Chart> {
    let mut ratios: Vec<f64> = cells.iter().map(|cell| cell.key.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.dedup();
    let of_ratio = |ratio: f64| {
        let point = |system: &str| -> Option<(f64, f64)> {
            let of = cells.iter().filter(|cell| cell.key.ratio == ratio && name(&cell.key) == system);
            let points = of.filter_map(|cell| {
                let base = Key { system: BASE.into(), ..cell.key.clone() };
                let base = &cells.iter().find(|other| other.key == base)?.figures;
                Some((cell.figures.bytes as f64 / base.bytes as f64, 100.0 * cell.figures.online_accuracy))
            });
            let (memory, accuracy): (Vec<f64>, Vec<f64>) = points.unzip();
            (!memory.is_empty()).then(|| (mean(&memory).0, mean(&accuracy).0))
        };
        let series = |name, systems: &[&str], drawn| Series {
            name,
            points: systems.iter().filter_map(|system| point(system)).collect(),
            drawn,
        };
        Chart {
            title: format!("a step every {ratio} of a sequential step's time"),
            across: "memory (times 1-Skip's)".into(),
            up: "online accuracy (%)".into(),
            series: vec![
                series("Ferret M-, M, M+", &["ferret-minus", "ferret", "ferret-plus"], Drawn::Line),
                series("DAPPLE, PipeDream, 2BW", &["dapple", "pipedream", "2bw"], Drawn::Dots),
                series("1-Skip, Random-N, Last-N, Camel", &[BASE, "random-n", "last-n", "camel"], Drawn::Dots),
                series("Oracle", &["oracle"], Drawn::Dots),
            ],
            marks: Vec::new(),
        }
    };
    ratios.into_iter().map(of_ratio).collect()
}

/// Prints what the table comes to.
fn print_summary(cells: &[Cell]) {
    println!("over all streams and ratios");
    println!("  {:<30} {:>6} {:>9} {:>8}", "system", "places", "online %", "agm");
    for summary in summaries(cells) {
        let number = |field: &str| summary[field].as_f64().unwrap_or(f64::NAN);
        let system = summary["system"].as_str().unwrap_or_default();
        println!("  {system:<30} {:>6} {:>9.2} {:>+8.2}", summary["places"], number("online_accuracy"), number("agm"));
    }
    println!("memory for the same online accuracy, as times that of the smallest plan of Ferret's that has it");
    for (place, ratio) in memory_ratios(cells) {
        println!("  {place:<50} {:>8}", ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
    }
}

/// All cells with their agm, and what they come to.
pub(super) fn document(cells: &[Cell]) -> Value {
    let with_gain = |cell: &Cell| json!({ "key": cell.key, "figures": cell.figures, "agm": gain(cell, cells) });
    let ratios: Vec<Value> =
        memory_ratios(cells).into_iter().map(|(place, ratio)| json!({ "place": place, "memory_ratio": ratio })).collect();
    json!({ "cells": cells.iter().map(with_gain).collect::<Vec<_>>(), "summaries": summaries(cells), "memory_ratios": ratios })
}

/// Writes all cells with their agm as CSV.
pub(super) fn write_csv(path: &Path, cells: &[Cell]) -> Result<(), Failure> {
    let mut writer = csv::Writer::from_path(path)?;
    for (number, cell) in cells.iter().enumerate() {
        let parts = [serde_json::to_value(&cell.key)?, serde_json::to_value(&cell.figures)?, json!({ "agm": gain(cell, cells) })];
        let fields: Vec<(&String, &Value)> = parts.iter().filter_map(Value::as_object).flatten().collect();
        if number == 0 {
            writer.write_record(fields.iter().map(|(name, _)| name.as_str()))?;
        }
        writer.write_record(fields.iter().map(|(_, value)| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        }))?;
    }
    writer.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::cells::Figures;
    use super::*;

    fn cell(system: &str, seed: u64, online_accuracy: f64, bytes: u64) -> Cell {
        let key = Key { system: system.into(), seed, ..Key::default() };
        Cell { key, figures: Figures { online_accuracy, bytes, ..Figures::default() } }
    }

    #[test]
    fn gains_are_points_less_the_logarithm_of_the_memory() {
        let cells = [cell(BASE, 0, 0.5, 1000), cell(BASE, 1, 0.4, 1000), cell("oracle", 1, 0.6, 2000)];
        assert_eq!(gain(&cells[0], &cells), Some(0.0));
        assert!((gain(&cells[2], &cells).unwrap() - (20.0 - 2f64.ln())).abs() < 1e-9);
        assert_eq!(gain(&cells[2], &cells[2..]), None);
        assert_eq!(lines(&cells).iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn memory_is_compared_at_the_same_accuracy() {
        let cells = [
            cell("2bw", 0, 0.5, 9000),
            cell("ferret", 0, 0.6, 3000),
            cell("ferret-minus", 0, 0.5, 2000),
            cell("ferret-plus", 0, 0.7, 9000),
            cell("oracle", 0, 0.8, 2000),
        ];
        let ratios = memory_ratios(&cells);
        assert_eq!(ratios.iter().map(|(_, ratio)| *ratio).collect::<Vec<_>>(), [Some(4.5), None]);
        let summaries = summaries(&cells);
        assert_eq!((summaries.len(), &summaries[1]["system"]), (5, &json!("ferret")));
    }

    #[test]
    fn a_file_has_a_line_for_each_cell() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cells.csv");
        write_csv(&path, &[cell(BASE, 0, 0.5, 1000), cell("oracle", 0, 0.6, 2000)]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.lines().count() == 3 && text.starts_with("batch,") && text.contains(",oracle,"), "{text}");
    }
}
