//! Runs that end before their time, and output that goes nowhere.

use std::process::Stdio;

use crate::lab::{FEW, Lab, Said};

#[cfg(unix)]
mod signals {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::{Child, Command, ExitStatus};
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

    impl Running {
        fn signal(&self, name: &str) {
            let sent = Command::new("kill")
                .args([name, &self.0.id().to_string()])
                .status();
            assert!(sent.unwrap().success());
        }

        fn end(&mut self) -> ExitStatus {
            let patience = Instant::now() + Duration::from_secs(120);
            loop {
                match self.0.try_wait().unwrap() {
                    Some(status) => return status,
                    None if Instant::now() < patience => sleep(Duration::from_millis(20)),
                    None => panic!("it does not stop"),
                }
            }
        }
    }

    fn start(lab: &Lab, line: &str) -> Running {
        let mut command = lab.process(env!("CARGO_BIN_EXE_candlewick"));
        command.args(line.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    fn left(lab: &Lab, folder: &str) -> Vec<String> {
        lab.names(folder).into_iter().collect()
    }

    #[test]
    fn an_interrupted_run_leaves_its_recipe_and_its_log() {
        let lab = Lab::new();
        let line = "run l2p.toml --out run --threads 1 --set train.epochs=1000000";
        let mut run = start(&lab, line);
        while !lab.path("run/config.toml").exists() {
            assert!(run.0.try_wait().unwrap().is_none(), "it ended by itself");
            sleep(Duration::from_millis(20));
        }
        run.signal("-INT");
        assert_eq!(run.end().code(), Some(130));
        let mut err = String::new();
        run.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        for part in ["interrupted", "after 0 ", "no report", "run holds the log"] {
            assert!(err.contains(part), "no {part:?} in: {err}");
        }
        assert_eq!(left(&lab, "run"), ["config.toml", "log.txt"]);
        assert!(
            lab.text("run/log.txt")
                .contains("stopped in task 1 of 3: interrupted")
        );
        lab.say("report run")
            .failed(&["run", "no report.json", "did not end"]);
        // A directory without a report is free to be used again.
        lab.run("l2p", "run", "");
    }

    #[test]
    fn a_run_that_is_terminated_between_tasks_says_how_far_it_came() {
        let lab = Lab::new();
        lab.run("l2p", "run", "");
        let line = "run l2p.toml --out run --overwrite --threads 1 --set train.epochs=40";
        let mut run = start(&lab, line);
        let mut err = BufReader::new(run.0.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("task 1/3") {
            assert!(err.read_line(&mut said).unwrap() > 0, "{said}");
        }
        run.signal("-TERM");
        assert_eq!(run.end().code(), Some(130));
        err.read_to_string(&mut said).unwrap();
        for part in ["interrupted", "after 1 ", "no report"] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
        // Nothing of the run that was there before may pass for this one's.
        assert_eq!(left(&lab, "run"), ["config.toml", "log.txt"]);
        let log = lab.text("run/log.txt");
        assert!(
            log.contains("task 1/3: ") && !log.contains("task 3/3: "),
            "{log}"
        );
    }

    /// A limit on file size stands for a full disk: the kernel refuses the write in the same way.
    #[test]
    fn a_write_that_the_system_refuses_leaves_no_report() {
        let lab = Lab::new();
        let script = r#"trap "" XFSZ; ulimit -f 4; exec "$0" run linear.toml --out run --threads 1 --set features=off"#;
        let output = lab
            .process("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_candlewick")])
            .output()
            .unwrap();
        Said::of(output).failed(&["run/", ": not written", "too large"]);
        let names = left(&lab, "run");
        assert!(!names.contains(&"report.json".to_owned()), "{names:?}");
        assert!(names.contains(&"log.txt".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
        for name in names {
            assert!(!lab.read(&format!("run/{name}")).is_empty(), "{name}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_standard_output_is_an_error() {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let lab = Lab::new();
        let mut command = lab.process(env!("CARGO_BIN_EXE_candlewick"));
        let output = command.arg("methods").stdout(full).output().unwrap();
        Said::of(output).failed(&["No space left"]);
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_found_before_any_work() {
    let lab = Lab::new();
    // Below a file; permissions would not stop every user.
    lab.write("taken", "a file");
    let said = lab.say("run l2p.toml --out taken/run --set train.epochs=1000000");
    said.failed(&["taken/run", "cannot be written", "--out"]);
    let said = lab.say("run l2p.toml --out taken/run --seeds 1,2 --set train.epochs=1000000");
    said.failed(&["taken/run", "cannot be written", "--out"]);
    assert_eq!(lab.text("taken"), "a file");
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let lab = Lab::new();
    for method in FEW {
        lab.run(method, method, "");
    }
    for line in [
        "methods",
        "backbones list",
        "backbones show vit-micro",
        "report l2p linear simplecil",
        "run l2p.toml --dry-run",
        "run simplecil.toml --out unread",
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lab.process(env!("CARGO_BIN_EXE_candlewick"));
        command.args(line.split_whitespace()).stdout(writer);
        let said = Said::of(command.stderr(Stdio::piped()).output().unwrap());
        assert_eq!(said.code, Some(0), "{line}: {}", said.err);
        assert!(!said.err.contains("error: "), "{line}: {}", said.err);
    }
    assert!(lab.path("unread/report.json").is_file());
}

#[test]
fn a_run_whose_messages_nobody_reads_ends_well() {
    let lab = Lab::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = lab.process(env!("CARGO_BIN_EXE_candlewick"));
    command.args(["run", "simplecil.toml", "--out", "unread"]);
    let status = command
        .stderr(writer)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(lab.path("unread/report.json").is_file());
}
