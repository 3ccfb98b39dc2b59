//! The formulas held to what they claim: an Euler step and the exact solution of dg/dθ = λ·g², and λ of the least squares.

use super::*;
use crate::network::tensor::read;

fn numbers(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

fn carried(gradient: f64, from: f64, to: f64, along: Along) -> f64 {
    let tensor = numbers(&[gradient]);
    carry(&tensor, &numbers(&[from]), &numbers(&[to]), along).unwrap();
    read::<f64>(&tensor).unwrap()[0]
}

/// Of the loss −ln(θ) the gradient is −1/θ and the Hessian 1/θ², the square of the gradient: there λ is 1 and the Fisher step is what
/// finite differences of the gradient say.
#[test]
fn a_step_follows_the_gradient_of_a_log_likelihood() {
    let gradient = |theta: f64| -1.0 / theta;
    for theta in [0.5, 1.0, 3.0] {
        let small = 1e-6;
        let by_differences = (gradient(theta + small) - gradient(theta - small)) / (2.0 * small);
        let by_step = (carried(gradient(theta), theta, theta + small, Along::FirstOrder(1.0)) - gradient(theta)) / small;
        assert!((by_step - by_differences).abs() < 1e-4 * by_differences.abs(), "{by_step} and {by_differences}");
        // Far away the end points alone give it exactly, and many small steps come to the same.
        let there = theta * 1.3;
        let exact = carried(gradient(theta), theta, there, Along::Exact(1.0));
        assert!((exact - gradient(there)).abs() < 1e-12);
        let small_steps = (0..1000).fold(gradient(theta), |g, number| {
            let at = |part: i32| theta + (there - theta) * f64::from(part) / 1000.0;
            carried(g, at(number), at(number + 1), Along::FirstOrder(1.0))
        });
        assert!((small_steps - gradient(there)).abs() < 1e-3, "{small_steps}");
    }
}

#[test]
fn no_gradient_is_changed_beyond_its_clamp() {
    for (gradient, lambda, to) in [(2.0, 1e6, 1.0), (-2.0, 1e6, 1.0), (2.0, 1e6, -1.0), (-2.0, 1e6, -1.0)] {
        let first = carried(gradient, 0.0, to, Along::FirstOrder(lambda)) / gradient;
        assert!(first == 0.5 || first == 1.5, "{first}");
        let exact = carried(gradient, 0.0, to, Along::Exact(lambda)) / gradient;
        assert!(exact == 0.5 || exact == 2.0, "{exact}");
    }
    assert_eq!(carried(3.0, 1.0, 0.5, Along::Gap(0.25)), 1.0);
}

/// λ of the ridge is the one of many that leaves the least of equation 10.
#[test]
fn the_ridge_is_the_best_of_many() {
    let ledger = Ledger::default();
    let means = |values: &[f64]| {
        Tensor::from_slice(&values.iter().map(|&value| value as f32).collect::<Vec<_>>(), values.len(), &Device::Cpu)
    };
    let (mean_gradient, mean_fisher, gradient) = ([0.1, -0.2, 0.3], [0.02, 0.05, -0.01], [0.5, 0.4, 0.1]);
    let (decay, penalty) = (0.8, 0.25);
    let state = vec![vec![means(&mean_gradient).unwrap(), means(&mean_fisher).unwrap()]];
    let mut tuner = Tuner::new(0.0, state, &ledger);
    let layer = |values: &[f64]| Arc::new(LayerWeights::new(vec![means(values).unwrap()], &ledger));
    let trail = [layer(&[1.0, 2.0, 3.0]), layer(&[1.1, 1.9, 3.2])];
    tuner.tune(&[means(&gradient).unwrap()], &trail, (Tuning::Ridge, decay, penalty, 0.0)).unwrap();
    let size: f64 = mean_fisher.iter().map(|fisher| fisher * fisher).sum();
    let left = |lambda: f64| -> f64 {
        let squares = (0..3).map(|index| {
            let change = (1.0 - decay) * (gradient[index] - mean_gradient[index]);
            (change - lambda * mean_fisher[index]).powi(2)
        });
        squares.sum::<f64>() + penalty * size * lambda * lambda
    };
    let best = (0..100_000).map(|number| f64::from(number) * 1e-4).min_by(|a, b| left(*a).total_cmp(&left(*b))).unwrap();
    assert!(best > 0.1 && (tuner.lambda - best).abs() < 1e-4, "{} and {best}", tuner.lambda);
    // The means have taken this gradient in.
    let after = read::<f32>(&tuner.means[0][1]).unwrap()[0];
    assert!((f64::from(after) - (0.8 * 0.02 + 0.2 * 0.25 * 0.1)).abs() < 1e-6, "{after}");
}

#[test]
fn settings_are_checked() {
    for (text, good) in [
        (r#"{"type":"none"}"#, true),
        (r#"{"type":"iter_fisher"}"#, true),
        (r#"{"type":"iter_fisher","decay":1}"#, false),
        (r#"{"type":"iter_fisher","lambda":-1}"#, false),
        (r#"{"type":"iter_fisher","tuning":"fixed","lambda":1,"form":"end_points"}"#, true),
        (r#"{"type":"iter_fisher","tuning":"gradient","lambda":1,"decay":0.5,"penalty":2,"rate":0.1}"#, true),
        (r#"{"type":"iter_fisher","tuning":"gradient","rate":-1}"#, false),
        // Keys of another tuning, which would do nothing.
        (r#"{"type":"iter_fisher","tuning":"fixed","decay":0.9}"#, false),
        (r#"{"type":"iter_fisher","tuning":"fixed","penalty":1}"#, false),
        (r#"{"type":"iter_fisher","tuning":"fixed","rate":0.01}"#, false),
        (r#"{"type":"iter_fisher","rate":0.01}"#, false),
        (r#"{"type":"fisher","lambda":2}"#, true),
        (r#"{"type":"step_aware"}"#, true),
    ] {
        let compensation: Compensation = serde_json::from_str(text).unwrap();
        assert_eq!(compensation.validate().is_ok(), good, "{text}");
    }
    for unknown in
        [r#"{"type":"iter_fisher","tuning":"magic"}"#, r#"{"type":"none","rate":5}"#, r#"{"type":"gap_aware","lamda":5}"#]
    {
        assert!(serde_json::from_str::<Compensation>(unknown).is_err(), "{unknown}");
    }
}
