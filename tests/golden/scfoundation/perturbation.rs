//! The decoder, its gene embeddings with adapters, and GEARS on top of them: outputs, losses and every
//! gradient.

use std::collections::BTreeSet;

use scpeft_model::backbone::performer::KeyMax;
use scpeft_model::backbone::scfoundation::{Blueprint, Decoded, DecoderShape, Scfoundation};
use scpeft_model::backbone::{Encoded, Inputs, Model};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::gears::{Gears, GearsShape, Graph, GraphReach};
use scpeft_model::loss::{Condition, autofocus_direction};
use scpeft_model::{Layout, Params, Role, TensorSpec};
use tch::{Kind, Tensor};

use crate::golden::{Golden, training};

/// The blueprint of a case with its decoder, and its adapters' layers.
fn blueprint(golden: &Golden) -> Blueprint {
    let weight = |name: &str| golden.weights[name].size();
    let number = |key: &str| golden.case["config"]["decoder"][key].as_i64().unwrap();
    let mut blueprint = golden.blueprint();
    blueprint.pad_position = blueprint.shape.pad_id;
    blueprint.decoder = Some(DecoderShape {
        n_layers: number("depth") as usize,
        d_model: number("hidden_dim"),
        n_heads: number("heads"),
        d_head: number("dim_head"),
        d_hid: weight("decoder.performer.net.layers.0.1.fn.fn.w1.weight")[0],
        key_max: KeyMax::Batch,
        reconstructs: golden.weights.contains_key("to_final.weight"),
    });
    blueprint
}

/// Places above zero of `x` `[B, G + 2]`, padded to a multiple of `multiple`.
fn gather(golden: &Golden, x: &Tensor, multiple: usize) -> Inputs {
    let (cells, places) = x.size2().unwrap();
    let rows: Vec<Vec<f32>> = (0..cells)
        .map(|row| Vec::try_from(&x.get(row)).unwrap())
        .collect();
    let expressed = |row: &Vec<f32>| row.iter().filter(|v| **v > 0.0).count();
    let width = rows
        .iter()
        .map(expressed)
        .max()
        .unwrap()
        .next_multiple_of(multiple);
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    for (row, x) in rows.iter().enumerate() {
        let own = (0..places as i32).zip(x).filter(|(_, v)| **v > 0.0);
        for (id, &value) in own {
            ids.push(id);
            values.push(value);
        }
        ids.resize((row + 1) * width, places as i32);
        values.resize((row + 1) * width, golden.pad_value() as f32);
    }
    let shape = [cells, width as i64];
    let ids = Tensor::from_slice(&ids).view(shape);
    let padding = ids.eq(places);
    Inputs::new(ids, Tensor::from_slice(&values).view(shape), Some(padding))
}

/// Expression `[B, G]` with total counts behind it, as tokens: both depths are those of the counts.
fn with_depths(golden: &Golden, x: &Tensor) -> Inputs {
    let expression = x.narrow(1, 0, golden.genes());
    let depth = x.narrow(1, golden.genes(), 1).log10();
    gather(golden, &Tensor::cat(&[&expression, &depth, &depth], 1), 16)
}

fn decode(model: &Scfoundation, batch: &Inputs, pass: Pass) -> (Encoded, Decoded) {
    let encoded = model.encode(batch, pass).unwrap();
    let decoded = model.decode(&encoded, batch, pass).unwrap();
    (encoded, decoded)
}

#[test]
fn all_genes_are_decoded_and_reconstructed() {
    for (name, multiple) in [("mae_forward_annot", 1), ("mae_forward_pert16", 16)] {
        let golden = Golden::load(name);
        let batch = gather(&golden, &golden.inputs["x"], multiple);
        golden.close("encoder_values", &batch.values);
        golden.close("encoder_gene_ids", &batch.gene_ids);
        golden.close("encoder_padding_mask", batch.padding.as_ref().unwrap());
        for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
            let (_, model) = golden.model(&blueprint(&golden), executor);
            let (_, decoded) = tch::no_grad(|| decode(&model, &batch, Pass::EVALUATION));
            golden.close("gene_embedding", &decoded.genes);
            golden.close("reconstruction", &model.reconstruct(&decoded).unwrap());
        }
    }
}

/// With a maximum of its own, what is decoded for a cell does not depend on the others.
#[test]
fn a_cell_is_decoded_on_its_own_unless_keys_share_their_maximum() {
    let golden = Golden::load("mae_forward_annot");
    let off = |key_max| {
        let mut blueprint = blueprint(&golden);
        blueprint.decoder.as_mut().unwrap().key_max = key_max;
        let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
        let x = &golden.inputs["x"];
        let together = decode(&model, &gather(&golden, x, 1), Pass::EVALUATION)
            .1
            .genes;
        let alone = decode(
            &model,
            &gather(&golden, &x.narrow(0, 1, 1), 1),
            Pass::EVALUATION,
        )
        .1
        .genes;
        (together.narrow(0, 1, 1) - alone)
            .abs()
            .max()
            .double_value(&[])
    };
    assert!(off(KeyMax::Cell) < 2e-6, "{}", off(KeyMax::Cell));
    assert!(off(KeyMax::Batch) > 1e-5, "{}", off(KeyMax::Batch));
}

fn backward(loss: &Tensor, encoded: Encoded, decoded: Decoded) {
    loss.backward();
    // The decoder's graph leads to the encoder's output.
    for tape in [decoded.tape, encoded.tape].into_iter().flatten() {
        tape.backward().unwrap();
    }
}

/// Gene embeddings with an adapter in the upper half, and gradients through the decoder.
#[test]
fn gene_embeddings_with_every_adapter() {
    for adapter in ["none", "encoder", "token", "prefix", "lora"] {
        let golden = Golden::load_stripped(&format!("pert_{adapter}"), "m.");
        let blueprint = blueprint(&golden);
        let batch = with_depths(&golden, &golden.inputs["x"]);
        let target = &golden.inputs["target"];
        for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
            let (mut params, model) = golden.model(&blueprint, executor);
            let genes = |decoded: &Decoded| decoded.genes.narrow(1, 0, golden.genes());
            let (_, evaluated) = tch::no_grad(|| decode(&model, &batch, Pass::EVALUATION));
            golden.close("gene_embedding", &genes(&evaluated));
            params.zero_grad().unwrap();
            let (encoded, decoded) = decode(&model, &batch, training());
            golden.close("gene_embedding", &genes(&decoded));
            let loss = (genes(&decoded) - target).square().mean(Kind::Float);
            golden.close("loss", &loss);
            if adapter != "none" {
                backward(&loss, encoded, decoded);
            }
            golden.check_gradients(&params);
        }
    }
}

/// All tensors of the coupled model, in one buffer.
struct Coupled {
    params: Params,
    model: Scfoundation,
    gears: Gears,
}

const PREFIX: &str = "singlecell_model.m.";

fn coupled(golden: &Golden, reach: GraphReach, executor: ExecutorKind) -> Coupled {
    let blueprint = blueprint(golden);
    let decoder = blueprint.decoder.unwrap();
    let shape = GearsShape {
        genes: golden.genes(),
        d_model: decoder.d_model,
        perturbations: golden.case["num_perts"].as_i64().unwrap(),
    };
    let mut specs = blueprint.specs().unwrap();
    specs.extend(Gears::specs(shape));
    let trainable: BTreeSet<String> = golden.trainable();
    let weights = |spec: &TensorSpec| {
        let tensor = golden.weights.get(&spec.name);
        assert!(tensor.is_some(), "the fixture has no `{}`", spec.name);
        Ok(tensor.map(Tensor::shallow_clone))
    };
    let trains = |spec: &TensorSpec| trainable.contains(&spec.name);
    let params = Params::build(&specs, weights, trains, Layout::cpu(0)).unwrap();
    assert_eq!(params.slots().len(), trainable.len(), "trainable tensors");
    // Everything of GEARS trains.
    let own = |s: &&TensorSpec| s.role == Role::Head;
    assert!(
        specs
            .iter()
            .filter(own)
            .all(|s| trainable.contains(&s.name))
    );
    let model = Scfoundation::bind(&blueprint, &params, executor).unwrap();
    let graph = |name: &str, nodes| {
        let edges = &golden.inputs[name];
        Graph::new(edges, &golden.inputs[&format!("{name}_weight")], nodes).unwrap()
    };
    let together = graph("G_coexpress", shape.genes);
    let function = graph("G_go", shape.perturbations);
    let gears = Gears::bind(&params, shape, reach, together, function).unwrap();
    gears.constrain().unwrap();
    Coupled {
        params,
        model,
        gears,
    }
}

fn perturbed(golden: &Golden) -> Vec<Vec<i64>> {
    let cells = golden.case["pert_idx"].as_array().unwrap().iter();
    cells
        .map(|nodes| {
            let nodes = nodes
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_i64().unwrap());
            // -1 stands for no perturbation.
            nodes.filter(|&n| n >= 0).collect()
        })
        .collect()
}

/// The conditions that count: controls with all genes, others with those that are listed.
fn conditions(golden: &Golden) -> Vec<Condition> {
    let names = golden.case["pert_names"].as_array().unwrap();
    let names: Vec<&str> = names.iter().map(|n| n.as_str().unwrap()).collect();
    let distinct: BTreeSet<&str> = names.iter().copied().collect();
    distinct
        .into_iter()
        .map(|name| {
            let cells = (0..names.len() as i64).filter(|&c| names[c as usize] == name);
            let genes = golden.inputs.get(&format!("retain.{name}"));
            assert!(genes.is_some() || name == "ctrl", "{name}");
            Condition {
                cells: Tensor::from_slice(&cells.collect::<Vec<_>>()),
                genes: genes.map(Tensor::shallow_clone),
            }
        })
        .collect()
}

fn loss(golden: &Golden, predicted: &Tensor) -> Tensor {
    let number = |key: &str| golden.case[key].as_f64().unwrap();
    let (target, control) = (&golden.inputs["y"], &golden.inputs["ctrl"]);
    let (focus, direction) = (number("gamma"), number("direction_lambda"));
    autofocus_direction(
        predicted,
        target,
        control,
        &conditions(golden),
        focus,
        direction,
    )
    .unwrap()
}

#[test]
fn gears_on_adapted_gene_embeddings() {
    for adapter in ["encoder", "token", "prefix", "lora"] {
        let golden = Golden::load_stripped(&format!("gears_{adapter}"), PREFIX);
        let batch = with_depths(&golden, &golden.inputs["x"]);
        let expression = golden.inputs["x"].narrow(1, 0, golden.genes());
        for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
            let mut coupled = coupled(&golden, GraphReach::FirstCell, executor);
            coupled.params.zero_grad().unwrap();
            let (encoded, decoded) = decode(&coupled.model, &batch, training());
            let genes = decoded.genes.narrow(1, 0, golden.genes());
            let response = coupled
                .gears
                .predict(&genes, &expression, &perturbed(&golden), true)
                .unwrap();
            golden.close("prediction", &response.expression);
            let loss = loss(&golden, &response.expression);
            golden.close("loss", &loss);
            backward(&loss, encoded, decoded);
            golden.check_gradients(&coupled.params);
        }
    }
}

/// With the graph reaching every cell, a cell's prediction does not depend on its place; what norms saw
/// moves their statistics, and evaluation uses these.
#[test]
fn predictions_do_not_depend_on_the_place_of_a_cell() {
    let golden = Golden::load_stripped("gears_encoder", PREFIX);
    let perturbed = perturbed(&golden);
    let turned: Vec<Vec<i64>> = perturbed.iter().rev().cloned().collect();
    for reach in [GraphReach::EveryCell, GraphReach::FirstCell] {
        let coupled = coupled(&golden, reach, ExecutorKind::Plain);
        let predict = |x: &Tensor, perturbed: &[Vec<i64>], training| {
            let batch = with_depths(&golden, x);
            let (_, decoded) = tch::no_grad(|| decode(&coupled.model, &batch, Pass::EVALUATION));
            let genes = decoded.genes.narrow(1, 0, golden.genes());
            let expression = x.narrow(1, 0, golden.genes());
            coupled
                .gears
                .predict(&genes, &expression, perturbed, training)
        };
        let x = &golden.inputs["x"];
        let first = predict(x, &perturbed, true).unwrap().expression;
        let other = predict(&x.flip([0]), &turned, true).unwrap();
        let other = other.expression.flip([0]);
        let off = (&first - other).abs().max().double_value(&[]);
        match reach {
            GraphReach::EveryCell => assert!(off < 1e-4, "{off}"),
            GraphReach::FirstCell => assert!(off > 1e-2, "{off}"),
        }
        let before = predict(x, &perturbed, false).unwrap().expression;
        let response = predict(x, &perturbed, true).unwrap();
        let again = predict(x, &perturbed, false).unwrap().expression;
        assert!(again.equal(&before), "a pass moved statistics");
        coupled.gears.update(&response.seen).unwrap();
        let after = predict(x, &perturbed, false).unwrap().expression;
        assert!(!after.equal(&before), "statistics did not move");
        let beyond = predict(x, &[vec![99], vec![], vec![]], false).unwrap_err();
        assert!(beyond.to_string().contains("perturbation 99"), "{beyond}");
    }
}
