//! What two results must share for their numbers to be compared: the one rule, whoever asks.

use std::collections::BTreeSet;

use candlewick_core::Report;
use candlewick_core::report::short;

/// A thing that numbers depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Aspect {
    /// The file of the backbone's weights, of both where a method has two.
    Weights,
    /// Blocks used of it.
    Depth,
    /// What the backbone is fed: the preprocessing.
    Pixels,
    /// Which images are trained on and tested on.
    Split,
    /// The classes in order of arrival, and the tasks.
    ClassOrder,
    /// Whether tasks bring classes or domains, and whether the task is known at test.
    Scenario,
    /// Departures from the default rules.
    Compat,
    /// Numbers that the frozen backbone multiplies.
    Precision,
    /// What the program computes: [`candlewick_core::report::NUMERICS`].
    Numerics,
    /// Unreadable images left out.
    Skipped,
    /// Where tensors lived. No bar.
    Device,
    /// Version of the program. No bar where its numerics are the same.
    Code,
    /// What was drawn from. No bar.
    Seed,
}

impl Aspect {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 13] = [
        Self::Weights,
        Self::Depth,
        Self::Pixels,
        Self::Split,
        Self::ClassOrder,
        Self::Scenario,
        Self::Compat,
        Self::Precision,
        Self::Numerics,
        Self::Skipped,
        Self::Device,
        Self::Code,
        Self::Seed,
    ];

    /// As the report's fingerprint has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Depth => "depth",
            Self::Pixels => "preprocess",
            Self::Split => "split",
            Self::ClassOrder => "class_order",
            Self::Scenario => "scenario",
            Self::Compat => "compat",
            Self::Precision => "dtype",
            Self::Numerics => "numerics",
            Self::Skipped => "skipped images",
            Self::Device => "device",
            Self::Code => "code",
            Self::Seed => "seed",
        }
    }

    /// Whether numbers that differ in it may not be compared.
    pub fn bars(self) -> bool {
        !matches!(self, Self::Device | Self::Code | Self::Seed)
    }

    /// Whether it says something of other people's programs. What they compute is what a comparison is about, and where it
    /// ran is rarely told.
    pub(crate) fn of_published(self) -> bool {
        self.bars() && !matches!(self, Self::Numerics | Self::Skipped)
    }

    /// Of one run; hashes in full. `None` where its report does not say.
    pub fn of(self, report: &Report) -> Option<String> {
        let print = &report.fingerprint;
        Some(match self {
            Self::Weights => match &print.booster {
                None => print.weights.clone(),
                Some(booster) => format!("{} with {booster}", print.weights),
            },
            Self::Depth => print.depth.to_string(),
            Self::Pixels => print.preprocess.clone(),
            Self::Split => print.split.clone(),
            Self::ClassOrder => print.class_order.clone(),
            Self::Scenario => scenario(report).to_owned(),
            Self::Compat => compat(report),
            Self::Precision => print.dtype.clone(),
            Self::Numerics => print.numerics?.to_string(),
            Self::Skipped => report.cost.images_skipped.to_string(),
            Self::Device => print.device.clone(),
            Self::Code => print.code.clone(),
            Self::Seed => print.seed.to_string(),
        })
    }

    /// The same for a reader: hashes short.
    fn shown(self, report: &Report) -> String {
        match (self, self.of(report)) {
            (Self::Weights, Some(hashes)) => {
                let each: Vec<String> = hashes.split(" with ").map(short).collect();
                each.join(" with ")
            }
            (Self::Pixels | Self::Split | Self::ClassOrder, Some(hash)) => short(&hash),
            (Self::Numerics, None) => format!("not known of {}", report.fingerprint.code),
            (_, value) => value.unwrap_or_default(),
        }
    }
}

/// The name of a scenario; reports leave it out where classes arrive.
pub(crate) fn scenario(report: &Report) -> &str {
    report.scenario.as_deref().unwrap_or("class-incremental")
}

fn compat(report: &Report) -> String {
    switches(&report.fingerprint.compat)
}

/// Named departures, in order of their names.
pub(crate) fn switches(named: &[String]) -> String {
    let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
    named.into_iter().collect::<Vec<_>>().join(" ")
}

/// What is known of an aspect, or of a metric's definition, in one row of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fact {
    /// Hashes or plain values, each once: class orders differ from seed to seed. Empty where not known.
    pub exact: BTreeSet<String>,
    /// A name for what is not known exactly, as papers give it.
    pub told: Option<String>,
    /// What is enough to tell two apart, such as the number of images.
    pub coarse: Option<String>,
    /// For the reader.
    pub shown: String,
    /// Set where the runs of one row differ among themselves in what should be one: it then compares with nothing.
    pub mixed: bool,
}

impl Fact {
    /// A value that is known.
    pub fn known(value: impl Into<String>) -> Self {
        let value = value.into();
        Self {
            shown: value.clone(),
            exact: BTreeSet::from([value]),
            ..Self::default()
        }
    }

    /// A name that a source gives, or nothing.
    pub fn told(name: Option<impl Into<String>>) -> Self {
        let told: Option<String> = name.map(Into::into);
        Self {
            shown: told.clone().unwrap_or_else(|| "not known".into()),
            told,
            ..Self::default()
        }
    }

    /// Whether it can be the same as that of another row at all.
    pub fn is_known(&self) -> bool {
        !self.mixed && (!self.exact.is_empty() || self.told.is_some())
    }

    /// Whether both are known to be one and the same. Not knowing is not the same as being the same.
    pub fn same(&self, other: &Self) -> bool {
        if !self.is_known() || !other.is_known() {
            return false;
        }
        if !self.exact.is_empty() && !other.exact.is_empty() {
            return self.exact == other.exact;
        }
        if let (Some(a), Some(b)) = (&self.coarse, &other.coarse)
            && a != b
        {
            return false;
        }
        self.told.is_some() && self.told == other.told
    }
}

/// A fact in which reports differ, and what each says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// [`Aspect::name`], or `definition of METRIC`.
    pub field: String,
    /// True when the numbers may not be compared because of it.
    pub incomparable: bool,
    /// One value per report.
    pub values: Vec<String>,
}

/// Where single runs differ, in their fingerprints and in what their metrics mean. Seed, device and code are named but do not
/// forbid comparison; all else does, code too where its numerics changed or, in an older report, are not known.
pub fn differences(reports: &[&Report]) -> Vec<Difference> {
    let mut found = Vec::new();
    for aspect in Aspect::ALL {
        let facts: Vec<Fact> = reports.iter().map(|r| single(aspect, r)).collect();
        if facts.windows(2).any(|pair| !pair[0].same(&pair[1])) {
            found.push(Difference {
                field: aspect.name().to_owned(),
                incomparable: aspect.bars(),
                values: reports.iter().map(|r| aspect.shown(r)).collect(),
            });
        }
    }
    let Some((first, others)) = reports.split_first() else {
        return found;
    };
    for (metric, text) in &first.definitions {
        let same = |report: &&Report| report.definitions.get(metric).is_none_or(|t| t == text);
        if !others.iter().all(same) {
            let values = reports.iter().map(|r| r.definitions.get(metric));
            found.push(Difference {
                field: format!("definition of {metric}"),
                incomparable: true,
                values: values.map(|v| v.cloned().unwrap_or_default()).collect(),
            });
        }
    }
    found
}

/// An aspect of one run.
fn single(aspect: Aspect, report: &Report) -> Fact {
    fact(aspect, &[report])
}

/// An aspect of several runs that are one row.
pub(crate) fn fact(aspect: Aspect, reports: &[&Report]) -> Fact {
    let values: Vec<Option<String>> = reports.iter().map(|r| aspect.of(r)).collect();
    let exact: BTreeSet<String> = values.iter().flatten().cloned().collect();
    let shown: BTreeSet<String> = reports.iter().map(|r| told_of(aspect, r)).collect();
    let many = exact.len() > 1 || exact.len() == 1 && values.contains(&None);
    let varies = matches!(aspect, Aspect::ClassOrder | Aspect::Seed);
    let first = reports.first();
    Fact {
        told: first.and_then(|r| name(aspect, r)),
        coarse: first.and_then(|r| coarse(aspect, r)),
        shown: match shown.len() {
            0 | 1 => shown.into_iter().next().unwrap_or_default(),
            n if aspect == Aspect::ClassOrder => {
                let first = shown.first().map_or("", String::as_str);
                format!("{n} orders, the first {first}")
            }
            _ => shown.into_iter().collect::<Vec<_>>().join(", "),
        },
        // What is unknown in all is told by the code's version, which may differ too.
        mixed: many && !varies || exact.is_empty() && varied(aspect, reports),
        exact,
    }
}

fn varied(aspect: Aspect, reports: &[&Report]) -> bool {
    let names: BTreeSet<Option<String>> = reports.iter().map(|r| name(aspect, r)).collect();
    names.len() > 1
}

/// What papers would call it.
fn name(aspect: Aspect, report: &Report) -> Option<String> {
    let print = &report.fingerprint;
    match aspect {
        Aspect::Weights => Some(print.backbone.clone()),
        Aspect::Pixels => print.preset.clone(),
        // One commit computes one thing, if its files were not changed.
        Aspect::Numerics => {
            let commit = print.code.contains('+') && !print.code.ends_with("-dirty");
            (commit && print.numerics.is_none()).then(|| print.code.clone())
        }
        _ => None,
    }
}

/// What tells apart where the other side has no hash.
fn coarse(aspect: Aspect, report: &Report) -> Option<String> {
    match aspect {
        Aspect::Split => Some(images(
            report.tasks.iter().map(|t| t.train_images).sum(),
            report.tasks.iter().map(|t| t.test_images).sum(),
        )),
        Aspect::ClassOrder => Some(tasks(
            &report
                .tasks
                .iter()
                .map(|t| t.classes.len())
                .collect::<Vec<_>>(),
        )),
        _ => None,
    }
}

/// An aspect of one run with its name and its hash.
fn told_of(aspect: Aspect, report: &Report) -> String {
    let short = aspect.shown(report);
    let named = match aspect {
        Aspect::Weights | Aspect::Pixels => name(aspect, report),
        Aspect::Split | Aspect::ClassOrder => coarse(aspect, report),
        Aspect::Compat if short.is_empty() => return "none".into(),
        _ => None,
    };
    match named {
        Some(named) => format!("{named} ({short})"),
        None => short,
    }
}

/// `24000 + 6000 images`.
pub(crate) fn images(train: usize, test: usize) -> String {
    format!("{train} + {test} images")
}

/// Classes of the tasks, such as `10 × 20` or `50, 5 × 10`.
pub(crate) fn tasks(sizes: &[usize]) -> String {
    let runs = sizes.chunk_by(|a, b| a == b).map(|run| match run {
        [one] => one.to_string(),
        _ => format!("{} × {}", run.len(), run[0]),
    });
    format!("tasks of {} classes", runs.collect::<Vec<_>>().join(", "))
}
