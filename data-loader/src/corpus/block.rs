//! Some cells of one row group in memory, as compressed sparse rows.

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Int32Type, Int64Type, UInt16Type, UInt32Type,
};

/// Some cells of one row group, as compressed sparse rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    offsets: Vec<usize>,
    genes: Vec<u32>,
    values: Vec<f32>,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            genes: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl Block {
    /// Number of cells.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Gene indices (ascending) and values of one cell.
    pub fn cell(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[row]..self.offsets[row + 1];
        (&self.genes[range.clone()], &self.values[range])
    }

    /// Number of stored values.
    pub fn nonzeros(&self) -> usize {
        self.genes.len()
    }

    pub(crate) fn reserve(&mut self, rows: usize, nonzeros: usize) {
        self.offsets.reserve(rows);
        self.genes.reserve(nonzeros);
        self.values.reserve(nonzeros);
    }

    /// Adds the rows of one record batch. `chosen` lists rows of the batch, ascending.
    pub(crate) fn append(
        &mut self,
        genes: &ArrayRef,
        values: &ArrayRef,
        chosen: Option<&[u32]>,
    ) -> Result<(), String> {
        let gene_ends = self.append_list(genes, chosen, Target::Genes)?;
        let value_ends = self.append_list(values, chosen, Target::Values)?;
        if gene_ends != value_ends {
            return Err("`genes` and `values` of a cell differ in length".into());
        }
        self.offsets.extend_from_slice(&gene_ends);
        Ok(())
    }

    fn append_list(
        &mut self,
        array: &ArrayRef,
        chosen: Option<&[u32]>,
        target: Target,
    ) -> Result<Vec<usize>, String> {
        match array.data_type() {
            DataType::List(_) => self.append_rows(array.as_list::<i32>(), chosen, target),
            DataType::LargeList(_) => self.append_rows(array.as_list::<i64>(), chosen, target),
            other => Err(format!(
                "column `{}` is {other}, expected a list",
                target.name()
            )),
        }
    }

    fn append_rows<O: OffsetSizeTrait>(
        &mut self,
        list: &GenericListArray<O>,
        chosen: Option<&[u32]>,
        target: Target,
    ) -> Result<Vec<usize>, String> {
        if list.null_count() + list.values().null_count() > 0 {
            return Err(format!("column `{}` has missing entries", target.name()));
        }
        let offsets = list.value_offsets();
        let whole = [(0, list.len() as u32)];
        let runs = chosen.map_or_else(|| whole.to_vec(), runs_of);
        let mut ends = Vec::with_capacity(list.len());
        let mut end = *self.offsets.last().expect("offsets start with a zero");
        for &(first, last) in &runs {
            for row in first..last {
                end += (offsets[row as usize + 1] - offsets[row as usize]).as_usize();
                ends.push(end);
            }
            let span = offsets[first as usize].as_usize()..offsets[last as usize].as_usize();
            match target {
                Target::Genes => copy_genes(list.values(), span, &mut self.genes)?,
                Target::Values => copy_values(list.values(), span, &mut self.values)?,
            }
        }
        Ok(ends)
    }
}

#[derive(Clone, Copy)]
enum Target {
    Genes,
    Values,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Genes => "genes",
            Self::Values => "values",
        }
    }
}

/// Consecutive rows as half-open runs, so that they are copied together.
fn runs_of(rows: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &row in rows {
        match runs.last_mut() {
            Some(run) if run.1 == row => run.1 += 1,
            _ => runs.push((row, row + 1)),
        }
    }
    runs
}

fn slice<'a, T: ArrowPrimitiveType>(
    array: &'a ArrayRef,
    span: &std::ops::Range<usize>,
) -> &'a [T::Native] {
    &array.as_primitive::<T>().values()[span.clone()]
}

fn copy_genes(
    array: &ArrayRef,
    span: std::ops::Range<usize>,
    out: &mut Vec<u32>,
) -> Result<(), String> {
    match array.data_type() {
        DataType::UInt16 => out.extend(
            slice::<UInt16Type>(array, &span)
                .iter()
                .map(|&g| u32::from(g)),
        ),
        DataType::UInt32 => out.extend_from_slice(slice::<UInt32Type>(array, &span)),
        DataType::Int32 => {
            for &gene in slice::<Int32Type>(array, &span) {
                out.push(
                    u32::try_from(gene).map_err(|_| format!("gene index {gene} is negative"))?,
                );
            }
        }
        DataType::Int64 => {
            for &gene in slice::<Int64Type>(array, &span) {
                out.push(
                    u32::try_from(gene)
                        .map_err(|_| format!("gene index {gene} is out of range"))?,
                );
            }
        }
        other => return Err(format!("column `genes` lists {other}, expected integers")),
    }
    Ok(())
}

fn copy_values(
    array: &ArrayRef,
    span: std::ops::Range<usize>,
    out: &mut Vec<f32>,
) -> Result<(), String> {
    match array.data_type() {
        DataType::UInt32 => out.extend(slice::<UInt32Type>(array, &span).iter().map(|&v| v as f32)),
        DataType::UInt16 => out.extend(
            slice::<UInt16Type>(array, &span)
                .iter()
                .map(|&v| f32::from(v)),
        ),
        DataType::Float32 => out.extend_from_slice(slice::<Float32Type>(array, &span)),
        other => {
            return Err(format!(
                "column `values` lists {other}, expected uint32 or float32"
            ));
        }
    }
    Ok(())
}

impl Block {
    /// The largest gene index.
    pub(crate) fn max_gene(&self) -> Option<u32> {
        self.genes.iter().copied().max()
    }
}
