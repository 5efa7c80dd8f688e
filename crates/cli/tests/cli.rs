//! The command from outside: what a run leaves, what it says about bad input, what stopping it does.
//!
//! No test reaches the network: the Hub is offline or a closed port, its cache an empty folder.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cli/browser.rs"]
mod browser;
#[path = "cli/clip.rs"]
mod clip;
#[path = "cli/compare.rs"]
mod compare;
#[path = "cli/dry.rs"]
mod dry;
#[path = "cli/features.rs"]
mod features;
#[path = "cli/halt.rs"]
mod halt;
#[path = "cli/input.rs"]
mod input;
#[path = "cli/lab.rs"]
mod lab;
#[path = "cli/learned.rs"]
mod learned;
#[path = "cli/live.rs"]
mod live;
#[path = "cli/look.rs"]
mod look;
#[path = "cli/merge.rs"]
mod merge;
#[path = "cli/multi.rs"]
mod multi;
#[allow(dead_code)]
#[path = "../../sets/tests/sets/pack.rs"]
mod pack;
#[path = "cli/page.rs"]
mod page;
#[path = "cli/recipes.rs"]
mod recipes;
#[path = "cli/record.rs"]
mod record;
#[path = "cli/replay.rs"]
mod replay;
#[path = "cli/resume.rs"]
mod resume;
#[path = "cli/same.rs"]
mod same;
#[path = "cli/scenario.rs"]
mod scenario;
// Of both, other tests need more.
#[allow(dead_code)]
#[path = "../../sets/tests/sets/server.rs"]
mod server;
#[path = "cli/sets.rs"]
mod sets;
#[path = "cli/sweep.rs"]
mod sweep;
#[path = "cli/tensorboard.rs"]
mod tensorboard;
#[path = "cli/threads.rs"]
mod threads;
#[path = "cli/weights.rs"]
mod weights;
