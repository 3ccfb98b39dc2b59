//! Rows of a model that wait for their labels: which, and what was predicted when they came.
//!
//! A ring of as many places as the stream's window has numbers, so what it takes is fixed. Which rows wait follows from the log
//! alone: the row of number r waits until its label comes at a number before r + window, or expires there. What was predicted does
//! not, because it comes from the snapshot of the moment: it is for the scores, and after a restart those rows are not scored.

use crate::fold::{Label, Predictions, Score, Sequence};

/// Whether a place's row waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Waits,
    /// And its prediction is there.
    Predicted,
}

/// The rows that wait.
#[derive(Debug)]
pub(super) struct Late {
    places: Vec<Place>,
    /// Numbers of one prediction: probabilities of the classes, or a value.
    width: usize,
    predicted: Vec<f32>,
}

/// Bytes of a ring.
pub(super) fn ring_bytes(window: u64, width: u64) -> u64 {
    window * (size_of::<Place>() as u64 + width * size_of::<f32>() as u64)
}

impl Late {
    /// Nothing waits; `window` from 1 on.
    pub(super) fn new(window: u64, width: usize) -> Late {
        let window = window as usize;
        Late { places: vec![Place::Free; window], width, predicted: vec![0.0; window * width] }
    }

    fn window(&self) -> u64 {
        self.places.len() as u64
    }

    fn place(&mut self, row: Sequence) -> &mut Place {
        let window = self.window();
        &mut self.places[(row % window) as usize]
    }

    /// The log comes to `number`; whether a row expires by it, which is the one of a window before.
    pub(super) fn pass(&mut self, number: Sequence) -> bool {
        std::mem::replace(self.place(number), Place::Free) != Place::Free
    }

    /// The row `number`, just passed, has no label yet.
    pub(super) fn arrive(&mut self, number: Sequence) {
        *self.place(number) = Place::Waits;
    }

    /// What was predicted for rows that came before `cursor`, in their order. It comes when it is ready: a row may have its label
    /// by then, or be expired and its place another row's.
    pub(super) fn predict(&mut self, rows: &[Sequence], predictions: &Predictions, cursor: Sequence) {
        let (width, window) = (self.width, self.window());
        let (Predictions::Classes { probabilities: numbers, .. } | Predictions::Values(numbers)) = predictions;
        if numbers.len() != rows.len() * width {
            return;
        }
        for (&row, numbers) in rows.iter().zip(numbers.chunks(width)) {
            if row + window > cursor && *self.place(row) == Place::Waits {
                *self.place(row) = Place::Predicted;
                self.predicted[(row % window) as usize * width..][..width].copy_from_slice(numbers);
            }
        }
    }

    /// The label of the row `row` comes at `number`, just passed. None where the row does not wait for one; else how it was predicted
    /// when it came, empty where that is not known.
    pub(super) fn label(&mut self, row: Sequence, number: Sequence, label: Label) -> Option<Score> {
        if row >= number || row + self.window() <= number {
            return None;
        }
        let before = std::mem::replace(self.place(row), Place::Free);
        let at = (row % self.window()) as usize * self.width;
        let numbers = || self.predicted[at..at + self.width].to_vec();
        match (before, label) {
            (Place::Free, _) => None,
            (Place::Waits, _) => Some(Score::default()),
            (Place::Predicted, Label::Class(_)) => {
                Some(Predictions::Classes { classes: self.width, probabilities: numbers() }.score(0, label))
            }
            (Place::Predicted, Label::Value(_)) => Some(Predictions::Values(numbers()).score(0, label)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_waits_for_its_window_and_for_one_label() {
        let mut late = Late::new(4, 1);
        for number in 1..=3 {
            assert!(!late.pass(number));
            late.arrive(number);
        }
        assert!(!late.pass(4));
        assert_eq!(late.label(2, 4, Label::Value(1.0)), Some(Score::default()), "no prediction");
        assert_eq!(late.label(2, 4, Label::Value(1.0)), None, "it has its label");
        assert!(late.pass(5), "1 expires");
        assert_eq!(late.label(1, 5, Label::Value(1.0)), None);
        assert!(!late.pass(6));
        assert_eq!(late.label(3, 6, Label::Value(1.0)), Some(Score::default()), "the last number at which it may come");
        assert!(!late.pass(7));
        assert_eq!(late.label(9, 7, Label::Value(1.0)), None, "a row that has not come");
    }

    #[test]
    fn a_row_is_scored_by_what_was_predicted_when_it_came() {
        let mut late = Late::new(4, 2);
        let predictions = |a: f32| Predictions::Classes { classes: 2, probabilities: vec![a, 1.0 - a, 0.5, 0.5] };
        for number in 1..=2 {
            late.pass(number);
            late.arrive(number);
        }
        late.predict(&[1, 2], &predictions(0.25), 2);
        late.pass(3);
        let score = late.label(1, 3, Label::Class(1)).unwrap();
        assert_eq!((score.rows, score.correct), (1, 1));
        assert!((score.loss + 0.75f64.ln()).abs() < 1e-6);
        // Place 2 is row 6's when this prediction of row 2 comes.
        for number in 4..=6 {
            late.pass(number);
        }
        late.arrive(6);
        late.predict(&[2, 3], &predictions(0.25), 6);
        late.pass(7);
        assert_eq!(late.label(6, 7, Label::Class(1)), Some(Score::default()));
    }
}
