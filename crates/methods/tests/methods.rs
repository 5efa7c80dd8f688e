//! Methods against the values of the original implementations, and against the laws of the suite.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "methods/alignment.rs"]
mod alignment;
#[path = "methods/aper.rs"]
mod aper;
#[path = "methods/base.rs"]
mod base;
#[path = "methods/clip.rs"]
mod clip;
#[path = "methods/coda.rs"]
mod coda;
#[path = "methods/dap.rs"]
mod dap;
#[path = "methods/dualprompt.rs"]
mod dualprompt;
#[path = "methods/ease.rs"]
mod ease;
#[path = "methods/esn.rs"]
mod esn;
#[path = "methods/fecam.rs"]
mod fecam;
#[path = "methods/given.rs"]
mod given;
#[path = "methods/l2p.rs"]
mod l2p;
#[path = "methods/lab.rs"]
mod lab;
#[path = "methods/lae.rs"]
mod lae;
#[path = "methods/mos.rs"]
mod mos;
#[path = "../../vit/tests/vit/near.rs"]
mod near;
#[path = "methods/pet.rs"]
mod pet;
#[path = "methods/plain.rs"]
mod plain;
#[path = "methods/promptfusion.rs"]
mod promptfusion;
#[path = "methods/proof.rs"]
mod proof;
#[path = "methods/ranpac.rs"]
mod ranpac;
#[path = "methods/replay.rs"]
mod replay;
#[path = "methods/resume.rs"]
mod resume;
#[path = "methods/seam.rs"]
mod seam;
#[path = "methods/statistics.rs"]
mod statistics;
#[path = "methods/switches.rs"]
mod switches;
#[path = "methods/tuned.rs"]
mod tuned;
#[path = "methods/vpt.rs"]
mod vpt;
