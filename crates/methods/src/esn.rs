//! ESN: a classifier for each task that no other task touches, their energies brought to one level, a vote on which of them to
//! believe (Wang et al. 2023, "Isolation and Impartial Aggregation: A Paradigm of Incremental Learning without Interference").
//!
//! ```text
//! F  = tokens behind the last block, before the last norm; prompts P (L, D) behind CLS from the input on, without position
//! session s has a token u, a class attention and a head:
//!   x  = LN₁ [u, F],   u ← u + proj(softmax(q(x_0) k(x)ᵀ / √d) v(x)),   u ← u + fc₂ GELU(fc₁ LN₂ u),   z = head(u)
//! L  = CE(z over the session's classes) + λ · mean (E − anchor)²        E = −1/β · log Σ_c exp(β z_c)
//! P trains in the first session, then stands still
//! session s > 0 ends: the temperature T of a list under which most of its images have argmax_r log Σ_c exp(z_r,c / T) = s
//! test: each temperature found votes for a session, most votes win (the earlier session where two are equal); its best class
//! ```
//!
//! Scores are 1 for the classes of the session that wins, 0 for others, plus the softmax within the session. Source:
//! `iamwangyabin/ESN:networks.py`, `trainer.py`, `models/convit.py` (d163bc6). There the energy has `−β z` inside, so that the
//! anchor pulls at the smallest logits, and the prompts go on training in every session, which moves what earlier sessions read;
//! both are switches. It takes all sessions to have as many classes.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Cue, Error, Injection, Method, Op, Optimizer, Outputs, Params, Position,
    Progress, Prompt, Result, Session, Site, Span, State, Task, TaskInfo, Tokens, Train, View,
};
use serde::{Deserialize, Serialize};

use crate::class_attention::{ClassAttention, as_linear};
use crate::classifier::{put, take};
use crate::pet::as_seen;

/// `[method] name = "esn"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Esn {
    /// Prompt tokens, `L`; 0 for none.
    pub prompts: usize,
    /// The energy that all sessions are drawn to; −10 where left out, as published.
    #[serde(default = "anchor")]
    pub anchor: f64,
    /// Weight of that, λ; 0.1 where left out, as published.
    #[serde(default = "pull")]
    pub pull: f64,
    /// β; 1 where left out, as published.
    #[serde(default = "beta")]
    pub beta: f64,
    /// The temperatures to choose from; the first is that of the first session.
    #[serde(default = "temperatures")]
    pub temperatures: Vec<f64>,
    /// What the anchor is held to.
    #[serde(default)]
    pub energy: Energy,
    /// When the prompts train.
    #[serde(default)]
    pub prompts_train: PromptsTrain,
}

fn anchor() -> f64 {
    -10.0
}

fn pull() -> f64 {
    0.1
}

fn beta() -> f64 {
    1.0
}

fn temperatures() -> Vec<f64> {
    vec![
        0.001, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
    ]
}

/// What the anchor is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Energy {
    /// `−1/β · log Σ exp(β z)`, which the vote goes by.
    #[default]
    Free,
    /// `−1/β · log Σ exp(−β z)`, near the smallest logit: as published.
    SoftMinimum,
}

/// When the prompts train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptsTrain {
    /// In the first session.
    #[default]
    FirstSession,
    /// In every session: as published.
    EverySession,
}

impl Esn {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let hold = |key: &str, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(Error::setting(
                format!("method.{key}"),
                format!("must be {expected}, found {found}"),
            )),
        };
        let found = self.anchor.to_string();
        hold("anchor", self.anchor.is_finite(), "a number", found)?;
        let ok = self.pull >= 0.0 && self.pull.is_finite();
        hold("pull", ok, "0 or greater", self.pull.to_string())?;
        let ok = self.beta > 0.0 && self.beta.is_finite();
        hold("beta", ok, "greater than 0", self.beta.to_string())?;
        let mut all = self.temperatures.iter();
        let ok = all.len() > 0 && all.all(|t| *t > 0.0 && t.is_finite());
        let found = format!("{:?}", self.temperatures);
        let expected = "one or more numbers greater than 0";
        hold("temperatures", ok, expected, found)
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let mut compat = Vec::new();
        if self.energy == Energy::SoftMinimum {
            compat.push("esn.energy=soft-minimum".into());
        }
        if self.prompts_train == PromptsTrain::EverySession {
            compat.push("esn.prompts_train=every-session".into());
        }
        compat
    }

    /// Draws prompts and sessions from `seed`; `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Sessions> {
        self.check()?;
        train.check()?;
        let mut params = Params::seeded(seed, backbone.device());
        let dim = backbone.spec().dim;
        let shape = [self.prompts, dim];
        let prompts = params.create(PROMPTS, &shape, as_linear(dim))?;
        Ok(Sessions {
            config: self.clone(),
            input: Input(prompts),
            backbone,
            params,
            sessions: Vec::new(),
            temperatures: Vec::new(),
            train,
            batch,
            current: None,
        })
    }
}

const PROMPTS: &str = "prompts";

/// Prompts at the input, and the tokens of the last block unnormed at the output.
struct Input(Tensor);

impl Prompt for Input {
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        let (length, dim) = self.0.dims2()?;
        if site != Site::Embed || length == 0 {
            return Ok(Injection::default());
        }
        let own = as_seen(&self.0, cue.train).unsqueeze(0)?;
        Ok(Injection {
            tokens: Some(Tokens {
                values: own.expand((tokens.dim(0)?, length, dim))?,
                span: Span::ToTheEnd,
                position: Position::None,
            }),
            ..Injection::default()
        })
    }

    fn tunes(&self, op: Op) -> bool {
        op == Op::Norm
    }

    fn tune(&self, _: Op, input: &Tensor, _: Tensor, _: &Cue) -> Result<Tensor> {
        Ok(input.clone())
    }
}

/// Prompts, and what each session learned.
pub struct Sessions {
    config: Esn,
    backbone: Arc<dyn Backbone>,
    input: Input,
    params: Params,
    sessions: Vec<ClassAttention>,
    /// Of each session that is over, as a place in the list.
    temperatures: Vec<usize>,
    train: Train,
    batch: usize,
    /// The task that is trained on.
    current: Option<(TaskInfo, Optimizer)>,
}

impl Sessions {
    /// `prompts`, and `session.S.…` and `head.S.…` of each session.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The temperatures found, session by session.
    pub fn temperatures(&self) -> Vec<f64> {
        let found = self.temperatures.iter();
        found.map(|at| self.config.temperatures[*at]).collect()
    }

    /// The training loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let (Some((task, _)), Some(own)) = (&self.current, self.sessions.last()) else {
            return Err(Error::no_task());
        };
        let tokens = self.tokens(batch, self.prompts_train(task.index))?;
        let logits = own.logits(&tokens, true)?;
        let loss = masked_cross_entropy(&logits, &batch.labels, &task.classes)?;
        let beta = self.config.beta;
        let inside = match self.config.energy {
            Energy::Free => beta,
            Energy::SoftMinimum => -beta,
        };
        let energy = ((logits * inside)?.log_sum_exp(D::Minus1)? * (-1.0 / beta))?;
        let off = (energy - self.config.anchor)?.sqr()?.mean_all()?;
        Ok((loss + (off * self.config.pull)?)?)
    }

    /// Logits of each session, `(B, K)`.
    pub fn logits(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let tokens = self.tokens(batch, false)?;
        let sessions = self.sessions.iter();
        sessions
            .map(|own| Ok(own.logits(&tokens, false)?.detach()))
            .collect()
    }

    fn prompts_train(&self, session: usize) -> bool {
        session == 0 || self.config.prompts_train == PromptsTrain::EverySession
    }

    /// `(B, N, D)` before the last norm.
    fn tokens(&self, batch: &Batch, train: bool) -> Result<Tensor> {
        let cue = Cue {
            train,
            outputs: Outputs::All,
            ..Cue::default()
        };
        let features = self.backbone.forward(&batch.images, &self.input, &cue)?;
        Ok(match train {
            true => features.tokens,
            false => features.tokens.detach(),
        })
    }

    fn optimizer(&self, task: usize) -> Result<Optimizer> {
        let parts = [format!("session.{task}."), format!("head.{task}.")];
        let mut named = self.params.named();
        named.retain(|(name, _)| match name == PROMPTS {
            true => self.prompts_train(task) && self.config.prompts > 0,
            false => parts.iter().any(|part| name.starts_with(part)),
        });
        Optimizer::new(named, &self.train)
    }

    /// The temperatures that vote, each once.
    fn voters(&self) -> Vec<f64> {
        let mut found = self.temperatures.clone();
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            found.push(0);
        }
        let voters = found.into_iter();
        voters.map(|at| self.config.temperatures[at]).collect()
    }
}

impl Method for Sessions {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        let (s, classes) = (task.index, task.classes.len());
        let own = ClassAttention::new(s, classes, self.backbone.as_ref(), &mut self.params)?;
        self.sessions.push(own);
        self.current = Some((task.clone(), self.optimizer(s)?));
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.begin_epoch(epoch);
        }
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.step(&loss)?;
        }
        Ok(loss.detach())
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.current = None;
        if task.info.index == 0 {
            self.temperatures.push(0);
            return Ok(());
        }
        let mut right = vec![0usize; self.config.temperatures.len()];
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            for logits in rows(&self.logits(&batch)?)? {
                for (right, temperature) in right.iter_mut().zip(&self.config.temperatures) {
                    *right += usize::from(session(&logits, *temperature) == task.info.index);
                }
            }
            progress(batch.len())?;
        }
        // The first of the best.
        let best = (0..right.len()).rev().max_by_key(|at| right[*at]);
        self.temperatures.push(best.unwrap_or(0));
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let voters = self.voters();
        let mut scores = Vec::new();
        let mut classes = 0;
        for logits in rows(&self.logits(batch)?)? {
            let mut votes = vec![0usize; logits.len()];
            for temperature in &voters {
                votes[session(&logits, *temperature)] += 1;
            }
            let most = votes.iter().max().copied().unwrap_or(0);
            let winner = votes.iter().position(|n| *n == most);
            classes = logits.iter().map(Vec::len).sum();
            for (s, logits) in logits.iter().enumerate() {
                let all = log_sum_exp(logits, 1.0);
                let wins = if winner == Some(s) { 1.0 } else { 0.0 };
                let within = logits.iter().map(|z| (f64::from(*z) - all).exp());
                scores.extend(within.map(|p| (wins + p) as f32));
            }
        }
        let shape = (batch.len(), classes);
        Ok(Tensor::from_vec(scores, shape, &Device::Cpu)?)
    }

    fn trainable(&self) -> usize {
        self.params.count()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.params.state()?;
        let found: Vec<f32> = self.temperatures.iter().map(|at| *at as f32).collect();
        let shape = [found.len()];
        put(&mut state, TEMPERATURES, found, &shape)?;
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.current = None;
        let mut rest = state.clone();
        let saved = rest.get(TEMPERATURES).map_or(0, Tensor::elem_count);
        let found = take(&mut rest, TEMPERATURES, &[saved])?;
        let found = found.into_iter().map(|at| at as usize);
        self.temperatures = found.collect();
        let listed = self.config.temperatures.len();
        if saved > tasks.len() || self.temperatures.iter().any(|at| *at >= listed) {
            return Err(Error::State {
                problem: format!(
                    "`{TEMPERATURES}` has {saved} places {:?} in a list of {listed}, behind {} tasks",
                    self.temperatures,
                    tasks.len()
                ),
            });
        }
        self.params.load_state(&rest)
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some((_, optimizer)) = &self.current {
            session.put_part("optimizer", optimizer.session()?);
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        if let (false, Some(task)) = (session.is_empty(), tasks.last()) {
            let mut optimizer = self.optimizer(task.index)?;
            optimizer.resume(session.take_part("optimizer"))?;
            self.current = Some((task.clone(), optimizer));
        }
        session.end()
    }
}

/// Under this name the temperatures are saved, each as its place in the list.
const TEMPERATURES: &str = "temperatures";

/// Image by image, the logits of each session.
fn rows(logits: &[Tensor]) -> Result<Vec<Vec<Vec<f32>>>> {
    let sessions = logits.iter().map(|z| Ok(z.to_vec2::<f32>()?));
    let sessions: Vec<Vec<Vec<f32>>> = sessions.collect::<Result<_>>()?;
    let images = sessions.first().map_or(0, Vec::len);
    let image = |i: usize| sessions.iter().map(|rows| rows[i].clone()).collect();
    Ok((0..images).map(image).collect())
}

/// The session of the largest `log Σ exp(z / T)`, the earlier where two are equal.
pub fn session(logits: &[Vec<f32>], temperature: f64) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (s, logits) in logits.iter().enumerate() {
        let score = log_sum_exp(logits, temperature);
        if score > best.1 {
            best = (s, score);
        }
    }
    best.0
}

fn log_sum_exp(logits: &[f32], temperature: f64) -> f64 {
    let scaled = logits.iter().map(|z| f64::from(*z) / temperature);
    let most = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
    most + scaled.map(|z| (z - most).exp()).sum::<f64>().ln()
}
