//! What the rounds came to, for people and for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::{Moment, Round};
use crate::cli::Failure;

/// How the kills of one moment fell.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Fell {
    kills: u64,
    /// The moment came before the kill.
    came: u64,
    /// The doors were open.
    open: u64,
    /// The process had ended before.
    ended_before: u64,
    /// Streams and models were being made.
    setting_up: u64,
    /// A request had no answer.
    under_way: u64,
    /// A change had no answer.
    in_change: u64,
    /// A checkpoint was being written.
    in_checkpoint: u64,
}

/// One line for a round that has just ended.
pub(super) fn round(round: &Round) {
    let Round { round: number, kills, acknowledged_rows, labels, models, decisions, seconds, complaints, .. } = round;
    let moments: Vec<String> = kills.iter().map(|kill| format!("{:?}", kill.moment).to_lowercase()).collect();
    let kills = moments.join(", ");
    println!(
        "{:<8} round {number}: {acknowledged_rows} rows acknowledged, {labels} labels read, {models} models, {decisions} decisions, {seconds:.1} s; {kills}",
        if complaints.is_empty() { "held" } else { "NOT held" }
    );
    for complaint in complaints {
        println!("         {complaint}");
    }
}

/// All rounds together. A complaint is a failure.
pub(super) fn all(rounds: &[Round], as_json: bool) -> Result<(), Failure> {
    let mut fell: BTreeMap<Moment, Fell> = BTreeMap::new();
    for kill in rounds.iter().flat_map(|round| &round.kills) {
        let fell = fell.entry(kill.moment).or_default();
        fell.kills += 1;
        for (count, holds) in [
            (&mut fell.came, kill.came),
            (&mut fell.open, kill.open),
            (&mut fell.ended_before, kill.ended_before),
            (&mut fell.setting_up, kill.setting_up),
            (&mut fell.under_way, kill.under_way > 0),
            (&mut fell.in_change, kill.in_change),
            (&mut fell.in_checkpoint, kill.in_checkpoint),
        ] {
            *count += u64::from(holds);
        }
    }
    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
    let bad: Vec<u64> = rounds.iter().filter(|round| !round.complaints.is_empty()).map(|round| round.round).collect();
    let totals = json!({
        "rounds": rounds.len(),
        "kills": sum(|round| round.kills.len() as u64),
        "posts": sum(|round| round.posts),
        "given_up": sum(|round| round.given_up),
        "acknowledged_rows": sum(|round| round.acknowledged_rows),
        "logged_rows": sum(|round| round.logged_rows),
        "models": sum(|round| round.models),
        "decisions": sum(|round| round.decisions),
        "skipped_rows": sum(|round| round.skipped_rows),
        "label_posts": sum(|round| round.label_posts),
        "labels": sum(|round| round.labels),
        "late_learned": sum(|round| round.late_learned),
        "expired_rows": sum(|round| round.expired),
        "waiting_rows": sum(|round| round.waiting),
        "quarantined_rows": sum(|round| round.quarantined),
        "changes": sum(|round| round.changes),
        "seconds": rounds.iter().map(|round| round.seconds).sum::<f64>(),
    });
    if as_json {
        println!("{}", json!({ "totals": totals, "fell": fell, "not_held": bad }));
    } else {
        print(&totals, &fell);
    }
    match bad.len() {
        0 => Ok(()),
        count => Err(format!("{count} of {} rounds did not hold: {bad:?}", rounds.len()).into()),
    }
}

fn print(totals: &serde_json::Value, fell: &BTreeMap<Moment, Fell>) {
    println!(
        "\n{:<11} {:>6} {:>6} {:>6} {:>8} {:>7} {:>9} {:>7} {:>11}",
        "kills at", "kills", "came", "open", "ended by", "set-up", "requests", "change", "checkpoint"
    );
    for (moment, fell) in fell {
        println!(
            "{:<11} {:>6} {:>6} {:>6} {:>8} {:>7} {:>9} {:>7} {:>11}",
            format!("{moment:?}").to_lowercase(),
            fell.kills,
            fell.came,
            fell.open,
            fell.ended_before,
            fell.setting_up,
            fell.under_way,
            fell.in_change,
            fell.in_checkpoint
        );
    }
    let of = |name: &str| &totals[name];
    println!(
        "\n{} rounds, {} kills; {} posts ({} given up), {} rows acknowledged, {} in the log; {} models, {} decisions, {} rows skipped",
        of("rounds"),
        of("kills"),
        of("posts"),
        of("given_up"),
        of("acknowledged_rows"),
        of("logged_rows"),
        of("models"),
        of("decisions"),
        of("skipped_rows")
    );
    println!(
        "{} posts of labels; of them the models read {} labels; with them {} rows learned, {} expired, {} waiting; {} quarantined",
        of("label_posts"),
        of("labels"),
        of("late_learned"),
        of("expired_rows"),
        of("waiting_rows"),
        of("quarantined_rows")
    );
}
