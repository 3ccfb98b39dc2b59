//! What a step minimises, row by row, and the gradient of the network's outputs.

use candle_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::element::Element;
use super::kernel::{elementwise, softmax};
use super::tensor::{by_type, read, tensor};

/// The loss of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// `−Σ target · ln softmax(outputs)`, of classes or of probabilities.
    SoftmaxCrossEntropy,
    /// `(output − target)²`, of values.
    MeanSquaredError,
}

/// What the rows should have come to.
#[derive(Clone, Debug)]
pub enum Targets {
    /// The number of each row's class.
    Classes(Vec<u32>),
    /// Probabilities `[rows, classes]`, as a teacher gives them.
    Soft(Tensor),
    /// Each row's value.
    Values(Vec<f32>),
}

impl Targets {
    /// These, and behind them those of some rows of others.
    ///
    /// # Errors
    /// They are of another kind, or soft.
    pub fn with(self, others: &Targets, rows: &[usize]) -> Result<Targets> {
        match (self, others) {
            (Targets::Classes(mut classes), Targets::Classes(others)) => {
                classes.extend(rows.iter().map(|&row| others[row]));
                Ok(Targets::Classes(classes))
            }
            (Targets::Values(mut values), Targets::Values(others)) => {
                values.extend(rows.iter().map(|&row| others[row]));
                Ok(Targets::Values(values))
            }
            _ => Err(Error::Msg("targets of different kinds cannot be put together".into())),
        }
    }
}

/// How outputs compare with targets.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Each row's loss, without its weight.
    pub losses: Vec<f32>,
    /// Of each row, whether its largest output is that of its class (of soft targets: of the likeliest); never for values.
    pub correct: Vec<bool>,
    /// The gradient of `Σ weight · loss / rows` by the outputs, in their shape.
    pub gradient: Tensor,
    /// Whether all outputs, losses and output gradients are finite. If not, the step must not update anything.
    pub finite: bool,
}

/// Losses of `outputs: [rows, outputs]`, and their gradient. Rows weigh 1 unless `row_weights` says otherwise.
///
/// Targets that do not fit (other numbers of rows, classes past the last, values for a classifier) are an error; outputs that are
/// not finite are not: see [`Evaluated::finite`].
pub fn loss(kind: Loss, outputs: &Tensor, targets: &Targets, row_weights: Option<&[f32]>) -> Result<Evaluated> {
    let (rows, _) = outputs.dims2()?;
    let given = match targets {
        Targets::Classes(classes) => classes.len(),
        Targets::Soft(probabilities) => probabilities.dims2()?.0,
        Targets::Values(values) => values.len(),
    };
    if given != rows || row_weights.is_some_and(|weights| weights.len() != rows) {
        return Err(Error::Msg(format!(
            "{rows} rows of outputs, {given} of targets, {:?} weights",
            row_weights.map(<[f32]>::len)
        )));
    }
    by_type!(outputs, T => evaluate::<T>(kind, outputs, targets, row_weights))
}

/// Probabilities of outputs of a classifier, `[rows, classes]`, row by row.
pub fn probabilities(outputs: &Tensor) -> Result<Vec<f32>> {
    let (_, classes) = outputs.dims2()?;
    let mut values = read::<f32>(outputs)?.to_vec();
    softmax::softmax(&mut values, classes);
    Ok(values)
}

fn evaluate<T: Element>(kind: Loss, outputs: &Tensor, targets: &Targets, row_weights: Option<&[f32]>) -> Result<Evaluated> {
    let (rows, width) = outputs.dims2()?;
    let values = read::<T>(outputs)?;
    let mut gradient = vec![T::zero(); rows * width];
    let weight = |row: usize| T::from_f64(row_weights.map_or(1.0, |weights| f64::from(weights[row])) / rows as f64);
    let (losses, correct) = match (kind, targets) {
        (Loss::SoftmaxCrossEntropy, Targets::Classes(classes)) => {
            if let Some(class) = classes.iter().find(|&&class| class as usize >= width) {
                return Err(Error::Msg(format!("class {class} of a network with {width} outputs")));
            }
            by_row(&values, &mut gradient, width, |row, outputs, gradient| {
                let class = classes[row] as usize;
                let target = |index| if index == class { T::one() } else { T::zero() };
                (softmax::cross_entropy(outputs, gradient, weight(row), target), softmax::arg_max(outputs) == class)
            })
        }
        (Loss::SoftmaxCrossEntropy, Targets::Soft(targets)) => {
            if targets.dims() != outputs.dims() {
                return Err(Error::Msg(format!("targets of shape {:?} for outputs of {:?}", targets.dims(), outputs.dims())));
            }
            let targets = read::<T>(targets)?;
            by_row(&values, &mut gradient, width, |row, outputs, gradient| {
                let targets = &targets[row * width..][..width];
                let loss = softmax::cross_entropy(outputs, gradient, weight(row), |class| targets[class]);
                (loss, softmax::arg_max(outputs) == softmax::arg_max(targets))
            })
        }
        (Loss::MeanSquaredError, Targets::Values(targets)) if width == 1 => {
            by_row(&values, &mut gradient, width, |row, outputs, gradient| {
                let error = outputs[0] - T::from_f64(f64::from(targets[row]));
                gradient[0] = (error + error) * weight(row);
                (error * error, false)
            })
        }
        _ => return Err(Error::Msg(format!("{kind:?} of {width} outputs has no meaning for these targets"))),
    };
    let finite = elementwise::all_finite(&values) && elementwise::all_finite(&gradient) && elementwise::all_finite(&losses);
    Ok(Evaluated { losses, correct, gradient: tensor(gradient, outputs.dims())?, finite })
}

/// Goes through the rows; `row` fills the row's gradient and returns its loss and whether it was correct.
fn by_row<T: Element>(
    outputs: &[T],
    gradient: &mut [T],
    width: usize,
    row: impl Fn(usize, &[T], &mut [T]) -> (T, bool),
) -> (Vec<f32>, Vec<bool>) {
    let mut losses = Vec::with_capacity(outputs.len() / width.max(1));
    let mut correct = Vec::with_capacity(losses.capacity());
    for (index, (outputs, gradient)) in
        outputs.chunks_exact(width.max(1)).zip(gradient.chunks_exact_mut(width.max(1))).enumerate()
    {
        let (loss, is_correct) = row(index, outputs, gradient);
        losses.push(loss.to_f64() as f32);
        correct.push(is_correct);
    }
    (losses, correct)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(values: &[f32], width: usize) -> Tensor {
        tensor(values.to_vec(), &[values.len() / width, width]).unwrap()
    }

    #[test]
    fn what_is_not_finite_is_told() {
        let classes = Targets::Classes(vec![0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..3 {
                let mut values = [0.5f32; 3];
                values[place] = bad;
                let evaluated = loss(Loss::SoftmaxCrossEntropy, &outputs(&values, 3), &classes, None).unwrap();
                assert!(!evaluated.finite, "{values:?}");
            }
            let evaluated = loss(Loss::MeanSquaredError, &outputs(&[bad], 1), &Targets::Values(vec![1.0]), None).unwrap();
            assert!(!evaluated.finite, "{bad}");
        }
        let large = loss(Loss::MeanSquaredError, &outputs(&[1e30], 1), &Targets::Values(vec![-1e30]), None).unwrap();
        assert!(!large.finite, "the square of the error is infinite");
        let sure = loss(Loss::SoftmaxCrossEntropy, &outputs(&[1e30, -1e30], 2), &classes, None).unwrap();
        assert!(sure.finite);
    }

    #[test]
    fn losses_are_the_rows_own_and_gradients_weighted() {
        let outputs = outputs(&[0.0, 0.0, 1.0, 3.0], 2);
        let targets = Targets::Classes(vec![0, 1]);
        let plain = loss(Loss::SoftmaxCrossEntropy, &outputs, &targets, None).unwrap();
        let weighted = loss(Loss::SoftmaxCrossEntropy, &outputs, &targets, Some(&[2.0, 0.0])).unwrap();
        assert_eq!(plain.losses, weighted.losses);
        assert_eq!((&plain.correct, &weighted.correct), (&vec![true; 2], &vec![true; 2]));
        assert!((plain.losses[0] - 2f32.ln()).abs() < 1e-6);
        assert_eq!(*read::<f32>(&weighted.gradient).unwrap(), [-0.5, 0.5, 0.0, 0.0]);
        let soft = Targets::Soft(tensor(vec![1f32, 0., 0., 1.], &[2, 2]).unwrap());
        let same = loss(Loss::SoftmaxCrossEntropy, &outputs, &soft, None).unwrap();
        assert_eq!((same.losses, same.correct), (plain.losses, vec![true; 2]));
    }

    #[test]
    fn targets_must_fit() {
        let outputs = outputs(&[0.0; 6], 3);
        for (kind, targets) in [
            (Loss::SoftmaxCrossEntropy, Targets::Classes(vec![0])),
            (Loss::SoftmaxCrossEntropy, Targets::Classes(vec![0, 3])),
            (Loss::SoftmaxCrossEntropy, Targets::Values(vec![0.0, 1.0])),
            (Loss::SoftmaxCrossEntropy, Targets::Soft(tensor(vec![0f32; 4], &[2, 2]).unwrap())),
            (Loss::MeanSquaredError, Targets::Classes(vec![0, 1])),
            (Loss::MeanSquaredError, Targets::Values(vec![0.0, 1.0])),
        ] {
            assert!(loss(kind, &outputs, &targets, None).is_err(), "{kind:?} {targets:?}");
        }
        assert!(loss(Loss::SoftmaxCrossEntropy, &outputs, &Targets::Classes(vec![0, 1]), Some(&[1.0])).is_err());
        let sums = probabilities(&outputs).unwrap();
        assert!(sums.chunks(3).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
    }
}
