//! What `candlewick-bench` measures, through the public interface alone.
//!
//! [`Server`] answers requests one by one; `compare.py` asks it and a PyTorch server in turn and holds the answers
//! side by side. [`Step`] is one training step of a prompt method with given numbers.

pub mod inputs;
pub mod limit;
// The command's own settings, so that what is measured runs as users run it.
#[path = "../../crates/cli/src/machine.rs"]
pub mod machine;
pub mod prompts;
pub mod server;
pub mod step;

pub use prompts::{Kind, Prompts};
pub use server::{Request, Server};
pub use step::Step;
