//! Value encoders, heads and the bottleneck on their own, with gradients into their inputs.

use scpeft_model::adapter::{AdapterOptions, AdapterSet, BlockShape, TokenOptions};
use scpeft_model::backbone::scgpt::{NAMES, ValueEncoder, ValueStyle};
use scpeft_model::exec::Pass;
use scpeft_model::head::{
    AffineActivation, AffineDecoder, AffineOptions, BatchDiscriminator, ClassificationHead,
    Expression, MvcDecoder, MvcOptions, MvcStyle,
};
use scpeft_model::{Layout, Params, TensorSpec, loss};
use scpeft_tests::{case, fixture};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::golden::{Tensors, assert_close, read};

struct Modules {
    case: Value,
    weights: Tensors,
    inputs: Tensors,
    expected: Tensors,
}

impl Modules {
    fn load() -> Self {
        let dir = fixture("scgpt", "modules");
        Self {
            case: case(&dir),
            weights: read(&dir.join("weights.safetensors")),
            inputs: read(&dir.join("inputs.safetensors")),
            expected: read(&dir.join("expected.safetensors")),
        }
    }

    fn int(&self, key: &str) -> i64 {
        self.case["config"][key].as_i64().unwrap()
    }

    /// Tensors of a part whose names start with `ours`, from those that start with `theirs`.
    fn params(&self, specs: &[TensorSpec], ours: &str, theirs: &str) -> Params {
        Params::build(
            specs,
            |spec| {
                let name = spec.name.replacen(ours, theirs, 1);
                let tensor = self.weights.get(&name);
                assert!(tensor.is_some(), "the fixture has no tensor `{name}`");
                Ok(tensor.map(Tensor::shallow_clone))
            },
            |_| false,
            Layout::cpu(0),
        )
        .unwrap()
    }

    fn close(&self, name: &str, found: &Tensor, kind: &str) {
        let tolerance = |part: &str| {
            self.case["tolerances"][&format!("{kind}_{part}")]
                .as_f64()
                .unwrap()
        };
        let expected = &self.expected[name];
        assert_close(name, found, expected, tolerance("atol"), tolerance("rtol"));
    }

    fn leaf(&self, name: &str) -> Tensor {
        self.inputs[name].copy().set_requires_grad(true)
    }
}

#[test]
fn value_encoders() {
    let golden = Modules::load();
    let rows = golden.weights["category.embedding.weight"].size()[0];
    let category = ValueStyle::Category {
        n_input_bins: rows,
        pad_value: rows - 2,
    };
    for (name, style) in [
        ("continuous", ValueStyle::Continuous),
        ("category", category),
    ] {
        let specs = ValueEncoder::specs(style, golden.int("d_model"));
        let params = golden.params(&specs, "value_encoder", name);
        let encoder = ValueEncoder::bind(&params, style).unwrap();
        let values = &golden.inputs[&format!("{name}.values")];
        let out = encoder.embed(values, &AdapterSet::default(), Pass::EVALUATION);
        golden.close(&format!("{name}.out"), &out.unwrap().unwrap(), "forward");
    }
}

#[test]
fn bottleneck() {
    let golden = Modules::load();
    let width = golden.weights["adapter.fc1.weight"].size()[0] as f64;
    let d_model = golden.int("d_model");
    let shape = BlockShape {
        n_layers: 2,
        d_model,
        d_attention: d_model,
        pre_norm: false,
        names: NAMES,
    };
    // Any ratio that truncates to the width.
    let options = AdapterOptions::Token(TokenOptions {
        mlp_ratio: (width + 0.8) / d_model as f64,
        zero_init: false,
    });
    let mut adapter = options.build(shape).unwrap();
    let params = golden.params(&adapter.specs(shape), "value_encoder.adapter", "adapter");
    adapter.bind(&params).unwrap();
    let z = golden.inputs["gene_embs"].shallow_clone();
    golden.close(
        "adapter.out",
        &adapter.value_embedding(z).unwrap(),
        "forward",
    );
}

#[test]
fn classifiers() {
    let golden = Modules::load();
    for name in ["cls_decoder", "cls_decoder5"] {
        let classes = golden.weights[&format!("{name}.out_layer.weight")].size()[0];
        let hidden = golden
            .weights
            .keys()
            .filter(|k| k.starts_with(&format!("{name}._decoder.")) && k.ends_with("weight"))
            .count();
        // Each hidden layer has a linear layer and a norm.
        let layers = hidden / 2 + 1;
        let specs = ClassificationHead::specs(golden.int("d_model"), layers, classes);
        let params = golden.params(&specs, "cls_decoder", name);
        let head = ClassificationHead::bind(&params, layers).unwrap();
        let out = head.forward(&golden.inputs["cell_emb"]).unwrap();
        golden.close(&format!("{name}.out"), &out, "forward");
    }
}

#[test]
fn discriminator_reverses_gradients() {
    let golden = Modules::load();
    let batches = golden.weights["dab.out_layer.weight"].size()[0];
    let specs = BatchDiscriminator::specs(golden.int("d_model"), batches);
    let params = golden.params(&specs, "grad_reverse_discriminator", "dab");
    let head = BatchDiscriminator::bind(&params).unwrap();
    let (cell, labels) = (golden.leaf("cell_emb"), &golden.inputs["dab.labels"]);
    let logits = head.forward(&cell).unwrap();
    golden.close("dab.out", &logits, "forward");
    let sum = loss::cross_entropy_sum(&logits, labels, None).unwrap();
    (sum / labels.size()[0] as f64).backward();
    golden.close("dab.grad_cell_emb", &cell.grad(), "grad");
}

/// Compares an expression head, and gradients of the sum of its squared outputs.
fn check_expression(golden: &Modules, name: &str, out: &Expression, leaves: &[(&str, &Tensor)]) {
    golden.close(&format!("{name}.pred"), &out.prediction, "forward");
    let mut total = (&out.prediction * &out.prediction).sum(Kind::Float);
    let probabilities = format!("{name}.zero_probs");
    assert_eq!(
        golden.expected.contains_key(&probabilities),
        out.nonzero_probability.is_some()
    );
    if let Some(p) = &out.nonzero_probability {
        golden.close(&probabilities, p, "forward");
        total += (p * p).sum(Kind::Float);
    }
    if leaves.is_empty() {
        return;
    }
    total.backward();
    for (suffix, leaf) in leaves {
        // A detached input has no gradient here and zeros in the fixture.
        let found = leaf.grad();
        let found = if found.defined() {
            found
        } else {
            leaf.zeros_like()
        };
        golden.close(&format!("{name}.{suffix}"), &found, "grad");
    }
}

#[test]
fn mvc_in_four_styles() {
    let golden = Modules::load();
    let mut cases = Vec::new();
    for (name, style) in [
        ("inner_product", MvcStyle::InnerProduct),
        ("inner_product_detach", MvcStyle::InnerProductDetached),
    ] {
        for (suffix, batch_labels, explicit_zero) in [
            ("", false, false),
            (".ez", false, true),
            (".bl", true, false),
            (".bl.ez", true, true),
        ] {
            let options = MvcOptions {
                style,
                explicit_zero,
                batch_labels,
            };
            cases.push((format!("mvc.{name}{suffix}"), options));
        }
    }
    for (name, style) in [
        ("concat_query", MvcStyle::ConcatQuery),
        ("sum_query", MvcStyle::SumQuery),
    ] {
        let options = MvcOptions {
            style,
            explicit_zero: false,
            batch_labels: false,
        };
        cases.push((format!("mvc.{name}"), options));
    }
    for (name, options) in cases {
        let specs = MvcDecoder::specs(golden.int("d_model"), options);
        let params = golden.params(&specs, "mvc_decoder", &name);
        let head = MvcDecoder::bind(&params, options).unwrap();
        let genes = golden.leaf("gene_embs");
        let cell = golden.inputs["cell_emb"].copy();
        // With batch labels the case feeds the cells beside the cells in reverse order.
        let cell = if options.batch_labels {
            Tensor::cat(&[&cell, &cell.flip([0])], 1)
        } else {
            cell
        };
        let cell = cell.set_requires_grad(true);
        let out = head.forward(&cell, &genes).unwrap();
        let leaves = [("grad_cell_emb", &cell), ("grad_gene_embs", &genes)];
        check_expression(&golden, &name, &out, &leaves);
    }
}

#[test]
fn affine_decoders() {
    let golden = Modules::load();
    let plain = AffineOptions::default();
    for (name, options) in [
        ("affine", plain),
        (
            "affine_adaptive",
            AffineOptions {
                adaptive_bias: true,
                ..plain
            },
        ),
        (
            "affine_ez_elu",
            AffineOptions {
                activation: Some(AffineActivation::Elu),
                explicit_zero: true,
                ..plain
            },
        ),
    ] {
        let specs = AffineDecoder::specs("decoder", golden.int("d_model"), options);
        let params = golden.params(&specs, "decoder", name);
        let head = AffineDecoder::bind(&params, "decoder", options).unwrap();
        let values = &golden.inputs[&format!("{name}.values")];
        let out = head.forward(&golden.inputs["gene_embs"], values).unwrap();
        check_expression(&golden, name, &out, &[]);
    }
}

#[test]
fn the_query_styles_refuse_what_they_cannot_model() {
    for (explicit_zero, batch_labels) in [(true, false), (false, true)] {
        let options = MvcOptions {
            style: MvcStyle::SumQuery,
            explicit_zero,
            batch_labels,
        };
        let message = options.validate().unwrap_err().to_string();
        assert!(message.starts_with("task.mvc_style: "), "{message}");
    }
}
