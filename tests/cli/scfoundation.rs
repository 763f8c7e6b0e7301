//! scFoundation from its published file to predictions, and what is refused on the way.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, adapter_bytes, loss_curve, on_ranks, set, text};
use scpeft_tests::{binary, fixture};
use serde_json::Value;

/// Genes of the published file of the fixtures.
const GENES: usize = 40;
/// Layers of its encoder, their width.
const LAYERS: usize = 4;
const WIDTH: usize = 16;

fn checkpoint(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(binary("scpeft-checkpoint"));
    for argument in arguments {
        command.arg(argument.as_ref());
    }
    command.output().unwrap()
}

fn models() -> PathBuf {
    fixture("scfoundation", "checkpoint_format").join("models.ckpt")
}

/// The genes of the model: those of the corpus among others, in an order of their own.
fn genes(lab: &Lab) -> PathBuf {
    let path = lab.path("genes.tsv");
    let row = |g| format!("GENE{}\t{g}\n", g * 7 % GENES);
    let rows: Vec<String> = (0..GENES).map(row).collect();
    std::fs::write(&path, format!("gene_name\tindex\n{}", rows.concat())).unwrap();
    path
}

/// The backbone of the model `variant`.
fn convert(lab: &Lab, variant: &str) -> PathBuf {
    let backbone = lab.path(variant);
    let genes = genes(lab);
    let output = checkpoint(&[
        &"convert",
        &models(),
        &backbone,
        &"--variant",
        &variant,
        &"--genes",
        &genes,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("non-commercial"), "{said}");
    assert!(said.contains("calls_since_last_redraw"), "{said}");
    backbone
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A configuration of the repository on the lab's corpus, small and short, with more settings.
fn train(lab: &Lab, ranks: usize, config: &str, dir: &str, settings: &[&str]) -> Output {
    let run = format!("run.dir={}", lab.path(dir).display());
    let corpus = format!("data.corpus={}", lab.corpus.display());
    let usual = [
        run.as_str(),
        corpus.as_str(),
        "data.label=cell_type",
        "run.threads=1",
        "train.batch_cells=12",
        "train.micro_batch_cells=3",
        "log.every_steps=1",
        "metrics.port=0",
    ];
    let mut command = on_ranks(ranks);
    command.arg("--config").arg(repository().join(config));
    command.args(set(&usual)).args(set(settings));
    command.output().unwrap()
}

fn trained(lab: &Lab, ranks: usize, config: &str, dir: &str, settings: &[&str]) -> PathBuf {
    let output = train(lab, ranks, config, dir, settings);
    assert!(output.status.success(), "{}", text(&output.stderr));
    lab.path(dir)
}

const ENCODER: &str = "configs/presets/scfoundation-identification-encoder.toml";
const LORA: &str = "configs/presets/scfoundation-identification-lora.toml";
const DEMO: &str = "configs/demo/scfoundation.toml";

fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn adapter_dir(run: &Path) -> PathBuf {
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    run.join("checkpoints").join(latest.trim()).join("adapter")
}

#[test]
fn the_published_file_becomes_a_backbone_that_trains_and_predicts() {
    let lab = Lab::new(&Plan::default());
    let output = checkpoint(&[&"inspect", &models(), &"--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["kind"], "scFoundation checkpoint as published");
    assert_eq!(found["models"].as_array().unwrap().len(), 3);
    let gene = convert(&lab, "gene");
    let cell = convert(&lab, "cell");
    let fingerprints = [&gene, &cell].map(|backbone| {
        let output = checkpoint(&[&"inspect", backbone, &"--json"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["kind"], "scFoundation backbone");
        assert_eq!(found["genes"], GENES);
        assert_eq!(found["encoder"]["layers"], LAYERS);
        assert!(
            found["licence"]
                .as_str()
                .unwrap()
                .contains("non-commercial")
        );
        assert!(checkpoint(&[&"verify", backbone]).status.success());
        found["fingerprint"].as_str().unwrap().to_owned()
    });
    assert_ne!(fingerprints[0], fingerprints[1]);

    let path = format!("backbone.path={}", gene.display());
    let quick = [
        "train.lr=5e-3",
        "train.epochs=12",
        "backbone.head_dropout=0",
        path.as_str(),
    ];
    let run = trained(&lab, 1, ENCODER, "run", &quick);
    let losses = loss_curve(&run);
    let mean = |steps: &[(u64, f64)]| steps.iter().map(|s| s.1).sum::<f64>() / steps.len() as f64;
    let (first, last) = (mean(&losses[..6]), mean(&losses[losses.len() - 6..]));
    assert!(last < 0.7 * first, "{losses:?}");
    let output = checkpoint(&[&"inspect", &adapter_dir(&run), &"--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = (found["tensors"].as_array().unwrap().iter())
        .filter_map(|row| row["name"].as_str())
        .collect();
    let first = "encoder.transformer_encoder.0.space_adapter.fc1.weight";
    assert!(
        names.contains(&first) && names.contains(&"fc1.8.weight"),
        "{names:?}"
    );

    let predictions = lab.path("predictions");
    let mut predict = on_ranks(1);
    predict
        .args(["predict", "--run"])
        .arg(&run)
        .arg("--output")
        .arg(&predictions);
    let output = predict.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metrics: Value =
        serde_json::from_slice(&std::fs::read(predictions.join("metrics.json")).unwrap()).unwrap();
    assert!(metrics["accuracy"].as_f64().unwrap() > 0.6, "{metrics}");

    // The head that pools everything, with read depths; embeddings are four times as wide.
    let all = [
        "backbone.cell_style=all-pool",
        "data.target_depth=t4",
        "train.epochs=1",
        path.as_str(),
    ];
    trained(&lab, 1, ENCODER, "all", &all);
}

/// LoRA on the upper layers: one step computes the same bits with blocks shared by the ranks and
/// recomputed; and the plan knows how much trains.
#[test]
fn ranks_may_share_the_layers_and_the_plan_counts_them() {
    let lab = Lab::new(&Plan::default());
    let path = format!("backbone.path={}", convert(&lab, "gene").display());
    let short = |more: &[&'static str]| {
        let mut settings = vec!["adapter.layers=[2, 3]", "train.epochs=1"];
        settings.extend(more);
        settings
    };
    let run = |ranks, dir: &str, more: &[&'static str]| {
        let settings = short(more);
        let settings = [settings.as_slice(), &[path.as_str()]].concat();
        trained(&lab, ranks, LORA, dir, &settings)
    };
    let two = run(2, "two", &[]);
    let sharded = run(2, "sharded", &["backbone.shard=world"]);
    assert_eq!(adapter_bytes(&two), adapter_bytes(&sharded));
    let one = run(1, "one", &[]);
    let recomputed = run(1, "recomputed", &["run.recompute=true"]);
    assert_eq!(adapter_bytes(&one), adapter_bytes(&recomputed));
    run(1, "bf16", &["run.precision=bf16"]);
    let config: Value = serde_json::from_slice(
        &std::fs::read(adapter_dir(&one).join("adapter_config.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["target_modules"], serde_json::json!(["Wqkv"]));

    let settings = short(&[]);
    let corpus = format!("data.corpus={}", lab.corpus.display());
    let mut plan = on_ranks(1);
    plan.args(["plan", "--json", "--config"])
        .arg(repository().join(LORA));
    plan.args(set(&settings)).args(set(&[&path, &corpus]));
    let output = plan.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Two layers, two factors of rank 8 each on query and value.
    assert_eq!(plan["parameters"]["adapters"], 2 * 2 * 2 * 8 * WIDTH);
    // Two hidden layers with norms, and an output of three types.
    let hidden = WIDTH * WIDTH + 3 * WIDTH;
    assert_eq!(plan["parameters"]["heads"], 2 * hidden + 3 * WIDTH + 3);
    assert_eq!(plan["parameters"]["backbone"], 0);
}

#[test]
fn the_demo_with_another_configuration_trains_everything_and_is_a_backbone() {
    let lab = Lab::new(&Plan::default());
    let run = trained(&lab, 1, DEMO, "all", &["train.epochs=2"]);
    let exported = lab.path("exported");
    let output = checkpoint(&[&"export", &"--run", &run, &"--output", &exported]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let path = format!("backbone.path={}", exported.display());
    let again = ["adapter.layers=[1]", "train.epochs=1", path.as_str()];
    trained(&lab, 1, LORA, "again", &again);
}

#[test]
fn what_does_not_belong_together_is_refused_with_the_way_out() {
    let lab = Lab::new(&Plan::default());
    let out = lab.path("out");
    // No list of genes, another one, and one in another order.
    let output = checkpoint(&[&"convert", &models(), &out]);
    refused(&output, 4, &["OS_scRNA_gene_index.19264.tsv", "--genes"]);
    let list = genes(&lab);
    let rows = std::fs::read_to_string(&list).unwrap();
    std::fs::write(
        &list,
        rows.replace("GENE39\t", "GENE90\t")
            .replace("\t17\n", "\t18\n"),
    )
    .unwrap();
    let output = checkpoint(&[&"convert", &models(), &out, &"--genes", &list]);
    refused(
        &output,
        4,
        &[
            "line 19",
            "has index 18, expected 17",
            "order of the embeddings",
        ],
    );
    std::fs::write(&list, "gene_name\tindex\nA\t0\n").unwrap();
    let output = checkpoint(&[&"convert", &models(), &out, &"--genes", &list]);
    refused(
        &output,
        4,
        &["the list has 1 genes, the model 40", "--genes"],
    );
    let genes = genes(&lab);
    let output = checkpoint(&[
        &"convert",
        &models(),
        &out,
        &"--variant",
        &"bulk",
        &"--genes",
        &genes,
    ]);
    refused(&output, 4, &["no model `bulk`", "rde", "--variant"]);
    assert!(!out.exists());
    let other = fixture("scgpt", "checkpoint_flash");
    let output = checkpoint(&[&"convert", &other, &out, &"--variant", &"gene"]);
    refused(&output, 4, &["scFoundation's models.ckpt"]);

    // As published, and backbones of other architectures.
    let backbone = convert(&lab, "gene");
    let on = |path: &Path| format!("backbone.path={}", path.display());
    for (path, words) in [
        (models(), &["as published", "scpeft-checkpoint convert"][..]),
        (
            other,
            &["an scGPT backbone", "backbone.architecture = \"scgpt\""],
        ),
    ] {
        let output = train(&lab, 1, ENCODER, "no", &[&on(&path)]);
        refused(&output, 4, words);
    }
    lab.use_backbone(&backbone);
    for architecture in ["scgpt", "geneformer"] {
        let set = format!("backbone.architecture={architecture}");
        let output = lab.command(1, &["--set", &set]).output().unwrap();
        let way_out = "backbone.architecture = \"scfoundation\"";
        refused(&output, 4, &["an scFoundation backbone", way_out]);
    }
    // Genes of another species, and values that are not what they are called.
    let path = on(&backbone);
    let mouse = Lab::new(&Plan {
        gene_prefix: "Gene",
        ..Plan::default()
    });
    refused(
        &train(&mouse, 1, ENCODER, "no", &[&path]),
        3,
        &["`Gene0`", "`GENE0`"],
    );
    let raw = Lab::new(&Plan {
        not_a_number: Some(119),
        ..Plan::default()
    });
    let output = train(&raw, 1, ENCODER, "no", &[&path]);
    refused(
        &output,
        3,
        &["its largest value is", "log-normalised", "--raw"],
    );
    // Settings.
    for (setting, words) in [
        (
            "backbone.cell_style=cls",
            &["backbone.cell_style", "max-pool"][..],
        ),
        (
            "task.kind=masked-expression",
            &["task.kind", "scFoundation"],
        ),
        ("data.log1p=false", &["data.log1p", "ln(1 + x)"]),
        (
            "data.target_depth=4",
            &["data.target_depth", "such as `t4`"],
        ),
        (
            "backbone.architecture=scgpt",
            &["backbone.cell_style", "a setting of scFoundation"],
        ),
    ] {
        refused(&train(&lab, 1, ENCODER, "no", &[setting]), 2, words);
    }
}
