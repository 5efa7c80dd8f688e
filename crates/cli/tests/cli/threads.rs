//! `--threads` bounds everything that works: computing, decoding and what candle starts by itself.

use crate::lab::Lab;

/// Counts the threads that exist, busy or not, which no timing can make more than they are.
#[cfg(target_os = "linux")]
#[test]
fn a_run_has_no_more_threads_than_it_was_given() {
    use std::fs;
    use std::process::Stdio;
    use std::time::Duration;

    let lab = Lab::new();
    for threads in [1, 2, 3] {
        let line = format!(
            "run l2p.toml --out run --overwrite --threads {threads} --set train.epochs=20 {}",
            "--set data.eval_batch=32 --set train.batch=16"
        );
        let mut command = lab.process(env!("CARGO_BIN_EXE_candlewick"));
        command.args(line.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut run = command.spawn().unwrap();
        let tasks = format!("/proc/{}/task", run.id());
        let mut most = Vec::new();
        let status = loop {
            if let Some(status) = run.try_wait().unwrap() {
                break status;
            }
            // A thread may end, and so its files go, while they are read.
            let names: Vec<String> = fs::read_dir(&tasks)
                .into_iter()
                .flatten()
                .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
                .map(|name| name.trim().to_owned())
                .collect();
            if names.len() > most.len() {
                most = names;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "{line}");
        // One more sleeps until a signal comes.
        assert_eq!(most.len(), threads + 1, "{most:?}");
    }
}

#[test]
fn no_threads_at_all_are_refused() {
    let lab = Lab::new();
    let parts = ["threads", "greater than 0", "found 0", "all cores"];
    lab.refused("linear.toml --threads 0", &parts);
    lab.refused("linear.toml --set threads=0", &parts);
    lab.say("demo --out refused --threads 0").failed(&parts);
}
