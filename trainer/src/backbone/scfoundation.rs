//! scFoundation: `scfoundation.json`, `genes.tsv` and weights, or random weights of a configured shape
//! on the genes of the corpus.

use std::path::Path;
use std::sync::Arc;

use scpeft_checkpoint::ScfoundationDirectory;
use scpeft_checkpoint::published::scfoundation::{
    CONFIG, GENES, GeneList, ScfoundationConfig, StackConfig, write_description,
};
use scpeft_config::{CellStyle, Config, TargetDepth};
use scpeft_data::{
    Corpus, Overlap, ScfoundationOptions, ScfoundationTokenizer, Tokenizer, ValueKind, Vocab,
};
use scpeft_model::adapter::Names;
use scpeft_model::backbone::scfoundation::{Blueprint, Head, NAMES, Pool, PoolStyle, Values};
use scpeft_model::backbone::{Architecture, Heads, Shape};
use serde_json::{Map, Value};

use super::{Backbone, Family, IN_RUN_DIR, Opened, Weights};
use crate::assembly::grouped;
use crate::failure::{Failure, Result};
use crate::feed;
use crate::settings;

/// What counts are scaled to before the logarithm, in the pretraining.
const TARGET_SUM: f32 = 1e4;
/// Dropout of the published classifier.
const HEAD_DROPOUT: f64 = 0.5;
/// Cells of a log-normalised corpus that are looked at, and the value that none of them reaches: ln(1 + x)
/// of a cell scaled to 10,000 stays below 9.3, to a million below 14.
const CELLS_CHECKED: usize = 64;
const LOGGED_MOST: f32 = 20.0;

/// The family of scFoundation.
pub(super) struct Scfoundation;

impl Family for Scfoundation {
    fn names(&self) -> Names {
        NAMES
    }

    fn for_training(&self, config: &Config, corpus: &Corpus) -> Result<Backbone> {
        if let Some(path) = &config.backbone.path {
            return published(path).map(|(backbone, _)| backbone);
        }
        let genes = match &config.backbone.vocab {
            scpeft_config::Vocab::Corpus => genes_of(config, corpus)?,
            scpeft_config::Vocab::Path(path) => GeneList::read(path)?,
        };
        let files = Files {
            config: random_config(config, genes.len()),
            genes,
        };
        let fingerprint = format!("random-{}", config.run.seed);
        Ok(assemble("random".into(), fingerprint, files, None))
    }

    fn of_run(&self, config: &Config, run_dir: &Path) -> Result<Backbone> {
        let dir = run_dir.join(IN_RUN_DIR);
        let files = Files {
            config: ScfoundationConfig::read(&dir.join(CONFIG))?,
            genes: GeneList::read(&dir.join(GENES))?,
        };
        let Some(path) = super::weights_of_run(config) else {
            return Ok(assemble("run".into(), String::new(), files, None));
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
            return Err(different("list of genes"));
        }
        Ok(backbone)
    }
}

/// What is known of a backbone beside its weights.
#[derive(Debug, Clone, PartialEq)]
struct Files {
    config: ScfoundationConfig,
    genes: GeneList,
}

fn published(path: &Path) -> Result<(Backbone, Files)> {
    let directory = ScfoundationDirectory::open(path)?;
    let files = Files {
        config: directory.config().clone(),
        genes: directory.genes().clone(),
    };
    let backbone = assemble(
        path.display().to_string(),
        directory.fingerprint(),
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
        // Behind genes and depths the row of padding.
        vocab: config.seq_len as i64 + 1,
        d_model: config.encoder.hidden_dim as i64,
        n_heads: config.encoder.heads as i64,
        d_hid: config.encoder.feed_forward() as i64,
        n_layers: config.encoder.depth,
        pad_id: config.seq_len as i64,
    };
    Backbone {
        origin,
        fingerprint,
        shape,
        classifier_layers: 3,
        weights,
        opened: Box::new(OpenedScfoundation { files, shape }),
    }
}

/// `scfoundation.json` of a backbone that starts random; it has no decoder.
fn random_config(config: &Config, genes: usize) -> ScfoundationConfig {
    let shape = &config.backbone.shape;
    let bins = shape.n_bins;
    ScfoundationConfig {
        model: "mae_autobin".into(),
        seq_len: genes + 2,
        bin_num: bins,
        bin_alpha: 1.0,
        // As the published models choose them: numbers that no value reaches, behind the bins.
        pad_token_id: bins.max(100) as f64 + 3.0,
        mask_token_id: bins.max(100) as f64 + 2.0,
        encoder: StackConfig {
            hidden_dim: shape.d_model,
            depth: shape.n_layers,
            heads: shape.n_heads,
            dim_head: None,
            ff_dim: Some(shape.d_hid),
            module_type: "transformer".into(),
            norm_first: false,
            others: Map::new(),
        },
        decoder: None,
        others: Map::new(),
    }
}

/// The genes of a corpus, each once.
fn genes_of(config: &Config, corpus: &Corpus) -> Result<GeneList> {
    let key = feed::gene_key(config.data.gene_key);
    let special = |name: &&String| !(name.starts_with('<') && name.ends_with('>'));
    let vocab = Vocab::from_genes(corpus.genes(), key);
    let names = vocab.tokens().iter().filter(special).cloned().collect();
    Ok(GeneList::new(names, &config.data.corpus)?)
}

/// What the files of a backbone say.
#[derive(Debug)]
struct OpenedScfoundation {
    files: Files,
    shape: Shape,
}

impl OpenedScfoundation {
    fn pool(config: &Config) -> Pool {
        let (style, padded) = match config.backbone.cell_style {
            CellStyle::AllPool => (PoolStyle::All, false),
            CellStyle::AllPoolPadded => (PoolStyle::All, true),
            CellStyle::MaxPoolPadded => (PoolStyle::Max, true),
            _ => (PoolStyle::Max, false),
        };
        Pool { style, padded }
    }
}

/// Refuses a corpus that is called log-normalised and holds something else.
fn require_logged(corpus: &Corpus) -> Result<()> {
    let rows = corpus.row_groups().first().map_or(0, |group| group.rows);
    let rows: Vec<u32> = (0..rows.min(CELLS_CHECKED as u32)).collect();
    let block = corpus.read_block(0, Some(&rows))?;
    for row in 0..block.rows() {
        let (_, values) = block.cell(row);
        let largest = values.iter().copied().fold(0.0, f32::max);
        if largest >= LOGGED_MOST {
            let id = corpus.cell_ids(&[row as u64])?.pop().unwrap_or_default();
            return Err(Failure::data(format!(
                "cell `{id}`: its largest value is {largest}, and the corpus is said to be log-normalised: \
                 ln(1 + x) of expression scaled to 10,000 stays below 9.3\n\
                 help: import the raw counts, `scpeft-data import --raw`, or log-normalise the matrix before"
            )));
        }
    }
    Ok(())
}

impl Opened for OpenedScfoundation {
    fn args(&self) -> Value {
        serde_json::to_value(&self.files.config).unwrap_or_default()
    }

    fn record(&self, dir: &Path) -> Result<()> {
        Ok(write_description(
            dir,
            &self.files.config,
            &self.files.genes,
        )?)
    }

    fn tokenizer(&self, config: &Config, corpus: &Corpus) -> Result<(Arc<dyn Tokenizer>, Overlap)> {
        let data = &config.data;
        let logged = corpus.value_kind() == ValueKind::Lognorm;
        if logged {
            require_logged(corpus)?;
        }
        let vocab = Vocab::from_tokens(self.files.genes.names().to_vec());
        let genes = vocab.match_genes(corpus.genes(), feed::gene_key(data.gene_key))?;
        let overlap = genes.overlap().clone();
        let options = ScfoundationOptions {
            genes: vocab.len() as i32,
            max_len: data.max_len,
            normalize_total: match data.normalize_total {
                Some(total) => Some(total as f32),
                None => (!logged).then_some(TARGET_SUM),
            },
            log1p: data.log1p.unwrap_or(!logged),
            target_depth: data.target_depth.map(|depth| match depth {
                TargetDepth::Fixed(depth) => scpeft_data::TargetDepth::Fixed(depth),
                TargetDepth::Fold(fold) => scpeft_data::TargetDepth::Fold(fold),
                TargetDepth::Added(more) => scpeft_data::TargetDepth::Added(more),
            }),
            pad_value: self.files.config.pad_token_id as f32,
            seed: config.run.seed,
        };
        let tokenizer = ScfoundationTokenizer::new(genes, options)?;
        Ok((Arc::new(tokenizer), overlap))
    }

    fn coverage(&self, overlap: &Overlap) -> Option<String> {
        let (matched, genes) = (overlap.matched, self.files.genes.len());
        Some(format!(
            "{} of {} genes of the model are in the corpus; the others count as not expressed",
            grouped(matched as u64),
            grouped(genes as u64)
        ))
    }

    fn mask_value(&self) -> f32 {
        self.files.config.mask_token_id as f32
    }

    fn architecture(
        &self,
        config: &Config,
        heads: Heads,
        _batches: usize,
    ) -> Box<dyn Architecture> {
        let files = &self.files.config;
        let pool = Self::pool(config);
        let backbone = &config.backbone;
        Box::new(Blueprint {
            shape: self.shape,
            values: Values {
                bins: files.bin_num as i64,
                bin_alpha: files.bin_alpha,
                pad_value: files.pad_token_id,
                mask_value: files.mask_token_id,
            },
            pool,
            // Where padding counts it counts as in the reference, whose padding stands at the place
            // that has its number.
            pad_position: if pool.padded {
                (files.pad_token_id as i64).min(self.shape.pad_id)
            } else {
                self.shape.pad_id
            },
            head: heads.classifier.map(|classifier| Head {
                classes: classifier.classes,
                dropout: backbone.head_dropout.unwrap_or(HEAD_DROPOUT),
            }),
            // No task needs it yet: its tensors stay in their file.
            decoder: None,
            adapters: settings::adapters(config),
        })
    }
}
