//! Max pooling over windows that do not overlap.

use super::dispatch;
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
    /// Side of the square window, and its stride.
    pub(crate) window: usize,
}

impl Geometry {
    /// Output rows of a plane.
    pub(crate) fn output_height(&self) -> usize {
        self.height / self.window
    }

    /// Output columns of a plane.
    pub(crate) fn output_width(&self) -> usize {
        self.width / self.window
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
            || match geometry.window {
                // A constant window lets the compiler turn the strided loads into shuffles.
                2 => pool_plane(Geometry { window: 2, ..*geometry }, x, y, places),
                _ => pool_plane(*geometry, x, y, places),
            },
        );
    }
    (y, if want_places { places } else { Vec::new() })
}

#[inline(always)]
fn pool_plane<T: Element>(geometry: Geometry, x: &[T], y: &mut [T], places: &mut [u8]) {
    let Geometry { width, window, .. } = geometry;
    let columns = geometry.output_width();
    let lines = y.chunks_exact_mut(columns).zip(places.chunks_exact_mut(columns));
    for (band, (y, places)) in x.chunks_exact(width * window).zip(lines) {
        for (offset_y, line) in band.chunks_exact(width).enumerate() {
            for offset_x in 0..window {
                let place = (offset_y * window + offset_x) as u8;
                let windows = line.chunks_exact(window);
                if place == 0 {
                    for ((best, at), window) in y.iter_mut().zip(places.iter_mut()).zip(windows) {
                        (*best, *at) = (window[0], 0);
                    }
                    continue;
                }
                for ((best, at), window) in y.iter_mut().zip(places.iter_mut()).zip(windows) {
                    let value = window[offset_x];
                    // NaN is unequal to itself; once it is the best, nothing is larger.
                    #[allow(clippy::eq_op, reason = "tells NaN from numbers without a branch")]
                    let better = (value > *best) | (value != value);
                    *best = if better { value } else { *best };
                    *at = if better { place } else { *at };
                }
            }
        }
    }
}

/// The gradient of [`forward`]: each window's goes to the element that was the largest, and the others get zero.
pub(crate) fn backward<T: Element>(geometry: &Geometry, gradient: &[T], places: &[u8]) -> Vec<T> {
    let planes = gradient.len() / geometry.output_plane().max(1);
    let mut x = vec![T::zero(); planes * geometry.height * geometry.width];
    let outputs = gradient.chunks_exact(geometry.output_plane()).zip(places.chunks_exact(geometry.output_plane()));
    for (x, (gradient, places)) in x.chunks_exact_mut(geometry.height * geometry.width).zip(outputs) {
        dispatch(
            #[inline(always)]
            || match geometry.window {
                2 => spread_plane(Geometry { window: 2, ..*geometry }, x, gradient, places),
                _ => spread_plane(*geometry, x, gradient, places),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_each_window_and_where_it_was() {
        let geometry = Geometry { height: 3, width: 5, window: 2 };
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
        let geometry = Geometry { height: 3, width: 3, window: 3 };
        let (y, places) = forward(&geometry, &[7f64; 9], true);
        assert_eq!((y, places), (vec![7.0], vec![0]));
    }
}
