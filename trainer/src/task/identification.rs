//! Cell-type identification: classify the cell embedding.

use scpeft_config::{ClassWeights, Select};
use scpeft_data::MicroBatch;
use scpeft_evaluation::identification::Confusion;
use scpeft_model::backbone::{Classifier, Encoded, Heads, Model, Purpose};
use scpeft_model::exec::Pass;
use scpeft_model::loss::cross_entropy_sum;
use tch::{Kind, Tensor};

use super::{DeviceBatch, Evaluation, LabelInfo, LossSums, Task, Term, scalar};
use crate::failure::{Failure, Result};

/// Settings of the task.
#[derive(Debug, Clone)]
pub struct IdentificationOptions {
    /// Name of the label column, for messages.
    pub label: String,
    /// Weighting of the classes in the loss.
    pub class_weights: ClassWeights,
    /// Layers of the classifier, output included.
    pub classifier_layers: usize,
    /// What selects the best model.
    pub select: Select,
}

/// The task.
#[derive(Debug, Clone)]
pub struct Identification {
    options: IdentificationOptions,
    classes: Vec<String>,
    /// Class of each label code of the corpus; `None` for categories that no training cell has.
    class_of_code: Vec<Option<usize>>,
    weights: Option<Vec<f32>>,
}

impl Identification {
    /// The classes are the categories that training cells have, in order of their codes.
    ///
    /// # Errors
    /// When no cell is labelled, fewer than two types occur, or a validation cell has a type that
    /// no training cell has.
    pub fn for_training(options: IdentificationOptions, labels: &LabelInfo) -> Result<Self> {
        let column = &options.label;
        let known: Vec<usize> = (0..labels.categories.len())
            .filter(|&c| labels.train_counts[c] > 0)
            .collect();
        if known.len() < 2 {
            return Err(Failure::data(format!(
                "obs column `{column}`: the training split has {} cell type(s), at least 2 are needed",
                known.len()
            )));
        }
        let unseen: Vec<String> = (0..labels.categories.len())
            .filter(|&c| labels.train_counts[c] == 0 && labels.valid_counts[c] > 0)
            .map(|c| {
                format!(
                    "`{}` ({} cells)",
                    labels.categories[c], labels.valid_counts[c]
                )
            })
            .collect();
        if !unseen.is_empty() {
            return Err(Failure::data(format!(
                "obs column `{column}`: validation cells have types unseen in training: {}\n\
                 help: import again with another `--split` (stratified by `--label`), or merge rare types",
                unseen.join(", ")
            )));
        }
        let classes: Vec<String> = known
            .iter()
            .map(|&c| labels.categories[c].clone())
            .collect();
        let weights = class_weights(options.class_weights, &known, labels);
        let mut task = Self {
            options,
            classes,
            class_of_code: Vec::new(),
            weights,
        };
        task.bind_codes(&labels.categories);
        Ok(task)
    }

    /// A trained classifier on a corpus whose label column, if any, has these categories.
    pub fn for_prediction(
        options: IdentificationOptions,
        classes: Vec<String>,
        categories: &[String],
    ) -> Self {
        let mut task = Self {
            options,
            classes,
            class_of_code: Vec::new(),
            weights: None,
        };
        task.bind_codes(categories);
        task
    }

    fn bind_codes(&mut self, categories: &[String]) {
        self.class_of_code = categories
            .iter()
            .map(|name| self.classes.iter().position(|c| c == name))
            .collect();
    }

    /// The class of a label code; `None` when the cell has no label or one that was not trained.
    pub fn class(&self, code: i64) -> Option<usize> {
        usize::try_from(code)
            .ok()
            .and_then(|code| self.class_of_code.get(code).copied().flatten())
    }

    /// Logits `[B, classes]` and the encoder's output.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn logits(
        &self,
        model: &dyn Model,
        batch: &DeviceBatch<'_>,
        pass: Pass,
    ) -> Result<(Tensor, Encoded)> {
        let encoded = model.encode(&batch.inputs, pass)?;
        Ok((model.classify(&encoded, pass)?, encoded))
    }

    fn targets(&self, micro: &MicroBatch) -> Result<Vec<i64>> {
        micro
            .labels
            .iter()
            .zip(&micro.cells)
            .map(|(&code, cell)| match self.class(code) {
                Some(class) => Ok(class as i64),
                None => Err(Failure::data(format!(
                    "cell {cell}: its `{}` is missing or unseen in training (code {code})",
                    self.options.label
                ))),
            })
            .collect()
    }

    fn loss_sum(&self, logits: &Tensor, targets: &[i64]) -> Result<Tensor> {
        let device = logits.device();
        let labels = Tensor::f_from_slice(targets)?.f_to_device(device)?;
        let weight = match &self.weights {
            Some(w) => Some(Tensor::f_from_slice(w)?.f_to_device(device)?),
            None => None,
        };
        Ok(cross_entropy_sum(logits, &labels, weight.as_ref())?)
    }

    /// Sum of the targets' weights.
    fn weight_sum(&self, targets: &[i64]) -> f64 {
        match &self.weights {
            Some(w) => targets.iter().map(|&t| f64::from(w[t as usize])).sum(),
            None => targets.len() as f64,
        }
    }
}

/// Weights of the classes `known`, given as categories of `labels`. Counts are those of the training
/// split, but for the published rule that counts all cells.
pub fn class_weights(rule: ClassWeights, known: &[usize], labels: &LabelInfo) -> Option<Vec<f32>> {
    let counts = match rule {
        ClassWeights::SquaredComplementOfAll => &labels.all_counts,
        _ => &labels.train_counts,
    };
    // Categories that no training cell has count in the published total.
    let total: f64 = counts.iter().map(|&n| n as f64).sum();
    let weight: Box<dyn Fn(f64) -> f64> = match rule {
        ClassWeights::None => return None,
        ClassWeights::InverseFrequency => {
            let mean = total / known.len() as f64;
            Box::new(move |n| mean / n)
        }
        ClassWeights::SquaredComplement | ClassWeights::SquaredComplementOfAll => {
            Box::new(move |n| (1.0 - n / total).powi(2))
        }
    };
    Some(
        known
            .iter()
            .map(|&c| weight(counts[c] as f64) as f32)
            .collect(),
    )
}

impl Task for Identification {
    fn heads(&self) -> Heads {
        Heads {
            classifier: Some(Classifier {
                classes: self.classes.len() as i64,
                layers: self.options.classifier_layers,
            }),
            ..Heads::default()
        }
    }

    fn purpose(&self) -> Purpose {
        Purpose::Identification
    }

    fn terms(&self) -> &[Term] {
        &[Term {
            name: "cls",
            weight: 1.0,
        }]
    }

    fn counts(&self, micro: &MicroBatch) -> Result<Vec<f64>> {
        Ok(vec![self.weight_sum(&self.targets(micro)?)])
    }

    fn losses(&self, model: &dyn Model, batch: &DeviceBatch<'_>, pass: Pass) -> Result<LossSums> {
        let (logits, encoded) = self.logits(model, batch, pass)?;
        let sum = self.loss_sum(&logits, &self.targets(batch.host)?)?;
        Ok(LossSums {
            sums: vec![sum],
            encoded,
        })
    }

    fn evaluation_len(&self) -> usize {
        self.classes.len() * self.classes.len() + 2
    }

    fn evaluate(&self, model: &dyn Model, batch: &DeviceBatch<'_>, sums: &mut [f64]) -> Result<()> {
        let (logits, _) = self.logits(model, batch, Pass::EVALUATION)?;
        let targets = self.targets(batch.host)?;
        sums[0] += scalar(&self.loss_sum(&logits, &targets)?)?;
        sums[1] += self.weight_sum(&targets);
        let predicted = Vec::<i64>::try_from(&logits.f_argmax(1, false)?.f_to_kind(Kind::Int64)?)?;
        for (truth, guess) in targets.iter().zip(predicted) {
            sums[2 + *truth as usize * self.classes.len() + guess as usize] += 1.0;
        }
        Ok(())
    }

    fn finish(&self, sums: &[f64]) -> Result<Evaluation> {
        if sums[1] <= 0.0 {
            return Err(Failure::data("there is no labelled cell to evaluate"));
        }
        let confusion = Confusion::from_counts(self.classes.len(), &sums[2..]);
        let scores = confusion.scores(&self.classes);
        let metrics = vec![
            ("loss", sums[0] / sums[1]),
            ("accuracy", scores.accuracy),
            ("balanced_accuracy", scores.balanced_accuracy),
            ("macro_f1", scores.macro_f1),
        ];
        Ok(Evaluation {
            metrics,
            confusion: Some(confusion),
        })
    }

    fn selection(&self) -> (&'static str, bool) {
        match self.options.select {
            Select::Auto | Select::Loss | Select::PearsonDelta => ("loss", false),
            Select::MacroF1 => ("macro_f1", true),
            Select::BalancedAccuracy => ("balanced_accuracy", true),
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(class_weights: ClassWeights) -> IdentificationOptions {
        IdentificationOptions {
            label: "type".into(),
            class_weights,
            classifier_layers: 3,
            select: Select::Auto,
        }
    }

    fn labels(train: &[u64], valid: &[u64]) -> LabelInfo {
        LabelInfo {
            categories: ["b", "never", "t"].map(String::from).to_vec(),
            train_counts: train.to_vec(),
            valid_counts: valid.to_vec(),
            all_counts: train.iter().zip(valid).map(|(t, v)| t + v).collect(),
        }
    }

    #[test]
    fn classes_are_the_types_of_training_cells() {
        let task = Identification::for_training(
            options(ClassWeights::InverseFrequency),
            &labels(&[30, 0, 10], &[3, 0, 1]),
        )
        .unwrap();
        assert_eq!(task.classes(), ["b", "t"]);
        assert_eq!(
            [-1, 0, 1, 2, 3].map(|code| task.class(code)),
            [None, Some(0), None, Some(1), None]
        );
        let weights = task.weights.unwrap();
        assert!(
            (weights[0] - 20.0 / 30.0).abs() < 1e-6 && (weights[1] - 2.0).abs() < 1e-6,
            "{weights:?}"
        );
    }

    #[test]
    fn the_published_weights_leak_only_when_asked_to() {
        let labels = labels(&[30, 0, 10], &[0, 0, 20]);
        let weights = |rule| class_weights(rule, &[0, 2], &labels).unwrap();
        assert_eq!(weights(ClassWeights::SquaredComplement), [0.0625, 0.5625]);
        assert_eq!(weights(ClassWeights::SquaredComplementOfAll), [0.25, 0.25]);
        assert!(class_weights(ClassWeights::None, &[0, 2], &labels).is_none());
    }

    #[test]
    fn a_validation_type_unseen_in_training_is_refused_by_name() {
        let error = Identification::for_training(
            options(ClassWeights::None),
            &labels(&[30, 0, 10], &[3, 2, 1]),
        )
        .unwrap_err();
        assert_eq!(error.code, scpeft_protocol::exit::DATA);
        assert!(
            error.message.contains("`never` (2 cells)"),
            "{}",
            error.message
        );
    }

    #[test]
    fn prediction_maps_another_corpus_by_name() {
        let task = Identification::for_prediction(
            options(ClassWeights::None),
            ["b", "t"].map(String::from).to_vec(),
            &["t", "x", "b"].map(String::from),
        );
        assert_eq!(
            [0, 1, 2].map(|code| task.class(code)),
            [Some(1), None, Some(0)]
        );
    }
}
