//! Random features and the attention that they make.

use scpeft_model::backbone::performer::{Favor, KeyMax, orthogonal_rows};
use tch::{Kind, Tensor};

use crate::golden::Golden;

#[test]
fn features_attention_and_gradients() {
    let golden = Golden::load("favor_kernel");
    let input = |name: &str| golden.inputs[name].copy().set_requires_grad(true);
    let (q, k, v) = (input("q"), input("k"), input("v"));
    let projection = golden.weights["projection_matrix"].shallow_clone();
    // In parts of one token of each cell, and as a whole.
    for part in [q.size()[0], 1 << 20] {
        let favor = Favor::new(projection.shallow_clone(), KeyMax::Batch, part);
        let features = favor.query_features(&q).unwrap();
        golden.close("q_features", &features, "forward");
        let width = projection.size()[1] as f64;
        let along = (&k * width.powf(-0.25)).matmul(&projection.tr());
        let features = favor
            .key_features(&k, &along.max().view([1, 1, 1, 1]))
            .unwrap();
        golden.close("k_features", &features, "forward");
        let sums = favor.summary(&k, &v).unwrap().sums;
        let out = favor.mix(&q, &sums).unwrap();
        golden.close("out", &out, "forward");
        (&out * &golden.inputs["grad_out"])
            .sum(Kind::Float)
            .backward();
        for (name, leaf) in [("grad_q", &q), ("grad_k", &k), ("grad_v", &v)] {
            golden.close(name, &leaf.grad(), "grad");
            let _ = leaf.grad().zero_();
        }
    }
}

#[test]
fn directions_are_those_of_the_reference_up_to_their_sign() {
    let golden = Golden::load("favor_kernel");
    let expected = &golden.expected["gaussian_orthogonal"];
    let (rows, width) = expected.size2().unwrap();
    // The reference orthogonalises columns; rows of ours are those.
    let columns = golden.inputs["unstructured_blocks"].transpose(1, 2);
    let columns = columns.reshape([-1, width]).narrow(0, 0, rows);
    let list = |x: &Tensor| Vec::<f32>::try_from(x.reshape([-1])).unwrap();
    let lengths = list(&golden.inputs["row_gaussians"]);
    let found = orthogonal_rows(&list(&columns), &lengths, width as usize);
    let found = Tensor::from_slice(&found).view([rows, width]);
    let signs = (&found * expected)
        .sum_dim_intlist(1, true, Kind::Float)
        .sign();
    golden.near("gaussian_orthogonal", &(found * signs), expected, "grad");
}
