//! The moving average of what trains: its values, where it is used, and that it resumes to the bit.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, Int32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_checkpoint::{TensorFile, fsx};
use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, adapter_bytes, assert_refused, loss_curve, metrics, on_ranks};
use serde_json::Value;

const DECAY: f64 = 0.7;
const STEPS: u64 = 9;
/// Nine steps in epochs of 6, each with a checkpoint that stays.
const NINE: [&str; 6] = [
    "--set",
    "train.max_steps=9",
    "--set",
    "checkpoint.every_steps=1",
    "--set",
    "checkpoint.keep_every_steps=1",
];
const AVERAGED: [&str; 2] = ["--set", "train.ema_decay=0.7"];

fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

fn flat(run: &Path, step: u64, name: &str) -> Vec<f32> {
    let path = checkpoint(run, step).join("trainer.safetensors");
    let file = TensorFile::open(&path).unwrap();
    file.get(name).unwrap().to_f32().unwrap()
}

/// The head's output layer as other programs read it.
fn exported_head(run: &Path) -> Vec<f32> {
    let path = checkpoint(run, STEPS).join("adapter/adapter_model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let name = "base_model.model.cls_decoder.out_layer.weight";
    file.get(name).unwrap().to_f32().unwrap()
}

fn holds(flat: &[f32], part: &[f32]) -> bool {
    flat.windows(part.len()).any(|window| window == part)
}

/// Logged losses of the evaluations.
fn evaluations(run: &Path) -> Vec<f64> {
    let records = metrics(run).into_iter().filter(|r| r["kind"] == "eval");
    records.map(|r| r["loss"].as_f64().unwrap()).collect()
}

/// The loss of a run's last checkpoint on its validation cells, from its predictions.
fn predicted_loss(lab: &Lab, run: &Path, output: &str) -> f64 {
    let output = lab.path(output);
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
    let (mut sum, mut cells) = (0.0, 0);
    for batch in reader.build().unwrap().map(Result::unwrap) {
        let truth = batch.column_by_name("true_type").unwrap();
        let truth = truth.as_dictionary::<Int32Type>();
        let names = truth.values().as_string::<i32>();
        for row in 0..batch.num_rows() {
            let name = names.value(truth.keys().value(row) as usize);
            let column = batch
                .column_by_name(&format!("probability:{name}"))
                .unwrap();
            sum -= f64::from(column.as_primitive::<Float32Type>().value(row)).ln();
            cells += 1;
        }
    }
    sum / f64::from(cells)
}

/// The stored average is the weighted mean of the parameters after each update; evaluation, adapter
/// and predictions go by it when asked, and training never does.
#[test]
fn the_average_is_what_is_evaluated_exported_and_predicted_with() {
    let lab = Lab::new(&Plan::default());
    let plain = lab.train(1, "plain", &NINE);
    let run = lab.train(1, "run", &[&NINE[..], &AVERAGED].concat());
    assert_eq!(loss_curve(&run), loss_curve(&plain), "training is the same");

    let mean = flat(&run, STEPS, "ema.mean");
    let mut expected = vec![0.0_f64; mean.len()];
    let mut weights = 0.0;
    for step in 1..=STEPS {
        let weight = DECAY.powf((STEPS - step) as f64);
        weights += weight;
        let trained = flat(&run, step, "parameters");
        for (sum, value) in expected.iter_mut().zip(trained) {
            *sum += weight * f64::from(value);
        }
    }
    for (found, sum) in mean.iter().zip(&expected) {
        let expected = sum / weights;
        assert!(
            (f64::from(*found) - expected).abs() < 1e-6,
            "{found}, not {expected}"
        );
    }

    let trained = flat(&run, STEPS, "parameters");
    let (own, averaged) = (exported_head(&plain), exported_head(&run));
    assert!(holds(&trained, &own) && !holds(&mean, &own), "own values");
    assert!(
        holds(&mean, &averaged) && !holds(&trained, &averaged),
        "averages"
    );

    let (own, averaged) = (evaluations(&plain), evaluations(&run));
    let last = averaged[averaged.len() - 1];
    assert!(
        (last - own[own.len() - 1]).abs() > 1e-4,
        "{own:?} {averaged:?}"
    );
    let predicted = predicted_loss(&lab, &run, "predicted");
    assert!(
        (predicted - last).abs() < 1e-5,
        "{predicted}, logged {last}"
    );

    let kept = ["--set", "train.ema_evaluate=false"];
    let kept = lab.train(1, "kept", &[&NINE[..], &AVERAGED, &kept].concat());
    assert_eq!(evaluations(&kept), evaluations(&plain));
    assert_eq!(adapter_bytes(&kept), adapter_bytes(&plain));
    assert_eq!(flat(&kept, STEPS, "ema.mean"), mean);
}

/// A run that goes on from its fourth step, in the middle of an epoch, has the bits of one that was
/// never interrupted; its average may not be dropped unnoticed.
#[test]
fn an_average_resumes_to_the_bit() {
    let lab = Lab::new(&Plan::default());
    let arguments = [&NINE[..], &AVERAGED].concat();
    let run = lab.train(1, "run", &arguments);
    let stored = |step| {
        let path = checkpoint(&run, step).join("trainer.safetensors");
        (std::fs::read(path).unwrap(), adapter_bytes(&run))
    };
    let (whole, curve, losses) = (stored(STEPS), loss_curve(&run), evaluations(&run));
    for step in 5..=STEPS {
        fsx::remove(&checkpoint(&run, step)).unwrap();
    }
    let without = [&["--resume"], &NINE[..]].concat();
    let dropped = lab.command(1, &without).output().unwrap();
    assert_refused(
        &dropped,
        2,
        &["train.ema_decay: 0.7 in the checkpoint, 0.0 now"],
    );
    lab.train(1, "run", &[&["--resume"], &arguments[..]].concat());
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["starts"][1]["from_step"], 4);
    assert_eq!(loss_curve(&run), curve);
    assert_eq!(evaluations(&run), losses);
    assert!(
        stored(STEPS) == whole,
        "moments, average, parameters and adapter"
    );
}
