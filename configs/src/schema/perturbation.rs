//! The sections of responses to perturbations.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::choices::{
    DrugActivation, DrugBias, DrugReading, DrugSite, LayerRule, Pairing, ResponseHead,
    ResponseLoss, ResponseOutput, Unit,
};
use super::values::Layers;
use crate::field::{Field, Section, section};
use crate::resolve::Reader;

section! {
    /// `[adapter.drug]`: the adapter that is told of the molecule, `adapter.kind = "drug"`.
    DrugSection at "adapter.drug" {
        /// What the molecule does: `bottleneck` (generates the bias of a bottleneck), `prefix`
        /// (generates keys and values that every token may attend to) or `input-add` (is added to
        /// every token's embedding, with `task.trainable = "all"`). Default `bottleneck`.
        reading: DrugReading = DrugReading::Bottleneck;
        /// Layers that carry it: `first-half`, `all` or a list. Default `all`; `input-add` has none.
        layers: Layers = Layers::Rule(LayerRule::All);
        /// Sublayers with a bottleneck: `feed-forward`, `attention` or `both`, on their output before
        /// the residual sum. Default `feed-forward`.
        site: DrugSite = DrugSite::FeedForward;
        /// Width of the bottleneck. Default 16; at least 1.
        bottleneck: usize = 16;
        /// The biases that the molecule generates: `down`, `down-and-up`, or `static` for none, which
        /// is an ordinary bottleneck that does not know the drug. Default `down`.
        bias: DrugBias = DrugBias::Down;
        /// Width between the two layers of the generator of biases. Default: unset, one linear layer.
        generator_hidden: Option<usize> = None;
        /// Inside the bottleneck: `relu` or `gelu`. Default `relu`.
        activation: DrugActivation = DrugActivation::Relu;
        /// Tokens of `reading = "prefix"`. Default 8; at least 1.
        tokens: usize = 8;
        /// Numbers that describe a treatment. Default: as wide as the embeddings of
        /// `perturbation.molecules`, and one more with `perturbation.dose_input`; leave it unset.
        width: Option<usize> = None;
    }
}

section! {
    /// `[perturbation]`: which cells were treated with what, and how responses are learned;
    /// `task.kind = "perturbation"`.
    PerturbationSection at "perturbation" {
        /// The obs column that says what was done to a cell. Required.
        column: Option<String> = None;
        /// Its value for control cells. Required. Control cells of every split are inputs.
        control: Option<String> = None;
        /// The obs column of contexts: cell lines, patients. Default: unset, one context.
        context: Option<String> = None;
        /// The obs column of doses, such as `10 nM`: doses of a drug are conditions of their own.
        /// Default: unset.
        dose: Option<String> = None;
        /// The unit of doses that are bare numbers: `pM`, `nM`, `uM`, `mM` or `M`. Default: unset,
        /// each dose names its own.
        dose_unit: Option<String> = None;
        /// Tell the `drug` adapter the logarithm of the dose. Default `false`: it is not an input.
        dose_input: bool = false;
        /// A table of molecules' embeddings, Parquet or safetensors. Required for the `drug` adapter.
        molecules: Option<PathBuf> = None;
        /// The obs column with the key of a cell's molecule in that table, such as a SMILES. Default:
        /// unset, the value of `column` is the key.
        molecule_key: Option<String> = None;
        /// A training row is a condition (`pseudobulk`) or a treated cell (`cells`). Default
        /// `pseudobulk`: few rows, `train.batch_cells` counts conditions.
        unit: Unit = Unit::Pseudobulk;
        /// With `unit = "cells"`, the control profile of a treated cell: `random`, a control cell
        /// drawn anew in each epoch, or `mean` of its context. Default `random`.
        pairing: Pairing = Pairing::Random;
        /// Obs columns that a random control cell shares with the treated one beside the context, such
        /// as plate or batch. Default `[]`.
        match_by: Vec<String> = Vec::new();
        /// Control cells of each context (and match) that are kept in memory to draw from, chosen by
        /// the seed. Default 500; at least 1.
        pool_cells: usize = 500;
        /// Conditions with fewer treated cells are left out, and listed. Default 5; at least 1.
        min_cells: usize = 5;
        /// How the output becomes a profile: `decoder` (it is the profile), `residual` (it is added
        /// to the control profile) or `change` (what the adapters change of it is added; no change
        /// at the start). Default `decoder`.
        output: ResponseOutput = ResponseOutput::Decoder;
        /// The decoder: `affine` (scGPT's generator: coefficient times control value, plus bias) or
        /// `expression` (that of pretraining). Default `affine`.
        head: ResponseHead = ResponseHead::Affine;
        /// Train the decoder too. Default `false`: it stays as it was loaded, or drawn from the seed
        /// where the backbone has none. At full size it is 2 % of the parameters.
        train_head: bool = false;
        /// `mse`, `masked-mse` (genes that the treated row expresses), `mmd` or `energy` (sets of
        /// cells: `unit = "cells"` with `train.micro_batch_cells`, micro-batches of one condition),
        /// or `adaptive` (z-scores of genes that change). Default `mse`.
        loss: ResponseLoss = ResponseLoss::Mse;
    }
}
