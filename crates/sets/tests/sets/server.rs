//! A small HTTP server with files and dataset repositories as the Hub has them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it misbehaves.
#[derive(Clone, Default)]
pub struct Files {
    /// Repositories by id, their files by name.
    pub repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// By path, with the slash.
    pub plain: BTreeMap<String, Vec<u8>>,
    /// Close the connection after so many bytes of a body.
    pub cut_after: Option<usize>,
    /// Required of requests to repositories.
    pub token: Option<String>,
    /// The digest that the Hub states is another.
    pub lies: bool,
}

pub struct Server {
    pub url: String,
    files: Arc<Mutex<Files>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let files = Arc::new(Mutex::new(files));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (state, requests) = (files.clone(), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, requests) = (state.clone(), requests.clone());
                // A client that hangs up is no concern of the server's.
                thread::spawn(move || serve(stream, &state, &requests).unwrap_or_default());
            }
        });
        Self { url, files, log }
    }

    pub fn change(&self, change: impl FnOnce(&mut Files)) {
        change(&mut self.files.lock().unwrap());
    }

    /// `METHOD PATH FROM` of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, files: &Mutex<Files>, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let (mut from, mut token) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let text = value.trim_start_matches("bytes=").trim_end_matches('-');
                from = text.parse().unwrap_or(0);
            }
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    log.lock().unwrap().push(format!("{method} {path} {from}"));
    let files = files.lock().unwrap().clone();
    let (status, headers, body) = answer(&files, path, token.as_deref());
    let mut stream = stream;
    let length = body.len();
    let (status, start) = match (status, from) {
        ("200 OK", from) if from > 0 && from < length => ("206 Partial Content", from),
        (status, _) => (status, 0),
    };
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n")?;
    write!(stream, "Content-Length: {}\r\n", length - start)?;
    if start > 0 {
        write!(
            stream,
            "Content-Range: bytes {start}-{}/{length}\r\n",
            length - 1
        )?;
    }
    for header in headers {
        write!(stream, "{header}\r\n")?;
    }
    write!(stream, "\r\n")?;
    if method != "HEAD" {
        let body = &body[start..];
        stream.write_all(&body[..body.len().min(files.cut_after.unwrap_or(usize::MAX))])?;
    }
    stream.flush()
}

fn answer(files: &Files, path: &str, token: Option<&str>) -> (&'static str, Vec<String>, Vec<u8>) {
    let missing = |code: &str| {
        (
            "404 Not Found",
            vec![format!("X-Error-Code: {code}")],
            Vec::new(),
        )
    };
    if let Some(body) = files.plain.get(path) {
        return ("200 OK", vec!["ETag: \"plain\"".into()], body.clone());
    }
    if files.token.is_some() && files.token.as_deref() != token {
        return ("401 Unauthorized", Vec::new(), Vec::new());
    }
    if let Some(rest) = path.strip_prefix("/api/datasets/") {
        let Some((id, _)) = rest.split_once("/revision/") else {
            return missing("RepoNotFound");
        };
        let Some(repo) = files.repos.get(id) else {
            return missing("RepoNotFound");
        };
        let siblings: Vec<String> = repo
            .keys()
            .map(|name| format!(r#"{{"rfilename": "{name}"}}"#))
            .collect();
        let body = format!(
            r#"{{"id": "{id}", "sha": "{COMMIT}", "siblings": [{}]}}"#,
            siblings.join(", ")
        );
        return (
            "200 OK",
            vec!["Content-Type: application/json".into()],
            body.into(),
        );
    }
    let found = path
        .strip_prefix("/datasets/")
        .and_then(|rest| rest.split_once("/resolve/"))
        .and_then(|(id, rest)| Some((id, rest.split_once('/')?)));
    let Some((id, (revision, file))) = found else {
        return missing("RepoNotFound");
    };
    let Some(repo) = files.repos.get(id) else {
        return missing("RepoNotFound");
    };
    if revision != COMMIT {
        return missing("RevisionNotFound");
    }
    let Some(body) = repo.get(file) else {
        return missing("EntryNotFound");
    };
    let mut sha: String = Sha256::digest(body)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if files.lies {
        sha = "0".repeat(64);
    }
    let headers = vec![
        format!("X-Repo-Commit: {COMMIT}"),
        format!("X-Linked-Etag: \"{sha}\""),
        format!("X-Linked-Size: {}", body.len()),
    ];
    ("200 OK", headers, body.clone())
}
