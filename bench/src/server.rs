//! The requests and their answers.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, safetensors};
use candlewick_core::Backbone;
use candlewick_vit::{Options, Vit, Weights};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::inputs::{self, Inputs};
use crate::prompts::Kind;
use crate::step::Step;
use crate::{limit, machine};

/// What the server can be asked.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Loads a backbone; the one before is dropped first. The first request also fixes the threads.
    Load {
        /// A file in any layout candlewick reads.
        weights: PathBuf,
        /// What the backbone computes in.
        precision: Precision,
        /// Threads of every operation.
        threads: usize,
        /// Input height and width; left out for the trained size.
        image_size: Option<usize>,
        /// Attention heads; left out for one per 64 dimensions.
        heads: Option<usize>,
        /// Whether blocks that train are run again in the backward pass.
        #[serde(default)]
        checkpoint: bool,
    },
    /// CLS features of the tensor `images`, without prompts.
    Forward {
        /// A safetensors file.
        images: PathBuf,
        /// Timed repetitions.
        reps: usize,
        /// Where `features` go.
        out: Option<PathBuf>,
    },
    /// Training steps; each repetition goes on from the parameters the one before left.
    Step {
        /// The method whose shapes are used.
        kind: Kind,
        /// A safetensors file, see [`inputs`].
        inputs: PathBuf,
        /// Timed repetitions.
        reps: usize,
        /// Where the loss and the gradients at the given parameters go, as `loss` and `grad.NAME`.
        out: Option<PathBuf>,
    },
    /// The peak of resident memory since the last reset.
    Memory {
        /// Starts over from what is resident now.
        #[serde(default)]
        reset: bool,
    },
    /// What the machine can do.
    Limit,
}

/// The number format of the backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    F32,
    /// Products in bfloat16.
    Bf16,
}

impl Precision {
    /// The one place where a precision reaches the backbone.
    fn apply(self, options: Options) -> Options {
        let precision = match self {
            Self::F32 => candlewick_vit::Precision::F32,
            Self::Bf16 => candlewick_vit::Precision::Bf16,
        };
        Options {
            precision,
            ..options
        }
    }
}

/// Holds the backbone between requests.
#[derive(Default)]
pub struct Server {
    vit: Option<Vit>,
    threads: Option<usize>,
}

impl Server {
    /// Does what is asked and tells how long it took.
    pub fn answer(&mut self, request: Request) -> Result<Value> {
        match request {
            Request::Load {
                weights,
                precision,
                threads,
                image_size,
                heads,
                checkpoint,
            } => {
                self.use_threads(threads)?;
                let options = precision.apply(Options {
                    heads,
                    image_size,
                    checkpoint_activations: checkpoint,
                    ..Options::default()
                });
                self.vit = None;
                self.load(&weights, &options)
            }
            Request::Forward { images, reps, out } => self.forward(&images, reps, out.as_deref()),
            Request::Step {
                kind,
                inputs,
                reps,
                out,
            } => self.step(kind, &inputs, reps, out.as_deref()),
            Request::Memory { reset } => {
                if reset {
                    reset_peak()?;
                }
                Ok(
                    json!({ "peak_bytes": machine::peak().context("this system does not tell the peak of memory")? }),
                )
            }
            Request::Limit => Ok(json!({
                "f32_gflops": limit::f32_fma(),
                "f32_matmul_gflops": limit::f32_matmul()?,
                "bf16_gflops": limit::bf16(),
            })),
        }
    }

    fn use_threads(&mut self, threads: usize) -> Result<()> {
        match self.threads {
            Some(now) if now != threads => {
                bail!("the server runs with {now} threads; start another for {threads}")
            }
            Some(_) => Ok(()),
            None => {
                machine::use_threads(threads)?;
                self.threads = Some(threads);
                Ok(())
            }
        }
    }

    fn load(&mut self, weights: &Path, options: &Options) -> Result<Value> {
        let start = Instant::now();
        let vit = Vit::load(&Weights::open(weights)?, options, &Device::Cpu)?;
        let spec = vit.spec().clone();
        self.vit = Some(vit);
        Ok(json!({
            "seconds": start.elapsed().as_secs_f64(),
            "dim": spec.dim,
            "depth": spec.depth,
            "heads": spec.heads,
            "mlp_dim": spec.mlp_dim,
            "patch_size": spec.patch_size,
            "image_size": spec.image_size,
            "tokens": spec.tokens(),
        }))
    }

    fn vit(&self) -> Result<&Vit> {
        self.vit
            .as_ref()
            .context("no backbone yet; send a \"load\" request first")
    }

    fn forward(&self, images: &Path, reps: usize, out: Option<&Path>) -> Result<Value> {
        let vit = self.vit()?;
        let images = inputs::take(&read(images)?, "images")?;
        let mut features = None;
        let seconds = timed(reps, || {
            features = Some(vit.query(&images)?);
            Ok(())
        })?;
        if let Some(out) = out {
            let features = match features {
                Some(features) => features,
                None => vit.query(&images)?,
            };
            write(out, [("features".to_owned(), features)])?;
        }
        Ok(json!({ "seconds": seconds }))
    }

    fn step(&self, kind: Kind, inputs: &Path, reps: usize, out: Option<&Path>) -> Result<Value> {
        let mut step = Step::new(self.vit()?, kind, &read(inputs)?)?;
        if let Some(out) = out {
            let (loss, gradients) = step.gradients()?;
            let named = gradients
                .into_iter()
                .map(|(name, grad)| (format!("grad.{name}"), grad));
            write(out, named.chain([("loss".to_owned(), loss)]))?;
        }
        let seconds = timed(reps, || step.step())?;
        Ok(json!({ "seconds": seconds }))
    }
}

/// Seconds of each of `reps` calls.
fn timed(reps: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    (0..reps)
        .map(|_| {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}

fn read(file: &Path) -> Result<Inputs> {
    safetensors::load(file, &Device::Cpu).with_context(|| file.display().to_string())
}

fn write(file: &Path, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<()> {
    let tensors: Inputs = tensors.into_iter().collect();
    safetensors::save(&tensors, file).with_context(|| file.display().to_string())
}

/// Makes the peak start over from what is resident now. Memory that was freed but kept by the allocator stays
/// resident, so a peak is that of everything done since the process began to need so much.
fn reset_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")
}
