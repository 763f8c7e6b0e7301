//! A LoRA run in Hugging Face PEFT: every tensor finds its place, and PEFT predicts what we predict.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use safetensors::tensor::{Dtype, TensorView};
use scpeft_checkpoint::published::geneformer::GeneDictionaries;
use scpeft_data::{
    Corpus, GeneKey, Loader, LoaderOptions, MicroBatch, RankDictionary, RankTokenizer,
    ScgptOptions, ScgptTokenizer, Selection, Tokenizer, Vocab,
};
use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, on_ranks, set, text};
use serde_json::{Value, json};

use crate::run_script;

/// More cells than there are.
const ALL: usize = 1000;

/// Pretrains a backbone and exports it in the published form.
fn pretrain(lab: &Lab) -> std::path::PathBuf {
    export(
        lab,
        &[
            "task.kind=masked-expression",
            "task.trainable=all",
            "adapter.kind=none",
            "data.mask_ratio=0.4",
            "train.epochs=2",
        ],
    )
}

/// Trains every parameter and exports the backbone in the published form.
fn export(lab: &Lab, settings: &[&str]) -> std::path::PathBuf {
    let pretrained = lab.train(1, "pretrained", &set(settings));
    let backbone = lab.path("backbone");
    let export = std::process::Command::new(scpeft_tests::binary("scpeft-checkpoint"))
        .arg("export")
        .arg("--run")
        .arg(&pretrained)
        .arg("--output")
        .arg(&backbone)
        .output()
        .unwrap();
    assert!(export.status.success(), "{}", text(&export.stderr));
    backbone
}

/// The cells of the validation split as tokens of an scGPT, padded to the longest.
fn scgpt_tokens(lab: &Lab, backbone: &Path, seed: u64) -> MicroBatch {
    let corpus = Arc::new(Corpus::open(&lab.corpus).unwrap());
    let read = |name| -> Value {
        serde_json::from_slice(&std::fs::read(backbone.join(name)).unwrap()).unwrap()
    };
    let ids: BTreeMap<u64, String> = read("vocab.json")
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone()))
        .collect();
    let vocab = Vocab::from_tokens(ids.into_values().collect());
    let genes = vocab.match_genes(corpus.genes(), GeneKey::Symbol).unwrap();
    let kind = corpus.value_kind();
    let options = ScgptOptions {
        n_bins: read("args.json")["n_bins"].as_u64().unwrap() as usize,
        max_len: 1200,
        seed,
        ..ScgptOptions::for_values(kind)
    };
    let tokenizer = ScgptTokenizer::new(&vocab, genes, kind, options).unwrap();
    batch(corpus, Arc::new(tokenizer))
}

/// The same as tokens of a Geneformer.
fn geneformer_tokens(lab: &Lab, backbone: &Path, max_len: usize) -> MicroBatch {
    let corpus = Arc::new(Corpus::open(&lab.corpus).unwrap());
    let genes = GeneDictionaries::read(backbone).unwrap();
    let tokens = genes.tokens().iter().map(|(t, &id)| (t.clone(), id as i32));
    let medians = genes.medians().iter().map(|(g, &m)| (g.clone(), m));
    let dictionary =
        RankDictionary::new(tokens.collect(), medians.collect(), HashMap::new()).unwrap();
    let (genes, kind) = (corpus.genes(), corpus.value_kind());
    let tokenizer = RankTokenizer::new(&dictionary, genes, GeneKey::Auto, kind, max_len).unwrap();
    batch(corpus, Arc::new(tokenizer))
}

fn batch(corpus: Arc<Corpus>, tokenizer: Arc<dyn Tokenizer>) -> MicroBatch {
    let selection = Selection::where_equals(&corpus, "split", &["valid"]).unwrap();
    let options = LoaderOptions {
        batch_cells: ALL,
        micro_batch_cells: ALL,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(corpus, selection, tokenizer, options).unwrap();
    let mut step = loader.epoch(0, 0).next().unwrap().unwrap();
    step.micro.remove(0)
}

fn write_tokens(path: &Path, batch: &MicroBatch) {
    let bytes = |values: &mut dyn Iterator<Item = [u8; 4]>| values.flatten().collect::<Vec<u8>>();
    let genes = bytes(&mut batch.gene_ids.iter().map(|x| x.to_le_bytes()));
    let values = bytes(&mut batch.values.iter().map(|x| x.to_le_bytes()));
    let cells: Vec<u8> = batch.cells.iter().flat_map(|c| c.to_le_bytes()).collect();
    let shape = vec![batch.rows, batch.len];
    let tensors = [
        ("genes", Dtype::I32, shape.clone(), &genes),
        ("values", Dtype::F32, shape, &values),
        ("cells", Dtype::I64, vec![batch.rows], &cells),
    ];
    let views = tensors
        .map(|(name, kind, shape, bytes)| (name, TensorView::new(kind, shape, bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Probabilities of each cell as `scpeft-train predict` finds them.
fn predict(lab: &Lab, run: &Path) -> BTreeMap<u64, Vec<f64>> {
    let output = lab.path("predicted");
    let status = on_ranks(1)
        .args(["predict", "--checkpoint", "latest", "--split", "valid"])
        .arg("--run")
        .arg(run)
        .arg("--output")
        .arg(&output)
        .status()
        .unwrap();
    assert!(status.success());
    let file = File::open(output.join("predictions.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let mut found = BTreeMap::new();
    for batch in reader.build().unwrap().map(Result::unwrap) {
        let cells = batch.column_by_name("cell_index").unwrap();
        let cells = cells.as_primitive::<UInt64Type>();
        for row in 0..batch.num_rows() {
            let of = |name: &&str| {
                let column = batch.column_by_name(&format!("probability:{name}"));
                f64::from(column.unwrap().as_primitive::<Float32Type>().value(row))
            };
            let probabilities = scpeft_tests::corpus::TYPES.iter().map(of).collect();
            found.insert(cells.value(row), probabilities);
        }
    }
    found
}

/// The largest difference of a probability.
fn distance(found: &Value, cells: &Value, expected: &BTreeMap<u64, Vec<f64>>) -> f64 {
    let cells = cells.as_array().unwrap();
    assert_eq!(cells.len(), expected.len());
    let mut largest = 0.0_f64;
    for (cell, row) in cells.iter().zip(found.as_array().unwrap()) {
        let row = row.as_array().unwrap().iter().map(|p| p.as_f64().unwrap());
        for (found, expected) in row.zip(&expected[&cell.as_u64().unwrap()]) {
            largest = largest.max((found - expected).abs());
        }
    }
    largest
}

#[test]
fn peft_loads_a_lora_run_and_predicts_the_same() {
    let lab = Lab::new(&Plan::default());
    let backbone = pretrain(&lab);
    lab.use_backbone(&backbone);
    let run = lab.train(1, "run", &["--set", "train.epochs=6"]);
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    let adapter = run.join("checkpoints").join(latest.trim()).join("adapter");
    let file = lab.path("tokens.safetensors");
    write_tokens(&file, &scgpt_tokens(&lab, &backbone, 3));
    let found = run_script("peft_lora.py", &[&backbone, &adapter, &file]);
    check(&lab, &run, &found);
}

#[test]
fn peft_loads_a_lora_run_on_a_geneformer_and_predicts_the_same() {
    let lab = Lab::new(&Plan::default());
    let common = ["backbone.architecture=geneformer", "data.max_len=32"];
    let whole = ["task.trainable=all", "adapter.kind=none", "train.epochs=3"];
    let backbone = export(&lab, &[&common[..], &whole].concat());
    lab.use_backbone(&backbone);
    // PEFT has no place for the bias of a key that LoRA does not update.
    let own = ["adapter.train_qkv_bias=false", "train.epochs=6"];
    let run = lab.train(1, "run", &set(&[&common[..], &own].concat()));
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    let adapter = run.join("checkpoints").join(latest.trim()).join("adapter");
    let file = lab.path("tokens.safetensors");
    write_tokens(&file, &geneformer_tokens(&lab, &backbone, 32));
    let found = run_script("peft_geneformer.py", &[&backbone, &adapter, &file]);
    check(&lab, &run, &found);
}

/// What PEFT found is all of the adapter, and predicts what we predict.
fn check(lab: &Lab, run: &Path, found: &Value) {
    for list in ["missing", "extra", "different"] {
        assert_eq!(found[list], json!([]), "{list}");
    }
    let expected = predict(lab, run);
    let distance = |name: &str| distance(&found[name], &found["cells"], &expected);
    assert!(distance("adapted") < 1e-5, "{}", distance("adapted"));
    assert!(distance("merged") < 1e-5, "{}", distance("merged"));
    // The comparison would see an adapter that did nothing.
    assert!(distance("plain") > 0.05, "{}", distance("plain"));
}
