//! The number of ranks changes nothing but speed: same global batches, same dropout, same losses.

#![allow(clippy::unwrap_used)]

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, assert_refused, assert_same_curve, loss_curve, metrics, on_ranks, set,
};

/// Fifty steps over several epochs, with dropout and a short last batch: 72 training cells in batches
/// of 60 and 12, in micro-batches of 5, of which the short batch has fewer than four.
#[test]
fn one_two_three_and_four_ranks_have_the_same_loss_curve() {
    let lab = Lab::new(&Plan::default());
    let arguments = set(&[
        "train.batch_cells=60",
        "train.micro_batch_cells=5",
        "train.epochs=25",
        "train.max_steps=50",
    ]);
    let one = lab.train(1, "one", &arguments);
    let curve = loss_curve(&one);
    assert_eq!(curve.len(), 50);
    assert!(
        curve[49].1 < 0.8 * curve[0].1,
        "nothing was learned: {curve:?}"
    );
    for ranks in [2, 3, 4] {
        let many = lab.train(ranks, &format!("ranks-{ranks}"), &arguments);
        assert_same_curve(&loss_curve(&many), &curve, 1e-5);
        let evaluations = |run| {
            metrics(run)
                .into_iter()
                .filter(|r| r["kind"] == "eval")
                .collect::<Vec<_>>()
        };
        let (a, b) = (evaluations(&one), evaluations(&many));
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(
                a["accuracy"], b["accuracy"],
                "{ranks} ranks, step {}",
                a["step"]
            );
        }
    }
}

#[test]
fn masked_expression_has_the_same_loss_curve_on_two_ranks() {
    let lab = Lab::new(&Plan::default());
    let arguments = [
        "--set",
        "task.kind=masked-expression",
        "--set",
        "task.trainable=all",
        "--set",
        "task.mvc=true",
        "--set",
        "adapter.kind=none",
        "--set",
        "data.mask_ratio=0.4",
        "--set",
        "train.max_steps=20",
    ];
    let one = loss_curve(&lab.train(1, "one", &arguments));
    let two = loss_curve(&lab.train(2, "two", &arguments));
    assert_eq!(one.len(), 20);
    assert_same_curve(&two, &one, 1e-5);
}

#[test]
fn ranks_that_do_not_divide_the_batch_are_refused_by_all_ranks_once() {
    let lab = Lab::new(&Plan::default());
    let output = lab
        .command(
            3,
            &[
                "--set",
                "train.batch_cells=20",
                "--set",
                "train.micro_batch_cells=5",
            ],
        )
        .output()
        .unwrap();
    assert_refused(&output, 2, &["20", "3 ranks", "help:"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
}

/// Prediction shares the cells among ranks and puts them back in corpus order.
#[test]
fn two_ranks_predict_what_one_predicts() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=2"]);
    let predict = |ranks: usize| {
        let output = lab.path(&format!("predicted-{ranks}"));
        let status = on_ranks(ranks)
            .arg("predict")
            .arg("--run")
            .arg(&run)
            .arg("--output")
            .arg(&output)
            .status()
            .unwrap();
        assert!(status.success());
        std::fs::read_to_string(output.join("metrics.json")).unwrap()
    };
    let one = predict(1);
    assert!(one.contains("\"macro_f1\""));
    assert_eq!(one, predict(2));
}
