//! FAVOR+ (Choromanski et al. 2021): softmax attention by positive orthogonal random features, in
//! time and memory linear in the number of tokens.
//!
//! With features `phi`, attention is `phi(q) (phi(k)^T v) / (phi(q) . sum phi(k))`. The first factor
//! belongs to each query alone, the second, the *summary* of keys and values, is a sum over them. So
//! queries and keys are worked on in parts of the sequence, and what has a number for each token and
//! feature exists for one part at a time.
//!
//! Features are `m^-1/2 (exp(x . w - |x|^2/2 - c) + eps)` with `x` scaled by the fourth root of the
//! width. For a query `c` is its own largest `x . w`. For keys it is the largest of all of them,
//! which must be known before any key is summed, and through which gradients flow. It would cancel
//! but for `eps`, so which keys share it matters a little: see [`KeyMax`].

use tch::{Kind, Tensor};

use crate::Result;
use crate::exec::{gradient_of, pull};
use crate::ops::cast;

/// Added to each exponential, so that no feature vanishes.
const EPS: f64 = 1e-4;

/// The keys that share the maximum which is taken out of their exponentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyMax {
    /// Those of a cell: what is computed for a cell does not depend on the others in its
    /// micro-batch. The reference computes the same for a batch of one cell.
    #[default]
    Cell,
    /// Those of the whole micro-batch, as the reference has it for any batch.
    Batch,
}

/// The attention of one block, without its projections.
#[derive(Debug)]
pub struct Favor {
    /// Rows of directions `[m, E/H]`.
    projection: Tensor,
    key_max: KeyMax,
    /// Tokens of all cells of a micro-batch that are worked on at a time.
    part: i64,
}

/// The largest `k . w` of the keys, and how many keys and features attain it.
#[derive(Debug)]
pub struct Largest {
    /// `[B, 1, 1, 1]`, or `[1, 1, 1, 1]` of the whole micro-batch.
    value: Tensor,
    count: Tensor,
}

/// What a block needs of its keys and values.
#[derive(Debug)]
pub struct Summary {
    /// `phi(k)^T [v, 1]`: `[B, H, m, E/H + 1]`.
    pub sums: Tensor,
    largest: Largest,
}

impl Favor {
    /// Attention with these directions, which works on `part` tokens of all cells together at a
    /// time.
    ///
    /// # Shapes
    /// `projection`: `[m, E/H]`.
    pub fn new(projection: Tensor, key_max: KeyMax, part: i64) -> Self {
        Self {
            projection,
            key_max,
            part,
        }
    }

    /// Replaces the directions, in place.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn redraw(&self, directions: &[f32]) -> Result<()> {
        let new = Tensor::f_from_slice(directions)?.f_view_as(&self.projection)?;
        Ok(self.projection.shallow_clone().f_copy_(&new)?)
    }

    /// The parts that sequences of `cells` cells of `tokens` tokens are worked on in: first place
    /// and length.
    pub fn parts(&self, cells: i64, tokens: i64) -> Vec<(i64, i64)> {
        let most = (self.part / cells.max(1)).max(1);
        let starts = (0..tokens).step_by(most as usize);
        starts.map(|at| (at, most.min(tokens - at))).collect()
    }

    /// `x . w` and `|x|^2 / 2` of scaled `x`, in full precision.
    ///
    /// # Shapes
    /// `x`: `[B, H, S, E/H]`; returns `[B, H, S, m]` and `[B, H, S, 1]`.
    fn project(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = cast(x, self.projection.f_kind()?)?;
        let width = self.projection.size()[1] as f64;
        let directions = self.projection.f_mul_scalar(width.powf(-0.25))?;
        let half = x
            .f_square()?
            .f_sum_dim_intlist(-1, true, None::<Kind>)?
            .f_mul_scalar(0.5 * width.powf(-0.5))?;
        Ok((x.f_matmul(&directions.f_tr()?)?, half))
    }

    /// `m^-1/2 (exp(along - shift) + eps)`, overwriting `along`.
    fn features(&self, mut along: Tensor, shift: &Tensor) -> Result<Tensor> {
        let m = self.projection.size()[0] as f64;
        // m^-1/2 goes into the exponent: one pass over memory less.
        let shift = shift.f_add_scalar(0.5 * m.ln())?;
        let _ = along.f_sub_(&shift)?;
        Ok(along.f_exp_()?.f_add_scalar(EPS * m.powf(-0.5))?)
    }

    /// Features of queries, `[B, H, S, E/H]` to `[B, H, S, m]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn query_features(&self, q: &Tensor) -> Result<Tensor> {
        let (along, half) = self.project(q)?;
        let (largest, _) = along.f_max_dim(-1, true)?;
        self.features(along, &half.f_add(&largest)?)
    }

    /// Features of keys, `[B, H, S, E/H]` to `[B, H, S, m]`, below the largest `k . w` of all,
    /// `[B, 1, 1, 1]` or `[1, 1, 1, 1]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn key_features(&self, k: &Tensor, largest: &Tensor) -> Result<Tensor> {
        let (along, half) = self.project(k)?;
        self.features(along, &half.f_add(largest)?)
    }

    /// The largest `k . w` of all keys, without a graph.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn largest(&self, k: &Tensor) -> Result<Largest> {
        let dims = self.shared_dims();
        tch::no_grad(|| {
            let mut found: Option<Largest> = None;
            for (at, length) in self.parts(k.size()[0], k.size()[2]) {
                let (along, _) = self.project(&k.f_narrow(2, at, length)?)?;
                let value = along.f_amax(dims, true)?;
                let count = count_of(&along, &value, dims)?;
                found = Some(match found {
                    None => Largest { value, count },
                    Some(before) => before.with(&value, &count)?,
                });
            }
            match found {
                Some(found) => Ok(found),
                None => Err(crate::Error::Internal("attention to no key".into())),
            }
        })
    }

    fn shared_dims(&self) -> &'static [i64] {
        match self.key_max {
            KeyMax::Cell => &[1, 2, 3],
            KeyMax::Batch => &[0, 1, 2, 3],
        }
    }

    /// The largest `k . w` as a function of those keys of a part that attain it; they share its
    /// gradient equally, as those of a maximum over a whole tensor do. Zero where there are none.
    fn share_of_largest(&self, k: &Tensor, largest: &Largest) -> Result<Tensor> {
        let (along, _) = self.project(k)?;
        let attains = along.f_detach()?.f_eq_tensor(&largest.value)?;
        let sum = along
            .f_mul(&cast(&attains, along.f_kind()?)?)?
            .f_sum_dim_intlist(self.shared_dims(), true, None::<Kind>)?;
        Ok(sum.f_div(&largest.count)?)
    }

    /// Whether a key of a part attains the largest `k . w`.
    fn attains(&self, k: &Tensor, largest: &Largest) -> Result<bool> {
        tch::no_grad(|| {
            let (along, _) = self.project(k)?;
            let found = along.f_eq_tensor(&largest.value)?.f_any()?;
            Ok(found.f_int64_value(&[])? != 0)
        })
    }

    /// Summary of a part of keys and values: `[B, H, m, E/H + 1]`.
    fn summary_of_part(&self, k: &Tensor, v: &Tensor, largest: &Tensor) -> Result<Tensor> {
        let phi = self.key_features(k, largest)?;
        let v = cast(v, phi.f_kind()?)?;
        let ones = v.f_narrow(3, 0, 1)?.f_detach()?.f_ones_like()?;
        let v = Tensor::f_cat(&[v, ones], 3)?;
        Ok(phi.f_transpose(2, 3)?.f_matmul(&v)?)
    }

    /// Summary of all keys and values. With a graph, it keeps the features of all of them.
    ///
    /// # Shapes
    /// `k`, `v`: `[B, H, S, E/H]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn summary(&self, k: &Tensor, v: &Tensor) -> Result<Summary> {
        let largest = self.largest(k)?;
        let parts = self.parts(k.size()[0], k.size()[2]);
        let value = if k.requires_grad() {
            let mut value: Option<Tensor> = None;
            for &(at, length) in &parts {
                let part = k.f_narrow(2, at, length)?;
                if self.attains(&part, &largest)? {
                    value = Some(plus(value, self.share_of_largest(&part, &largest)?)?);
                }
            }
            value.unwrap_or_else(|| largest.value.shallow_clone())
        } else {
            largest.value.shallow_clone()
        };
        let mut sums: Option<Tensor> = None;
        for (at, length) in parts {
            let part = |x: &Tensor| x.f_narrow(2, at, length);
            let own = self.summary_of_part(&part(k)?, &part(v)?, &value)?;
            sums = Some(plus(sums, own)?);
        }
        match sums {
            Some(sums) => Ok(Summary { sums, largest }),
            None => Err(crate::Error::Internal("attention to no key".into())),
        }
    }

    /// What queries find: `[B, H, S, E/H]` to the same shape, in the format of `q`; `sums` are those
    /// of a [`Summary`].
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn mix(&self, q: &Tensor, sums: &Tensor) -> Result<Tensor> {
        let width = q.size()[3];
        let found = self.query_features(q)?.f_matmul(sums)?; // [B, H, S, E/H + 1]
        let mixed = found
            .f_narrow(3, 0, width)?
            .f_div(&found.f_narrow(3, width, 1)?)?;
        cast(&mixed, q.f_kind()?)
    }

    /// Gradients of keys and values from `gradient`, that of the sums of their summary, computed
    /// part by part. `k` and `v` have no graph.
    ///
    /// # Shapes
    /// `k`, `v`: `[B, H, S, E/H]`; `gradient`: `[B, H, m, E/H + 1]`; returns the gradients of `k`
    /// and `v`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn pull_summary(
        &self,
        k: &Tensor,
        v: &Tensor,
        summary: &Summary,
        gradient: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let largest = summary.largest.value.f_detach()?;
        let largest = largest.f_set_requires_grad(true)?;
        let parts = self.parts(k.size()[0], k.size()[2]);
        let (dk, dv) = (k.f_empty_like()?, v.f_empty_like()?);
        for &(at, length) in &parts {
            let leaf = |x: &Tensor| x.f_narrow(2, at, length)?.f_detach();
            let own = leaf(k)?.f_set_requires_grad(true)?;
            let values = leaf(v)?.f_set_requires_grad(true)?;
            pull(&self.summary_of_part(&own, &values, &largest)?, gradient)?.f_backward()?;
            store(&dk, at, &own)?;
            store(&dv, at, &values)?;
        }
        if let Some(gradient) = gradient_of(&largest)? {
            for (at, length) in parts {
                let own = k.f_narrow(2, at, length)?.f_detach()?;
                if !self.attains(&own, &summary.largest)? {
                    continue;
                }
                let own = own.f_set_requires_grad(true)?;
                let share = self.share_of_largest(&own, &summary.largest)?;
                pull(&share, &gradient)?.f_backward()?;
                if let Some(more) = gradient_of(&own)? {
                    let _ = dk.f_narrow(2, at, length)?.f_add_(&more)?;
                }
            }
        }
        Ok([dk, dv])
    }
}

impl Largest {
    /// The largest of these and of others, of which `count` attain `value`.
    fn with(self, value: &Tensor, count: &Tensor) -> Result<Self> {
        let both = self.value.f_maximum(value)?;
        let of = |count: &Tensor, value: &Tensor| -> Result<Tensor> {
            let kept = cast(&value.f_eq_tensor(&both)?, count.f_kind()?)?;
            Ok(count.f_mul(&kept)?)
        };
        let count = of(&self.count, &self.value)?.f_add(&of(count, value)?)?;
        Ok(Self { value: both, count })
    }
}

/// How many elements of `along` are `value`, over `dims`.
fn count_of(along: &Tensor, value: &Tensor, dims: &[i64]) -> Result<Tensor> {
    let equal = along.f_eq_tensor(value)?;
    Ok(equal.f_sum_dim_intlist(dims, true, Some(along.f_kind()?))?)
}

/// Writes the gradient of `leaf` to the places from `at` on of dimension 2.
fn store(into: &Tensor, at: i64, leaf: &Tensor) -> Result<()> {
    let mut place = into.f_narrow(2, at, leaf.size()[2])?;
    match gradient_of(leaf)? {
        Some(gradient) => place.f_copy_(&gradient)?,
        None => {
            let _ = place.f_zero_()?;
        }
    }
    Ok(())
}

fn plus(sum: Option<Tensor>, term: Tensor) -> Result<Tensor> {
    Ok(match sum {
        Some(sum) => sum.f_add(&term)?,
        None => term,
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::Init;

    fn tensor(name: &str, shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>() as usize;
        let values = Init::standard_normal().values(2, name, n);
        Tensor::from_slice(&values)
            .view(shape)
            .to_kind(Kind::Double)
    }

    /// The attention as the formula has it, in one piece.
    fn naive(favor: &Favor, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (m, width) = favor.projection.size2().unwrap();
        let scaled = |x: &Tensor| x * (width as f64).powf(-0.25);
        let along = |x: &Tensor| scaled(x).matmul(&favor.projection.tr());
        let half = |x: &Tensor| scaled(x).square().sum_dim_intlist(-1, true, Kind::Double) * 0.5;
        let phi = |x: &Tensor, largest: &Tensor| {
            ((along(x) - half(x) - largest).exp() + EPS) * (m as f64).powf(-0.5)
        };
        let phi_q = phi(q, &along(q).amax(-1, true));
        let phi_k = phi(k, &along(k).amax(favor.shared_dims(), true));
        let sums = phi_k.sum_dim_intlist(2, true, Kind::Double);
        let found = phi_q.matmul(&phi_k.transpose(2, 3).matmul(v));
        found / (phi_q * sums).sum_dim_intlist(-1, true, Kind::Double)
    }

    #[test]
    fn keys_that_attain_the_maximum_share_its_gradient_across_parts() {
        for key_max in [KeyMax::Cell, KeyMax::Batch] {
            let favor = Favor::new(tensor("projection", &[7, 4]), key_max, 4);
            let (q, k, v) = (
                tensor("q", &[2, 2, 9, 4]),
                tensor("k", &[2, 2, 9, 4]),
                tensor("v", &[2, 2, 9, 4]),
            );
            // The same key three times, in two parts and two heads, far out along a direction.
            let far = favor.projection.get(3) * 2.0;
            for (head, place) in [(0, 1), (1, 1), (0, 8)] {
                k.get(0).get(head).get(place).copy_(&far);
            }
            let gradient = tensor("gradient", &[2, 2, 9, 4]);
            let leaf = |x: &Tensor| x.copy().set_requires_grad(true);
            let (q0, k0, v0) = (leaf(&q), leaf(&k), leaf(&v));
            let expected = naive(&favor, &q0, &k0, &v0);
            (&expected * &gradient).sum(Kind::Double).backward();

            let near = |name: &str, a: &Tensor, b: &Tensor| {
                let found = (a - b).abs().max().double_value(&[]);
                assert!(found < 1e-11, "{key_max:?} {name} {found:e}");
            };
            // With a graph.
            let (q1, k1, v1) = (leaf(&q), leaf(&k), leaf(&v));
            let out = favor
                .mix(&q1, &favor.summary(&k1, &v1).unwrap().sums)
                .unwrap();
            (&out * &gradient).sum(Kind::Double).backward();
            near("out", &out, &expected);
            near("q", &q1.grad(), &q0.grad());
            near("k", &k1.grad(), &k0.grad());
            near("v", &v1.grad(), &v0.grad());
            // In stages.
            let summary = favor.summary(&k, &v).unwrap();
            let sums = summary.sums.set_requires_grad(true);
            let out = favor.mix(&q, &sums).unwrap();
            (&out * &gradient).sum(Kind::Double).backward();
            let summary = Summary { sums, ..summary };
            let [dk, dv] = favor
                .pull_summary(&k, &v, &summary, &summary.sums.grad())
                .unwrap();
            near("staged k", &dk, &k0.grad());
            near("staged v", &dv, &v0.grad());
        }
    }

    #[test]
    fn the_other_cells_of_a_micro_batch_matter_only_where_they_share_the_maximum() {
        let alone = |key_max| {
            let favor = Favor::new(tensor("projection", &[7, 4]), key_max, 64);
            let (q, k) = (tensor("q", &[2, 1, 5, 4]), tensor("k", &[2, 1, 5, 4]));
            let mix = |q: &Tensor, k: &Tensor| {
                let sums = favor.summary(k, k).unwrap().sums;
                favor.mix(q, &sums).unwrap()
            };
            let of = |x: &Tensor, cell| x.narrow(0, cell, 1);
            let both = mix(
                &q,
                &(&k * Tensor::from_slice(&[1.0, 3.0]).view([2, 1, 1, 1])),
            );
            let first = mix(&of(&q, 0), &of(&k, 0));
            (of(&both, 0) - first).abs().max().double_value(&[])
        };
        assert!(alone(KeyMax::Cell) < 1e-12);
        assert!(alone(KeyMax::Batch) > 1e-4);
    }

    #[test]
    fn attention_to_nothing_is_an_error() {
        let favor = Favor::new(tensor("projection", &[7, 4]), KeyMax::Cell, 4);
        let none = Tensor::zeros([1, 1, 0, 4], (Kind::Double, Device::Cpu));
        assert!(favor.summary(&none, &none).is_err());
    }
}
