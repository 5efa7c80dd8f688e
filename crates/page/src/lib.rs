//! The report of one or several runs as one self-contained HTML file.
//!
//! The page is made from what a run leaves on disk ([`Run`]): nothing is computed that the report already has, so its
//! numbers are the report's. It needs no network and no script: markup, style and drawings are inside it, and the script only
//! adds what moves, such as the values under the pointer. `report.json` is carried along as it is, in
//! `<script type="application/json" id="reports">`.
//!
//! ```
//! # fn main() -> Result<(), candlewick_page::Error> {
//! let report = r#"{ "schema": 1, "method": "simplecil",
//!     "session_accuracy": { "micro": [90.0, 72.5], "macro": [90.0, 70.0] },
//!     "metrics": { "last_accuracy_micro": 72.5 }, "accuracy_matrix": [[90.0], [75.0, 65.0]],
//!     "tasks": [ { "classes": ["a"], "train_images": 9, "test_images": 6 },
//!                { "classes": ["b"], "train_images": 9, "test_images": 2 } ],
//!     "fingerprint": { "backbone": "vit-micro", "seed": 1 }, "cost": {} }"#;
//! let run = candlewick_page::Run::new("first", report)?;
//! let page = candlewick_page::Page { runs: &[&run], ..Default::default() };
//! assert!(page.html().contains(r#"<data value="72.5">72.50</data>"#));
//! # Ok(())
//! # }
//! ```

mod accuracy;
mod chart;
mod conditions;
mod confusion;
mod cost;
mod error;
mod forgetting;
mod heat;
mod live;
mod number;
mod page;
mod pools;
mod record;
mod summary;
mod worst;

pub use conditions::Difference;
pub use error::{Error, Result};
pub use live::{Now, Update};
pub use page::Page;
pub use record::{Class, Pool, Prediction, Report, Run, SessionAccuracy, Task, TaskTime, Timing};
pub use worst::WORST;
