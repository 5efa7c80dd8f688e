//! The page of a run while it goes on.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::browser::Browser;
use crate::lab::Lab;

/// A run that takes some seconds, and what it says.
struct Going {
    process: Child,
    host: String,
    said: std::thread::JoinHandle<String>,
}

impl Going {
    fn start(lab: &Lab, line: &str) -> Self {
        let mut process = lab
            .process(env!("CARGO_BIN_EXE_candlewick"))
            .args(line.split_whitespace())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut before = String::new();
        let host = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("not live: {before}"))
                .unwrap();
            if let Some(address) = line.strip_prefix("live at http://") {
                break address.trim_end_matches('/').to_owned();
            }
            before += &line;
        };
        let said = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .fold(String::new(), |all, line| all + &line + "\n")
        });
        Self {
            process,
            host,
            said,
        }
    }

    fn ask(&self, line: &str, host: &str) -> Answer {
        Answer::to(&self.host, line, &format!("Host: {host}\r\n"))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1"), &self.host)
    }

    /// The exit code and what was said.
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.process.wait().unwrap().code();
        (code, self.said.join().unwrap())
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn to(address: &str, line: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        write!(stream, "{line}\r\n{headers}Connection: close\r\n\r\n").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let all = String::from_utf8(all).unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
        Self {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

const LONG: &str = "run l2p.toml --out run --threads 1 --live --set train.epochs=40";

#[test]
fn a_run_is_looked_at_and_not_steered() {
    let lab = Lab::new();
    let going = Going::start(&lab, LONG);
    let page = going.get("/");
    assert_eq!(page.status, 200);
    for header in [
        "text/html; charset=utf-8",
        "no-store",
        "nosniff",
        "same-origin",
    ] {
        assert!(page.head.contains(header), "no {header}: {}", page.head);
    }
    assert!(page.body.contains("data-live="), "{}", page.body);
    assert!(page.body.contains("connect-src 'self'"));
    // Until the backbone is there it has nothing to say.
    let mut state = going.get("/state.json").json();
    while state["revision"] == 0 {
        state = going.get("/state.json").json();
    }
    assert_eq!(state["ended"], false);
    assert!(state["now"].as_str().unwrap().contains("of 3"), "{state}");
    assert!(state["main"].as_str().unwrap().contains("<h1>"), "{state}");
    let known = format!("/state.json?since={}", state["revision"]);
    let again = going.get(&known).json();
    assert!(again["revision"] != state["revision"] || again.get("main").is_none());

    let head = going.ask("HEAD / HTTP/1.1", &going.host);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = going.ask(&format!("{method} / HTTP/1.1"), &going.host);
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
    }
    assert_eq!(going.get("/etc/passwd").status, 404);
    // The name of somebody else's site that points here.
    let port = going.host.rsplit_once(':').unwrap().1;
    for (host, status) in [
        (format!("localhost:{port}"), 200),
        (format!("[::1]:{port}"), 200),
        ("127.0.0.1".into(), 200),
        (format!("evil.example:{port}"), 403),
        (format!("127.0.0.1.evil.example:{port}"), 403),
        ("localhost.evil.example".into(), 403),
        (String::new(), 403),
    ] {
        assert_eq!(
            going.ask("GET / HTTP/1.1", &host).status,
            status,
            "{host:?}"
        );
    }
    let twice = format!("Host: {}\r\nHost: evil.example\r\n", going.host);
    assert_eq!(
        Answer::to(&going.host, "GET / HTTP/1.1", &twice).status,
        403
    );
    assert_eq!(Answer::to(&going.host, "GET / HTTP/1.1", "").status, 403);

    let host = going.host.clone();
    let (code, said) = going.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        TcpStream::connect(host).is_err(),
        "it serves on after its end"
    );
}

/// Clients that never read and such as never finish asking. The server's threads may leave another client waiting behind so many, so
/// this is about the run.
#[test]
fn bad_clients_do_not_hold_up_the_run() {
    let lab = Lab::new();
    lab.run("l2p", "alone", "--set train.epochs=40");
    let going = Going::start(&lab, LONG);
    let mut held = Vec::new();
    for i in 0..40 {
        let mut stream = TcpStream::connect(&going.host).unwrap();
        let whole = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", going.host);
        let text = match i % 4 {
            0 => whole[..20].to_owned(),
            1 => "\0\u{7f}garbage\r\n\r\n".to_owned(),
            2 => whole.repeat(50),
            _ => String::new(),
        };
        let _ = stream.write_all(text.as_bytes());
        held.push(stream);
    }
    let (code, said) = going.end();
    assert_eq!(code, Some(0), "{said}");
    drop(held);
    for file in ["report.json", "predictions.csv", "params.safetensors"] {
        let alone = lab.read(&format!("alone/{file}"));
        assert!(
            alone == lab.read(&format!("run/{file}")),
            "{file} differs when looked at"
        );
    }
}

#[test]
fn a_port_that_is_taken_is_said_before_any_work() {
    let lab = Lab::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = lab.say(&format!(
        "run simplecil.toml --out run --live --live-port {port}"
    ));
    said.failed(&[&format!("127.0.0.1:{port}"), "in use", "--live-port"]);
    assert!(!lab.path("run/report.json").exists());
    let said = lab.say("run simplecil.toml --out run --live-port 80");
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("--live"), "{}", said.err);
}

#[test]
fn a_browser_follows_a_run_to_its_end() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let lab = Lab::new();
    let going = Going::start(&lab, &format!("{LONG} --seeds 1,2"));
    browser.screen(375, 800, "light");
    browser.go(&format!("http://{}/", going.host));
    // Of several runs the last has its page complete, with what only a finished run has.
    browser.until("document.body.textContent.includes('seed 2 has ended')");
    browser.until("document.querySelectorAll('details.run').length === 2");
    let wrong = browser
        .eval("document.querySelectorAll('.worst img').length")
        .as_u64()
        .unwrap();
    assert!(wrong > 0, "no thumbnails");
    let here = format!("http://{}/", going.host);
    let asked = browser.requests();
    let outside = asked
        .iter()
        .filter(|url| !url.starts_with(&here) && !url.starts_with("data:"));
    assert_eq!(outside.collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(browser.complaints(), Vec::<&Value>::new());
    let (code, said) = going.end();
    assert_eq!(code, Some(0), "{said}");
    // It asks no more of one that has ended.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(browser.complaints(), Vec::<&Value>::new());
    let metric = "document.querySelectorAll('[data-metric=last_accuracy_micro] data')";
    let shown = browser.eval(&format!("[...{metric}].map(d => Number(d.value))"));
    let report = lab.json("run/seed-2/report.json");
    let expected = report["metrics"]["last_accuracy_micro"].as_f64();
    let shown: Vec<Option<f64>> = shown
        .as_array()
        .unwrap()
        .iter()
        .map(Value::as_f64)
        .collect();
    assert!(shown.contains(&expected), "{shown:?}: {expected:?}");
}
