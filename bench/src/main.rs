//! Reads one JSON request per line and answers each with one line of JSON. `bench/README.md` lists the requests.

use std::io::{BufRead, Write, stdin, stdout};

use anyhow::Result;
use candlewick_bench::{Server, machine};
use serde_json::json;

fn main() -> Result<()> {
    machine::keep_freed_blocks();
    let mut server = Server::default();
    for line in stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let answer = serde_json::from_str(&line)
            .map_err(anyhow::Error::from)
            .and_then(|request| server.answer(request))
            .unwrap_or_else(|e| json!({ "error": format!("{e:#}") }));
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
