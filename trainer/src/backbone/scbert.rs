//! scBERT: `scbert.json`, the genes of its panel and weights, or random weights of a configured shape
//! on a panel made from the corpus.

use std::path::Path;
use std::sync::Arc;

use scpeft_checkpoint::published::scbert::{self as files, CONFIG, GENES, ScbertConfig};
use scpeft_checkpoint::{ScbertDirectory, fingerprint};
use scpeft_config::{AdapterKind, Config, GeneKey};
use scpeft_data::{BinScale, Corpus, Overlap, PanelTokenizer, Tokenizer};
use scpeft_model::adapter::Names;
use scpeft_model::backbone::performer::{KeyMax, PerformerShape};
use scpeft_model::backbone::scbert::{Blueprint, FreezeRule, Head, NAMES};
use scpeft_model::backbone::{Architecture, Heads, Shape};
use serde_json::{Value, json};

use super::{Backbone, Family, IN_RUN_DIR, Opened, Weights};
use crate::failure::{Failure, Result};
use crate::feed;
use crate::settings;

/// Tokens of a backbone that starts random: bins 0 to 5, and the one of masks and padding.
const TOKENS: usize = 7;
/// Widths of the hidden layers of the published classifier.
const HIDDEN: [i64; 2] = [512, 128];

/// The family of scBERT.
pub(super) struct Scbert;

impl Family for Scbert {
    fn names(&self) -> Names {
        NAMES
    }

    fn for_training(&self, config: &Config, corpus: &Corpus) -> Result<Backbone> {
        if let Some(path) = &config.backbone.path {
            return published(path).map(|(backbone, _)| backbone);
        }
        let genes = match &config.backbone.vocab {
            scpeft_config::Vocab::Corpus => panel_of(config, corpus)?,
            scpeft_config::Vocab::Path(path) => files::read_genes(path)?,
        };
        let files = Files {
            config: random_config(config, genes.len() + 1),
            genes,
        };
        let fingerprint = format!("random-{}", config.run.seed);
        Ok(assemble("random".into(), fingerprint, files, None))
    }

    fn of_run(&self, config: &Config, run_dir: &Path) -> Result<Backbone> {
        let dir = run_dir.join(IN_RUN_DIR);
        let recorded = Files {
            config: ScbertConfig::read(&dir.join(CONFIG))?,
            genes: files::read_genes(&dir.join(GENES))?,
        };
        // Vectors of genes and directions never train: they are in no checkpoint of a run.
        let Some(path) = config.backbone.path.as_deref() else {
            return Ok(assemble("run".into(), String::new(), recorded, None));
        };
        let (backbone, now) = published(path)?;
        let different = |what: &str| {
            Failure::weights(format!(
                "`{}`: its {what} is not the one the run was trained with\n\
                 help: put back the backbone of the run, or name it with `--set backbone.path=DIR`",
                path.display()
            ))
        };
        if now.config != recorded.config {
            return Err(different(CONFIG));
        }
        if now.genes != recorded.genes {
            return Err(different("panel of genes"));
        }
        Ok(backbone)
    }
}

/// What is known of a backbone beside its weights.
#[derive(Debug, Clone, PartialEq)]
struct Files {
    config: ScbertConfig,
    genes: Vec<String>,
}

fn published(path: &Path) -> Result<(Backbone, Files)> {
    let directory = ScbertDirectory::open(path)?;
    let files = Files {
        config: directory.config().clone(),
        genes: directory.genes().to_vec(),
    };
    let backbone = assemble(
        path.display().to_string(),
        fingerprint(directory.weights().tensors()),
        files.clone(),
        Some(Box::new(directory)),
    );
    Ok((backbone, files))
}

fn assemble(
    origin: String,
    fingerprint: String,
    files: Files,
    weights: Option<Box<dyn Weights>>,
) -> Backbone {
    let config = &files.config;
    let shape = Shape {
        vocab: config.tokens as i64,
        d_model: config.d_model as i64,
        n_heads: config.n_heads as i64,
        d_hid: config.d_hid as i64,
        n_layers: config.n_layers,
        pad_id: config.tokens as i64 - 1,
    };
    Backbone {
        origin,
        fingerprint,
        shape,
        classifier_layers: 3,
        weights,
        opened: Box::new(OpenedScbert { files, shape }),
    }
}

/// `scbert.json` of a backbone that starts random.
fn random_config(config: &Config, positions: usize) -> ScbertConfig {
    let shape = &config.backbone.shape;
    let features = shape
        .n_features
        .unwrap_or_else(|| PerformerShape::default_features(shape.d_head as i64) as usize);
    ScbertConfig {
        tokens: TOKENS,
        d_model: shape.d_model,
        n_heads: shape.n_heads,
        d_head: shape.d_head,
        d_hid: shape.d_hid,
        n_layers: shape.n_layers,
        n_features: features,
        positions,
    }
}

/// The genes of a corpus, each name once.
fn panel_of(config: &Config, corpus: &Corpus) -> Result<Vec<String>> {
    let table = corpus.genes();
    let ensembl = config.data.gene_key == GeneKey::Ensembl;
    let names = (0..table.len()).filter_map(|gene| {
        if ensembl {
            table.ensembl[gene].clone()
        } else {
            Some(table.symbols[gene].clone())
        }
    });
    let panel: indexmap::IndexSet<String> = names.collect();
    if panel.is_empty() {
        return Err(Failure::data(
            "no gene of the corpus has an Ensembl id\nhelp: set `data.gene_key = \"symbol\"`",
        ));
    }
    Ok(panel.into_iter().collect())
}

/// What the files of a backbone say.
#[derive(Debug)]
struct OpenedScbert {
    files: Files,
    shape: Shape,
}

impl Opened for OpenedScbert {
    fn args(&self) -> Value {
        let Files { config, genes } = &self.files;
        json!({ "sizes": config, "genes": genes.join(" ") })
    }

    fn record(&self, dir: &Path) -> Result<()> {
        self.files.config.write(dir)?;
        Ok(files::write_genes(dir, &self.files.genes)?)
    }

    fn tokenizer(&self, config: &Config, corpus: &Corpus) -> Result<(Arc<dyn Tokenizer>, Overlap)> {
        let tokenizer = PanelTokenizer::new(
            &self.files.genes,
            self.files.config.tokens,
            corpus.genes(),
            feed::gene_key(config.data.gene_key),
            corpus.value_kind(),
            match config.data.bin_scale {
                scpeft_config::BinScale::Log2 => BinScale::Log2,
                scpeft_config::BinScale::Scaled => BinScale::Scaled,
                scpeft_config::BinScale::AsTheyAre => BinScale::AsTheyAre,
            },
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
        let lora = config.adapter.kind.attached().contains(&AdapterKind::Lora);
        Box::new(Blueprint {
            shape: self.shape,
            d_head: files.d_head as i64,
            features: files.n_features as i64,
            positions: files.positions as i64,
            key_max: match config.backbone.key_max {
                scpeft_config::KeyMax::Cell => KeyMax::Cell,
                scpeft_config::KeyMax::Batch => KeyMax::Batch,
            },
            redrawn: config.backbone.redraw_steps > 0,
            qkv_bias: lora && config.adapter.train_qkv_bias,
            head: match heads.classifier {
                Some(classifier) => Head::Cell {
                    classes: classifier.classes,
                    hidden: HIDDEN,
                },
                None => Head::MaskedTokens,
            },
            freeze: match config.backbone.freeze_rule {
                scpeft_config::FreezeRule::Tutorial => FreezeRule::Adapters,
                scpeft_config::FreezeRule::Scripts => FreezeRule::Published,
            },
            adapters: settings::adapters(config),
        })
    }
}
