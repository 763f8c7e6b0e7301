//! Dropout masks on the CPU.
//!
//! libtorch draws its masks one number after the other on one thread, a fifth of a training step.
//! Here every run of [`RUN`] elements has a generator of its own, seeded by its place: threads share
//! the work and a mask depends on its seed alone.

use tch::{Device, Kind, Tensor};

use crate::device::mix;
use crate::{Error, Result};

/// Elements that one generator draws.
const RUN: usize = 4096;
/// Generators that run side by side, one per lane of a vector register.
const LANES: usize = 16;

/// `x` after dropout at `rate`, on a CPU with a mask of `seed`, elsewhere with one of libtorch's
/// generator.
pub(crate) fn apply(x: &Tensor, rate: f64, seed: u64) -> Result<Tensor> {
    if x.device() != Device::Cpu {
        return Ok(x.f_dropout(rate, true)?);
    }
    Ok(x.f_mul(&mask(x, rate, seed)?)?)
}

/// `residual + dropout(x)`; in one pass over memory on a CPU.
pub(crate) fn add(residual: &Tensor, x: &Tensor, rate: f64, seed: u64) -> Result<Tensor> {
    if x.device() != Device::Cpu {
        return Ok(residual.f_add(&x.f_dropout(rate, true)?)?);
    }
    Ok(residual.f_addcmul(x, &mask(x, rate, seed)?)?)
}

/// Zeros with probability `rate`, else `1 / (1 - rate)`, in the shape and format of `x`.
fn mask(x: &Tensor, rate: f64, seed: u64) -> Result<Tensor> {
    let kind = x.f_kind()?;
    let mask = Tensor::f_empty(x.size(), (kind, Device::Cpu))?;
    let draw = Draw::new(rate, seed);
    match kind {
        Kind::Float => fill(&mask, |at, out| draw.run(at, out, draw.scale as f32)),
        Kind::Double => fill(&mask, |at, out| draw.run(at, out, draw.scale)),
        // bf16 is the upper half of f32, rounded to nearest; zero is zero bits.
        Kind::BFloat16 => fill(&mask, |at, out| draw.run(at, out, bf16_bits(draw.scale))),
        other => {
            return Err(Error::Internal(format!("dropout of {other:?} tensors")));
        }
    }
    Ok(mask)
}

fn bf16_bits(x: f64) -> u16 {
    let bits = (x as f32).to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Fills a fresh contiguous CPU tensor of elements `T`, run by run, on libtorch's number of
/// threads.
fn fill<T: Send>(tensor: &Tensor, run: impl Fn(usize, &mut [T]) + Sync) {
    // SAFETY: a contiguous CPU tensor that was just allocated and that nothing else refers to, of
    // elements as wide as `T`, any bit pattern of which is valid.
    let out =
        unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) };
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    let runs = out.len().div_ceil(RUN);
    let share = runs.div_ceil(threads).max(1);
    let work = |first: usize, part: &mut [T]| {
        for (i, elements) in part.chunks_mut(RUN).enumerate() {
            run(first + i, elements);
        }
    };
    if runs <= 16 || threads == 1 {
        work(0, out);
        return;
    }
    std::thread::scope(|scope| {
        let mut parts = out.chunks_mut(share * RUN).enumerate();
        let own = parts.next();
        for (i, part) in parts {
            scope.spawn(move || work(i * share, part));
        }
        if let Some((_, part)) = own {
            work(0, part);
        }
    });
}

/// A mask's rate as a threshold on 16 random bits, with the factor that keeps the mean exact.
#[derive(Debug, Clone, Copy)]
struct Draw {
    threshold: u16,
    scale: f64,
    seed: u64,
}

impl Draw {
    fn new(rate: f64, seed: u64) -> Self {
        let values = f64::from(1u32 << 16);
        let threshold = (rate * values).round().min(values - 1.0);
        Self {
            threshold: threshold as u16,
            scale: values / (values - threshold),
            seed,
        }
    }

    /// Draws run number `at`.
    fn run<T: Copy + Default>(self, at: usize, out: &mut [T], kept: T) {
        let mut lanes = Lanes::new(mix(self.seed, at as u64));
        let dropped = T::default();
        for block in out.chunks_mut(2 * LANES) {
            let bits = lanes.next();
            for (i, element) in block.iter_mut().enumerate() {
                let word = bits[i % LANES];
                let half = if i < LANES { word >> 16 } else { word & 0xffff };
                *element = if (half as u16) < self.threshold {
                    dropped
                } else {
                    kept
                };
            }
        }
    }
}

/// xoshiro128++ (Blackman and Vigna 2021), one generator per lane.
struct Lanes([[u32; LANES]; 4]);

impl Lanes {
    fn new(seed: u64) -> Self {
        let mut state = [[0u32; LANES]; 4];
        for (i, words) in state.as_flattened_mut().chunks_mut(2).enumerate() {
            let word = mix(seed, i as u64);
            words[0] = word as u32;
            // No lane's state is all zeros.
            words[1] = (word >> 32) as u32 | 1;
        }
        Self(state)
    }

    fn next(&mut self) -> [u32; LANES] {
        let [s0, s1, s2, s3] = &mut self.0;
        let mut out = [0u32; LANES];
        for i in 0..LANES {
            out[i] = s0[i].wrapping_add(s3[i]).rotate_left(7).wrapping_add(s0[i]);
            let t = s1[i] << 9;
            s2[i] ^= s0[i];
            s3[i] ^= s1[i];
            s1[i] ^= s2[i];
            s0[i] ^= s3[i];
            s2[i] ^= t;
            s3[i] = s3[i].rotate_left(11);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ones(kind: Kind) -> Tensor {
        Tensor::ones([70_000, 3], (kind, Device::Cpu))
    }

    #[test]
    fn the_share_and_the_mean_are_those_of_the_rate() {
        for rate in [0.1, 0.2, 0.5] {
            let draws = 20.0 * 210_000.0;
            let dropped: f64 = (0..20)
                .map(|seed| {
                    let y = apply(&ones(Kind::Float), rate, seed).unwrap();
                    y.eq(0.0).sum(Kind::Double).double_value(&[])
                })
                .sum();
            let tolerance = 4.0 * (rate * (1.0 - rate) / draws).sqrt();
            let off = (dropped / draws - rate).abs();
            assert!(
                off < tolerance,
                "rate {rate}: off by {off:e} of {tolerance:e}"
            );
            let y = apply(&ones(Kind::Float), rate, 1).unwrap();
            let kept = y.max().double_value(&[]);
            assert!((kept - 1.0 / (1.0 - rate)).abs() < 1e-4, "{kept}");
        }
    }

    #[test]
    fn neighbours_and_runs_are_independent() {
        let y = apply(&ones(Kind::Float), 0.5, 3)
            .unwrap()
            .view([-1])
            .ne(0.0);
        let bits = Vec::<bool>::try_from(&y).unwrap();
        for lag in [1, LANES, 2 * LANES, RUN] {
            let pairs = bits.len() - lag;
            let equal = (0..pairs).filter(|&i| bits[i] == bits[i + lag]).count();
            let excess = (equal as f64 - pairs as f64 / 2.0).abs();
            assert!(
                excess < 4.0 * (pairs as f64).sqrt() / 2.0,
                "lag {lag}: {excess}"
            );
        }
    }

    #[test]
    fn a_mask_depends_on_the_seed_and_not_on_threads_or_format() {
        let draw = |seed, kind| {
            let y = apply(&ones(kind), 0.2, seed).unwrap();
            Vec::<bool>::try_from(&y.ne(0.0).view([-1])).unwrap()
        };
        let first = draw(5, Kind::Float);
        assert_eq!(first, draw(5, Kind::BFloat16));
        assert_eq!(first, draw(5, Kind::Double));
        assert_ne!(first, draw(6, Kind::Float));
        let before = tch::get_num_threads();
        tch::set_num_threads(if before == 1 { 3 } else { 1 });
        assert_eq!(first, draw(5, Kind::Float));
        tch::set_num_threads(before);
    }

    #[test]
    fn the_residual_is_added_to_what_is_kept() {
        let (x, residual) = (ones(Kind::Float) * 2.0, ones(Kind::Float) * 10.0);
        let y = add(&residual, &x, 0.25, 9).unwrap();
        assert!(y.equal(&(residual + apply(&x, 0.25, 9).unwrap())));
    }
}
