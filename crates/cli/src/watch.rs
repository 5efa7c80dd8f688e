//! What a person sees of a run while it goes: bars on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use candlewick_core::run::evaluated;
use candlewick_core::{Error, Event, Method, Observer, Phase, Scenario, Standing, Stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Keeper, Resumed};

/// Set by the first Ctrl-C; a run stops at its next batch. The second ends the program at once.
pub fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    Ok(flag)
}

/// Seconds and images of one task.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct TaskTime {
    pub train_seconds: f64,
    pub train_images: usize,
    pub eval_seconds: f64,
    pub eval_images: usize,
}

/// Watches one run.
pub struct Watch<'a> {
    stop: &'a AtomicBool,
    stream: &'a Stream,
    label: String,
    bar: ProgressBar,
    plain: bool,
    /// No image is looked at: there is no rate to speak of.
    stored: bool,
    started: Instant,
    epoch: usize,
    /// Seconds of the task's training in the processes before this one.
    trained: f64,
    /// Tasks that are learned and evaluated.
    pub done: usize,
    /// Time per task, for `timing.json`.
    pub times: Vec<TaskTime>,
    /// What was said, for `log.txt`.
    pub log: String,
    /// Where checkpoints are written, if they are.
    pub keeper: Option<Keeper>,
    /// Who else is told of everything.
    pub others: Vec<Box<dyn Observer + 'a>>,
}

impl<'a> Watch<'a> {
    /// `stored`: its features come from the store.
    pub fn new(label: &str, stream: &'a Stream, stop: &'a AtomicBool, stored: bool) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = match plain {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        Self {
            stop,
            stream,
            label: label.to_owned(),
            bar: ProgressBar::with_draw_target(None, target).with_style(style(label, !stored)),
            plain,
            stored,
            started: Instant::now(),
            epoch: 0,
            trained: 0.0,
            done: 0,
            times: Vec::new(),
            log: String::new(),
            keeper: None,
            others: Vec::new(),
        }
    }

    /// Takes up the log and the times of a run that goes on.
    pub fn resume(&mut self, resumed: &Resumed) {
        self.done = resumed.standing.task();
        self.log = resumed.log.clone();
        self.times = resumed.times.clone();
        // Of an evaluation that was cut short, or is repeated.
        for time in self.times.iter_mut().skip(self.done) {
            (time.eval_seconds, time.eval_images) = (0.0, 0);
        }
    }

    /// Says a line above the bar and keeps it for the log.
    pub fn say(&mut self, line: &str) {
        let _ = writeln!(self.log, "{line}");
        match self.plain {
            true => say(line),
            false => self.bar.suspend(|| say(line)),
        }
    }

    fn begin(&mut self, what: &str, images: usize) {
        self.bar.set_message(what.to_owned());
        self.bar.set_length(images as u64);
        self.bar.reset();
        self.started = Instant::now();
    }

    fn time(&mut self) -> &mut TaskTime {
        if self.times.is_empty() {
            self.times.push(TaskTime::default());
        }
        let last = self.times.len() - 1;
        &mut self.times[last]
    }

    /// `row` has the tasks learned.
    fn task_end(&mut self, row: &[f64], micro: f64) {
        let accuracies: Vec<String> = row.iter().map(|a| format!("{a:.1}")).collect();
        let time = *self.time();
        let speed = |images: usize, seconds: f64| match self.stored {
            true => String::new(),
            false => format!(" ({:.0}/s)", images as f64 / seconds.max(1e-9)),
        };
        let what = if self.stored {
            "stored features"
        } else {
            "images"
        };
        let (t, tasks) = (row.len(), self.stream.tasks.len());
        let (task, seen) = match &self.stream.scenario {
            Scenario::DomainIncremental(names) => (
                format!(" {}", names.get(t - 1).map_or("", String::as_str)),
                format!("{t} domains seen | per domain"),
            ),
            Scenario::MultiDomain(names) => (
                format!(" {}", names.get(t - 1).map_or("", String::as_str)),
                format!("{t} data sets seen, each among its own classes | per data set"),
            ),
            Scenario::TaskIncremental => (
                String::new(),
                format!("{t} tasks seen, each among its own classes | per task"),
            ),
            Scenario::ClassIncremental => {
                let classes = self.stream.tasks[t - 1].info.classes.end;
                (String::new(), format!("{classes} classes seen | per task"))
            }
        };
        let line = format!(
            "{} task {t}/{tasks}{task}: {micro:.2} % on all {seen} {} | learned {} {what} in {:.1} s{}, tested {} in {:.1} s{}",
            self.label,
            accuracies.join(" "),
            time.train_images,
            time.train_seconds,
            speed(time.train_images, time.train_seconds),
            time.eval_images,
            time.eval_seconds,
            speed(time.eval_images, time.eval_seconds),
        );
        self.say(&line);
    }
}

impl Observer for Watch<'_> {
    fn on(&mut self, event: Event<'_>) -> candlewick_core::Result<()> {
        // Behind a step the run is first written down.
        let kept = self.keeper.is_some() && matches!(event, Event::Step { .. });
        if self.stop.load(Ordering::SeqCst) && !kept {
            self.bar.finish_and_clear();
            return Err(Error::Interrupted);
        }
        for other in &mut self.others {
            other.on(event)?;
        }
        let of = self.stream.tasks.len();
        match event {
            Event::TaskBegin(task) => {
                // There already where the run goes on inside the task.
                if self.times.len() == task.index {
                    self.times.push(TaskTime::default());
                }
                self.trained = self.time().train_seconds;
                self.epoch = usize::MAX;
                let what = format!("task {}/{of} looking", task.index + 1);
                self.begin(&what, task.train_len);
            }
            Event::Step {
                epoch,
                epochs,
                images,
                pass,
                loss,
            } => {
                if self.epoch != epoch {
                    self.epoch = epoch;
                    let task = self.times.len();
                    self.bar.set_length((pass * epochs) as u64);
                    self.bar
                        .set_message(format!("task {task}/{of} epoch {}/{epochs}", epoch + 1));
                }
                if let Some(loss) = loss {
                    self.bar.set_prefix(format!("loss {loss:.3} "));
                }
                self.bar.inc(images as u64);
                self.time().train_images += images;
            }
            Event::Looked(images) => {
                self.bar.inc(images as u64);
                self.time().train_images += images;
            }
            Event::Learned(task) => {
                self.time().train_seconds = self.trained + self.started.elapsed().as_secs_f64();
                let tested = evaluated(self.stream, task.index);
                let images = tested.iter().map(|t| t.info.test_len).sum();
                self.bar.set_prefix("");
                self.begin(&format!("task {}/{of} testing", task.index + 1), images);
            }
            Event::Evaluated(images) => {
                self.bar.inc(images as u64);
                self.time().eval_images += images;
            }
            Event::TaskEnd { accuracy, .. } => {
                self.done = accuracy.sessions();
                self.time().eval_seconds = self.started.elapsed().as_secs_f64();
                let micro = accuracy.micro_curve().last().copied().unwrap_or(f64::NAN);
                if let Some(row) = accuracy.percent.last() {
                    self.task_end(&row[..self.done], micro);
                }
                if accuracy.sessions() == of {
                    self.bar.finish_and_clear();
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, at: &Standing, method: &dyn Method) -> candlewick_core::Result<()> {
        let Some(keeper) = &mut self.keeper else {
            return Ok(());
        };
        let stop = self.stop.load(Ordering::SeqCst);
        if keeper.due(at) || stop {
            let mut times = self.times.clone();
            if let (Phase::Training { .. }, Some(time)) = (at.phase, times.last_mut()) {
                time.train_seconds = self.trained + self.started.elapsed().as_secs_f64();
            }
            let written = keeper.write(at, method, &self.log, &times);
            written.map_err(|e| Error::data(std::io::Error::other(format!("{e:#}"))))?;
        }
        match stop {
            true => {
                self.bar.finish_and_clear();
                Err(Error::Interrupted)
            }
            false => Ok(()),
        }
    }
}

/// A bar that counts images, on a terminal.
pub fn images_bar(label: &'static str, images: usize) -> ProgressBar {
    match std::io::stderr().is_terminal() {
        true => ProgressBar::new(images as u64).with_style(style(label, true)),
        false => ProgressBar::hidden(),
    }
}

/// A bar for images that are looked at once.
pub struct Looking {
    bar: ProgressBar,
    label: &'static str,
    images: usize,
}

impl Looking {
    /// `there` images are in `path` already.
    pub fn new(label: &'static str, images: usize, there: usize, path: &Path) -> Self {
        let bar = images_bar(label, images);
        say(&format!(
            "{label}: {images} images to look at, {there} in {}",
            path.display()
        ));
        Self { bar, label, images }
    }

    pub fn looked(&self, images: usize) {
        self.bar.inc(images as u64);
    }

    pub fn done(&self, started: Instant) {
        self.bar.finish_and_clear();
        let time = started.elapsed();
        say(&format!(
            "{}: {} images in {} ({:.0}/s)",
            self.label,
            self.images,
            seconds(time),
            self.images as f64 / time.as_secs_f64().max(1e-9)
        ));
    }
}

/// A bar for runs of a sweep.
pub struct Counting(ProgressBar);

impl Counting {
    /// `kept` were finished before.
    pub fn new(label: &str, cells: usize, kept: usize) -> Self {
        say(&format!("{label}: {cells} cells to run, {kept} are kept"));
        let template = format!("{label} {{wide_bar}} {{pos}}/{{len}} cells {{eta}} left");
        let bar = match (
            std::io::stderr().is_terminal(),
            ProgressStyle::with_template(&template),
        ) {
            (true, Ok(style)) => ProgressBar::new(cells as u64).with_style(style),
            _ => ProgressBar::hidden(),
        };
        Self(bar)
    }

    pub fn one(&self) {
        self.0.inc(1);
    }

    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// A bar for a download; plain lines at each tenth where there is no terminal.
pub struct Download {
    bar: ProgressBar,
    plain: bool,
    tenth: Mutex<u64>,
}

impl Download {
    pub fn new() -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = match plain {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(0),
        };
        Self {
            bar,
            plain,
            tenth: Mutex::new(u64::MAX),
        }
    }
}

impl candlewick_models::Progress for Download {
    fn update(&self, file: &str, done: u64, total: Option<u64>) {
        if self.plain {
            let tenth = total.map_or(0, |total| 10 * done / total.max(1));
            let mut last = self.tenth.lock().unwrap_or_else(PoisonError::into_inner);
            if *last != tenth {
                *last = tenth;
                let of = total.map_or(String::new(), |t| format!(" of {}", megabytes(t)));
                say(&format!("{file}: {}{of}", megabytes(done)));
            }
            return;
        }
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(file.to_owned());
        self.bar.set_position(done);
        if Some(done) == total {
            self.bar.finish_and_clear();
        }
    }
}

fn style(label: &str, rate: bool) -> ProgressStyle {
    let rate = if rate { "{per_sec} " } else { "" };
    let template =
        format!("{label} {{msg}} {{wide_bar}} {{prefix}}{{pos}}/{{len}} images {rate}{{eta}} left");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// 1 MB = 10⁶ bytes.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Seconds as a person says them.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        s if s < 120 => format!("{:.1} s", time.as_secs_f64()),
        s => format!("{} min {} s", s / 60, s % 60),
    }
}

/// A line on standard error; a closed pipe is no reason to die.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
