//! What the sweep came to: its checks, a table, and three charts over time.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::{BATCH_ROWS, CLIENTS, Look, QUERY_ROWS, Segment, Swept};
use crate::cli::Failure;
use crate::cli::demo::{iec, number};
use crate::cli::plot::{self, Chart, Drawn, Series};

/// After a change the marks of the plan before may be seen for so long, in seconds.
const GRACE: f64 = 1.0;
/// Rates of the chart are taken over so many looks.
const RATE_LOOKS: usize = 10;

/// Something that has to hold.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    held: bool,
    figures: String,
}

/// What was seen in the time of one budget.
#[derive(Debug, Serialize)]
struct Seen {
    planned_bytes: u64,
    high_water_bytes: u64,
    rows_per_second: f64,
    /// Of the rows that were scored in that time.
    accuracy: f64,
}

/// Says it all, and draws it where a file is given.
pub(super) fn tell(swept: &Swept, as_json: bool, file: Option<&Path>) -> Result<(), Failure> {
    let seen: Vec<Seen> = swept.segments.iter().map(|segment| seen(swept, segment)).collect();
    let checks = [within(swept), answers(swept), rows(swept), bits(swept), minimum(swept)];
    if as_json {
        println!("{}", json!({ "sweep": swept, "seen": seen, "checks": checks }));
    } else {
        print(swept, &seen, &checks);
    }
    if let Some(file) = file {
        plot::write(file, &charts(swept))?;
    }
    Ok(())
}

/// The looks in the time of one budget, without the moment after its change.
fn looks<'a>(swept: &'a Swept, segment: &Segment) -> impl Iterator<Item = &'a Look> {
    let time = segment.set_at_seconds + GRACE..segment.until_seconds;
    swept.looks.iter().filter(move |look| time.contains(&look.seconds))
}

fn seen(swept: &Swept, segment: &Segment) -> Seen {
    let looks: Vec<&Look> = looks(swept, segment).collect();
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return Seen { planned_bytes: 0, high_water_bytes: 0, rows_per_second: f64::NAN, accuracy: f64::NAN };
    };
    Seen {
        planned_bytes: last.planned_bytes,
        high_water_bytes: looks.iter().map(|look| look.high_water_bytes).max().unwrap_or_default(),
        rows_per_second: (last.learned - first.learned) as f64 / (last.seconds - first.seconds),
        accuracy: (last.correct - first.correct) / (last.scored - first.scored),
    }
}

fn within(swept: &Swept) -> Check {
    // Rests are no time of a budget, but no second after a change either.
    let changed = |look: &Look| {
        let since = swept.segments.iter().map(|segment| look.seconds - segment.set_at_seconds);
        since.filter(|&since| since >= 0.0).fold(f64::INFINITY, f64::min) < GRACE
    };
    let most = |look: &Look| look.used_bytes.max(look.high_water_bytes);
    // Without a limit the plan is one.
    let share = |look: &Look| most(look) as f64 / look.budget_bytes.unwrap_or(look.planned_bytes) as f64;
    let (after, steady): (Vec<&Look>, Vec<&Look>) = swept.looks.iter().partition(|look| changed(look));
    let worst = |looks: &[&Look]| looks.iter().map(|look| share(look)).fold(0.0, f64::max) * 100.0;
    Check {
        what: "outside the second after a change, high-water mark and used bytes are within the budget",
        held: !steady.is_empty() && steady.iter().all(|look| share(look) <= 1.0),
        figures: format!(
            "at most {:.1} % of it in {} looks; {:.1} % within that second in {}",
            worst(&steady),
            steady.len(),
            worst(&after),
            after.len()
        ),
    }
}

fn answers(swept: &Swept) -> Check {
    let under_load: Vec<f64> = swept.segments.iter().filter_map(|segment| segment.answered_ms).collect();
    let at_rest = swept.segments.iter().filter_map(|segment| segment.rest).flat_map(|rest| rest.answered_ms);
    let waiting: Vec<u64> = swept.segments.iter().skip(1).map(|segment| segment.waiting_rows).collect();
    Check {
        what: "every change is answered",
        held: under_load.len() + 1 == swept.segments.len(),
        figures: format!(
            "{} under load in {:.0} ms at worst, {:.0} ms on the mean, with {} to {} rows waiting; at rest {:.0} ms at worst",
            under_load.len(),
            under_load.iter().copied().fold(0.0, f64::max),
            under_load.iter().sum::<f64>() / under_load.len().max(1) as f64,
            waiting.iter().min().unwrap_or(&0),
            waiting.iter().max().unwrap_or(&0),
            at_rest.fold(0.0, f64::max)
        ),
    }
}

fn rows(swept: &Swept) -> Check {
    let of = |name: &str| number(&swept.rows, name);
    let (accepted, learned) = (of("/accepted"), of("/learned"));
    let others = ["/learned_in_part", "/skipped", "/held_out", "/quarantined", "/expired", "/waiting"].map(of);
    Check {
        what: "one process all the while, and no row is lost",
        held: swept.same_process
            && accepted == learned + others.iter().sum::<u64>()
            && accepted == swept.acknowledged
            && learned == swept.acknowledged,
        figures: format!(
            "{} acknowledged, {accepted} accepted, {learned} learned, {} otherwise; {}",
            swept.acknowledged,
            others.iter().sum::<u64>(),
            if swept.same_process { "the process lives" } else { "the process has ended" }
        ),
    }
}

fn bits(swept: &Swept) -> Check {
    let rests: Vec<_> = swept.segments.iter().filter_map(|segment| segment.rest).collect();
    let same = rests.iter().filter(|rest| rest.same_bits).count();
    let sums = rests.iter().filter(|rest| rest.open_sums).count();
    let others = match sums {
        0 => "no plan accumulates".to_owned(),
        _ => format!("{sums} from plans that accumulate, compared once their open sums were applied"),
    };
    Check {
        what: "a change leaves the newest weights as they are, to the bit",
        held: same == rests.len() && !rests.is_empty(),
        figures: format!(
            "{same} of {} pairs of changes, back and again at rest, gave the same {QUERY_ROWS} predictions; {others}",
            rests.len()
        ),
    }
}

fn minimum(swept: &Swept) -> Check {
    let refusal = &swept.refusal;
    let worked = swept.segments.iter().any(|segment| segment.budget_bytes == Some(swept.minimum_bytes));
    Check {
        what: "the minimum works, and one byte less is refused with it",
        held: worked && refusal.status == 422 && refusal.minimum_bytes == swept.minimum_bytes,
        figures: format!(
            "{} bytes: {} {}, minimum_bytes {}",
            refusal.asked_bytes, refusal.status, refusal.code, refusal.minimum_bytes
        ),
    }
}

fn print(swept: &Swept, seen: &[Seen], checks: &[Check]) {
    println!(
        "MNISTNet on Fashion-MNIST's test images again and again, {CLIENTS} clients, batches and steps of {BATCH_ROWS} rows; no limit \
         ({} planned) to the minimum ({}) and back, {} s each.",
        iec(swept.unconstrained_bytes),
        iec(swept.minimum_bytes),
        swept.seconds_each
    );
    println!(
        "Clients that are told to wait ask again within 50 ms. Each change is made under load; rates and accuracies are those from a \
         second\nafter it on. Then clients rest until all is learned, the change is taken back and made again, and a query is asked \
         in between;\nfor that the planner may choose other plans, because nothing waits.\n"
    );
    println!(
        "{:>7} {:>11} {:>11} {:>11} {:>9} {:>8} {:>9} {:>5}  plan",
        "at s", "budget", "planned", "high water", "answered", "rows/s", "accuracy", "bits"
    );
    for (segment, seen) in swept.segments.iter().zip(seen) {
        let bits = segment.rest.map_or("", |rest| if rest.same_bits { "same" } else { "DIFFER" });
        println!(
            "{:>7.1} {:>11} {:>11} {:>11} {:>9} {:>8.0} {:>7.1} % {bits:>5}  {}",
            segment.set_at_seconds,
            segment.budget_bytes.map_or_else(|| "no limit".to_owned(), |bytes| bytes.to_string()),
            seen.planned_bytes,
            seen.high_water_bytes,
            segment.answered_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms")),
            seen.rows_per_second,
            seen.accuracy * 100.0,
            segment.plan
        );
    }
    println!();
    for check in checks {
        println!("{:<8} {}: {}", if check.held { "held" } else { "NOT held" }, check.what, check.figures);
    }
}

fn charts(swept: &Swept) -> [Chart; 3] {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let series = |name, steps, of: &dyn Fn(&Look) -> Option<f64>| Series {
        name,
        points: swept.looks.iter().filter_map(|look| Some((look.seconds, of(look)?))).collect(),
        drawn: if steps { Drawn::Steps } else { Drawn::Line },
    };
    let rates = swept.looks.windows(RATE_LOOKS + 1).filter_map(|looks| {
        let (first, last) = (looks.first()?, looks.last()?);
        Some((last.seconds, (last.learned - first.learned) as f64 / (last.seconds - first.seconds)))
    });
    let chart = |title: &str, up: &str, series| Chart {
        title: title.into(),
        across: "time (s)".into(),
        up: up.into(),
        series,
        marks: swept.segments.iter().skip(1).map(|segment| segment.set_at_seconds).collect(),
    };
    [
        chart(
            "Bytes of the model while its budget changes",
            "MiB",
            vec![
                series("budget", true, &|look| look.budget_bytes.map(mebibytes)),
                series("planned", true, &|look| Some(mebibytes(look.planned_bytes))),
                series("most since the plan", true, &|look| Some(mebibytes(look.high_water_bytes))),
                series("used", false, &|look| Some(mebibytes(look.used_bytes))),
            ],
        ),
        chart(
            "Rows learned (a moment before each change clients rest)",
            "rows/s, over half a second",
            vec![Series { name: "rows learned", points: rates.collect(), drawn: Drawn::Line }],
        ),
        chart(
            "Sliding online accuracy",
            "% of the newest 1,000 rows",
            vec![series("accuracy", false, &|look| Some(look.sliding_accuracy * 100.0))],
        ),
    ]
}
