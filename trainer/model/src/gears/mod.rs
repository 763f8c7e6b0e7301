//! GEARS (Roohani et al. 2024): expression after genetic perturbations, from embeddings of a cell's
//! genes, a graph of genes that are expressed together and a graph of genes of like function.
//!
//! Where the embeddings come from is not its business: scPEFT takes those of scFoundation's decoder, one
//! for each gene of each cell, in the place of a table. Each gene's embedding is joined by what its
//! neighbours in the first graph say; what the perturbed genes are, by the second graph, is added to all
//! genes of the cell; small networks, shared and of each gene, turn them into a change of expression.
//!
//! Three tables are kept to rows of length at most 1, [`Gears::constrain`]; running statistics move when
//! [`Gears::update`] says so. Neither happens in a forward pass.

mod graph;
mod norm;

use tch::{Kind, Tensor};

use crate::ops::Linear;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

pub use graph::Graph;
pub use norm::Seen;

use norm::BatchNorm;

/// Weight of what the neighbours of a gene say.
const NEIGHBOURS: f64 = 0.2;
/// The longest that a row of a table may be.
const LONGEST: f64 = 1.0;

/// Dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GearsShape {
    /// Genes G.
    pub genes: i64,
    /// Width D of their embeddings.
    pub d_model: i64,
    /// Genes P that can be perturbed, the nodes of the second graph.
    pub perturbations: i64,
}

/// Which cells of a micro-batch the graph of genes that are expressed together reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GraphReach {
    /// All of them.
    #[default]
    EveryCell,
    /// The first, as in the reference, whose edges are those of the first cell's genes alone: what is
    /// predicted for a cell then depends on its place in the micro-batch.
    FirstCell,
}

/// Two layers with a norm behind each.
#[derive(Debug)]
struct Network {
    layers: [(Linear, BatchNorm); 2],
}

impl Network {
    fn specs(prefix: &str, [input, hidden, output]: [i64; 3]) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        for (place, from, to) in [(0, input, hidden), (3, hidden, output)] {
            let name = |place: usize| format!("{prefix}.network.{place}");
            specs.extend(Linear::specs(&name(place), from, to, true, Role::Head));
            specs.extend(BatchNorm::specs(&name(place + 1), to));
        }
        specs
    }

    fn bind(params: &Params, prefix: &str) -> Result<Self> {
        let layer = |place: usize| {
            let name = |place: usize| format!("{prefix}.network.{place}");
            Ok::<_, Error>((
                Linear::bind(params, &name(place), true)?,
                BatchNorm::bind(params, &name(place + 1))?,
            ))
        };
        Ok(Self {
            layers: [layer(0)?, layer(3)?],
        })
    }

    /// `x`: `[N, inputs]`; returns `[N, outputs]`.
    fn forward(&self, x: &Tensor, statistics: &mut Statistics) -> Result<Tensor> {
        let [(first, first_norm), (second, second_norm)] = &self.layers;
        let h = first_norm
            .forward(&first.forward(x)?, statistics)?
            .f_relu()?;
        second_norm.forward(&second.forward(&h)?, statistics)
    }
}

/// Where norms take their statistics from, and what they saw.
#[derive(Debug)]
enum Statistics {
    /// From the micro-batch.
    Batch(Vec<Seen>),
    /// The running ones.
    Running,
}

/// What a pass predicts.
#[derive(Debug)]
pub struct Response {
    /// Expression `[B, G]`.
    pub expression: Tensor,
    /// What norms saw in training, for [`Gears::update`].
    pub seen: Vec<Seen>,
}

/// The bound model.
#[derive(Debug)]
pub struct Gears {
    shape: GearsShape,
    reach: GraphReach,
    together: Graph,
    function: Graph,
    gene_norm: BatchNorm,
    neighbours: Tensor,
    neighbour_layer: Linear,
    gene_network: Network,
    perturbations: Tensor,
    perturbation_layer: Linear,
    perturbation_network: Network,
    base_norm: BatchNorm,
    recovery: Network,
    /// Weights and biases of each gene: `[G, D, 1]`, `[G, 1]`, `[1, G, D + 1]`, `[1, G]`.
    own: [Tensor; 4],
    across: Network,
}

const OWN: [&str; 4] = ["indv_w1", "indv_b1", "indv_w2", "indv_b2"];
const TABLES: [&str; 2] = ["emb_pos.weight", "pert_emb.weight"];

impl Gears {
    /// Every tensor, with the names of the reference; all of them train.
    pub fn specs(shape: GearsShape) -> Vec<TensorSpec> {
        let GearsShape {
            genes,
            d_model,
            perturbations,
        } = shape;
        let role = Role::Head;
        let spec =
            |name: &str, shape: &[i64], init| TensorSpec::new(name.into(), shape, init, role);
        let start = Init::standard_normal();
        let unit = Init::Uniform { bound: 1.0 };
        let own = [
            vec![genes, d_model, 1],
            vec![genes, 1],
            vec![1, genes, d_model + 1],
            vec![1, genes],
        ];
        let mut specs: Vec<TensorSpec> = (OWN.iter().zip(own))
            .map(|(name, shape)| spec(name, &shape, unit))
            .collect();
        specs.push(spec(TABLES[0], &[genes, d_model], start));
        specs.push(spec(TABLES[1], &[perturbations, d_model], start));
        for layer in ["layers_emb_pos.0.lin", "sim_layers.0.lin"] {
            specs.extend(Linear::specs(layer, d_model, d_model, true, role));
        }
        for (network, sizes) in [
            ("emb_trans_v2", [d_model; 3]),
            ("pert_fuse", [d_model; 3]),
            ("recovery_w", [d_model, 2 * d_model, d_model]),
            ("cross_gene_state", [genes, d_model, d_model]),
        ] {
            specs.extend(Network::specs(network, sizes));
        }
        for norm in ["bn_emb", "bn_pert_base"] {
            specs.extend(BatchNorm::specs(norm, d_model));
        }
        specs
    }

    /// Binds to the tensors of [`Gears::specs`]: `together` is the graph of genes that are expressed
    /// together, `function` that of genes of like function.
    ///
    /// # Errors
    /// When `params` lacks a tensor, or a graph has other nodes than the model.
    pub fn bind(
        params: &Params,
        shape: GearsShape,
        reach: GraphReach,
        together: Graph,
        function: Graph,
    ) -> Result<Self> {
        for (graph, nodes, what) in [
            (&together, shape.genes, "genes"),
            (
                &function,
                shape.perturbations,
                "genes that can be perturbed",
            ),
        ] {
            if graph.nodes() != nodes {
                return Err(Error::Internal(format!(
                    "a graph has {} nodes, the model {nodes} {what}",
                    graph.nodes()
                )));
            }
        }
        let own = OWN.map(|name| params.get(name));
        let [w1, b1, w2, b2] = own;
        Ok(Self {
            shape,
            reach,
            together,
            function,
            gene_norm: BatchNorm::bind(params, "bn_emb")?,
            neighbours: params.get(TABLES[0])?,
            neighbour_layer: Linear::bind(params, "layers_emb_pos.0.lin", true)?,
            gene_network: Network::bind(params, "emb_trans_v2")?,
            perturbations: params.get(TABLES[1])?,
            perturbation_layer: Linear::bind(params, "sim_layers.0.lin", true)?,
            perturbation_network: Network::bind(params, "pert_fuse")?,
            base_norm: BatchNorm::bind(params, "bn_pert_base")?,
            recovery: Network::bind(params, "recovery_w")?,
            own: [w1?, b1?, w2?, b2?],
            across: Network::bind(params, "cross_gene_state")?,
        })
    }

    /// Expression after perturbations.
    ///
    /// # Shapes
    /// `genes`: embeddings of the genes of each cell, f32 `[B, G, D]`; `expression`: before the
    /// perturbation, f32 `[B, G]`; `perturbed`: what is perturbed in each cell, nodes of the second
    /// graph, none in a control.
    ///
    /// # Errors
    /// A perturbation that the second graph has not, other dimensions, or libtorch fails.
    pub fn predict(
        &self,
        genes: &Tensor,
        expression: &Tensor,
        perturbed: &[Vec<i64>],
        training: bool,
    ) -> Result<Response> {
        let mut statistics = if training {
            Statistics::Batch(Vec::new())
        } else {
            Statistics::Running
        };
        let (batch, g, d) = (genes.size()[0], self.shape.genes, self.shape.d_model);
        let rows = genes.f_reshape([batch * g, d])?;
        let rows = self.gene_norm.forward(&rows, &mut statistics)?.f_relu()?;
        let around = self.around(batch)?.f_mul_scalar(NEIGHBOURS)?; // [B or 1, G, D]
        let rows = rows
            .f_view([batch, g, d])?
            .f_add(&around)?
            .f_reshape([batch * g, d])?;
        let base = self.gene_network.forward(&rows, &mut statistics)?;
        let base = base.f_view([batch, g, d])?;
        let base = match self.perturbation(perturbed, &mut statistics)? {
            Some(change) => base.f_add(&change.f_unsqueeze(1)?)?,
            None => base,
        };
        let base = base.f_reshape([batch * g, d])?;
        let base = self.base_norm.forward(&base, &mut statistics)?.f_relu()?;
        let out = self
            .recovery
            .forward(&base, &mut statistics)?
            .f_view([batch, g, d])?;
        let [w1, b1, w2, b2] = &self.own;
        let summed = Some([-1_i64].as_slice());
        let out = out
            .f_mul(&w1.f_squeeze_dim(2)?)?
            .f_sum_dim_intlist(summed, false, None::<Kind>)?
            .f_add(&b1.f_squeeze_dim(1)?)?; // [B, G]
        let across = self.across.forward(&out, &mut statistics)?; // [B, D]
        let (alone, shared) = (
            w2.f_select(0, 0)?.f_select(1, 0)?,
            w2.f_select(0, 0)?.f_narrow(1, 1, d)?,
        );
        let out = out
            .f_mul(&alone)?
            .f_add(&across.f_matmul(&shared.f_tr()?)?)?
            .f_add(b2)?
            .f_add(expression)?;
        Ok(Response {
            expression: out,
            seen: match statistics {
                Statistics::Batch(seen) => seen,
                Statistics::Running => Vec::new(),
            },
        })
    }

    /// What the neighbours of each gene say: `[1, G, D]`, or `[B, G, D]` where only the first cell has
    /// neighbours.
    fn around(&self, batch: i64) -> Result<Tensor> {
        let layer = &self.neighbour_layer;
        let joined = layer
            .forward(&self.together.spread(&self.neighbours)?)?
            .f_unsqueeze(0)?;
        if self.reach == GraphReach::EveryCell || batch == 1 {
            return Ok(joined);
        }
        let alone = layer.forward(&self.neighbours)?.f_unsqueeze(0)?;
        let (_, g, d) = alone.size3()?;
        Ok(Tensor::f_cat(
            &[joined, alone.f_expand([batch - 1, g, d], false)?],
            0,
        )?)
    }

    /// What perturbations add to all genes of their cells: `[B, D]`; `None` when all are controls.
    fn perturbation(
        &self,
        perturbed: &[Vec<i64>],
        statistics: &mut Statistics,
    ) -> Result<Option<Tensor>> {
        let nodes = self.shape.perturbations;
        let mut cells = Vec::new();
        let mut many = Vec::new();
        for (cell, nodes_of) in perturbed.iter().enumerate() {
            if let Some(node) = nodes_of.iter().find(|node| !(0..nodes).contains(*node)) {
                return Err(Error::Internal(format!(
                    "perturbation {node} is none of {nodes}"
                )));
            }
            if !nodes_of.is_empty() {
                let mut row = vec![0.0_f32; nodes as usize];
                for &node in nodes_of {
                    row[node as usize] += 1.0;
                }
                cells.push(cell as i64);
                many.extend(row);
            }
        }
        if cells.is_empty() {
            return Ok(None);
        }
        let device = self.perturbations.device();
        let table = self.function.spread(&self.perturbations)?;
        let table = self.perturbation_layer.forward(&table)?; // [P, D]
        let many = Tensor::f_from_slice(&many)?.f_view([cells.len() as i64, nodes])?;
        let sums = many
            .f_to_device(device)?
            .f_to_kind(table.f_kind()?)?
            .f_matmul(&table)?;
        // A norm needs two rows: a single one goes in twice.
        let rows = if cells.len() == 1 {
            sums.f_expand([2, self.shape.d_model], false)?
        } else {
            sums
        };
        let fused = self.perturbation_network.forward(&rows, statistics)?;
        let fused = fused.f_narrow(0, 0, cells.len() as i64)?;
        let cells = Tensor::f_from_slice(&cells)?.f_to_device(device)?;
        let zeros = fused.f_new_zeros(
            [perturbed.len() as i64, self.shape.d_model],
            (fused.f_kind()?, device),
        )?;
        Ok(Some(zeros.f_index_add(0, &cells, &fused)?))
    }

    /// Shortens rows of tables that are longer than 1, in place. To be called after loading and after
    /// each update.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn constrain(&self) -> Result<()> {
        tch::no_grad(|| {
            for table in [&self.neighbours, &self.perturbations] {
                let lengths = table.f_norm_scalaropt_dim(2.0, [1], true)?;
                let factor = lengths.f_add_scalar(1e-7)?.f_reciprocal()?;
                let ones = lengths.f_ones_like()?;
                let factor = factor.f_where_self(&lengths.f_gt(LONGEST)?, &ones)?;
                let _ = table.shallow_clone().f_mul_(&factor)?;
            }
            Ok(())
        })
    }

    /// Moves running statistics by what passes saw.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn update(&self, seen: &[Seen]) -> Result<()> {
        seen.iter().try_for_each(Seen::apply)
    }
}
