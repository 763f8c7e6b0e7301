//! Geneformer: `config.json`, dictionaries of genes and weights, or random weights of a configured
//! shape on a dictionary made from the corpus.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use scpeft_checkpoint::published::geneformer::{CONFIG, GeneDictionaries, GeneformerConfig};
use scpeft_checkpoint::{GeneformerDirectory, fsx};
use scpeft_config::{CellLayer, CellStyle, Config, GeneKey};
use scpeft_data::rank::{EOS, MASK, gene_medians};
use scpeft_data::vocab::{CLS, PAD};
use scpeft_data::{Corpus, Overlap, RankDictionary, RankTokenizer, Tokenizer};
use scpeft_model::adapter::Names;
use scpeft_model::backbone::geneformer::{
    self, Activation, Blueprint, CellEmbedding, FreezeRule, Head,
};
use scpeft_model::backbone::{Architecture, Heads, Shape};
use serde_json::Value;

use super::{Backbone, Family, IN_RUN_DIR, Opened, Weights};
use crate::failure::{Failure, Result};
use crate::feed;
use crate::settings;

/// Cells that the medians of a backbone without a dictionary are taken from, at most.
const MEDIAN_CELLS: u64 = 5_000;

/// The family of Geneformer.
pub(super) struct Geneformer;

impl Family for Geneformer {
    fn names(&self) -> Names {
        geneformer::NAMES
    }

    fn for_training(&self, config: &Config, corpus: &Corpus) -> Result<Backbone> {
        if let Some(path) = &config.backbone.path {
            return published(path).map(|(backbone, _)| backbone);
        }
        let genes = match &config.backbone.vocab {
            scpeft_config::Vocab::Corpus => dictionaries_of(config, corpus)?,
            scpeft_config::Vocab::Path(path) => GeneDictionaries::read(path)?,
        };
        let files = Files {
            config: random_config(config, genes.len()),
            genes,
        };
        let fingerprint = format!("random-{}", config.run.seed);
        assemble("random".into(), fingerprint, files, None)
    }

    fn of_run(&self, config: &Config, run_dir: &Path) -> Result<Backbone> {
        let dir = run_dir.join(IN_RUN_DIR);
        let files = Files {
            config: GeneformerConfig::read(&dir.join(CONFIG))?,
            genes: GeneDictionaries::read(&dir)?,
        };
        let Some(path) = super::weights_of_run(config) else {
            return assemble("run".into(), String::new(), files, None);
        };
        let (backbone, now) = published(path)?;
        let different = |what: &str| {
            Failure::weights(format!(
                "`{}`: its {what} is not the one the run was trained with\n\
                 help: put back the backbone of the run, or name it with `--set backbone.path=DIR`",
                path.display()
            ))
        };
        if now.config != files.config {
            return Err(different(CONFIG));
        }
        if now.genes != files.genes {
            return Err(different("dictionary of genes"));
        }
        Ok(backbone)
    }
}

/// What is known of a backbone beside its weights.
#[derive(Debug, Clone, PartialEq)]
struct Files {
    config: GeneformerConfig,
    genes: GeneDictionaries,
}

fn published(path: &Path) -> Result<(Backbone, Files)> {
    let directory = GeneformerDirectory::open(path)?;
    let files = Files {
        config: directory.config().clone(),
        genes: directory.genes().clone(),
    };
    let backbone = assemble(
        path.display().to_string(),
        directory.fingerprint(),
        files.clone(),
        Some(Box::new(directory)),
    )?;
    Ok((backbone, files))
}

fn assemble(
    origin: String,
    fingerprint: String,
    files: Files,
    weights: Option<Box<dyn Weights>>,
) -> Result<Backbone> {
    let config = &files.config;
    let shape = Shape {
        vocab: config.vocab_size as i64,
        d_model: config.hidden_size as i64,
        n_heads: config.num_attention_heads as i64,
        d_hid: config.intermediate_size as i64,
        n_layers: config.num_hidden_layers,
        pad_id: config.pad_token_id as i64,
    };
    let genes = &files.genes;
    let tokens = genes.tokens().iter();
    let dictionary = RankDictionary::new(
        tokens.map(|(t, &id)| (t.clone(), id as i32)).collect(),
        genes
            .medians()
            .iter()
            .map(|(g, &m)| (g.clone(), m))
            .collect(),
        genes.other_names().clone().into_iter().collect(),
    )?;
    Ok(Backbone {
        origin,
        fingerprint,
        shape,
        classifier_layers: 1,
        weights,
        opened: Box::new(OpenedGeneformer {
            files,
            shape,
            dictionary,
        }),
    })
}

/// `config.json` of a backbone that starts random.
fn random_config(config: &Config, vocab_size: usize) -> GeneformerConfig {
    let shape = &config.backbone.shape;
    GeneformerConfig {
        model_type: "bert".into(),
        vocab_size,
        hidden_size: shape.d_model,
        num_hidden_layers: shape.n_layers,
        num_attention_heads: shape.n_heads,
        intermediate_size: shape.d_hid,
        hidden_act: "relu".into(),
        max_position_embeddings: config.data.max_len,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        pad_token_id: 0,
        position_embedding_type: "absolute".into(),
        others: serde_json::Map::new(),
    }
}

/// A dictionary of the genes of a corpus, with `<cls>` and `<eos>`, and their medians in training
/// cells.
fn dictionaries_of(config: &Config, corpus: &Corpus) -> Result<GeneDictionaries> {
    let selection = feed::split(corpus, config, &config.data.train)?;
    let medians = gene_medians(corpus, &selection, MEDIAN_CELLS)?;
    let table = corpus.genes();
    let mut tokens: IndexMap<String, usize> = IndexMap::new();
    for special in [PAD, MASK, CLS, EOS] {
        tokens.insert(special.to_owned(), tokens.len());
    }
    let mut known = IndexMap::new();
    for (gene, median) in medians.into_iter().enumerate() {
        let name = match config.data.gene_key {
            GeneKey::Ensembl => table.ensembl[gene].as_ref(),
            GeneKey::Auto | GeneKey::Symbol => Some(&table.symbols[gene]),
        };
        if let Some(name) = name.filter(|name| !tokens.contains_key(*name)) {
            tokens.insert(name.clone(), tokens.len());
            known.insert(name.clone(), median);
        }
    }
    let path = &config.data.corpus;
    Ok(GeneDictionaries::new(tokens, known, IndexMap::new(), path)?)
}

/// What the files of a backbone say.
#[derive(Debug)]
struct OpenedGeneformer {
    files: Files,
    shape: Shape,
    dictionary: RankDictionary,
}

impl OpenedGeneformer {
    /// Refuses settings that these files do not allow.
    fn require_fit(&self, config: &Config) -> Result<()> {
        let positions = self.files.config.max_position_embeddings;
        if config.data.max_len > positions {
            return Err(Failure::config(format!(
                "`data.max_len` is {}, the backbone has {positions} positions\n\
                 help: set `data.max_len = {positions}` or less",
                config.data.max_len
            )));
        }
        let first = config.backbone.cell_style == CellStyle::Cls;
        if first && self.dictionary.special().is_none() {
            return Err(Failure::config(
                "`backbone.cell_style` is `cls`, and the dictionary of the first generation has no `<cls>`\n\
                 help: set `backbone.cell_style = \"average-pool\"`",
            ));
        }
        Ok(())
    }
}

impl Opened for OpenedGeneformer {
    fn args(&self) -> Value {
        serde_json::to_value(&self.files.config).unwrap_or_default()
    }

    fn record(&self, dir: &Path) -> Result<()> {
        let config = serde_json::to_string_pretty(&self.files.config).unwrap_or_default();
        fsx::write_atomic(&dir.join(CONFIG), config.as_bytes())?;
        Ok(self.files.genes.write(dir)?)
    }

    fn tokenizer(&self, config: &Config, corpus: &Corpus) -> Result<(Arc<dyn Tokenizer>, Overlap)> {
        self.require_fit(config)?;
        let tokenizer = RankTokenizer::new(
            &self.dictionary,
            corpus.genes(),
            feed::gene_key(config.data.gene_key),
            corpus.value_kind(),
            config.data.max_len,
        )?;
        let overlap = tokenizer.overlap().clone();
        Ok((Arc::new(tokenizer), overlap))
    }

    /// No value is masked: there are none.
    fn mask_value(&self) -> f32 {
        f32::NAN
    }

    fn architecture(
        &self,
        config: &Config,
        heads: Heads,
        _batches: usize,
    ) -> Box<dyn Architecture> {
        let files = &self.files.config;
        let special = self.dictionary.special();
        Box::new(Blueprint {
            shape: self.shape,
            positions: files.max_position_embeddings as i64,
            token_types: files.type_vocab_size as i64,
            activation: if files.hidden_act == "gelu" {
                Activation::Gelu
            } else {
                Activation::Relu
            },
            norm_eps: files.layer_norm_eps,
            special: special.map_or_else(Vec::new, |(cls, eos)| vec![cls.into(), eos.into()]),
            cell: CellEmbedding {
                style: match config.backbone.cell_style {
                    CellStyle::Cls => geneformer::CellStyle::First,
                    _ => geneformer::CellStyle::Mean,
                },
                second_to_last: config.backbone.cell_layer == CellLayer::SecondToLast,
            },
            head: match heads.classifier {
                Some(classifier) => Head::Sequence {
                    classes: classifier.classes,
                },
                None => Head::MaskedTokens,
            },
            freeze: match config.backbone.freeze_rule {
                scpeft_config::FreezeRule::Tutorial => FreezeRule::Tutorial,
                scpeft_config::FreezeRule::Scripts => FreezeRule::Scripts,
            },
            adapters: settings::adapters(config),
        })
    }
}
