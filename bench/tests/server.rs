//! The server as a program: right answers, and errors that leave it running.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use candle_core::{Device, safetensors};
use candlewick_bench::{Kind, inputs};
use candlewick_core::Backbone;
use candlewick_vit::{Options, Vit, Weights};
use serde_json::{Value, json};

struct Client {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Client {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_candlewick-bench"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, to, from }
    }

    fn ask(&mut self, request: Value) -> Value {
        writeln!(self.to, "{request}").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn model() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/vit-micro/model.safetensors")
}

fn vit() -> Vit {
    let options = Options {
        heads: Some(4),
        ..Options::default()
    };
    Vit::load(&Weights::open(&model()).unwrap(), &options, &Device::Cpu).unwrap()
}

fn load() -> Value {
    json!({"op": "load", "weights": model(), "precision": "f32", "threads": 2, "heads": 4})
}

#[test]
fn features_gradients_and_seconds_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let vit = vit();
    let mut client = Client::start();
    assert_eq!(client.ask(load())["dim"], 128);
    for (name, kind) in [
        ("l2p", Kind::L2p),
        ("l2p-full", Kind::L2pFull),
        ("dualprompt", Kind::DualPrompt),
        ("coda", Kind::Coda),
        ("cofima", Kind::CoFiMa),
    ] {
        let given = inputs::draw(kind, vit.spec(), 2, 7).unwrap();
        safetensors::save(&given, &input).unwrap();
        let answer = client
            .ask(json!({"op": "step", "kind": name, "inputs": input, "reps": 2, "out": output}));
        assert_eq!(answer["seconds"].as_array().unwrap().len(), 2, "{answer}");
        let out = safetensors::load(&output, &Device::Cpu).unwrap();
        assert_eq!(out["loss"].dims(), [0usize; 0]);
        for (parameter, shape) in inputs::parameters(kind, 128) {
            let grad = &out[&format!("grad.{parameter}")];
            assert_eq!(grad.dims(), shape);
            let size: f32 = grad.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap();
            assert!(size > 0.0, "{name}: nothing reaches {parameter}");
        }
    }
    let answer = client.ask(json!({"op": "forward", "images": input, "reps": 1, "out": output}));
    assert_eq!(answer["seconds"].as_array().unwrap().len(), 1, "{answer}");
    let found = &safetensors::load(&output, &Device::Cpu).unwrap()["features"];
    let images = &safetensors::load(&input, &Device::Cpu).unwrap()["images"];
    let wanted = vit.query(images).unwrap();
    assert_eq!(
        found.to_vec2::<f32>().unwrap(),
        wanted.to_vec2::<f32>().unwrap()
    );
}

#[test]
fn a_wrong_request_is_answered_and_the_next_one_too() {
    let mut client = Client::start();
    let wrong = [
        (json!({"op": "dance"}), "dance"),
        (json!({"op": "forward", "images": "x", "reps": 1}), "load"),
        (
            json!({"op": "load", "weights": "nowhere", "precision": "f32", "threads": 2}),
            "nowhere",
        ),
    ];
    for (request, word) in wrong {
        let answer = client.ask(request);
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    assert!(client.ask(load())["seconds"].as_f64().unwrap() > 0.0);
    let more = json!({"op": "load", "weights": "x", "precision": "f32", "threads": 1});
    assert!(client.ask(more)["error"].is_string());
    if cfg!(target_os = "linux") {
        let answer = client.ask(json!({"op": "memory", "reset": true}));
        assert!(answer["peak_bytes"].as_u64().unwrap() > 0, "{answer}");
    }
}
