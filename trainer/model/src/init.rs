//! Seeded initialisation: a tensor's first values are a pure function of (seed, tensor name,
//! shape), so they do not depend on rank, construction order or platform.

/// How a tensor starts when no weights are loaded for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// One value everywhere.
    Constant {
        /// The value.
        value: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `(-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// Standard normal, but one row of a matrix all zeros: a table with a padding row.
    NormalButRow {
        /// The row of zeros.
        row: usize,
        /// Columns of the matrix.
        width: usize,
    },
    /// Uniform in `(-bound, bound)`, elements 2i and 2i + 1 equal: in a matrix of an even number
    /// of columns, columns in equal pairs.
    Pairs {
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

    /// Normal with mean 0 and standard deviation 1, torch's default for embeddings.
    pub fn standard_normal() -> Self {
        Self::Normal { std: 1.0 }
    }

    /// The values of tensor `name` with `numel` elements.
    pub(crate) fn values(self, seed: u64, name: &str, numel: usize) -> Vec<f32> {
        match self {
            Self::Zeros => vec![0.0; numel],
            Self::Ones => vec![1.0; numel],
            Self::NormalButRow { row, width } => {
                let mut values = Self::standard_normal().values(seed, name, numel);
                values[row * width..(row + 1) * width].fill(0.0);
                values
            }
            Self::Pairs { bound } => {
                let half = Self::Uniform { bound }.values(seed, name, numel / 2);
                half.iter().flat_map(|&x| [x, x]).collect()
            }
            Self::Constant { value } => vec![value; numel],
            Self::Uniform { bound } => {
                let mut draws = Draws::of(seed, name);
                (0..numel)
                    .map(|_| ((2.0 * draws.unit() - 1.0) * bound) as f32)
                    .collect()
            }
            Self::Normal { std } => {
                let mut draws = Draws::of(seed, name);
                // Box and Muller 1958; 1 - u is never zero.
                (0..numel)
                    .map(|_| {
                        let radius = (-2.0 * (1.0 - draws.unit()).ln()).sqrt();
                        let angle = 2.0 * std::f64::consts::PI * draws.unit();
                        (radius * angle.cos() * std) as f32
                    })
                    .collect()
            }
        }
    }
}

/// Numbers that depend on the seed and a name alone.
struct Draws(u64);

impl Draws {
    fn of(seed: u64, name: &str) -> Self {
        let hash =
            |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, hash))
    }

    /// Uniform in [0, 1), of 53 random bits, as in numpy and Java.
    fn unit(&mut self) -> f64 {
        (splitmix(&mut self.0) >> 11) as f64 / (1u64 << 53) as f64
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

    #[test]
    fn normal_values_have_the_moments_and_pairs_are_equal() {
        let a = Init::standard_normal().values(3, "a", 20_000);
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / 20_000.0;
        let var = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 20_000.0;
        let beyond = a.iter().filter(|x| x.abs() > 1.96).count();
        assert!(
            mean.abs() < 0.03 && (var - 1.0).abs() < 0.05,
            "{mean} {var}"
        );
        assert!((900..1100).contains(&beyond), "{beyond}");
        let pairs = Init::Pairs { bound: 1.0 }.values(3, "a", 6);
        assert!(pairs.chunks(2).all(|p| p[0].to_bits() == p[1].to_bits()));
        assert_ne!(pairs[0], pairs[2]);
    }
}
