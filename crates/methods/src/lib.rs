//! The methods of candlewick. One method is one file that reads like the paper's algorithm box:
//! its settings, what it puts into the backbone, how it predicts.
//!
//! [`MethodConfig`] is the list of them. A method from outside needs no entry here: it calls
//! [`candlewick_core::run::run`] itself, and [`conformance::check`] holds it to the same laws.

pub mod aper_vpt;
pub mod choice;
pub mod coda;
pub mod conformance;
pub mod dap;
pub mod draw;
pub mod dualprompt;
pub mod l2p;
pub mod linear;
pub mod random_prompt;
pub mod simplecil;
pub mod vpt;

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Method, Result, Scenario, Train};
use serde::{Deserialize, Deserializer, Serialize};

pub use aper_vpt::AperVpt;
pub use choice::BatchVote;
pub use coda::Coda;
pub use dap::Dap;
pub use draw::Draw;
pub use dualprompt::DualPrompt;
pub use l2p::L2p;
pub use linear::Linear;
pub use random_prompt::RandomPrompt;
pub use simplecil::SimpleCil;
pub use vpt::Vpt;

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
    /// See [`aper_vpt`].
    #[serde(rename = "aper-vpt")]
    AperVpt(AperVpt),
    /// See [`dap`].
    Dap(Dap),
    /// See [`random_prompt`].
    #[serde(rename = "random-prompt")]
    RandomPrompt(RandomPrompt),
    /// See [`dualprompt`].
    DualPrompt(DualPrompt),
    /// See [`coda`].
    Coda(Coda),
}

/// What `candlewick methods` shows of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// As in `[method] name`.
    pub name: &'static str,
    /// What it does, in one line.
    pub what: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// Whether it reads the `[train]` table.
    pub trains: bool,
}

/// All methods, in the order of their names.
pub const METHODS: [About; 9] = [
    About {
        name: "aper-vpt",
        what: "prompts tuned on the first task, then class means of frozen and tuned features",
        paper: "Zhou et al. 2023, Revisiting Class-Incremental Learning with Pre-Trained Models",
        trains: true,
    },
    About {
        name: "coda",
        what: "a prefix for each image, summed from components that attention weighs",
        paper: "Smith et al. 2023, CODA-Prompt: COntinual Decomposed Attention-based Prompting",
        trains: true,
    },
    About {
        name: "dap",
        what: "prompts made for each image from the tokens of each block",
        paper: "Jung et al. 2023, Generating Instance-level Prompts for Rehearsal-free Continual Learning",
        trains: true,
    },
    About {
        name: "dualprompt",
        what: "prefixes shared by all tasks, and prefixes of each task, chosen per image by learned keys",
        paper: "Wang et al. 2022, DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning",
        trains: true,
    },
    About {
        name: "l2p",
        what: "a pool of prompt tokens, chosen per image by learned keys",
        paper: "Wang et al. 2022, Learning to Prompt for Continual Learning",
        trains: true,
    },
    About {
        name: "linear",
        what: "a masked linear head on the frozen backbone; the floor of every table",
        paper: "-",
        trains: true,
    },
    About {
        name: "random-prompt",
        what: "deep prompts that are drawn and never trained; the floor of deep prompts",
        paper: "-",
        trains: true,
    },
    About {
        name: "simplecil",
        what: "class means of the frozen feature, nearest by cosine",
        paper: "Zhou et al. 2023, Revisiting Class-Incremental Learning with Pre-Trained Models",
        trains: false,
    },
    About {
        name: "vpt",
        what: "free prompt tokens, shallow or deep, tuned on every task",
        paper: "Jia et al. 2022, Visual Prompt Tuning",
        trains: true,
    },
];

/// A published quirk that a recipe can ask for by name: what `candlewick methods --compat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compat {
    /// As in `[method] name`.
    pub method: &'static str,
    /// The key of `[method]` and the value that departs.
    pub switch: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Where it was published.
    pub source: &'static str,
}

/// All of them, by method and switch; [`MethodConfig::compat`] gives those in use as `method.switch`.
pub const COMPAT: &[Compat] = &[
    Compat {
        method: "aper-vpt",
        switch: "init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
    Compat {
        method: "dap",
        switch: "batch_vote=always",
        what: "a test batch chooses one task together: predictions depend on the batch",
        source: "naver-ai/dap-cl:src/models/vit_dap/vit.py",
    },
    Compat {
        method: "dap",
        switch: "init=zeros",
        what: "the prompt maker starts at 0: all tokens of a block stay alike for ever",
        source: "naver-ai/dap-cl:src/models/vit_dap/vit.py",
    },
    Compat {
        method: "dap",
        switch: "mask_logits=true",
        what: "classes outside the chosen task cannot be predicted (ImageNet-R)",
        source: "naver-ai/dap-cl:src/models/vit_models.py",
    },
    Compat {
        method: "dualprompt",
        switch: "batch_vote=always",
        what: "a test batch chooses one task together: predictions depend on the batch",
        source: "google-research/l2p:models/prompt.py, JH-LEE-KR/dualprompt-pytorch:prompt.py",
    },
    Compat {
        method: "dualprompt",
        switch: "compat=reshape-bug",
        what: "keys, values and images mix in the prefixes of a batch: predictions depend on the batch",
        source: "JH-LEE-KR/dualprompt-pytorch:prompt.py, LAMDA-CL/LAMDA-PILOT:backbone/prompt.py",
    },
    Compat {
        method: "l2p",
        switch: "batch_vote=always",
        what: "a batch chooses its prompts together, at test too: predictions depend on the batch",
        source: "google-research/l2p:models/prompt.py, JH-LEE-KR/l2p-pytorch:prompt.py",
    },
    Compat {
        method: "l2p",
        switch: "batch_vote=train",
        what: "a batch chooses its prompts together, in training alone",
        source: "google-research/l2p:models/prompt.py",
    },
    Compat {
        method: "vpt",
        switch: "init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
];

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
            "aper-vpt" => Self::AperVpt(AperVpt::deserialize(settings)?),
            "dap" => Self::Dap(Dap::deserialize(settings)?),
            "random-prompt" => Self::RandomPrompt(RandomPrompt::deserialize(settings)?),
            "dualprompt" => Self::DualPrompt(DualPrompt::deserialize(settings)?),
            "coda" => Self::Coda(Coda::deserialize(settings)?),
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
        let train = self.check(train)?;
        Ok(match (self, train) {
            (Self::Linear(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::L2p(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::Vpt(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::AperVpt(config), Some(train)) => {
                Box::new(config.build(backbone, train, eval_batch, seed)?)
            }
            (Self::Dap(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::RandomPrompt(config), Some(train)) => {
                Box::new(config.build(backbone, train, seed)?)
            }
            (Self::DualPrompt(config), Some(train)) => {
                Box::new(config.build(backbone, train, seed)?)
            }
            (Self::Coda(config), Some(train)) => Box::new(config.build(backbone, train, seed)?),
            (Self::SimpleCil(config), _) => Box::new(config.build(backbone, eval_batch)),
            (_, None) => return Err(self.needs_train()),
        })
    }

    /// Checks settings by key, and that `[train]` is there exactly when the method trains.
    pub fn check(&self, train: Option<&Train>) -> Result<Option<Train>> {
        match self {
            Self::L2p(config) => config.check()?,
            Self::Vpt(config) => config.check()?,
            Self::AperVpt(config) => config.0.check()?,
            Self::Dap(config) => config.check()?,
            Self::RandomPrompt(config) => config.check()?,
            Self::DualPrompt(config) => config.check()?,
            Self::Coda(config) => config.check()?,
            Self::Linear(_) | Self::SimpleCil(_) => {}
        }
        let about = self.about();
        match (about.trains, train) {
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
        matches!(self, Self::Linear(_) | Self::SimpleCil(_))
    }

    /// Refuses a stream that the method does not learn from: heads grow with the task, so only methods without one go over
    /// the same classes again.
    pub fn fits(&self, scenario: &Scenario) -> Result<()> {
        match scenario {
            Scenario::DomainIncremental(_) if !matches!(self, Self::SimpleCil(_)) => {
                Err(Error::setting(
                    "stream.kind",
                    format!(
                        "`{}` learns each class in one task; \"domain-incremental\" streams are for simplecil",
                        self.about().name
                    ),
                ))
            }
            _ => Ok(()),
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
        METHODS[match self {
            Self::AperVpt(_) => 0,
            Self::Coda(_) => 1,
            Self::Dap(_) => 2,
            Self::DualPrompt(_) => 3,
            Self::L2p(_) => 4,
            Self::Linear(_) => 5,
            Self::RandomPrompt(_) => 6,
            Self::SimpleCil(_) => 7,
            Self::Vpt(_) => 8,
        }]
    }

    /// Named departures from the default rules, for the fingerprint.
    pub fn compat(&self) -> Vec<String> {
        match self {
            Self::L2p(config) => config.compat(),
            Self::Vpt(config) => config.compat(),
            Self::AperVpt(config) => config.compat(),
            Self::Dap(config) => config.compat(),
            Self::DualPrompt(config) => config.compat(),
            Self::Linear(_) | Self::RandomPrompt(_) | Self::SimpleCil(_) | Self::Coda(_) => vec![],
        }
    }
}
