//! A run that is stopped, or killed, and taken up again: its end is that of the run that went through.

use std::fs;

use crate::lab::Lab;

const FILES: [&str; 5] = [
    "report.json",
    "predictions.csv",
    "classes.csv",
    "accuracy.csv",
    "params.safetensors",
];

/// A prompt with moments, an adapter with dropout, sums alone; two copies of a module, and a backbone that trains whole, is merged by
/// its Fisher information and aligned; images that come again.
const KILLED: [&str; 7] = [
    "l2p",
    "aper",
    "coda",
    "simplecil",
    "lae",
    "cofima",
    "replay",
];

/// Those that have no recipe of their own here.
const TABLES: [(&str, &str); 4] = [
    (
        "aper",
        "[method.tuning]\nkind = \"adapter\"\nbottleneck = 4",
    ),
    (
        "lae",
        "freeze_epochs = 1\n[method.module]\nkind = \"adapter\"\nblocks = [0]\nbottleneck = 4",
    ),
    (
        "cofima",
        "backbone_lr = 0.02\n[method.merge]\nrule = \"fisher\"\nalpha = 0.5\nclip = 1e-4\n[method.alignment]\nepochs = 2\n\
         samples = 8\nlr = 0.01\nlogit_norm = 0.1",
    ),
    ("replay", "memory = { total = 9, choice = \"herding\" }"),
];

fn lab() -> Lab {
    let lab = Lab::new();
    let text = lab.text("l2p.toml");
    let (head, rest) = text.split_once("[method]").unwrap();
    let (_, train) = rest.split_once("[train]").unwrap();
    for (method, table) in TABLES {
        lab.write(
            &format!("{method}.toml"),
            format!("{head}[method]\nname = \"{method}\"\n{table}\n[train]{train}"),
        );
    }
    lab
}

fn same(lab: &Lab, one: &str, two: &str) {
    for file in FILES {
        let (a, b) = (format!("{one}/{file}"), format!("{two}/{file}"));
        assert!(lab.read(&a) == lab.read(&b), "{a} and {b} differ");
    }
}

/// Steps with a schedule by epochs, a rise by steps and momentum in bf16: all that an optimiser must take up.
fn settings(method: &str) -> &'static str {
    match method {
        "simplecil" => "",
        "aper" => "--set train.epochs=6 --set train.schedule=cosine",
        "cofima" | "replay" => "--set train.epochs=2 --set train.state=bf16",
        _ => {
            "--set train.epochs=4 --set train.schedule=cosine --set train.warmup.steps=5 \
             --set train.warmup.start=0.1 --set train.state=bf16"
        }
    }
}

#[cfg(unix)]
mod processes {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::{Child, ExitStatus, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    /// Ends the process also where the test fails.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(lab: &Lab, line: &str) -> Running {
        let mut command = lab.process(env!("CARGO_BIN_EXE_candlewick"));
        command.args(line.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    /// `None` if it was killed, at the latest `after` its start.
    fn killed_after(lab: &Lab, line: &str, after: Duration) -> Option<ExitStatus> {
        let mut run = start(lab, line);
        let until = Instant::now() + after;
        while Instant::now() < until {
            if let Some(status) = run.0.try_wait().unwrap() {
                return Some(status);
            }
            sleep(Duration::from_millis(2));
        }
        run.0.kill().unwrap();
        let status = run.0.wait().unwrap();
        status.code().map(|_| status)
    }

    #[test]
    fn a_run_killed_at_twenty_moments_ends_as_one_that_went_through() {
        let lab = lab();
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut resumed = 0;
        for method in KILLED {
            let more = settings(method);
            let begun = Instant::now();
            lab.run(method, &format!("{method}-through"), more);
            let length = begun.elapsed();
            let (mut kills, mut round) = (0, 0);
            while kills < 5 {
                // A kill that finds the run at its end begins another.
                round += 1;
                let out = format!("{method}-{round}");
                let line = format!(
                    "run {method}.toml --out {out} --threads 1 --resume --checkpoint-every 1 {more}"
                );
                loop {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let part = (random >> 11) as f64 / (1u64 << 53) as f64;
                    let moment = match kills {
                        5 => Duration::from_secs(240),
                        _ => length.mul_f64(part),
                    };
                    match killed_after(&lab, &line, moment) {
                        None => kills += 1,
                        Some(status) => {
                            assert!(status.success(), "{line}: {status}");
                            break;
                        }
                    }
                }
                same(&lab, &format!("{method}-through"), &out);
                resumed += lab
                    .text(&format!("{out}/log.txt"))
                    .matches("resumed in")
                    .count();
                let names = lab.names(&out);
                let litter =
                    |name: &String| name.starts_with('.') || name.starts_with("checkpoint");
                assert!(!names.iter().any(litter), "{names:?}");
            }
        }
        assert!(
            resumed > 5,
            "only {resumed} times there was something to resume"
        );
    }

    #[test]
    fn an_interrupted_run_leaves_a_checkpoint_and_goes_on() {
        let lab = lab();
        let settings = "--set train.epochs=15";
        lab.run("l2p", "through", settings);
        let line = format!("run l2p.toml --out run --threads 1 --checkpoint-every 2h {settings}");
        let mut run = start(&lab, &line);
        let mut err = BufReader::new(run.0.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("task 1/3") {
            assert!(err.read_line(&mut said).unwrap() > 0, "{said}");
        }
        // In the second task, or just before it.
        let sent = std::process::Command::new("kill")
            .args(["-INT", &run.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        err.read_to_string(&mut said).unwrap();
        assert_eq!(run.0.wait().unwrap().code(), Some(130), "{said}");
        for part in ["interrupted after 1 ", "a checkpoint", "--resume"] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
        let names: Vec<String> = lab.names("run").into_iter().collect();
        assert_eq!(names, ["checkpoint.safetensors", "config.toml", "log.txt"]);
        // It is not lost by a run that knows nothing of it.
        lab.say("run l2p.toml --out run").failed(&[
            "run: holds the checkpoint",
            "--resume",
            "--overwrite",
        ]);
        let said = lab.run("l2p", "run", &format!("--resume {settings}"));
        assert!(said.err.contains("resumed in task 2 of 3"), "{}", said.err);
        same(&lab, "through", "run");
        let log = lab.text("run/log.txt");
        assert!(
            log.contains("task 1/3: ") && log.contains("task 3/3: "),
            "{log}"
        );
    }

    #[test]
    fn seeds_that_have_ended_are_kept_and_the_others_go_on() {
        let lab = lab();
        let settings = "--seeds 1,2 --set train.epochs=5";
        lab.run("l2p", "through", settings);
        let line = format!("run l2p.toml --out run --threads 1 --checkpoint-every 3 {settings}");
        let mut run = start(&lab, &line);
        let path = lab.path("run/seed-2/checkpoint.safetensors");
        while !path.exists() {
            assert!(run.0.try_wait().unwrap().is_none(), "it ended by itself");
            sleep(Duration::from_millis(2));
        }
        drop(run);
        let before = fs::metadata(lab.path("run/seed-1/report.json")).unwrap();
        lab.run("l2p", "run", &format!("--resume {settings}"));
        let after = fs::metadata(lab.path("run/seed-1/report.json")).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        for seed in [1, 2] {
            same(
                &lab,
                &format!("through/seed-{seed}"),
                &format!("run/seed-{seed}"),
            );
        }
        let summary = |run: &str| lab.read(&format!("{run}/summary.json"));
        assert!(summary("through") == summary("run"));
    }

    /// A run that is stopped in its second task.
    fn stopped(lab: &Lab) {
        let mut run = start(
            lab,
            "run l2p.toml --out run --threads 1 --checkpoint-every 1",
        );
        let mut err = BufReader::new(run.0.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("task 1/3") {
            assert!(err.read_line(&mut said).unwrap() > 0, "{said}");
        }
    }

    #[test]
    fn a_checkpoint_of_another_run_or_a_damaged_one_is_refused() {
        let lab = lab();
        stopped(&lab);
        let name = "run/checkpoint.safetensors";
        let good = lab.read(name);
        for (more, parts) in [
            (
                "--set train.lr=0.02",
                ["train.lr is 0.01 there, 0.02 here"].as_slice(),
            ),
            ("--set seed=2", &["seed is 1 there, 2 here"]),
            (
                "--set method.prompts=5",
                &["method.prompts is 4 there, 5 here"],
            ),
            ("--set data.path=fewer", &["data.path", "split is"]),
        ] {
            if more.contains("fewer") {
                for class in crate::lab::CLASSES {
                    for part in ["train", "test"] {
                        let to = lab.path(&format!("fewer/{part}/{class}"));
                        fs::create_dir_all(&to).unwrap();
                        let images = lab.names(&format!("images/{part}/{class}"));
                        for image in images.iter().take(3) {
                            let from = lab.path(&format!("images/{part}/{class}/{image}"));
                            fs::copy(from, to.join(image)).unwrap();
                        }
                    }
                }
            }
            let said = lab.say(&format!("run l2p.toml --out run --resume {more}"));
            said.failed(
                &[
                    &["checkpoint.safetensors", "of another run", "--overwrite"],
                    parts,
                ]
                .concat(),
            );
            assert!(lab.read(name) == good, "{more}: the checkpoint is gone");
        }
        let mut turned = good.clone();
        let last = turned.len() - 3;
        turned[last] ^= 1;
        let cut = &good[..good.len() - 8];
        for bytes in [turned.as_slice(), cut, b"", b"no checkpoint"] {
            lab.write(name, bytes);
            let said = lab.say("run l2p.toml --out run --resume");
            said.failed(&["run/checkpoint.safetensors", "damaged", "--overwrite"]);
        }
        lab.write(name, &good);
        lab.run("l2p", "run", "--resume");
        lab.run("l2p", "through", "");
        same(&lab, "through", "run");
    }
}

#[test]
fn checkpoints_change_nothing_and_go_with_the_end() {
    let lab = lab();
    for method in ["l2p", "simplecil"] {
        lab.run(method, &format!("{method}-plain"), "");
        for every in ["1", "task", "1s"] {
            let out = format!("{method}-{every}");
            lab.run(method, &out, &format!("--checkpoint-every {every}"));
            same(&lab, &format!("{method}-plain"), &out);
            assert_eq!(lab.names(&out), lab.names(&format!("{method}-plain")));
        }
    }
    // A run that has ended is taken as it is, if it is the same.
    let said = lab.run("l2p", "l2p-1", "--resume");
    assert!(said.err.contains("has ended"), "{}", said.err);
    lab.say("run l2p.toml --out l2p-1 --resume --set train.lr=0.5")
        .failed(&["config.toml", "train.lr is 0.01 there, 0.5 here"]);
    let said = lab.say("run l2p.toml --out x --checkpoint-every 5x");
    assert!(said.err.contains("90s, 5m or 2h"), "{}", said.err);
}
