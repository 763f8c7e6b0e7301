//! A Geneformer from published files to predictions, and what is refused on the way.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scpeft_checkpoint::published::geneformer::{GeneformerConfig, wanted_shapes};
use scpeft_checkpoint::{HostTensor, write_safetensors};
use scpeft_tests::corpus::{GENES, Plan};
use scpeft_tests::train::{Lab, adapter_bytes, loss_curve, on_ranks, text};
use scpeft_tests::{binary, fixture};
use serde_json::Value;

fn checkpoint(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(binary("scpeft-checkpoint"));
    for argument in arguments {
        command.arg(argument.as_ref());
    }
    command.output().unwrap()
}

/// A pickle of a dictionary: protocol 2, a float or a short int or a text a value.
fn pickle(entries: &[(String, Pickled)]) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = vec![b'X'];
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut bytes = b"\x80\x02}(".to_vec();
    for (name, value) in entries {
        bytes.extend(text(name));
        match value {
            Pickled::Int(id) => bytes.extend([b"K".as_slice(), &[*id]].concat()),
            Pickled::Float(x) => bytes.extend([b"G".as_slice(), &x.to_be_bytes()].concat()),
            Pickled::Text(name) => bytes.extend(text(name)),
        }
    }
    bytes.extend(b"u.");
    bytes
}

enum Pickled {
    Int(u8),
    Float(f64),
    Text(String),
}

/// The published files of a small model of the second generation whose genes are `ENSG0`…, which
/// symbols of the corpus lead to, in `lab`/published.
fn publish(lab: &Lab) -> PathBuf {
    let dir = lab.path("published");
    std::fs::create_dir(&dir).unwrap();
    let special = ["<pad>", "<mask>", "<cls>", "<eos>"];
    let genes: Vec<String> = (0..GENES).map(|g| format!("ENSG{g}")).collect();
    let names = special.iter().map(|s| (*s).to_owned()).chain(genes.clone());
    let tokens: Vec<_> = names
        .zip(0..)
        .map(|(n, id)| (n, Pickled::Int(id)))
        .collect();
    let median = |g: usize| Pickled::Float(1.0 + g as f64 / 7.0);
    let medians: Vec<_> = genes.iter().cloned().zip((0..).map(median)).collect();
    let others: Vec<_> = (0..GENES)
        .map(|g| (format!("GENE{g}"), Pickled::Text(format!("ENSG{g}"))))
        .collect();
    for (name, entries) in [
        ("token_dictionary_gc.pkl", tokens),
        ("gene_median_dictionary_gc.pkl", medians),
        ("ensembl_mapping_dict_gc.pkl", others),
    ] {
        std::fs::write(dir.join(name), pickle(&entries)).unwrap();
    }
    let json = format!(
        r#"{{"model_type": "bert", "vocab_size": {}, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "relu",
            "max_position_embeddings": 40, "architectures": ["BertForMaskedLM"]}}"#,
        GENES + special.len()
    );
    std::fs::write(dir.join("config.json"), &json).unwrap();
    let config: GeneformerConfig = serde_json::from_str(&json).unwrap();
    let mut state = 1u32;
    let tensors: Vec<_> = wanted_shapes(&config)
        .into_iter()
        .map(|(name, shape)| {
            let draw = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let numel = shape.iter().product();
            // What attention finds must count beside `<cls>` itself for a frozen model to be of use.
            let attends = ["self.value.weight", "attention.output.dense.weight"];
            let scale = if attends.iter().any(|end| name.ends_with(end)) {
                1.8
            } else {
                0.3
            };
            let norm = name.contains("LayerNorm.weight");
            let values: Vec<f32> = (0..numel)
                .map(draw)
                .map(|x| if norm { 1.0 } else { scale * x })
                .collect();
            (name, HostTensor::from_f32(shape, &values))
        })
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &tensors).unwrap();
    dir
}

/// The lab's configuration on a Geneformer, with more lines for its `[backbone]`.
fn use_geneformer(lab: &Lab, backbone: &Path) {
    lab.use_backbone(backbone);
    let text = std::fs::read_to_string(&lab.config).unwrap();
    let text = text.replace(
        "[backbone]\n",
        "[backbone]\narchitecture = \"geneformer\"\ncell_layer = \"second-to-last\"\n\
         cell_style = \"average-pool\"\ndropout = 0.02\n",
    );
    let text = text.replace("[data]\n", "[data]\nmax_len = 40\nlength_buckets = true\n");
    std::fs::write(&lab.config, text).unwrap();
}

fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn published_files_become_a_backbone_that_trains_and_predicts() {
    let lab = Lab::new(&Plan::default());
    let published = publish(&lab);
    let backbone = lab.path("geneformer");
    let output = checkpoint(&[&"convert", &published, &backbone]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = checkpoint(&[&"inspect", &backbone, &"--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["kind"], "Geneformer backbone");
    assert_eq!(found["genes_with_median"], GENES);
    assert_eq!(found["special_tokens"], true);
    // As published, too: the dictionaries are elsewhere.
    let output = checkpoint(&[&"inspect", &published, &"--json"]);
    let before: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(before["fingerprint"], found["fingerprint"]);
    assert!(checkpoint(&[&"verify", &backbone]).status.success());

    use_geneformer(&lab, &backbone);
    let run = lab.train(1, "run", &["--set", "train.epochs=20"]);
    let losses = loss_curve(&run);
    assert!(losses.last().unwrap().1 < 0.8 * losses[0].1, "{losses:?}");
    let config: Value = serde_json::from_slice(
        &std::fs::read(adapter_dir(&run).join("adapter_config.json")).unwrap(),
    )
    .unwrap();
    // What Hugging Face PEFT finds in a BERT.
    assert_eq!(
        config["target_modules"],
        serde_json::json!(["query", "value"])
    );
    assert_eq!(
        config["modules_to_save"],
        serde_json::json!(["pooler", "classifier"])
    );
    assert_eq!(config["r"], 4);
    let two = lab.train(2, "two", &["--set", "train.epochs=1"]);
    let sharded = ["--set", "train.epochs=1", "--set", "backbone.shard=world"];
    let sharded = lab.train(2, "sharded", &sharded);
    assert_eq!(adapter_bytes(&two), adapter_bytes(&sharded));

    let predictions = lab.path("predictions");
    let output = on_ranks(1)
        .args(["predict", "--run"])
        .arg(&run)
        .arg("--output")
        .arg(&predictions)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metrics: Value =
        serde_json::from_slice(&std::fs::read(predictions.join("metrics.json")).unwrap()).unwrap();
    assert!(metrics["accuracy"].as_f64().unwrap() > 0.6, "{metrics}");

    let output = on_ranks(1)
        .args(["plan", "--json", "--config"])
        .arg(&lab.config)
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Two layers of LoRA of rank 4 on query and value of width 16; three biases each.
    assert_eq!(plan["parameters"]["adapters"], 2 * 2 * 2 * 4 * 16);
    assert_eq!(plan["parameters"]["backbone"], 2 * 3 * 16);
    // Pooler and classifier of three types.
    assert_eq!(plan["parameters"]["heads"], 16 * 16 + 16 + 16 * 3 + 3);
}

fn adapter_dir(run: &Path) -> PathBuf {
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    run.join("checkpoints").join(latest.trim()).join("adapter")
}

#[test]
fn random_weights_take_their_dictionary_from_the_corpus() {
    let lab = Lab::new(&Plan::default());
    let geneformer = |set: &[&str]| -> Vec<String> {
        let mut all = vec!["backbone.architecture=geneformer", "data.max_len=32"];
        all.extend(set);
        all.iter()
            .flat_map(|s| ["--set".to_owned(), (*s).to_owned()])
            .collect()
    };
    let run = |set: &[&str], dir: &str| {
        let arguments = geneformer(set);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.train(1, dir, &arguments)
    };
    let trained = run(
        &["task.trainable=all", "adapter.kind=none", "train.epochs=1"],
        "all",
    );
    // A run that trained everything is a backbone of its own.
    let exported = lab.path("exported");
    let output = checkpoint(&[&"export", &"--run", &trained, &"--output", &exported]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    use_geneformer(&lab, &exported);
    lab.train(
        1,
        "again",
        &["--set", "train.epochs=1", "--set", "data.max_len=32"],
    );
}

#[test]
fn what_does_not_belong_together_is_refused_with_the_way_out() {
    let lab = Lab::new(&Plan::default());
    let published = publish(&lab);
    // The dictionary of another model.
    let other = fixture("geneformer", "tokenizer_small");
    let tokens = other.join("token_dictionary.pkl");
    let medians = other.join("gene_median_dictionary.pkl");
    let out = lab.path("out");
    let wrong = checkpoint(&[
        &"convert",
        &published,
        &out,
        &"--tokens",
        &tokens,
        &"--medians",
        &medians,
    ]);
    refused(
        &wrong,
        4,
        &["token dictionary has 42 tokens, the model 34", "--tokens"],
    );
    assert!(!out.exists());
    let swapped = checkpoint(&[
        &"convert",
        &published,
        &out,
        &"--tokens",
        &medians,
        &"--medians",
        &tokens,
    ]);
    refused(
        &swapped,
        4,
        &["gene_median_dictionary.pkl", "another dictionary"],
    );
    // Published weights as they are, and those of another architecture.
    use_geneformer(&lab, &published);
    let output = lab.command(1, &[]).output().unwrap();
    refused(
        &output,
        4,
        &["token_dictionary.json", "scpeft-checkpoint convert"],
    );
    let scgpt = fixture("scgpt", "checkpoint_flash");
    let path = format!("backbone.path={}", scgpt.display());
    let output = lab.command(1, &["--set", &path]).output().unwrap();
    refused(
        &output,
        4,
        &["an scGPT backbone", "backbone.architecture = \"scgpt\""],
    );
    let ours = lab.path("geneformer");
    assert!(
        checkpoint(&[&"convert", &published, &ours])
            .status
            .success()
    );
    let path = format!("backbone.path={}", ours.display());
    let cls = ["--set", &path, "--set", "data.max_len=41"];
    let output = lab.command(1, &cls).output().unwrap();
    refused(&output, 2, &["`data.max_len` is 41", "40 positions"]);
    let plain = Lab::new(&Plan::default());
    plain.use_backbone(&ours);
    let output = plain.command(1, &[]).output().unwrap();
    refused(
        &output,
        4,
        &[
            "a Geneformer backbone",
            "backbone.architecture = \"geneformer\"",
        ],
    );
    // Identifiers of another kind.
    let mouse = Lab::new(&Plan {
        gene_prefix: "ENSMUSG",
        ..Plan::default()
    });
    use_geneformer(&mouse, &ours);
    let output = mouse.command(1, &[]).output().unwrap();
    refused(&output, 3, &["ENSMUSG0", "ENSG0"]);
    // Settings that a Geneformer has not.
    let task = [
        "--set",
        "task.kind=masked-expression",
        "--set",
        "data.mask_ratio=0.4",
    ];
    let output = lab.command(1, &task).output().unwrap();
    refused(&output, 2, &["task.kind", "a Geneformer has none"]);
}

#[test]
fn every_preset_trains_on_a_small_corpus_and_embeds() {
    let lab = Lab::new(&Plan::default());
    let published = publish(&lab);
    let backbone = lab.path("geneformer");
    let converted = checkpoint(&[&"convert", &published, &backbone]);
    assert!(converted.status.success(), "{}", text(&converted.stderr));
    for name in [
        "geneformer-identification-lora",
        "geneformer-identification-encoder",
    ] {
        let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/presets");
        let run = lab.path(name);
        let settings = [
            format!("run.dir={}", run.display()),
            format!("data.corpus={}", lab.corpus.display()),
            format!("backbone.path={}", backbone.display()),
            "data.max_len=32".to_owned(),
            "train.max_steps=2".to_owned(),
            "metrics.port=0".to_owned(),
            "run.threads=1".to_owned(),
            "log.every_steps=1".to_owned(),
        ];
        let mut train = on_ranks(1);
        train
            .arg("--config")
            .arg(presets.join(format!("{name}.toml")));
        train.args(settings.iter().flat_map(|s| ["--set", s]));
        let trained = train.output().unwrap();
        assert!(
            trained.status.success(),
            "{name}: {}",
            text(&trained.stderr)
        );
        let losses = loss_curve(&run);
        assert!(
            losses.len() == 2 && losses.iter().all(|(_, loss)| loss.is_finite()),
            "{name}: {losses:?}"
        );
        let output = lab.path(&format!("{name}-embedded"));
        let embedded = on_ranks(1)
            .args([
                "embed",
                "--run",
                run.to_str().unwrap(),
                "--output",
                output.to_str().unwrap(),
            ])
            .output()
            .unwrap();
        let said = text(&embedded.stderr);
        assert!(
            embedded.status.success() && said.contains("120 cells embedded in 16 dimensions"),
            "{said}"
        );
    }
}
