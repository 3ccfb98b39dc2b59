//! Twenty rounds of kills under load: rows and late labels that were acknowledged are in the log once, and every model is what an
//! uninterrupted fold of its log is. (`mustela bench crash` makes as many as one likes.)
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use mustela::cli::bench::crash::{Harness, Round};

const ROUNDS: u64 = 20;
const SEED: u64 = 1;

#[test]
fn twenty_rounds_of_kills_lose_nothing_and_change_no_bit() {
    let harness = Harness::new(Path::new(env!("CARGO_BIN_EXE_mustela")), true).unwrap();
    let rounds: Vec<Round> = (0..ROUNDS).map(|number| harness.round(SEED, number).unwrap()).collect();
    for round in &rounds {
        assert!(round.complaints.is_empty(), "round {} of seed {SEED}: {round:#?}", round.round);
        assert!(!round.kills.is_empty() && round.models >= 3 && round.acknowledged_rows <= round.logged_rows, "{round:#?}");
    }
    // The rounds were what they are meant to be: kills fell into requests, and models had decisions to replay.
    let kills = || rounds.iter().flat_map(|round| &round.kills);
    assert!(kills().filter(|kill| kill.under_way > 0).count() >= 5, "{rounds:#?}");
    assert!(rounds.iter().map(|round| round.decisions - round.models).sum::<u64>() >= 20, "{rounds:#?}");
    assert!(rounds.iter().map(|round| round.acknowledged_rows).sum::<u64>() >= 10_000, "{rounds:#?}");
    // Labels came late, in time and too late.
    assert!(rounds.iter().all(|round| round.models >= 4), "{rounds:#?}");
    for of in [|round: &Round| round.late_learned, |round: &Round| round.expired, |round: &Round| round.waiting] {
        assert!(rounds.iter().map(of).sum::<u64>() >= 500, "{rounds:#?}");
    }
}
