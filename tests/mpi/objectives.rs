//! Every adapter, objective and number format through real `scpeft-train` processes: the same
//! losses on any number of ranks, the same gradients with recomputation, and checkpoints that hold
//! what was trained.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_refused, assert_same_curve, loss_curve, metrics, on_ranks, set, text,
};
use serde_json::Value;

const BATCH_CORRECTION: [&str; 11] = [
    "task.kind=batch-correction",
    "data.batch=donor",
    "backbone.norm=domain",
    "data.mask_ratio=0.4",
    "task.mvc=true",
    "task.explicit_zero=true",
    "task.ecs_weight=10",
    "task.ecs_threshold=0.6",
    "task.cce_weight=10",
    "train.max_steps=12",
    "train.lr=1e-3",
];

/// Names, shapes and types of the newest adapter file.
fn header(run: &Path) -> Value {
    let bytes = adapter_bytes(run);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + length]).unwrap()
}

/// Terms with divisors of their own, embeddings contrasted over the whole global batch, statistics
/// of each domain: none of it depends on how micro-batches are dealt to ranks.
#[test]
fn batch_correction_has_the_same_curves_on_one_two_and_four_ranks() {
    let lab = Lab::new(&Plan::default());
    let arguments = set(&BATCH_CORRECTION);
    let one = lab.train(1, "one", &arguments);
    let logged: Vec<Value> = metrics(&one);
    let first = logged.iter().find(|r| r["kind"] == "train").unwrap();
    for term in ["gep", "gep_zero", "gepc", "gepc_zero", "ecs", "dab", "cce"] {
        assert!(first[term].as_f64().unwrap() > 0.0, "{term} in {first}");
    }
    for ranks in [2, 4] {
        let many = lab.train(ranks, &format!("ranks-{ranks}"), &arguments);
        assert_same_curve(&loss_curve(&many), &loss_curve(&one), 2e-5);
        for term in ["gepc", "ecs", "dab", "cce", "grad_norm"] {
            let curve = |run| {
                let lines: Vec<Value> = metrics(run);
                let train = lines.into_iter().filter(|r| r["kind"] == "train");
                train.map(|r| r[term].as_f64().unwrap()).collect::<Vec<_>>()
            };
            for (a, b) in curve(&many).iter().zip(curve(&one)) {
                assert!((a - b).abs() <= 1e-4 * b.abs(), "{term}: {a} and {b}");
            }
        }
        let evaluated = |run| {
            let lines: Vec<Value> = metrics(run);
            let last = lines.into_iter().rfind(|r| r["kind"] == "eval").unwrap();
            last["loss"].as_f64().unwrap()
        };
        // Evaluation normalises by the running statistics: they must agree too.
        let (a, b) = (evaluated(&many), evaluated(&one));
        assert!((a - b).abs() <= 1e-4 * b, "evaluation: {a} and {b}");
    }
    let header = header(&one);
    for name in [
        "base_model.model.dsbn.bns.0.running_mean",
        "base_model.model.dsbn.bns.1.running_var",
        "base_model.model.grad_reverse_discriminator.out_layer.weight",
        "base_model.model.batch_encoder.embedding.weight",
    ] {
        assert!(header.get(name).is_some(), "no `{name}` in {header}");
    }
}

/// A resumed run continues with the statistics and adapters it stopped with.
#[test]
fn a_run_with_every_adapter_resumes_where_it_stopped() {
    let lab = Lab::new(&Plan::default());
    let settings = [
        r#"adapter.kind=["hybrid","prefix","lora","mlp","hra","oft"]"#,
        "adapter.layers=all",
        "adapter.token_nums=3",
        "data.batch=donor",
        "backbone.norm=domain",
        "train.epochs=4",
    ];
    let whole = lab.train(1, "whole", &set(&settings));
    let stopped = lab.path("stopped");
    let dir = format!("run.dir={}", stopped.display());
    // How often to save may change in a resumption: the first part is stopped after some step.
    let first = set(&[&dir, "checkpoint.every_steps=1"]);
    let arguments = [set(&settings), first].concat();
    let mut stop = lab.command(1, &arguments).spawn().unwrap();
    scpeft_tests::train::wait_until("a step is saved", || stopped.join("LATEST").exists());
    scpeft_tests::train::signal(stop.id(), "TERM");
    assert_eq!(stop.wait().unwrap().code(), Some(85));
    let resumed = [set(&settings), set(&[&dir]), vec!["--resume"]].concat();
    let output = lab.command(1, &resumed).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(adapter_bytes(&stopped), adapter_bytes(&whole));
    let header = header(&whole);
    for part in [
        "space_adapter.fc1.weight",
        "mlp_adapter.fc2.weight",
        "adapter_embeddings",
        "hra_u",
        "Wqkv.R",
    ] {
        let names = header.as_object().unwrap();
        assert!(names.keys().any(|k| k.ends_with(part)), "no `{part}`");
    }
    let predicted = on_ranks(1)
        .args(["predict", "--run"])
        .arg(&whole)
        .arg("--output")
        .arg(lab.path("predicted"))
        .output()
        .unwrap();
    assert!(predicted.status.success(), "{}", text(&predicted.stderr));
}

/// Pretrain, export, adapt, predict, with every part of the encoder other than the published one.
#[test]
fn other_styles_survive_export_and_are_asked_for_again() {
    let lab = Lab::new(&Plan::default());
    let style = [
        "backbone.shape.value_style=category",
        "backbone.norm=batch",
        "backbone.cell_style=average-pool",
    ];
    let pretraining = [
        "task.kind=masked-expression",
        "task.trainable=all",
        "adapter.kind=none",
        "data.mask_ratio=0.4",
        "train.epochs=2",
    ];
    let run = lab.train(1, "pretrained", &set(&[&style[..], &pretraining].concat()));
    let backbone = lab.path("backbone");
    let export = std::process::Command::new(scpeft_tests::binary("scpeft-checkpoint"))
        .args(["export", "--run"])
        .arg(&run)
        .arg("--output")
        .arg(&backbone)
        .output()
        .unwrap();
    assert!(export.status.success(), "{}", text(&export.stderr));
    lab.use_backbone(&backbone);
    let plain = lab.command(1, &[]).output().unwrap();
    assert_refused(
        &plain,
        2,
        &["backbone.cell_style", "`average-pool`", "help:"],
    );
    let asked = set(&["backbone.norm=batch", "backbone.cell_style=average-pool"]);
    let adapted = lab.train(
        1,
        "adapted",
        &[&asked[..], &set(&["train.epochs=1"])].concat(),
    );
    let said = header(&adapted);
    assert!(
        said.get("base_model.model.bn.running_mean").is_some(),
        "{said}"
    );
    let predict = |micro: &str, name: &str| {
        let output = lab.path(name);
        let done = on_ranks(1)
            .args(["predict", "--run"])
            .arg(&adapted)
            .arg("--output")
            .arg(&output)
            .args(["--set", micro])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        let text = std::fs::read_to_string(output.join("metrics.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["accuracy"].clone()
    };
    let together = predict("train.micro_batch_cells=12", "together");
    assert_eq!(predict("train.micro_batch_cells=1", "alone"), together);
}

#[test]
fn recomputation_changes_no_bit_of_a_run() {
    let lab = Lab::new(&Plan::default());
    let settings = ["adapter.kind=hybrid", "train.max_steps=12"];
    let plain = lab.train(1, "plain", &set(&settings));
    let settings = [&settings[..], &["run.recompute=true"]].concat();
    let recomputed = lab.train(1, "recomputed", &set(&settings));
    assert_eq!(loss_curve(&recomputed), loss_curve(&plain));
    assert_eq!(adapter_bytes(&recomputed), adapter_bytes(&plain));
}

#[test]
fn bf16_follows_the_curve_of_f32_and_saves_f32() {
    let lab = Lab::new(&Plan::default());
    let settings = ["adapter.kind=encoder", "train.max_steps=24"];
    let full = lab.train(1, "full", &set(&settings));
    let settings = [&settings[..], &["run.precision=bf16"]].concat();
    let mixed = lab.train(1, "mixed", &set(&settings));
    assert_same_curve(&loss_curve(&mixed), &loss_curve(&full), 0.05);
    let header = header(&mixed);
    let tensors = header.as_object().unwrap().iter();
    for (name, tensor) in tensors.filter(|(name, _)| *name != "__metadata__") {
        assert_eq!(tensor["dtype"], "F32", "{name}");
    }
}

#[test]
fn a_class_balanced_sampler_draws_the_same_cells_on_two_ranks() {
    let lab = Lab::new(&Plan::default());
    let arguments = set(&["data.sampler=class-balanced", "train.max_steps=12"]);
    let one = loss_curve(&lab.train(1, "one", &arguments));
    let two = loss_curve(&lab.train(2, "two", &arguments));
    assert_same_curve(&two, &one, 1e-5);
    let uniform = loss_curve(&lab.train(1, "uniform", &set(&["train.max_steps=12"])));
    assert_ne!(one, uniform);
}

/// The whole table, with totals, before anything is trained.
#[test]
fn parameters_lists_every_tensor() {
    let lab = Lab::new(&Plan::default());
    let output = on_ranks(1)
        .args(["parameters", "--config"])
        .arg(&lab.config)
        .output()
        .unwrap();
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let line = |name: &str| {
        let found = table.lines().find(|l| l.starts_with(name));
        found
            .unwrap_or_else(|| panic!("no `{name}` in\n{table}"))
            .to_owned()
    };
    assert!(line("encoder.embedding.weight").ends_with("no"));
    assert!(line("transformer_encoder.layers.1.self_attn.Wqkv.lora_A").ends_with("yes"));
    assert!(line("transformer_encoder.layers.1.self_attn.in_proj_bias").ends_with("yes"));
    assert!(line("1,267 of ").contains("parameters train"), "{table}");
    assert!(!lab.path("run").exists());
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_step() {
    let lab = Lab::new(&Plan::default());
    let refused = |settings: &[&str], code, words: &[&str]| {
        let output = lab.command(1, &set(settings)).output().unwrap();
        assert_refused(&output, code, words);
        assert!(!lab.path("run/checkpoints").exists());
    };
    let correction = ["task.kind=batch-correction", "data.mask_ratio=0.4"];
    refused(&correction, 2, &["data.batch", "help:"]);
    refused(&["backbone.norm=domain"], 2, &["data.batch"]);
    refused(&["data.batch=donor"], 2, &["data.batch", "no effect"]);
    refused(&["data.mask_ratio=0.4"], 2, &["data.mask_ratio"]);
    refused(
        &["adapter.kind=token", "backbone.shape.value_style=category"],
        2,
        &["adapter.kind", "continuous value encoder"],
    );
    refused(&["adapter.layers=[]"], 2, &["adapter.layers"]);
    refused(&["adapter.layers=[5]"], 2, &["names layer 5", "2 layers"]);
    refused(&["adapter.kind=[\"lora\",\"lora\"]"], 2, &["adapter.kind"]);
    let column = [&correction[..], &["data.batch=nothing"]].concat();
    refused(&column, 3, &["nothing"]);
}

/// Validation cells of a batch that no training cell comes from have no statistics to use.
#[test]
fn a_batch_unseen_in_training_is_refused_by_name() {
    let lab = Lab::new(&Plan {
        donor: |cell| usize::from(cell / 3 % 5 == 0),
        ..Plan::default()
    });
    let output = lab.command(1, &set(&BATCH_CORRECTION)).output().unwrap();
    assert_refused(&output, 3, &["donor", "`donor-2` (24 cells)", "help:"]);
}
