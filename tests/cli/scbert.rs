//! An scBERT from the published file to predictions, and what is refused on the way.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scpeft_checkpoint::published::scbert::{ScbertConfig, ScbertDirectory, tuned};
use scpeft_checkpoint::{HostTensor, TensorFile, read_adapter, write_safetensors};
use scpeft_tests::corpus::{GENES, Plan};
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_same_curve, latest_step, loss_curve, on_ranks, set, text,
};
use scpeft_tests::{binary, fixture};
use serde_json::Value;

fn checkpoint(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(binary("scpeft-checkpoint"));
    for argument in arguments {
        command.arg(argument.as_ref());
    }
    command.output().unwrap()
}

fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Weights of a small model on all genes of the lab's corpus, and their list.
fn publish(lab: &Lab) -> (PathBuf, PathBuf) {
    let genes: Vec<String> = (0..GENES).map(|g| format!("GENE{g}")).collect();
    let list = lab.path("genes.txt");
    std::fs::write(&list, genes.join("\n")).unwrap();
    let config = ScbertConfig {
        tokens: 7,
        d_model: 12,
        n_heads: 2,
        d_head: 8,
        d_hid: 24,
        n_layers: 2,
        n_features: 16,
        positions: GENES + 1,
    };
    let mut state = 1u32;
    let tensors: Vec<_> = config
        .wanted_shapes()
        .into_iter()
        .map(|(name, shape)| {
            let draw = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let norm = name.ends_with("norm.weight");
            let scale = if name.contains("projection_matrix") {
                2.0
            } else {
                0.8
            };
            let values: Vec<f32> = (0..shape.iter().product())
                .map(draw)
                .map(|x| if norm { 1.0 } else { scale * x })
                .collect();
            (name, HostTensor::from_f32(shape, &values))
        })
        .collect();
    let weights = lab.path("weights.safetensors");
    write_safetensors(&weights, &tensors).unwrap();
    (weights, list)
}

/// The lab's configuration on an scBERT, with more lines for its `[backbone]`.
fn use_scbert(lab: &Lab, backbone: &Path, more: &str) {
    lab.use_backbone(backbone);
    let text = std::fs::read_to_string(&lab.config).unwrap();
    let text = text.replace(
        "[backbone]\n",
        &format!("[backbone]\narchitecture = \"scbert\"\ndropout = 0.0\n{more}"),
    );
    std::fs::write(&lab.config, text).unwrap();
}

#[test]
fn the_published_file_becomes_a_backbone_that_is_what_it_was() {
    let lab = Lab::new(&Plan::default());
    let file = fixture("scbert", "backbone_mlm").join("panglao_pretrain.pth");
    let (panel, backbone) = (lab.path("panel.txt"), lab.path("scbert"));
    let places = TensorFile::open(&file)
        .unwrap()
        .info("pos_emb.emb.weight")
        .unwrap()
        .1[0];
    let genes: Vec<String> = (1..places).map(|g| format!("P{g}")).collect();
    std::fs::write(&panel, genes.join("\n")).unwrap();
    let output = checkpoint(&[&"convert", &file, &backbone, &"--panel", &panel]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let inspect = |path: &Path| -> Value {
        let output = checkpoint(&[&"inspect", &path, &"--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(inspect(&file)["kind"], "scBERT weights");
    let found = inspect(&backbone);
    assert_eq!(found["kind"], "scBERT backbone");
    assert_eq!(found["genes"], genes.len());
    let verified = checkpoint(&[&"verify", &backbone]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    // The vectors of genes keep their double precision.
    let opened = ScbertDirectory::open(&backbone).unwrap();
    let before = TensorFile::open(&file).unwrap();
    let name = "pos_emb.emb.weight";
    assert_eq!(
        opened.weights().file().get(name).unwrap(),
        before.get(name).unwrap()
    );

    // Another panel, no panel, and a file of another model.
    let short = lab.path("short.txt");
    std::fs::write(&short, genes[1..].join("\n")).unwrap();
    let out = lab.path("never");
    let output = checkpoint(&[&"convert", &file, &out, &"--panel", &short]);
    refused(&output, 4, &["vectors of", "panglao_human.h5ad", "--panel"]);
    let folder = lab.path("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(&file, folder.join("panglao_pretrain.pth")).unwrap();
    refused(
        &checkpoint(&[&"convert", &folder, &out]),
        4,
        &["--panel TEXT"],
    );
    let other = fixture("geneformer", "lora").join("weights.safetensors");
    let output = checkpoint(&[&"convert", &other, &out, &"--panel", &panel]);
    refused(
        &output,
        4,
        &["it holds no scBERT", "scpeft-checkpoint inspect"],
    );
    assert!(!out.exists());
}

#[test]
fn adapters_train_predict_and_resume_the_same_on_one_rank_and_two() {
    let lab = Lab::new(&Plan::default());
    let (weights, list) = publish(&lab);
    let backbone = lab.path("scbert");
    let output = checkpoint(&[&"convert", &weights, &backbone, &"--panel", &list]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    use_scbert(&lab, &backbone, "redraw_steps = 3\n");

    let plan = on_ranks(1)
        .args(["plan", "--json", "--config"])
        .arg(&lab.config)
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["tokens"], GENES + 1);

    let one = lab.train(1, "one", &set(&["train.epochs=2"]));
    let again = set(&["train.epochs=2", "run.recompute=true"]);
    let two = lab.train(2, "two", &again);
    let curve = loss_curve(&one);
    assert!(curve.len() > 4, "features are drawn anew in between");
    assert_same_curve(&loss_curve(&two), &curve, 2e-4);
    // Directions are in the checkpoint, and are those of every rank.
    let adapter = |run: &Path| {
        let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
        let checkpoint = run.join("checkpoints").join(latest.trim());
        read_adapter(&checkpoint.join("adapter")).unwrap()
    };
    let ((config, tensors), (_, others)) = (adapter(&one), adapter(&two));
    assert_eq!(config.target_modules.unwrap(), ["to_q", "to_v"]);
    let directions = |name: &&String| name.contains("projection_matrix");
    let directions: Vec<&String> = tensors.keys().filter(directions).collect();
    assert_eq!(directions.len(), 2);
    let published = TensorFile::open(&weights).unwrap();
    for name in directions {
        assert_eq!(tensors[name], others[name], "{name}");
        assert_ne!(tensors[name], published.get(name).unwrap(), "{name}");
    }
    let sharded = [&again[..], &set(&["backbone.shard=world"])].concat();
    let sharded = lab.train(2, "sharded", &sharded);
    assert_eq!(
        adapter_bytes(&sharded),
        adapter_bytes(&two),
        "shared layers change no bit"
    );

    // A run that goes on after its first epoch ends where the whole one ends.
    let halves = set(&["train.epochs=2", "checkpoint.every_steps=4"]);
    let whole = lab.train(1, "whole", &halves);
    let newest = latest_step(&whole);
    for step in whole.join("checkpoints").read_dir().unwrap() {
        let path = step.unwrap().path();
        if !path.ends_with("step-00000004") {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    std::fs::write(whole.join("LATEST"), "step-00000004").unwrap();
    let _ = std::fs::remove_file(whole.join("BEST"));
    lab.train(1, "whole", &[&halves[..], &["--resume"]].concat());
    assert_eq!(latest_step(&whole), newest);
    assert_eq!(adapter_bytes(&whole), adapter_bytes(&one), "resumed");

    let predictions = lab.path("predictions");
    let output = on_ranks(1)
        .args(["predict", "--run"])
        .arg(&one)
        .arg("--output")
        .arg(&predictions)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// The reference's files of a fixture, on a backbone made of the same file.
#[test]
fn fine_tuned_files_of_the_reference_become_adapters() {
    let lab = Lab::new(&Plan::default());
    for (case, kinds) in [
        ("encoder_adapter_mlp", "encoder, mlp"),
        ("token_adapter", "token"),
        ("prefix", "prefix"),
    ] {
        let file = fixture("scbert", case).join("weights.safetensors");
        let whole = TensorFile::open(&file).unwrap();
        let places = whole.info("pos_emb.emb.weight").unwrap().1[0];
        let genes: Vec<String> = (1..places).map(|g| format!("P{g}")).collect();
        let panel = lab.path("panel.txt");
        std::fs::write(&panel, genes.join("\n")).unwrap();
        let backbone = lab.path(&format!("{case}-backbone"));
        let output = checkpoint(&[&"convert", &file, &backbone, &"--panel", &panel]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let adapter = lab.path(case);
        let convert: [&dyn AsRef<std::ffi::OsStr>; 7] = [
            &"convert",
            &"--from-scpeft",
            &file,
            &"--backbone",
            &backbone,
            &"--output",
            &adapter,
        ];
        let output = checkpoint(&convert);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(
            text(&output.stdout).contains(kinds),
            "{}",
            text(&output.stdout)
        );
        let (_, tensors) = read_adapter(&adapter).unwrap();
        let wanted = scpeft_tests::case(&fixture("scbert", case));
        let trained = wanted["trainable"].as_array().unwrap();
        assert_eq!(tensors.len(), trained.len());
        for name in trained {
            let theirs = name.as_str().unwrap();
            let ours = tuned::our_name(theirs);
            assert_eq!(tensors[&ours], whole.get(theirs).unwrap(), "{ours}");
        }
    }
    let file = fixture("scbert", "lora").join("weights.safetensors");
    let backbone = lab.path("prefix-backbone");
    let output = checkpoint(&[
        &"convert",
        &"--from-scpeft",
        &file,
        &"--backbone",
        &backbone,
        &"--output",
        &lab.path("never"),
    ]);
    refused(&output, 4, &["is a factor of LoRA"]);
}

/// A run with bottlenecks in layers goes out under both names of the reference, and comes back.
#[test]
fn a_run_is_exported_with_the_names_of_the_reference() {
    let lab = Lab::new(&Plan::default());
    let (weights, list) = publish(&lab);
    let backbone = lab.path("scbert");
    let output = checkpoint(&[&"convert", &weights, &backbone, &"--panel", &list]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    use_scbert(&lab, &backbone, "");
    let run = lab.train(1, "run", &set(&["adapter.kind=encoder", "train.epochs=1"]));
    let whole = lab.path("whole.safetensors");
    let output = checkpoint(&[&"export", &"--run", &run, &"--output", &whole]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let file = TensorFile::open(&whole).unwrap();
    let of = |name: &str| file.get(name).unwrap();
    let both = "Encoder_Space.1.fn.D_fc1.weight";
    let (first, second) = (format!("performer.{both}"), format!("performer.net.{both}"));
    assert_eq!(of(&first), of(&second));
    let back = lab.path("back");
    let output = checkpoint(&[
        &"convert",
        &"--from-scpeft",
        &whole,
        &"--backbone",
        &backbone,
        &"--output",
        &back,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let best = std::fs::read_to_string(run.join("BEST")).unwrap();
    let own = run.join("checkpoints").join(best.trim()).join("adapter");
    let sorted = |dir: &Path| {
        let (_, tensors) = read_adapter(dir).unwrap();
        let tensors = tensors.into_iter();
        let owned = tensors.map(|(name, tensor)| (name, tensor.into_owned()));
        owned.collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(sorted(&back), sorted(&own));
}

#[test]
fn the_presets_run_on_a_small_backbone() {
    let lab = Lab::new(&Plan::default());
    let (weights, list) = publish(&lab);
    let backbone = lab.path("scbert");
    let output = checkpoint(&[&"convert", &weights, &backbone, &"--panel", &list]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let presets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/presets");
    let own = |dir: &str| {
        [
            format!("run.dir={}", lab.path(dir).display()),
            format!("data.corpus={}", lab.corpus.display()),
            format!("backbone.path={}", backbone.display()),
            "train.epochs=1".to_owned(),
            "metrics.port=0".to_owned(),
            "run.threads=1".to_owned(),
        ]
    };
    for name in ["token", "encoder", "lora"] {
        let own = own(name);
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let output = on_ranks(1)
            .arg("--config")
            .arg(presets.join(format!("scbert-identification-{name}.toml")))
            .args(set(&own))
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    }
}

#[test]
fn random_weights_take_their_panel_from_the_corpus() {
    let lab = Lab::new(&Plan::default());
    let settings = [
        "backbone.architecture=scbert",
        "backbone.dropout=0",
        "backbone.shape.d_head=8",
        "task.trainable=all",
        "adapter.kind=none",
        "train.epochs=1",
    ];
    let run = lab.train(1, "all", &set(&settings));
    assert!(!run.join("backbone/vocab.json").exists());
    let panel = std::fs::read_to_string(run.join("backbone/genes.txt")).unwrap();
    assert_eq!(panel.lines().count(), GENES);
    let parameters = on_ranks(1)
        .args(["parameters", "--config"])
        .arg(&lab.config)
        .args(set(&settings))
        .output()
        .unwrap();
    let table = text(&parameters.stdout);
    let row = |name: &str| {
        table
            .lines()
            .find(|l| l.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(row("pos_emb.emb.weight").ends_with("no"), "{table}");
    assert!(row("token_emb.weight").ends_with("yes"), "{table}");
    let directions = "performer.net.layers.0.0.fn.fast_attention.projection_matrix";
    assert!(row(directions).ends_with("constant"), "{table}");
}

#[test]
fn what_does_not_belong_together_is_refused_with_the_way_out() {
    let lab = Lab::new(&Plan::default());
    let (weights, list) = publish(&lab);
    let backbone = lab.path("scbert");
    let output = checkpoint(&[&"convert", &weights, &backbone, &"--panel", &list]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plain = Lab::new(&Plan::default());
    plain.use_backbone(&backbone);
    let output = plain.command(1, &[]).output().unwrap();
    refused(
        &output,
        4,
        &["an scBERT backbone", "backbone.architecture = \"scbert\""],
    );

    use_scbert(&lab, &backbone, "");
    let scgpt = fixture("scgpt", "checkpoint_flash");
    let path = format!("backbone.path={}", scgpt.display());
    let output = lab.command(1, &["--set", &path]).output().unwrap();
    refused(
        &output,
        4,
        &["an scGPT backbone", "backbone.architecture = \"scgpt\""],
    );
    // The published file itself.
    let path = format!("backbone.path={}", weights.display());
    let output = lab.command(1, &["--set", &path]).output().unwrap();
    refused(&output, 4, &["scpeft-checkpoint convert", "--panel"]);
    // Genes of another species.
    let mouse = Lab::new(&Plan {
        gene_prefix: "ENSMUSG",
        ..Plan::default()
    });
    use_scbert(&mouse, &backbone, "");
    let output = mouse.command(1, &[]).output().unwrap();
    refused(&output, 3, &["ENSMUSG0", "GENE0"]);
    for (setting, words) in [
        (
            "task.kind=masked-expression",
            ["task.kind", "an scBERT has bins"],
        ),
        ("data.log1p=true", ["data.log1p", "no effect on scBERT"]),
    ] {
        let output = lab.command(1, &["--set", setting]).output().unwrap();
        refused(&output, 2, &words);
    }
    let output = plain
        .command(1, &["--set", "backbone.key_max=batch"])
        .output()
        .unwrap();
    refused(&output, 2, &["backbone.key_max", "scBERT alone"]);
}
