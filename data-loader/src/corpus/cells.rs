//! The cells of a row group: from their lists as they lie in the pages where that is known, else through
//! record batches.

use std::borrow::Cow;
use std::sync::Arc;

use parquet::arrow::ProjectionMask;

use super::decode::{Decoded, Ids, Lists, Numbers, Rows};
use super::packed::{self, CellBuffer, PackedBlock};
use super::pages::{self, Group, ListColumn};
use super::{Block, Corpus, Layout};
use crate::Result;

/// Cells decoded at a time: the Arrow arrays of so many cells stay in the cache.
const DECODE_CELLS: usize = 512;
/// Cells after which the size of a block is estimated.
const SAMPLE_CELLS: usize = 256;

/// What is done with a cell and its row.
type Each<'a> = dyn FnMut(u32, Decoded<'_>) -> Result<()> + 'a;

/// The columns of a row group that are read page by page.
enum Columns {
    Indices(ListColumn<u32>, ListColumn<f32>),
    Ids(ListColumn<i64>, ListColumn<f32>),
}

impl Corpus {
    /// Decodes the cells of a row group, or only its `chosen` rows (ascending).
    ///
    /// # Errors
    /// When the shard cannot be read or holds something else than the format says.
    pub fn read_block(&self, row_group: usize, chosen: Option<&[u32]>) -> Result<Block> {
        let mut buffer = CellBuffer::default();
        let (kind, n_genes) = (self.value_kind(), self.manifest().genes.n);
        self.read_cells(row_group, chosen, Block::default, |block, row, cell| {
            let unpacked = match cell {
                Decoded::Lists(genes, values) => {
                    block.push(genes, values);
                    return Ok(());
                }
                Decoded::Packed(genes, values) => {
                    buffer.clear();
                    packed::unpack(genes, values, n_genes, kind, &mut buffer)
                }
                Decoded::Fault(problem) => Err(problem),
            };
            unpacked.map_err(|problem| self.cell_error(row_group, row, &problem))?;
            block.push(&buffer.genes, &buffer.values);
            Ok(())
        })
    }

    /// Decodes the cells of a row group, or only its `chosen` rows (ascending), into packed bytes. Cells
    /// that cannot be used are kept as faults; those of the packed layout are checked when they are
    /// unpacked.
    ///
    /// # Errors
    /// When the row group cannot be read as a whole.
    pub fn read_packed(&self, row_group: usize, chosen: Option<&[u32]>) -> Result<PackedBlock> {
        let kind = self.value_kind();
        let rows = self.row_groups()[row_group].rows as usize;
        let rows = chosen.map_or(rows, <[u32]>::len);
        let empty = || {
            let mut block = PackedBlock::default();
            block.reserve(rows);
            block
        };
        self.read_cells(row_group, chosen, empty, |block, _, cell| {
            if block.rows() == SAMPLE_CELLS {
                block.expect(rows);
            }
            match cell {
                Decoded::Lists(genes, values) => block.push(genes, values, kind),
                Decoded::Packed(genes, values) => block.push_packed(genes, values),
                Decoded::Fault(problem) => block.push_fault(problem),
            }
            Ok(())
        })
    }

    /// Hands the cells of a row group to `each`, with their rows in it. Begins anew, with another `T`, when
    /// pages hold what only the general reader understands, or can say what is wrong with.
    fn read_cells<T>(
        &self,
        row_group: usize,
        chosen: Option<&[u32]>,
        new: impl Fn() -> T,
        mut each: impl FnMut(&mut T, u32, Decoded<'_>) -> Result<()>,
    ) -> Result<T> {
        let mut cells = new();
        if let Some(columns) = self.list_columns(row_group)? {
            let mut push = |row, cell: Decoded<'_>| each(&mut cells, row, cell);
            if self.read_pages(row_group, columns, chosen, &mut push)? {
                return Ok(cells);
            }
            cells = new();
        }
        self.read_batches(row_group, chosen, &mut |row, cell| {
            each(&mut cells, row, cell)
        })?;
        Ok(cells)
    }

    /// The columns of a row group, when they can be read page by page.
    fn list_columns(&self, row_group: usize) -> Result<Option<Columns>> {
        if matches!(self.manifest().layout, Layout::Packed) {
            return Ok(None);
        }
        let footer = self.footer(row_group)?;
        let group = self.row_groups()[row_group];
        let [genes, values] = self.decoder.columns();
        let roots = [genes, values].map(|name| footer.schema().index_of(name));
        let [Ok(first), Ok(second)] = roots else {
            return Ok(None);
        };
        let mask = ProjectionMask::roots(footer.parquet_schema(), [first, second]);
        let group = Group {
            chunks: Arc::new(self.column_chunks(row_group, footer, &mask)?),
            footer,
            index: group.index,
            rows: group.rows as usize,
        };
        let Some(numbers) = ListColumn::open(&group, values, pages::numbers) else {
            return Ok(None);
        };
        if let Some(indices) = ListColumn::open(&group, genes, pages::unsigned) {
            return Ok(Some(Columns::Indices(indices, numbers)));
        }
        let ids = ListColumn::open(&group, genes, pages::signed);
        Ok(ids.map(|ids| Columns::Ids(ids, numbers)))
    }

    /// Whether all cells were read; otherwise the general reader says what is wrong.
    fn read_pages(
        &self,
        row_group: usize,
        columns: Columns,
        chosen: Option<&[u32]>,
        each: &mut Each<'_>,
    ) -> Result<bool> {
        let rows = self.row_groups()[row_group].rows;
        match columns {
            Columns::Indices(genes, values) => self.read_lists(rows, genes, values, chosen, each),
            Columns::Ids(genes, values) => self.read_lists(rows, genes, values, chosen, each),
        }
    }

    fn read_lists<G: Copy>(
        &self,
        rows: u32,
        mut genes: ListColumn<G>,
        mut values: ListColumn<f32>,
        chosen: Option<&[u32]>,
        each: &mut Each<'_>,
    ) -> Result<bool>
    where
        for<'a> Ids<'a>: From<&'a [G]>,
    {
        let mut first = 0;
        let mut buffer = CellBuffer::default();
        loop {
            let (Ok(of_genes), Ok(of_values)) = (genes.fill(), values.fill()) else {
                return Ok(false);
            };
            let whole = of_genes.min(of_values);
            if whole == 0 {
                return Ok(first == rows && of_genes == of_values);
            }
            let (gene_starts, gene_end) = genes.rows();
            let (value_starts, value_end) = values.rows();
            let lists = Lists {
                gene_rows: Rows::Starts(gene_starts, gene_end),
                ids: genes.items().into(),
                value_rows: Rows::Starts(value_starts, value_end),
                numbers: Numbers::F32(values.items()),
            };
            let wanted = rows_between(chosen, first, first + whole as u32);
            let mut places = wanted.iter();
            let mut failure = None;
            let local = wanted.iter().map(|row| (row - first) as usize);
            self.decoder.lists(&lists, local, &mut buffer, |cell| {
                if let (Some(&row), None) = (places.next(), &failure) {
                    failure = each(row, cell).err();
                }
            });
            if let Some(failure) = failure {
                return Err(failure);
            }
            genes.consume(whole);
            values.consume(whole);
            first += whole as u32;
        }
    }

    /// The general way.
    fn read_batches(
        &self,
        row_group: usize,
        chosen: Option<&[u32]>,
        each: &mut Each<'_>,
    ) -> Result<()> {
        let mut first = 0_u32;
        let mut buffer = CellBuffer::default();
        let mut failure = None;
        self.scan(row_group, &self.decoder.columns(), DECODE_CELLS, |batch| {
            let last = first + batch.num_rows() as u32;
            let wanted = rows_between(chosen, first, last);
            let mut places = wanted.iter();
            let local = wanted.iter().map(|row| (row - first) as usize);
            self.decoder.cells(batch, local, &mut buffer, |cell| {
                if let (Some(&row), None) = (places.next(), &failure) {
                    failure = each(row, cell).err();
                }
            })?;
            first = last;
            Ok(())
        })?;
        failure.map_or(Ok(()), Err)
    }
}

/// The rows that are wanted among those from `first` to before `last`.
fn rows_between(chosen: Option<&[u32]>, first: u32, last: u32) -> Cow<'_, [u32]> {
    match chosen {
        None => (first..last).collect(),
        Some(rows) => Cow::Borrowed(
            &rows[rows.partition_point(|&r| r < first)..rows.partition_point(|&r| r < last)],
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::corpus::Profile;
    use crate::index::{Columns as Mapping, IndexOptions, index};
    use crate::synth::{SynthLayout, SynthOptions, synthesize};

    fn synth(output: &Path, layout: SynthLayout) {
        let options = SynthOptions {
            cells: 500,
            genes: 900,
            nonzeros: 60,
            layout,
            output: output.to_owned(),
            row_group_cells: Some(200),
            threads: 1,
            ..SynthOptions::default()
        };
        synthesize(&options, &|_, _| ()).unwrap();
    }

    /// Were one of the layouts left to the general reader, nothing would suffer but the speed.
    fn assert_pages_are_read_and_say_the_same(corpus: &Corpus) {
        for group in 0..corpus.row_groups().len() {
            for chosen in [None, Some(&[0, 3, 17, 99][..])] {
                let columns = corpus.list_columns(group).unwrap();
                let columns = columns.expect("lists that are read page by page");
                let (mut pages, mut batches) = (Vec::new(), Vec::new());
                let whole = corpus.read_pages(group, columns, chosen, &mut |row, cell| {
                    pages.push((row, own(&cell)));
                    Ok(())
                });
                assert!(whole.unwrap());
                corpus
                    .read_batches(group, chosen, &mut |row, cell| {
                        batches.push((row, own(&cell)));
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(pages, batches);
                assert_eq!(pages.len(), chosen.map_or(pages.len(), <[u32]>::len));
            }
        }
    }

    fn own(cell: &Decoded<'_>) -> (Vec<u32>, Vec<f32>) {
        match cell {
            Decoded::Lists(genes, values) => (genes.to_vec(), values.to_vec()),
            Decoded::Packed(..) | Decoded::Fault(_) => panic!("a sound list"),
        }
    }

    #[test]
    fn our_lists_are_read_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus");
        synth(&path, SynthLayout::Corpus(Profile::List));
        assert_pages_are_read_and_say_the_same(&Corpus::open(&path).unwrap());
    }

    #[test]
    fn files_of_tahoe_are_read_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let (files, path) = (dir.path().join("files"), dir.path().join("corpus"));
        synth(&files, SynthLayout::Tahoe);
        let options = IndexOptions {
            source: files,
            output: path.clone(),
            overwrite: false,
            columns: Mapping::tahoe(),
            gene_table: None,
            gene_id_column: None,
            obs: None,
            values: crate::import::ValuesOption::Auto,
            label: None,
            batch: None,
            split: None,
            side_tables: Vec::new(),
            store: crate::StoreOptions::default(),
        };
        index(&options, &|_, _| ()).unwrap();
        assert_pages_are_read_and_say_the_same(&Corpus::open(&path).unwrap());
    }
}
