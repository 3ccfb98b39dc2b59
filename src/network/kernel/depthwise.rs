//! Depthwise convolution: each channel of an image by a kernel of its own, directly.
//!
//! A channel is cut into *phases* first: with a stride of s, phase (a, b) has the elements whose row and column, padding included,
//! leave a and b when divided by s. Within a phase, neighbouring outputs read neighbouring elements, whatever the stride. The phases
//! of a channel and its outputs have lines of the same width, so a whole channel is one run of blocks of [`LANES`] elements, however
//! small the image is; what such a run computes between the end of one line and the start of the next is not looked at. Where the
//! stride is 1, the only phase is the channel with its padding.

use super::convolution::{Gradients, Wanted};
use super::{dispatch, elementwise};
use crate::network::element::Element;

/// Elements of a block, and partial sums of a weight's gradient: as many as the widest vector holds, and whatever the processor.
const LANES: usize = 16;

/// The sizes of a depthwise convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Channels of the input, and of the output.
    pub(crate) channels: usize,
    /// Input height.
    pub(crate) height: usize,
    /// Input width.
    pub(crate) width: usize,
    /// Side of the square kernel.
    pub(crate) kernel: usize,
    /// Distance between the centres of two patches.
    pub(crate) stride: usize,
    /// Zeros around the image, on each side; less than the kernel.
    pub(crate) padding: usize,
    /// Output height.
    pub(crate) output_height: usize,
    /// Output width.
    pub(crate) output_width: usize,
}

impl Geometry {
    /// Elements of one input channel.
    fn input_plane(&self) -> usize {
        self.height * self.width
    }

    /// Elements of one output channel.
    pub(crate) fn plane(&self) -> usize {
        self.output_height * self.output_width
    }

    /// Elements of one channel's kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Phases along one side. With a stride above the kernel, those beyond it are read by nobody.
    fn phases(&self) -> usize {
        self.kernel.min(self.stride)
    }

    /// How far from its own place in a phase an output reads at most, along one side.
    fn reach(&self) -> usize {
        (self.kernel - 1) / self.stride
    }

    /// Elements of a phase's line.
    fn line(&self) -> usize {
        self.output_width + self.reach()
    }

    /// How far from its own place in a phase an output reads at most, line after line.
    fn furthest(&self) -> usize {
        self.reach() * (self.line() + 1)
    }

    /// Elements of a phase, in whole blocks.
    fn phase(&self) -> usize {
        ((self.output_height + self.reach()) * self.line()).next_multiple_of(LANES)
    }

    /// Elements of a phase and of the zeros behind it, which the last block of outputs may read.
    fn segment(&self) -> usize {
        self.phase() + LANES
    }

    /// Elements from the first output to the last in lines as wide as a phase's, in whole blocks.
    fn span(&self) -> usize {
        ((self.output_height - 1) * self.line() + self.output_width).next_multiple_of(LANES)
    }

    /// Elements of all phases of a channel.
    fn split(&self) -> usize {
        self.phases() * self.phases() * self.segment()
    }

    /// Elements of an output channel's gradient in lines as wide as a phase's, with zeros before and behind.
    fn spread(&self) -> usize {
        self.furthest() + self.phase()
    }

    /// Elements of scratch that [`forward`] takes.
    pub(crate) fn scratch_forward(&self) -> usize {
        self.split() + self.span()
    }

    /// Elements of scratch that [`backward`] takes.
    pub(crate) fn scratch_backward(&self, want_input: bool) -> usize {
        self.split() + self.spread() + if want_input { self.phase() } else { 0 }
    }

    /// Where an element of the kernel is multiplied with what the first output reads, and how far that is from the output's own
    /// place in the phase.
    #[inline(always)]
    fn tap(&self, y: usize, x: usize) -> (usize, usize) {
        let segment = (y % self.stride * self.phases() + x % self.stride) * self.segment();
        let distance = y / self.stride * self.line() + x / self.stride;
        (segment + distance, distance)
    }

    /// The lines of phase (`a`, `b`) that lie in the image and are read by an output: where each begins in the phase, where in the
    /// channel, and where it ends there. Elements of the channel are one stride apart.
    #[inline(always)]
    fn lines(self, a: usize, b: usize) -> impl Iterator<Item = [usize; 3]> {
        let Self { height, width, kernel, stride, padding, .. } = self;
        let first = move |phase: usize| padding.saturating_sub(phase).div_ceil(stride);
        let end = |outputs: usize, size: usize| size.min((outputs - 1) * stride + kernel - padding);
        let (to_y, to_x) = (end(self.output_height, height), end(self.output_width, width));
        let from_x = (first(b) * stride + b - padding).min(to_x);
        (first(a)..)
            .map(move |line| (line, line * stride + a - padding))
            .take_while(move |&(_, y)| y < to_y)
            .map(move |(line, y)| [line * self.line() + first(b), y * width + from_x, y * width + to_x])
    }
}

/// `[rows, channels, output_height, output_width]` from `x: [rows, channels, height, width]`, `weight: [channels, kernel, kernel]`
/// and, if there is one, `bias: [channels]`. An output is the bias with the kernel's products added, line after line.
pub(crate) fn forward<T: Element>(geometry: &Geometry, weight: &[T], bias: Option<&[T]>, x: &[T]) -> Vec<T> {
    let mut phases = vec![T::zero(); geometry.split()];
    let mut outputs = vec![T::zero(); geometry.span()];
    let mut y = Vec::with_capacity(x.len() / geometry.input_plane() * geometry.plane());
    dispatch(
        #[inline(always)]
        || {
            by_size(
                geometry,
                #[inline(always)]
                |geometry| {
                    for (index, x) in x.chunks_exact(geometry.input_plane()).enumerate() {
                        let channel = index % geometry.channels;
                        let weight = &weight[channel * geometry.taps()..][..geometry.taps()];
                        split(geometry, x, &mut phases);
                        convolve(geometry, weight, bias.map_or(T::zero(), |bias| bias[channel]), &phases, &mut outputs);
                        for line in outputs.chunks(geometry.line()).take(geometry.output_height) {
                            y.extend_from_slice(&line[..geometry.output_width]);
                        }
                    }
                },
            );
        },
    );
    y
}

/// The gradients of [`forward`] from that of its result, `[rows, channels, output_height, output_width]`. Rows are added first to
/// last.
pub(crate) fn backward<T: Element>(geometry: &Geometry, weight: &[T], x: &[T], gradient: &[T], wanted: Wanted) -> Gradients<T> {
    let mut of_weight = vec![T::zero(); geometry.channels * geometry.taps()];
    let mut input = wanted.input.then(|| vec![T::zero(); x.len()]);
    let mut phases = vec![T::zero(); geometry.split()];
    let mut spread = vec![T::zero(); geometry.spread()];
    let mut phase = vec![T::zero(); if wanted.input { geometry.phase() } else { 0 }];
    dispatch(
        #[inline(always)]
        || {
            by_size(
                geometry,
                #[inline(always)]
                |geometry| {
                    let planes = x.chunks_exact(geometry.input_plane()).zip(gradient.chunks_exact(geometry.plane()));
                    for (index, (x, gradient)) in planes.enumerate() {
                        let taps = index % geometry.channels * geometry.taps()..(index % geometry.channels + 1) * geometry.taps();
                        split(geometry, x, &mut phases);
                        let lines = spread[geometry.furthest()..].chunks_mut(geometry.line());
                        for (line, gradient) in lines.zip(gradient.chunks_exact(geometry.output_width)) {
                            line[..geometry.output_width].copy_from_slice(gradient);
                        }
                        let (sums, weight) = (&mut of_weight[taps.clone()], &weight[taps]);
                        match geometry.kernel {
                            3 => correlate::<T, 3>(geometry, &phases, &spread, sums),
                            5 => correlate::<T, 5>(geometry, &phases, &spread, sums),
                            _ => correlate::<T, 1>(geometry, &phases, &spread, sums),
                        }
                        if let Some(input) = &mut input {
                            let input = &mut input[index * geometry.input_plane()..][..geometry.input_plane()];
                            scatter(geometry, weight, &spread, &mut phase, input);
                        }
                    }
                },
            );
        },
    );
    Gradients { weight: of_weight, bias: wanted.bias.then(|| bias_gradient(geometry, gradient)), input }
}

/// The sum of each channel's gradient, over its elements and then over rows.
fn bias_gradient<T: Element>(geometry: &Geometry, gradient: &[T]) -> Vec<T> {
    let mut sums = vec![T::zero(); geometry.channels];
    for row in gradient.chunks_exact(geometry.channels * geometry.plane()) {
        for (sum, plane) in sums.iter_mut().zip(row.chunks_exact(geometry.plane())) {
            *sum += elementwise::sum(plane);
        }
    }
    sums
}

/// Runs `kernel` with usual sizes as constants, for which the compiler keeps all sums of a block in registers.
#[inline(always)]
fn by_size(geometry: &Geometry, kernel: impl FnOnce(Geometry)) {
    match (geometry.kernel, geometry.stride) {
        (3, 1) => kernel(Geometry { kernel: 3, stride: 1, ..*geometry }),
        (3, 2) => kernel(Geometry { kernel: 3, stride: 2, ..*geometry }),
        _ => kernel(*geometry),
    }
}

/// A block of elements.
#[inline(always)]
fn block<T: Element>(elements: &[T], at: usize) -> [T; LANES] {
    let mut block = [T::zero(); LANES];
    block.copy_from_slice(&elements[at..at + LANES]);
    block
}

/// `sums + factors · summands`, element by element.
#[inline(always)]
fn add_products<T: Element>(sums: &mut [T; LANES], factors: [T; LANES], summands: [T; LANES]) {
    for lane in 0..LANES {
        sums[lane] = factors[lane].fused(summands[lane], sums[lane]);
    }
}

/// A channel as its phases. Padding is there already, and stays.
#[inline(always)]
fn split<T: Element>(geometry: Geometry, x: &[T], phases: &mut [T]) {
    for (number, phase) in phases.chunks_exact_mut(geometry.segment()).enumerate() {
        for [at, from, to] in geometry.lines(number / geometry.phases(), number % geometry.phases()) {
            if geometry.stride == 1 {
                phase[at..at + to - from].copy_from_slice(&x[from..to]);
            } else {
                for (value, &source) in phase[at..].iter_mut().zip(x[from..to].iter().step_by(geometry.stride)) {
                    *value = source;
                }
            }
        }
    }
}

/// The outputs of one channel, in lines as wide as a phase's.
#[inline(always)]
fn convolve<T: Element>(geometry: Geometry, weight: &[T], bias: T, phases: &[T], outputs: &mut [T]) {
    for (number, target) in outputs.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [bias; LANES];
        for y in 0..geometry.kernel {
            for x in 0..geometry.kernel {
                let (from, _) = geometry.tap(y, x);
                add_products(&mut sums, [weight[y * geometry.kernel + x]; LANES], block(phases, from + number * LANES));
            }
        }
        *target = sums;
    }
}

/// Adds the gradient of one channel's kernel to `sums`, `RUN` neighbours at a time, which must divide the kernel: their sums do not
/// wait for each other. What lies between the lines of the gradient is zero.
#[inline(always)]
fn correlate<T: Element, const RUN: usize>(geometry: Geometry, phases: &[T], spread: &[T], sums: &mut [T]) {
    for (run, sums) in sums.chunks_exact_mut(RUN).enumerate() {
        let (y, x) = (run * RUN / geometry.kernel, run * RUN % geometry.kernel);
        let from: [usize; RUN] = std::array::from_fn(|next| geometry.tap(y, x + next).0);
        let mut lanes = [[T::zero(); LANES]; RUN];
        for at in (0..geometry.span()).step_by(LANES) {
            let gradient = block(spread, geometry.furthest() + at);
            for (lanes, from) in lanes.iter_mut().zip(from) {
                add_products(lanes, gradient, block(phases, from + at));
            }
        }
        for (sum, lanes) in sums.iter_mut().zip(&mut lanes) {
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
            }
            *sum += lanes[0];
        }
    }
}

/// The gradient of one channel's input, which is zero where nothing was read: each phase by the elements of the kernel that read it.
#[inline(always)]
fn scatter<T: Element>(geometry: Geometry, weight: &[T], spread: &[T], phase: &mut [T], input: &mut [T]) {
    let Geometry { kernel, stride, .. } = geometry;
    for (a, b) in (0..geometry.phases()).flat_map(|a| (0..geometry.phases()).map(move |b| (a, b))) {
        for (number, target) in phase.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sums = [T::zero(); LANES];
            for y in (a..kernel).step_by(stride) {
                for x in (b..kernel).step_by(stride) {
                    let from = geometry.furthest() - geometry.tap(y, x).1 + number * LANES;
                    add_products(&mut sums, [weight[y * kernel + x]; LANES], block(spread, from));
                }
            }
            *target = sums;
        }
        for [at, from, to] in geometry.lines(a, b) {
            for (value, &gradient) in input[from..to].iter_mut().step_by(stride).zip(&phase[at..]) {
                *value = gradient;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry([height, width]: [usize; 2], kernel: usize, stride: usize, padding: usize) -> Geometry {
        let side = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        let (output_height, output_width) = (side(height), side(width));
        Geometry { channels: 3, height, width, kernel, stride, padding, output_height, output_width }
    }

    /// Small whole numbers, whose sums are exact in any order.
    fn whole(count: usize, factor: usize) -> Vec<f64> {
        (0..count).map(|index| ((index * factor + 5) % 13) as f64 - 6.0).collect()
    }

    /// By the definition, one product after the other.
    fn naive(g: &Geometry, weight: &[f64], bias: &[f64], x: &[f64], gradient: &[f64]) -> [Vec<f64>; 4] {
        let (plane, taps) = (g.height * g.width, g.kernel * g.kernel);
        let mut of_weight = vec![0.0; weight.len()];
        let (mut of_bias, mut of_input) = (vec![0.0; g.channels], vec![0.0; x.len()]);
        let mut outputs = Vec::new();
        for (index, &gradient) in gradient.iter().enumerate() {
            let image = index / g.plane();
            let (channel, y, x_) = (image % g.channels, index % g.plane() / g.output_width, index % g.output_width);
            let mut sum = bias[channel];
            for tap in 0..taps {
                let (y, x_) = (y * g.stride + tap / g.kernel, x_ * g.stride + tap % g.kernel);
                if y < g.padding || x_ < g.padding || y >= g.height + g.padding || x_ >= g.width + g.padding {
                    continue;
                }
                let at = image * plane + (y - g.padding) * g.width + x_ - g.padding;
                sum += weight[channel * taps + tap] * x[at];
                of_weight[channel * taps + tap] += gradient * x[at];
                of_input[at] += gradient * weight[channel * taps + tap];
            }
            of_bias[channel] += gradient;
            outputs.push(sum);
        }
        [outputs, of_weight, of_bias, of_input]
    }

    #[test]
    fn it_is_the_definition_for_any_sizes() {
        for sides in [[1, 1], [2, 2], [1, 9], [5, 4], [8, 8], [7, 19], [33, 6]] {
            for kernel in 1..=6 {
                for (stride, padding) in (1..=7).flat_map(|stride| (0..kernel).map(move |padding| (stride, padding))) {
                    if sides.iter().any(|side| side + 2 * padding < kernel) {
                        continue;
                    }
                    let g = geometry(sides, kernel, stride, padding);
                    let (x, weight) = (whole(2 * 3 * g.input_plane(), 7), whole(3 * g.taps(), 5));
                    let (bias, gradient) = (whole(3, 3), whole(2 * 3 * g.plane(), 11));
                    let [outputs, of_weight, of_bias, of_input] = naive(&g, &weight, &bias, &x, &gradient);
                    assert_eq!(forward(&g, &weight, Some(&bias), &x), outputs, "{g:?}");
                    let ours = backward(&g, &weight, &x, &gradient, Wanted { input: true, bias: true });
                    assert_eq!(ours.weight, of_weight, "{g:?}");
                    assert_eq!((ours.bias, ours.input), (Some(of_bias), Some(of_input)), "{g:?}");
                }
            }
        }
    }

    #[test]
    fn a_rows_bits_do_not_depend_on_the_rows_beside_it_and_only_what_is_wanted_is_made() {
        let g = geometry([9, 7], 3, 2, 1);
        let one = 3 * g.input_plane();
        let narrow = |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|value| (value / 7.0) as f32).collect() };
        let (x, weight) = (narrow(whole(4 * one, 7)), narrow(whole(27, 5)));
        let all = forward(&g, &weight, None, &x);
        for (x, y) in x.chunks_exact(one).zip(all.chunks_exact(3 * g.plane())) {
            assert_eq!(forward(&g, &weight, None, x), y);
        }
        let wanted = |input, bias| backward(&g, &weight, &x, &all, Wanted { input, bias });
        let (everything, least) = (wanted(true, true), wanted(false, false));
        assert_eq!(everything.weight, least.weight);
        assert!(everything.input.is_some() && everything.bias.is_some() && least.input.is_none() && least.bias.is_none());
    }

    #[test]
    fn what_is_not_a_number_stays_where_it_is_read() {
        let g = geometry([4, 4], 3, 1, 0);
        let mut x = vec![1f32; 3 * 16];
        x[15] = f32::NAN;
        let y = forward(&g, &[1.0; 27], None, &x);
        assert!(y[3].is_nan());
        assert!(y[..3].iter().chain(&y[4..]).all(|&value| value == 9.0));
    }
}
