//! A live model of kind `network` as what a detector watches: that version of it which the detector has adopted last.
//!
//! The parent goes on learning, and every step turns its hidden states a little. A direction means something in the states that it was found
//! in, so a detector looks through weights that stand still: a copy of the parent's at one version. To take a newer one is a decision of the
//! detector, which names the copy; the copy lies beside the log, and outlives the parent.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::eye::{Eye, misfit};
use crate::ferret::snapshot::NetworkSnapshot;
use crate::ferret::stage::LayerWeights;
use crate::fold::{FoldError, Snapshot, Version};
use crate::ledger::Ledger;
use crate::model::blobs::Blobs;
use crate::model::network::network_of;
use crate::network::layer::forward_bytes;
use crate::network::{Network, Watchable, is_finite};
use crate::rows::{Element, Rows};
use crate::stream::Schema;

/// Which network is watched. What it is stands in the detector's own spec, because the parent may be deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watched {
    /// The parent's name.
    pub model: String,
    /// What its spec says of the network.
    pub settings: Map<String, Value>,
    /// Of the rows that it learns from.
    pub schema: Schema,
}

impl Watched {
    /// The side of the pictures that the network reads.
    ///
    /// # Errors
    /// It reads something else.
    pub fn side(&self) -> Result<usize, String> {
        match *self.schema.input_shape() {
            [3, height, width] if height == width && self.schema.element() == Element::U8 => Ok(width),
            _ => Err(format!(
                "watches: `{}` reads no pictures: a detector watches a network whose stream has one field of type image, or a tensor of u8 \
                 [3, side, side]",
                self.model
            )),
        }
    }
}

/// The version of the parent that a detector looks through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adoption {
    /// The log's id of the parent: another model of the same name is another model.
    pub model_id: u32,
    /// The parent's version.
    pub version: Version,
    /// The name of the blob with its weights.
    pub weights: String,
}

impl Adoption {
    /// Whether this is that version of that model, or a later one. Of two models of one name the later has the larger id.
    pub fn covers(&self, model_id: u32, version: Version) -> bool {
        (self.model_id, self.version) >= (model_id, version)
    }
}

/// The weights of a snapshot as safetensors.
///
/// # Errors
/// They cannot be written so.
pub fn freeze(snapshot: &NetworkSnapshot) -> Result<Vec<u8>, FoldError> {
    safetensors::serialize(snapshot.named_weights(), None).map_err(|error| FoldError::Contract(error.to_string()))
}

/// A network that is looked through, as far as a spec says it.
#[derive(Clone)]
pub(super) struct Parent {
    network: Arc<Network>,
    layers: Vec<Watchable>,
    /// Theirs.
    pub(super) places: Arc<[usize]>,
    /// Where copies of its weights are; none where a fold is only looked at.
    blobs: Option<Blobs>,
}

impl Parent {
    /// Watches the layers of these names; by default the last hidden one.
    ///
    /// # Errors
    /// The network cannot be, or has no such layer; the text says which there are.
    pub(super) fn new(watched: &Watched, names: Option<&[String]>, blobs: Option<&Blobs>) -> Result<Parent, String> {
        if let Some(other) = watched.settings.keys().find(|key| *key != "network") {
            return Err(format!("watches: settings: `{other}` does not say what the network is: `network` alone does"));
        }
        let network = network_of(&watched.settings, &watched.schema).map_err(|error| format!("watches: {error}"))?;
        let known = network.watchable();
        let find = |name: &String| {
            known.iter().find(|layer| layer.name == *name).cloned().ok_or_else(|| {
                let known: Vec<&str> = known.iter().map(|layer| layer.name.as_str()).collect();
                format!("layers: `{}` has no `{name}`; it has {}", watched.model, known.join(", "))
            })
        };
        let mut layers = match names {
            Some(names) => names.iter().map(find).collect::<Result<Vec<_>, _>>()?,
            None => last_hidden(&network, known).into_iter().collect(),
        };
        layers.sort_by_key(|layer| layer.place);
        if layers.is_empty() || layers.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("layers: one or more, each once".into());
        }
        let places = layers.iter().map(|layer| layer.place).collect();
        Ok(Parent { network: Arc::new(network), layers, places, blobs: blobs.cloned() })
    }

    /// The names of its layers.
    pub(super) fn layers(&self) -> Vec<&str> {
        self.layers.iter().map(|layer| layer.name.as_str()).collect()
    }

    /// What is seen before anything is adopted: nothing.
    pub(super) fn blind(&self) -> NetworkEye {
        NetworkEye { parent: self.clone(), frozen: None }
    }

    /// What is seen through an adopted version.
    ///
    /// # Errors
    /// Its weights are not there, or are another network's.
    pub(super) fn adopt(&self, adoption: &Adoption) -> Result<NetworkEye, FoldError> {
        let lost = |reason: String| FoldError::Contract(format!("the weights of version {}: {reason}", adoption.version));
        let blobs = self.blobs.as_ref().ok_or_else(|| lost("they are not at hand".into()))?;
        let bytes = blobs.read(&adoption.weights).map_err(|error| lost(error.to_string()))?;
        let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let mut weights = Vec::with_capacity(self.network.layers.len());
        for (names, layer) in self.network.parameter_names().into_iter().zip(&self.network.layers) {
            let learned = layer.parameters().into_iter().map(|parameter| (parameter.shape, DType::F32));
            let like = learned.chain(layer.statistics().into_iter().map(|statistic| (statistic.shape, DType::F64)));
            let taken = names.iter().zip(like).map(|(name, (shape, dtype))| match tensors.remove(name) {
                Some(tensor) if tensor.dims() == shape && tensor.dtype() == dtype => match is_finite(&tensor)? {
                    true => Ok(tensor),
                    false => Err(lost(format!("{name} is not finite: the network has diverged"))),
                },
                _ => Err(lost(format!("{name} is missing, or of another shape"))),
            });
            let taken: Vec<Tensor> = taken.collect::<Result<_, _>>()?;
            // A detector's plan counts them.
            weights.push(Arc::new(LayerWeights::new(taken, &Ledger::default())));
        }
        Ok(NetworkEye { parent: self.clone(), frozen: Some(NetworkSnapshot::new(self.network.clone(), weights)) })
    }
}

/// The last layer before the one that gives the answer, as the paper reads the last layer's state.
fn last_hidden(network: &Network, known: Vec<Watchable>) -> Option<Watchable> {
    let answers = network.layers.iter().rposition(|layer| !layer.parameters().is_empty()).unwrap_or(0);
    let hidden = known.iter().rfind(|layer| layer.place < answers).cloned();
    hidden.or_else(|| known.into_iter().last())
}

/// Some layers of a live network, as they were at the version that was adopted.
pub(super) struct NetworkEye {
    parent: Parent,
    /// None until a version is adopted.
    frozen: Option<NetworkSnapshot>,
}

impl Eye for NetworkEye {
    fn width(&self) -> usize {
        self.parent.layers.iter().map(|layer| layer.width).sum()
    }

    fn states(&self, rows: &Rows) -> Result<Vec<f32>, FoldError> {
        let Some(frozen) = &self.frozen else {
            return Err(FoldError::Unavailable("no version of the network has been adopted yet".into()));
        };
        let mut states = Vec::with_capacity(rows.count * self.width());
        // One at a time: a product of matrices may depend on how many rows it has, in its last bits.
        for row in 0..rows.count {
            states.extend(frozen.predict_watched(&rows.slice(row..row + 1), &self.parent.places)?.1);
        }
        if states.len() != rows.count * self.width() {
            return Err(misfit(rows));
        }
        Ok(states)
    }

    fn identity(&self) -> String {
        format!("a network's {}", self.parent.layers().join(","))
    }

    fn weight_bytes(&self) -> u64 {
        self.parent.network.layers.iter().map(|layer| layer.cost(1).weights).sum()
    }

    fn row_bytes(&self) -> u64 {
        let network = &self.parent.network;
        let input = network.input_shape.iter().product::<usize>() * size_of::<f32>();
        // The row as it came, too.
        input as u64 + forward_bytes(network.layers.iter().map(|layer| layer.as_ref()), &network.input_shape)
    }
}
