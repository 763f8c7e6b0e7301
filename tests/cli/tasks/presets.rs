//! The presets of scGPT on a small corpus and a small backbone: each trains, and its run embeds cells.

use std::path::{Path, PathBuf};

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, loss_curve};
use serde_json::Value;

use crate::{pretrain, succeed, vectors};

/// A backbone in the published form, which says nothing of styles that all published ones share.
fn published(lab: &Lab) -> PathBuf {
    let backbone = pretrain(lab);
    let path = backbone.join("args.json");
    let mut args: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let fields = args.as_object_mut().unwrap();
    fields.retain(|key, _| key != "embedding_norm" && key != "cell_emb_style");
    std::fs::write(&path, args.to_string()).unwrap();
    backbone
}

#[test]
fn every_preset_of_scgpt_trains_and_embeds() {
    let lab = Lab::new(&Plan::default());
    let backbone = format!("backbone.path={}", published(&lab).display());
    let corpus = format!("data.corpus={}", lab.corpus.display());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/presets");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let file = entry.path();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("scgpt-") || name.contains("perturbation") {
            continue;
        }
        let run = lab.path(&name);
        let dir = format!("run.dir={}", run.display());
        let settings = [
            &backbone,
            &corpus,
            &dir,
            "train.max_steps=2",
            "metrics.port=0",
            "run.threads=1",
            "log.every_steps=1",
        ];
        let mut arguments = vec!["--config", file.to_str().unwrap()];
        arguments.extend(settings.iter().flat_map(|s| ["--set", s]));
        succeed(1, &arguments);
        let losses = loss_curve(&run);
        assert_eq!(losses.len(), 2, "{name}");
        assert!(
            losses.iter().all(|(_, loss)| loss.is_finite()),
            "{name}: {losses:?}"
        );
        let output = lab.path(&format!("{name}-embedded"));
        succeed(
            1,
            &[
                "embed",
                "--run",
                run.to_str().unwrap(),
                "--output",
                output.to_str().unwrap(),
            ],
        );
        assert_eq!(
            vectors(&output.join("embeddings.parquet"), "embedding").len(),
            120,
            "{name}"
        );
        seen += 1;
    }
    assert!(seen >= 5, "{seen} presets of scGPT");
}
