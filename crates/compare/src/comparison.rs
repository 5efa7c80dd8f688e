//! Rows side by side, and which of them may be.

use std::collections::BTreeMap;

use crate::entry::Entry;
use crate::error::Result;
use crate::rule::{Aspect, Fact};
use crate::significance::{Test, tests};

/// Rows that share what an aspect says, or a row whose word on it is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Letters, unique in the comparison; none for more than half of the rows, so that the few stand out.
    pub mark: String,
    /// What the aspect is for them.
    pub shown: String,
    /// Indices of rows.
    pub rows: Vec<usize>,
    /// False where it is not known: such a row may not be compared with any, not even of its own group.
    pub known: bool,
}

/// Why two rows may not be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// The aspect, or `definition of METRIC`.
    pub field: String,
    /// What it is for the one.
    pub a: String,
    /// And for the other.
    pub b: String,
}

/// Any runs and published results in one table.
///
/// Where rows are not all alike in something that numbers depend on, they fall into groups, each with a mark, or with none if it is
/// most of the rows. Two numbers may be compared exactly if they bear the same marks, and none that ends in `?`.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// In the order given.
    pub entries: Vec<Entry>,
    /// All metrics, in the order of tables.
    pub metrics: Vec<String>,
    /// Aspects in which rows differ.
    pub aspects: Vec<(Aspect, Vec<Group>)>,
    /// Metrics that do not mean the same in all rows.
    pub definitions: BTreeMap<String, Vec<Group>>,
    /// Between comparable rows of our own.
    pub tests: Vec<Test>,
    /// What was left out of the tests, and why.
    pub untested: Vec<String>,
}

impl Comparison {
    /// Groups the rows and tests the pairs that may be compared.
    ///
    /// # Errors
    /// For predictions that cannot be read, or that are not of the same images though the split is.
    pub fn new(entries: Vec<Entry>) -> Result<Self> {
        let mut marks = (0..).map(letters);
        let mut aspects = Vec::new();
        for aspect in Aspect::ALL.into_iter().filter(|aspect| aspect.bars()) {
            let facts = |(i, entry): (usize, &Entry)| Some((i, entry.facts.get(&aspect)?.clone()));
            let facts: Vec<_> = entries.iter().enumerate().filter_map(facts).collect();
            if let Some(groups) = group(&facts, &mut marks) {
                aspects.push((aspect, groups));
            }
        }
        let mut metrics: Vec<String> = Vec::new();
        for (name, _) in entries.iter().flat_map(|entry| &entry.cells) {
            if !metrics.contains(name) {
                metrics.push(name.clone());
            }
        }
        let mut definitions = BTreeMap::new();
        for metric in &metrics {
            let cells = entries.iter().enumerate();
            let facts: Vec<_> = cells
                .filter_map(|(i, entry)| Some((i, entry.cell(metric)?.definition.clone())))
                .collect();
            if let Some(groups) = group(&facts, &mut marks) {
                definitions.insert(metric.clone(), groups);
            }
        }
        let mut comparison = Self {
            entries,
            metrics,
            aspects,
            definitions,
            tests: Vec::new(),
            untested: Vec::new(),
        };
        (comparison.tests, comparison.untested) = tests(&comparison)?;
        Ok(comparison)
    }

    /// Why two rows may not be compared, whatever the metric.
    pub fn bars(&self, a: usize, b: usize) -> Vec<Bar> {
        let groups = self.aspects.iter().map(|(aspect, g)| (aspect.name(), g));
        groups
            .filter_map(|(field, groups)| bar(field.to_owned(), groups, a, b))
            .collect()
    }

    /// Why two numbers may not be compared.
    pub fn bars_in(&self, metric: &str, a: usize, b: usize) -> Vec<Bar> {
        let own = self
            .definitions
            .get(metric)
            .and_then(|groups| bar(format!("definition of {metric}"), groups, a, b));
        self.bars(a, b).into_iter().chain(own).collect()
    }

    /// The marks of a number, without those that all rows share.
    pub fn marks(&self, row: usize, metric: &str) -> Vec<&str> {
        let of_row = self.aspects.iter().map(|(_, groups)| groups);
        let all = of_row.chain(self.definitions.get(metric));
        all.filter_map(|groups| find(groups, row))
            .map(|group| group.mark.as_str())
            .filter(|mark| !mark.is_empty())
            .collect()
    }

    /// Every mark with what it stands for: the aspect, its value, and the rows counted from 1.
    pub fn legend(&self) -> Vec<Mark<'_>> {
        let aspects = self.aspects.iter();
        let of_rows = aspects.map(|(aspect, groups)| (aspect.name().to_owned(), groups));
        let definitions = self.definitions.iter();
        let of_cells = definitions.map(|(name, groups)| (format!("definition of {name}"), groups));
        let mut legend = Vec::new();
        for (field, groups) in of_rows.chain(of_cells) {
            legend.extend(groups.iter().map(|group| Mark {
                field: field.clone(),
                group,
            }));
        }
        legend
    }

    /// Whether every number may be compared with every other of its column.
    pub fn is_plain(&self) -> bool {
        self.aspects.is_empty() && self.definitions.is_empty()
    }

    /// Differences that forbid nothing, between our own runs: what, and the value for each row.
    pub fn notes(&self) -> Vec<(Aspect, Vec<(usize, String)>)> {
        let mut notes = Vec::new();
        for aspect in Aspect::ALL.into_iter().filter(|aspect| !aspect.bars()) {
            let rows = self.entries.iter().enumerate();
            let facts: Vec<(usize, &Fact)> = rows
                .filter_map(|(i, entry)| Some((i, entry.facts.get(&aspect)?)))
                .collect();
            if facts
                .windows(2)
                .any(|pair| pair[0].1.exact != pair[1].1.exact)
            {
                let shown = facts.iter().map(|(i, fact)| (*i, fact.shown.clone()));
                notes.push((aspect, shown.collect()));
            }
        }
        notes
    }
}

/// A mark of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark<'a> {
    /// The aspect, or `definition of METRIC`.
    pub field: String,
    /// Letters, value and rows.
    pub group: &'a Group,
}

fn find(groups: &[Group], row: usize) -> Option<&Group> {
    groups.iter().find(|group| group.rows.contains(&row))
}

fn bar(field: String, groups: &[Group], a: usize, b: usize) -> Option<Bar> {
    let (a, b) = (find(groups, a)?, find(groups, b)?);
    (a.mark != b.mark || !a.known).then(|| Bar {
        field,
        a: a.shown.clone(),
        b: b.shown.clone(),
    })
}

/// Rows that are the same in a fact, together; `None` where all are.
fn group(facts: &[(usize, Fact)], marks: &mut impl Iterator<Item = String>) -> Option<Vec<Group>> {
    let mut groups: Vec<(Vec<usize>, &Fact)> = Vec::new();
    let mut unknown: Vec<(Vec<usize>, &Fact)> = Vec::new();
    for (n, (row, fact)) in facts.iter().enumerate() {
        let with = |rows: &[usize]| {
            let mut of = facts[..n].iter().filter(|(row, _)| rows.contains(row));
            of.all(|(_, other)| fact.same(other))
        };
        let found = match fact.is_known() {
            true => groups.iter_mut().find(|(rows, _)| with(rows)),
            false => unknown.iter_mut().find(|(_, f)| f.shown == fact.shown),
        };
        match found {
            Some((rows, _)) => rows.push(*row),
            None if fact.is_known() => groups.push((vec![*row], fact)),
            None => unknown.push((vec![*row], fact)),
        }
    }
    // Alone, a row is only held against itself.
    let alone = facts.len() < 2 && !facts.iter().any(|(_, fact)| fact.mixed);
    if alone || groups.len() < 2 && unknown.is_empty() {
        return None;
    }
    let known = groups.into_iter().map(|group| (group, true));
    let all = known.chain(unknown.into_iter().map(|group| (group, false)));
    let made = all.map(|((rows, fact), known)| {
        let most = known && 2 * rows.len() > facts.len();
        let mark = if most { None } else { marks.next() };
        let mark = mark.unwrap_or_default();
        Group {
            mark: if known { mark } else { format!("{mark}?") },
            shown: match fact.mixed {
                true => format!("differs among its own runs: {}", fact.shown),
                false if fact.shown.is_empty() => "none".into(),
                false => fact.shown.clone(),
            },
            rows,
            known,
        }
    });
    Some(made.collect())
}

/// a … z, aa, ab …
fn letters(mut n: usize) -> String {
    let mut text = String::new();
    loop {
        text.insert(0, char::from(b'a' + (n % 26) as u8));
        match n / 26 {
            0 => return text,
            more => n = more - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_go_on_behind_z() {
        let some: Vec<String> = [0, 25, 26, 51, 52, 701, 702].map(letters).into();
        assert_eq!(some, ["a", "z", "aa", "az", "ba", "zz", "aaa"]);
    }

    #[test]
    fn a_name_joins_only_what_it_is_the_same_as() {
        let hashed = |hash: &str| Fact {
            told: Some("vit".into()),
            ..Fact::known(hash)
        };
        let facts = [
            (0, hashed("x")),
            (1, Fact::told(Some("vit"))),
            (2, hashed("y")),
            (3, Fact::told(None::<String>)),
        ];
        let groups = group(&facts, &mut (0..).map(letters)).unwrap();
        let rows: Vec<_> = groups.iter().map(|g| (g.rows.clone(), g.known)).collect();
        assert_eq!(
            rows,
            [(vec![0, 1], true), (vec![2], true), (vec![3], false)]
        );
        let marks: Vec<&str> = groups.iter().map(|group| group.mark.as_str()).collect();
        assert_eq!(marks, ["a", "b", "c?"]);
        // More than half of the rows need no mark to be told from the rest.
        let three = group(&facts[..3], &mut (0..).map(letters)).unwrap();
        let marks: Vec<&str> = three.iter().map(|group| group.mark.as_str()).collect();
        assert_eq!(marks, ["", "a"]);
        assert!(bar("weights".into(), &three, 0, 2).is_some());
        assert!(bar("weights".into(), &groups, 3, 3).is_some());
        assert!(bar("weights".into(), &groups, 0, 1).is_none());
        assert!(bar("weights".into(), &groups, 1, 2).is_some());
        assert_eq!(group(&facts[..2], &mut (0..).map(letters)), None);
    }
}
