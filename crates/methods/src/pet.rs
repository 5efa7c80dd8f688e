//! Modules as one table: what LAE and others put into a frozen backbone.

use candle_core::Tensor;
use candlewick_core::{Backbone, Cue, Error, Outputs, Params, Pool, Prompt, Result, Spec};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapters;
use crate::attention_adapter::AttentionAdapters;
use crate::coda::{Coda, Components};
use crate::dap::{Dap, HyperPrompts};
use crate::dualprompt::{DualPrompt, Prefixes};
use crate::l2p::{L2p, Pooled};
use crate::lora::{Lora, Target};
use crate::prefix::FreePrefixes;
use crate::ssf::Ssf;
use crate::vpt::{Depth, FreeTokens, Start, Vpt};

/// The `[method.module]` table. Blocks are counted from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pet {
    /// An adapter beside attention, see [`attention_adapter`](crate::attention_adapter).
    Adapter {
        /// Blocks with an adapter.
        blocks: Vec<usize>,
        /// Its inner width, `r`.
        bottleneck: usize,
    },
    /// Low-rank changes of weights, see [`lora`](crate::lora).
    Lora {
        /// Blocks with changes.
        blocks: Vec<usize>,
        /// Their rank, `r`.
        rank: usize,
        /// The weights that are changed; keys and values where left out, as published.
        #[serde(default = "Target::keys_and_values")]
        on: Vec<Target>,
    },
    /// Keys and values before those of the tokens, see [`prefix`](crate::prefix).
    Prefix {
        /// Blocks with a prefix.
        blocks: Vec<usize>,
        /// Its keys, and its values, `L`.
        length: usize,
        /// Whether its weights are divided by their sum; they are where left out, as published.
        #[serde(default = "yes")]
        compensate: bool,
    },
    /// Prompt tokens at the input, see [`vpt`](crate::vpt).
    VptShallow {
        /// Tokens.
        length: usize,
        /// How they start.
        #[serde(default)]
        init: Start,
    },
    /// Prompt tokens at the input of every block.
    VptDeep {
        /// Tokens of a block.
        length: usize,
        /// How they start.
        #[serde(default)]
        init: Start,
    },
    /// Scale and shift of every operation, see [`ssf`](crate::ssf).
    Ssf {},
    /// An adapter beside every MLP, see [`adapter`](crate::adapter).
    Adaptformer {
        /// Its inner width, `r`.
        bottleneck: usize,
        /// Probability that an inner value is left out in training; 0.1 where left out, as published.
        #[serde(default = "dropout")]
        dropout: f32,
    },
    /// Prompts that each image chooses from a pool, with the keys of [`l2p`](crate::l2p).
    L2p(L2p),
    /// Shared prefixes and those of a task, with the keys of [`dualprompt`](crate::dualprompt).
    Dualprompt(DualPrompt),
    /// Prefixes that are weighted sums, with the keys of [`coda`](crate::coda).
    Coda(Coda),
    /// Tokens that a network makes, with the keys of [`dap`](crate::dap).
    Dap(Dap),
}

/// Of a compensated prefix.
pub(crate) fn yes() -> bool {
    true
}

/// Of AdaptFormer, as published.
pub(crate) fn dropout() -> f32 {
    0.1
}

impl Pet {
    /// Checks ranges; errors name the key below `table`.
    pub fn check(&self, table: &str) -> Result<()> {
        let wrong = |key: &str, problem: String| Error::setting(format!("{table}.{key}"), problem);
        let positive = |key: &str, value: usize| match value {
            0 => Err(wrong(key, "must be greater than 0, found 0".into())),
            _ => Ok(()),
        };
        let some = |key: &str, none: bool, what: &str| match none {
            true => Err(wrong(key, format!("must name at least one {what}"))),
            false => Ok(()),
        };
        let once = |key: &str, twice: Option<String>| match twice {
            Some(name) => Err(wrong(key, format!("{name} stands twice"))),
            None => Ok(()),
        };
        if let Self::Adapter { blocks, .. }
        | Self::Lora { blocks, .. }
        | Self::Prefix { blocks, .. } = self
        {
            some("blocks", blocks.is_empty(), "block")?;
            once("blocks", twice(blocks).map(|i| format!("block {i}")))?;
        }
        match self {
            Self::Ssf {} => Ok(()),
            Self::L2p(config) => below(table, config.check()),
            Self::Dualprompt(config) => below(table, config.check()),
            Self::Coda(config) => below(table, config.check()),
            Self::Dap(config) => below(table, config.check()),
            Self::Adapter { bottleneck, .. } => positive("bottleneck", *bottleneck),
            Self::Lora { rank, on, .. } => {
                positive("rank", *rank)?;
                some("on", on.is_empty(), "weight")?;
                once("on", twice(on).map(|on| format!("\"{}\"", on.name())))
            }
            Self::Prefix { length, .. }
            | Self::VptShallow { length, .. }
            | Self::VptDeep { length, .. } => positive("length", *length),
            Self::Adaptformer {
                bottleneck,
                dropout,
            } => {
                positive("bottleneck", *bottleneck)?;
                match (0.0..1.0).contains(dropout) {
                    true => Ok(()),
                    false => Err(wrong(
                        "dropout",
                        format!("must be at least 0 and below 1, found {dropout}"),
                    )),
                }
            }
        }
    }

    /// Names the departures from the default rule, for the record; `table` is as in `lae.module`.
    pub fn compat(&self, table: &str) -> Vec<String> {
        match self {
            Self::VptShallow { init, .. } | Self::VptDeep { init, .. } => init.compat(table),
            Self::L2p(config) => inside(table, config.compat()),
            Self::Dualprompt(config) => inside(table, config.compat()),
            Self::Dap(config) => inside(table, config.compat()),
            _ => vec![],
        }
    }

    /// What the head reads.
    pub fn pool(&self) -> Pool {
        match self {
            Self::L2p(_) => Pool::PromptMean,
            _ => Pool::Cls,
        }
    }

    /// Draws the parameters. Blocks that are missing are named below `table`.
    pub fn build(
        &self,
        table: &str,
        spec: &Spec,
        seed: u64,
        params: &mut Params,
    ) -> Result<Box<dyn Prompt>> {
        let here = |blocks: &[usize]| spec.has_blocks(&format!("{table}.blocks"), blocks);
        let vpt = |depth, length: usize, init| Vpt {
            depth,
            length,
            init,
        };
        Ok(match self {
            Self::Adapter { blocks, bottleneck } => {
                here(blocks)?;
                Box::new(AttentionAdapters::new(blocks, *bottleneck, spec, params)?)
            }
            Self::Lora { blocks, rank, on } => {
                here(blocks)?;
                Box::new(Lora::new(blocks, on, *rank, spec, params)?)
            }
            Self::Prefix {
                blocks,
                length,
                compensate,
            } => {
                here(blocks)?;
                let prefixes = FreePrefixes::new(blocks, *length, *compensate, spec, params)?;
                Box::new(prefixes)
            }
            Self::VptShallow { length, init } => {
                let config = vpt(Depth::Shallow, *length, *init);
                Box::new(FreeTokens::new(&config, spec, params)?)
            }
            Self::VptDeep { length, init } => {
                let config = vpt(Depth::Deep, *length, *init);
                Box::new(FreeTokens::new(&config, spec, params)?)
            }
            Self::Ssf {} => Box::new(Ssf::new(spec, params)?),
            Self::Adaptformer {
                bottleneck,
                dropout,
            } => Box::new(Adapters::new(*bottleneck, *dropout, seed, spec, params)?),
            Self::L2p(config) => Box::new(Pooled::new(config.clone(), spec.dim, params)?),
            Self::Dualprompt(config) => {
                Box::new(below(table, Prefixes::new(config.clone(), spec, params))?)
            }
            Self::Coda(config) => Box::new(below(table, Components::new(config.clone(), spec))?),
            Self::Dap(config) => Box::new(below(
                table,
                HyperPrompts::new(config.clone(), spec, params),
            )?),
        })
    }
}

/// The keys of a method that stand in `table` instead of `[method]`.
fn below<T>(table: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Setting { key, problem } => Error::Setting {
            key: key.replacen("method", table, 1),
            problem,
        },
        other => other,
    })
}

/// The departures of a method that is a module, as in `lae.module.l2p.batch_vote=always`.
fn inside(table: &str, compat: Vec<String>) -> Vec<String> {
    let named = compat.into_iter();
    named.map(|name| format!("{table}.{name}")).collect()
}

/// The first that stands a second time.
fn twice<T: Copy + PartialEq>(values: &[T]) -> Option<T> {
    let mut seen = values.iter().enumerate();
    let again = seen.find(|(i, value)| values[..*i].contains(value));
    again.map(|(_, value)| *value)
}

/// CLS `(B, D)` of `images`, behind the last norm, with `prompt` in the backbone.
pub(crate) fn cls(
    backbone: &dyn Backbone,
    images: &Tensor,
    prompt: &dyn Prompt,
    train: bool,
) -> Result<Tensor> {
    let cue = Cue {
        train,
        outputs: Outputs::Head,
        ..Cue::default()
    };
    let cls = backbone.forward(images, prompt, &cue)?.cls()?;
    Ok(if train { cls } else { cls.detach() })
}

/// A parameter as training sees it, or its value. Nothing is differentiated at test, and a graph would keep every activation
/// alive.
pub(crate) fn as_seen(parameter: &Tensor, train: bool) -> Tensor {
    match train {
        true => parameter.clone(),
        false => parameter.detach(),
    }
}

/// `x Wᵀ + b`.
pub(crate) fn affine(x: &Tensor, [weight, bias]: &[Tensor; 2], train: bool) -> Result<Tensor> {
    let (weight, bias) = (as_seen(weight, train), as_seen(bias, train));
    Ok(x.matmul(&weight.t()?)?.broadcast_add(&bias)?)
}
