//! What a seed and a number make of a round: its streams, its models, how the service is set in each of its lives, and how each life
//! ends. When something happens is left to the machine; what is asked for is not.

use std::ops::Range;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rows::Shape;
use crate::network::random;

/// The stream of late labels, and a model that is on it in every round.
pub(super) const DELAYED: &str = "delayed";
pub(super) const DELAYED_MODEL: &str = "d0";

/// The draws of one purpose.
pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    pub(super) fn new(seed: u64, round: u64, purpose: &str) -> Draws {
        Draws(random::stream(seed, round, &format!("crash {purpose}")))
    }

    /// A number of a range.
    pub(super) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.0.next_u64() % (range.end - range.start).max(1)
    }

    /// True once in so many times.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.within(0..times) == 0
    }

    pub(super) fn one_of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.within(0..some.len() as u64) as usize]
    }

    /// A time below `most`.
    pub(super) fn below(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.within(0..most.as_micros() as u64))
    }
}

/// What a kill waits for, before its own delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The process has just been started.
    Start,
    /// The doors are open: it may fall into the making of streams and models, into replay, into a commit, or anywhere else.
    Load,
    /// A checkpoint's temporary file is there.
    Checkpoint,
    /// A change of a budget, a plan or a learning rate, or a new model, has just been asked for.
    Change,
    /// The process has been asked to end by SIGTERM.
    Shutdown,
}

/// The end of one life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    pub(super) moment: Moment,
    pub(super) delay: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct StreamScript {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
}

#[derive(Clone, Debug)]
pub(super) struct ModelScript {
    pub(super) name: String,
    /// The body of `PUT /v1/models/{m}`.
    pub(super) spec: Value,
}

/// One round.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) seed: u64,
    pub(super) round: u64,
    pub(super) clients: u64,
    /// Clients that label rows later.
    pub(super) labellers: u64,
    pub(super) streams: Vec<StreamScript>,
    /// Made before any row is posted.
    pub(super) models: Vec<ModelScript>,
    /// Made while rows are posted.
    pub(super) late: ModelScript,
    /// One for each life but the last.
    pub(super) kills: Vec<Kill>,
}

impl Script {
    /// Kills come up to `longest` after what they wait for.
    pub(super) fn new(seed: u64, round: u64, longest: Duration) -> Script {
        let mut draws = Draws::new(seed, round, "script");
        let table = draws.one_of(&[Shape::Points, Shape::Points, Shape::Mixed]);
        // Windows in which most labels come in time, and some in which many do not.
        let window = if draws.once_in(3) { 20..400 } else { 1000..8000 };
        let delayed = Shape::Late { window: draws.within(window) };
        let streams = [("table", table), ("pixels", Shape::Pixels), (DELAYED, delayed)];
        let streams = streams.map(|(name, shape)| StreamScript { name, shape }).to_vec();
        let mut models =
            vec![model(&mut draws, "m0", "table"), model(&mut draws, "m1", "pixels"), model(&mut draws, DELAYED_MODEL, DELAYED)];
        for (name, stream) in [("m2", "table"), ("d1", DELAYED)] {
            if draws.once_in(2) {
                models.push(model(&mut draws, name, stream));
            }
        }
        let stream = draws.one_of(&["table", "pixels", DELAYED]);
        let mut late = model(&mut draws, "late", stream);
        late.spec["start"] = draws.one_of(&["now", "earliest"]).into();
        let count = draws.within(1..5);
        let kills = (0..count).map(|_| kill(&mut draws, longest)).collect();
        let (clients, labellers) = (draws.within(2..6), draws.within(1..4));
        Script { seed, round, clients, labellers, streams, models, late, kills }
    }

    /// How the service is set in one of its lives. Nothing of it may show in a state.
    pub(super) fn settings(&self, life: usize) -> Vec<(String, String)> {
        let mut draws = Draws::new(self.seed, self.round, &format!("settings {life}"));
        let mut settings = vec![
            // All rows stay, for the fold to be made again.
            ("log.retain_bytes", 1 << 40),
            ("log.bytes_max", 1 << 40),
            ("log.commit_entries_max", draws.one_of(&[1, 8, 256])),
            ("compute.threads", draws.within(1..3)),
            ("checkpoint.interval_rows", draws.within(20..400)),
            ("checkpoint.interval_seconds", draws.one_of(&[1, 30])),
            ("planner.review_seconds", draws.within(0..2)),
            ("http.shutdown_seconds", 10),
        ];
        if draws.once_in(3) {
            settings.push(("planner.in_flight_max", 1));
        }
        settings.into_iter().map(|(key, value): (&str, u64)| (key.to_owned(), value.to_string())).collect()
    }

    /// The shape of a stream's rows.
    pub(super) fn shape(&self, stream: &str) -> Option<Shape> {
        self.streams.iter().find(|known| known.name == stream).map(|known| known.shape)
    }
}

fn kill(draws: &mut Draws, longest: Duration) -> Kill {
    let moments = [Moment::Start, Moment::Load, Moment::Load, Moment::Checkpoint, Moment::Change, Moment::Shutdown];
    let moment = draws.one_of(&moments);
    let most = match moment {
        Moment::Load => longest,
        Moment::Start | Moment::Shutdown => draws.one_of(&[longest / 64, longest / 16, longest / 4]),
        // Writing a checkpoint takes about a millisecond, and most changes a few.
        Moment::Checkpoint => draws.one_of(&[Duration::ZERO, Duration::from_micros(500), Duration::from_millis(8)]),
        Moment::Change => draws.one_of(&[Duration::ZERO, Duration::from_millis(2), Duration::from_millis(100)]),
    };
    Kill { moment, delay: draws.below(most) }
}

fn model(draws: &mut Draws, name: &str, stream: &str) -> ModelScript {
    let learner = draws.one_of(&["vanilla", "er", "er", "mir", "lwf", "mas"]);
    let learner = match learner {
        "er" => json!({ "type": "er", "buffer_rows": draws.within(20..300), "replay_rows": draws.within(1..9) }),
        "mir" => json!({ "type": "mir", "buffer_rows": draws.within(20..300), "replay_rows": 4, "candidate_rows": 10 }),
        "lwf" => json!({ "type": "lwf", "every_rows": draws.within(50..300) }),
        "mas" => json!({ "type": "mas", "every_rows": draws.within(50..300), "sample_rows": 20 }),
        _ => json!({ "type": "vanilla" }),
    };
    let optimiser = match draws.once_in(2) {
        true => json!({ "type": "sgd", "momentum": draws.one_of(&[0.0, 0.9]) }),
        false => json!({ "type": "adamw" }),
    };
    let overload = match draws.within(0..8) {
        // Rows that wait for their labels are not skipped.
        0..4 if stream != DELAYED => {
            let (policy, window) = (draws.one_of(&["last_n", "random_n", "coreset"]), draws.within(30..300));
            json!({ "policy": policy, "window_rows": window, "keep_rows": draws.within(1..window) })
        }
        4 | 5 => json!({ "policy": "backpressure", "lag_rows_max": draws.within(50..1000) }),
        _ => json!({ "policy": "backpressure" }),
    };
    let hidden = draws.one_of(&[&[8][..], &[12, 6], &[16]]);
    let spec = json!({
        "kind": "network", "stream": stream,
        "network": { "architecture": "mlp", "hidden": hidden },
        "optimiser": optimiser,
        "learner": learner,
        "compensation": { "type": draws.one_of(&["none", "iter_fisher", "gap_aware"]) },
        "overload": overload,
        "learning_rate": 0.01,
        "step_rows": draws.one_of(&[4, 8, 16, 32]),
        "seed": draws.within(0..1000),
    });
    ModelScript { name: name.to_owned(), spec }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_follows_from_its_seed_and_number() {
        let script = |seed, round| format!("{:?}", Script::new(seed, round, Duration::from_millis(400)));
        assert_eq!(script(1, 2), script(1, 2));
        assert_ne!(script(1, 2), script(1, 3));
        assert_ne!(script(1, 2), script(2, 2));
    }

    #[test]
    fn every_moment_is_drawn() {
        let rounds = (0..50).flat_map(|round| Script::new(1, round, Duration::from_millis(400)).kills);
        let moments: std::collections::BTreeSet<Moment> = rounds.map(|kill| kill.moment).collect();
        assert_eq!(moments.len(), 5);
    }

    #[test]
    fn every_policy_is_drawn() {
        let models = (0..50).flat_map(|round| Script::new(1, round, Duration::from_millis(400)).models);
        let policies: std::collections::BTreeSet<String> =
            models.map(|model| model.spec["overload"]["policy"].as_str().unwrap().to_owned()).collect();
        assert_eq!(policies, ["backpressure", "coreset", "last_n", "random_n"].map(String::from).into());
    }
}
