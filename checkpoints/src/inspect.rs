//! `inspect` and `verify`: what a path is and what it holds.

use std::fmt;
use std::path::{Path, PathBuf};

use scpeft_checkpoint::published::geneformer::{
    self, GeneDictionaries, GeneformerConfig, GeneformerWeights,
};
use scpeft_checkpoint::published::scbert::{self, ScbertConfig, ScbertWeights};
use scpeft_checkpoint::published::scfoundation;
use scpeft_checkpoint::published::scpeft::{self, Assumptions, Survey};
use scpeft_checkpoint::run::{Manifest, read_manifest, verify_checkpoint};
use scpeft_checkpoint::{
    CheckpointStore, Dtype, Error, GeneformerDirectory, ScbertDirectory, ScfoundationDirectory,
    ScgptDirectory, TensorFile, fingerprint, peft, read_adapter,
};
use serde_json::{Value, json};

/// What a path can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A run directory.
    Run,
    /// A checkpoint of a run.
    Checkpoint,
    /// An adapter directory.
    Adapter,
    /// An scGPT backbone directory.
    Backbone,
    /// A Geneformer backbone directory, published or converted.
    Geneformer,
    /// An scFoundation backbone directory, converted.
    Scfoundation,
    /// An scBERT backbone directory, converted or with the published file.
    Scbert,
    /// A tensor file.
    File,
}

impl Kind {
    /// Decides by the files that are there.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        if path.is_file() {
            return Ok(Self::File);
        }
        let has = |name: &str| path.join(name).exists();
        if has("checkpoints") {
            Ok(Self::Run)
        } else if has("manifest.json") || has("state.json") || has("adapter") {
            Ok(Self::Checkpoint)
        } else if has(peft::CONFIG_FILE) || has(peft::TENSOR_FILE) {
            Ok(Self::Adapter)
        } else if has(scfoundation::CONFIG) {
            Ok(Self::Scfoundation)
        } else if has(scbert::CONFIG) || has(scbert::PUBLISHED) {
            Ok(Self::Scbert)
        } else if has(geneformer::CONFIG) && !has("args.json") {
            Ok(Self::Geneformer)
        } else if [
            "args.json",
            "vocab.json",
            "model.safetensors",
            "best_model.pt",
        ]
        .into_iter()
        .any(has)
        {
            Ok(Self::Backbone)
        } else {
            Err(Error::MissingFile {
                dir: path.to_owned(),
                wanted: "file that tells what it is".to_owned(),
                help: "name a run, checkpoint, adapter or backbone directory, or a tensor file",
            })
        }
    }
}

/// A tensor of the table.
struct Row {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Row {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

/// What was found: facts first, then tensors.
pub(crate) struct Found {
    kind: &'static str,
    path: PathBuf,
    facts: Vec<(&'static str, Value)>,
    tensors: Vec<Row>,
}

impl Found {
    pub(crate) fn new(kind: &'static str, path: &Path) -> Self {
        Self {
            kind,
            path: path.to_owned(),
            facts: Vec::new(),
            tensors: Vec::new(),
        }
    }

    pub(crate) fn fact(&mut self, name: &'static str, value: impl Into<Value>) {
        self.facts.push((name, value.into()));
    }

    fn totals(&self) -> (usize, usize) {
        let elements = self.tensors.iter().map(Row::elements).sum();
        (elements, self.tensors.iter().map(Row::bytes).sum())
    }

    pub(crate) fn add_file(&mut self, prefix: &str, file: &TensorFile) {
        for name in file.names() {
            let (dtype, shape) = file.info(name).expect("the name comes from the file");
            let row = Row {
                name: format!("{prefix}{name}"),
                dtype,
                shape: shape.to_vec(),
            };
            self.tensors.push(row);
        }
    }

    /// The same as one JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let tensors: Vec<Value> = self
            .tensors
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "dtype": row.dtype.name(),
                    "shape": row.shape,
                    "bytes": row.bytes(),
                })
            })
            .collect();
        let (parameters, bytes) = self.totals();
        let mut object = serde_json::Map::new();
        object.insert("kind".to_owned(), self.kind.into());
        object.insert("path".to_owned(), self.path.display().to_string().into());
        for (name, value) in &self.facts {
            object.insert((*name).to_owned(), value.clone());
        }
        object.insert("tensors".to_owned(), tensors.into());
        object.insert("elements".to_owned(), parameters.into());
        object.insert("bytes".to_owned(), bytes.into());
        object.into()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.kind, self.path.display())?;
        for (name, value) in &self.facts {
            match value {
                Value::String(text) => writeln!(f, "  {name}: {text}")?,
                other => writeln!(f, "  {name}: {other}")?,
            }
        }
        let width = self
            .tensors
            .iter()
            .map(|row| row.name.chars().count())
            .max()
            .unwrap_or(0);
        for row in &self.tensors {
            writeln!(
                f,
                "  {:width$}  {:4}  {:?}",
                row.name,
                row.dtype.name(),
                row.shape
            )?;
        }
        let (elements, bytes) = self.totals();
        writeln!(
            f,
            "{} tensors, {elements} elements, {:.2} MB",
            self.tensors.len(),
            bytes as f64 / 1e6
        )
    }
}

/// Looks into a path of any kind.
pub(crate) fn inspect(path: &Path) -> Result<Found, Error> {
    match Kind::of(path)? {
        Kind::Run => inspect_run(path),
        Kind::Checkpoint => inspect_checkpoint(path),
        Kind::Adapter => inspect_adapter(path),
        Kind::Backbone => inspect_backbone(path),
        Kind::Geneformer => inspect_geneformer(path),
        Kind::Scfoundation => crate::scfoundation::inspect(path),
        Kind::Scbert => inspect_scbert(path),
        Kind::File => inspect_file(path),
    }
}

fn inspect_file(path: &Path) -> Result<Found, Error> {
    let file = TensorFile::open(path)?;
    if !scfoundation::models(&file).is_empty() {
        return crate::scfoundation::inspect_published(path, &file);
    }
    let fine_tuned = scpeft::is_fine_tuned(&file);
    let kind = if scbert::is_scbert(&file) {
        "scBERT weights"
    } else if fine_tuned {
        "scPEFT fine-tuned checkpoint"
    } else {
        "tensor file"
    };
    let mut found = Found::new(kind, path);
    found.fact("format", file.format().to_string());
    if fine_tuned {
        add_survey(&mut found, &Survey::of(&file)?)?;
    }
    if !file.others().is_empty() {
        found.fact("other_entries", file.others().to_vec());
    }
    if !file.metadata().is_empty() {
        found.fact("metadata", json!(file.metadata()));
    }
    found.fact("fingerprint", fingerprint(file.tensors()));
    found.add_file("", &file);
    Ok(found)
}

/// Variant, adapters and sizes of a fine-tuned checkpoint of the reference.
fn add_survey(found: &mut Found, survey: &Survey<'_>) -> Result<(), Error> {
    found.fact("variant", survey.variant().to_string());
    let mut adapters = Vec::new();
    for adapter in survey.adapters(&Assumptions::default())? {
        let mut json = json!(adapter);
        if let Some(object) = json.as_object_mut() {
            // The file does not say: `convert` takes them from its command line.
            for absent in ["lora_alpha", "skip_connect", "train_qkv_bias", "scale"] {
                object.remove(absent);
            }
        }
        adapters.push(json);
    }
    found.fact("adapters", adapters);
    let parameters = survey
        .sizes()
        .into_iter()
        .map(|(part, size)| (part, size.parameters.into()));
    found.fact(
        "parameters",
        parameters.collect::<serde_json::Map<_, Value>>(),
    );
    if !survey.duplicates().is_empty() {
        found.fact("second_names", survey.duplicates().to_vec());
    }
    if !survey.unknown().is_empty() {
        found.fact("unknown_names", survey.unknown().to_vec());
    }
    Ok(())
}

fn inspect_backbone(path: &Path) -> Result<Found, Error> {
    let backbone = ScgptDirectory::open(path)?;
    backbone.require_complete()?;
    let args = backbone.args();
    let mut found = Found::new("scGPT backbone", path);
    found.fact("weights", backbone.file().path().display().to_string());
    found.fact("format", backbone.file().format().to_string());
    found.fact("tokens", backbone.vocabulary().len());
    found.fact("d_model", args.embsize);
    found.fact("n_heads", args.nheads);
    found.fact("d_hid", args.d_hid);
    found.fact("n_layers", args.nlayers);
    found.fact("n_layers_cls", args.n_layers_cls);
    found.fact("n_bins", args.n_bins);
    found.fact("fingerprint", backbone.fingerprint());
    for (name, tensor) in backbone.tensors() {
        let row = Row {
            name: name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape,
        };
        found.tensors.push(row);
    }
    Ok(found)
}

fn inspect_geneformer(path: &Path) -> Result<Found, Error> {
    let config = GeneformerConfig::read(&path.join(geneformer::CONFIG))?;
    let weights = GeneformerWeights::open(path)?;
    weights.require_complete(&config)?;
    let mut found = Found::new("Geneformer backbone", path);
    found.fact("weights", weights.file().path().display().to_string());
    found.fact("format", weights.file().format().to_string());
    found.fact("tokens", config.vocab_size);
    found.fact("d_model", config.hidden_size);
    found.fact("n_heads", config.num_attention_heads);
    found.fact("d_hid", config.intermediate_size);
    found.fact("n_layers", config.num_hidden_layers);
    found.fact("positions", config.max_position_embeddings);
    found.fact("activation", config.hidden_act.clone());
    match GeneDictionaries::read(path) {
        Ok(genes) => {
            geneformer::check_vocabulary(path, &config, &weights, &genes)?;
            found.fact("genes_with_median", genes.medians().len());
            found.fact("other_names", genes.other_names().len());
            found.fact("special_tokens", genes.tokens().contains_key("<cls>"));
        }
        // As published: the dictionaries are elsewhere.
        Err(Error::MissingFile { help, .. }) => found.fact("dictionaries", format!("none: {help}")),
        Err(error) => return Err(error),
    }
    found.fact("fingerprint", fingerprint(weights.tensors()));
    for (name, tensor) in weights.tensors() {
        found.tensors.push(Row {
            name: name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape,
        });
    }
    Ok(found)
}

fn inspect_scbert(path: &Path) -> Result<Found, Error> {
    let mut found = Found::new("scBERT backbone", path);
    let weights = if path.join(scbert::CONFIG).exists() {
        let opened = ScbertDirectory::open(path)?;
        found.fact("genes", opened.genes().len());
        ScbertWeights::open(opened.weights().file().path())?
    } else {
        ScbertWeights::open(&path.join(scbert::PUBLISHED))?
    };
    add_scbert(&mut found, weights.config(), weights.file());
    found.fact("fingerprint", fingerprint(weights.tensors()));
    found.add_file("", weights.file());
    Ok(found)
}

fn add_scbert(found: &mut Found, config: &ScbertConfig, file: &TensorFile) {
    found.fact("weights", file.path().display().to_string());
    found.fact("format", file.format().to_string());
    found.fact("tokens", config.tokens);
    found.fact("d_model", config.d_model);
    found.fact("n_heads", config.n_heads);
    found.fact("d_head", config.d_head);
    found.fact("d_hid", config.d_hid);
    found.fact("n_layers", config.n_layers);
    found.fact("random_features", config.n_features);
    found.fact("positions", config.positions);
}

fn inspect_adapter(path: &Path) -> Result<Found, Error> {
    let (config, tensors) = read_adapter(path)?;
    let mut found = Found::new("adapter", path);
    let json = serde_json::to_value(&config).map_err(|e| Error::Damaged {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    found.fact("config", json);
    for (name, tensor) in tensors {
        found.tensors.push(Row {
            name,
            dtype: tensor.dtype,
            shape: tensor.shape,
        });
    }
    Ok(found)
}

fn inspect_checkpoint(path: &Path) -> Result<Found, Error> {
    let manifest = read_manifest(path)?;
    let mut found = Found::new("checkpoint", path);
    found.fact("step", manifest.step);
    found.fact("verified", verify_checkpoint(path).is_ok());
    let files = manifest
        .files
        .iter()
        .map(|(name, record)| (name.clone(), record.bytes.into()));
    found.fact("files", files.collect::<serde_json::Map<_, Value>>());
    for name in manifest
        .files
        .keys()
        .filter(|name| name.ends_with(".safetensors"))
    {
        found.add_file(&format!("{name}: "), &TensorFile::open(&path.join(name))?);
    }
    Ok(found)
}

fn inspect_run(path: &Path) -> Result<Found, Error> {
    let store = CheckpointStore::new(path);
    let mut found = Found::new("run", path);
    let best = store.best()?;
    let mut checkpoints = Vec::new();
    for listed in store.list()? {
        checkpoints.push(json!({
            "step": listed.step,
            "verified": verify_checkpoint(&listed.path).is_ok(),
            "best": best.as_ref() == Some(&listed.path),
        }));
    }
    found.fact("checkpoints", checkpoints);
    Ok(found)
}

/// Verifies a path of any kind and says in a line or more what was checked.
pub(crate) fn verify(path: &Path) -> Result<String, Error> {
    let shown = path.display();
    match Kind::of(path)? {
        Kind::Checkpoint => Ok(verified(path, &verify_checkpoint(path)?)),
        Kind::Run => {
            let store = CheckpointStore::new(path);
            store.best()?;
            let mut text = String::new();
            for listed in store.list()? {
                text += &verified(&listed.path, &verify_checkpoint(&listed.path)?);
            }
            if text.is_empty() {
                return Err(Error::MissingFile {
                    dir: path.to_owned(),
                    wanted: "checkpoint".to_owned(),
                    help: "the run has not saved one yet",
                });
            }
            Ok(text)
        }
        Kind::Adapter => {
            let (_, tensors) = read_adapter(path)?;
            Ok(format!("{shown}: ok, {} tensors\n", tensors.len()))
        }
        Kind::Backbone => {
            let backbone = ScgptDirectory::open(path)?;
            backbone.require_complete()?;
            backbone.file().verify()?;
            Ok(format!(
                "{shown}: ok, {} tensors\n",
                backbone.tensors().count()
            ))
        }
        Kind::Geneformer => {
            let backbone = GeneformerDirectory::open(path)?;
            backbone.require_complete()?;
            backbone.weights().file().verify()?;
            Ok(format!(
                "{shown}: ok, {} tensors\n",
                backbone.weights().tensors().count()
            ))
        }
        Kind::Scfoundation => {
            let backbone = ScfoundationDirectory::open(path)?;
            backbone.require_complete()?;
            backbone.file().verify()?;
            let tensors = backbone.file().names().count();
            Ok(format!("{shown}: ok, {tensors} tensors\n"))
        }
        Kind::Scbert => {
            let backbone = ScbertDirectory::open(path)?;
            backbone.weights().file().verify()?;
            let count = backbone.weights().tensors().count();
            Ok(format!("{shown}: ok, {count} tensors\n"))
        }
        Kind::File => {
            let file = TensorFile::open(path)?;
            file.verify()?;
            Ok(format!("{shown}: ok, {} tensors\n", file.names().count()))
        }
    }
}

fn verified(path: &Path, manifest: &Manifest) -> String {
    format!(
        "{}: ok, step {}, {} files\n",
        path.display(),
        manifest.step,
        manifest.files.len()
    )
}
