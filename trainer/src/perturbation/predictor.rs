//! A trained model of responses, asked for profiles of conditions.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use scpeft_collective::Topology;
use scpeft_config::{Config, Pairing, Unit};
use scpeft_data::molecules::Molecules;
use scpeft_data::pairing::{Means, Panel, Pool};
use scpeft_evaluation::splits::Condition;
use scpeft_model::backbone::Inputs;
use scpeft_model::exec::Pass;
use scpeft_model::shard::Gather;
use tch::{Kind, Tensor};

use super::conditions::shortened;
use super::treatments::{self, Keys};
use super::{Responses, controls};
use crate::adapter_file;
use crate::assembly::Assembly;
use crate::failure::{Failure, Result};
use crate::task::respond;
use crate::trained::{self, host_values};

/// Tokens of a pass, unless one row has more: bounds its memory.
const PASS_TOKENS: usize = 8192;
/// Control cells whose responses are averaged, where rows are cells.
const MEAN_CELLS: usize = 100;

/// The model with what it predicts from.
pub(crate) struct Predictor {
    config: Config,
    assembly: Assembly,
    responses: Arc<Responses>,
    table: Option<Molecules>,
    keys: Keys,
    /// Mean control profiles over all genes of the corpus.
    whole: Means,
    /// Control cells, where the model was trained on cells or cells are asked for.
    pools: Vec<Pool>,
}

impl Predictor {
    /// The model of a checkpoint. `molecules` replaces the run's table; `cells` are wanted of each
    /// condition. Issues no collective.
    ///
    /// # Errors
    /// Whatever is wrong with run, corpus, backbone or table.
    pub(crate) fn load(
        mut config: Config,
        topology: &Topology,
        gather: Option<Rc<dyn Gather>>,
        run: &Path,
        checkpoint: &Path,
        molecules: Option<&Path>,
        cells: usize,
    ) -> Result<Self> {
        if let Some(path) = molecules {
            config.perturbation.molecules = Some(path.to_owned());
        }
        let record = adapter_file::read_record(checkpoint)?;
        let assembly = Assembly::for_responses(&config, topology, gather, run)?;
        trained::restore(&assembly, &config, &record, checkpoint)?;
        let corpus = &assembly.feed.corpus;
        let responses = assembly.feed.responses.clone().ok_or_else(|| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                "a model of responses has none; please report it",
            )
        })?;
        let whole = controls(
            corpus,
            super::normal(&config, corpus),
            &Panel::whole(corpus),
            &responses.conditions,
        )?;
        let own = &config.perturbation;
        let of_cells = own.unit == Unit::Cells && own.pairing == Pairing::Random;
        let most = cells.max(if of_cells { MEAN_CELLS } else { 0 });
        Ok(Self {
            table: treatments::table(&config)?,
            keys: Keys::read(corpus, &config)?,
            pools: match most {
                0 => Vec::new(),
                most => responses.control_cells(corpus, most)?,
            },
            config,
            responses,
            whole,
            assembly,
        })
    }

    /// Names of the genes of a profile: all of the corpus.
    pub(crate) fn genes(&self) -> &[String] {
        &self.assembly.feed.corpus.genes().symbols
    }

    /// How many of them the model predicts; the others keep the control mean.
    pub(crate) fn modelled(&self) -> usize {
        self.responses.panel.len()
    }

    /// The conditions of the corpus, by the run's columns.
    pub(crate) fn responses(&self) -> &Responses {
        &self.responses
    }

    /// The assembled model.
    pub(crate) fn assembly(&self) -> &Assembly {
        &self.assembly
    }

    /// Refuses conditions that nothing can be predicted for.
    ///
    /// # Errors
    /// Contexts that the corpus does not have or that have no control cells, all of them.
    pub(crate) fn require_contexts(&self, conditions: &[Condition]) -> Result<()> {
        let known = &self.responses.conditions.contexts;
        let mut unknown = Vec::new();
        let mut bare = Vec::new();
        for condition in conditions {
            let line = format!("`{}`", condition.context);
            match known.iter().position(|name| *name == condition.context) {
                None if !unknown.contains(&line) => unknown.push(line),
                Some(place) if self.whole.cells[place] == 0 && !bare.contains(&line) => {
                    bare.push(line);
                }
                _ => {}
            }
        }
        if !unknown.is_empty() {
            let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            return Err(Failure::data(format!(
                "{} context(s) that the corpus does not have: {}\nhelp: it has {}",
                unknown.len(),
                shortened(&unknown),
                known.join(", ")
            )));
        }
        if !bare.is_empty() {
            return Err(Failure::data(format!(
                "no control cells in {} context(s): {}\n\
                 help: a response is predicted from control cells of its context; name a corpus that has them with `--corpus`",
                bare.len(),
                shortened(&bare)
            )));
        }
        Ok(())
    }

    /// What the model is told of conditions; empty vectors where it is told nothing.
    ///
    /// # Errors
    /// Molecules without an embedding, all of them, or doses that cannot be used.
    pub(crate) fn vectors(&self, conditions: &[Condition]) -> Result<Vec<Vec<f32>>> {
        let list: Vec<&Condition> = conditions.iter().collect();
        match &self.table {
            Some(table) => treatments::vectors(&self.config, table, &self.keys, &list),
            None => Ok(vec![Vec::new(); list.len()]),
        }
    }

    /// Numbers of a vector that are the molecule's; the dose comes after them.
    pub(crate) fn molecule_width(&self) -> usize {
        self.table.as_ref().map_or(0, Molecules::width)
    }

    /// Control cells of a context.
    pub(crate) fn control_cells(&self, context: &str) -> u64 {
        let place = self.place(context);
        place.map_or(0, |place| self.whole.cells[place])
    }

    /// The control mean of a context, all genes.
    pub(crate) fn control(&self, context: &str) -> &[f64] {
        self.place(context)
            .map_or(&[], |place| self.whole.mean[place].as_slice())
    }

    fn place(&self, context: &str) -> Option<usize> {
        let known = &self.responses.conditions.contexts;
        known.iter().position(|name| name == context)
    }

    /// The mean profile of a condition over all genes of the corpus, and so many of its cells, which
    /// lie end to end; `vector` is what the model is told of it.
    ///
    /// # Errors
    /// When libtorch fails, or the prediction is not finite.
    pub(crate) fn predict(
        &self,
        condition: &Condition,
        vector: &[f32],
        cells: usize,
    ) -> Result<(Vec<f64>, Vec<f32>)> {
        let Some(place) = self.place(&condition.context) else {
            return Err(Failure::data(format!(
                "the corpus has no context `{}`",
                condition.context
            )));
        };
        let width = self.responses.panel.len();
        let own = &self.config.perturbation;
        let averaged = match (own.unit, own.pairing) {
            (Unit::Cells, Pairing::Random) => MEAN_CELLS,
            _ => 0,
        };
        let wanted = averaged.max(cells);
        let pool = self.pools.get(place).filter(|_| wanted > 0);
        let drawn = pool.map_or(0, |pool| pool.len().min(wanted));
        let mut inputs = vec![0.0f32; drawn * width];
        for (cell, row) in inputs.chunks_exact_mut(width.max(1)).enumerate() {
            if let Some(pool) = pool {
                pool.write(cell, row);
            }
        }
        let predicted = self.rows(&inputs, vector)?;
        let mean: Vec<f64> = if averaged > 0 && drawn > 0 {
            let mut sums = vec![0.0; width];
            for row in predicted.chunks_exact(width) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value) / drawn as f64;
                }
            }
            sums
        } else {
            let control = &self.responses.controls.mean[place];
            let control: Vec<f32> = control.iter().map(|&x| x as f32).collect();
            let predicted = self.rows(&control, vector)?;
            predicted.into_iter().map(f64::from).collect()
        };
        if let Some(bad) = mean.iter().chain([&0.0]).find(|x| !x.is_finite()) {
            return Err(Failure::new(
                scpeft_protocol::exit::NON_FINITE,
                format!(
                    "the prediction of `{}` holds {bad}\n\
                     help: the run diverged; try another `--checkpoint`",
                    scpeft_evaluation::study::name_of(condition)
                ),
            ));
        }
        let mut profile = self.whole.mean[place].clone();
        for (&gene, value) in self.responses.panel.genes().iter().zip(mean) {
            profile[gene as usize] = value;
        }
        let kept = cells.min(drawn) * width;
        Ok((profile, predicted[..kept].to_vec()))
    }

    /// Responses of control profiles, which lie end to end, to one treatment.
    fn rows(&self, inputs: &[f32], vector: &[f32]) -> Result<Vec<f32>> {
        let panel = &self.responses.panel;
        let width = panel.len().max(1);
        let rows = (PASS_TOKENS / width).max(1);
        let mut found = Vec::with_capacity(inputs.len());
        for piece in inputs.chunks(rows * width) {
            let n = (piece.len() / width) as i64;
            let device = self.assembly.staging.device;
            let tokens = Tensor::f_from_slice(panel.tokens())?
                .f_unsqueeze(0)?
                .f_expand([n, width as i64], false)?
                .f_contiguous()?;
            let values = Tensor::f_from_slice(piece)?.f_view([n, width as i64])?;
            let mut inputs = Inputs::new(
                tokens.f_to_device(device)?,
                values.f_to_device(device)?,
                None,
            );
            if !vector.is_empty() {
                let told = Tensor::f_from_slice(vector)?.f_unsqueeze(0)?;
                let told = told.f_expand([n, vector.len() as i64], false)?;
                inputs.treatment = Some(told.f_contiguous()?.f_to_device(device)?);
            }
            let reference = self.assembly.staging.reference.as_ref();
            let reference = reference.map(|frozen| frozen.of(&inputs)).transpose()?;
            let output = self.config.perturbation.output;
            let model = self.assembly.model.as_ref();
            let (predicted, _) = tch::no_grad(|| {
                respond(output, model, &inputs, reference.as_ref(), Pass::EVALUATION)
            })?;
            found.extend(host_values(&predicted.f_to_kind(Kind::Float)?)?);
        }
        Ok(found)
    }
}
