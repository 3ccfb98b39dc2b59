//! Which rows an update would harm the most (MIR, section 3.1).

/// The places of the `count` rows whose loss rises the most from `before` to `after`; of equal ones the first. What is not a number
/// rises the least.
pub fn most_interfered(before: &[f32], after: &[f32], count: usize) -> Vec<usize> {
    let rise = |place: usize| {
        let rise = after[place] - before[place];
        if rise.is_nan() { f32::NEG_INFINITY } else { rise }
    };
    let mut places: Vec<usize> = (0..before.len().min(after.len())).collect();
    places.sort_by(|&a, &b| rise(b).total_cmp(&rise(a)).then(a.cmp(&b)));
    places.truncate(count);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_rise_the_most_are_chosen() {
        assert_eq!(most_interfered(&[1.0, 1.0, 1.0, 1.0], &[0.5, 3.0, 2.0, f32::NAN], 2), [1, 2]);
        assert_eq!(most_interfered(&[1.0, 1.0, 1.0], &[2.0, 2.0, 2.0], 2), [0, 1]);
        assert_eq!(most_interfered(&[1.0], &[2.0], 5), [0]);
    }
}
