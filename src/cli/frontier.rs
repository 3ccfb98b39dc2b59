//! `mustela plan … --frontier`: every plan of a model that no other one beats in both bytes and adaptation rate, beside what the
//! paper's search comes to with the same bytes.

use std::path::Path;

use serde_json::{Value, json};

use super::Failure;
use super::plot::{self, Chart, Drawn, Series};
use crate::ferret::frontier::Point;
use crate::ferret::planner::{Planner, Prospects};
use crate::ferret::pool::Pool;

/// One plan, and the paper's search beside it.
struct Row<'a> {
    point: &'a Point,
    outline: String,
    in_flight: u64,
    /// Rows a second of the plan and of the search, as they count.
    rate: f64,
    greedy: Option<f64>,
}

impl Row<'_> {
    /// Of the plan's rate, that of the search.
    fn ratio(&self) -> Option<f64> {
        self.greedy.map(|greedy| greedy / self.rate)
    }
}

/// Measures the model on this machine and tells its frontier.
pub(super) fn run(planner: &Planner, pool: &Pool, as_json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let prospects = planner.prospects(planner.measure(pool, u64::MAX)?);
    let rows = rows(planner, &prospects);
    if as_json {
        println!("{}", serde_json::to_string_pretty(&describe(planner, &prospects, &rows))?);
    } else {
        print(planner, &rows);
    }
    if let Some(file) = file {
        plot::write(file, &[chart(&rows)])?;
    }
    Ok(())
}

fn rows<'a>(planner: &Planner, prospects: &'a Prospects) -> Vec<Row<'a>> {
    let rate = |point: &Point| point.rate.per_second(None) * planner.step_rows as f64;
    let row = |point: &'a Point| {
        let plan = planner.plan(0, point.stages.clone(), point.workers, point.publication);
        let greedy = planner.greedy(&prospects.profile, point.bytes).map(|point| rate(&point));
        Row { point, outline: plan.outline(), in_flight: plan.in_flight(), rate: rate(point), greedy }
    };
    prospects.frontier.points().into_iter().map(row).collect()
}

/// The mean and the worst of the search's ratios, where it found a plan.
fn summary(rows: &[Row<'_>]) -> Option<(f64, f64)> {
    let ratios: Vec<f64> = rows.iter().filter_map(Row::ratio).collect();
    let worst = ratios.iter().copied().min_by(f64::total_cmp)?;
    Some((ratios.iter().sum::<f64>() / ratios.len() as f64, worst))
}

fn describe(planner: &Planner, prospects: &Prospects, rows: &[Row<'_>]) -> Value {
    let mut said = planner.describe(prospects);
    if let Some(points) = said["points"].as_array_mut() {
        for (point, row) in points.iter_mut().zip(rows) {
            point["greedy_ratio"] = json!(row.ratio());
        }
    }
    let (mean, worst) = summary(rows).unzip();
    said["greedy"] = json!({ "mean_ratio": mean, "worst_ratio": worst });
    said
}

fn print(planner: &Planner, rows: &[Row<'_>]) {
    println!("{:>12} {:>10} {:>7} {:>12} {:>9} {:>8}  plan", "bytes", "rows/s", "value", "adaptation", "in flight", "greedy");
    for row in rows {
        let ratio = row.ratio().map_or_else(|| "none".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:>12} {:>10.0} {:>7.4} {:>12.0} {:>9} {ratio:>8}  {}",
            row.point.bytes,
            1e9 / row.point.rate.period * planner.step_rows as f64,
            row.point.rate.value,
            row.rate,
            row.in_flight,
            row.outline
        );
    }
    println!(
        "\n{} plans of steps of {} rows; adaptation is rows/s times value; greedy is the paper's search within the same bytes, of it",
        rows.len(),
        planner.step_rows
    );
    if let Some((mean, worst)) = summary(rows) {
        let without = rows.iter().filter(|row| row.greedy.is_none()).count();
        println!("greedy: {mean:.3} on the mean, {worst:.3} at worst; it found no plan for {without} of them");
    }
}

fn chart(rows: &[Row<'_>]) -> Chart {
    let mebibytes = |row: &Row<'_>| row.point.bytes as f64 / f64::from(1 << 20);
    let series = |name, rate: &dyn Fn(&Row<'_>) -> Option<f64>| Series {
        name,
        points: rows.iter().filter_map(|row| Some((mebibytes(row), rate(row)?))).collect(),
        drawn: Drawn::Steps,
    };
    Chart {
        title: "What bytes bring: the plans worth having, and the paper's search".into(),
        across: "bytes of the plan (MiB)".into(),
        up: "adaptation rate (rows/s)".into(),
        series: vec![series("frontier", &|row| Some(row.rate)), series("greedy", &|row| row.greedy)],
        marks: Vec::new(),
    }
}
