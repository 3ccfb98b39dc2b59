//! From rows to tensors: the only place where the bytes of a stream become numbers of a network.

use candle_core::{Device, Tensor};

use crate::fold::FoldError;
use crate::network::Targets;
use crate::rows::{Block, Element, Rows, Target};

/// What pictures' bytes are divided by, so that a network sees 0 to 1.
const BYTE_SCALE: f32 = 1.0 / 255.0;

/// The features of `rows` as one `[rows, …input_shape]` tensor of f32; bytes are divided by 255.
pub fn features(rows: &Rows, input_shape: &[usize]) -> Result<Tensor, FoldError> {
    let [block] = rows.blocks.as_slice() else {
        return Err(FoldError::Contract(format!("a network reads one block of features, these rows have {}", rows.blocks.len())));
    };
    let width: usize = input_shape.iter().product();
    if block.width != width || block.bytes.len() != rows.count * block.row_bytes() {
        return Err(FoldError::Contract(format!("rows of {} features, the network reads {width}", block.width)));
    }
    let shape: Vec<usize> = std::iter::once(rows.count).chain(input_shape.iter().copied()).collect();
    Ok(Tensor::from_vec(widen(block), shape, &Device::Cpu)?)
}

fn widen(block: &Block) -> Vec<f32> {
    match block.element {
        Element::U8 => block.bytes.iter().map(|&byte| f32::from(byte) * BYTE_SCALE).collect(),
        Element::F32 => {
            let (words, _) = block.bytes.as_chunks::<4>();
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        }
    }
}

/// The labels of `rows`, as a loss reads them.
pub fn targets(rows: &Rows) -> Result<Targets, FoldError> {
    match &rows.target {
        Some(Target::Classes(classes)) => Ok(Targets::Classes(classes.clone())),
        Some(Target::Values(values)) => Ok(Targets::Values(values.clone())),
        None => Err(FoldError::Contract("rows without labels cannot be learned".into())),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn bytes_become_fractions_and_floats_stay() {
        let block = Block { element: Element::U8, width: 2, bytes: Bytes::from_static(&[0, 255, 51, 102]) };
        let rows = Rows { count: 2, blocks: vec![block], ..Rows::default() };
        let tensor = features(&rows, &[1, 1, 2]).unwrap();
        assert_eq!(tensor.dims(), [2, 1, 1, 2]);
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0, 1.0, 51.0 * BYTE_SCALE, 102.0 * BYTE_SCALE]);

        let bytes: Bytes = [1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = Rows { count: 1, blocks: vec![Block { element: Element::F32, width: 2, bytes }], ..Rows::default() };
        assert_eq!(features(&rows, &[2]).unwrap().to_vec2::<f32>().unwrap(), [[1.5, -2.0]]);
        assert!(features(&rows, &[3]).is_err());
    }
}
