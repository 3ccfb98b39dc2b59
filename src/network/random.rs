//! Randomness that replays: every stream of numbers is keyed by what it is for, never by when it is drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The generator of one purpose at one ordinal: the same three always give the same numbers, and others independent ones.
pub fn stream(seed: u64, ordinal: u64, purpose: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("mustela randomness 1");
    hasher.update(&seed.to_le_bytes()).update(&ordinal.to_le_bytes()).update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// A number in [0, 1), one of 2²⁴ that are equally likely.
pub fn uniform(generator: &mut impl RngCore) -> f32 {
    (generator.next_u32() >> 8) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_keyed() {
        let draw = |seed, ordinal, purpose| stream(seed, ordinal, purpose).next_u64();
        assert_eq!(draw(1, 2, "weights"), draw(1, 2, "weights"));
        for other in [draw(2, 2, "weights"), draw(1, 3, "weights"), draw(1, 2, "buffer")] {
            assert_ne!(draw(1, 2, "weights"), other);
        }
    }

    #[test]
    fn uniform_numbers_fill_the_interval() {
        let mut generator = stream(7, 0, "test");
        let numbers: Vec<f32> = (0..10_000).map(|_| uniform(&mut generator)).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
