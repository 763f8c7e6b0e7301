//! DRUG: the drug-conditional adapter (scDCA, Maleki et al. 2024) and the readings of its paper,
//! whose equations are not public in full. The molecule's embedding e generates what an ordinary
//! bottleneck learns as a constant, the bias of its down projection:
//! `A(h, e) = h + W_up act(W_down h + f(e)) + b_up`.
//!
//! With a zero `W_up` and `b_up`, as they start, the model is the frozen backbone.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection};
use crate::backbone::Activation;
use crate::ops::{Linear, cast};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// Settings of the DRUG adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct DrugOptions {
    /// Blocks that carry it; of [`DrugReading::InputAdd`] without effect.
    pub layers: LayerSelection,
    /// Numbers that describe a treatment: the width of the molecules' embeddings, and one more
    /// where the dose is told.
    pub width: i64,
    /// What the molecule does.
    pub reading: DrugReading,
}

/// Where the molecule enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrugReading {
    /// A bottleneck on the output of a sublayer, before the residual sum and the norm.
    Bottleneck(DrugBottleneck),
    /// Keys and values of T tokens before those of the cell, which every token may attend to. Not
    /// the frozen backbone at the start: attention is shared with these tokens.
    Prefix {
        /// T.
        tokens: i64,
    },
    /// A projection of the molecule added to every token's embedding: with everything trained, the
    /// fine-tuning that the paper compares with.
    InputAdd,
}

/// The bottleneck's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrugBottleneck {
    /// The sublayers.
    pub site: DrugSite,
    /// Width b; 16 keeps a 53 M backbone below one percent.
    pub bottleneck: i64,
    /// What the molecule generates.
    pub bias: DrugBias,
    /// How.
    pub generator: Generator,
    /// Inside the bottleneck.
    pub activation: Activation,
}

impl Default for DrugBottleneck {
    fn default() -> Self {
        Self {
            site: DrugSite::FeedForward,
            bottleneck: 16,
            bias: DrugBias::Down,
            generator: Generator::Linear,
            activation: Activation::Relu,
        }
    }
}

/// Sublayers with a bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrugSite {
    /// The feed-forward half; the functions of the paper are numbered by layer alone.
    FeedForward,
    /// The attention.
    Attention,
    /// Both, as Houlsby et al. (2019) have it.
    Both,
}

/// What the molecule generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrugBias {
    /// The bias of the down projection.
    Down,
    /// The biases of both projections.
    DownAndUp,
    /// Nothing: an ordinary bottleneck, the ablation.
    Static,
}

/// From a molecule's embedding to a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generator {
    /// One linear layer.
    Linear,
    /// Two with a ReLU between them.
    Mlp {
        /// Width between them.
        hidden: i64,
    },
}

impl Generator {
    fn specs(self, prefix: &str, inputs: i64, outputs: i64, zero: bool) -> Vec<TensorSpec> {
        let role = Role::Adapter;
        let layer = |name: String, from, to| Linear::specs(&name, from, to, true, role);
        let (mut specs, mut last) = match self {
            Self::Linear => (Vec::new(), layer(format!("{prefix}.net"), inputs, outputs)),
            Self::Mlp { hidden } => (
                layer(format!("{prefix}.net.0"), inputs, hidden),
                layer(format!("{prefix}.net.2"), hidden, outputs),
            ),
        };
        if zero {
            for spec in &mut last {
                spec.init = Init::Zeros;
            }
        }
        specs.extend(last);
        specs
    }

    fn bind(self, params: &Params, prefix: &str) -> Result<Vec<Linear>> {
        let names: &[&str] = match self {
            Self::Linear => &["net"],
            Self::Mlp { .. } => &["net.0", "net.2"],
        };
        let bind = |name: &&str| Linear::bind(params, &format!("{prefix}.{name}"), true);
        names.iter().map(bind).collect()
    }
}

/// `f(e)`: `e` f32 `[B, width]` to `[B, outputs]`, in full precision.
fn generate(net: &[Linear], e: &Tensor) -> Result<Tensor> {
    let Some((first, rest)) = net.split_first() else {
        return Err(Error::Internal("a generator without layers".into()));
    };
    rest.iter()
        .try_fold(first.forward(e)?, |x, layer| layer.forward(&x.f_relu()?))
}

/// One bottleneck, bound.
#[derive(Debug)]
struct Bound {
    down: Linear,
    up: Linear,
    down_bias: Vec<Linear>,
    up_bias: Vec<Linear>,
    activation: Activation,
}

impl Bound {
    /// `h`: `[B, S, D]`; `e`: `[B, width]`; returns `[B, S, D]`.
    fn forward(&self, h: &Tensor, e: Option<&Tensor>) -> Result<Tensor> {
        let kind = h.f_kind()?;
        let bias = |net: &[Linear]| -> Result<Option<Tensor>> {
            if net.is_empty() {
                return Ok(None);
            }
            let e = e.ok_or_else(missing)?;
            Ok(Some(cast(&generate(net, e)?, kind)?.f_unsqueeze(1)?)) // [B, 1, outputs]
        };
        let mut z = self.down.forward(h)?;
        if let Some(bias) = bias(&self.down_bias)? {
            z = z.f_add(&bias)?;
        }
        let mut y = self.up.forward(&self.activation.apply(&z)?)?;
        if let Some(bias) = bias(&self.up_bias)? {
            y = y.f_add(&bias)?;
        }
        Ok(h.f_add(&y)?)
    }
}

fn missing() -> Error {
    Error::MissingInput {
        what: "the treatment of each cell, for the drug adapter",
    }
}

/// Keys and values of one block.
#[derive(Debug)]
struct KeysAndValues {
    keys: Linear,
    values: Linear,
}

#[derive(Debug)]
pub(super) struct Drug {
    layers: Vec<usize>,
    options: DrugOptions,
    attention: BTreeMap<usize, Bound>,
    feed_forward: BTreeMap<usize, Bound>,
    prefixes: BTreeMap<usize, KeysAndValues>,
    input: Option<Linear>,
}

const INPUT: &str = "drug_proj";
const ATTENTION: &str = "attn";
const FEED_FORWARD: &str = "ffn";

fn prefix(layer: usize, part: &str) -> String {
    format!("drug_adapters.{layer}.{part}")
}

impl DrugBottleneck {
    fn parts(self) -> &'static [&'static str] {
        match self.site {
            DrugSite::FeedForward => &[FEED_FORWARD],
            DrugSite::Attention => &[ATTENTION],
            DrugSite::Both => &[ATTENTION, FEED_FORWARD],
        }
    }

    fn specs(self, prefix: &str, d_model: i64, width: i64) -> Vec<TensorSpec> {
        let role = Role::Adapter;
        let (down_bias, up_bias) = match self.bias {
            DrugBias::Down => (false, true),
            DrugBias::DownAndUp => (false, false),
            DrugBias::Static => (true, true),
        };
        let name = |part: &str| format!("{prefix}.{part}");
        let down = Linear::specs(&name("down"), d_model, self.bottleneck, down_bias, role);
        let mut up = Linear::specs(&name("up"), self.bottleneck, d_model, up_bias, role);
        for spec in &mut up {
            spec.init = Init::Zeros;
        }
        let mut specs = down;
        specs.extend(up);
        if self.bias != DrugBias::Static {
            let own = self.generator;
            specs.extend(own.specs(&name("f_down"), width, self.bottleneck, false));
            if self.bias == DrugBias::DownAndUp {
                specs.extend(own.specs(&name("f_up"), width, d_model, true));
            }
        }
        specs
    }

    fn bind(self, params: &Params, prefix: &str) -> Result<Bound> {
        let name = |part: &str| format!("{prefix}.{part}");
        let generator = |part: &str| self.generator.bind(params, &name(part));
        let (down_bias, up_bias) = match self.bias {
            DrugBias::Down => (generator("f_down")?, Vec::new()),
            DrugBias::DownAndUp => (generator("f_down")?, generator("f_up")?),
            DrugBias::Static => (Vec::new(), Vec::new()),
        };
        Ok(Bound {
            down: Linear::bind(params, &name("down"), self.bias == DrugBias::Static)?,
            up: Linear::bind(params, &name("up"), self.bias != DrugBias::DownAndUp)?,
            down_bias,
            up_bias,
            activation: self.activation,
        })
    }
}

impl Drug {
    pub(super) fn new(options: &DrugOptions, shape: BlockShape) -> Result<Self> {
        let positive = |setting, found: i64| {
            if found >= 1 {
                return Ok(());
            }
            Err(Error::Setting {
                setting,
                problem: format!("must be at least 1, got {found}"),
            })
        };
        positive("the width of a treatment", options.width)?;
        match options.reading {
            DrugReading::Bottleneck(own) => {
                positive("adapter.drug.bottleneck", own.bottleneck)?;
                if let Generator::Mlp { hidden } = own.generator {
                    positive("adapter.drug.generator_hidden", hidden)?;
                }
            }
            DrugReading::Prefix { tokens } => positive("adapter.drug.tokens", tokens)?,
            DrugReading::InputAdd => {}
        }
        Ok(Self {
            layers: match options.reading {
                DrugReading::InputAdd => Vec::new(),
                _ => options.layers.resolve(shape.n_layers)?,
            },
            options: options.clone(),
            attention: BTreeMap::new(),
            feed_forward: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            input: None,
        })
    }

    fn check(&self, treatment: Option<&Tensor>) -> Result<Tensor> {
        let treatment = treatment.ok_or_else(missing)?;
        let found = treatment.size();
        match found[..] {
            [_, width] if width == self.options.width => Ok(treatment.shallow_clone()),
            _ => Err(Error::ShapeMismatch {
                name: "treatment".into(),
                expected: vec![found.first().copied().unwrap_or(0), self.options.width],
                found,
            }),
        }
    }
}

impl Adapter for Drug {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let (d_model, width) = (shape.d_model, self.options.width);
        let of_layers = |specs: &dyn Fn(usize) -> Vec<TensorSpec>| -> Vec<TensorSpec> {
            self.layers.iter().flat_map(|&layer| specs(layer)).collect()
        };
        match self.options.reading {
            DrugReading::Bottleneck(own) => of_layers(&|layer| {
                let parts = own.parts().iter();
                parts
                    .flat_map(|part| own.specs(&prefix(layer, part), d_model, width))
                    .collect()
            }),
            DrugReading::Prefix { tokens } => of_layers(&|layer| {
                let linear = |part| {
                    let name = prefix(layer, part);
                    Linear::specs(&name, width, tokens * d_model, true, Role::Adapter)
                };
                [linear("to_k"), linear("to_v")].concat()
            }),
            DrugReading::InputAdd => {
                let mut specs = Linear::specs(INPUT, width, d_model, true, Role::Adapter);
                // The model starts as the pretrained one.
                for spec in &mut specs {
                    spec.init = Init::Zeros;
                }
                specs
            }
        }
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        match self.options.reading {
            DrugReading::Bottleneck(own) => {
                for &layer in &self.layers {
                    for &part in own.parts() {
                        let bound = own.bind(params, &prefix(layer, part))?;
                        let site = match part {
                            ATTENTION => &mut self.attention,
                            _ => &mut self.feed_forward,
                        };
                        site.insert(layer, bound);
                    }
                }
            }
            DrugReading::Prefix { .. } => {
                for &layer in &self.layers {
                    let bind = |part| Linear::bind(params, &prefix(layer, part), true);
                    let (keys, values) = (bind("to_k")?, bind("to_v")?);
                    self.prefixes.insert(layer, KeysAndValues { keys, values });
                }
            }
            DrugReading::InputAdd => self.input = Some(Linear::bind(params, INPUT, true)?),
        }
        Ok(())
    }

    fn treatment_width(&self) -> Option<i64> {
        match self.options.reading {
            DrugReading::Bottleneck(own) if own.bias == DrugBias::Static => None,
            _ => Some(self.options.width),
        }
    }

    fn embedding(&self, x: Tensor, treatment: Option<&Tensor>) -> Result<Tensor> {
        let Some(input) = &self.input else {
            return Ok(x);
        };
        let added = input.forward(&self.check(treatment)?)?.f_unsqueeze(1)?; // [B, 1, D]
        Ok(x.f_add(&cast(&added, x.f_kind()?)?)?)
    }

    fn keys_and_values(
        &self,
        layer: usize,
        treatment: Option<&Tensor>,
    ) -> Result<Option<[Tensor; 2]>> {
        let (Some(own), DrugReading::Prefix { tokens }) =
            (self.prefixes.get(&layer), self.options.reading)
        else {
            return Ok(None);
        };
        let e = self.check(treatment)?;
        let tokens = |linear: &Linear| -> Result<Tensor> {
            let flat = linear.forward(&e)?; // [B, T * D]
            Ok(flat.f_view([e.size()[0], tokens, -1])?)
        };
        Ok(Some([tokens(&own.keys)?, tokens(&own.values)?]))
    }

    fn attention_output(
        &self,
        layer: usize,
        attended: Tensor,
        treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.sublayer(self.attention.get(&layer), attended, treatment)
    }

    fn feed_forward_output(
        &self,
        layer: usize,
        fed: Tensor,
        treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.sublayer(self.feed_forward.get(&layer), fed, treatment)
    }
}

impl Drug {
    fn sublayer(
        &self,
        bound: Option<&Bound>,
        x: Tensor,
        treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Some(bound) = bound else {
            return Ok(x);
        };
        if self.treatment_width().is_none() {
            return bound.forward(&x, None);
        }
        bound.forward(&x, Some(&self.check(treatment)?))
    }
}

/// The numbers that describe treatments: embeddings of molecules and, where doses are told, their
/// logarithm to base 10.
///
/// # Shapes
/// `molecule`: f32 `[B, W]`; `dose`: f32 `[B]`, above 0, in the unit of the data; returns f32
/// `[B, W]` or `[B, W + 1]`.
///
/// # Errors
/// A dose that is not above 0, or libtorch fails.
pub fn treatment(molecule: &Tensor, dose: Option<&Tensor>) -> Result<Tensor> {
    let Some(dose) = dose else {
        return Ok(molecule.shallow_clone());
    };
    let bad = dose.f_isfinite()?.f_logical_and(&dose.f_gt(0.0)?)?;
    if bad.f_all()?.int64_value(&[]) == 0 {
        return Err(Error::Setting {
            setting: "dose",
            problem: "a dose must be a number above 0: its logarithm is an input".into(),
        });
    }
    Ok(Tensor::f_cat(
        &[molecule.shallow_clone(), dose.f_log10()?.f_unsqueeze(1)?],
        1,
    )?)
}
