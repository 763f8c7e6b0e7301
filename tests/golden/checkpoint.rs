//! A published scGPT directory, from its files to the model's outputs.

use std::collections::HashMap;

use scpeft_checkpoint::ScgptDirectory;
use scpeft_model::adapter::{AdapterOptions, EncoderOptions, LayerSelection, Placement};
use scpeft_model::backbone::scgpt::{
    Blueprint, Classifier, Heads, InputOptions, Inputs, Mvc, Scgpt, Shape,
};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::{Layout, Params, Role};
use scpeft_tests::{case, fixture};
use scpeft_trainer::backbone::to_tensor;
use tch::{Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

/// Loads the model that `heads` and `adapters` describe from the directory; what the directory
/// does not hold comes from `rest`.
fn load(mut heads: Heads, adapters: Vec<AdapterOptions>, rest: &Tensors) -> Scgpt {
    let directory =
        ScgptDirectory::open(&fixture("scgpt", "checkpoint_flash")).expect("the published files");
    let args = directory.args();
    let pad = directory.vocabulary().id("<pad>").expect("a padding token");
    if let Some(classifier) = &mut heads.classifier {
        classifier.layers = args.n_layers_cls;
    }
    let blueprint = Blueprint {
        inputs: InputOptions::default(),
        shape: Shape {
            vocab: directory.vocabulary().len() as i64,
            d_model: args.embsize as i64,
            n_heads: args.nheads as i64,
            d_hid: args.d_hid as i64,
            n_layers: args.nlayers,
            pad_id: pad as i64,
        },
        heads,
        adapters,
    };
    let params = Params::build(
        &blueprint.specs().expect("a valid blueprint"),
        |spec| {
            let shape: Vec<usize> = spec.shape.iter().map(|&n| n as usize).collect();
            let published = directory.get(&spec.name).filter(|t| t.shape == shape);
            assert!(
                spec.role != Role::Backbone || published.is_some(),
                "`{}` is not in the file",
                spec.name
            );
            Ok(Some(match published {
                Some(tensor) => to_tensor(&tensor).expect("a float tensor"),
                None => rest
                    .get(&spec.name)
                    .unwrap_or_else(|| panic!("no `{}`", spec.name))
                    .shallow_clone(),
            }))
        },
        |_| false,
        Layout::cpu(0),
    )
    .expect("a model");
    Scgpt::bind(&blueprint, &params, ExecutorKind::Plain).expect("a bound model")
}

fn read(name: &str) -> Tensors {
    let path = fixture("scgpt", "checkpoint_flash").join(name);
    Tensor::read_safetensors(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .into_iter()
        .collect()
}

fn close(expected: &Tensors, name: &str, found: &Tensor) {
    let tolerances = &case(&fixture("scgpt", "checkpoint_flash"))["tolerances"];
    let tolerance = |key: &str| tolerances[key].as_f64().expect("a tolerance");
    let expected = &expected[name];
    let excess = (found - expected).abs()
        - expected.abs() * tolerance("forward_rtol")
        - tolerance("forward_atol");
    let worst = excess.max().double_value(&[]);
    assert!(
        worst <= 0.0,
        "`{name}` is off by {worst:e} beyond the tolerance"
    );
}

#[test]
fn a_published_directory_gives_the_reference_outputs() {
    let (inputs, expected, rest) = (
        read("inputs.safetensors"),
        read("expected.safetensors"),
        read("weights.safetensors"),
    );
    let batch = Inputs::new(
        inputs["gene_ids"].shallow_clone(),
        inputs["values"].shallow_clone(),
        Some(inputs["src_key_padding_mask"].to_kind(Kind::Bool)),
    );
    let plain = load(
        Heads {
            mvc: Some(Mvc::default()),
            ..Heads::default()
        },
        Vec::new(),
        &rest,
    );
    let encoded = plain
        .encode(&batch, Pass::EVALUATION)
        .expect("a forward pass");
    close(&expected, "plain.cell_emb", &encoded.cell);
    let tokens = plain.heads.expression(&encoded, &batch).expect("a decoder");
    close(&expected, "plain.mlm_output", &tokens.prediction);
    let cells = plain.heads.mvc(&encoded, &batch).expect("a head");
    close(&expected, "plain.mvc_output", &cells.prediction);

    let details = case(&fixture("scgpt", "checkpoint_flash"));
    let adapter = &details["adapter_config"];
    let layers = adapter["adapter_layer_conf"]
        .as_array()
        .expect("a list of layers");
    let encoder = AdapterOptions::Encoder(EncoderOptions {
        layers: LayerSelection::Listed((0..layers.len()).filter(|&i| layers[i] == true).collect()),
        mlp_ratio: adapter["mlp_ratio"].as_f64().expect("a ratio"),
        skip_connect: adapter["skip_connect"] == true,
        placement: Placement::AfterNorm,
        zero_init: false,
    });
    let classes = details["config"]["n_cls"].as_i64().expect("classes");
    let adapted = load(
        Heads {
            classifier: Some(Classifier { classes, layers: 0 }),
            ..Heads::default()
        },
        vec![encoder],
        &rest,
    );
    let encoded = adapted
        .encode(&batch, Pass::EVALUATION)
        .expect("a forward pass");
    close(&expected, "encoder.cell_emb", &encoded.cell);
    let logits = adapted.heads.classify(&encoded).expect("a head");
    close(&expected, "encoder.cls_output", &logits);
    let tokens = adapted.heads.expression(&encoded, &batch);
    let tokens = tokens.expect("a decoder");
    close(&expected, "encoder.mlm_output", &tokens.prediction);
}
