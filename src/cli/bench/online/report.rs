//! The comparison as a table for people, as CSV, and as JSON.

use std::path::Path;

use serde_json::{Value, json};

use super::axes;
use super::cells::{Cell, Key};
use crate::cli::Failure;

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
            key.system.clone() + &axes::words(&key.compensation, &key.learner),
            of(&|cell| 100.0 * cell.figures.test_accuracy).0,
            figures.bytes as f64 / 1024.0,
            of(&|cell| cell.figures.learned).0,
            of(&|cell| cell.figures.latency).0,
            figures.plan
        );
    }
}

/// All cells with their agm.
pub(super) fn document(cells: &[Cell]) -> Value {
    let with_gain = |cell: &Cell| json!({ "key": cell.key, "figures": cell.figures, "agm": gain(cell, cells) });
    json!({ "cells": cells.iter().map(with_gain).collect::<Vec<_>>() })
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
    fn a_file_has_a_line_for_each_cell() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cells.csv");
        write_csv(&path, &[cell(BASE, 0, 0.5, 1000), cell("oracle", 0, 0.6, 2000)]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.lines().count() == 3 && text.starts_with("batch,") && text.contains(",oracle,"), "{text}");
    }
}
