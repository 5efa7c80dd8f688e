//! `candlewick demo`: three methods on what is inside the program. No file, no network.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use crate::machine;
use crate::page;
use crate::prepare::Plan;
use crate::print;
use crate::recipe::Recipe;
use crate::record::RunDir;
use crate::run::{Beside, execute};
use crate::table;
use crate::watch::{self, Download};

#[derive(clap::Args)]
pub struct DemoArgs {
    /// Where the reports go [default: runs/demo]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Threads at work at once [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

const RECIPES: [(&str, &str); 3] = [
    ("linear", include_str!("../demo/linear.toml")),
    ("simplecil", include_str!("../demo/simplecil.toml")),
    ("l2p", include_str!("../demo/l2p.toml")),
];

pub fn demo(args: &DemoArgs) -> Result<()> {
    let bar = Download::new();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs/demo").to_owned());
    let sets: Vec<String> = args
        .threads
        .iter()
        .map(|n| format!("threads={n}"))
        .collect();
    let plan = |(name, text): (&str, &str)| -> Result<Plan> {
        Ok(Plan::new(Recipe::parse(text, name, &sets)?, name, None)?.0)
    };
    let plans = RECIPES.into_iter().map(plan).collect::<Result<Vec<_>>>()?;
    machine::use_threads(plans[0].threads)?;
    let stop = watch::interrupted()?;
    let mut started = Instant::now();
    let loaded = plans[0].load(&bar)?;
    let (mut reports, mut dirs) = (Vec::new(), Vec::new());
    for plan in &plans {
        let name = plan.method.about().name;
        let dir = RunDir::create(&out.join(name), true)?;
        reports.push(execute(
            plan,
            &loaded,
            &dir,
            name,
            started,
            &stop,
            Beside::default(),
        )?);
        dirs.push(dir.path().to_owned());
        started = Instant::now();
    }
    page::several(&dirs, &dirs, &out.join(page::PAGE))?;
    let names: Vec<String> = RECIPES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let table = table::side_by_side(&names, &reports.iter().collect::<Vec<_>>());
    print(&format!(
        "\n50 classes in 5 tasks, a frozen ViT of 1.2 M parameters; accuracies in percent.\n\n{table}\nThe reports are in {}: report.html is their page; curve.svg, report.json, predictions.csv and more.\n",
        out.display()
    ))
}
