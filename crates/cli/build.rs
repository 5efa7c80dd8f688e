//! Puts the version and, where there is one, the commit into the program.

use std::process::Command;

fn main() {
    // The commit of a build from a checkout; "-dirty" when its files were changed.
    let git = Command::new("git")
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ])
        .output();
    let commit = match git {
        Ok(out) if out.status.success() => {
            format!("+{}", String::from_utf8_lossy(&out.stdout).trim())
        }
        _ => String::new(),
    };
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo::rustc-env=CANDLEWICK_VERSION={version}{commit}");
    for path in ["../../.git/HEAD", "../../.git/index", "..", "../../models"] {
        if std::path::Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
