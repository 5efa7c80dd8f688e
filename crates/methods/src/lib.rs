//! The methods of candlewick. One method is one file that reads like the paper's algorithm box:
//! its settings, what it puts into the backbone, how it predicts.
//!
//! [`MethodConfig`] is the list of them. A method from outside needs no entry here: it calls
//! [`candlewick_core::run::run`] itself, and [`conformance::check`] holds it to the same laws.

pub mod adapter;
pub mod alignment;
pub mod aper;
pub mod attend;
pub mod attention_adapter;
pub mod balance;
pub mod booster;
pub mod choice;
pub mod class_attention;
pub mod class_texts;
pub mod classifier;
pub mod coda;
pub mod cofima;
pub mod conformance;
pub mod context;
pub mod continual_clip;
pub mod coop;
pub mod dap;
pub mod draw;
pub mod dualprompt;
pub mod ease;
pub mod esn;
pub mod exemplars;
pub mod fecam;
pub mod finetune;
pub mod fisher;
pub mod gate;
pub mod herding;
pub mod joint;
pub mod joint_linear;
pub mod joint_ridge;
pub mod knn;
pub mod l2p;
pub mod lae;
pub mod linear;
pub mod lora;
mod memory;
pub mod mos;
pub mod nearest_mean;
pub mod pet;
pub mod prefix;
pub mod promptfusion;
pub mod proof;
pub mod random_prompt;
pub mod ranpac;
pub mod replay;
pub mod shared_tokens;
pub mod simplecil;
pub mod slca;
pub mod ssf;
mod tables;
pub mod templates;
pub mod tuning;
pub mod vpt;
pub mod whole;
pub mod zscl;

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Method, Result, Scenario, Train};
use serde::{Deserialize, Deserializer, Serialize};

pub use aper::Aper;
pub use booster::Booster;
pub use choice::BatchVote;
pub use classifier::{Classifier, OneLook, Seen};
pub use coda::Coda;
pub use cofima::CoFiMa;
pub use continual_clip::ContinualClip;
pub use coop::Coop;
pub use dap::Dap;
pub use draw::Draw;
pub use dualprompt::DualPrompt;
pub use ease::Ease;
pub use esn::Esn;
pub use exemplars::Memory;
pub use fecam::FeCam;
pub use finetune::Finetune;
pub use joint::Joint;
pub use joint_linear::JointLinear;
pub use joint_ridge::JointRidge;
pub use knn::Knn;
pub use l2p::L2p;
pub use lae::Lae;
pub use linear::Linear;
pub use memory::Extent;
pub use mos::Mos;
pub use nearest_mean::NearestMean;
pub use pet::Pet;
pub use promptfusion::PromptFusion;
pub use proof::Proof;
pub use random_prompt::RandomPrompt;
pub use ranpac::RanPac;
pub use replay::Replay;
pub use simplecil::SimpleCil;
pub use slca::Slca;
pub use tables::{About, COMPAT, Compat, METHODS, replaced};
pub use templates::Templates;
pub use tuning::Tuning;
pub use vpt::Vpt;
pub use zscl::{Reference, Zscl};

/// What some methods need beside the backbone.
#[derive(Clone, Default)]
pub struct Beside {
    /// Images and sentences of no task, see [`zscl`].
    pub reference: Option<Reference>,
    /// A second backbone, see [`promptfusion`].
    pub booster: Option<Booster>,
}

/// A method and its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum MethodConfig {
    /// See [`linear`].
    Linear(Linear),
    /// See [`simplecil`].
    SimpleCil(SimpleCil),
    /// See [`l2p`].
    L2p(L2p),
    /// See [`vpt`].
    Vpt(Vpt),
    /// See [`dap`].
    Dap(Dap),
    /// See [`random_prompt`].
    #[serde(rename = "random-prompt")]
    RandomPrompt(RandomPrompt),
    /// See [`dualprompt`].
    DualPrompt(DualPrompt),
    /// See [`coda`].
    Coda(Coda),
    /// See [`nearest_mean`].
    #[serde(rename = "nearest-mean")]
    NearestMean(NearestMean),
    /// See [`ranpac`].
    RanPac(RanPac),
    /// See [`fecam`].
    FeCam(FeCam),
    /// See [`knn`].
    Knn(Knn),
    /// See [`joint_ridge`].
    #[serde(rename = "joint-ridge")]
    JointRidge(JointRidge),
    /// See [`joint_linear`].
    #[serde(rename = "joint-linear")]
    JointLinear(JointLinear),
    /// See [`aper`].
    Aper(Aper),
    /// See [`lae`].
    Lae(Lae),
    /// See [`ease`].
    Ease(Ease),
    /// See [`esn`].
    Esn(Esn),
    /// See [`mos`].
    Mos(Mos),
    /// See [`finetune`].
    Finetune(Finetune),
    /// See [`joint`].
    Joint(Joint),
    /// See [`replay`].
    Replay(Replay),
    /// See [`slca`].
    Slca(Slca),
    /// See [`cofima`].
    CoFiMa(CoFiMa),
    /// See [`continual_clip`].
    #[serde(rename = "continual-clip")]
    ContinualClip(ContinualClip),
    /// See [`coop`].
    Coop(Coop),
    /// See [`zscl`].
    Zscl(Zscl),
    /// See [`proof`].
    Proof(Proof),
    /// See [`promptfusion`].
    PromptFusion(PromptFusion),
}

impl MethodConfig {
    /// Reads the keys of `[method]` besides `name`; `None` when there is no method of that name.
    pub fn read<'de, D: Deserializer<'de>>(
        name: &str,
        settings: D,
    ) -> std::result::Result<Option<Self>, D::Error> {
        Ok(Some(match name {
            "l2p" => Self::L2p(L2p::deserialize(settings)?),
            "linear" => Self::Linear(Linear::deserialize(settings)?),
            "simplecil" => Self::SimpleCil(SimpleCil::deserialize(settings)?),
            "vpt" => Self::Vpt(Vpt::deserialize(settings)?),
            "dap" => Self::Dap(Dap::deserialize(settings)?),
            "random-prompt" => Self::RandomPrompt(RandomPrompt::deserialize(settings)?),
            "dualprompt" => Self::DualPrompt(DualPrompt::deserialize(settings)?),
            "coda" => Self::Coda(Coda::deserialize(settings)?),
            "nearest-mean" => Self::NearestMean(NearestMean::deserialize(settings)?),
            "ranpac" => Self::RanPac(RanPac::deserialize(settings)?),
            "fecam" => Self::FeCam(FeCam::deserialize(settings)?),
            "knn" => Self::Knn(Knn::deserialize(settings)?),
            "joint-ridge" => Self::JointRidge(JointRidge::deserialize(settings)?),
            "joint-linear" => Self::JointLinear(JointLinear::deserialize(settings)?),
            "aper" => Self::Aper(Aper::deserialize(settings)?),
            "lae" => Self::Lae(Lae::deserialize(settings)?),
            "ease" => Self::Ease(Ease::deserialize(settings)?),
            "esn" => Self::Esn(Esn::deserialize(settings)?),
            "mos" => Self::Mos(Mos::deserialize(settings)?),
            "finetune" => Self::Finetune(Finetune::deserialize(settings)?),
            "joint" => Self::Joint(Joint::deserialize(settings)?),
            "replay" => Self::Replay(Replay::deserialize(settings)?),
            "slca" => Self::Slca(Slca::deserialize(settings)?),
            "cofima" => Self::CoFiMa(CoFiMa::deserialize(settings)?),
            "continual-clip" => Self::ContinualClip(ContinualClip::deserialize(settings)?),
            "coop" => Self::Coop(Coop::deserialize(settings)?),
            "zscl" => Self::Zscl(Zscl::deserialize(settings)?),
            "proof" => Self::Proof(Proof::deserialize(settings)?),
            "promptfusion" => Self::PromptFusion(PromptFusion::deserialize(settings)?),
            _ => return Ok(None),
        }))
    }

    /// Builds a method. `train` is the `[train]` table; methods that do not train must not have one.
    /// `eval_batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Option<&Train>,
        eval_batch: usize,
        seed: u64,
    ) -> Result<Box<dyn Method>> {
        self.build_beside(backbone, train, eval_batch, seed, Beside::default())
    }

    /// The same with what some methods need beside the backbone.
    pub fn build_beside(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Option<&Train>,
        eval_batch: usize,
        seed: u64,
        beside: Beside,
    ) -> Result<Box<dyn Method>> {
        let train = self.check(train)?;
        Ok(match (self, train) {
            (Self::Linear(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::L2p(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Proof(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::PromptFusion(config), Some(train)) => {
                Box::new(config.build(backbone, beside.booster, train, eval_batch, seed)?)
            }
            (Self::Zscl(config), Some(train)) => {
                Box::new(config.build(backbone, train, beside.reference, seed)?)
            }
            (Self::Coop(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Vpt(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Dap(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::RandomPrompt(config), Some(train)) => {
                Box::new(config.build(backbone, train, seed)?)
            }
            (Self::DualPrompt(config), Some(train)) => {
                Box::new(config.build(backbone, train, seed)?)
            }
            (Self::Coda(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Aper(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::Finetune(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Joint(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Replay(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::Slca(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::CoFiMa(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::JointLinear(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::Lae(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Ease(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::Mos(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::Esn(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::RanPac(config), train) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::FeCam(config), train) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::NearestMean(config), _) => Box::new(config.build(backbone, eval_batch)?),
            (Self::Knn(config), _) => Box::new(config.build(backbone, eval_batch)?),
            (Self::JointRidge(config), _) => Box::new(config.build(backbone, eval_batch, seed)?),
            (Self::ContinualClip(config), _) => Box::new(config.build(backbone)?),
            (Self::SimpleCil(config), _) => Box::new(config.build(backbone, eval_batch)),
            (_, None) => return Err(self.needs_train()),
        })
    }

    /// Checks settings by key, and that `[train]` is there exactly when the method trains.
    pub fn check(&self, train: Option<&Train>) -> Result<Option<Train>> {
        match self {
            Self::L2p(config) => config.check()?,
            Self::Vpt(config) => config.check()?,
            Self::Dap(config) => config.check()?,
            Self::RandomPrompt(config) => config.check()?,
            Self::DualPrompt(config) => config.check()?,
            Self::Coda(config) => config.check()?,
            Self::Aper(config) => config.check()?,
            Self::Lae(config) => config.check()?,
            Self::Ease(config) => config.check()?,
            Self::Esn(config) => config.check()?,
            Self::Mos(config) => config.check()?,
            Self::NearestMean(config) => config.check()?,
            Self::RanPac(config) => config.check()?,
            Self::FeCam(config) => config.check()?,
            Self::Knn(config) => config.check()?,
            Self::JointRidge(config) => config.check()?,
            Self::Finetune(config) => config.check()?,
            Self::Joint(config) => config.0.check()?,
            Self::Replay(config) => config.check()?,
            Self::Slca(config) => config.check()?,
            Self::CoFiMa(config) => config.check()?,
            Self::ContinualClip(config) => config.check()?,
            Self::Coop(config) => config.check()?,
            Self::Zscl(config) => config.check()?,
            Self::Proof(config) => config.check()?,
            Self::PromptFusion(config) => config.check()?,
            Self::Linear(_) | Self::JointLinear(_) | Self::SimpleCil(_) => {}
        }
        let about = self.about();
        match (self.trains(), train) {
            (true, None) => Err(self.needs_train()),
            (false, Some(_)) => Err(Error::setting(
                "train",
                format!("`{}` has no training step; remove the table", about.name),
            )),
            (true, Some(train)) => {
                train.check()?;
                Ok(Some(train.clone()))
            }
            (false, None) => Ok(None),
        }
    }

    /// Whether it reads nothing of a plain image but the frozen feature, so that stored ones are enough for it.
    pub fn reads_features_alone(&self) -> bool {
        match self {
            Self::Linear(_)
            | Self::JointLinear(_)
            | Self::SimpleCil(_)
            | Self::NearestMean(_)
            | Self::Knn(_)
            | Self::ContinualClip(_)
            | Self::Coop(_)
            | Self::Proof(_)
            | Self::JointRidge(_) => true,
            Self::RanPac(config) => config.tuning.is_none(),
            Self::FeCam(config) => config.tuning.is_none(),
            _ => false,
        }
    }

    /// Whether it learns classes that come again, in another domain: what rests on sums over images does, and a head, which
    /// is trained on. Prompts and keys of a task are made for classes of its own.
    pub fn takes_classes_again(&self) -> bool {
        match self {
            Self::L2p(_)
            | Self::Vpt(_)
            | Self::Dap(_)
            | Self::RandomPrompt(_)
            | Self::DualPrompt(_)
            | Self::Coda(_)
            | Self::Finetune(_)
            | Self::Joint(_)
            | Self::Replay(_)
            | Self::Slca(_)
            | Self::CoFiMa(_)
            | Self::Coop(_)
            | Self::Zscl(_)
            | Self::Proof(_)
            | Self::PromptFusion(_)
            | Self::Lae(_)
            | Self::Ease(_)
            | Self::Esn(_)
            | Self::Mos(_) => false,
            Self::Linear(_)
            | Self::SimpleCil(_)
            | Self::NearestMean(_)
            | Self::RanPac(_)
            | Self::FeCam(_)
            | Self::Knn(_)
            | Self::ContinualClip(_)
            | Self::JointRidge(_)
            | Self::JointLinear(_)
            | Self::Aper(_) => true,
        }
    }

    /// Refuses a stream that the method does not learn from.
    pub fn fits(&self, scenario: &Scenario) -> Result<()> {
        match scenario {
            Scenario::DomainIncremental(_) if !self.takes_classes_again() => Err(Error::setting(
                "stream.kind",
                format!(
                    "`{}` learns each class in one task; \"domain-incremental\" streams are for methods without prompts of their tasks: aper, continual-clip, fecam, joint-linear, joint-ridge, knn, linear, nearest-mean, ranpac, simplecil",
                    self.about().name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether it reads class names, so that the backbone needs a text tower.
    pub fn reads_texts(&self) -> bool {
        matches!(
            self,
            Self::ContinualClip(_)
                | Self::Coop(_)
                | Self::Zscl(_)
                | Self::Proof(_)
                | Self::PromptFusion(_)
        )
    }

    /// Whether it has a second backbone, [`Beside::booster`].
    pub fn wants_booster(&self) -> bool {
        matches!(self, Self::PromptFusion(_))
    }

    /// Whether every weight of the backbone trains, in all tasks or in the first.
    pub fn trains_backbone(&self) -> bool {
        let whole = |tuning: &Tuning| matches!(tuning, Tuning::Finetune {});
        match self {
            Self::Finetune(config) | Self::Joint(Joint(config)) => config.trains_backbone(),
            Self::Replay(config) => config.network().trains_backbone(),
            Self::Slca(_) | Self::CoFiMa(_) | Self::Zscl(_) => true,
            Self::Aper(config) => whole(&config.tuning),
            Self::RanPac(config) => config.tuning.as_ref().is_some_and(whole),
            Self::FeCam(config) => config.tuning.as_ref().is_some_and(whole),
            _ => false,
        }
    }

    /// Whether its tasks are those of [`Stream::cumulative`](candlewick_core::Stream::cumulative).
    pub fn wants_all_seen(&self) -> bool {
        matches!(self, Self::Joint(_))
    }

    /// Whether it reads the `[train]` table with these settings.
    pub fn trains(&self) -> bool {
        match self {
            Self::RanPac(config) => config.tuning.is_some(),
            Self::FeCam(config) => config.tuning.is_some(),
            _ => self.about().trains,
        }
    }

    fn needs_train(&self) -> Error {
        Error::setting(
            "train",
            format!(
                "`{}` trains and needs this table with epochs, batch, optimizer and lr",
                self.about().name
            ),
        )
    }

    /// Its entry in [`METHODS`].
    pub fn about(&self) -> About {
        let name = match self {
            Self::Aper(_) => "aper",
            Self::Coda(_) => "coda",
            Self::CoFiMa(_) => "cofima",
            Self::ContinualClip(_) => "continual-clip",
            Self::Coop(_) => "coop",
            Self::Dap(_) => "dap",
            Self::DualPrompt(_) => "dualprompt",
            Self::Ease(_) => "ease",
            Self::Esn(_) => "esn",
            Self::FeCam(_) => "fecam",
            Self::Finetune(_) => "finetune",
            Self::Joint(_) => "joint",
            Self::JointLinear(_) => "joint-linear",
            Self::JointRidge(_) => "joint-ridge",
            Self::Knn(_) => "knn",
            Self::L2p(_) => "l2p",
            Self::Lae(_) => "lae",
            Self::Linear(_) => "linear",
            Self::Mos(_) => "mos",
            Self::NearestMean(_) => "nearest-mean",
            Self::RandomPrompt(_) => "random-prompt",
            Self::RanPac(_) => "ranpac",
            Self::Replay(_) => "replay",
            Self::SimpleCil(_) => "simplecil",
            Self::Slca(_) => "slca",
            Self::Vpt(_) => "vpt",
            Self::Zscl(_) => "zscl",
            Self::Proof(_) => "proof",
            Self::PromptFusion(_) => "promptfusion",
        };
        let place = METHODS.iter().position(|about| about.name == name);
        METHODS[place.unwrap_or_default()]
    }

    /// Named departures from the default rules, for the fingerprint.
    pub fn compat(&self) -> Vec<String> {
        match self {
            Self::L2p(config) => config.compat(),
            Self::Vpt(config) => config.compat(),
            Self::Dap(config) => config.compat(),
            Self::DualPrompt(config) => config.compat(),
            Self::Aper(config) => config.compat(),
            Self::Lae(config) => config.compat(),
            Self::Esn(config) => config.compat(),
            Self::Mos(config) => config.compat(),
            Self::RanPac(config) => config.compat(),
            Self::FeCam(config) => config.compat(),
            Self::Proof(config) => config.compat(),
            Self::PromptFusion(config) => config.compat(),
            Self::Slca(config) => config.compat("slca"),
            Self::CoFiMa(config) => config.compat(),
            Self::Linear(_)
            | Self::Finetune(_)
            | Self::Joint(_)
            | Self::Replay(_)
            | Self::RandomPrompt(_)
            | Self::SimpleCil(_)
            | Self::Coda(_)
            | Self::ContinualClip(_)
            | Self::Coop(_)
            | Self::Zscl(_)
            | Self::Ease(_)
            | Self::NearestMean(_)
            | Self::Knn(_)
            | Self::JointRidge(_)
            | Self::JointLinear(_) => vec![],
        }
    }
}
