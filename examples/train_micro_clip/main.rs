//! Gives the frozen `vit-micro` a text tower: a small CLIP, trained on emoji and what they are called.
//!
//! The image tower stays as it is (Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning"), so its features are
//! computed once. A text tower and both projections learn from the symmetric contrastive loss of Radford et al. 2021, "Learning
//! Transferable Visual Models From Natural Language Supervision":
//!
//! ```text
//! L_ij = exp(s) cos(P_v f(x_i), P_t g(t_j))
//! loss = ½ CE(rows of L, Y) + ½ CE(columns of L, Yᵀ)          Y_ij ∝ 1[t_j may be said of x_i]
//! ```
//!
//! Many emoji share a keyword and all have several drawings, so Y is not the identity: each row and column of it is spread evenly
//! over all pairs that go together, and sums to 1.
//!
//! `cargo run --release -p candlewick-examples --example train_micro_clip -- train DATA OUT`, where DATA was made by `data.py`.
//! `… -- measure MODEL EMOJI_R` tells how well classes are found by their names alone.

mod pictures;
mod tower;
mod words;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor, Var};
use candlewick_core::language::{embed_all, unit};
use candlewick_core::{
    Backbone, Group, Language, Optimizer, OptimizerKind, Schedule, Train, View, Warmup,
};
use candlewick_data::Folder;
use candlewick_examples::{tasks, vit_micro};
use candlewick_vit::{Clip, TextOptions, Tokenizer, Weights};
use pictures::Pictures;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use words::{Said, Words};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const HELP: &str = "A small CLIP on the frozen vit-micro.

train_micro_clip train DATA OUT [FLAGS]
    Trains a text tower and both projections on what data.py wrote to DATA (images/ and texts.json). OUT gets model.safetensors
    and tokenizer.json.
    --seed N          of everything that is drawn (1)
    --held N          concepts that are not trained on, to choose the other numbers by (0)
    --epochs N        passes over the concepts (40)
    --batch N         concepts in a step (128)
    --pictures N      pictures of each (4)
    --views N         views of each picture: the plain one, and others cut out and mirrored at random (1)
    --lr X            learning rate (0.001)
    --weight-decay X  of matrices; nothing else decays (0.2)
    --drop X          chance that a word of a longer name is left out, and that a token says nothing (0.1)
    --noise X         noise on features, in parts of their own standard deviation (0.1)
    --vocabulary N    tokens of the tokenizer (2000)
    --width N         of the text tower, a multiple of 64 (128)
    --depth N         blocks of the text tower (2)
    --joint N         width of the joint space (128)
train_micro_clip measure MODEL DATA [FLAGS]
    Finds the classes of DATA (train/ and test/, one folder per class) by their names alone, with the files in the folder MODEL.
    --template TEXT   what names are put into (\"a photo of a {}\")
    --increment N     classes of a task (20)
";

struct TrainArgs {
    /// DATA and OUT.
    folders: [PathBuf; 2],
    seed: u64,
    held: usize,
    epochs: usize,
    batch: usize,
    pictures: usize,
    views: usize,
    lr: f64,
    weight_decay: f64,
    drop: f64,
    noise: f64,
    vocabulary: usize,
    width: usize,
    depth: usize,
    joint: usize,
}

struct MeasureArgs {
    model: PathBuf,
    data: PathBuf,
    template: String,
    increment: usize,
}

/// What stands behind the verb.
struct Flags {
    places: Vec<String>,
    given: BTreeMap<String, String>,
}

impl Flags {
    fn parse(args: &[String]) -> Result<Self> {
        let (mut places, mut given) = (Vec::new(), BTreeMap::new());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                None => places.push(arg.clone()),
                Some(name) => {
                    let value = args
                        .next()
                        .ok_or_else(|| format!("{arg}: a value is missing"))?;
                    given.insert(name.to_owned(), value.clone());
                }
            }
        }
        Ok(Self { places, given })
    }

    fn take<T: FromStr>(&mut self, name: &str, otherwise: T) -> Result<T> {
        match self.given.remove(name) {
            None => Ok(otherwise),
            Some(value) => value.parse().map_err(|_| {
                let kind = std::any::type_name::<T>();
                format!("--{name} {value}: expected a value of type {kind}").into()
            }),
        }
    }

    /// Both folders, where nothing else is left.
    fn end(self) -> Result<[PathBuf; 2]> {
        if let Some(name) = self.given.keys().next() {
            return Err(format!("--{name}: there is no such flag; see --help").into());
        }
        let places: std::result::Result<[String; 2], _> = self.places.try_into();
        let places =
            places.map_err(|p| format!("expected two folders, found {p:?}; see --help"))?;
        Ok(places.map(PathBuf::from))
    }
}

/// The longest text in tokens.
const POSITIONS: usize = 32;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((verb, rest)) = args.split_first() else {
        return Err(HELP.into());
    };
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let mut flags = Flags::parse(rest)?;
    match verb.as_str() {
        "train" => {
            let args = TrainArgs {
                seed: flags.take("seed", 1)?,
                held: flags.take("held", 0)?,
                epochs: flags.take("epochs", 40)?,
                batch: flags.take("batch", 128)?,
                pictures: flags.take("pictures", 4)?,
                views: flags.take("views", 1)?,
                lr: flags.take("lr", 1e-3)?,
                weight_decay: flags.take("weight-decay", 0.2)?,
                drop: flags.take("drop", 0.1)?,
                noise: flags.take("noise", 0.1)?,
                vocabulary: flags.take("vocabulary", 2000)?,
                width: flags.take("width", 128)?,
                depth: flags.take("depth", 2)?,
                joint: flags.take("joint", 128)?,
                folders: flags.end()?,
            };
            train(&args)
        }
        "measure" => {
            let template = flags.take("template", "a photo of a {}".to_owned())?;
            let increment = flags.take("increment", 20)?;
            let [model, data] = flags.end()?;
            measure(&MeasureArgs {
                model,
                data,
                template,
                increment,
            })
        }
        verb => Err(format!("{verb}: expected `train` or `measure`; see --help").into()),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let settings = settings(args)?;
    let [data, out] = &args.folders;
    let (vit, preprocess) = vit_micro().map_err(|e| e.to_string())?;
    let pictures = Pictures::open(args, &vit, &preprocess)?;
    let words = Words::open(&data.join("texts.json"), &pictures.concepts)?;
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    // The same concepts are held back whatever the seed, so that seeds compare.
    let mut concepts: Vec<usize> = (0..pictures.concepts.len()).collect();
    concepts.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
    let learned = concepts.split_off(args.held.min(concepts.len()));
    if learned.len() < args.batch {
        let n = learned.len();
        return Err(format!("--batch {}: only {n} concepts to train on", args.batch).into());
    }

    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let tokenizer = words::train_tokenizer(&words.all(&learned), args.vocabulary)?;
    let clip = fresh(args, &tokenizer, vit.spec().dim)?;
    let mut weights = clip.weights().clone();
    let thawed = clip.thaw()?;
    let scale = Var::from_tensor(&weights["logit_scale"])?;
    let language = thawed.language.as_ref();
    let mut vars: Vec<(String, Var)> = thawed.weights.into_iter().collect();
    vars.push(("logit_scale".into(), scale.clone()));
    let mut optimizer = optimizer(&vars, &settings)?;

    let mut order = learned;
    for epoch in 0..args.epochs {
        optimizer.begin_epoch(epoch);
        order.shuffle(&mut rng);
        let (mut sum, mut steps) = (0.0, 0);
        for batch in order.chunks_exact(args.batch) {
            let features = pictures.draw(batch, args, &mut rng)?;
            let said: Vec<Said> = batch
                .iter()
                .map(|c| words.say(*c, args.drop, &mut rng))
                .collect();
            let texts = texts(language, &said, args.drop, &mut rng)?;
            let images = unit(&language.images(&features)?)?;
            let cosines = images.matmul(&texts.t()?)?;
            let logits = cosines.broadcast_mul(&scale.exp()?)?;
            let loss = contrast(&logits, &pairs(&words, batch, &said, args.pictures))?;
            optimizer.step(&loss)?;
            // CLIP's bound: logits are at most 100 times a cosine.
            scale.set(&scale.clamp(0f32, 100f32.ln())?)?;
            sum += loss.to_scalar::<f32>()?;
            steps += 1;
        }
        if (epoch + 1) % 10 == 0 || epoch + 1 == args.epochs {
            let (loss, s) = (sum / steps as f32, scale.exp()?.to_scalar::<f32>()?);
            eprint!("epoch {}: loss {loss:.3}, scale {s:.1}", epoch + 1);
            if !concepts.is_empty() {
                let (features, labels) = pictures.all_of(&concepts)?;
                let names: Vec<String> =
                    concepts.iter().map(|c| words.name(*c).to_owned()).collect();
                let texts = prompts(language, &names, &words::TEMPLATES)?;
                let ranks = ranks(language, &features, &labels, &texts)?;
                eprint!(
                    ", {} unseen: top-1 {:.1} %, top-5 {:.1} %",
                    names.len(),
                    within(&ranks, 1),
                    within(&ranks, 5)
                );
            }
            eprintln!();
        }
    }

    for (name, var) in vars {
        weights.insert(name, var.as_tensor().detach());
    }
    let weights = tower::hub_names(&weights)?;
    tower::save(
        &weights,
        DType::F16,
        &args.folders[1].join("model.safetensors"),
    )?;
    write(
        &args.folders[1].join("tokenizer.json"),
        tokenizer.as_bytes(),
    )
}

/// The recipe of candlewick's own optimiser.
fn settings(args: &TrainArgs) -> Result<Train> {
    let mut train = Train::new(args.epochs, args.batch, OptimizerKind::AdamW, args.lr);
    train.schedule = Schedule::Cosine;
    train.warmup = Some(Warmup {
        epochs: None,
        steps: Some(50),
        start: 0.02,
    });
    train.weight_decay = args.weight_decay;
    train.betas = Some([0.9, 0.98]);
    train.eps = Some(1e-6);
    train.clip = Some(1.0);
    train.check()?;
    Ok(train)
}

fn optimizer(vars: &[(String, Var)], settings: &Train) -> Result<Optimizer> {
    let (matrices, rest): (Vec<_>, Vec<_>) = vars.iter().cloned().partition(|(_, v)| v.rank() == 2);
    let group = |vars, weight_decay| Group {
        vars,
        lr: 1.0,
        weight_decay,
    };
    let groups = vec![group(matrices, None), group(rest, Some(0.0))];
    Ok(Optimizer::grouped(groups, settings)?)
}

/// A tower that knows nothing yet. It goes the way of every checkpoint: through a file.
fn fresh(args: &TrainArgs, tokenizer: &str, image: usize) -> Result<Clip> {
    let tokenizer = Tokenizer::of_bytes("the new tokenizer", tokenizer.as_bytes())?;
    let sizes = tower::Sizes {
        vocabulary: tokenizer.vocabulary(),
        positions: POSITIONS,
        width: args.width,
        depth: args.depth,
        joint: args.joint,
        image,
    };
    let path = args.folders[1].join("fresh.safetensors");
    tower::save(&tower::fresh(&sizes, args.seed)?, DType::F32, &path)?;
    let clip = Clip::load(
        &Weights::open(&path)?,
        tokenizer,
        &TextOptions::default(),
        &Device::Cpu,
    );
    fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(clip?)
}

/// Texts `(n, E)` of length 1, of which some tokens say nothing.
fn texts(
    language: &dyn Language,
    said: &[Said],
    drop: f64,
    rng: &mut ChaCha8Rng,
) -> Result<Tensor> {
    let tokens = said.iter().map(|said| language.tokens(&said.text));
    let tokens: Vec<Vec<u32>> = tokens.collect::<std::result::Result<_, _>>()?;
    let (embedded, ends) = embed_all(language, &tokens)?;
    let (n, length, _) = embedded.dims3()?;
    let mut keep = vec![1f32; n * length];
    for (row, end) in ends.iter().enumerate() {
        for place in 1..*end {
            keep[row * length + place] = f32::from(!rng.random_bool(drop));
        }
    }
    let keep = Tensor::from_vec(keep, (n, length, 1), embedded.device())?;
    let texts = language.texts(&embedded.broadcast_mul(&keep)?, &ends)?;
    Ok(unit(&texts)?)
}

/// For each picture, `each` of every concept, the texts that may be said of it.
fn pairs(words: &Words, batch: &[usize], said: &[Said], each: usize) -> Vec<Vec<bool>> {
    let of = |concept: &usize| -> Vec<bool> {
        said.iter()
            .map(|said| words.holds(said, *concept))
            .collect()
    };
    let rows = batch.iter().flat_map(|c| std::iter::repeat_n(of(c), each));
    rows.collect()
}

/// The symmetric loss of `logits` (images × texts) where `pairs` go together.
fn contrast(logits: &Tensor, pairs: &[Vec<bool>]) -> Result<Tensor> {
    let (rows, columns) = logits.dims2()?;
    let wanted: Vec<f32> = pairs
        .iter()
        .flatten()
        .map(|pair| f32::from(*pair))
        .collect();
    let wanted = Tensor::from_vec(wanted, (rows, columns), logits.device())?;
    let side = |dim: usize, of: usize| -> Result<Tensor> {
        let spread = wanted.broadcast_div(&wanted.sum_keepdim(dim)?)?;
        let above = logits.log_sum_exp(dim)?.sum_all()?;
        Ok(((above - (logits * spread)?.sum_all()?)? / of as f64)?)
    };
    Ok(((side(1, rows)? + side(0, columns)?)? * 0.5)?)
}

fn measure(args: &MeasureArgs) -> Result<()> {
    let weights = Weights::open(&args.model.join("model.safetensors"))?;
    let tokenizer = Tokenizer::open(&args.model.join("tokenizer.json"))?;
    let clip = Clip::load(&weights, tokenizer, &TextOptions::default(), &Device::Cpu)?;
    let (vit, preprocess) = vit_micro().map_err(|e| e.to_string())?;
    let folder = Folder {
        path: args.data.clone(),
        split: None,
        expected_images: None,
    };
    let stream = tasks(&folder.open()?, args.increment, &preprocess).map_err(|e| e.to_string())?;
    let names: Vec<String> = stream
        .tasks
        .iter()
        .flat_map(|t| t.info.names.clone())
        .collect();
    let texts = prompts(&clip, &names, &[&args.template])?;
    let (mut all, mut by_task) = (Vec::new(), Vec::new());
    for task in &stream.tasks {
        let classes = task.info.classes.clone();
        let own = texts.narrow(0, classes.start, classes.len())?;
        let mut of_task = Vec::new();
        for batch in task.test.batches(View::Plain, 64) {
            let batch = batch?;
            let features = vit.query(&batch.images)?;
            all.extend(ranks(&clip, &features, &batch.labels, &texts)?);
            let labels: Vec<u32> = batch
                .labels
                .iter()
                .map(|l| l - classes.start as u32)
                .collect();
            of_task.extend(ranks(&clip, &features, &labels, &own)?);
        }
        by_task.push(within(&of_task, 1));
    }
    let n = names.len() as f32;
    println!(
        "{} images, {n} classes: top-1 {:.2} %, top-5 {:.2} %; by chance {:.2} and {:.2} %",
        all.len(),
        within(&all, 1),
        within(&all, 5),
        100.0 / n,
        500.0 / n
    );
    let mean = by_task.iter().sum::<f32>() / by_task.len() as f32;
    let chance = 100.0 / args.increment as f32;
    println!(
        "among the {} classes of a task: top-1 {mean:.2} %, mean of {}; by chance {chance:.2} %",
        args.increment,
        by_task.len()
    );
    Ok(())
}

/// One vector of length 1 a name: the mean over templates.
fn prompts<S: AsRef<str>>(
    language: &dyn Language,
    names: &[String],
    templates: &[S],
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for template in templates {
        let texts: Vec<String> = names
            .iter()
            .map(|n| template.as_ref().replace("{}", n))
            .collect();
        let texts = unit(&language.encode(&texts)?)?.detach();
        sum = Some(match sum {
            Some(sum) => (sum + texts)?,
            None => texts,
        });
    }
    Ok(unit(&sum.ok_or("give at least one --template")?)?)
}

/// How many classes come before the right one, for every image.
fn ranks(
    language: &dyn Language,
    features: &Tensor,
    labels: &[u32],
    texts: &Tensor,
) -> Result<Vec<usize>> {
    let images = unit(&language.images(features)?)?;
    let cosines = images.matmul(&texts.t()?)?.to_vec2::<f32>()?;
    let rank = |(row, label): (&Vec<f32>, &u32)| {
        let own = row[*label as usize];
        row.iter().filter(|other| **other > own).count()
    };
    Ok(cosines.iter().zip(labels).map(rank).collect())
}

/// Per cent of images whose class is among the first `k`.
fn within(ranks: &[usize], k: usize) -> f32 {
    100.0 * ranks.iter().filter(|rank| **rank < k).count() as f32 / ranks.len().max(1) as f32
}

/// Writes a file as a whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let done = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    done.map_err(|e| format!("{}: {e}", path.display()).into())
}
