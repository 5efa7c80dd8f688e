//! `candlewick compare`: runs and published results in one table.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use candlewick_compare::{Comparison, Entry, Published, curve, format, read};

use crate::print;
use crate::record::write_whole;

#[derive(clap::Args)]
pub struct CompareArgs {
    /// Run directories, folders of several seeds, sweeps, names of runs below runs/, or ids of published results
    #[arg(value_name = "RUN|SWEEP|ID")]
    names: Vec<String>,
    /// A file of published results, or a data set whose results the program knows, such as imagenet-r; all of its rows, or
    /// those whose ids are given
    #[arg(long, value_name = "FILE|SET")]
    published: Vec<String>,
    /// [default: by the ending of --out, else markdown]
    #[arg(long, value_enum)]
    format: Option<Written>,
    /// Write the table to a file instead
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw how far each run is above the first one after each task, as SVG
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Written {
    Markdown,
    Csv,
    Latex,
    Html,
}

impl From<Written> for format::Format {
    fn from(written: Written) -> Self {
        match written {
            Written::Markdown => Self::Markdown,
            Written::Csv => Self::Csv,
            Written::Latex => Self::Latex,
            Written::Html => Self::Html,
        }
    }
}

pub fn compare(args: &CompareArgs) -> Result<()> {
    let comparison = Comparison::new(entries(args)?)?;
    if let Some(path) = &args.figure {
        write(path, &curve::svg(&comparison)?)?;
    }
    let text = format(args)?.write(&comparison)?;
    match &args.out {
        Some(path) => write(path, &text),
        None => print(&text),
    }
}

fn format(args: &CompareArgs) -> Result<format::Format> {
    if let Some(written) = args.format {
        return Ok(written.into());
    }
    let Some(out) = &args.out else {
        return Ok(format::Format::default());
    };
    let ending = out.extension().unwrap_or_default().to_ascii_lowercase();
    Ok(match ending.to_str() {
        Some("md") => format::Format::Markdown,
        Some("csv") => format::Format::Csv,
        Some("tex") => format::Format::Latex,
        Some("html" | "htm") => format::Format::Html,
        _ => bail!(
            "{}: no format has this ending; use .md, .csv, .tex or .html, or give --format",
            out.display()
        ),
    })
}

fn entries(args: &CompareArgs) -> Result<Vec<Entry>> {
    let mut published = Published::default();
    for name in &args.published {
        published.rows.extend(Published::open(name)?.rows);
    }
    let known = match args.published.is_empty() {
        true => Published::built_in()?,
        false => published.clone(),
    };
    let (mut entries, mut picked) = (Vec::new(), false);
    for name in &args.names {
        let below = Path::new("runs").join(name);
        let found = known.rows.iter().find(|(id, _)| id == name);
        match found {
            _ if Path::new(name).exists() => entries.extend(read(Path::new(name))?),
            _ if below.exists() => entries.extend(read(&below)?),
            Some((_, entry)) => {
                entries.push(entry.clone());
                picked = true;
            }
            None => bail!("{}", nowhere(name, &known)),
        }
    }
    if !picked {
        entries.extend(published.rows.into_iter().map(|(_, entry)| entry));
    }
    match entries.is_empty() {
        true => bail!("nothing to compare; give runs, sweeps, or --published"),
        false => Ok(entries),
    }
}

/// What a name might have meant.
fn nowhere(name: &str, known: &Published) -> String {
    let ids = known.rows.iter().map(|(id, _)| id.as_str());
    let near = ids.max_by(|a, b| {
        let near = |id| strsim::jaro_winkler(id, name);
        near(a).total_cmp(&near(b))
    });
    let near = near.map_or(String::new(), |id| format!("; the nearest id is `{id}`"));
    format!(
        "{name}: there is no such run directory, no runs/{name}, and no published result of this id{near}; `candlewick compare --published SET --format csv` lists those of a data set"
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    write_whole(dir, path, text.as_bytes())
        .with_context(|| format!("{}: not written", path.display()))
}
