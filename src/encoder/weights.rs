//! Weights from a safetensors file: looked up by name, held to a shape, batch norms folded into the convolutions before them.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

/// Why weights make no encoder.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is not what it should be.
    #[error("the weights cannot be read: {0}")]
    Unreadable(#[from] candle_core::Error),
    /// A tensor is not there.
    #[error("the weights have no tensor `{0}`")]
    Missing(String),
    /// A tensor has another shape.
    #[error("tensor `{name}` has the shape {got:?}, expected {wanted:?}")]
    Shape {
        /// Which.
        name: String,
        /// What it has.
        got: Vec<usize>,
        /// What the encoder needs.
        wanted: Vec<usize>,
    },
    /// Sizes that no layer has.
    #[error("block `{0}` does not fit what comes before it")]
    Layer(String),
}

/// The tensors of a file, by name.
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    /// blake3 of the file.
    pub(super) hash: String,
}

impl Weights {
    /// From the bytes of a safetensors file.
    ///
    /// # Errors
    /// They are none.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Weights, WeightsError> {
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?.into_iter().collect();
        Ok(Weights { tensors, hash: blake3::hash(bytes).to_hex().to_string() })
    }

    /// A tensor of 32-bit floats of this shape.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        let tensor = self.tensors.get(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
        if tensor.dims() != shape {
            let (got, wanted) = (tensor.dims().to_vec(), shape.to_vec());
            return Err(WeightsError::Shape { name: name.to_owned(), got, wanted });
        }
        Ok(tensor.to_dtype(candle_core::DType::F32)?)
    }

    /// Weight and bias of a convolution without bias and the batch norm behind it, as one: in use a norm's mean and variance are
    /// fixed, so it is `a · x + b` by channel.
    pub(super) fn folded(
        &self,
        convolution: &str,
        norm: &str,
        shape: &[usize],
        epsilon: f64,
    ) -> Result<[Tensor; 2], WeightsError> {
        let weight = self.get(&format!("{convolution}.weight"), shape)?;
        let channels = &shape[..1];
        let of_norm = |part: &str| self.get(&format!("{norm}.{part}"), channels);
        let scale = (of_norm("weight")? / (of_norm("running_var")? + epsilon)?.sqrt()?)?;
        let bias = (of_norm("bias")? - (of_norm("running_mean")? * &scale)?)?;
        let by_output: Vec<usize> = shape.iter().enumerate().map(|(at, &size)| if at == 0 { size } else { 1 }).collect();
        Ok([weight.broadcast_mul(&scale.reshape(by_output)?)?, bias])
    }
}
