//! Genes that vary more between cells than others of like expression.
//!
//! Cells are streamed: what is held are a few numbers per gene and batch, whatever the number of cells.
//! `seurat_v3` goes through them twice, because values are cut at limits that follow from the moments;
//! `cell_ranger` once.

mod cell_ranger;
mod loess;
mod moments;
mod seurat_v3;
mod source;

pub use loess::{Loess, LoessError, loess};
pub use source::{CorpusCells, DenseCells};

use crate::corpus::ValueKind;
use crate::{Error, Result};

/// Fewest cells of a batch: variances of two are all alike.
const LEAST_CELLS: u64 = 3;

/// How variable genes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// From counts: variance of clipped values against a curve of variance on mean.
    SeuratV3,
    /// From log-normalised values: dispersion against genes of like mean. Counts are normalised to
    /// 10,000 and logged first.
    CellRanger,
}

impl Flavor {
    /// The name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::SeuratV3 => "seurat_v3",
            Self::CellRanger => "cell_ranger",
        }
    }
}

/// Cells by genes, visited in order and any number of times.
pub trait Cells {
    /// Number of genes.
    fn genes(&self) -> usize;

    /// Number of cells.
    fn cells(&self) -> u64;

    /// What the values are.
    fn value_kind(&self) -> ValueKind;

    /// Hands each cell's expressed genes (ascending) and their values to `visit`.
    ///
    /// # Errors
    /// When the cells cannot be read.
    fn visit(&self, visit: &mut dyn FnMut(&[u32], &[f32])) -> Result<()>;
}

/// Which batch each cell is in.
#[derive(Debug, Clone)]
pub struct Batches {
    /// Codes of the cells in the order of the visit; empty for a single batch of all.
    codes: Vec<u32>,
    names: Vec<String>,
}

impl Batches {
    /// All cells in one.
    pub fn whole() -> Self {
        Self {
            codes: Vec::new(),
            names: vec![String::new()],
        }
    }

    /// A batch for each name, given its code for each cell. Names without cells are left out.
    pub fn new(codes: &[u32], names: &[String]) -> Self {
        let mut used = vec![false; names.len()];
        for &code in codes {
            used[code as usize] = true;
        }
        let mut places = Vec::with_capacity(names.len());
        let mut kept = Vec::new();
        for (name, &used) in names.iter().zip(&used) {
            places.push(kept.len() as u32);
            if used {
                kept.push(name.clone());
            }
        }
        Self {
            codes: codes.iter().map(|&code| places[code as usize]).collect(),
            names: kept,
        }
    }

    fn len(&self) -> usize {
        self.names.len()
    }

    fn is_whole(&self) -> bool {
        self.codes.is_empty()
    }

    fn of(&self, cell: usize) -> usize {
        self.codes.get(cell).map_or(0, |&code| code as usize)
    }

    fn name(&self, batch: usize) -> &str {
        &self.names[batch]
    }

    /// Cells in each batch.
    fn sizes(&self, cells: u64) -> Vec<u64> {
        if self.is_whole() {
            return vec![cells];
        }
        let mut sizes = vec![0; self.names.len()];
        for &code in &self.codes {
            sizes[code as usize] += 1;
        }
        sizes
    }
}

/// What was found out about each gene.
#[derive(Debug, Clone, PartialEq)]
pub struct HvgTable {
    /// Mean value, over the values that the flavor looks at.
    pub means: Vec<f64>,
    /// Variance (`seurat_v3`), or variance by mean (`cell_ranger`); the latter averaged over batches.
    pub spread: Vec<f64>,
    /// The spread against genes of like mean, averaged over batches. For `cell_ranger` not a number
    /// where it is undefined.
    pub normalised: Vec<f64>,
    /// `seurat_v3`: median over batches of the gene's rank by falling `normalised`, among the ranks
    /// below the number of genes asked for; not a number where there is none. Empty for `cell_ranger`.
    pub rank: Vec<f64>,
    /// In how many batches the gene is among the most variable.
    pub n_batches: Vec<u32>,
    /// Whether the gene is chosen.
    pub selected: Vec<bool>,
}

/// Finds the `n_top` most variable genes. With `cell_ranger` and a single batch all genes are chosen
/// that are as variable as the last of them.
///
/// # Errors
/// When there are fewer genes than asked for, a batch has too few cells, the values are of the wrong
/// kind, or no curve can be fitted; and when the cells cannot be read.
pub fn highly_variable(
    cells: &dyn Cells,
    batches: &Batches,
    flavor: Flavor,
    n_top: usize,
) -> Result<HvgTable> {
    if n_top == 0 || n_top > cells.genes() {
        return Err(Error::hvg(
            format!(
                "{n_top} variable genes were asked for, expected 1 to {}, the genes that are left",
                cells.genes()
            ),
            "choose a smaller --hvg, or drop fewer genes with --vocab and --min-counts",
        ));
    }
    for (number, &size) in batches.sizes(cells.cells()).iter().enumerate() {
        if size < LEAST_CELLS {
            let whose = match batches.name(number) {
                "" => "there are".to_owned(),
                name => format!("batch `{name}` has"),
            };
            return Err(Error::hvg(
                format!("{whose} {size} cells, but variances need at least {LEAST_CELLS}"),
                "drop or merge small batches in the source file, or choose another --hvg-batch",
            ));
        }
    }
    let table = match flavor {
        Flavor::SeuratV3 if cells.value_kind() != ValueKind::Counts => Err(Error::hvg(
            "flavor seurat_v3 needs counts, but the values are log-normalised",
            "take a matrix of counts with --layer or --raw, or pass --hvg-flavor cell_ranger",
        )),
        Flavor::SeuratV3 => seurat_v3::highly_variable(cells, batches, n_top),
        Flavor::CellRanger => cell_ranger::highly_variable(cells, batches, n_top),
    }?;
    if table.selected.contains(&true) {
        return Ok(table);
    }
    Err(Error::hvg(
        format!(
            "no gene stands out: {} genes are too few to compare each with others of like mean",
            cells.genes()
        ),
        "drop fewer genes with --vocab and --min-counts, or leave --hvg out",
    ))
}

/// The median; the mean of the two in the middle when their number is even. Not a number of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Places in the order of falling value; what is not a number comes last, equal ones stay in order.
fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (values[a], values[b]);
        a.is_nan().cmp(&b.is_nan()).then(b.total_cmp(&a))
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_median() {
        let values = [1.0, f64::NAN, 3.0, f64::INFINITY, 3.0, -0.5];
        assert_eq!(descending(&values), [3, 2, 4, 0, 5, 1]);
        assert_eq!(median(vec![4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn batches_without_cells_are_left_out() {
        let names = ["a", "b", "c"].map(String::from);
        let batches = Batches::new(&[2, 0, 2], &names);
        assert_eq!(batches.sizes(3), [1, 2]);
        assert_eq!((batches.name(1), batches.of(0), batches.of(1)), ("c", 1, 0));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let values = vec![1.0; 40];
        let refuse = |cells: DenseCells, batches: &Batches, flavor, n_top, part: &str| {
            let error = highly_variable(&cells, batches, flavor, n_top).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.exit_code(), scpeft_protocol::exit::DATA);
        };
        let counts = DenseCells::new(&values, 8, ValueKind::Counts);
        let logged = DenseCells::new(&values, 8, ValueKind::Lognorm);
        let whole = Batches::whole();
        refuse(counts, &whole, Flavor::CellRanger, 9, "expected 1 to 8");
        refuse(counts, &whole, Flavor::CellRanger, 0, "expected 1 to 8");
        refuse(logged, &whole, Flavor::SeuratV3, 3, "needs counts");
        refuse(counts, &whole, Flavor::SeuratV3, 3, "0 genes vary");
        let names = ["left", "right"].map(String::from);
        let uneven = Batches::new(&[0, 1, 1, 1, 0], &names);
        refuse(
            counts,
            &uneven,
            Flavor::CellRanger,
            3,
            "batch `left` has 2 cells",
        );
    }
}
