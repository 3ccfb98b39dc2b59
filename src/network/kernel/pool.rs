//! Pooling: the largest of each window, and the mean of a whole plane.

use super::{dispatch, elementwise};
use crate::network::element::Element;

/// The largest window: the index of an element within it must fit a byte.
pub(crate) const WINDOW_MAX: usize = 16;

/// The sizes of a pooling. Rows and columns that fill no window are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Input height.
    pub(crate) height: usize,
    /// Input width.
    pub(crate) width: usize,
    /// Side of the square window.
    pub(crate) window: usize,
    /// Distance between two windows; at most the window's side, so that they leave nothing out between them.
    pub(crate) stride: usize,
}

impl Geometry {
    /// Output rows of a plane.
    pub(crate) fn output_height(&self) -> usize {
        (self.height - self.window) / self.stride + 1
    }

    /// Output columns of a plane.
    pub(crate) fn output_width(&self) -> usize {
        (self.width - self.window) / self.stride + 1
    }

    /// Elements of one plane of outputs.
    pub(crate) fn output_plane(&self) -> usize {
        self.output_height() * self.output_width()
    }
}

/// The largest element of each window of each plane, the first of equals, NaN before all; and, if wanted, where in its window it was.
pub(crate) fn forward<T: Element>(geometry: &Geometry, x: &[T], want_places: bool) -> (Vec<T>, Vec<u8>) {
    let planes = x.len() / (geometry.height * geometry.width).max(1);
    let mut y = vec![T::zero(); planes * geometry.output_plane()];
    let mut places = vec![0; if want_places { y.len() } else { geometry.output_plane() }];
    for (plane, (x, y)) in
        x.chunks_exact(geometry.height * geometry.width).zip(y.chunks_exact_mut(geometry.output_plane())).enumerate()
    {
        let start = if want_places { plane * geometry.output_plane() } else { 0 };
        let places = &mut places[start..start + geometry.output_plane()];
        dispatch(
            #[inline(always)]
            || match (geometry.window, geometry.stride) {
                // A constant window lets the compiler turn the strided loads into shuffles.
                (2, 2) => pool_plane(Geometry { window: 2, stride: 2, ..*geometry }, x, y, places),
                (window, stride) if window == stride => pool_plane(*geometry, x, y, places),
                _ => pool_overlapping(*geometry, x, y, places),
            },
        );
    }
    (y, if want_places { places } else { Vec::new() })
}

#[inline(always)]
fn pool_plane<T: Element>(geometry: Geometry, x: &[T], y: &mut [T], places: &mut [u8]) {
    match geometry.output_width() {
        16.. => pool_lines::<T, 16>(geometry, x, y, places),
        8.. => pool_lines::<T, 8>(geometry, x, y, places),
        4.. => pool_lines::<T, 4>(geometry, x, y, places),
        _ => pool_lines::<T, 1>(geometry, x, y, places),
    }
}

/// Pools windows that share elements, one after the other.
#[inline(always)]
fn pool_overlapping<T: Element>(geometry: Geometry, x: &[T], y: &mut [T], places: &mut [u8]) {
    let Geometry { width, window, stride, .. } = geometry;
    let columns = geometry.output_width();
    for (number, (y, place)) in y.iter_mut().zip(places).enumerate() {
        let corner = number / columns * stride * width + number % columns * stride;
        (*y, *place) = (x[corner], 0);
        for (offset, at) in (0..window * window).map(|offset| (offset, corner + offset / window * width + offset % window)) {
            #[allow(clippy::eq_op, reason = "tells NaN from numbers")]
            let better = x[at] > *y || x[at] != x[at];
            if better {
                (*y, *place) = (x[at], offset as u8);
            }
        }
    }
}

/// Pools `LANES` windows at a time; `LANES` is no more than the columns of a line.
#[inline(always)]
fn pool_lines<T: Element, const LANES: usize>(geometry: Geometry, x: &[T], y: &mut [T], places: &mut [u8]) {
    let Geometry { width, window, .. } = geometry;
    let columns = geometry.output_width();
    let lines = y.chunks_exact_mut(columns).zip(places.chunks_exact_mut(columns));
    for (band, (y, places)) in x.chunks_exact(width * window).zip(lines) {
        for start in (0..columns).step_by(LANES) {
            // The last block begins early enough to be whole; some windows are then done twice.
            let start = start.min(columns - LANES);
            let (best, place) = pool_block::<T, LANES>(geometry, &band[start * window..]);
            y[start..start + LANES].copy_from_slice(&best);
            places[start..start + LANES].copy_from_slice(&place);
        }
    }
}

/// Pools windows that lie side by side from the start of `band` on. Places are worked on in numbers as wide as f32 elements, so
/// that both can be chosen by the same vector mask.
#[inline(always)]
fn pool_block<T: Element, const LANES: usize>(geometry: Geometry, band: &[T]) -> ([T; LANES], [u8; LANES]) {
    let Geometry { width, window, .. } = geometry;
    let (mut best, mut places) = ([T::zero(); LANES], [0u32; LANES]);
    for offset_y in 0..window {
        let line = &band[offset_y * width..][..LANES * window];
        for offset_x in 0..window {
            let number = (offset_y * window + offset_x) as u32;
            for lane in 0..LANES {
                let value = line[lane * window + offset_x];
                // NaN is unequal to itself; once it is the best, nothing is larger.
                #[allow(clippy::eq_op, reason = "tells NaN from numbers without a branch")]
                let better = (number == 0) | (value > best[lane]) | (value != value);
                best[lane] = if better { value } else { best[lane] };
                places[lane] = if better { number } else { places[lane] };
            }
        }
    }
    (best, places.map(|place| place as u8))
}

/// The gradient of [`forward`]: each window's goes to the element that was the largest, and the others get zero.
pub(crate) fn backward<T: Element>(geometry: &Geometry, gradient: &[T], places: &[u8]) -> Vec<T> {
    let planes = gradient.len() / geometry.output_plane().max(1);
    let mut x = vec![T::zero(); planes * geometry.height * geometry.width];
    let outputs = gradient.chunks_exact(geometry.output_plane()).zip(places.chunks_exact(geometry.output_plane()));
    for (x, (gradient, places)) in x.chunks_exact_mut(geometry.height * geometry.width).zip(outputs) {
        dispatch(
            #[inline(always)]
            || match (geometry.window, geometry.stride) {
                (2, 2) => spread_plane(Geometry { window: 2, stride: 2, ..*geometry }, x, gradient, places),
                (window, stride) if window == stride => spread_plane(*geometry, x, gradient, places),
                _ => spread_overlapping(*geometry, x, gradient, places),
            },
        );
    }
    x
}

#[inline(always)]
fn spread_plane<T: Element>(geometry: Geometry, x: &mut [T], gradient: &[T], places: &[u8]) {
    let Geometry { width, window, .. } = geometry;
    let columns = geometry.output_width();
    let lines = gradient.chunks_exact(columns).zip(places.chunks_exact(columns));
    for (band, (gradient, places)) in x.chunks_exact_mut(width * window).zip(lines) {
        for (offset_y, line) in band.chunks_exact_mut(width).enumerate() {
            for (window_x, (&gradient, &place)) in line.chunks_exact_mut(window).zip(gradient.iter().zip(places)) {
                for (offset_x, value) in window_x.iter_mut().enumerate() {
                    *value = if place as usize == offset_y * window + offset_x { gradient } else { T::zero() };
                }
            }
        }
    }
}

/// An element that was the largest of several windows gets the sum of their gradients.
#[inline(always)]
fn spread_overlapping<T: Element>(geometry: Geometry, x: &mut [T], gradient: &[T], places: &[u8]) {
    let Geometry { width, window, stride, .. } = geometry;
    let columns = geometry.output_width();
    for (number, (&gradient, &place)) in gradient.iter().zip(places).enumerate() {
        let (line, column) = (place as usize / window, place as usize % window);
        x[(number / columns * stride + line) * width + number % columns * stride + column] += gradient;
    }
}

/// The mean of each plane.
pub(crate) fn means<T: Element>(x: &[T], plane: usize) -> Vec<T> {
    let share = share::<T>(plane);
    x.chunks_exact(plane.max(1)).map(|plane| elementwise::sum(plane) * share).collect()
}

/// The gradient of [`means`]: each element of a plane gets the same share.
pub(crate) fn means_backward<T: Element>(gradient: &[T], plane: usize) -> Vec<T> {
    let share = share::<T>(plane);
    let mut x = Vec::with_capacity(gradient.len() * plane);
    for &gradient in gradient {
        x.extend(std::iter::repeat_n(gradient * share, plane));
    }
    x
}

/// One over the elements of a plane.
fn share<T: Element>(plane: usize) -> T {
    T::from_f64(1.0 / plane.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_planes_and_their_gradient() {
        assert_eq!(means(&[1f64, 2., 3., 4., 5., 6., 7., 8.], 4), [2.5, 6.5]);
        assert_eq!(means_backward(&[4f32, 8.], 4), [1., 1., 1., 1., 2., 2., 2., 2.]);
    }

    #[test]
    fn the_largest_of_each_window_and_where_it_was() {
        let geometry = Geometry { height: 3, width: 5, window: 2, stride: 2 };
        let x = [1f32, 2., 5., 5., 9., 3., 4., f32::NAN, 7., 9., 9., 9., 9., 9., 9.];
        let (y, places) = forward(&geometry, &x, true);
        assert_eq!(y[0], 4.0);
        assert!(y[1].is_nan());
        assert_eq!(places, [3, 2]);
        let gradient = backward(&geometry, &[1f32, 2.], &places);
        assert_eq!(gradient, [0., 0., 0., 0., 0., 0., 1., 2., 0., 0., 0., 0., 0., 0., 0.]);
        assert_eq!(forward(&geometry, &x, false).0[0], 4.0);
    }

    #[test]
    fn equal_elements_give_the_gradient_to_the_first() {
        let geometry = Geometry { height: 3, width: 3, window: 3, stride: 3 };
        let (y, places) = forward(&geometry, &[7f64; 9], true);
        assert_eq!((y, places), (vec![7.0], vec![0]));
    }
}
