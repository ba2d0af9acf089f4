//! Vectors as signatures: a byte for each number says how similar two are, and random hyperplanes say
//! which ones are worth a look. Pure.

use std::f64::consts::PI;

use super::near::Signature;
use crate::plan::estimate::spread;

/// Hyperplanes. Enough that bands are long, which few vectors have in common that are not similar.
const PLANES: usize = 1_024;
/// Longest band.
const BAND_PLANES_MAX: usize = 32;

/// The most numbers that a vector may have: sums of as many products fit into 32 bits.
pub(super) const NUMBERS_MAX: usize = 65_536;

/// The direction of a vector, of which each number is a byte. A cosine is off by some thousandths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quantised(Vec<i8>);

/// On which sides of hyperplanes vectors lie: the smaller the angle between two, the more have both on one
/// side.
pub(super) struct Planes {
    /// A vector at right angles to each plane, one after the other.
    normals: Vec<i8>,
    numbers: usize,
    planes_per_band: usize,
}

impl Quantised {
    /// `None` for a vector without a direction: all of it zeros, or a number that is none.
    pub(super) fn of(vector: &[f32]) -> Option<Self> {
        let greatest = vector
            .iter()
            .fold(0.0_f32, |most, number| most.max(number.abs()));
        if greatest == 0.0 || !vector.iter().all(|number| number.is_finite()) {
            return None;
        }
        let quantised = vector
            .iter()
            .map(|number| (number / greatest * 127.0).round() as i8);
        Some(Self(quantised.collect()))
    }
}

impl Signature for Quantised {
    type Banding = Planes;

    fn bands(&self, planes: &Planes) -> Vec<u64> {
        let sides = planes.normals.chunks_exact(planes.numbers);
        let sides: Vec<bool> = sides.map(|normal| dot(normal, &self.0) >= 0).collect();
        let bands = sides.chunks_exact(planes.planes_per_band).zip(0_u64..);
        let number = |band: &[bool]| {
            band.iter()
                .fold(0, |bits, side| bits << 1 | u64::from(*side))
        };
        bands
            .map(|(band, index)| spread(spread(index) ^ number(band)))
            .collect()
    }

    /// The cosine of the angle between both.
    fn similarity(&self, other: &Self) -> f64 {
        let squared = |of: &Self| f64::from(dot(&of.0, &of.0));
        let cosine = f64::from(dot(&self.0, &other.0)) / (squared(self) * squared(other)).sqrt();
        cosine.min(1.0)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().map(|number| number.cast_unsigned()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| byte.cast_signed()).collect())
    }
}

impl Planes {
    /// Planes for vectors of so many `numbers`, so that of pairs as similar as `threshold` at least 99 %
    /// have a band in common.
    pub(super) fn new(numbers: usize, threshold: f64) -> Self {
        // Set bits of a number are nearly normally distributed, so that planes lie in all directions alike.
        let normals = (0..(PLANES * numbers) as u64).map(|at| spread(at).count_ones() as i8 - 32);
        Self {
            normals: normals.collect(),
            numbers,
            planes_per_band: planes_per_band(threshold),
        }
    }

    /// How many bands there are.
    pub(super) fn bands(&self) -> usize {
        PLANES / self.planes_per_band
    }
}

/// The longest bands by which enough pairs meet.
fn planes_per_band(threshold: f64) -> usize {
    let same_side = 1.0 - threshold.clamp(-1.0, 1.0).acos() / PI;
    let meet = |planes: usize| {
        let bands = (PLANES / planes) as i32;
        1.0 - (1.0 - same_side.powi(planes as i32)).powi(bands)
    };
    let mut lengths = (1..=BAND_PLANES_MAX).rev();
    lengths.find(|planes| meet(*planes) >= 0.99).unwrap_or(1)
}

fn dot(one: &[i8], other: &[i8]) -> i32 {
    let products = one.iter().zip(other);
    products
        .map(|(one, other)| i32::from(*one) * i32::from(*other))
        .sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The number of a seed, about normally distributed.
    fn normal(seed: u64) -> f32 {
        spread(seed).count_ones() as f32 - 32.0
    }

    /// A vector that no other one of another seed is like.
    pub(in crate::plan::dedup) fn vector(seed: u64, numbers: usize) -> Vec<f32> {
        (0..numbers as u64)
            .map(|at| normal(seed << 32 | at))
            .collect()
    }

    /// A vector whose cosine with that of `seed` is about `cosine`, in a direction of its own.
    pub(in crate::plan::dedup) fn near(
        seed: u64,
        own: u64,
        cosine: f32,
        numbers: usize,
    ) -> Vec<f32> {
        let sine = (1.0 - cosine * cosine).sqrt();
        let both = vector(seed, numbers).into_iter().zip(vector(own, numbers));
        both.map(|(one, other)| cosine * one + sine * other)
            .collect()
    }

    fn cosine(one: &[f32], other: &[f32]) -> f64 {
        let dot = |one: &[f32], other: &[f32]| -> f64 {
            let products = one.iter().zip(other);
            products
                .map(|(one, other)| f64::from(*one) * f64::from(*other))
                .sum()
        };
        dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
    }

    #[test]
    fn the_cosine_of_bytes_is_that_of_the_vectors_within_some_thousandths() {
        for seed in 0..50 {
            let one = vector(seed, 384);
            let other = near(seed, seed + 1_000, 0.02 * seed as f32, 384);
            let quantised = |vector: &[f32]| Quantised::of(vector).unwrap();
            let found = quantised(&one).similarity(&quantised(&other));
            let expected = cosine(&one, &other);
            assert!((found - expected).abs() < 0.005, "{found} {expected}");
            // Length makes no difference.
            let longer: Vec<f32> = one.iter().map(|number| number * 1e6).collect();
            assert_eq!(quantised(&longer), quantised(&one));
            assert_eq!(quantised(&one).similarity(&quantised(&longer)), 1.0);
        }
    }

    #[test]
    fn pairs_above_the_threshold_meet_in_a_band() {
        for threshold in [0.5, 0.8, 0.9, 0.97] {
            let planes = Planes::new(48, threshold);
            let mut met = 0;
            for seed in 0..60 {
                let one = Quantised::of(&vector(seed, 48)).unwrap();
                // Up or down by what chance makes of it, so a little above.
                let other = near(seed, seed + 1_000, (threshold as f32 + 0.02).min(1.0), 48);
                let other = Quantised::of(&other).unwrap();
                let bands = one.bands(&planes).into_iter().zip(other.bands(&planes));
                met += usize::from(bands.into_iter().any(|(one, other)| one == other));
            }
            assert!(met >= 57, "{met} of 60 at {threshold}");
        }
        // Few meet that have little in common.
        let planes = Planes::new(48, 0.9);
        let bands = |seed| Quantised::of(&vector(seed, 48)).unwrap().bands(&planes);
        let all: Vec<_> = (0..60).map(bands).collect();
        let pairs = all
            .iter()
            .flat_map(|one| all.iter().map(move |other| (one, other)));
        let met =
            pairs.filter(|(one, other)| one.iter().zip(*other).any(|(one, other)| one == other));
        let met = met.count() - all.len();
        assert!(met < 60, "{met} of {}", 60 * 59);
    }

    #[test]
    fn a_vector_without_a_direction_has_no_signature() {
        for vector in [
            &[][..],
            &[0.0, 0.0],
            &[1.0, f32::NAN],
            &[f32::INFINITY, 1.0],
        ] {
            assert_eq!(Quantised::of(vector), None, "{vector:?}");
        }
        let signature = Quantised::of(&[-0.5, 0.25, 0.5]).unwrap();
        assert_eq!(signature, Quantised(vec![-127, 64, 127]));
        assert_eq!(Quantised::from_bytes(&signature.to_bytes()), signature);
    }
}
