//! A table whose cells are shaded by their value. The style sheet shades so that one ink is readable on all of them.

use maud::{Markup, html};

use crate::number::tenth;

/// One row.
pub struct Row {
    pub name: String,
    pub cells: Vec<Option<f64>>,
    /// Of a row below the others that is no row of the matrix: what it is. It is not shaded.
    pub about: Option<&'static str>,
}

pub struct Heat<'a> {
    /// Unique on the page but for the same table of another run.
    pub id: &'a str,
    pub caption: &'a str,
    /// Above the names of rows.
    pub corner: &'a str,
    /// Their names, and what more is said of them.
    pub columns: Vec<(String, String)>,
    pub rows: Vec<Row>,
    /// The value of full shade.
    pub full: f64,
}

impl Heat<'_> {
    pub fn html(&self) -> Markup {
        let (matrix, sums): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|row| row.about.is_none());
        html! {
            p class="note" { (self.caption) "." }
            div class="scroll" tabindex="0" role="region" aria-label=(self.caption) {
                table class="heat" data-table=(self.id) {
                    thead { tr {
                        th scope="col" class="corner" { (self.corner) }
                        @for (name, about) in &self.columns {
                            th scope="col" title=(about) { (name) }
                        }
                    } }
                    tbody { @for row in matrix { (self.row(row)) } }
                    @if !sums.is_empty() {
                        tfoot { @for row in sums { (self.row(row)) } }
                    }
                }
            }
        }
    }

    fn row(&self, row: &Row) -> Markup {
        let part = |value: f64| (100.0 * value / self.full.max(1e-12)).clamp(0.0, 100.0);
        html! {
            tr {
                th scope="row" title=[row.about] { (row.name) }
                @for cell in &row.cells {
                    @match cell {
                        None => { td class="none" {} }
                        Some(value) if row.about.is_some() => { td { (tenth(*value)) } }
                        Some(value) => { td class="shade" style=(format!("--v:{:.1}%", part(*value))) { (tenth(*value)) } }
                    }
                }
            }
        }
    }
}
