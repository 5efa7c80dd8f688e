//! A small HTTP server that answers like a Hub with one repository.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const ETAG_OF_CONFIG: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const CONFIG: &str = r#"{"model_type": "vit", "num_attention_heads": 3, "image_size": 224, "layer_norm_eps": 1e-12}"#;
const PREPROCESSOR: &str = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;

/// What the server has and how it misbehaves.
#[derive(Clone)]
pub struct Hub {
    pub id: String,
    pub commit: String,
    pub weights: Vec<u8>,
    /// Close the connection after so many bytes of weights.
    pub cut_after: Option<usize>,
    /// Whether `Range` is honoured.
    pub ranges: bool,
    /// Required of every request.
    pub token: Option<String>,
    /// Where weights really are.
    pub storage: Option<String>,
    /// So many requests get a 503 first.
    pub busy: usize,
    /// Every revision exists.
    pub any_revision: bool,
}

impl Hub {
    pub fn new(weights: Vec<u8>) -> Self {
        Self {
            id: "org/tiny-vit".into(),
            commit: COMMIT.into(),
            weights,
            cut_after: None,
            ranges: true,
            token: None,
            storage: None,
            busy: 0,
            any_revision: false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    fn from(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

pub struct Server {
    pub url: String,
    hub: Arc<Mutex<Hub>>,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(Mutex::new(hub));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (state, requests) = (hub.clone(), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, requests) = (state.clone(), requests.clone());
                // A client that hangs up is no concern of the server's.
                thread::spawn(move || serve(stream, &state, &requests).unwrap_or_default());
            }
        });
        Self { url, hub, log }
    }

    pub fn change(&self, change: impl FnOnce(&mut Hub)) {
        change(&mut self.hub.lock().unwrap());
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Where the GETs of a file began.
    pub fn ranges(&self, file: &str) -> Vec<Option<usize>> {
        let gets = |r: &&Request| r.method == "GET" && r.path.ends_with(file);
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(gets)
            .map(Request::from)
            .collect()
    }
}

fn serve(stream: TcpStream, hub: &Mutex<Hub>, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let mut request = Request {
        method: method.into(),
        path: path.into(),
        headers: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => request
                .headers
                .push((name.to_ascii_lowercase(), value.into())),
            None => break,
        }
    }
    let hub = {
        let mut shared = hub.lock().unwrap();
        let now = shared.clone();
        shared.busy = shared.busy.saturating_sub(1);
        now
    };
    let reply = answer(&hub, &request);
    log.lock().unwrap().push(request.clone());
    reply.send(stream, request.method == "HEAD", hub.cut_after)
}

struct Reply {
    status: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Reply {
    fn plain(status: &'static str, header: &str) -> Self {
        Self {
            status,
            headers: vec![header.into()],
            body: Vec::new(),
        }
    }

    fn send(
        self,
        mut stream: TcpStream,
        head: bool,
        cut_after: Option<usize>,
    ) -> std::io::Result<()> {
        let length = self.body.len();
        write!(
            stream,
            "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {length}\r\n",
            self.status
        )?;
        for header in &self.headers {
            write!(stream, "{header}\r\n")?;
        }
        write!(stream, "\r\n")?;
        if !head {
            stream.write_all(&self.body[..length.min(cut_after.unwrap_or(length))])?;
        }
        stream.flush()
    }
}

fn answer(hub: &Hub, request: &Request) -> Reply {
    if hub.busy > 0 {
        return Reply::plain("503 Service Unavailable", "Retry-After: 1");
    }
    if hub
        .token
        .as_ref()
        .is_some_and(|t| request.header("authorization") != Some(&format!("Bearer {t}")))
    {
        return Reply::plain("401 Unauthorized", "X-Error-Code: GatedRepo");
    }
    let missing = |code: &str| Reply::plain("404 Not Found", &format!("X-Error-Code: {code}"));
    let Some((id, rest)) = request.path.trim_start_matches('/').split_once("/resolve/") else {
        return missing("RepoNotFound");
    };
    let Some((revision, file)) = rest.split_once('/').filter(|_| id == hub.id) else {
        return missing("RepoNotFound");
    };
    // A commit stays when the branch moves on.
    if !hub.any_revision && !["main", COMMIT, &hub.commit].contains(&revision) {
        return missing("RevisionNotFound");
    }
    let commit = if revision == "main" {
        &hub.commit
    } else {
        revision
    };
    let mut headers = vec![format!("X-Repo-Commit: {commit}")];
    let body = match file {
        "config.json" => {
            headers.push(format!("ETag: W/\"{ETAG_OF_CONFIG}\""));
            CONFIG.into()
        }
        "preprocessor_config.json" => {
            headers.push("ETag: \"bbbbbbbb\"".into());
            PREPROCESSOR.into()
        }
        "model.safetensors" => {
            let sha: String = Sha256::digest(&hub.weights)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            headers.push(format!("X-Linked-Etag: \"{sha}\""));
            headers.push(format!("X-Linked-Size: {}", hub.weights.len()));
            headers.push("ETag: \"of-the-storage\"".into());
            hub.weights.clone()
        }
        _ => return missing("EntryNotFound"),
    };
    if let Some(storage) = hub
        .storage
        .as_ref()
        .filter(|_| file.ends_with("safetensors"))
    {
        headers.push(format!("Location: {storage}{}", request.path));
        return Reply {
            status: "302 Found",
            headers,
            body: Vec::new(),
        };
    }
    match request.from().filter(|_| hub.ranges) {
        Some(from) if from >= body.len() => {
            headers.push(format!("Content-Range: bytes */{}", body.len()));
            Reply {
                status: "416 Range Not Satisfiable",
                headers,
                body: Vec::new(),
            }
        }
        Some(from) => {
            headers.push(format!(
                "Content-Range: bytes {from}-{}/{}",
                body.len() - 1,
                body.len()
            ));
            Reply {
                status: "206 Partial Content",
                headers,
                body: body[from..].to_vec(),
            }
        }
        None => Reply {
            status: "200 OK",
            headers,
            body,
        },
    }
}
