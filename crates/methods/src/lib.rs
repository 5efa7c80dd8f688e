//! The methods of candlewick. One method is one file that reads like the paper's algorithm box:
//! its settings, what it puts into the backbone, how it predicts.
//!
//! [`MethodConfig`] is the list of them. A method from outside needs no entry here: it calls
//! [`candlewick_core::run::run`] itself, and [`conformance::check`] holds it to the same laws.

pub mod choice;
pub mod conformance;
pub mod l2p;
pub mod linear;
pub mod simplecil;

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Method, Result, Train};
use serde::{Deserialize, Deserializer, Serialize};

pub use choice::BatchVote;
pub use l2p::L2p;
pub use linear::Linear;
pub use simplecil::SimpleCil;

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
pub const METHODS: [About; 3] = [
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
        name: "simplecil",
        what: "class means of the frozen feature, nearest by cosine",
        paper: "Zhou et al. 2023, Revisiting Class-Incremental Learning with Pre-Trained Models",
        trains: false,
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
            (Self::SimpleCil(config), _) => Box::new(config.build(backbone, eval_batch)),
            (Self::Linear(_) | Self::L2p(_), None) => return Err(self.needs_train()),
        })
    }

    /// Checks settings by key, and that `[train]` is there exactly when the method trains.
    pub fn check(&self, train: Option<&Train>) -> Result<Option<Train>> {
        if let Self::L2p(config) = self {
            config.check()?;
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
            Self::L2p(_) => 0,
            Self::Linear(_) => 1,
            Self::SimpleCil(_) => 2,
        }]
    }

    /// Named departures from the default rules, for the fingerprint.
    pub fn compat(&self) -> Vec<String> {
        match self {
            Self::L2p(config) => config.compat(),
            Self::Linear(_) | Self::SimpleCil(_) => vec![],
        }
    }
}
