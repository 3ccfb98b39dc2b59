//! The fold of a model once more, without a crash, a checkpoint or a service: its records and its decisions, in order, from the first.

use std::collections::VecDeque;

use serde::Deserialize;

use crate::cli::Failure;
use crate::fold::{Fold, Outcome, Sequence, Step, Verdict, Version};
use crate::model::checkpoint::state_hash;
use crate::model::decision::{Decision, What};
use crate::model::kind::{Given, Kinds};
use crate::model::queued_bytes_max;
use crate::model::spec::ModelSpec;
use crate::model::status::Counters;
use crate::rows::Rows;
use crate::stream::Schema;

/// What the log keeps of a model, as far as it says what is folded.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Kept {
    pub(super) spec: ModelSpec,
    /// The row after which the model begins.
    pub(super) origin: Sequence,
}

/// What a fold came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Folded {
    pub(super) version: Version,
    pub(super) decisions: u64,
    pub(super) counters: Counters,
    pub(super) state_hash: String,
}

/// Folds all records of a stream, each with the sequence number of its first row, with the decisions made for the model.
pub(super) fn refold(
    kinds: &Kinds,
    kept: &Kept,
    schema: &Schema,
    records: &[(Sequence, Rows)],
    decisions: &[Decision],
) -> Result<Folded, Failure> {
    let spec = &kept.spec;
    let mut fold = kinds.get(&spec.kind)?.build(Given {
        settings: &spec.settings,
        schema,
        queued_bytes: queued_bytes_max(schema, None),
        may_skip: spec.overload.may_skip(),
    })?;
    let (mut cursor, mut counters, mut outcomes) = (kept.origin, Counters::default(), Vec::new());
    let mut pending = decisions.iter().peekable();
    // What is left of the newest skip: its end, and the rows before it that are learned.
    let mut selection: Option<(Sequence, VecDeque<Sequence>)> = None;
    loop {
        while let Some(decision) = pending.next_if(|decision| decision.at.sequence == cursor) {
            fold.drain(&mut outcomes)?;
            match (&decision.what, decision.what.change()) {
                (What::Skip { through, kept }, _) => selection = Some((*through, kept.iter().copied().collect())),
                (_, Some(change)) => fold.execute(&change)?,
                (what, None) => return Err(format!("nothing is known of the decision {what:?}").into()),
            }
        }
        if let Some((through, kept)) = selection.take() {
            let before = cursor;
            let (step, rest) = kept_step(through, kept, records, fold.as_ref())?;
            cursor = if rest.is_empty() { through } else { step.as_ref().map_or(through, |step| step.last) };
            let learned = step.as_ref().map_or(0, |step| step.rows.count as u64);
            counters.skipped += cursor.checked_sub(before + learned).ok_or("a skip goes backwards")?;
            if let Some(rows) = step.map(|step| step.rows) {
                fold.apply(Step { last: cursor, rows }, &mut outcomes)?;
            }
            selection = (!rest.is_empty()).then_some((through, rest));
            continue;
        }
        let Some(step) = step_after(cursor, records, fold.as_ref()) else { break };
        cursor = step.last;
        fold.apply(step, &mut outcomes)?;
    }
    if let Some(decision) = pending.next() {
        return Err(format!("the decision at {} is of no version on the way to {cursor}", decision.at).into());
    }
    fold.drain(&mut outcomes)?;
    outcomes.iter().for_each(|outcome| count(&mut counters, outcome));
    let state = fold.checkpoint()?;
    let state_hash = state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)))?;
    let version = Version { epoch: 0, sequence: cursor };
    Ok(Folded { version, decisions: decisions.len() as u64, counters, state_hash })
}

/// The step of the next rows that a skip keeps, and the rows that it keeps after those; none where it keeps nothing.
fn kept_step(
    through: Sequence,
    mut kept: VecDeque<Sequence>,
    records: &[(Sequence, Rows)],
    fold: &dyn Fold,
) -> Result<(Option<Step>, VecDeque<Sequence>), Failure> {
    let rest = kept.split_off(kept.len().min(fold.step_rows()));
    let mut parts = Vec::new();
    for &number in &kept {
        let of = records.partition_point(|(first, rows)| first + rows.count as u64 <= number);
        let (first, rows) = records.get(of).ok_or("a row that was kept is not there")?;
        let at = (number - first) as usize;
        parts.push(Rows { ids: None, ..rows.slice(at..at + 1) });
    }
    let rows = Rows::concatenate(&parts.iter().collect::<Vec<_>>());
    let last = kept.back().copied().unwrap_or(through);
    Ok((rows.map(|rows| Step { last, rows }), rest))
}

/// The step after a row: up to so many rows as the fold takes, of one record; none at the end.
fn step_after(cursor: Sequence, records: &[(Sequence, Rows)], fold: &dyn Fold) -> Option<Step> {
    let wanted = cursor + 1;
    let (first, rows) = records.get(records.partition_point(|(first, rows)| first + rows.count as u64 <= wanted))?;
    let start = (wanted - first) as usize;
    let end = rows.count.min(start + fold.step_rows());
    Some(Step::starting(wanted, Rows { ids: None, ..rows.slice(start..end) }))
}

fn count(counters: &mut Counters, outcome: &Outcome) {
    let counter = match outcome.verdict {
        Verdict::Learned => &mut counters.learned,
        Verdict::LearnedInPart => &mut counters.learned_in_part,
        Verdict::Quarantined(_) => &mut counters.quarantined,
    };
    *counter += outcome.rows;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::bench::crash::rows::Shape;
    use crate::cli::serve;
    use crate::config::Config;
    use crate::stream::decode::{Format, Purpose, decode};

    /// Two records of twenty rows, those of the ids from `second` on in the second one.
    fn folded(kinds: &Kinds, second: u64, decisions: &[Decision]) -> Folded {
        let schema: Schema = serde_json::from_value(Shape::Points.schema()).unwrap();
        let read = |id| decode(&schema, Format::Json, Shape::Points.body(Format::Json, id..id + 20), Purpose::Learn).unwrap();
        let spec = json!({
            "kind": "network", "stream": "table", "network": { "architecture": "linear" }, "step_rows": 8,
            "overload": { "policy": "last_n" },
        });
        let kept: Kept = serde_json::from_value(json!({ "spec": spec, "origin": 0 })).unwrap();
        refold(kinds, &kept, &schema, &[(1, read(100)), (21, read(second))], decisions).unwrap()
    }

    #[test]
    fn every_row_and_every_decision_shows_in_the_hash() {
        let kinds = serve::kinds(&Config::load(None, [], &[]).unwrap()).unwrap();
        let whole = folded(&kinds, 200, &[]);
        assert_eq!(folded(&kinds, 200, &[]), whole);
        assert_eq!((whole.version.sequence, whole.counters.learned), (40, 40));
        // One row of another id in the last place, and the first one gone.
        assert_ne!(folded(&kinds, 201, &[]).state_hash, whole.state_hash);
        let decision = |sequence, what| Decision { at: Version { epoch: 0, sequence }, what };
        let slower = folded(&kinds, 200, &[decision(16, What::LearningRate(0.01))]);
        assert_ne!(slower.state_hash, whole.state_hash);
        let later = folded(&kinds, 200, &[decision(20, What::LearningRate(0.01))]);
        assert_ne!(later.state_hash, slower.state_hash);
        let skipped = folded(&kinds, 200, &[decision(16, What::Skip { through: 23, kept: vec![] })]);
        assert_ne!(skipped.state_hash, whole.state_hash);
        assert_eq!((skipped.version, skipped.counters.learned, skipped.counters.skipped), (whole.version, 33, 7));
        // Of rows 17 to 26 the two that are kept are one step, and with it all up to 26 are decided.
        let kept = folded(&kinds, 200, &[decision(16, What::Skip { through: 26, kept: vec![19, 22] })]);
        assert_ne!(kept.state_hash, skipped.state_hash);
        assert_eq!((kept.version, kept.counters.learned, kept.counters.skipped), (whole.version, 32, 8));
    }
}
