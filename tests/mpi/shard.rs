//! A backbone that is shared by the ranks trains as one that every rank holds: the same bits on the
//! same number of ranks, with ranks that have fewer micro-batches than others, or none.

#![allow(clippy::unwrap_used)]

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_refused, logged_lines, loss_curve, metrics, on_ranks, rank_pids,
    set, signal, text, wait, wait_until,
};
use serde_json::Value;

/// 72 training cells in batches whose last one has fewer micro-batches than ranks can share: three
/// for two ranks, two for three.
fn ragged(ranks: usize) -> [&'static str; 3] {
    match ranks {
        2 => [
            "train.batch_cells=20",
            "train.micro_batch_cells=5",
            "train.epochs=2",
        ],
        _ => [
            "train.batch_cells=21",
            "train.micro_batch_cells=7",
            "train.epochs=2",
        ],
    }
}

/// What the evaluations of a run found.
fn evaluations(run: &std::path::Path) -> Vec<(Value, Value)> {
    let lines = metrics(run).into_iter();
    let lines = lines.filter(|r| r["kind"] == "eval");
    lines
        .map(|r| (r["step"].clone(), r["loss"].clone()))
        .collect()
}

/// Trains whole and shared, and compares everything; returns the shared run.
fn assert_same_run(lab: &Lab, ranks: usize, shard: &str, settings: &[&str]) -> std::path::PathBuf {
    let settings = [&ragged(ranks)[..], settings].concat();
    let whole = [&settings[..], &["run.recompute=true"]].concat();
    let whole = lab.train(ranks, &format!("whole-{ranks}-{shard}"), &set(&whole));
    let shard_setting = format!("backbone.shard={shard}");
    let shared = [&settings[..], &[&shard_setting]].concat();
    let shared = lab.train(ranks, &format!("shared-{ranks}-{shard}"), &set(&shared));
    let curve = loss_curve(&shared);
    assert_eq!(curve.len(), 8);
    assert!(curve.iter().all(|(_, loss)| loss.is_finite()), "{curve:?}");
    assert_eq!(curve, loss_curve(&whole), "{ranks} ranks");
    assert_eq!(evaluations(&shared), evaluations(&whole), "{ranks} ranks");
    assert_eq!(
        adapter_bytes(&shared),
        adapter_bytes(&whole),
        "{ranks} ranks"
    );
    shared
}

#[test]
fn two_and_three_ranks_that_share_the_backbone_train_bitwise_as_with_their_own() {
    let lab = Lab::new(&Plan::default());
    // A block without an adapter below one with, and one of every kind that changes weights.
    let settings = [
        r#"adapter.kind=["lora","encoder","hra"]"#,
        "adapter.layers=[1]",
    ];
    assert_same_run(&lab, 3, "world", &settings);
    let run = assert_same_run(&lab, 2, "world", &settings);
    let predict = |ranks: usize, shard: &str| {
        let output = lab.path(&format!("predicted-{ranks}-{shard}"));
        let done = on_ranks(ranks)
            .args(["predict", "--run"])
            .arg(&run)
            .arg("--output")
            .arg(&output)
            .args(["--set", &format!("backbone.shard={shard}")])
            .args(["--set", "train.micro_batch_cells=5"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read_to_string(output.join("metrics.json")).unwrap()
    };
    let whole = predict(1, "none");
    assert!(whole.contains("macro_f1"));
    assert_eq!(predict(2, "node"), whole);
}

/// Two passes over each micro-batch, and a further one without a graph before.
#[test]
fn the_contrastive_objective_gathers_in_step_on_ranks_with_fewer_micro_batches() {
    let lab = Lab::new(&Plan::default());
    let settings = [
        "task.kind=batch-correction",
        "data.batch=donor",
        "data.mask_ratio=0.4",
        "task.mvc=true",
        "task.cce_weight=10",
        "adapter.kind=hybrid",
        "train.lr=1e-3",
    ];
    assert_same_run(&lab, 2, "node", &settings);
}

/// Weights of a directory: each rank takes its slices out of the mapped file.
#[test]
fn shares_of_published_weights_are_those_of_the_file() {
    let lab = Lab::new(&Plan::default());
    let backbone = lab.pretrained_backbone();
    lab.use_backbone(&backbone);
    assert_same_run(&lab, 2, "world", &["adapter.kind=encoder"]);
    let settings = ["run.precision=bf16", "adapter.kind=mlp"];
    let lab_of_bf16 = Lab::new(&Plan::default());
    lab_of_bf16.use_backbone(&backbone);
    assert_same_run(&lab_of_bf16, 2, "world", &settings);
}

/// Two ranks with half of the packed layers each, and two with all of them, compute the same bits; a
/// resumption and a prediction may share otherwise, but not pack otherwise.
#[test]
fn packed_layers_train_the_same_shared_or_not() {
    let lab = Lab::new(&Plan::default());
    let packed = [&ragged(2)[..], &["backbone.storage=int8"]].concat();
    let full = lab.train(2, "full", &set(&ragged(2)));
    let whole = lab.train(2, "whole", &set(&packed));
    let shared = [&packed[..], &["backbone.shard=world"]].concat();
    let shared = lab.train(2, "shared", &set(&shared));
    let curve = loss_curve(&shared);
    assert_eq!(curve, loss_curve(&whole));
    assert_eq!(adapter_bytes(&shared), adapter_bytes(&whole));
    assert_ne!(curve, loss_curve(&full), "8 bits change nothing");
    scpeft_tests::train::assert_same_curve(&curve, &loss_curve(&full), 0.02);
    let dir = format!("run.dir={}", shared.display());
    let resume = |settings: &[&str]| {
        let settings = [&ragged(2)[..], &[dir.as_str()], settings].concat();
        let arguments = [&set(&settings)[..], &["--resume"]].concat();
        lab.command(1, &arguments).output().unwrap()
    };
    let refused = resume(&[]);
    assert_refused(
        &refused,
        2,
        &["backbone.storage: \"int8\" in the checkpoint, \"full\" now"],
    );
    let resumed = resume(&["backbone.storage=int8"]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let all = [
        "backbone.storage=int8",
        "task.trainable=all",
        "adapter.kind=none",
    ];
    let output = lab.command(1, &set(&all)).output().unwrap();
    assert_refused(
        &output,
        2,
        &["backbone.storage", "no layer is frozen", "help:"],
    );
}

/// Bytes of a process that are its own (`RssAnon`) and shared with others (`RssShmem`), by the kernel's
/// count; `None` once it is gone.
fn own_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((kib("RssAnon")? + kib("RssShmem")?) << 10)
}

/// The most that each of two ranks held at any time in `steps` steps after the first ones.
fn most_held(lab: &Lab, name: &str, settings: &[&str]) -> [u64; 2] {
    let run = lab.path(name);
    let dir = format!("run.dir={}", run.display());
    let arguments = set(&[settings, &[dir.as_str(), "train.epochs=1000"]].concat());
    // What is freed goes back at once: what the allocator would keep for later is not held.
    let mut child = lab
        .command(2, &arguments)
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .env("MALLOC_TRIM_THRESHOLD_", "65536")
        .spawn()
        .unwrap();
    wait_until("the steps are alike", || logged_lines(&run) >= 5);
    let pids = rank_pids(&run);
    let mut most = [0; 2];
    wait_until("enough steps have been seen", || {
        for (most, &pid) in most.iter_mut().zip(&pids) {
            *most = own_bytes(pid).unwrap_or(0).max(*most);
        }
        logged_lines(&run) >= 25
    });
    signal(child.id(), "USR1");
    assert_eq!(wait(&mut child).code(), Some(85));
    most
}

/// By the kernel's count, not the program's: 24 blocks of 1 MiB, which every rank holds whole, or half of
/// and two blocks beside it.
#[test]
fn a_rank_holds_its_share_of_the_blocks_two_more_and_little_else() {
    const MIB: u64 = 1 << 20;
    const BLOCKS: u64 = 24;
    /// What libtorch and MPI may hold beside, for the gathers.
    const BESIDE: u64 = 4 * MIB;
    let lab = Lab::new(&Plan::default());
    let settings = [
        "backbone.shape.n_layers=24",
        "backbone.shape.d_model=128",
        "backbone.shape.n_heads=4",
        "backbone.shape.d_hid=768",
        "adapter.layers=[23]",
        "backbone.dropout=0",
        "run.recompute=true",
        "train.batch_cells=2",
        "train.micro_batch_cells=1",
    ];
    // Attention 4 x 128 x 128, feed-forward 2 x 128 x 768, and vectors.
    let block = 4 * (4 * 128 * 128 + 2 * 128 * 768 + 9 * 128 + 768);
    assert!((MIB..MIB + MIB / 50).contains(&block), "{block}");
    let whole = most_held(&lab, "whole", &settings);
    let shared = [&settings[..], &["backbone.shard=world"]].concat();
    let shared = most_held(&lab, "shared", &shared);
    let allowed = BLOCKS * block / 2 + 2 * block + BESIDE;
    for (rank, (whole, shared)) in whole.into_iter().zip(shared).enumerate() {
        let saved = whole.saturating_sub(shared);
        assert!(
            BLOCKS * block <= saved + allowed,
            "rank {rank}: {} MiB with whole blocks, {} MiB with shared ones",
            whole / MIB,
            shared / MIB
        );
    }
}

#[test]
fn sharing_a_backbone_that_trains_is_refused_with_the_reason() {
    let lab = Lab::new(&Plan::default());
    let all = [
        "backbone.shard=world",
        "task.trainable=all",
        "adapter.kind=none",
    ];
    let output = lab.command(1, &set(&all)).output().unwrap();
    assert_refused(
        &output,
        2,
        &["backbone.shard", "`all`", "no layer is frozen", "help:"],
    );
    let output = lab
        .command(1, &set(&["backbone.shard=wrold"]))
        .output()
        .unwrap();
    assert_refused(
        &output,
        2,
        &[
            "backbone.shard",
            "`none` or `node` or `world`",
            "did you mean `world`",
        ],
    );
}
