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
    /// Rows in random directions, orthogonal to each other in groups of `width`, each as long as a
    /// standard normal vector (Choromanski et al. 2021): the random features of a Performer.
    OrthogonalRows {
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
            Self::OrthogonalRows { width } => {
                let directions = Self::standard_normal().values(seed, name, numel);
                let lengths = format!("{name}.lengths");
                let lengths = Self::standard_normal().values(seed, &lengths, numel);
                orthogonal_rows(&directions, &lengths, width)
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

/// Rows of `width` numbers: those of `directions`, orthogonalised one after the other in groups of
/// `width`, each as long as the same row of `lengths`. In double precision and in one order, so that
/// the result depends on no library.
pub fn orthogonal_rows(directions: &[f32], lengths: &[f32], width: usize) -> Vec<f32> {
    let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let doubles = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let mut out = Vec::with_capacity(directions.len());
    for group in directions.chunks(width * width) {
        let mut unit: Vec<Vec<f64>> = Vec::with_capacity(width);
        for row in group.chunks(width) {
            let mut row = doubles(row);
            // Twice is enough (Kahan; Parlett 1980).
            for _ in 0..2 {
                for other in &unit {
                    let along: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                    for (x, y) in row.iter_mut().zip(other) {
                        *x -= along * y;
                    }
                }
            }
            let norm = length(&row);
            unit.push(row.into_iter().map(|x| x / norm).collect());
        }
        out.extend(unit.into_iter().flatten());
    }
    let scaled = out.chunks(width).zip(lengths.chunks(width));
    scaled
        .flat_map(|(row, lengths)| {
            let length = length(&doubles(lengths));
            row.iter().map(move |x| (x * length) as f32)
        })
        .collect()
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

    #[test]
    fn random_features_are_orthogonal_in_groups_and_as_long_as_normal_vectors() {
        let (width, rows) = (16, 42);
        let init = Init::OrthogonalRows { width };
        let a = init.values(5, "p", rows * width);
        assert_eq!(a, init.values(5, "p", rows * width));
        assert_ne!(a, init.values(6, "p", rows * width));
        let row = |i: usize| &a[i * width..(i + 1) * width];
        let dot = |i, j| -> f32 { row(i).iter().zip(row(j)).map(|(x, y)| x * y).sum() };
        for i in 0..rows {
            for j in 0..i {
                let same_group = i / width == j / width;
                assert!(
                    !same_group || dot(i, j).abs() < 1e-4,
                    "{i} {j} {}",
                    dot(i, j)
                );
            }
        }
        // The squared length of a standard normal vector of 16 numbers: mean 16, variance 32.
        let mean = (0..rows).map(|i| dot(i, i)).sum::<f32>() / rows as f32;
        assert!((mean - 16.0).abs() < 3.0, "{mean}");
        assert!((dot(0, 0) - dot(1, 1)).abs() > 1e-3);
    }
}
