//! The kind `detector`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::calibration::Mode;
use super::carried::Origin;
use super::detector::{Detector, Recipe, Setting};
use super::eye::{EncoderEye, Eye};
use super::parent::{Parent, Watched};
use super::{Direction, logistic};
use crate::encoder::shelf::{Shelf, Source};
use crate::ferret::pool::Pool;
use crate::ferret::trainer::check_learning_rate;
use crate::fold::Fold;
use crate::json;
use crate::limits;
use crate::model::blobs::Blobs;
use crate::model::kind::{Given, Kind, SpecError};
use crate::rows::Element;
use crate::stream::Schema;

/// What a spec's `kind` says.
pub const KIND: &str = "detector";
/// Rows of a step where a spec does not say: few, because each takes an encoder's forward, and whoever waits sees the next version sooner.
pub(super) const STEP_ROWS: usize = 16;
/// Where a spec does not say: one of two benign rows is held out, and the newest thousand of those are kept.
const HELD_OUT_EVERY: u64 = 2;
const CALIBRATION_ROWS: usize = 1000;
/// Of each class, where a spec does not say: enough for a direction and for a rate of 1 % when half of the benign ones are held out.
const KEPT_ROWS: usize = 256;

/// What a spec of this kind says beside the common part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The frozen encoder that is watched.
    encoder: Option<String>,
    /// The blocks whose states are read; by default those that did best (`mustela bench detect`).
    blocks: Option<Vec<String>>,
    /// The live network that is watched; takes the place of `encoder`.
    watches: Option<Watched>,
    /// The layers whose states are read; by default the last hidden one.
    layers: Option<Vec<String>>,
    /// Rows of each class that are kept, to be learned once more with a version of the live network that is adopted.
    kept_rows: Option<usize>,
    /// Logistic by default.
    direction: Option<Direction>,
    /// A direction that was found in another encoder's states; takes the place of `direction`.
    carried: Option<CarriedFrom>,
    /// Of every so many benign rows one is held out for the threshold; 0: none.
    held_out_every: Option<u64>,
    /// Held-out rows that are kept.
    calibration_rows: Option<usize>,
    /// Where the threshold comes from at first; the midpoint by default.
    threshold: Option<Mode>,
    /// Of the logistic direction.
    learning_rate: Option<f64>,
    /// Draws its initial weights; 0 by default.
    seed: Option<u64>,
    /// Rows of a step, at most.
    step_rows: Option<usize>,
}

/// A direction of another detector, as it was when it was carried over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedFrom {
    /// Whose it is.
    pub detector: String,
    /// The version that was taken.
    pub version: String,
    /// The encoder in whose states it was found.
    pub encoder: String,
    /// Which of them.
    pub blocks: Vec<String>,
    /// The difference of the classes' means.
    pub difference: Vec<f64>,
}

/// Makes detectors that share the process's encoders and compute threads.
#[derive(Clone)]
pub struct DetectorKind {
    /// The encoders.
    pub shelf: Arc<Shelf>,
    /// The compute threads.
    pub pool: Pool,
}

impl DetectorKind {
    fn recipe(&self, given: Given<'_>) -> Result<Recipe, SpecError> {
        let Given { settings, schema, queued_bytes, blobs, .. } = given;
        let refused = SpecError::Settings;
        let settings: Settings =
            json::of(Value::Object(settings.clone())).map_err(|reason| refused(format!("kind `{KIND}`: {reason}")))?;
        let Sight { eye, parent } = self.sight(&settings, schema, blobs)?;
        let origin = settings.carried.as_ref().map(|carried| self.origin(carried)).transpose()?;
        if origin.is_some() && settings.direction.is_some() {
            return Err(refused("a direction is either carried over or found here: `carried` or `direction`".into()));
        }
        if origin.is_some() && parent.is_some() {
            return Err(refused("carried: a direction is carried over to an encoder, whose states stand still".into()));
        }
        let direction = settings.direction.unwrap_or_default();
        match direction {
            _ if origin.is_some() => check_width(eye.width(), limits::CARRIED_WIDTH_MAX).map_err(refused)?,
            Direction::Whitened => check_width(eye.width(), limits::WHITENED_WIDTH_MAX).map_err(refused)?,
            Direction::MeanDifference | Direction::Logistic => {}
        }
        if settings.learning_rate.is_some() && (origin.is_some() || direction != Direction::Logistic) {
            return Err(refused("learning_rate: only the logistic direction has one".into()));
        }
        let learning_rate = settings.learning_rate.unwrap_or(logistic::LEARNING_RATE);
        check_learning_rate(learning_rate).map_err(refused)?;
        let within = |name: &str, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                return Ok(value);
            }
            Err(refused(format!("{name} is {value}, allowed are 1 to {most}")))
        };
        let calibration_rows =
            within("calibration_rows", settings.calibration_rows.unwrap_or(CALIBRATION_ROWS), limits::CALIBRATION_ROWS_MAX)?;
        let held_out_every = settings.held_out_every.unwrap_or(HELD_OUT_EVERY);
        if held_out_every == 1 {
            return Err(refused("held_out_every is 1: no benign row would be learned".into()));
        }
        let mode = settings.threshold.unwrap_or_default();
        let kept_rows = within("kept_rows", settings.kept_rows.unwrap_or(KEPT_ROWS), limits::KEPT_ROWS_MAX)?;
        let recipe = Recipe {
            eye,
            parent,
            kept_rows,
            direction,
            origin,
            held_out_every,
            calibration_rows,
            mode,
            learning_rate,
            seed: settings.seed.unwrap_or(0),
            step_rows: within("step_rows", settings.step_rows.unwrap_or(STEP_ROWS), limits::STEP_ROWS_MAX)?,
            row_bytes: schema.row_bytes() as u64,
            queued_bytes,
        };
        recipe.check(mode).map_err(refused)?;
        Ok(recipe)
    }

    /// What is looked at.
    fn sight(&self, settings: &Settings, schema: &Schema, blobs: Option<&Blobs>) -> Result<Sight, SpecError> {
        let refused = SpecError::Settings;
        match (&settings.encoder, &settings.watches) {
            (Some(name), None) => {
                if settings.layers.is_some() || settings.kept_rows.is_some() {
                    return Err(refused("`layers` and `kept_rows` are of live networks: an encoder has `blocks`".into()));
                }
                let encoder = self.shelf.get(name).map_err(|error| refused(error.to_string()))?;
                let source = Source::find(name).map_err(|error| refused(error.to_string()))?;
                check_schema(schema, source.side, &format!("encoder `{name}`")).map_err(refused)?;
                let blocks = settings.blocks.clone().unwrap_or_else(|| source.blocks());
                Ok(Sight { eye: Arc::new(EncoderEye::new(encoder, &blocks).map_err(refused)?), parent: None })
            }
            (None, Some(watched)) => {
                if settings.blocks.is_some() {
                    return Err(refused("`blocks` are of encoders: a live network has `layers`".into()));
                }
                let side = watched.side().map_err(refused)?;
                check_schema(schema, side, &format!("model `{}`", watched.model)).map_err(refused)?;
                let parent = Parent::new(watched, settings.layers.as_deref(), blobs).map_err(refused)?;
                Ok(Sight { eye: Arc::new(parent.blind()), parent: Some(parent) })
            }
            _ => Err(refused("a detector watches an `encoder`, or a live network (`watches`): one of the two".into())),
        }
    }

    fn origin(&self, carried: &CarriedFrom) -> Result<Origin, SpecError> {
        let refused = |reason: String| SpecError::Settings(format!("carried: {reason}"));
        let encoder = self.shelf.get(&carried.encoder).map_err(|error| refused(error.to_string()))?;
        let eye = EncoderEye::new(encoder, &carried.blocks).map_err(refused)?;
        let (width, given) = (eye.width(), carried.difference.len());
        if width != given || carried.difference.iter().any(|value| !value.is_finite()) {
            return Err(refused(format!("difference has {given} numbers, the blocks have {width}; all must be finite")));
        }
        check_width(width, limits::CARRIED_WIDTH_MAX).map_err(refused)?;
        Ok(Origin { eye: Arc::new(eye), difference: carried.difference.clone() })
    }
}

/// What a detector looks at, and the live network if it is one.
struct Sight {
    eye: Arc<dyn Eye>,
    parent: Option<Parent>,
}

/// Whether a detector of what reads pictures of this side can learn from rows of this schema.
fn check_schema(schema: &Schema, side: usize, of: &str) -> Result<(), String> {
    if schema.element() != Element::U8 || schema.input_shape() != [3, side, side] {
        return Err(format!(
            "{of} reads pictures of side {side}: the stream needs one field of type image with that side, or a tensor of u8 \
             [3, {side}, {side}]"
        ));
    }
    let swapped = schema.class_names().is_some_and(|names| names[0] == "adversarial" || names[names.len() - 1] == "benign");
    if !schema.is_classified() || schema.class_count() != 2 || swapped {
        return Err("a detector learns from two classes, the first benign and the second adversarial".into());
    }
    Ok(())
}

fn check_width(width: usize, most: usize) -> Result<(), String> {
    if width > most {
        return Err(format!("the states have {width} numbers, {most} are the most of this direction"));
    }
    Ok(())
}

/// Writes down what a spec leaves out, so that a data folder means the same under other defaults.
pub fn complete(settings: &mut Map<String, Value>, source: &Source) {
    complete_with(settings, [("blocks", json!(source.blocks()))]);
}

/// The same for a detector that watches a live network.
///
/// # Errors
/// The network cannot be.
pub fn complete_watching(settings: &mut Map<String, Value>, watched: &Watched) -> Result<(), String> {
    let layers = json!(Parent::new(watched, None, None)?.layers());
    complete_with(settings, [("layers", layers), ("kept_rows", json!(KEPT_ROWS))]);
    Ok(())
}

fn complete_with<const N: usize>(settings: &mut Map<String, Value>, own: [(&str, Value); N]) {
    let common = [
        ("threshold", json!(Mode::default())),
        ("held_out_every", json!(HELD_OUT_EVERY)),
        ("calibration_rows", json!(CALIBRATION_ROWS)),
        ("step_rows", json!(STEP_ROWS)),
    ];
    for (key, value) in own.into_iter().chain(common) {
        settings.entry(key).or_insert(value);
    }
    if settings.contains_key("carried") {
        return;
    }
    let direction = settings.entry("direction").or_insert(json!(Direction::default())).clone();
    if direction == json!(Direction::Logistic) {
        settings.entry("learning_rate").or_insert(json!(logistic::LEARNING_RATE));
    }
}

impl Kind for DetectorKind {
    fn name(&self) -> &'static str {
        KIND
    }

    fn propose_plan(&self, given: Given<'_>, budget_bytes: Option<u64>) -> Result<Value, SpecError> {
        let plan = self.recipe(given)?.propose(budget_bytes, self.pool.threads())?;
        Ok(json!(plan))
    }

    fn build(&self, given: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
        Ok(Box::new(Detector::new(self.recipe(given)?, self.pool.clone())?))
    }

    fn blob_of(&self, setting: &Value) -> Option<String> {
        match Setting::deserialize(setting) {
            Ok(Setting::Adopt(adoption)) => Some(adoption.weights),
            _ => None,
        }
    }
}
