//! Prompt methods by shape: what enters the backbone and what is learned, as published, without the bookkeeping of
//! tasks. Their numbers are given, so that another framework can start from the very same.

use candle_core::{D, Tensor};
use candlewick_core::backbone::l2_normalize;
use candlewick_core::{
    Cue, Error, Injection, Pool, Position, Prefix, Prompt, Result, Share, Site, Span, Tokens,
};
use serde::Deserialize;

/// Which method a step follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 25 tokens from a pool by their keys; the query is given.
    L2p,
    /// The same with the query pass in every step and gradients clipped to norm 1.
    L2pFull,
    /// Prefixes: 5 general in blocks 0 and 1, 20 of the task in blocks 2 to 4.
    #[serde(rename = "dualprompt")]
    DualPrompt,
    /// Prefixes of 4 keys and 4 values in blocks 0 to 4, weighted sums of 100 components.
    Coda,
    /// No prompt: every weight of the backbone trains, as in the first stage of SLCA and CoFiMA.
    #[serde(rename = "cofima")]
    CoFiMa,
}

impl Kind {
    /// What the head reads.
    pub fn pool(self) -> Pool {
        match self {
            Self::L2p | Self::L2pFull => Pool::PromptMean,
            Self::DualPrompt | Self::Coda | Self::CoFiMa => Pool::Cls,
        }
    }

    /// Names and shapes of the prompt's parameters for a backbone of width `dim`.
    pub fn shapes(self, dim: usize) -> Vec<(String, Vec<usize>)> {
        let named = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
        match self {
            Self::L2p | Self::L2pFull => vec![
                named("keys", &[POOL, dim]),
                named("prompts", &[POOL, TOKENS, dim]),
            ],
            Self::DualPrompt => {
                let general = GENERAL.map(|i| named(&format!("g.{i}"), &[2, 5, dim]));
                let expert = EXPERT.map(|i| named(&format!("e.{i}"), &[POOL, 2, 20, dim]));
                let keys = [named("keys", &[POOL, dim])];
                general.into_iter().chain(expert).chain(keys).collect()
            }
            Self::CoFiMa => vec![],
            Self::Coda => (0..CODA_BLOCKS)
                .flat_map(|i| {
                    [
                        named(&format!("a.{i}"), &[COMPONENTS, dim]),
                        named(&format!("k.{i}"), &[COMPONENTS, dim]),
                        named(&format!("p.{i}"), &[COMPONENTS, CODA_LENGTH, dim]),
                    ]
                })
                .collect(),
        }
    }
}

const POOL: usize = 10;
const TOP_K: usize = 5;
const TOKENS: usize = 5;
const PULL: f64 = 0.1;
const GENERAL: [usize; 2] = [0, 1];
const EXPERT: [usize; 3] = [2, 3, 4];
/// DualPrompt trains the row of the current task alone.
const TASK: usize = 1;
const CODA_BLOCKS: usize = 5;
const COMPONENTS: usize = 100;
const CODA_LENGTH: usize = 8;

/// The parameters of one method.
pub enum Prompts {
    /// `prompts (10, 5, D)`, `keys (10, D)`.
    L2p {
        /// The pool.
        prompts: Tensor,
        /// A key for each.
        keys: Tensor,
    },
    /// `general[i] (2, 5, D)`, `expert[i] (10, 2, 20, D)`, `keys (10, D)`.
    DualPrompt {
        /// Keys and values for every task.
        general: Vec<Tensor>,
        /// Keys and values of each task.
        expert: Vec<Tensor>,
        /// A key for each task.
        keys: Tensor,
        /// Attention heads.
        heads: usize,
    },
    /// Per block: `components (100, 8, D)`, `keys (100, D)`, `attention (100, D)`.
    Coda {
        /// The three of each block.
        blocks: Vec<[Tensor; 3]>,
        /// Attention heads.
        heads: usize,
    },
    /// None.
    Empty,
}

impl Prompts {
    /// Takes its parameters by the names of [`Kind::shapes`].
    pub fn new(
        kind: Kind,
        heads: usize,
        get: impl Fn(&str) -> anyhow::Result<Tensor>,
    ) -> anyhow::Result<Self> {
        let each = |letter: &str, blocks: &[usize]| -> anyhow::Result<Vec<Tensor>> {
            blocks
                .iter()
                .map(|i| get(&format!("{letter}.{i}")))
                .collect()
        };
        Ok(match kind {
            Kind::L2p | Kind::L2pFull => Self::L2p {
                prompts: get("prompts")?,
                keys: get("keys")?,
            },
            Kind::DualPrompt => Self::DualPrompt {
                general: each("g", &GENERAL)?,
                expert: each("e", &EXPERT)?,
                keys: get("keys")?,
                heads,
            },
            Kind::CoFiMa => Self::Empty,
            Kind::Coda => Self::Coda {
                blocks: (0..CODA_BLOCKS)
                    .map(|i| {
                        let part = |letter| get(&format!("{letter}.{i}"));
                        Ok([part("p")?, part("k")?, part("a")?])
                    })
                    .collect::<anyhow::Result<_>>()?,
                heads,
            },
        })
    }
}

impl Prompt for Prompts {
    fn inject(&self, site: Site, _: &Tensor, cue: &Cue) -> Result<Injection> {
        if let Self::Empty = self {
            return Ok(Injection::default());
        }
        let query = cue.query.as_ref().ok_or_else(|| Error::State {
            problem: "a prompt was asked without a query".into(),
        })?;
        match (self, site) {
            (Self::L2p { prompts, keys }, Site::Embed) => l2p(prompts, keys, query),
            (Self::DualPrompt { general, heads, .. }, Site::Block(i)) if i < GENERAL.len() => {
                prefix_of_all(&general[i], *heads, query.dim(0)?)
            }
            (Self::DualPrompt { expert, heads, .. }, Site::Block(i)) if EXPERT.contains(&i) => {
                prefix_of_all(&expert[i - EXPERT[0]].get(TASK)?, *heads, query.dim(0)?)
            }
            (Self::DualPrompt { keys, .. }, Site::Embed) => pull_to_task(keys, query),
            (Self::Coda { blocks, heads }, Site::Block(i)) if i < blocks.len() => {
                coda(&blocks[i], *heads, query)
            }
            _ => Ok(Injection::default()),
        }
    }

    fn wants_query(&self) -> bool {
        true
    }
}

/// The `k` nearest prompts of each image as tokens, and the pull of their keys.
fn l2p(prompts: &Tensor, keys: &Tensor, query: &Tensor) -> Result<Injection> {
    let similarity = l2_normalize(query)?.matmul(&l2_normalize(keys)?.t()?)?;
    let rows: Vec<Vec<f32>> = similarity.to_vec2()?;
    let b = rows.len();
    let chosen: Vec<u32> = rows.iter().flat_map(|row| nearest(row)).collect();
    let ids = Tensor::from_vec(chosen, (b, TOP_K), query.device())?;
    let dim = prompts.dim(D::Minus1)?;
    let values = prompts
        .index_select(&ids.flatten_all()?, 0)?
        .reshape((b, TOP_K * TOKENS, dim))?;
    let matched = similarity.gather(&ids, D::Minus1)?.sum_all()?;
    Ok(Injection {
        tokens: Some(Tokens {
            values,
            span: Span::ToTheEnd,
            position: Position::Cls,
        }),
        aux_loss: Some((matched * (-PULL / b as f64))?),
        ..Injection::default()
    })
}

fn nearest(row: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    order.truncate(TOP_K);
    order
}

/// The pull of the current task's key.
fn pull_to_task(keys: &Tensor, query: &Tensor) -> Result<Injection> {
    let key = l2_normalize(&keys.narrow(0, TASK, 1)?)?;
    let matched = l2_normalize(query)?.broadcast_mul(&key)?.sum_all()?;
    Ok(Injection {
        aux_loss: Some((matched * (-PULL / query.dim(0)? as f64))?),
        ..Injection::default()
    })
}

/// The same keys and values `(2, L, D)` for every image.
fn prefix_of_all(pair: &Tensor, heads: usize, batch: usize) -> Result<Injection> {
    let part = |i| -> Result<Tensor> {
        let one = split_heads(&pair.get(i)?.unsqueeze(0)?, heads)?;
        let (_, heads, length, dim) = one.dims4()?;
        Ok(one.expand((batch, heads, length, dim))?)
    };
    prefix(part(0)?, part(1)?)
}

/// `α = cos(q ⊙ A, K)`, `P = Σ α p`; the first half of `P` are keys, the second values.
fn coda([p, k, a]: &[Tensor; 3], heads: usize, query: &Tensor) -> Result<Injection> {
    let k = k.broadcast_div(&k.sqr()?.sum_keepdim(1)?.sqrt()?)?;
    // Two products in place of q ⊙ A for every image and component.
    let dot = query.matmul(&(a * k)?.t()?)?;
    let norm = query.sqr()?.matmul(&a.sqr()?.t()?)?.sqrt()?;
    let alpha = (dot / norm)?;
    let (m, length, dim) = p.dims3()?;
    let mixed = alpha
        .matmul(&p.reshape((m, length * dim))?)?
        .reshape(((), length, dim))?;
    let half = length / 2;
    let part = |from| split_heads(&mixed.narrow(1, from, half)?, heads);
    prefix(part(0)?, part(half)?)
}

fn prefix(keys: Tensor, values: Tensor) -> Result<Injection> {
    Ok(Injection {
        prefix: Some(Prefix {
            keys: keys.contiguous()?,
            values: values.contiguous()?,
            share: Share::Softmax,
        }),
        ..Injection::default()
    })
}

/// `(B, L, D)` to `(B, H, L, D/H)`.
fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, length, dim) = x.dims3()?;
    let x = x.contiguous()?.reshape((b, length, heads, dim / heads))?;
    Ok(x.transpose(1, 2)?)
}
