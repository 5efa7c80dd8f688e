//! CODA-Prompt: a prefix for each image, summed from components that it weighs by attention (Smith et al. 2023,
//! "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning").
//!
//! ```text
//! q    = CLS of the plain backbone                              no gradient, not normalised
//! α_j  = cos(q ⊙ a_j, k_j)                                      j = 1..f, components of all tasks so far
//! P    = Σ_j α_j p_j                                            (L, D): first half keys, second half values
//! head(h) = softmax(Q_h [P_k,h ; K_h]ᵀ / √d) [P_v,h ; V_h]       in every block of `blocks`, with its own p, k, a
//! z    = CLS
//! L    = CE(head(z) over the task's classes) + μ Σ_blocks (o(k) + o(a) + o(p))
//! o(X) = mean of the f·f entries of (X Xᵀ − I)²
//! task t begins: m rows each of p, k, a ~ N(0, I); each less its projections on all rows before it, then of length 1
//! ```
//!
//! Components of earlier tasks take part and stand still. Source: `GT-RIPL/CODA-Prompt:models/zoo.py` (6417d4f).
//! With `α = q (a ⊙ k̂)ᵀ / sqrt(q² (a²)ᵀ)` there is never a `(B, f, D)` tensor.
//!
//! Components are added as tasks come, so the number of tasks need not be known; the published code shares out a pool of
//! 100 among them (`components = 10` in 10 tasks). It has `orthogonality = 0`; the paper's 0.1 belongs to an earlier
//! release (22948d2), where a factor 1e-6 stood in the code.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use candlewick_core::{
    Backbone, Choice, Cue, Error, Init, Injection, Params, Pool, Prefix, Prompt, Prompted, Result,
    Site, Spec, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

/// `[method] name = "coda"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coda {
    /// Blocks with a prefix, counted from 0.
    pub blocks: Vec<usize>,
    /// Components that each task adds in each block, `m`.
    pub components: usize,
    /// Tokens of a component, `L`: the first half become keys, the second half values.
    pub length: usize,
    /// Weight of the penalty on rows that are not orthonormal, μ.
    #[serde(default)]
    pub orthogonality: f64,
}

impl Coda {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, problem: String| Error::setting(format!("method.{key}"), problem);
        if self.blocks.is_empty() {
            return Err(wrong("blocks", "must name at least one block".into()));
        }
        for (i, block) in self.blocks.iter().enumerate() {
            if self.blocks[..i].contains(block) {
                return Err(wrong("blocks", format!("block {block} stands twice")));
            }
        }
        if self.components == 0 {
            return Err(wrong(
                "components",
                "must be greater than 0, found 0".into(),
            ));
        }
        if self.length == 0 || !self.length.is_multiple_of(2) {
            let problem = "must be even and greater than 0: half are keys, half values";
            return Err(wrong("length", format!("{problem}; found {}", self.length)));
        }
        if !self.orthogonality.is_finite() || self.orthogonality < 0.0 {
            let problem = format!("must be 0 or greater, found {}", self.orthogonality);
            return Err(wrong("orthogonality", problem));
        }
        Ok(())
    }

    /// Draws components from `seed`, task by task.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        seed: u64,
    ) -> Result<Prompted<Components>> {
        self.check()?;
        Prompted::new(backbone, Pool::Cls, train, seed, |backbone, _| {
            Components::new(self.clone(), backbone.spec())
        })
    }
}

/// Rows of one block: those of one task, or of all tasks so far.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The components themselves, `(f, L, D)`.
    pub p: Tensor,
    /// Keys, `(f, D)`.
    pub k: Tensor,
    /// Attention over the dimensions of the query, `(f, D)`.
    pub a: Tensor,
}

/// The components of every block and task.
pub struct Components {
    config: Coda,
    dim: usize,
    heads: usize,
    /// By block, then by task.
    blocks: Vec<Vec<Rows>>,
}

impl Components {
    pub(crate) fn new(config: Coda, spec: &Spec) -> Result<Self> {
        spec.has_blocks("method.blocks", &config.blocks)?;
        if config.components > spec.dim {
            let problem = format!(
                "must be at most the backbone's width {}, since no more rows are orthogonal; found {}",
                spec.dim, config.components
            );
            return Err(Error::setting("method.components", problem));
        }
        Ok(Self {
            blocks: vec![Vec::new(); config.blocks.len()],
            dim: spec.dim,
            heads: spec.heads,
            config,
        })
    }

    /// The rows of all tasks in the block at position `at` of `blocks`. In training, those of earlier tasks are constants; at
    /// test all are, since a graph would keep every activation alive.
    pub fn rows(&self, at: usize, train: bool) -> Result<Rows> {
        let tasks = &self.blocks[at];
        let join = |part: fn(&Rows) -> &Tensor| {
            let parts = tasks.iter().enumerate().map(|(task, rows)| {
                match train && task + 1 == tasks.len() {
                    true => part(rows).clone(),
                    false => part(rows).detach(),
                }
            });
            Tensor::cat(&parts.collect::<Vec<_>>(), 0)
        };
        Ok(Rows {
            p: join(|rows| &rows.p)?,
            k: join(|rows| &rows.k)?,
            a: join(|rows| &rows.a)?,
        })
    }
}

impl Rows {
    /// `α_bj = cos(q_b ⊙ a_j, k_j)`, `(B, f)`.
    pub fn weights(&self, query: &Tensor) -> Result<Tensor> {
        let keys = self
            .k
            .broadcast_div(&length(&self.k.sqr()?.sum_keepdim(D::Minus1)?)?)?;
        let along = query.matmul(&(&self.a * keys)?.t()?)?;
        let lengths = length(&query.sqr()?.matmul(&self.a.sqr()?.t()?)?)?;
        Ok((along / lengths)?)
    }

    /// `Σ_j α_bj p_j` as `(B, 2, L/2, D)`: keys, then values.
    pub fn sum(&self, weights: &Tensor) -> Result<Tensor> {
        let (_, l, d) = self.p.dims3()?;
        let sum = weights.matmul(&self.p.flatten_from(1)?)?;
        Ok(sum.reshape((weights.dim(0)?, 2, l / 2, d))?)
    }

    /// `o(k) + o(a) + o(p)`.
    pub fn penalty(&self) -> Result<Tensor> {
        let overlap = |x: &Tensor| -> Result<Tensor> {
            let one = Tensor::eye(x.dim(0)?, DType::F32, x.device())?;
            Ok((x.matmul(&x.t()?)? - one)?.sqr()?.mean_all()?)
        };
        let p = self.p.flatten_from(1)?;
        Ok(((overlap(&self.k)? + overlap(&self.a)?)? + overlap(&p)?)?)
    }
}

impl Prompt for Components {
    fn inject(&self, site: Site, _: &Tensor, cue: &Cue) -> Result<Injection> {
        let place = |block| self.config.blocks.iter().position(|&b| b == block);
        let (Site::Block(block), Some(query)) = (site, &cue.query) else {
            return Ok(Injection::default());
        };
        let Some(at) = place(block) else {
            return Ok(Injection::default());
        };
        let rows = self.rows(at, cue.train)?;
        let pairs = rows.sum(&rows.weights(query)?)?;
        let aux_loss = match cue.train && self.config.orthogonality > 0.0 {
            true => Some((rows.penalty()? * self.config.orthogonality)?),
            false => None,
        };
        Ok(Injection {
            prefix: Some(Prefix::of_heads(&pairs, self.heads)?),
            aux_loss,
            ..Injection::default()
        })
    }

    fn wants_query(&self) -> bool {
        true
    }

    /// An image takes `|α_j| / Σ |α|` of component `j`.
    fn choices(&self, cue: &Cue) -> Result<Vec<Choice>> {
        let Some(query) = &cue.query else {
            return Ok(Vec::new());
        };
        let of_block = |(at, block): (usize, &usize)| {
            let similarity = self.rows(at, false)?.weights(query)?;
            let sizes = similarity.abs()?;
            let sum = sizes.sum_keepdim(D::Minus1)?.maximum(1e-12)?;
            Ok(Choice {
                pool: format!("block {block}"),
                taken: sizes.broadcast_div(&sum)?,
                similarity,
                least: 1,
            })
        };
        self.config
            .blocks
            .iter()
            .enumerate()
            .map(of_block)
            .collect()
    }

    fn begin_task(&mut self, _: &TaskInfo, params: &mut Params) -> Result<()> {
        let (m, l, d) = (self.config.components, self.config.length, self.dim);
        for (block, tasks) in self.config.blocks.iter().zip(&mut self.blocks) {
            let mut add = |name: &str, shape: &[usize], part: fn(&Rows) -> &Tensor| {
                let name = format!("{name}.{}.{block}", tasks.len());
                let drawn = params.create(&name, shape, Init::Normal { std: 1.0 })?;
                let old: Vec<&Tensor> = tasks.iter().map(part).collect();
                params.set(&name, &gram_schmidt(&old, &drawn)?)?;
                Ok::<_, Error>(drawn)
            };
            let rows = Rows {
                p: add("p", &[m, l, d], |rows| &rows.p)?,
                k: add("k", &[m, d], |rows| &rows.k)?,
                a: add("a", &[m, d], |rows| &rows.a)?,
            };
            tasks.push(rows);
        }
        Ok(())
    }
}

/// Lengths from squared ones, not below the 1e-12 of `torch.nn.functional.normalize`.
fn length(squared: &Tensor) -> Result<Tensor> {
    Ok(squared.maximum(1e-24)?.sqrt()?)
}

/// Each row `v` of `drawn` less its projections `⟨v, u⟩ / ⟨u, u⟩ u` on every row `u` before it, those of `old` first,
/// then all of them scaled to length 1.
///
/// Classical Gram-Schmidt, as published: all projections are of the `v` that was drawn. Trained rows are not orthogonal to
/// each other, so neither are new rows to them, quite. Rows are flattened. Where earlier rows span all dimensions,
/// nothing of `v` is left; it then stays as drawn (the published code would draw for ever).
pub fn gram_schmidt(old: &[&Tensor], drawn: &Tensor) -> Result<Tensor> {
    const NOTHING: f64 = 1e-8;
    // On the host, since not every device has f64.
    let read = |tensor: &Tensor| -> Result<Vec<Vec<f64>>> {
        let rows: Vec<Vec<f32>> = tensor.flatten_from(1)?.to_vec2()?;
        let wide = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
        Ok(rows.into_iter().map(wide).collect())
    };
    let mut rows = Vec::new();
    for tensor in old {
        rows.extend(read(tensor)?);
    }
    let before = rows.len();
    for v in read(drawn)? {
        let mut rest = v.clone();
        for u in &rows {
            let squared = dot(u, u);
            if squared >= NOTHING {
                let along = dot(&v, u) / squared;
                rest.iter_mut().zip(u).for_each(|(r, u)| *r -= along * u);
            }
        }
        rows.push(match dot(&rest, &rest) < NOTHING {
            true => v,
            false => rest,
        });
    }
    let mut values = Vec::with_capacity(drawn.elem_count());
    for row in &rows[before..] {
        let length = dot(row, row).sqrt().max(1e-12);
        values.extend(row.iter().map(|x| (x / length) as f32));
    }
    Ok(Tensor::from_vec(values, drawn.shape(), drawn.device())?)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
