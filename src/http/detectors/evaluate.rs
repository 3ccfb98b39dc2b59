//! The door that measures a detector on labelled pictures that it has not learned from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::detect::{Seen, look, reads};
use super::pictures::{Sent, text};
use super::{CLASSES, find};
use crate::http::problem::{Fault, Problem};
use crate::http::{App, body, request};
use crate::json::Members;
use crate::method::nearside::evaluation::{Bootstrap, Confusion, Scored, auprc, auroc, clopper_pearson, flagged};

/// Of every interval.
const CONFIDENCE: f64 = 0.95;
/// Rates of false alarms at which the rate of true ones is told, by the benign pictures of the evaluation itself.
const RATES: [f64; 2] = [0.01, 0.05];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    rows: Vec<Members>,
}

/// What is said of a picture beside itself.
struct Said {
    adversarial: bool,
    /// The picture that it was made of: what has one source is drawn together.
    source: u64,
}

pub(in crate::http) async fn evaluate(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let began = Instant::now();
    let (live, body) = body::unless_refused(find(&app, &name), body, app.body_limits).await?;
    request::is_json(&headers)?;
    let bytes = body::read(&headers, body, app.body_limits).await?;
    let (field, side) = reads(&live.stream.schema);
    let (sent, said) = app
        .blocking(move |_| {
            let Document { rows } = request::read_json(&bytes)?;
            let sent = Sent::decode(side, rows.iter().map(|Members(row)| text(row, &field)))?;
            let said = said(&rows, &sent, &field)?;
            Ok((sent, said))
        })
        .await?;
    let seen = look(&app, &live, sent.rows, began).await?;
    app.blocking(move |_| {
        let figures = figures(&seen, &said);
        Ok(Json(json!({
            "detector": live.name,
            "model_version": seen.version,
            "threshold": seen.threshold,
            "figures": figures,
        })))
    })
    .await
}

/// The labels and sources of all rows: figures of some would be figures of other rows than were sent.
fn said(rows: &[Members], sent: &Sent, field: &str) -> Result<Vec<Said>, Problem> {
    let (mut said, mut faults, mut sources) = (Vec::with_capacity(rows.len()), Vec::new(), BTreeMap::new());
    for (number, (Members(row), place)) in rows.iter().zip(&sent.places).enumerate() {
        let mut fault = |column: &str, reason: String| {
            faults.push(Fault { row: Some(number as u64), column: Some(column.to_owned()), reason });
        };
        if let Err(reason) = place {
            fault(field, reason.clone());
        }
        let source = match row.get("source") {
            // Rows without one are each of their own.
            None | Some(Value::Null) => number as u64,
            Some(source) => {
                let next = (rows.len() + sources.len()) as u64;
                *sources.entry(source.to_string()).or_insert(next)
            }
        };
        match row.get("label").and_then(class) {
            Some(class) => said.push(Said { adversarial: class == 1, source }),
            None => fault("label", "expected `benign` or `adversarial`, or their numbers 0 and 1".to_owned()),
        }
    }
    if faults.is_empty() {
        return Ok(said);
    }
    let many = if faults.len() == 1 { "one fault".to_owned() } else { format!("{} faults", faults.len()) };
    let detail = format!("{many}: all rows need a picture and a label to be measured with");
    Err(Problem::unprocessable("invalid_rows", detail).with_errors(faults))
}

/// A class by its name or its number, as in examples.
fn class(label: &Value) -> Option<usize> {
    let number = label.as_u64().map(|number| number as usize).filter(|&number| number < CLASSES.len());
    number.or_else(|| CLASSES.iter().position(|class| label.as_str() == Some(class)))
}

fn figures(seen: &Seen, said: &[Said]) -> Value {
    let of = |adversarial: bool| -> Vec<Scored> {
        let rows = said.iter().zip(&seen.scores).filter(|(said, _)| said.adversarial == adversarial);
        rows.map(|(said, &score)| Scored { source: said.source, score }).collect()
    };
    let (adversarial, benign) = (of(true), of(false));
    let scores = |rows: &[Scored]| -> Vec<f64> { rows.iter().map(|row| row.score).collect() };
    let (positives, negatives) = (scores(&adversarial), scores(&benign));
    let bootstrap = Bootstrap { confidence: CONFIDENCE, ..Bootstrap::default() };
    let confusion = Confusion::at(seen.threshold.score, &positives, &negatives);
    let rate = |_: &[f64], negatives: &[f64]| flagged(negatives, seen.threshold.score);
    // Rows of one source are not independent of each other.
    let sources = |rows: &mut dyn Iterator<Item = &Scored>| rows.map(|row| row.source).collect::<BTreeSet<u64>>().len();
    let (of, alarmed) = (sources(&mut benign.iter()), sources(&mut benign.iter().filter(|row| row.score > seen.threshold.score)));
    let by_draws = if of < benign.len() { bootstrap.interval(&adversarial, &benign, rate) } else { None };
    // Draws say nothing where all rows, or none, are false alarms; counts of sources do.
    let all_agree = [0, negatives.len() as u64].contains(&confusion.false_positives) || of == negatives.len();
    let by_counts = if all_agree { clopper_pearson(alarmed as u64, of as u64, CONFIDENCE) } else { None };
    let fpr_interval = by_draws.or(by_counts);
    let at_rates = RATES.map(|rate| {
        let statistic = |positives: &[f64], negatives: &[f64]| tpr_at(rate, positives, negatives);
        json!({
            "fpr": rate,
            "tpr": statistic(&positives, &negatives),
            "tpr_interval": bootstrap.interval(&adversarial, &benign, statistic),
        })
    });
    json!({
        "rows": { "benign": negatives.len(), "adversarial": positives.len() },
        "auroc": auroc(&positives, &negatives),
        "auroc_interval": bootstrap.interval(&adversarial, &benign, auroc),
        "auprc": auprc(&positives, &negatives),
        "at_threshold": {
            "accuracy": confusion.accuracy(),
            "precision": confusion.precision(),
            "recall": confusion.recall(),
            "f1": confusion.f1(),
            "fpr": flagged(&negatives, seen.threshold.score),
            "fpr_interval": fpr_interval,
        },
        "at_fpr": at_rates,
        "confidence": CONFIDENCE,
    })
}

/// The rate of true alarms above the lowest threshold that at most this share of the negatives lies above; none where one of them alone is
/// more than that share.
fn tpr_at(rate: f64, positives: &[f64], negatives: &[f64]) -> Option<f64> {
    let mut negatives = negatives.to_vec();
    negatives.sort_unstable_by(f64::total_cmp);
    let alarms = (rate * negatives.len() as f64).floor() as usize;
    if alarms == 0 {
        return None;
    }
    let threshold = negatives.len().checked_sub(1 + alarms).and_then(|place| negatives.get(place))?;
    flagged(positives, *threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn true_alarms_are_told_at_a_rate_of_false_ones() {
        let negatives: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(tpr_at(0.01, &[97.5, 98.5, 99.5, 100.0], &negatives), Some(0.75), "one of a hundred lies above 98");
        assert_eq!(tpr_at(0.009, &[99.0, 99.5], &negatives), None, "one of a hundred is more");
        assert_eq!(tpr_at(0.05, &[1.0], &[]), None);
    }
}
