//! Importing `.h5ad` files: all encodings that anndata has written since 0.5.

mod csc;
mod frame;
mod genes;
mod hdf5;
mod matrix;
mod obs;

use frame::Frame;
use hdf5::Hdf5;
use matrix::Matrix;
use obs::Obs;

use super::panel::Panel;
use super::values::{BadValue, Clean};
use super::{ImportOptions, ImportReport, MatrixOption, Rows, ValuesOption};
use crate::corpus::{CellBatch, CorpusWriter, ValueKind};
use crate::{Error, Result};

/// Cells written at a time.
const WRITE_CELLS: usize = 1024;

/// Imports an `.h5ad` file. `progress` is told how many cells are done, and of how many.
pub(super) fn import(
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportReport> {
    let file = Hdf5::open(&options.input)?;
    let frame = |name: &str| Frame::open(&file, name);
    let (Some(obs), Some(var)) = (frame("obs")?, frame("var")?) else {
        return Err(not_anndata(&file));
    };
    let matrix = open_matrix(&file, &options.matrix)?;
    let var = match options.matrix {
        MatrixOption::Raw => match frame("raw/var")? {
            Some(var) => var,
            None => frame("raw.var")?.ok_or_else(|| {
                file.error("raw/var", "is missing", "the file is no complete AnnData")
            })?,
        },
        _ => var,
    };
    for (what, found, frame) in [
        ("cells", matrix.rows, obs.rows()),
        ("genes", matrix.columns, var.rows()),
    ] {
        if found != frame {
            let problem = format!("has {found} {what}, but the table of {what} has {frame} rows");
            return Err(file.error(&matrix.place, problem, "the file is damaged"));
        }
    }
    let panel = Panel::choose(genes::gene_table(&var)?, options)?;
    let plan = Obs::plan(&file, &obs, options)?;
    Job {
        file: &file,
        options,
        matrix: &matrix,
        var: &var,
        panel: &panel,
        frame: &obs,
        obs: &plan,
        clean: Clean::default(),
        output: None,
        nonzeros: 0,
    }
    .run(progress)
}

struct Job<'a> {
    file: &'a Hdf5,
    options: &'a ImportOptions,
    matrix: &'a Matrix,
    var: &'a Frame,
    panel: &'a Panel,
    frame: &'a Frame,
    obs: &'a Obs<'a>,
    clean: Clean,
    output: Option<(CorpusWriter, ValueKind)>,
    nonzeros: u64,
}

impl Job<'_> {
    fn run(mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<ImportReport> {
        let total = self.matrix.rows as u64;
        let scratch = super::Scratch::new(&self.options.output)?;
        let (file, matrix) = (self.file, self.matrix);
        matrix.visit(file, scratch.path(), &mut |rows| {
            self.write(rows)?;
            progress((rows.first + rows.len()) as u64, total);
            Ok(())
        })?;
        let (writer, kind) = match self.output.take() {
            Some(output) => output,
            // A file without cells: an empty corpus.
            None => self.open(&Rows::default())?,
        };
        let options = self.options;
        let mut provenance = options.provenance()?;
        provenance.options.extend(self.panel.provenance.clone());
        let (label, batch) = (options.label.clone(), options.batch.clone());
        let manifest = writer.finish(label, batch, provenance)?;
        Ok(ImportReport {
            cells: manifest.n_cells,
            genes: manifest.genes.n,
            nonzeros: self.nonzeros,
            bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
            value_kind: kind,
        })
    }

    fn open(&self, first: &Rows) -> Result<(CorpusWriter, ValueKind)> {
        let options = self.options;
        let kind = options.values.decide(first);
        let scaled = first.values.iter().any(|&v| v < 0.0);
        if options.values == ValuesOption::Auto && kind == ValueKind::Lognorm && !scaled {
            tracing::warn!(
                "`{}` holds fractions: taken as log-normalised values (say --values to choose, or take another matrix: {})",
                self.matrix.place.trim_start_matches('/'),
                other_matrices(self.file, &options.matrix)
            );
        }
        let schema = self.obs.schema(options);
        let genes = &self.panel.genes;
        let writer = CorpusWriter::create(&options.output, options.writer, kind, genes, schema)?;
        Ok((writer, kind))
    }

    fn write(&mut self, rows: &Rows) -> Result<()> {
        let (mut writer, kind) = match self.output.take() {
            Some(output) => output,
            None => self.open(rows)?,
        };
        let mut first = 0;
        while first < rows.len() {
            let last = (first + WRITE_CELLS).min(rows.len());
            let some = rows.slice(first..last);
            self.clean
                .fill(&some, kind)
                .map_err(|bad| self.bad_value(bad))?;
            if let Some(places) = &self.panel.places {
                self.clean.relocate(places);
            }
            self.nonzeros += self.clean.genes.len() as u64;
            let cells = some.first..some.first + some.len();
            writer.write(&CellBatch {
                cell_ids: self.frame.names(cells.clone())?,
                offsets: self.clean.offsets.clone(),
                genes: self.clean.genes.clone(),
                values: self.clean.values(kind),
                obs: self.obs.arrays(cells, self.options)?,
            })?;
            first = last;
        }
        self.output = Some((writer, kind));
        Ok(())
    }

    fn bad_value(&self, bad: BadValue) -> Error {
        let cell = self.frame.names(bad.row..bad.row + 1);
        let cell = cell
            .ok()
            .and_then(|mut names| names.pop())
            .unwrap_or_else(|| bad.row.to_string());
        // The names of all genes of the file: those of the corpus may be fewer.
        let genes = genes::gene_table(self.var);
        let gene = genes.map_or_else(
            |_| bad.gene.to_string(),
            |genes| genes.symbols[bad.gene as usize].clone(),
        );
        let others = other_matrices(self.file, &self.options.matrix);
        bad.into_error(
            self.file.path(),
            &self.matrix.place,
            &cell,
            &gene,
            self.options.values,
            &others,
        )
    }
}

fn open_matrix(file: &Hdf5, option: &MatrixOption) -> Result<Matrix> {
    let root = file.root();
    let found = match option {
        MatrixOption::X => Matrix::open(file, root, "X")?,
        MatrixOption::Raw => match hdf5::group(root, "raw") {
            Some(raw) => Matrix::open(file, &raw, "X")?,
            None => Matrix::open(file, root, "raw.X")?,
        },
        MatrixOption::Layer(name) => match hdf5::group(root, "layers") {
            Some(layers) => Matrix::open(file, &layers, name)?,
            None => None,
        },
    };
    found.ok_or_else(|| {
        let (place, problem) = match option {
            MatrixOption::X => ("X".to_owned(), "is missing or empty"),
            MatrixOption::Raw => ("raw/X".to_owned(), "is missing"),
            MatrixOption::Layer(name) => (format!("layers/{name}"), "is missing"),
        };
        file.error(
            &place,
            problem,
            format!("take another matrix: {}", other_matrices(file, option)),
        )
    })
}

/// The matrices a file has besides the one in use, as the options that choose them.
fn other_matrices(file: &Hdf5, but: &MatrixOption) -> String {
    let root = file.root();
    let mut found = Vec::new();
    if *but != MatrixOption::X && root.link_exists("X") {
        found.push("X (no option)".to_owned());
    }
    if *but != MatrixOption::Raw
        && (root.link_exists("raw.X")
            || hdf5::group(root, "raw").is_some_and(|r| r.link_exists("X")))
    {
        found.push("--raw".to_owned());
    }
    let layers = hdf5::group(root, "layers").and_then(|l| l.member_names().ok());
    for layer in layers.unwrap_or_default() {
        if *but != MatrixOption::Layer(layer.clone()) {
            found.push(format!("--layer {layer}"));
        }
    }
    if found.is_empty() {
        "the file has no other (neither raw nor layers)".to_owned()
    } else {
        found.join(", ")
    }
}

fn not_anndata(file: &Hdf5) -> Error {
    let names = file.root().member_names().unwrap_or_default();
    let help = if names.iter().any(|n| n == "matrix") {
        "this looks like a 10x matrix: convert it with `scanpy.read_10x_h5(a).write_h5ad(b)` in Python".to_owned()
    } else {
        format!(
            "an AnnData file has `obs` and `var`; this one has: {}",
            crate::error::listed(&names)
        )
    };
    file.error("", "is HDF5, but not an AnnData file", help)
}
