//! Attacks on a small network with drawn weights, and what pixels tell: nothing is downloaded.

use std::sync::Arc;

use image::RgbImage;

use super::attack::{Evasion, Goal, Method, craft, stored};
use super::baselines::{Mahalanobis, disagreement, roughness};
use super::pictures::{ALIKE_BITS, Change, Split, fingerprint, sources};
use super::victim::{Live, Seen, Victim};
use crate::network::{Architecture, Loss, Network, random};

fn victim() -> Live {
    let architecture = Architecture::ConvNet { standardise: Some(false) };
    let network = Network::build(&architecture, &[3, 8, 8], 4, Loss::SoftmaxCrossEntropy, false).unwrap();
    let weights = network.initial_weights(3).unwrap();
    Live::new("small", Arc::new(network), weights)
}

/// Smooth, with black and white corners: there the range ends.
fn picture(seed: u64) -> RgbImage {
    let mut generator = random::stream(seed, 0, "picture");
    let slopes = [(); 6].map(|()| random::uniform(&mut generator));
    RgbImage::from_fn(8, 8, |x, y| {
        image::Rgb([0, 1, 2].map(|of| (255.0 * (slopes[of] * x as f32 + slopes[of + 3] * y as f32) / 8.0).min(255.0) as u8))
    })
}

fn loss(seen: &Seen, class: usize) -> f32 {
    -seen.probabilities()[class].ln()
}

#[test]
fn attacks_raise_the_loss_and_stay_in_their_box() {
    let victim = victim();
    for (seed, steps) in [(1, 1), (2, 10), (3, 1), (4, 10)] {
        let (clean, epsilon) = (picture(seed), 8);
        let seen = victim.look(&clean).unwrap();
        let own = seen.class();
        let crafted = |goal| {
            let mut generator = random::stream(seed, 1, "start");
            craft(&victim, &clean, goal, Method { epsilon, steps }, None, &mut generator).unwrap()
        };
        let (away, other) = (crafted(Goal::Away(own)), (own + 1) % 4);
        let toward = crafted(Goal::Toward(other));
        for picture in [&away, &toward] {
            let most = picture.iter().zip(clean.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(most > 0 && most <= epsilon, "{most}");
        }
        let [of_away, of_toward] = [&away, &toward].map(|picture| victim.look(picture).unwrap());
        assert!(loss(&of_away, own) > loss(&seen, own));
        assert!(loss(&of_toward, other) < loss(&seen, other));
        assert_eq!(crafted(Goal::Away(own)), away, "the same generator gives the same picture");
    }
}

/// The gradient by pixels of logits and of states, beside finite differences.
#[test]
fn slopes_are_those_of_differences() {
    let (victim, clean) = (victim(), picture(5));
    let blocks = victim.blocks();
    let read: Vec<Option<Vec<f32>>> =
        blocks.iter().enumerate().map(|(at, (_, width))| (at % 2 == 0).then(|| vec![0.5 + at as f32; *width])).collect();
    let pull = |seen: &Seen| (vec![1.0; seen.logits.len()], read.clone());
    let value = |picture: &[f32]| -> f64 {
        let pixels = candle_core::Tensor::from_slice(picture, (1, 3, 8, 8), &candle_core::Device::Cpu).unwrap();
        let all: Vec<usize> = (0..blocks.len()).collect();
        let encoded = victim.encode(&pixels, &all).unwrap();
        let sum = |tensor: &candle_core::Tensor| f64::from(tensor.sum_all().unwrap().to_scalar::<f32>().unwrap());
        let of_states = encoded.states.iter().enumerate().filter(|(at, _)| at % 2 == 0);
        sum(&encoded.logits) + of_states.map(|(at, state)| (0.5 + at as f64) * sum(state)).sum::<f64>()
    };
    let pixels = crate::encoder::picture::tensor(&[clean]).unwrap();
    let slope = victim.slope(&pixels, &pull).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let at = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for number in [0, 17, 50, 99, 140, 191] {
        let moved = |by: f32| {
            let mut moved = at.clone();
            moved[number] += by;
            value(&moved)
        };
        let difference = (moved(0.5) - moved(-0.5)) / 1.0;
        assert!((difference - f64::from(slope[number])).abs() < 2e-3 + 0.05 * difference.abs(), "{difference} {}", slope[number]);
    }
}

#[test]
fn who_knows_the_detector_lowers_its_score() {
    let (victim, clean) = (victim(), picture(6));
    let weights: Vec<Option<Vec<f32>>> = victim.blocks().iter().map(|(_, width)| Some(vec![1.0; *width])).collect();
    let score = |picture: &RgbImage| victim.look(picture).unwrap().states.iter().flatten().sum::<f32>();
    let crafted = |lambda: f32| {
        let evasion = Evasion { weights: weights.clone(), bias: 0.0, threshold: -1e9, lambda };
        let method = Method { epsilon: 8, steps: 10 };
        craft(&victim, &clean, Goal::Away(0), method, Some(&evasion), &mut random::stream(1, 1, "start")).unwrap()
    };
    assert!(score(&crafted(100.0)) < score(&clean));
    assert!(score(&crafted(100.0)) < score(&crafted(0.0)));
}

#[test]
fn roughness_rises_with_noise_and_falls_with_blur() {
    let clean = stored(&picture(7)).unwrap();
    let changed = |change: Change| roughness(&change.apply(&clean, &mut random::stream(1, 0, "noise")).unwrap());
    let (before, faint, strong) = (roughness(&clean), changed(Change::SignNoise(4)), changed(Change::SignNoise(16)));
    for of in 0..2 {
        assert!(before[of] < faint[of] && faint[of] < strong[of], "{before:?} {faint:?} {strong:?}");
        assert!(changed(Change::Blur)[of] < strong[of]);
    }
}

#[test]
fn mutants_disagree_where_the_answer_is_unsure() {
    let victim = victim();
    let told = |picture: &RgbImage| disagreement(&victim, picture, &mut random::stream(1, 0, "mutants")).unwrap();
    let even = RgbImage::from_pixel(8, 8, image::Rgb([128; 3]));
    // Of an even picture all but the noisy mutants are the same.
    assert!(told(&even) < told(&picture(8)));
    assert!(told(&picture(8)) <= std::f64::consts::LN_2);
}

#[test]
fn distance_is_by_the_spread_of_benign_states() {
    let mut generator = random::stream(1, 0, "states");
    let mut draw = |width: f32| width * (random::uniform(&mut generator) - 0.5);
    let benign: Vec<Vec<f32>> = (0..500).map(|_| vec![draw(10.0), draw(0.1)]).collect();
    let distance = Mahalanobis::fit(&benign).unwrap();
    assert!(distance.score(&[3.0, 0.0]) < distance.score(&[0.0, 3.0]));
    assert!(Mahalanobis::fit(&[]).is_none());
}

#[test]
fn a_picture_that_is_scaled_looks_alike_and_another_one_does_not() {
    let large = image::imageops::resize(&picture(1), 80, 80, image::imageops::FilterType::Triangle);
    let differ = |a: &RgbImage, b: &RgbImage| (fingerprint(a) ^ fingerprint(b)).count_ones();
    assert!(differ(&picture(1), &large) <= ALIKE_BITS);
    let upside_down = image::imageops::rotate180(&large);
    assert!(differ(&large, &upside_down) > ALIKE_BITS);
}

#[test]
fn pictures_are_divided_by_source() {
    let all = sources(&vec![picture(1); 10], 10, 100).unwrap();
    assert!(all.iter().zip(100..).all(|(source, number)| source.number == number && source.picture.width() == 10));
    let Split { fit, calibration, test } = Split::of(&all);
    assert_eq!([fit.len(), calibration.len(), test.len()], [4, 2, 4]);
    assert_eq!([fit[3].number, calibration[0].number, test[0].number], [103, 104, 106]);
}
