//! scGPT: `args.json`, `vocab.json` and weights, or random weights of a configured shape.

use std::path::Path;
use std::sync::Arc;

use scpeft_checkpoint::published::scgpt::{ScgptArgs, Vocabulary};
use scpeft_checkpoint::{ScgptDirectory, fsx};
use scpeft_config::Config;
use scpeft_data::{Corpus, GeneMap, Overlap, ScgptOptions, ScgptTokenizer, Tokenizer, Vocab};
use scpeft_model::adapter::Names;
use scpeft_model::backbone::scgpt::{Blueprint, NAMES, ValueStyle};
use scpeft_model::backbone::{Architecture, Heads, Shape};
use serde_json::{Map, Value};

use super::{Backbone, Family, IN_RUN_DIR, Opened, Weights};
use crate::failure::{Failure, Result};
use crate::settings;

/// The family of scGPT.
pub(super) struct Scgpt;

impl Family for Scgpt {
    fn names(&self) -> Names {
        NAMES
    }

    fn for_training(&self, config: &Config, corpus: &Corpus) -> Result<Backbone> {
        if let Some(path) = &config.backbone.path {
            let (backbone, args, _) = published(path)?;
            require_style(config, &args, path)?;
            return Ok(backbone);
        }
        let vocabulary = match &config.backbone.vocab {
            scpeft_config::Vocab::Corpus => {
                let vocab =
                    Vocab::from_genes(corpus.genes(), crate::feed::gene_key(config.data.gene_key));
                Vocabulary::new(vocab.tokens().to_vec(), &config.data.corpus)?
            }
            scpeft_config::Vocab::Path(path) => Vocabulary::read(path)?,
        };
        let fingerprint = format!("random-{}", config.run.seed);
        assemble(
            "random".into(),
            fingerprint,
            random_args(config),
            vocabulary,
            None,
        )
    }

    fn of_run(&self, config: &Config, run_dir: &Path) -> Result<Backbone> {
        let dir = run_dir.join(IN_RUN_DIR);
        let args = ScgptArgs::read(&dir.join("args.json"))?;
        let vocabulary = Vocabulary::read(&dir.join("vocab.json"))?;
        let Some(path) = super::weights_of_run(config) else {
            return assemble("run".into(), String::new(), args, vocabulary, None);
        };
        let (backbone, now, tokens) = published(path)?;
        let different = |what: &str| {
            Failure::weights(format!(
                "`{}`: its {what} is not the one the run was trained with\n\
                 help: put back the backbone of the run, or name it with `--set backbone.path=DIR`",
                path.display()
            ))
        };
        if now != args {
            return Err(different("args.json"));
        }
        if tokens != vocabulary {
            return Err(different("vocabulary"));
        }
        Ok(backbone)
    }
}

fn published(path: &Path) -> Result<(Backbone, ScgptArgs, Vocabulary)> {
    let directory = ScgptDirectory::open(path)?;
    let (args, vocabulary) = (directory.args().clone(), directory.vocabulary().clone());
    let backbone = assemble(
        path.display().to_string(),
        directory.fingerprint(),
        args.clone(),
        vocabulary.clone(),
        Some(Box::new(directory)),
    )?;
    Ok((backbone, args, vocabulary))
}

fn assemble(
    origin: String,
    fingerprint: String,
    args: ScgptArgs,
    vocabulary: Vocabulary,
    weights: Option<Box<dyn Weights>>,
) -> Result<Backbone> {
    let vocab = Vocab::from_tokens(vocabulary.tokens().to_vec());
    let shape = Shape {
        vocab: vocab.len() as i64,
        d_model: args.embsize as i64,
        n_heads: args.nheads as i64,
        d_hid: args.d_hid as i64,
        n_layers: args.nlayers,
        pad_id: i64::from(vocab.pad_id()),
    };
    Ok(Backbone {
        origin,
        fingerprint,
        shape,
        classifier_layers: args.n_layers_cls,
        weights,
        opened: Box::new(OpenedScgpt {
            values: value_style(&args)?,
            shape,
            vocab,
            args,
            vocabulary,
        }),
    })
}

/// What `args.json` and `vocab.json` say.
#[derive(Debug)]
struct OpenedScgpt {
    vocab: Vocab,
    shape: Shape,
    values: ValueStyle,
    args: ScgptArgs,
    vocabulary: Vocabulary,
}

/// What the backbone fixes about its input.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TokenConventions {
    /// Number of expression bins.
    n_bins: usize,
    /// How values are read.
    value_style: scpeft_data::ValueStyle,
    /// Value of padding.
    pad_value: f32,
    /// Value of masked positions.
    mask_value: f32,
}

impl OpenedScgpt {
    fn conventions(&self) -> TokenConventions {
        let n_bins = self.args.n_bins;
        match self.values {
            ValueStyle::Category { .. } => {
                let style = scpeft_data::ValueStyle::Category;
                TokenConventions {
                    n_bins,
                    value_style: style,
                    pad_value: style.pad_value(n_bins),
                    mask_value: style.mask_value(n_bins),
                }
            }
            ValueStyle::Continuous | ValueStyle::Scaling => TokenConventions {
                n_bins,
                value_style: scpeft_data::ValueStyle::Continuous,
                pad_value: self.args.pad_value as f32,
                mask_value: self.args.mask_value as f32,
            },
        }
    }
}

impl Opened for OpenedScgpt {
    fn args(&self) -> Value {
        serde_json::to_value(&self.args).unwrap_or_default()
    }

    fn record(&self, dir: &Path) -> Result<()> {
        let args = serde_json::to_string_pretty(&self.args).unwrap_or_default();
        fsx::write_atomic(&dir.join("args.json"), args.as_bytes())?;
        fsx::write_atomic(
            &dir.join("vocab.json"),
            self.vocabulary.to_json().as_bytes(),
        )?;
        Ok(())
    }

    fn tokenizer(&self, config: &Config, corpus: &Corpus) -> Result<(Arc<dyn Tokenizer>, Overlap)> {
        let genes = self.gene_map(config, corpus)?;
        let overlap = genes.overlap().clone();
        let conventions = self.conventions();
        let defaults = ScgptOptions::for_values(corpus.value_kind());
        let options = ScgptOptions {
            n_bins: conventions.n_bins,
            value_style: conventions.value_style,
            pad_value: conventions.pad_value,
            mask_value: conventions.mask_value,
            max_len: config.data.max_len,
            include_zero_genes: config.data.include_zero_genes,
            mask_ratio: config.data.mask_ratio,
            normalize_total: config
                .data
                .normalize_total
                .map(|x| x as f32)
                .or(defaults.normalize_total),
            log1p: config.data.log1p.unwrap_or(defaults.log1p),
            seed: config.run.seed,
            ..defaults
        };
        let tokenizer = ScgptTokenizer::new(&self.vocab, genes, corpus.value_kind(), options)?;
        Ok((Arc::new(tokenizer), overlap))
    }

    fn gene_map(&self, config: &Config, corpus: &Corpus) -> Result<GeneMap> {
        let key = crate::feed::gene_key(config.data.gene_key);
        Ok(self.vocab.match_genes(corpus.genes(), key)?)
    }

    fn mask_value(&self) -> f32 {
        self.conventions().mask_value
    }

    fn architecture(&self, config: &Config, heads: Heads, batches: usize) -> Box<dyn Architecture> {
        Box::new(Blueprint {
            shape: self.shape,
            inputs: settings::inputs(config, self.values, batches),
            heads,
            adapters: settings::adapters(config),
        })
    }
}

/// The key of `args.json` that says what a value becomes.
const VALUE_STYLE: &str = "input_emb_style";

fn value_style(args: &ScgptArgs) -> Result<ValueStyle> {
    let n_bins = args.n_bins as i64;
    match args.others.get(VALUE_STYLE).map(Value::as_str) {
        None | Some(Some("continuous")) => Ok(ValueStyle::Continuous),
        Some(Some("scaling")) => Ok(ValueStyle::Scaling),
        Some(Some("category")) => Ok(ValueStyle::Category {
            n_input_bins: n_bins + 2,
            pad_value: n_bins,
        }),
        Some(other) => Err(Failure::weights(format!(
            "args.json: `{VALUE_STYLE}` is {other:?}, expected `continuous`, `category` or `scaling`"
        ))),
    }
}

/// The keys of `args.json` that say what else the encoder computes.
const CELL_STYLE: &str = "cell_emb_style";
const NORM: &str = "embedding_norm";

/// A backbone that was pretrained in one style computes something else in another.
fn require_style(config: &Config, args: &ScgptArgs, path: &Path) -> Result<()> {
    let backbone = &config.backbone;
    for (key, setting, now) in [
        (
            CELL_STYLE,
            "backbone.cell_style",
            backbone.cell_style.as_str(),
        ),
        (NORM, "backbone.norm", backbone.norm.as_str()),
    ] {
        let then = args.others.get(key).and_then(Value::as_str);
        if let Some(then) = then.filter(|then| *then != now) {
            return Err(Failure::config(format!(
                "`{setting}` is `{now}`, the backbone `{}` was trained with `{then}`\n\
                 help: set `{setting} = \"{then}\"`",
                path.display()
            )));
        }
    }
    Ok(())
}

/// `args.json` of a backbone that starts random.
fn random_args(config: &Config) -> ScgptArgs {
    let shape = &config.backbone.shape;
    let mut others = Map::new();
    others.insert("max_seq_len".into(), Value::from(config.data.max_len));
    others.insert(VALUE_STYLE.into(), shape.value_style.as_str().into());
    let backbone = &config.backbone;
    others.insert(CELL_STYLE.into(), backbone.cell_style.as_str().into());
    others.insert(NORM.into(), backbone.norm.as_str().into());
    ScgptArgs {
        embsize: shape.d_model,
        nheads: shape.n_heads,
        d_hid: shape.d_hid,
        nlayers: shape.n_layers,
        n_layers_cls: shape.n_layers_cls,
        n_bins: shape.n_bins,
        pad_token: scpeft_data::vocab::PAD.to_owned(),
        pad_value: -2.0,
        mask_value: -1.0,
        dropout: config.backbone.dropout,
        others,
    }
}
