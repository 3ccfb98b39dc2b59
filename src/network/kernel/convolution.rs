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
        self.channels * self.padded_plane()
    }

    fn padded_width(&self) -> usize {
        self.width + 2 * self.padding
    }

    /// Elements of one channel with its padding.
    fn padded_plane(&self) -> usize {
        (self.height + 2 * self.padding) * self.padded_width()
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
    let mut padded = vec![T::zero(); geometry.padded_image()];
    let mut y = Vec::with_capacity(rows * geometry.outputs * plane);
    for image in x.chunks_exact(geometry.image().max(1)) {
        let start = y.len();
        match bias {
            Some(bias) => bias.iter().for_each(|&bias| y.extend(std::iter::repeat_n(bias, plane))),
            None => y.resize(start + geometry.outputs * plane, T::zero()),
        }
        pad(geometry, image, &mut padded);
        for (from, to) in geometry.tiles() {
            let columns = (to - from) * geometry.output_width;
            let patches = &mut patches[..patch * columns];
            dispatch(
                #[inline(always)]
                || {
                    by_width(
                        geometry,
                        #[inline(always)]
                        |geometry| gather(geometry, &padded, from, to, patches),
                    );
                },
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

/// What backward computes, here and in a depthwise convolution, where each output has one channel.
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
    let mut input = wanted.input.then(|| Vec::with_capacity(x.len()));
    let mut sums = vec![T::zero(); if wanted.input { geometry.padded_image() } else { 0 }];
    let mut patches = vec![T::zero(); patch * geometry.tile_rows() * geometry.output_width];
    let mut padded = vec![T::zero(); geometry.padded_image()];
    let images = x.chunks_exact(geometry.image().max(1));
    for (image, gradient) in images.zip(gradient.chunks_exact(geometry.outputs * plane)) {
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
            if wanted.input {
                let weight = Matrix::new(weight, geometry.outputs, patch).transposed();
                gemm::accumulate(patches, columns, T::zero(), T::one(), weight, gradient);
                dispatch(
                    #[inline(always)]
                    || {
                        by_width(
                            geometry,
                            #[inline(always)]
                            |geometry| scatter(geometry, patches, from, to, &mut sums),
                        );
                    },
                );
            }
        }
        if let Some(input) = &mut input {
            take_inside(geometry, &mut sums, input);
        }
    }
    drop((patches, padded, sums));
    Gradients { weight: channels_first(geometry, &by_position), bias, input }
}

/// Runs `kernel` with the widths of usual images as constants, for which the compiler makes of each short line a vector or two.
#[inline(always)]
fn by_width(geometry: &Geometry, kernel: impl FnOnce(Geometry)) {
    match (geometry.stride, geometry.output_width) {
        (1, 32) => kernel(Geometry { stride: 1, output_width: 32, ..*geometry }),
        (1, 16) => kernel(Geometry { stride: 1, output_width: 16, ..*geometry }),
        (1, 8) => kernel(Geometry { stride: 1, output_width: 8, ..*geometry }),
        (1, 4) => kernel(Geometry { stride: 1, output_width: 4, ..*geometry }),
        _ => kernel(*geometry),
    }
}

/// The image with its padding, which `padded` has already.
fn pad<T: Element>(geometry: &Geometry, image: &[T], padded: &mut [T]) {
    let Geometry { height, width, padding, .. } = *geometry;
    for (channel, target) in image.chunks_exact(height * width).zip(padded.chunks_exact_mut(geometry.padded_plane())) {
        let lines = target.chunks_exact_mut(geometry.padded_width()).skip(padding);
        for (line, target) in channel.chunks_exact(width).zip(lines) {
            target[padding..padding + width].copy_from_slice(line);
        }
    }
}

/// Moves what lies inside the padding behind `images`, and leaves zeros.
fn take_inside<T: Element>(geometry: &Geometry, padded: &mut [T], images: &mut Vec<T>) {
    let Geometry { height, width, padding, .. } = *geometry;
    for channel in padded.chunks_exact(geometry.padded_plane()) {
        for line in channel.chunks_exact(geometry.padded_width()).skip(padding).take(height) {
            images.extend_from_slice(&line[padding..padding + width]);
        }
    }
    padded.fill(T::zero());
}

/// Patches as columns: `[channels · kernel · kernel, output positions]`, of output rows `from..to`, from [`pad`]'s image.
#[inline(always)]
fn gather<T: Element>(geometry: Geometry, padded: &[T], from: usize, to: usize, patches: &mut [T]) {
    let Geometry { kernel, stride, output_width, .. } = geometry;
    let mut lines = patches.chunks_exact_mut(output_width);
    for channel in padded.chunks_exact(geometry.padded_plane()) {
        for offset_y in 0..kernel {
            for offset_x in 0..kernel {
                for (y, line) in (from..to).zip(&mut lines) {
                    let source = &channel[(y * stride + offset_y) * geometry.padded_width() + offset_x..];
                    if stride == 1 {
                        line.copy_from_slice(&source[..output_width]);
                    } else {
                        for (value, &source) in line.iter_mut().zip(source.iter().step_by(stride)) {
                            *value = source;
                        }
                    }
                }
            }
        }
    }
}

/// Adds patches as columns to the padded image that they came from: the transpose of [`gather`].
#[inline(always)]
fn scatter<T: Element>(geometry: Geometry, patches: &[T], from: usize, to: usize, padded: &mut [T]) {
    let Geometry { kernel, stride, output_width, .. } = geometry;
    let mut lines = patches.chunks_exact(output_width);
    for channel in padded.chunks_exact_mut(geometry.padded_plane()) {
        for offset_y in 0..kernel {
            for offset_x in 0..kernel {
                for (y, line) in (from..to).zip(&mut lines) {
                    let target = &mut channel[(y * stride + offset_y) * geometry.padded_width() + offset_x..];
                    match (stride, output_width) {
                        (1, 32) => add::<T, 32>(target, line),
                        (1, 16) => add::<T, 16>(target, line),
                        (1, 8) => add::<T, 8>(target, line),
                        (1, 4) => add::<T, 4>(target, line),
                        (1, _) => target.iter_mut().zip(line).for_each(|(value, &summand)| *value += summand),
                        _ => target.iter_mut().step_by(stride).zip(line).for_each(|(value, &summand)| *value += summand),
                    }
                }
            }
        }
    }
}

/// Adds the first elements of one slice to those of another, with no store before the last load, so that vectors can do it.
#[inline(always)]
fn add<T: Element, const WIDTH: usize>(target: &mut [T], summand: &[T]) {
    if let (Some(target), Some(summand)) = (target.first_chunk_mut::<WIDTH>(), summand.first_chunk::<WIDTH>()) {
        let mut sum = *target;
        for (sum, &summand) in sum.iter_mut().zip(summand) {
            *sum += summand;
        }
        *target = sum;
    }
}

/// The image with its padding and its channels last, so that a row of a patch is one run of elements.
#[inline(always)]
fn pad_channels_last<T: Element>(geometry: &Geometry, image: &[T], padded: &mut [T]) {
    let Geometry { channels, height, width, padding, .. } = *geometry;
    for y in 0..height {
        let start = ((y + padding) * geometry.padded_width() + padding) * channels;
        let pixels = &mut padded[start..start + width * channels];
        for (number, channel) in image.chunks_exact(height * width).enumerate() {
            for (pixel, &value) in pixels.chunks_exact_mut(channels).zip(&channel[y * width..][..width]) {
                pixel[number] = value;
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
