//! `scpeft-train molecules`: embeddings of drugs by a RoBERTa over SMILES, such as ChemBERTa.

use std::collections::HashMap;
use std::path::Path;

use scpeft_checkpoint::RobertaDirectory;
use scpeft_data::molecules::{self, Drug, DrugColumns, Drugs};
use scpeft_model::backbone::geneformer::{
    Activation, Blueprint, CellEmbedding, CellStyle, FreezeRule, Geneformer, Head,
};
use scpeft_model::backbone::{Inputs, Model, Shape};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::{Layout, Params, TensorSpec};
use tch::{Kind, Tensor};
use tokenizers::Tokenizer;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;

use crate::args::{MoleculesArgs, Pooling};
use crate::backbone::to_tensor;
use crate::failure::{Failure, Result};

/// Special tokens, unless the files name others.
const CLS: &str = "<s>";
const SEP: &str = "</s>";

/// Embeds a table of drugs; returns lines for the user.
///
/// # Errors
/// A table or an encoder that cannot be read, molecules that it cannot take, all of them, or an output
/// that exists.
pub fn embed(args: &MoleculesArgs) -> Result<String> {
    let columns = DrugColumns {
        name: args.name.clone(),
        smiles: args.smiles.clone(),
        inchikey: args.inchikey.clone(),
        no_header: args.no_header,
    };
    let drugs = Drugs::read(&args.table, &columns)?;
    let encoder = Encoder::open(&args.encoder, args.pooling)?;
    let mut tokens = Vec::new();
    let mut refused = Vec::new();
    for drug in drugs.iter() {
        match encoder.tokens(&drug.structure.smiles) {
            Ok(ids) => tokens.push((drug, ids)),
            Err(problem) => refused.push(format!("{}: {problem}", drug.name)),
        }
    }
    if !refused.is_empty() {
        return Err(Failure::data(format!(
            "`{}` cannot take {} molecules of `{}`:\n  {}\nhelp: take them out of the table, or use another encoder; a molecule is never replaced by zeros",
            args.encoder.display(),
            refused.len(),
            args.table.display(),
            refused.join("\n  ")
        )));
    }
    // Molecules of one length together, so that little is padded.
    tokens.sort_by_key(|(_, ids)| ids.len());
    let mut rows: Vec<(&Drug, Vec<f32>)> = Vec::with_capacity(tokens.len());
    for batch in tokens.chunks(args.batch) {
        let ids: Vec<&[i64]> = batch.iter().map(|(_, ids)| ids.as_slice()).collect();
        let embedded = encoder.embed(&ids)?;
        rows.extend(batch.iter().map(|(drug, _)| *drug).zip(embedded));
    }
    rows.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let made_by = format!(
        "{} pooling of the RoBERTa with weights {}",
        args.pooling.name(),
        encoder.fingerprint
    );
    molecules::write(&args.output, &rows, &made_by, args.overwrite)?;
    Ok(format!(
        "{} molecules, {} numbers each, in `{}`",
        rows.len(),
        encoder.width,
        args.output.display()
    ))
}

/// A RoBERTa with its tokeniser.
#[derive(Debug)]
pub struct Encoder {
    model: Geneformer,
    tokenizer: Tokenizer,
    longest: usize,
    pad_id: i64,
    width: usize,
    fingerprint: String,
}

impl Encoder {
    /// Opens `config.json`, weights and tokeniser of a directory; runs on the CPU.
    ///
    /// # Errors
    /// A file that is missing or malformed, or files that do not belong together.
    pub fn open(dir: &Path, pooling: Pooling) -> Result<Self> {
        let files = RobertaDirectory::open(dir)?;
        let config = files.config();
        let tokenizer = tokenizer(dir)?;
        let tokens = tokenizer.get_vocab_size(true);
        if tokens > config.vocab_size {
            return Err(Failure::weights(format!(
                "`{}`: the tokeniser has {tokens} tokens, the encoder {}\nhelp: the files of an encoder belong together",
                dir.display(),
                config.vocab_size
            )));
        }
        let blueprint = Blueprint {
            shape: Shape {
                vocab: config.vocab_size as i64,
                d_model: config.hidden_size as i64,
                n_heads: config.num_attention_heads as i64,
                d_hid: config.intermediate_size as i64,
                n_layers: config.num_hidden_layers,
                pad_id: config.pad_token_id as i64,
            },
            positions: config.max_position_embeddings as i64,
            token_types: config.type_vocab_size as i64,
            activation: match config.hidden_act.as_str() {
                "relu" => Activation::Relu,
                _ => Activation::Gelu,
            },
            norm_eps: config.layer_norm_eps,
            special: Vec::new(),
            cell: CellEmbedding {
                style: match pooling {
                    Pooling::Mean => CellStyle::Mean,
                    Pooling::Cls => CellStyle::First,
                },
                second_to_last: false,
            },
            head: Head::None,
            freeze: FreezeRule::Tutorial,
            adapters: Vec::new(),
        };
        let specs = blueprint.specs()?;
        let mut weights: HashMap<&str, Tensor> = HashMap::new();
        for spec in &specs {
            if let Some(tensor) = files.get(&spec.name) {
                weights.insert(&spec.name, to_tensor(tensor)?);
            }
        }
        let weights = |spec: &TensorSpec| Ok(weights.remove(spec.name.as_str()));
        let params = Params::build(&specs, weights, |_| false, Layout::cpu(0))?;
        Ok(Self {
            model: Geneformer::bind(&blueprint, &params, ExecutorKind::Plain)?,
            tokenizer,
            longest: config.max_position_embeddings,
            pad_id: config.pad_token_id as i64,
            width: config.hidden_size,
            fingerprint: files.fingerprint(),
        })
    }

    /// The tokens of a SMILES, with the special ones at both ends.
    ///
    /// # Errors
    /// What is wrong with it, in words: characters that the vocabulary lacks, or too many tokens.
    pub fn tokens(&self, smiles: &str) -> std::result::Result<Vec<i64>, String> {
        let encoded = self.tokenizer.encode(smiles, true);
        let encoded = encoded.map_err(|e| e.to_string())?;
        let ids = encoded.get_ids();
        // What the vocabulary lacks is dropped or becomes a special token: it does not come back.
        let again = self.tokenizer.decode(ids, true);
        if again.map_err(|e| e.to_string())? != smiles {
            return Err(format!(
                "`{smiles}` has characters that the vocabulary lacks"
            ));
        }
        if ids.len() > self.longest {
            return Err(format!(
                "`{smiles}` has {} tokens, the encoder has {} positions",
                ids.len(),
                self.longest
            ));
        }
        Ok(ids.iter().map(|&id| i64::from(id)).collect())
    }

    /// States of the last block of one molecule: `[S, D]`, f32.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn states(&self, ids: &[i64]) -> Result<Tensor> {
        let inputs = self.inputs(&[ids])?;
        let encoded = tch::no_grad(|| self.model.encode(&inputs, Pass::EVALUATION))?;
        Ok(encoded.hidden.f_select(0, 0)?)
    }

    /// The pooled states of some molecules, in order.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn embed(&self, molecules: &[&[i64]]) -> Result<Vec<Vec<f32>>> {
        let inputs = self.inputs(molecules)?;
        let encoded = tch::no_grad(|| self.model.encode(&inputs, Pass::EVALUATION))?;
        let mut rows = vec![0f32; molecules.len() * self.width];
        let count = rows.len();
        encoded.cell.f_contiguous()?.f_copy_data(&mut rows, count)?;
        Ok(rows.chunks_exact(self.width).map(<[f32]>::to_vec).collect())
    }

    fn inputs(&self, molecules: &[&[i64]]) -> Result<Inputs> {
        let longest = molecules.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let (mut ids, mut padded) = (Vec::new(), Vec::new());
        for own in molecules {
            let missing = longest - own.len();
            ids.extend_from_slice(own);
            ids.extend(std::iter::repeat_n(self.pad_id, missing));
            padded.extend(std::iter::repeat_n(false, own.len()));
            padded.extend(std::iter::repeat_n(true, missing));
        }
        let shape = [molecules.len() as i64, longest as i64];
        let ids = Tensor::f_from_slice(&ids)?.f_reshape(shape)?; // [B, S]
        let values = Tensor::f_zeros(shape, (Kind::Float, tch::Device::Cpu))?;
        let padding = Tensor::f_from_slice(&padded)?.f_reshape(shape)?;
        Ok(Inputs::new(ids, values, Some(padding)))
    }
}

/// `tokenizer.json`, or byte-level pairs out of `vocab.json` and `merges.txt`.
fn tokenizer(dir: &Path) -> Result<Tokenizer> {
    let bad = |file: &Path, problem: &dyn std::fmt::Display| {
        Failure::weights(format!("`{}`: {problem}", file.display()))
    };
    let path = dir.join("tokenizer.json");
    let mut tokenizer = if path.is_file() {
        Tokenizer::from_file(&path).map_err(|e| bad(&path, &e))?
    } else {
        let [vocab, merges] = ["vocab.json", "merges.txt"].map(|name| dir.join(name));
        for file in [&vocab, &merges] {
            if !file.is_file() {
                return Err(Failure::weights(format!(
                    "`{}` has no {}\nhelp: a tokeniser is tokenizer.json, or vocab.json with merges.txt",
                    dir.display(),
                    file.file_name().unwrap_or_default().display()
                )));
            }
        }
        let pairs = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build();
        let mut tokenizer = Tokenizer::new(pairs.map_err(|e| bad(&vocab, &e))?);
        let special = special_tokens(dir)?;
        let [sep, cls] = [(1, SEP), (0, CLS)].map(|(at, default)| {
            let name = special[at].clone().unwrap_or_else(|| default.to_owned());
            let id = tokenizer.token_to_id(&name);
            id.map(|id| (name.clone(), id))
                .ok_or_else(|| bad(&vocab, &format!("has no token `{name}`")))
        });
        let (sep, cls) = (sep?, cls?);
        let ends = [&sep.0, &cls.0].map(|name| tokenizers::AddedToken::from(name.clone(), true));
        tokenizer.add_special_tokens(&ends);
        tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        tokenizer.with_post_processor(Some(
            RobertaProcessing::new(sep, cls).add_prefix_space(false),
        ));
        tokenizer
    };
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.with_padding(None);
    // Nothing is cut off: what is too long is refused.
    tokenizer.with_truncation(None).map_err(|e| bad(dir, &e))?;
    Ok(tokenizer)
}

/// The first and the last token of a sequence, where `special_tokens_map.json` names them.
fn special_tokens(dir: &Path) -> Result<[Option<String>; 2]> {
    let path = dir.join("special_tokens_map.json");
    if !path.is_file() {
        return Ok([None, None]);
    }
    let bytes = scpeft_checkpoint::fsx::read(&path)?;
    let map: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|e| Failure::weights(format!("`{}`: {e}", path.display())))?;
    let name = |key: &str| {
        let value = &map[key];
        let text = value.as_str().or_else(|| value["content"].as_str());
        text.map(str::to_owned)
    };
    Ok([name("cls_token"), name("sep_token")])
}
