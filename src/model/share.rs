//! How models share what they may hold together: by weight, none below what it needs, none beyond what it may have.

/// What one model asks of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// How much it gets beside the others; finite and above 0.
    pub weight: f64,
    /// What it needs.
    pub floor: u64,
    /// What it may have at most; the floor where that is more.
    pub cap: u64,
}

impl Claim {
    /// What it gets where a weight of 1 stands for `level` bytes.
    fn at(&self, level: f64) -> u64 {
        // The conversion ends at the largest number, and the cap is no larger.
        ((level * self.weight) as u64).min(self.cap).max(self.floor)
    }
}

/// The shares of `total_bytes` in the order of their claims; none where not all floors fit.
///
/// All shares are those of one level, the highest that fits. So their sum is never above the total, and falls short of it by less
/// than a byte a claim unless every cap is reached; a higher total lowers no share; and the order of claims does not matter.
pub fn shares(total_bytes: u64, claims: &[Claim]) -> Option<Vec<u64>> {
    let fits = |level: f64| claims.iter().map(|claim| u128::from(claim.at(level))).sum::<u128>() <= u128::from(total_bytes);
    if !fits(0.0) {
        return None;
    }
    // Positive numbers are in the order of their bits, so this comes to the very last level that fits.
    let (mut fitting, mut beyond) = (0.0_f64.to_bits(), f64::INFINITY.to_bits());
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(f64::from_bits(middle)) {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    Some(claims.iter().map(|claim| claim.at(f64::from_bits(fitting))).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(weight: f64, floor: u64, cap: u64) -> Claim {
        Claim { weight, floor, cap }
    }

    #[test]
    fn weights_floors_and_caps_hold() {
        let (none, all) = (0, u64::MAX);
        assert_eq!(shares(100, &[]), Some(vec![]));
        assert_eq!(shares(100, &[claim(1.0, none, all)]), Some(vec![100]));
        assert_eq!(shares(100, &[claim(1.0, none, all), claim(3.0, none, all)]), Some(vec![25, 75]));
        assert_eq!(shares(100, &[claim(1.0, 40, all), claim(3.0, none, all)]), Some(vec![40, 60]));
        assert_eq!(shares(100, &[claim(1.0, none, all), claim(3.0, none, 30)]), Some(vec![70, 30]));
        assert_eq!(shares(100, &[claim(1.0, none, 20), claim(1.0, none, 30)]), Some(vec![20, 30]));
        assert_eq!(shares(100, &[claim(1.0, 60, 10), claim(1.0, 40, all)]), Some(vec![60, 40]));
        assert_eq!(shares(99, &[claim(1.0, 60, 10), claim(1.0, 40, all)]), None);
        assert_eq!(shares(u64::MAX, &[claim(1e-6, none, all)]).map(|shares| shares[0] > u64::MAX - 4096), Some(true));
        assert_eq!(shares(u64::MAX, &[claim(1.0, all, all), claim(1.0, 1, 1)]), None);
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (1e-3..1e3_f64, 0..1_000_000_u64, 0..2_000_000_u64);
        prop::collection::vec(one.prop_map(|(weight, floor, more)| claim(weight, floor, floor + more)), 1..12)
    }

    proptest! {
        #[test]
        fn laws(claims in claims(), spare in 0..20_000_000_u64, more in 0..1_000_000_u64) {
            let floors: u64 = claims.iter().map(|claim| claim.floor).sum();
            let caps: u64 = claims.iter().map(|claim| claim.cap).sum();
            let total = floors + spare;
            let given = shares(total, &claims).unwrap();
            let sum: u64 = given.iter().sum();
            prop_assert!(sum <= total);
            prop_assert!(sum + claims.len() as u64 > total.min(caps), "{} of {}", sum, total.min(caps));
            for (share, claim) in given.iter().zip(&claims) {
                prop_assert!((claim.floor..=claim.cap).contains(share));
            }
            for (less, greater) in given.iter().zip(shares(total + more, &claims).unwrap()) {
                prop_assert!(*less <= greater);
            }
            let mut other = claims.clone();
            other.reverse();
            let mut turned = shares(total, &other).unwrap();
            turned.reverse();
            prop_assert_eq!(given, turned);
            if floors > 0 {
                prop_assert_eq!(shares(floors - 1, &claims), None);
            }
        }
    }
}
