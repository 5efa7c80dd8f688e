//! Requests: one `HEAD` for what a file is, `GET`s with `Range` until all of it is here.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use crate::Progress;
use crate::error::{Error, Result};
use crate::hub::HubConfig;

/// Attempts in a row that bring nothing before giving up.
const ATTEMPTS: u32 = 5;
const MAX_REDIRECTS: usize = 10;

pub(crate) struct Client<'a> {
    config: &'a HubConfig,
    agent: Agent,
}

/// What a `HEAD` tells.
pub(crate) struct Head {
    pub commit: Option<String>,
    pub etag: Option<String>,
    pub size: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Head,
    Get { from: u64 },
}

impl<'a> Client<'a> {
    pub(crate) fn new(config: &'a HubConfig) -> Self {
        let mut builder = Agent::config_builder()
            // Redirects are followed by hand: the token must not travel, and the first answer has the headers.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // A stalled transfer is cut here and resumed; a slow one may take its time.
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("candlewick/", env!("CARGO_PKG_VERSION")));
        // A proxy cannot see this machine's loopback.
        let host = config
            .endpoint
            .parse::<Uri>()
            .ok()
            .and_then(|uri| uri.host().map(str::to_owned));
        if host.is_some_and(|h| h == "localhost" || h == "[::1]" || h.starts_with("127.")) {
            builder = builder.proxy(None);
        }
        Self {
            config,
            agent: builder.build().into(),
        }
    }

    /// Asks what a file is, waiting out a busy server.
    pub(crate) fn head(&self, url: &str) -> Result<Head> {
        let mut attempt = 0;
        let (response, commit) = loop {
            let (response, commit) = self.send(Method::Head, url)?;
            attempt += 1;
            if !busy(response.status().as_u16()) || attempt == ATTEMPTS {
                break (response, commit);
            }
            self.wait(attempt);
        };
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refused(url, &response));
        }
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let length = || text(headers, "content-length").filter(|_| status.is_success());
        Ok(Head {
            commit,
            etag: etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned()),
            size: text(headers, "x-linked-size")
                .or_else(length)
                .and_then(|s| s.parse().ok()),
        })
    }

    /// Fetches a file into `partial`, going on from what is there already.
    pub(crate) fn download(
        &self,
        url: &str,
        partial: &Path,
        mut total: Option<u64>,
        name: &str,
        progress: Option<&dyn Progress>,
    ) -> Result<()> {
        if let Some(folder) = partial.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(partial);
        let mut file = file.map_err(Error::io("open", partial))?;
        let mut done = file
            .seek(SeekFrom::End(0))
            .map_err(Error::io("read", partial))?;
        if total.is_some_and(|total| done > total) {
            done = 0;
        }
        let (mut best, mut fruitless) = (done, 0);
        loop {
            if total == Some(done) {
                file.set_len(done)
                    .and_then(|()| file.sync_all())
                    .map_err(Error::io("write", partial))?;
                return Ok(());
            }
            let (reason, source) = match self.get(url, done) {
                Err(Error::Network { source, .. }) => (source.to_string(), None),
                Err(error) => return Err(error),
                Ok(answer) if busy(answer.status().as_u16()) => {
                    (format!("status {}", answer.status()), None)
                }
                Ok(answer) => {
                    let (start, size) = place(url, &answer, done)?;
                    total = total.or(size);
                    done = start;
                    file.seek(SeekFrom::Start(done))
                        .map_err(Error::io("read", partial))?;
                    file.set_len(done).map_err(Error::io("write", partial))?;
                    let outcome = copy(answer, &mut file, &mut done, |done| {
                        if let Some(progress) = progress {
                            progress.update(name, done, total);
                        }
                    });
                    match outcome {
                        Copied::Unwritable(e) => return Err(Error::io("write", partial)(e)),
                        Copied::Broken(e) => (e.to_string(), Some(e)),
                        Copied::Nothing => ("the server has no such range".to_owned(), None),
                        // Without a length the end of the answer is the end of the file.
                        Copied::All => {
                            total = total.or(Some(done));
                            if total.is_some_and(|total| done > total) {
                                done = 0;
                            }
                            ("the server closed the connection".to_owned(), None)
                        }
                    }
                }
            };
            if total == Some(done) {
                continue;
            }
            // A server that starts over each time makes no headway, however much it sends.
            fruitless = if done > best { 0 } else { fruitless + 1 };
            best = best.max(done);
            if fruitless == ATTEMPTS {
                return Err(Error::Cut {
                    url: url.to_owned(),
                    done: best,
                    total,
                    reason,
                    source,
                });
            }
            self.wait(fruitless);
        }
    }

    /// A short answer as text, waiting out a busy server.
    pub(crate) fn text(&self, url: &str) -> Result<String> {
        let mut attempt = 0;
        let response = loop {
            let response = self.get(url, 0)?;
            attempt += 1;
            if !busy(response.status().as_u16()) {
                break response;
            }
            if attempt == ATTEMPTS {
                return Err(self.refused(url, &response));
            }
            self.wait(attempt);
        };
        let body = response.into_body().read_to_string();
        body.map_err(|e| Error::Network {
            url: url.to_owned(),
            source: Box::new(e),
        })
    }

    fn get(&self, url: &str, from: u64) -> Result<Response<Body>> {
        let (response, _) = self.send(Method::Get { from }, url)?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            status if busy(status) => Ok(response),
            _ => Err(self.refused(url, &response)),
        }
    }

    /// One request with its redirects, and the commit that any of the answers named. A `HEAD` stays on its host:
    /// behind lies the storage, without the headers.
    fn send(&self, method: Method, url: &str) -> Result<(Response<Body>, Option<String>)> {
        let mut at = url.to_owned();
        let mut commit = None;
        for _ in 0..MAX_REDIRECTS {
            let mut request = match method {
                Method::Head => self.agent.head(&at),
                Method::Get { .. } => self.agent.get(&at),
            };
            request = request.header("Accept-Encoding", "identity");
            if let Method::Get { from: from @ 1.. } = method {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token_for(&at) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| Error::Network {
                url: at.clone(),
                source: Box::new(e),
            })?;
            commit = text(response.headers(), "x-repo-commit").or(commit);
            let next = text(response.headers(), "location")
                .filter(|_| response.status().is_redirection())
                .and_then(|location| join(&at, &location));
            match next {
                Some(next) if method != Method::Head || authority(&next) == authority(&at) => {
                    at = next
                }
                _ => return Ok((response, commit)),
            }
        }
        Err(Error::Network {
            url: url.to_owned(),
            source: Box::new(ureq::Error::TooManyRedirects),
        })
    }

    /// The token, for addresses of the endpoint only.
    fn token_for(&self, url: &str) -> Option<&str> {
        let at = authority(url);
        self.config
            .token
            .as_deref()
            .filter(|_| at.is_some() && at == authority(&self.config.endpoint))
    }

    fn refused(&self, url: &str, response: &Response<Body>) -> Error {
        let url = url.to_owned();
        match response.status().as_u16() {
            404 => {
                let what = match text(response.headers(), "x-error-code").as_deref() {
                    Some("RepoNotFound") => {
                        "the repository does not exist, or is private".to_owned()
                    }
                    Some("RevisionNotFound") => "the repository has no such revision".to_owned(),
                    Some("EntryNotFound") => "the revision holds no such file".to_owned(),
                    _ => format!("{url} answers 404"),
                };
                // The caller knows the names.
                let none = String::new;
                Error::NotFound {
                    what,
                    repo: none(),
                    revision: none(),
                    file: none(),
                    endpoint: url,
                }
            }
            // The Hub answers 401 for repositories that do not exist too, lest it tell which private ones do.
            status @ (401 | 403) => Error::Denied {
                token_sent: self.token_for(&url).is_some(),
                url,
                status,
            },
            status => Error::Status {
                url,
                status,
                expected: "200 or 206",
            },
        }
    }

    fn wait(&self, attempt: u32) {
        thread::sleep(self.config.retry_wait * 2u32.pow(attempt.saturating_sub(1).min(ATTEMPTS)));
    }
}

/// Statuses that pass.
fn busy(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Where in the file an answer begins, and the file's size, as far as the answer says.
fn place(url: &str, answer: &Response<Body>, asked: u64) -> Result<(u64, Option<u64>)> {
    let range = text(answer.headers(), "content-range");
    let (span, size) = range
        .as_deref()
        .and_then(|r| r.strip_prefix("bytes ")?.split_once('/'))
        .unzip();
    let size = size.and_then(|s| s.parse::<u64>().ok());
    match answer.status().as_u16() {
        206 => match span.and_then(|s| s.split_once('-')?.0.parse::<u64>().ok()) {
            Some(start) if start == asked => Ok((start, size)),
            _ => Err(Error::Header {
                url: url.to_owned(),
                header: "Content-Range",
                found: range.unwrap_or_else(|| "none".to_owned()),
            }),
        },
        // Nothing after what is here: complete if the size says so, else start over.
        416 if size == Some(asked) => Ok((asked, size)),
        416 => Ok((0, size)),
        // The server knows no ranges and sends everything.
        _ => Ok((
            0,
            text(answer.headers(), "content-length").and_then(|l| l.parse().ok()),
        )),
    }
}

enum Copied {
    All,
    Nothing,
    Broken(std::io::Error),
    Unwritable(std::io::Error),
}

fn copy(
    answer: Response<Body>,
    file: &mut File,
    done: &mut u64,
    mut tell: impl FnMut(u64),
) -> Copied {
    // The body of a 416 is a message, not the file.
    if answer.status().as_u16() == 416 {
        return Copied::Nothing;
    }
    let mut reader = answer.into_body().into_reader();
    let mut buffer = vec![0; 1 << 17];
    tell(*done);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Copied::All,
            Ok(n) => {
                if let Err(e) = file.write_all(&buffer[..n]) {
                    return Copied::Unwritable(e);
                }
                *done += n as u64;
                tell(*done);
            }
            Err(e) => return Copied::Broken(e),
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Scheme, host and port.
fn authority(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((
        uri.scheme_str()?.to_owned(),
        uri.authority()?.as_str().to_ascii_lowercase(),
    ))
}

/// A `Location` seen from an address.
fn join(base: &str, location: &str) -> Option<String> {
    if location.contains("://") {
        return Some(location.to_owned());
    }
    let (scheme, authority) = authority(base)?;
    match location.strip_prefix("//") {
        Some(rest) => Some(format!("{scheme}://{rest}")),
        None => location
            .starts_with('/')
            .then(|| format!("{scheme}://{authority}{location}")),
    }
}
