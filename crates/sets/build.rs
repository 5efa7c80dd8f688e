//! `include_dir!` notices changed cards by itself, but a new one only when the folder is watched.
fn main() {
    println!("cargo:rerun-if-changed=cards");
}
