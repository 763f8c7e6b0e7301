//! The backward pass of a block in stages, each part by part: from the output to queries and the
//! summary of keys and values, from the summary to keys and values, from all three to the input.

use tch::Tensor;

use super::PerformerBlocks;
use crate::exec::{BlockContext, gradient_of, pull};
use crate::{Error, Result};

/// See [`crate::exec::Stack::backward`].
pub(super) fn backward(
    blocks: &PerformerBlocks,
    layer: usize,
    hidden: &Tensor,
    gradient: &Tensor,
    wanted: bool,
    context: &BlockContext,
) -> Result<Option<Tensor>> {
    context.seed_block(layer);
    let hidden = hidden.f_set_requires_grad(wanted)?;
    let with_graph = blocks
        .adapters
        .before_block(layer, hidden.shallow_clone())?;
    let x = with_graph.f_detach()?;
    let wants = Wants {
        input: with_graph.requires_grad(),
        attention: wants_attention(blocks, layer, &with_graph)?,
    };
    let dx = through(blocks, layer, &x, gradient, wants, context)?;
    if with_graph.requires_grad() {
        pull(&with_graph, &dx)?.f_backward()?;
    }
    if !wanted {
        return Ok(None);
    }
    match gradient_of(&hidden)? {
        Some(gradient) => Ok(Some(gradient)),
        None => Err(Error::Internal(format!(
            "block {layer} passed no gradient to its input"
        ))),
    }
}

/// What a gradient is wanted for.
#[derive(Debug, Clone, Copy)]
struct Wants {
    /// The tokens that go into the block.
    input: bool,
    /// Queries, keys and values.
    attention: bool,
}

/// Whether queries, keys and values want a gradient: asked of the very code, on one token.
fn wants_attention(blocks: &PerformerBlocks, layer: usize, x: &Tensor) -> Result<bool> {
    let one = x.f_narrow(0, 0, 1)?.f_narrow(1, 0, 1)?;
    Ok(blocks.qkv(layer, &one)?.requires_grad())
}

/// The gradient of the tokens `x` `[B, S, D]` that go into a block, after gradients went to all
/// that trains.
fn through(
    blocks: &PerformerBlocks,
    layer: usize,
    x: &Tensor,
    gradient: &Tensor,
    wants: Wants,
    context: &BlockContext,
) -> Result<Tensor> {
    let favor = &blocks.layers[layer].favor;
    let (qkv, summary) = tch::no_grad(|| {
        let qkv = blocks.qkv(layer, x)?;
        let [_, k, v] = blocks.heads(&qkv)?;
        let summary = favor.summary(&k, &v)?;
        Ok::<_, Error>((qkv, summary))
    })?;
    let [q, k, v] = blocks.heads(&qkv)?;
    let sums = &summary.sums;
    let _ = sums.f_set_requires_grad(wants.attention)?;
    let (batch, seq, _) = x.size3()?;
    let parts = favor.parts(batch, seq);
    let dx = x.f_zeros_like()?;
    let dqkv = if wants.attention {
        qkv.f_zeros_like()?
    } else {
        // Nothing is written to it.
        qkv.shallow_clone()
    };
    let [dq, dk, dv] = blocks.heads(&dqkv)?;
    for &(at, length) in &parts {
        let own = leaf(x, 1, (at, length), wants.input)?;
        let queries = leaf(&q, 2, (at, length), wants.attention)?;
        let y = blocks.after_summary(layer, at, [&own, &queries, sums], context)?;
        if !y.requires_grad() {
            continue;
        }
        pull(&y, &gradient.f_narrow(1, at, length)?)?.f_backward()?;
        add(&dx, 1, at, &own)?;
        add(&dq, 2, at, &queries)?;
    }
    let Some(gradient) = gradient_of(sums)? else {
        return Ok(dx);
    };
    let [keys, values] = favor.pull_summary(&k, &v, &summary, &gradient)?;
    dk.shallow_clone().f_copy_(&keys)?;
    dv.shallow_clone().f_copy_(&values)?;
    for (at, length) in parts {
        let own = leaf(x, 1, (at, length), wants.input)?;
        let part = blocks.qkv(layer, &own)?;
        pull(&part, &dqkv.f_narrow(1, at, length)?)?.f_backward()?;
        add(&dx, 1, at, &own)?;
    }
    Ok(dx)
}

/// A part of `x` without a graph.
fn leaf(x: &Tensor, dim: i64, (at, length): (i64, i64), wanted: bool) -> Result<Tensor> {
    let part = x.f_narrow(dim, at, length)?.f_detach()?;
    Ok(part.f_set_requires_grad(wanted)?)
}

/// Adds the gradient of a part to that of the whole.
fn add(whole: &Tensor, dim: i64, at: i64, part: &Tensor) -> Result<()> {
    if let Some(gradient) = gradient_of(part)? {
        let mut place = whole.f_narrow(dim, at, part.size()[dim as usize])?;
        let _ = place.f_add_(&gradient)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tch::{Device, Kind};

    use super::*;
    use crate::adapter::{
        AdapterOptions, AdapterSet, BlockShape, LayerSelection, LoraOptions, Names, PrefixOptions,
        Projection,
    };
    use crate::backbone::performer::{ATTENTION, KeyMax, PROJECTIONS, PerformerShape};
    use crate::exec::{Dropout, ExecutorKind, Pass, Stack};
    use crate::params::{Layout, Params, Precision};

    fn shape(key_max: KeyMax, part: i64) -> PerformerShape {
        PerformerShape {
            names: Names {
                blocks: "layers",
                attention: ATTENTION,
                projections: Some(PROJECTIONS),
                token: None,
                prefix: None,
            },
            n_layers: 3,
            d_model: 12,
            n_heads: 2,
            d_head: 8,
            d_hid: 20,
            features: 11,
            qkv_bias: true,
            key_max,
            part,
        }
    }

    fn adapters() -> Vec<AdapterOptions> {
        vec![
            AdapterOptions::Prefix(PrefixOptions {
                layers: LayerSelection::Listed(vec![1]),
                token_nums: 2,
            }),
            AdapterOptions::Lora(LoraOptions {
                layers: LayerSelection::All,
                r: 3,
                lora_alpha: 3.0,
                targets: vec![Projection::Query, Projection::Value],
                train_qkv_bias: false,
            }),
        ]
    }

    /// Output, gradient of the input where it is wanted, and gradients of all that trains.
    fn run(
        shape: PerformerShape,
        trains: impl Fn(&str) -> bool,
        wanted: bool,
        residual: f64,
        executor: ExecutorKind,
    ) -> [Tensor; 3] {
        // Tensors are tiny: threads would only wait for each other.
        tch::set_num_threads(1);
        let blocks = BlockShape {
            n_layers: shape.n_layers,
            d_model: shape.d_model,
            d_attention: shape.n_heads * shape.d_head,
            pre_norm: true,
            names: shape.names,
        };
        let mut set = AdapterSet::build(&adapters(), blocks).unwrap();
        let mut specs = PerformerBlocks::specs(&shape);
        specs.extend(set.specs(blocks));
        let layout = Layout {
            precision: Precision::F64,
            ..Layout::cpu(3)
        };
        let params = Params::build(
            &specs,
            |spec| {
                // Factors that start at zero would hide what should reach the others.
                let zeros = spec.init == crate::Init::Zeros;
                let init = crate::Init::Normal { std: 0.3 };
                let values = init.values(9, &spec.name, spec.numel());
                let value = Tensor::from_slice(&values).view(spec.shape.as_slice());
                Ok(zeros.then_some(value))
            },
            |spec| trains(&spec.name),
            layout,
        )
        .unwrap();
        set.bind(&params).unwrap();
        let bound = PerformerBlocks::bind(&params, shape, set).unwrap();
        let stack: Rc<dyn Stack> = Rc::new(bound);
        let values = crate::Init::standard_normal().values(1, "x", 2 * 13 * 12);
        let x = Tensor::from_slice(&values).view([2, 13, 12]);
        let x = x.to_kind(Kind::Double).set_requires_grad(wanted);
        let dropout = Dropout {
            residual,
            attention: 0.0,
        };
        let context = BlockContext {
            keep: None,
            keep_prefixed: None,
            treatment: None,
            pass: Pass::training(dropout, 4),
        };
        let run = executor
            .build()
            .run(&stack, x.shallow_clone(), context)
            .unwrap();
        (run.hidden.square() * 0.1).sum(Kind::Double).backward();
        if let Some(tape) = run.tape {
            tape.backward().unwrap();
        }
        let input = if wanted {
            x.grad()
        } else {
            Tensor::zeros([1], (Kind::Double, Device::Cpu))
        };
        [run.hidden.detach(), input, params.grad().shallow_clone()]
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn parts_and_stages_give_the_gradients_of_autograd_over_the_whole_sequence() {
        for key_max in [KeyMax::Cell, KeyMax::Batch] {
            for (wanted, all) in [(true, true), (false, false)] {
                let trains = |name: &str| {
                    let adapter = name.contains("lora") || name.contains("adapter");
                    all || adapter
                };
                // The masks of dropout are drawn for each part, so parts are compared with the same.
                let of = |executor| run(shape(key_max, 10), trains, wanted, 0.25, executor);
                let plain = of(ExecutorKind::Plain);
                let staged = of(ExecutorKind::Recompute);
                assert!(plain[2].abs().max().double_value(&[]) > 1e-3);
                for (a, b) in plain.iter().zip(&staged) {
                    let found = difference(a, b);
                    assert!(found < 1e-11, "{key_max:?} {wanted} {all} {found:e}");
                }
            }
        }
    }

    #[test]
    fn the_size_of_parts_changes_nothing() {
        let of = |part, executor| run(shape(KeyMax::Cell, part), |_| true, true, 0.0, executor);
        let whole = of(1000, ExecutorKind::Plain);
        for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
            for (a, b) in whole.iter().zip(&of(6, executor)) {
                assert!(difference(a, b) < 1e-11, "{executor:?}");
            }
        }
    }
}
