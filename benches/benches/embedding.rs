//! All scores of an embedding of 100,000 cells in 512 dimensions, then the parts that a report needs
//! beside them: seconds, seconds of cores and peak memory, printed. Not by criterion: one run says enough and takes its
//! time. An argument gives another number of cells.

use std::time::Instant;

use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::embedding::Labelled;
use scpeft_evaluation::embedding::integration::{Settings, integration};
use scpeft_evaluation::embedding::neighbors::{Search, approximate};
use scpeft_evaluation::pca::pca;
use scpeft_evaluation::umap::{self, umap};

const CELLS: usize = 100_000;
const DIMENSIONS: usize = 512;
/// Directions in which cells differ by more than noise, as embeddings of models do.
const LATENT: usize = 24;
const LABELS: usize = 20;
const BATCHES: usize = 5;

/// Uniform numbers in [-1, 1), by a linear congruence (Knuth's MMIX).
struct Rng(u64);

impl Rng {
    fn signed(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn list(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.signed()).collect()
    }
}

/// Cells around the centre of their label, moved a little by their batch.
fn cells(n: usize, labels: &[usize], batches: &[usize]) -> Vec<f32> {
    let mut rng = Rng(1);
    let centers = rng.list(LABELS * LATENT, 3.0);
    let shifts = rng.list(BATCHES * LATENT, 0.5);
    let directions = rng.list(LATENT * DIMENSIONS, 1.0);
    let mut values = Vec::with_capacity(n * DIMENSIONS);
    for (&label, &batch) in labels.iter().zip(batches) {
        let mut row = rng.list(DIMENSIONS, 0.5);
        for l in 0..LATENT {
            let place = centers[label * LATENT + l] + shifts[batch * LATENT + l];
            let place = place + 1.5 * rng.signed();
            let direction = &directions[l * DIMENSIONS..(l + 1) * DIMENSIONS];
            row.iter_mut()
                .zip(direction)
                .for_each(|(x, d)| *x += place * d);
        }
        values.extend_from_slice(&row);
    }
    values
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("VmHWM unknown").to_owned()
}

/// Seconds of all cores that this process has used; Linux counts them in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields = after.split_whitespace().skip(11).take(2);
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, used) = (Instant::now(), cpu_seconds());
    let done = work();
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - used);
    println!("{what}: {wall:.1} s, {cpu:.1} s of cores, {}", peak());
    done
}

fn main() {
    let given = std::env::args().find_map(|argument| argument.parse().ok());
    let n = given.unwrap_or(CELLS);
    let mut rng = Rng(2);
    let mut codes = |groups: usize| -> Vec<usize> {
        let code = |x: f32| (f32::midpoint(x, 1.0) * groups as f32) as usize;
        (0..n).map(|_| code(rng.signed())).collect()
    };
    let (labels, batches) = (codes(LABELS), codes(BATCHES));
    let values = cells(n, &labels, &batches);
    let cells = Cells::new("the embedding", &values, DIMENSIONS).expect("finite cells");
    println!("{n} cells in {DIMENSIONS} dimensions, {LABELS} labels, {BATCHES} batches");
    let labelled = Labelled::new(cells, &labels, &batches).expect("one code for each cell");
    timed("all pairs: neighbours and silhouettes", || {
        labelled.pairs(89)
    });
    let settings = Settings::default();
    let found = timed("all scores", || {
        integration(&labelled, Some(cells), &settings)
    });
    let overall = found.scores.overall();
    println!("{:?}", found.scores);
    println!("{overall:?}");
    let (_, recall) = timed("approximate neighbours", || {
        approximate(cells, 14, Search::default()).expect("enough cells")
    });
    println!("{recall:?}");
    let components = timed("50 components", || pca(cells, 50, 0).expect("enough cells"));
    let (_, graph) = found.neighbors.expect("enough cells");
    let picture = timed("UMAP", || {
        umap(&graph, &components.scores, 50, &umap::Settings::default())
    });
    println!(
        "{} places",
        picture.expect("a start for each cell").len() / 2
    );
}
