//! `candlewick merge`: one model of several.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use candlewick_merge::{Rule, Sources, files};
use clap::{Args, ValueEnum};

use crate::print;
use crate::record::PARAMS;

#[derive(Args)]
pub struct MergeArgs {
    /// Run directories, or safetensors files, with the same names and shapes
    #[arg(required = true, num_args = 2.., value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// How several values become one
    #[arg(long, value_enum)]
    rule: RuleName,
    /// The file to write; it may be one of the models
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// ema: what is kept at each step [default: 0.9]
    #[arg(long, value_name = "SHARE")]
    decay: Option<f64>,
    /// wise: the share of the second model [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    alpha: Option<f64>,
    /// task-arithmetic: the factor on what was learned from the first model on [default: 1]
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// fisher: a weight for each model [default: the same for all]
    #[arg(long, value_delimiter = ',', value_name = "W,W,...")]
    weights: Option<Vec<f64>>,
    /// fisher: what is added to all information, so that values without any are averaged [default: 1e-12]
    #[arg(long)]
    epsilon: Option<f64>,
    /// fisher: the information of each model, a run or file each, in the order of the models [default: the models' own
    /// `fisher.` tensors]
    #[arg(long, value_name = "MODEL")]
    fisher: Vec<PathBuf>,
    /// Merge and write only what begins so; may be given again
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RuleName {
    /// The mean
    Average,
    /// Towards each further model in turn
    Ema,
    /// The mean weighted by diagonal Fisher information
    Fisher,
    /// Between two models
    Wise,
    /// The first model and all that the others learned from it on
    TaskArithmetic,
}

pub fn merge(args: &MergeArgs) -> Result<()> {
    let sources = Sources {
        models: args.models.iter().map(|path| params(path)).collect(),
        fishers: args.fisher.iter().map(|path| params(path)).collect(),
        only: args.only.clone(),
    };
    let merged = files(&args.rule()?, &sources, &args.out)?;
    print(&format!(
        "{}: {} tensors, {} values of {} models\n",
        args.out.display(),
        merged.tensors,
        merged.values,
        args.models.len()
    ))
}

/// The file of a run, or the file itself.
fn params(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(PARAMS),
        false => path.to_owned(),
    }
}

impl MergeArgs {
    /// A number of another rule is a mistake, not a wish.
    fn rule(&self) -> Result<Rule> {
        use RuleName::{Ema, Fisher, TaskArithmetic, Wise};
        let given = [
            ("--decay", Ema, self.decay.is_some()),
            ("--alpha", Wise, self.alpha.is_some()),
            ("--scale", TaskArithmetic, self.scale.is_some()),
            ("--weights", Fisher, self.weights.is_some()),
            ("--epsilon", Fisher, self.epsilon.is_some()),
            ("--fisher", Fisher, !self.fisher.is_empty()),
        ];
        for (flag, rule, given) in given {
            if given && rule != self.rule {
                let name = rule.to_possible_value();
                let name = name.as_ref().map_or("another", |name| name.get_name());
                bail!("{flag} belongs to --rule {name}; leave it out");
            }
        }
        Ok(match self.rule {
            RuleName::Average => Rule::Average,
            Ema => Rule::Ema {
                decay: self.decay.unwrap_or(0.9),
            },
            Wise => Rule::Wise {
                alpha: self.alpha.unwrap_or(0.5),
            },
            TaskArithmetic => Rule::TaskArithmetic {
                scale: self.scale.unwrap_or(1.0),
            },
            Fisher => Rule::Fisher {
                weights: self.weights.clone().unwrap_or_default(),
                epsilon: self.epsilon.unwrap_or(1e-12),
            },
        })
    }
}
