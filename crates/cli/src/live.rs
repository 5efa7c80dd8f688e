//! `--live`: the page of a run while it goes on, over HTTP on this machine.
//!
//! The run only puts numbers under a lock that is held for moments. Markup is made and sent in threads of the server, one for
//! each request, so a client that reads slowly, or never, does not hold up the run. Many connections whose requests never end may
//! leave a new one waiting in the server's pool of threads, until the run is over.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use candlewick_core::{
    AccuracyMatrix, ClassAccuracy, Cost, Event, Fingerprint, Observer, Outcome, Report, Stream,
};
use candlewick_page::{Now, Page, Run, Update};
use tiny_http::{Header, Method, Request, Response, Server, StatusCode};

use crate::watch;

/// Requests that are answered at once, in all and of one connection; others are passed over.
const ANSWERS: usize = 64;
const EACH: usize = 2;
/// At the end of a run, whoever asked within the first is waited for, at most the second.
const WATCHED: Duration = Duration::from_secs(3);
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, clap::Args)]
pub struct LiveArgs {
    /// Show the run in a browser while it goes on, at an address that is printed; it ends with the run
    #[arg(long)]
    live: bool,
    /// Its port [default: a free one]
    #[arg(
        long,
        value_name = "N",
        requires = "live",
        default_value_t = 0,
        hide_default_value = true
    )]
    live_port: u16,
    /// Its interface; any other than the default lets other machines see the run
    #[arg(
        long,
        value_name = "ADDR",
        requires = "live",
        default_value = "127.0.0.1"
    )]
    live_address: IpAddr,
}

/// What is known of a run, and of earlier ones of the same call.
#[derive(Default)]
struct Known {
    now: Now,
    done: Vec<Arc<Run>>,
    going: Option<Arc<Run>>,
    asked: Option<Instant>,
    /// Somebody was told of the end.
    told: bool,
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    said: Condvar,
    /// Those under way, by the connection they came on.
    answers: Mutex<HashMap<SocketAddr, usize>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for an answer, if there is some left.
    fn begin(&self, from: SocketAddr) -> bool {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = answers.values().sum();
        let its = answers.get(&from).copied().unwrap_or(0);
        let room = all < ANSWERS && its < EACH;
        if room {
            answers.insert(from, its + 1);
        }
        room
    }

    fn end(&self, from: SocketAddr) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answers.get_mut(&from) {
            Some(its) if *its > 1 => *its -= 1,
            _ => drop(answers.remove(&from)),
        }
    }
}

/// The server of one call.
pub struct Live {
    shared: Arc<Shared>,
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Listens, and says where; `None` where nobody asked.
    pub fn start(args: &LiveArgs) -> Result<Option<Self>> {
        if !args.live {
            return Ok(None);
        }
        let address = SocketAddr::new(args.live_address, args.live_port);
        let server = Server::http(address).map_err(|e| {
            anyhow!("--live: cannot listen on {address} ({e}); give another --live-port, or leave it out for a free one")
        })?;
        let server = Arc::new(server);
        let at = server
            .server_addr()
            .to_ip()
            .context("--live: listens on no address")?;
        watch::say(&format!("live at http://{at}/"));
        let shared = Arc::<Shared>::default();
        shared.lock().now = Now {
            label: "candlewick".into(),
            doing: "looking at its data and loading the backbone".into(),
            ..Now::default()
        };
        let (inner, listener) = (shared.clone(), server.clone());
        let thread = thread::spawn(move || {
            for request in listener.incoming_requests() {
                receive(&inner, request);
            }
        });
        Ok(Some(Self {
            shared,
            server,
            thread: Some(thread),
        }))
    }

    /// What watches a run that begins, for this page.
    pub fn watch<'a>(
        &self,
        label: &str,
        method: &str,
        stream: &'a Stream,
        fingerprint: Fingerprint,
        before: &AccuracyMatrix,
    ) -> Watched<'a> {
        let watched = Watched {
            shared: self.shared.clone(),
            label: label.to_owned(),
            method: method.to_owned(),
            stream,
            fingerprint,
            started: Instant::now(),
            steps: 0,
        };
        {
            let mut known = self.shared.lock();
            let revision = known.now.revision;
            known.now = Now {
                revision,
                label: label.to_owned(),
                task: (before.sessions() + 1, stream.tasks.len()),
                doing: "beginning".into(),
                ..Now::default()
            };
        }
        watched.put(before);
        watched
    }

    /// A run that has ended, as its own page has it.
    pub fn done(&self, run: Run) {
        let mut known = self.shared.lock();
        known.going = None;
        known.done.push(Arc::new(run));
        known.now.revision += 1;
    }

    /// After the last run: tells whoever looks on, without waiting long for it.
    pub fn end(self) {
        let mut known = self.shared.lock();
        known.now.ended = true;
        known.now.revision += 1;
        let watched = known.asked.is_some_and(|at| at.elapsed() < WATCHED);
        if watched {
            let wait = self
                .shared
                .said
                .wait_timeout_while(known, FAREWELL, |k| !k.told);
            drop(wait);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Watches a run for the page.
pub struct Watched<'a> {
    shared: Arc<Shared>,
    label: String,
    method: String,
    stream: &'a Stream,
    fingerprint: Fingerprint,
    started: Instant,
    steps: u64,
}

impl Watched<'_> {
    /// Puts what is known after a session in place of what was.
    fn put(&self, accuracy: &AccuracyMatrix) {
        let run = partial(
            &self.label,
            &self.method,
            self.stream,
            &self.fingerprint,
            accuracy,
        );
        let mut known = self.shared.lock();
        // A page of less than all is no reason to end a run.
        known.going = run.ok().map(Arc::new);
        known.now.revision += 1;
    }

    fn begin(&self, task: usize, doing: &str, images: u64) {
        let mut known = self.shared.lock();
        known.now.task.0 = task + 1;
        known.now.doing = doing.to_owned();
        known.now.images = (0, images);
        known.now.seconds = self.started.elapsed().as_secs_f64();
    }

    fn count(&self, images: usize) -> MutexGuard<'_, Known> {
        let mut known = self.shared.lock();
        known.now.images.0 += images as u64;
        known.now.seconds = self.started.elapsed().as_secs_f64();
        known
    }
}

impl Observer for Watched<'_> {
    fn on(&mut self, event: Event<'_>) -> candlewick_core::Result<()> {
        match event {
            Event::TaskBegin(task) => self.begin(task.index, "learning", task.train_len as u64),
            Event::Step {
                epoch,
                epochs,
                images,
                pass,
                loss,
            } => {
                self.steps += 1;
                let mut known = self.count(images);
                let now = &mut known.now;
                let doing = format!("epoch {} of {epochs}", epoch + 1);
                if now.doing != doing {
                    now.images = (images as u64, pass as u64);
                    now.doing = doing;
                }
                now.losses.extend(loss.map(|loss| (self.steps, loss)));
            }
            Event::Looked(images) => drop(self.count(images)),
            Event::Learned(task) => {
                let tested = candlewick_core::run::evaluated(self.stream, task.index);
                let images = tested.iter().map(|t| t.info.test_len as u64).sum();
                self.begin(task.index, "testing", images);
            }
            Event::Evaluated(images) => drop(self.count(images)),
            Event::TaskEnd { accuracy, .. } => self.put(accuracy),
        }
        Ok(())
    }
}

/// A run of which some sessions are over: its numbers so far, and nothing that is known at the end only.
fn partial(
    name: &str,
    method: &str,
    stream: &Stream,
    fingerprint: &Fingerprint,
    accuracy: &AccuracyMatrix,
) -> Result<Run> {
    let outcome = Outcome {
        accuracy: accuracy.clone(),
        classes: ClassAccuracy::default(),
        predictions: Vec::new(),
        cost: Cost::default(),
        pools: Vec::new(),
        exemplars: None,
    };
    let report = Report::new(method, stream, &outcome, fingerprint.clone());
    let mut report = serde_json::to_value(report)?;
    report["cost"] = serde_json::json!({});
    Ok(Run::new(name, &report.to_string())?)
}

/// Answers in a thread of its own, as long as there are not too many.
fn receive(shared: &Arc<Shared>, request: Request) {
    let Some(from) = request
        .remote_addr()
        .copied()
        .filter(|from| shared.begin(*from))
    else {
        // Unlike an answer this never waits for the client.
        return drop(request.into_writer());
    };
    let inner = shared.clone();
    let spawned = thread::Builder::new().spawn(move || {
        let told = answer(&inner, request);
        inner.end(from);
        if told {
            inner.lock().told = true;
            inner.said.notify_all();
        }
    });
    if spawned.is_err() {
        shared.end(from);
    }
}

/// Whether the end of the run was told.
fn answer(shared: &Shared, request: Request) -> bool {
    let refuse =
        |status: u16, text: &str| (status, "text/plain; charset=utf-8", format!("{text}\n"));
    let (path, query) = match request.url().split_once('?') {
        Some((path, query)) => (path.to_owned(), query.to_owned()),
        None => (request.url().to_owned(), String::new()),
    };
    let mut ended = false;
    let (status, kind, text) = if !matches!(request.method(), Method::Get | Method::Head) {
        refuse(405, "only GET and HEAD: a run is looked at, not steered")
    } else if !host_is_an_address(&request) {
        refuse(
            403,
            "open this by its number, as it was printed, or as localhost",
        )
    } else {
        match path.as_str() {
            "/" => (200, "text/html; charset=utf-8", page(shared)),
            "/state.json" => {
                let since = query.strip_prefix("since=").and_then(|n| n.parse().ok());
                let update = update(shared, since);
                ended = update.ended;
                let text = serde_json::to_string(&update).unwrap_or_default();
                (200, "application/json", text)
            }
            _ => refuse(404, "there is only / and /state.json"),
        }
    };
    // Its length is known, so it goes in one piece.
    let mut response = Response::from_string(text)
        .with_status_code(StatusCode(status))
        .with_chunked_threshold(usize::MAX);
    let headers = [
        ("Content-Type", kind),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("X-Frame-Options", "DENY"),
    ];
    let allow = (status == 405).then_some(("Allow", "GET, HEAD"));
    for (name, value) in headers.into_iter().chain(allow) {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    request.respond(response).is_ok() && ended
}

/// Whether the browser was led here by a number or as localhost. A page of another origin can have its own name point
/// here, but then the browser says that name.
fn host_is_an_address(request: &Request) -> bool {
    let hosts = request.headers().iter().filter(|h| h.field.equiv("Host"));
    let hosts: Vec<&str> = hosts.map(|h| h.value.as_str()).collect();
    let [host] = hosts.as_slice() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn page(shared: &Shared) -> String {
    let (now, runs) = snapshot(shared);
    with(&runs, |page| {
        Page {
            now: Some(now),
            ..page
        }
        .html()
    })
}

/// The news for one that has revision `since`.
fn update(shared: &Shared, since: Option<u64>) -> Update {
    let (now, runs) = snapshot(shared);
    Update {
        revision: now.revision,
        ended: now.ended,
        now: now.html(),
        main: (since != Some(now.revision)).then(|| with(&runs, |page| page.main())),
    }
}

/// What is known, taken out so that the lock is not held while markup is made.
fn snapshot(shared: &Shared) -> (Now, Vec<Arc<Run>>) {
    let mut known = shared.lock();
    known.asked = Some(Instant::now());
    let runs = known.done.iter().chain(&known.going).cloned().collect();
    (known.now.clone(), runs)
}

fn with<T>(runs: &[Arc<Run>], f: impl FnOnce(Page<'_>) -> T) -> T {
    let runs: Vec<&Run> = runs.iter().map(Arc::as_ref).collect();
    f(Page {
        title: "A run that goes on",
        runs: &runs,
        ..Page::default()
    })
}
