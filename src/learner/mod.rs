//! What a step minimises beside its own rows' loss, so that a network does not forget what it learned before: the learners of online
//! continual learning, as far as they know nothing of stages or threads.
//!
//! * *Vanilla* learns the rows that come, and nothing else.
//! * *ER*, experience replay (Chaudhry et al. 2019): every step also learns some rows drawn from a reservoir of all that came.
//! * *MIR*, maximally interfered retrieval (Aljundi et al. 2019): of some drawn candidates it learns those whose loss would rise the
//!   most by the step's own update, which is tried on a copy of the weights.
//! * *LwF*, learning without forgetting (Li and Hoiem 2016): outputs are also held to those of a teacher, a copy of the network that
//!   is renewed at each consolidation.
//! * *MAS*, memory-aware synapses (Aljundi et al. 2018): weights are held to where they were at the last consolidation, each by its
//!   importance, the mean magnitude of the gradient of the squared outputs over the newest rows.
//!
//! Consolidations come after every so many rows, so they follow from the stream alone. All that a learner keeps is within the memory
//! budget and part of the state ([`Memory`]).

mod buffer;
mod distil;
pub mod importance;
mod interference;
mod memory;

use serde::{Deserialize, Serialize};

pub use buffer::{Buffer, RowLayout};
pub use distil::distil;
pub use interference::most_interfered;
pub use memory::{Anchor, Lesson, Memory, Teacher};

use crate::limits::{REPLAY_BUFFER_ROWS_MAX, STEP_ROWS_MAX};

/// What a step minimises.
// Braces where there are no fields: serde would take any field of a variant without them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Learner {
    /// The loss of its rows.
    Vanilla {},
    /// Also that of rows drawn from a reservoir.
    Er {
        /// Rows that the reservoir holds, if the memory budget allows it.
        #[serde(default = "default_buffer_rows")]
        buffer_rows: u64,
        /// Rows that are drawn for a step.
        #[serde(default = "default_replay_rows")]
        replay_rows: usize,
    },
    /// Also that of the drawn rows that the step's own update would harm the most.
    Mir {
        /// Rows that the reservoir holds, if the memory budget allows it.
        #[serde(default = "default_buffer_rows")]
        buffer_rows: u64,
        /// Rows that a step replays.
        #[serde(default = "default_replay_rows")]
        replay_rows: usize,
        /// Rows that are drawn, of which those are chosen.
        #[serde(default = "default_candidate_rows")]
        candidate_rows: usize,
    },
    /// Also the distance of the outputs to a teacher's.
    Lwf {
        /// What that distance weighs.
        #[serde(default = "default_distillation")]
        weight: f64,
        /// What outputs are divided by before they are compared.
        #[serde(default = "default_temperature")]
        temperature: f64,
        /// Rows between two consolidations.
        #[serde(default = "default_every_rows")]
        every_rows: u64,
    },
    /// Also the distance of weights to where they were, by their importance.
    Mas {
        /// What that distance weighs.
        #[serde(default = "default_importance")]
        weight: f64,
        /// Rows between two consolidations.
        #[serde(default = "default_every_rows")]
        every_rows: u64,
        /// The newest rows, by which a consolidation finds importance.
        #[serde(default = "default_sample_rows")]
        sample_rows: u64,
    },
}

fn default_buffer_rows() -> u64 {
    1000
}

fn default_replay_rows() -> usize {
    16
}

fn default_candidate_rows() -> usize {
    48
}

fn default_distillation() -> f64 {
    1.0
}

fn default_temperature() -> f64 {
    2.0
}

fn default_every_rows() -> u64 {
    1000
}

fn default_importance() -> f64 {
    0.01
}

fn default_sample_rows() -> u64 {
    64
}

impl Default for Learner {
    fn default() -> Self {
        Learner::Vanilla {}
    }
}

impl Learner {
    /// ER with its defaults.
    pub fn replay() -> Learner {
        Learner::Er { buffer_rows: default_buffer_rows(), replay_rows: default_replay_rows() }
    }

    /// Whether every number is in its range; the text says which is not.
    pub fn validate(&self) -> Result<(), String> {
        let count = |name: &str, value: u64, most: u64| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                Err(format!("learner's `{name}` is {value}, allowed are 1 to {most}"))
            }
        };
        let weight = |name: &str, value: f64, least: f64| {
            if (least..=1e6).contains(&value) {
                Ok(())
            } else {
                Err(format!("learner's `{name}` is {value}, but must be from {least} to 1e6"))
            }
        };
        // What a step learns beside its own rows is drawn from what is kept, so the buffer is what is too small.
        let buffer = |rows: u64, least: u64, drawn: &str| {
            count("buffer_rows", rows, REPLAY_BUFFER_ROWS_MAX)?;
            if rows < least {
                return Err(format!(
                    "learner's `buffer_rows` is {rows}, fewer than `{drawn}`, the {least} rows that a step draws"
                ));
            }
            Ok(())
        };
        let rows_max = STEP_ROWS_MAX as u64;
        match *self {
            Learner::Vanilla {} => Ok(()),
            Learner::Er { buffer_rows, replay_rows } => {
                count("replay_rows", replay_rows as u64, rows_max)?;
                buffer(buffer_rows, replay_rows as u64, "replay_rows")
            }
            Learner::Mir { buffer_rows, replay_rows, candidate_rows } => {
                count("candidate_rows", candidate_rows as u64, rows_max)?;
                buffer(buffer_rows, candidate_rows as u64, "candidate_rows")?;
                if replay_rows > candidate_rows {
                    return Err(format!(
                        "learner's `candidate_rows` is {candidate_rows}, fewer than `replay_rows`, the {replay_rows} that are chosen of them"
                    ));
                }
                count("replay_rows", replay_rows as u64, rows_max)
            }
            Learner::Lwf { weight: of_teacher, temperature, every_rows } => weight("weight", of_teacher, 0.0)
                .and(weight("temperature", temperature, 1e-3))
                .and(count("every_rows", every_rows, u64::MAX)),
            Learner::Mas { weight: of_distance, every_rows, sample_rows } => weight("weight", of_distance, 0.0)
                .and(count("every_rows", every_rows, u64::MAX))
                .and(count("sample_rows", sample_rows, REPLAY_BUFFER_ROWS_MAX)),
        }
    }

    /// Rows that it would like to keep.
    pub fn buffer_rows(&self) -> u64 {
        match *self {
            Learner::Er { buffer_rows, .. } | Learner::Mir { buffer_rows, .. } => buffer_rows,
            Learner::Mas { sample_rows, .. } => sample_rows,
            Learner::Vanilla {} | Learner::Lwf { .. } => 0,
        }
    }

    /// Rows that it must be able to keep.
    pub fn buffer_rows_min(&self) -> u64 {
        match *self {
            Learner::Er { replay_rows, .. } => replay_rows as u64,
            Learner::Mir { candidate_rows, .. } => candidate_rows as u64,
            // Fewer rows tell less of importance, and none nothing.
            Learner::Mas { .. } => 1,
            Learner::Vanilla {} | Learner::Lwf { .. } => 0,
        }
    }

    /// Rows that a step learns beside its own, at most.
    pub fn replay_rows(&self) -> usize {
        match *self {
            Learner::Er { replay_rows, .. } | Learner::Mir { replay_rows, .. } => replay_rows,
            _ => 0,
        }
    }

    /// Rows among which those are chosen by what the weights make of them; 0 where they are only drawn.
    pub fn candidate_rows(&self) -> usize {
        if let Learner::Mir { candidate_rows, .. } = *self { candidate_rows } else { 0 }
    }

    /// Rows between two consolidations; none where there are none.
    pub fn every_rows(&self) -> Option<u64> {
        match *self {
            Learner::Lwf { every_rows, .. } | Learner::Mas { every_rows, .. } => Some(every_rows),
            _ => None,
        }
    }

    /// Copies of all weights that it keeps as a teacher.
    pub fn teachers(&self) -> u64 {
        u64::from(matches!(self, Learner::Lwf { .. }))
    }

    /// Tensors in the shape of each parameter that it holds weights by.
    pub fn anchors(&self) -> u64 {
        if matches!(self, Learner::Mas { .. }) { 2 } else { 0 }
    }

    /// What the distance of weights to their anchors weighs; none where they have none.
    pub fn anchoring(&self) -> Option<f64> {
        if let Learner::Mas { weight, .. } = *self { Some(weight) } else { None }
    }

    /// Whether some of it is kept.
    pub fn remembers(&self) -> bool {
        *self != Learner::Vanilla {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        for (text, good) in [
            (r#"{"type":"vanilla"}"#, true),
            (r#"{"type":"er"}"#, true),
            (r#"{"type":"er","buffer_rows":8,"replay_rows":9}"#, false),
            (r#"{"type":"er","buffer_rows":0}"#, false),
            (r#"{"type":"mir"}"#, true),
            (r#"{"type":"mir","candidate_rows":8,"replay_rows":9}"#, false),
            (r#"{"type":"lwf","temperature":0}"#, false),
            (r#"{"type":"lwf","every_rows":0}"#, false),
            (r#"{"type":"mas","weight":-1}"#, false),
            (r#"{"type":"mas","sample_rows":16}"#, true),
        ] {
            let learner: Learner = serde_json::from_str(text).unwrap();
            assert_eq!(learner.validate().is_ok(), good, "{text}");
            assert!(learner.buffer_rows_min() <= learner.buffer_rows() || !good);
        }
        // What was given is named first, and not only the default that it does not fit.
        for (text, told) in [
            (r#"{"type":"er","buffer_rows":1}"#, "`buffer_rows` is 1, fewer than `replay_rows`, the 16"),
            (r#"{"type":"er","buffer_rows":0}"#, "`buffer_rows` is 0, allowed are 1 to"),
            (r#"{"type":"er","replay_rows":0}"#, "`replay_rows` is 0, allowed are 1 to"),
            (r#"{"type":"mir","buffer_rows":20}"#, "`buffer_rows` is 20, fewer than `candidate_rows`, the 48"),
            (r#"{"type":"mir","candidate_rows":8}"#, "`candidate_rows` is 8, fewer than `replay_rows`, the 16"),
        ] {
            let text = serde_json::from_str::<Learner>(text).unwrap().validate().unwrap_err();
            assert!(text.contains(told), "{text}");
        }
        for unknown in [r#"{"type":"agem"}"#, r#"{"type":"vanilla","buffer_rows":5}"#] {
            assert!(serde_json::from_str::<Learner>(unknown).is_err(), "{unknown}");
        }
    }
}
