//! Seeded initialisation: a tensor's first values are a pure function of (seed, tensor name,
//! shape), so they do not depend on rank, construction order or platform.

/// How a tensor starts when no weights are loaded for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Uniform in `(-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
}

impl Init {
    /// torch's default for the weight of a linear layer with `fan_in` inputs: Kaiming-uniform with
    /// a = sqrt(5), which is uniform with bound 1/sqrt(fan_in). The bias has the same bound.
    pub fn linear(fan_in: i64) -> Self {
        Self::Uniform {
            bound: 1.0 / (fan_in as f64).sqrt(),
        }
    }

    /// Xavier-uniform, torch's default for the packed qkv projection (`out` and `fan_in` are the
    /// dimensions of the packed matrix).
    pub fn xavier(out: i64, fan_in: i64) -> Self {
        Self::Uniform {
            bound: (6.0 / (out + fan_in) as f64).sqrt(),
        }
    }

    /// The values of tensor `name` with `numel` elements.
    pub(crate) fn values(self, seed: u64, name: &str, numel: usize) -> Vec<f32> {
        match self {
            Self::Zeros => vec![0.0; numel],
            Self::Ones => vec![1.0; numel],
            Self::Uniform { bound } => {
                let mut state = name
                    .bytes()
                    .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
                        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
                    });
                (0..numel)
                    .map(|_| {
                        // 53 random bits in [0, 1), as in numpy and Java.
                        let unit = (splitmix(&mut state) >> 11) as f64 / (1u64 << 53) as f64;
                        ((2.0 * unit - 1.0) * bound) as f32
                    })
                    .collect()
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only_and_fill_the_interval() {
        let init = Init::linear(16);
        let a = init.values(1, "a", 10_000);
        assert_eq!(a, init.values(1, "a", 10_000));
        assert_ne!(a, init.values(1, "b", 10_000));
        assert_ne!(a, init.values(2, "a", 10_000));
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / 10_000.0;
        let var = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 10_000.0;
        // Uniform on (-b, b): mean 0, variance b^2 / 3, b = 0.25.
        assert!(mean.abs() < 0.006, "{mean}");
        assert!((var - 0.0625 / 3.0).abs() < 0.0007, "{var}");
        assert!(a.iter().all(|x| x.abs() <= 0.25));
    }
}
