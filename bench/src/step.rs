//! One training step: forward, loss, backward, update.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use candlewick_core::optim::Group;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{Backbone, Cue, Optimizer, Outputs, Pool, Train};
use serde_json::json;

use crate::inputs::{self, Inputs, PARAM};
use crate::prompts::{Kind, Prompts};

/// Before the names of a backbone's weights.
const BACKBONE: &str = "backbone.";

/// A batch, a prompt, a head and their optimiser on a frozen backbone, or on one that trains.
pub struct Step<'a> {
    backbone: &'a dyn Backbone,
    /// The one that trains.
    own: Option<Arc<dyn Backbone>>,
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
        let rule = match kind {
            Kind::CoFiMa => json!({
                "epochs": 1, "batch": 1, "optimizer": "sgd", "lr": 1e-2, "weight_decay": 5e-4,
            }),
            _ => json!({ "epochs": 1, "batch": 1, "optimizer": "adam", "lr": 1e-3 }),
        };
        let mut rule: Train = serde_json::from_value(rule)?;
        rule.clip = (kind == Kind::L2pFull).then_some(1.0);
        let mut own = None;
        if kind == Kind::CoFiMa {
            let thawed = backbone.thaw()?;
            let named = thawed.weights.into_iter();
            vars.extend(named.map(|(name, var)| (format!("{BACKBONE}{name}"), var)));
            own = Some(thawed.backbone);
        }
        let (slow, fast) = vars
            .clone()
            .into_iter()
            .partition(|(name, _)| name.starts_with(BACKBONE));
        let group = |vars, lr| Group {
            vars,
            lr,
            weight_decay: None,
        };
        Ok(Self {
            backbone,
            own,
            kind,
            images: inputs::take(given, "images")?,
            labels: inputs::take(given, "labels")?
                .to_dtype(DType::U32)?
                .to_vec1()?,
            query: match kind {
                Kind::L2pFull | Kind::CoFiMa => None,
                _ => Some(inputs::take(given, "query")?),
            },
            optimizer: Optimizer::grouped(vec![group(slow, 0.01), group(fast, 1.0)], &rule)?,
            vars,
            prompts,
        })
    }

    /// The training loss at the present parameters.
    pub fn loss(&self) -> Result<Tensor> {
        let query = match (&self.query, self.kind) {
            (_, Kind::CoFiMa) => None,
            (Some(query), _) => Some(query.clone()),
            (None, _) => Some(self.backbone.query(&self.images)?),
        };
        let cue = Cue {
            query,
            task: Some(0),
            train: true,
            outputs: Outputs::Head,
        };
        let backbone = self.own.as_deref().unwrap_or(self.backbone);
        let features = backbone.forward(&self.images, &self.prompts, &cue)?;
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
