//! A trained run as models of a study: itself, and itself told of the wrong molecule or of none.

use std::collections::BTreeSet;
use std::path::Path;

use scpeft_collective::Topology;
use scpeft_config::Config;
use scpeft_data::rng::{Purpose, Rng};
use scpeft_evaluation::splits::{Condition, Rule};
use scpeft_evaluation::study::{Labelled, Predicted};

use crate::args::EvaluateArgs;
use crate::checkpointing::RunDir;
use crate::failure::{Failure, Result};
use crate::perturbation::Predictor;
use crate::trained;

/// Where a run keeps its configuration, and what is taken from it.
pub(super) struct Trained {
    config: Config,
}

impl Trained {
    /// # Errors
    /// A run that learned something else, or that cannot be read.
    pub(super) fn open(run: &Path) -> Result<Self> {
        let config = trained::configuration(run, &[])?;
        if config.task.kind == scpeft_config::TaskKind::Perturbation {
            return Ok(Self { config });
        }
        Err(Failure::config(format!(
            "`{}` was trained for `{}`, which predicts no responses",
            run.display(),
            config.task.kind
        )))
    }

    /// The arguments with the run's own corpus, columns and table where they name none.
    pub(super) fn complete(&self, args: &EvaluateArgs) -> EvaluateArgs {
        let (own, mut args) = (&self.config.perturbation, args.clone());
        if args.corpus.as_os_str().is_empty() {
            args.corpus.clone_from(&self.config.data.corpus);
        }
        args.perturbation = own.column.clone().unwrap_or_default();
        args.control = own.control.clone().unwrap_or_default();
        args.context.clone_from(&own.context);
        args.dose.clone_from(&own.dose);
        if args.molecules.is_none() {
            args.molecules.clone_from(&own.molecules);
        }
        args
    }

    /// Predicts the held-out conditions; leaves those that the run never split out of `labelled`.
    /// Returns the models and the rule of the run's own split.
    ///
    /// # Errors
    /// Whatever is wrong with run, checkpoint or corpus; nothing held out.
    pub(super) fn predict(
        &self,
        run: &Path,
        args: &EvaluateArgs,
        labelled: &mut Labelled,
    ) -> Result<(Vec<Predicted>, Rule)> {
        let mut config = self.config.clone();
        config.data.corpus.clone_from(&args.corpus);
        let checkpoint = RunDir::new(run).checkpoint(&args.checkpoint)?;
        let predictor = Predictor::load(
            config.clone(),
            &Topology::SINGLE,
            None,
            run,
            &checkpoint,
            args.molecules.as_deref(),
            0,
        )?;
        let known = &predictor.responses().conditions;
        let of_split = |name: &str| -> Result<BTreeSet<Condition>> {
            let cells = predictor.assembly().feed.split(&config, name)?;
            let own = known.among(&cells).into_iter();
            Ok(own.map(|c| known.list[c].clone()).collect())
        };
        let test = of_split(&config.data.test)?;
        let mut split = test.clone();
        // What picked the checkpoint was seen.
        split.extend(of_split(&config.data.train)?);
        split.extend(of_split(&config.data.valid)?);
        labelled
            .treated
            .retain(|condition, _| split.contains(condition));
        let models = self.models(&predictor, &test, args, labelled)?;
        Ok((models, Rule::Given { test }))
    }

    fn models(
        &self,
        predictor: &Predictor,
        test: &BTreeSet<Condition>,
        args: &EvaluateArgs,
        labelled: &Labelled,
    ) -> Result<Vec<Predicted>> {
        let wanted: Vec<Condition> = (labelled.treated.keys())
            .filter(|c| test.contains(*c))
            .cloned()
            .collect();
        if wanted.is_empty() {
            return Err(Failure::data(format!(
                "split `{}` of the run holds no condition\nhelp: only what was held out of training can be scored",
                self.config.data.test
            )));
        }
        let vectors = predictor.vectors(&wanted)?;
        let name = args.run.as_ref().and_then(|run| run.file_name());
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let mut told = vec![(name.clone(), vectors.clone())];
        if predictor.molecule_width() > 0 {
            let shuffled = shuffled(predictor, &wanted, &vectors, args.seed)?;
            told.push((format!("{name}_shuffled_drug"), shuffled));
            let mut zero = vectors;
            for vector in &mut zero {
                vector[..predictor.molecule_width()].fill(0.0);
            }
            told.push((format!("{name}_zero_drug"), zero));
        }
        let places = places(predictor, labelled)?;
        let mut models = Vec::new();
        for (model, vectors) in told {
            let mut predicted = Predicted {
                model,
                ..Predicted::default()
            };
            for (condition, vector) in wanted.iter().zip(&vectors) {
                let (profile, _) = predictor.predict(condition, vector, 0)?;
                let scored = places.iter().map(|&gene| profile[gene]).collect();
                predicted.profiles.insert(condition.clone(), scored);
            }
            models.push(predicted);
        }
        Ok(models)
    }
}

/// Each condition with the molecule of another perturbation, drawn by the seed: another held-out one,
/// or one of training where a single one is held out. Doses stay.
fn shuffled(
    predictor: &Predictor,
    wanted: &[Condition],
    vectors: &[Vec<f32>],
    seed: u64,
) -> Result<Vec<Vec<f32>>> {
    let width = predictor.molecule_width();
    let drugs: BTreeSet<&str> = wanted.iter().map(|c| c.perturbation.as_str()).collect();
    let mut drugs: Vec<&str> = drugs.into_iter().collect();
    Rng::new(seed, Purpose::Sampling, 1, 0).shuffle(&mut drugs);
    let mut molecules: Vec<Vec<f32>> = Vec::with_capacity(drugs.len());
    if drugs.len() > 1 {
        for drug in &drugs {
            let own = wanted.iter().position(|c| c.perturbation == *drug);
            molecules.push(vectors[own.unwrap_or_default()][..width].to_vec());
        }
        // In a cycle nobody keeps their own.
        molecules.rotate_left(1);
    } else {
        let all = &predictor.responses().conditions.list;
        let other = all.iter().find(|c| c.perturbation != drugs[0]);
        molecules.push(match other {
            Some(other) => {
                let mut same_dose = other.clone();
                same_dose.dose.clone_from(&wanted[0].dose);
                predictor.vectors(&[same_dose])?.remove(0)[..width].to_vec()
            }
            // One drug in all: its numbers in another order are no molecule of the data.
            None => {
                let mut own = vectors[0][..width].to_vec();
                Rng::new(seed, Purpose::Sampling, 1, 1).shuffle(&mut own);
                own
            }
        });
    }
    let of = |(condition, vector): (&Condition, &Vec<f32>)| {
        let place = drugs.iter().position(|d| *d == condition.perturbation);
        let mut vector = vector.clone();
        vector[..width].copy_from_slice(&molecules[place.unwrap_or_default()]);
        vector
    };
    Ok(wanted.iter().zip(vectors).map(of).collect())
}

/// The places of the scored genes in a predicted profile.
fn places(predictor: &Predictor, labelled: &Labelled) -> Result<Vec<usize>> {
    let known: std::collections::HashMap<&str, usize> =
        (predictor.genes().iter().map(String::as_str))
            .zip(0..)
            .collect();
    let find = |gene: &String| {
        known.get(gene.as_str()).copied().ok_or_else(|| {
            Failure::data(format!(
                "gene `{gene}` is not among those of the predictions"
            ))
        })
    };
    labelled.genes.iter().map(find).collect()
}
