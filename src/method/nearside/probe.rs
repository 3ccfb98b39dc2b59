//! A linear score of hidden states: all that is left of a direction once it is found.

use crate::fold::Predictions;

/// `score = weights · state + bias`: above 0, a state is more like adversarial ones than like benign ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// One for each number of a state.
    pub weights: Vec<f32>,
    /// What is added.
    pub bias: f64,
}

impl Probe {
    /// A probe that knows nothing: every score is 0.
    pub fn new(width: usize) -> Probe {
        Probe { weights: vec![0.0; width], bias: 0.0 }
    }

    /// Whether it tells anything apart.
    pub fn is_directed(&self) -> bool {
        self.weights.iter().any(|&weight| weight != 0.0)
    }

    /// The score of one state, summed in f64 and in order, so that it does not depend on the other states of a batch.
    pub fn score(&self, state: &[f32]) -> f64 {
        let products = self.weights.iter().zip(state).map(|(&weight, &value)| f64::from(weight) * f64::from(value));
        products.sum::<f64>() + self.bias
    }

    /// The scores of states, one after the other.
    pub fn scores(&self, states: &[f32]) -> Vec<f64> {
        states.chunks_exact(self.weights.len().max(1)).map(|state| self.score(state)).collect()
    }
}

/// Scores as probabilities of the two classes.
pub fn predictions(scores: &[f64]) -> Predictions {
    // Each by itself: 1 − p would have lost the smaller one.
    let probability = |score: f64| (1.0 / (1.0 + (-score).exp())) as f32;
    let probabilities = scores.iter().flat_map(|&score| [probability(-score), probability(score)]).collect();
    Predictions::Classes { classes: 2, probabilities }
}

/// The score that [`predictions`] made these probabilities of a row from; within ±87, which 32 bits can tell.
pub fn score_of([benign, adversarial]: [f32; 2]) -> f64 {
    let log = |probability: f32| f64::from(probability.max(f32::MIN_POSITIVE)).ln();
    log(adversarial) - log(benign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_comes_back_from_its_probabilities() {
        for score in [-80.0, -12.5, -0.25, 0.0, 3.0, 40.0, 86.0] {
            let Predictions::Classes { probabilities, .. } = predictions(&[score]) else { panic!("classes") };
            let back = score_of([probabilities[0], probabilities[1]]);
            assert!((back - score).abs() < 1e-5 * score.abs().max(1.0), "{score}: {back}");
            assert!(predictions(&[score]).is_finite());
        }
        assert!(predictions(&[1e9, -1e9]).is_finite());
    }

    #[test]
    fn a_state_is_scored_by_itself() {
        let probe = Probe { weights: vec![2.0, -1.0], bias: 0.5 };
        assert_eq!(probe.scores(&[1.0, 1.0, 0.0, 3.0]), [1.5, -2.5]);
        assert_eq!(Probe::new(2).scores(&[1.0, 1.0]), [0.0]);
    }
}
