//! Convolution of images, channels first, as matrix products over patches ("im2col").
//!
//! An image is worked through in tiles of output rows, so that the patches of a tile stay in the second-level cache and the
//! workspace does not grow with the image. Patches are made anew in backward: keeping them would cost `kernel²` times the input.

use super::gemm::{self, Matrix};
use super::{dispatch, elementwise};
use crate::network::element::Element;

/// Elements that the patches of one tile take at most, unless one row of outputs needs more.
const TILE_ELEMENTS: usize = 96 * 1024;

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Input channels.
    pub(crate) channels: usize,
    /// Input height.
    pub(crate) height: usize,
    /// Input width.
    pub(crate) width: usize,
    /// Output channels.
    pub(crate) outputs: usize,
    /// Side of the square kernel.
    pub(crate) kernel: usize,
    /// Distance between the centres of two patches.
    pub(crate) stride: usize,
    /// Zeros around the image, on each side.
    pub(crate) padding: usize,
    /// Output height.
    pub(crate) output_height: usize,
    /// Output width.
    pub(crate) output_width: usize,
}

impl Geometry {
    /// Elements of one input image.
    pub(crate) fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Elements of one output channel.
    pub(crate) fn plane(&self) -> usize {
        self.output_height * self.output_width
    }

    /// Elements of one patch.
    pub(crate) fn patch(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Output rows of a tile.
    pub(crate) fn tile_rows(&self) -> usize {
        (TILE_ELEMENTS / (self.patch() * self.output_width).max(1)).clamp(1, self.output_height)
    }

    /// Elements of one image with its padding.
    pub(crate) fn padded_image(&self) -> usize {
        self.channels * (self.height + 2 * self.padding) * self.padded_width()
    }

    fn padded_width(&self) -> usize {
        self.width + 2 * self.padding
    }

    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (step, height) = (self.tile_rows(), self.output_height);
        (0..height).step_by(step).map(move |from| (from, height.min(from + step)))
    }
}

/// `[rows, outputs, output_height, output_width]` from `x: [rows, channels, height, width]`,
/// `weight: [outputs, channels, kernel, kernel]` and, if there is one, `bias: [outputs]`.
pub(crate) fn forward<T: Element>(geometry: &Geometry, weight: &[T], bias: Option<&[T]>, x: &[T]) -> Vec<T> {
    let (patch, plane) = (geometry.patch(), geometry.plane());
    let rows = x.len() / geometry.image().max(1);
    let weight = Matrix::new(weight, geometry.outputs, patch);
    let mut patches = vec![T::zero(); patch * geometry.tile_rows() * geometry.output_width];
    let mut y = Vec::with_capacity(rows * geometry.outputs * plane);
    for image in x.chunks_exact(geometry.image().max(1)) {
        let start = y.len();
        match bias {
            Some(bias) => bias.iter().for_each(|&bias| y.extend(std::iter::repeat_n(bias, plane))),
            None => y.resize(start + geometry.outputs * plane, T::zero()),
        }
        for (from, to) in geometry.tiles() {
            let columns = (to - from) * geometry.output_width;
            let patches = &mut patches[..patch * columns];
            dispatch(
                #[inline(always)]
                || gather(geometry, image, from, to, patches),
            );
            let target = &mut y[start + from * geometry.output_width..];
            gemm::accumulate(target, plane, T::one(), T::one(), weight, Matrix::new(patches, patch, columns));
        }
    }
    y
}

/// Which gradients backward computes beside the weight's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The input's.
    pub(crate) input: bool,
    /// The bias's.
    pub(crate) bias: bool,
}

/// What backward computes.
pub(crate) struct Gradients<T> {
    /// `[outputs, channels, kernel, kernel]`.
    pub(crate) weight: Vec<T>,
    /// `[outputs]`.
    pub(crate) bias: Option<Vec<T>>,
    /// `[rows, channels, height, width]`.
    pub(crate) input: Option<Vec<T>>,
}

/// The gradients of [`forward`] from that of its result, `[rows, outputs, output_height, output_width]`.
pub(crate) fn backward<T: Element>(geometry: &Geometry, weight: &[T], x: &[T], gradient: &[T], wanted: Wanted) -> Gradients<T> {
    let (patch, plane) = (geometry.patch(), geometry.plane());
    let mut by_position = vec![T::zero(); geometry.outputs * patch];
    let mut bias = wanted.bias.then(|| vec![T::zero(); geometry.outputs]);
    let mut input = wanted.input.then(|| vec![T::zero(); x.len()]);
    let mut patches = vec![T::zero(); patch * geometry.tile_rows() * geometry.output_width];
    let mut padded = vec![T::zero(); geometry.padded_image()];
    let images = x.chunks_exact(geometry.image().max(1));
    for (index, (image, gradient)) in images.zip(gradient.chunks_exact(geometry.outputs * plane)).enumerate() {
        for (sum, plane) in bias.iter_mut().flatten().zip(gradient.chunks_exact(plane)) {
            *sum += elementwise::sum(plane);
        }
        dispatch(
            #[inline(always)]
            || pad_channels_last(geometry, image, &mut padded),
        );
        for (from, to) in geometry.tiles() {
            let columns = (to - from) * geometry.output_width;
            let patches = &mut patches[..patch * columns];
            let gradient = Matrix::strided(&gradient[from * geometry.output_width..], geometry.outputs, columns, plane);
            gather_channels_last(geometry, &padded, from, to, patches);
            gemm::accumulate(&mut by_position, patch, T::one(), T::one(), gradient, Matrix::new(patches, columns, patch));
            if let Some(input) = &mut input {
                let weight = Matrix::new(weight, geometry.outputs, patch).transposed();
                gemm::accumulate(patches, columns, T::zero(), T::one(), weight, gradient);
                let image = &mut input[index * geometry.image()..][..geometry.image()];
                dispatch(
                    #[inline(always)]
                    || scatter(geometry, patches, from, to, image),
                );
            }
        }
    }
    drop((patches, padded));
    Gradients { weight: channels_first(geometry, &by_position), bias, input }
}

/// The output columns `x` whose patch element at `offset` (0..kernel) lies inside the image, and where the first of them lies.
#[inline(always)]
fn inside(geometry: &Geometry, offset: usize) -> (usize, usize, usize) {
    let Geometry { stride, padding, width, output_width, .. } = *geometry;
    let first = padding.saturating_sub(offset).div_ceil(stride).min(output_width);
    let last = (width + padding).saturating_sub(offset).div_ceil(stride).min(output_width);
    (first, last.max(first), (first * stride + offset).saturating_sub(padding))
}

/// Patches as columns: `[channels · kernel · kernel, output positions]`, of output rows `from..to`.
#[inline(always)]
fn gather<T: Element>(geometry: &Geometry, image: &[T], from: usize, to: usize, patches: &mut [T]) {
    let Geometry { height, width, kernel, stride, padding, output_width, .. } = *geometry;
    let mut lines = patches.chunks_exact_mut(output_width);
    for channel in image.chunks_exact(height * width) {
        for offset_y in 0..kernel {
            for offset_x in 0..kernel {
                let (first, last, start) = inside(geometry, offset_x);
                for (y, line) in (from..to).zip(&mut lines) {
                    let source = (y * stride + offset_y).checked_sub(padding).filter(|&source| source < height);
                    let Some(source) = source.filter(|_| first < last) else {
                        line.fill(T::zero());
                        continue;
                    };
                    let source = &channel[source * width + start..(source + 1) * width];
                    line[..first].fill(T::zero());
                    line[last..].fill(T::zero());
                    if stride == 1 {
                        line[first..last].copy_from_slice(&source[..last - first]);
                    } else {
                        for (value, &source) in line[first..last].iter_mut().zip(source.iter().step_by(stride)) {
                            *value = source;
                        }
                    }
                }
            }
        }
    }
}

/// Adds patches as columns to the image that they came from: the transpose of [`gather`].
#[inline(always)]
fn scatter<T: Element>(geometry: &Geometry, patches: &[T], from: usize, to: usize, image: &mut [T]) {
    let Geometry { height, width, kernel, stride, padding, output_width, .. } = *geometry;
    let mut lines = patches.chunks_exact(output_width);
    for channel in image.chunks_exact_mut(height * width) {
        for offset_y in 0..kernel {
            for offset_x in 0..kernel {
                let (first, last, start) = inside(geometry, offset_x);
                for (y, line) in (from..to).zip(&mut lines) {
                    let target = (y * stride + offset_y).checked_sub(padding).filter(|&target| target < height);
                    let Some(target) = target.filter(|_| first < last) else { continue };
                    let target = &mut channel[target * width + start..(target + 1) * width];
                    if stride == 1 {
                        for (value, &summand) in target.iter_mut().zip(&line[first..last]) {
                            *value += summand;
                        }
                    } else {
                        for (value, &summand) in target.iter_mut().step_by(stride).zip(&line[first..last]) {
                            *value += summand;
                        }
                    }
                }
            }
        }
    }
}

/// The image with its padding and its channels last, so that a row of a patch is one run of elements.
#[inline(always)]
fn pad_channels_last<T: Element>(geometry: &Geometry, image: &[T], padded: &mut [T]) {
    let Geometry { channels, height, width, padding, .. } = *geometry;
    for y in 0..height {
        let start = ((y + padding) * geometry.padded_width() + padding) * channels;
        for (x, pixel) in padded[start..start + width * channels].chunks_exact_mut(channels).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = image[(channel * height + y) * width + x];
            }
        }
    }
}

/// Patches as rows: `[output positions, kernel · kernel · channels]`, of output rows `from..to`, from [`pad_channels_last`]'s.
fn gather_channels_last<T: Element>(geometry: &Geometry, padded: &[T], from: usize, to: usize, patches: &mut [T]) {
    let Geometry { channels, kernel, stride, output_width, .. } = *geometry;
    let run = kernel * channels;
    let mut runs = patches.chunks_exact_mut(run);
    for y in from..to {
        for x in 0..output_width {
            for (offset_y, target) in (0..kernel).zip(&mut runs) {
                let start = ((y * stride + offset_y) * geometry.padded_width() + x * stride) * channels;
                target.copy_from_slice(&padded[start..start + run]);
            }
        }
    }
}

/// `[outputs, kernel, kernel, channels]` as `[outputs, channels, kernel, kernel]`.
fn channels_first<T: Element>(geometry: &Geometry, weight: &[T]) -> Vec<T> {
    let (channels, positions) = (geometry.channels, geometry.kernel * geometry.kernel);
    let mut result = Vec::with_capacity(weight.len());
    for output in weight.chunks_exact(geometry.patch()) {
        for channel in 0..channels {
            result.extend((0..positions).map(|position| output[position * channels + channel]));
        }
    }
    result
}
