//! How kernels, which are functions over slices, read and write candle's tensors.
//!
//! Reading borrows the storage and copies nothing; writing goes through candle's in-place operations only, so that every
//! change of a tensor is visible at its call (`inplace_op…`), and a processor other than the CPU can have its own.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Error, Layout, Result, Storage, StorageRef, Tensor};

use super::element::Element;

/// Runs `$body` with `$type` standing for the type of the tensor's elements.
macro_rules! by_type {
    ($tensor:expr, $type:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $type = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $type = f64;
                $body
            }
            other => Err(candle_core::Error::Msg(format!("networks compute in f32 or f64, not in {other:?}"))),
        }
    };
}
pub(crate) use by_type;

/// The elements of a tensor, borrowed for reading.
pub(crate) struct Elements<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    of: PhantomData<T>,
}

/// Borrows a tensor's elements; an error if they do not lie one after the other, are of another type, or not on the CPU.
pub(crate) fn read<T: Element>(tensor: &Tensor) -> Result<Elements<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = range(layout)?;
    // Looked at here, so that `deref` cannot meet anything else.
    T::cpu_storage_as_slice(cpu(&storage)?)?;
    Ok(Elements { storage, range, of: PhantomData })
}

impl<T: Element> Deref for Elements<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(storage) => T::cpu_storage_as_slice(storage).map_or(&[], |data| &data[self.range.clone()]),
            _ => &[],
        }
    }
}

/// Makes a tensor of a kernel's result; the vector becomes its storage.
pub(crate) fn tensor<T: Element>(data: Vec<T>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// The elements that an in-place operation writes.
pub(crate) fn target<'a, T: Element>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    Ok(&mut T::slice_mut(storage)?[range(layout)?])
}

/// The elements that an in-place operation reads.
pub(crate) fn source<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    Ok(&T::cpu_storage_as_slice(storage)?[range(layout)?])
}

/// A copy in storage of its own. candle's `clone`, `detach` and (where it can) `contiguous` share storage.
pub fn deep_copy(tensor: &Tensor) -> Result<Tensor> {
    tensor.force_contiguous()
}

/// Whether every element is a finite number.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    by_type!(tensor, T => Ok(super::kernel::elementwise::all_finite::<T>(&read(tensor)?)))
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::Msg("the tensor is not contiguous".into()))?;
    Ok(start..end)
}

fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::Msg("the tensor is not on the CPU".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_copy_has_storage_of_its_own() {
        let original = tensor(vec![1f32, 2., 3., 4.], &[2, 2]).unwrap();
        let copy = deep_copy(&original.narrow(0, 1, 1).unwrap()).unwrap();
        assert_ne!(read::<f32>(&original).unwrap()[2..].as_ptr(), read::<f32>(&copy).unwrap().as_ptr());
        assert_eq!(&*read::<f32>(&copy).unwrap(), &[3., 4.]);
    }

    #[test]
    fn what_kernels_cannot_read_is_an_error() {
        let matrix = tensor(vec![1f32, 2., 3., 4.], &[2, 2]).unwrap();
        assert!(read::<f64>(&matrix).is_err());
        assert!(read::<f32>(&matrix.t().unwrap()).is_err());
        assert!(is_finite(&matrix).unwrap());
        assert!(!is_finite(&tensor(vec![1f32, f32::NAN], &[2]).unwrap()).unwrap());
        assert!(is_finite(&Tensor::zeros(2, candle_core::DType::U8, &Device::Cpu).unwrap()).is_err());
    }
}
