//! `candlewick predict` and `candlewick learn`: images of one's own to a finished run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use candlewick_core::{Split as _, Task, View};
use candlewick_data::{Source, of_paths};
use serde::Serialize;

use crate::learned::{Added, Learned, next};
use crate::watch::{say, seconds};
use crate::{print, table};

#[derive(clap::Args)]
pub struct PredictArgs {
    /// Directory of a finished run
    run: PathBuf,
    /// Images, or folders whose images are all taken
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// Classes named for each image, the best first
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Threads at work at once [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(clap::Args)]
pub struct LearnArgs {
    /// Directory of a finished run of a method without training steps, such as simplecil
    run: PathBuf,
    /// Name of the new class
    #[arg(long, value_name = "NAME")]
    class: String,
    /// Its training images, or folders of them
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// Threads at work at once [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

/// What is said of one image.
#[derive(Serialize)]
struct Said<'a> {
    image: String,
    predictions: Vec<Guess<'a>>,
}

#[derive(Serialize)]
struct Guess<'a> {
    class: &'a str,
    /// On the method's own scale: a logit, or a cosine.
    score: f32,
}

pub fn predict(args: &PredictArgs) -> Result<()> {
    let images = of_paths("", &args.images)?;
    let learned = Learned::open(&args.run, args.threads, false)?;
    let images: Arc<dyn Source> = Arc::new(images);
    let n = images.len();
    let (members, labels) = ((0..n).collect(), vec![0; n]);
    let split = learned
        .loader
        .split(images.clone(), members, labels, 0, 0)?;
    let mut rows = Vec::new();
    for batch in split.batches(View::Plain, learned.batch) {
        let batch = batch?;
        let scores: Vec<Vec<f32>> = learned.method.predict(&batch)?.to_vec2()?;
        for (id, scores) in batch.ids.iter().zip(scores) {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            // Of two equal scores the smaller label's first, as in a run.
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let best = order.into_iter().take(args.top.into());
            let said = Said {
                image: split.image_name(*id),
                predictions: best
                    .map(|label| Guess {
                        class: &learned.classes[label],
                        score: scores[label],
                    })
                    .collect(),
            };
            match args.json {
                true => print(&format!("{}\n", serde_json::to_string(&said)?))?,
                false => rows.push(row(&said)),
            }
        }
    }
    if !args.json && !rows.is_empty() {
        let ranks =
            (1..=rows[0].len() / 2).flat_map(|rank| [format!("class {rank}"), "score".into()]);
        let head: Vec<String> = std::iter::once("image".into()).chain(ranks).collect();
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        print(&table::list(&head, rows))?;
    }
    unread(&learned, images.as_ref(), n)
}

fn row(said: &Said<'_>) -> Vec<String> {
    let guesses = said.predictions.iter();
    let cells = guesses.flat_map(|guess| [guess.class.to_owned(), format!("{:.3}", guess.score)]);
    std::iter::once(said.image.clone()).chain(cells).collect()
}

/// Names the images that gave no prediction, and why.
fn unread(learned: &Learned, images: &dyn Source, of: usize) -> Result<()> {
    let skipped = learned.loader.skipped();
    for index in (0..of).filter(|&i| skipped.contains(&images.name(i))) {
        if let Err(why) = images.rgb(index) {
            say(&why.to_string());
        }
    }
    match skipped.len() {
        0 => Ok(()),
        n => bail!("{n} of {of} images cannot be decoded; they are named above"),
    }
}

pub fn learn(args: &LearnArgs) -> Result<()> {
    let started = Instant::now();
    let name = args.class.trim();
    if name.is_empty() {
        bail!("--class: expected a name, found none");
    }
    let images: Arc<dyn Source> = Arc::new(of_paths(name, &args.images)?);
    let mut learned = Learned::open(&args.run, args.threads, true)?;
    if learned.classes.iter().any(|class| class == name) {
        bail!(
            "--class: {} knows a class `{name}` already; give another name",
            args.run.display()
        );
    }
    let n = images.len();
    let info = next(&learned.tasks, name, n);
    learned.method.begin_task(&info)?;
    if learned.method.epochs() > 0 {
        bail!(
            "{}: its method trains on a new class for {} epochs; `learn` is for methods without training steps, such as simplecil",
            args.run.display(),
            learned.method.epochs()
        );
    }
    let labels = vec![info.classes.start as u32; n];
    let train = learned
        .loader
        .split(images.clone(), (0..n).collect(), labels, 0, 0)?;
    let test = learned.loader.split(images.clone(), vec![], vec![], 0, 0)?;
    let task = Task {
        info: info.clone(),
        train: Arc::new(train),
        test: Arc::new(test),
    };
    learned.method.end_task(&task, &mut |_| Ok(()))?;
    // Before anything is written: a class is learned from all of its images or not at all.
    unread(&learned, images.as_ref(), n)?;
    learned.tasks.push(info);
    learned.classes.push(name.to_owned());
    learned.added.push(Added {
        class: name.to_owned(),
        images: n,
    });
    learned.save()?;
    print(&format!(
        "`{name}` was learned from {n} images in {}; {} knows {} classes now, its report stays as it was\n",
        seconds(started.elapsed()),
        args.run.display(),
        learned.classes.len()
    ))
}
