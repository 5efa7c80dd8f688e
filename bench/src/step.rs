//! One training step: forward, loss, backward, update.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{Backbone, Cue, Optimizer, Outputs, Pool, Train};
use serde_json::json;

use crate::inputs::{self, Inputs, PARAM};
use crate::prompts::{Kind, Prompts};

/// A batch, a prompt, a head and their optimiser on a frozen backbone.
pub struct Step<'a> {
    backbone: &'a dyn Backbone,
    kind: Kind,
    images: Tensor,
    labels: Vec<u32>,
    query: Option<Tensor>,
    vars: BTreeMap<String, Var>,
    prompts: Prompts,
    optimizer: Optimizer,
}

impl<'a> Step<'a> {
    /// Takes batch and parameters by name, see [`inputs`].
    pub fn new(backbone: &'a dyn Backbone, kind: Kind, given: &Inputs) -> Result<Self> {
        let spec = backbone.spec();
        let mut vars = BTreeMap::new();
        for (name, shape) in inputs::parameters(kind, spec.dim) {
            let value = inputs::take(given, &format!("{PARAM}{name}"))?;
            anyhow::ensure!(
                value.dims() == shape,
                "`{PARAM}{name}` has shape {:?}, expected {shape:?}",
                value.dims()
            );
            vars.insert(name, Var::from_tensor(&value)?);
        }
        let get = |name: &str| -> Result<Tensor> {
            let var = vars.get(name).context(name.to_owned())?;
            Ok(var.as_tensor().clone())
        };
        let prompts = Prompts::new(kind, spec.heads, get)?;
        // As a recipe has it: what is left out keeps its default.
        let mut rule: Train = serde_json::from_value(json!({
            "epochs": 1, "batch": 1, "optimizer": "adam", "lr": 1e-3,
        }))?;
        rule.clip = (kind == Kind::L2pFull).then_some(1.0);
        Ok(Self {
            backbone,
            kind,
            images: inputs::take(given, "images")?,
            labels: inputs::take(given, "labels")?
                .to_dtype(DType::U32)?
                .to_vec1()?,
            query: match kind {
                Kind::L2pFull => None,
                _ => Some(inputs::take(given, "query")?),
            },
            optimizer: Optimizer::new(vars.clone().into_iter().collect(), &rule)?,
            vars,
            prompts,
        })
    }

    /// The training loss at the present parameters.
    pub fn loss(&self) -> Result<Tensor> {
        let query = match &self.query {
            Some(query) => query.clone(),
            None => self.backbone.query(&self.images)?,
        };
        let cue = Cue {
            query: Some(query),
            task: Some(0),
            train: true,
            outputs: Outputs::Head,
        };
        let features = self.backbone.forward(&self.images, &self.prompts, &cue)?;
        let pooled = match self.kind.pool() {
            Pool::Cls => features.cls()?,
            Pool::PromptMean => features.prompt_mean()?,
        };
        let (weight, bias) = (&self.vars["head.weight"], &self.vars["head.bias"]);
        let logits = pooled.matmul(&weight.t()?)?.broadcast_add(bias)?;
        // The head of the current task alone: the other classes' logits count as -∞.
        let classes = 0..logits.dim(1)?;
        let loss = masked_cross_entropy(&logits, &self.labels, &classes)?;
        Ok(match features.aux_loss {
            Some(aux) => (loss + aux)?,
            None => loss,
        })
    }

    /// Loss and gradients by name; nothing is updated.
    pub fn gradients(&self) -> Result<(Tensor, BTreeMap<String, Tensor>)> {
        let loss = self.loss()?;
        let grads = loss.backward()?;
        let named = self.vars.iter().map(|(name, var)| {
            let grad = grads
                .get(var)
                .with_context(|| format!("no gradient reached `{name}`"))?;
            Ok((name.clone(), grad.contiguous()?))
        });
        Ok((loss.clone(), named.collect::<Result<_>>()?))
    }

    /// A whole step.
    pub fn step(&mut self) -> Result<()> {
        let loss = self.loss()?;
        Ok(self.optimizer.step(&loss)?)
    }
}
