//! Files from a Hub on loopback: what arrives, what is kept, and what is said when it does not arrive.

// allow-unwrap-in-tests knows #[test] functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod cases;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use candlewick_models::{Error, HubConfig, Layout, Options, Origin, Resize, Weights, hub, resolve};
use server::{COMMIT, ETAG_OF_CONFIG, Hub, Server};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const ID: &str = "org/tiny-vit";

/// A whole safetensors file of about 300 kB.
fn weights() -> Vec<u8> {
    let data: Vec<u8> = (0..300_000u32)
        .map(|i| (i.wrapping_mul(i) / 7) as u8)
        .collect();
    let header = format!(
        r#"{{"w":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#,
        data.len()
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

struct Setup {
    home: TempDir,
    server: Server,
}

impl Setup {
    fn new(hub: Hub) -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            server: Server::start(hub),
        }
    }

    fn hub() -> Hub {
        Hub::new(weights())
    }

    fn options(&self) -> Options<'static> {
        let mut config = HubConfig::at(self.home.path());
        config.endpoint = self.server.url.clone();
        config.retry_wait = Duration::from_millis(1);
        Options::new(config)
    }

    fn offline(&self) -> Options<'static> {
        let mut options = self.options();
        options.hub.offline = true;
        options
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("hub/models--org--tiny-vit")
    }

    fn blob(&self) -> PathBuf {
        self.repo().join("blobs").join(sha(&weights()))
    }
}

fn path(weights: &Weights) -> &Path {
    match weights {
        Weights::Path(path) => path,
        Weights::Embedded(_) => panic!("embedded"),
    }
}

#[test]
fn a_repository_is_fetched_once_into_the_ordinary_cache() {
    let setup = Setup::new(Setup::hub());
    let seen = Mutex::new(Vec::new());
    let progress = |file: &str, done: u64, total: Option<u64>| {
        seen.lock().unwrap().push((file.to_owned(), done, total));
    };
    let mut options = setup.options();
    options.progress = Some(&progress);
    let located = resolve(ID, &options).unwrap();

    assert_eq!(located.sha256, sha(&weights()));
    assert_eq!(
        (located.card.layout, located.card.heads, located.card.eps),
        (Layout::HfVit, Some(3), 1e-12)
    );
    assert_eq!(
        located.card.preprocess.unwrap().resize,
        Resize::Exact([224, 224])
    );
    let origin = Origin::Hub {
        repo: ID.into(),
        commit: COMMIT.into(),
        file: "model.safetensors".into(),
    };
    assert_eq!(located.origin, origin);

    let snapshot = setup.repo().join("snapshots").join(COMMIT);
    assert_eq!(path(&located.weights), snapshot.join("model.safetensors"));
    assert_eq!(fs::read(path(&located.weights)).unwrap(), weights());
    assert_eq!(
        fs::read_to_string(setup.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    let link = fs::read_link(snapshot.join("config.json")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(ETAG_OF_CONFIG));
    let blobs: Vec<_> = fs::read_dir(setup.repo().join("blobs")).unwrap().collect();
    assert_eq!(blobs.len(), 3, "nothing unfinished is left: {blobs:?}");

    let size = weights().len() as u64;
    assert_eq!(
        seen.lock().unwrap().last().unwrap(),
        &("model.safetensors".to_owned(), size, Some(size))
    );

    let asked = setup.server.requests().len();
    resolve(ID, &setup.options()).unwrap();
    resolve(ID, &setup.offline()).unwrap();
    assert_eq!(
        setup.server.requests().len(),
        asked,
        "a filled cache asks nobody"
    );
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let setup = Setup::new(Hub {
        cut_after: Some(100_000),
        ..Setup::hub()
    });
    let located = resolve(ID, &setup.options()).unwrap();
    assert_eq!(fs::read(path(&located.weights)).unwrap(), weights());
    let ranges = setup.server.ranges("model.safetensors");
    assert_eq!(ranges, [None, Some(100_000), Some(200_000), Some(300_000)]);
}

#[test]
fn a_later_run_goes_on_from_what_an_earlier_one_left() {
    let setup = Setup::new(Setup::hub());
    fs::create_dir_all(setup.repo().join("blobs")).unwrap();
    fs::write(
        setup.blob().with_extension("incomplete"),
        &weights()[..123_456],
    )
    .unwrap();
    resolve(ID, &setup.options()).unwrap();
    assert_eq!(setup.server.ranges("model.safetensors"), [Some(123_456)]);
    assert_eq!(fs::read(setup.blob()).unwrap(), weights());

    // What is longer than the file cannot be the beginning of it.
    let setup = Setup::new(Setup::hub());
    fs::create_dir_all(setup.repo().join("blobs")).unwrap();
    fs::write(setup.blob().with_extension("incomplete"), vec![7; 400_000]).unwrap();
    resolve(ID, &setup.options()).unwrap();
    assert_eq!(setup.server.ranges("model.safetensors"), [None]);
    assert_eq!(fs::read(setup.blob()).unwrap(), weights());
}

#[test]
fn a_server_without_ranges_is_started_over_and_given_up_on_when_it_keeps_breaking() {
    let setup = Setup::new(Hub {
        ranges: false,
        ..Setup::hub()
    });
    fs::create_dir_all(setup.repo().join("blobs")).unwrap();
    fs::write(
        setup.blob().with_extension("incomplete"),
        &weights()[..1000],
    )
    .unwrap();
    resolve(ID, &setup.options()).unwrap();
    assert_eq!(fs::read(setup.blob()).unwrap(), weights());

    let setup = Setup::new(Hub {
        ranges: false,
        cut_after: Some(50_000),
        ..Setup::hub()
    });
    let error = resolve(ID, &setup.options()).unwrap_err();
    assert!(
        matches!(error, Error::Hub(hub::Error::Cut { done: 50_000, .. })),
        "{error}"
    );
    assert!(error.to_string().contains("run again"), "{error}");
}

#[test]
fn a_damaged_half_is_thrown_away_and_the_next_run_succeeds() {
    let setup = Setup::new(Setup::hub());
    fs::create_dir_all(setup.repo().join("blobs")).unwrap();
    fs::write(setup.blob().with_extension("incomplete"), vec![0; 5000]).unwrap();
    let error = resolve(ID, &setup.options()).unwrap_err();
    assert!(
        matches!(error, Error::Hub(hub::Error::HashMismatch { .. })),
        "{error}"
    );
    assert!(error.to_string().contains(&sha(&weights())), "{error}");
    assert!(!setup.blob().exists());
    resolve(ID, &setup.options()).unwrap();
}

#[test]
fn what_was_fetched_first_is_what_is_accepted_later() {
    let setup = Setup::new(Setup::hub());
    resolve(ID, &setup.options()).unwrap();
    let record = fs::read_to_string(setup.home.path().join("candlewick/checksums.toml")).unwrap();
    assert!(
        record.contains(&format!("[\"{ID}@main/model.safetensors\"]")),
        "{record}"
    );
    assert!(
        record.contains(COMMIT) && record.contains(&sha(&weights())),
        "{record}"
    );

    let mut changed = weights();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(setup.blob(), &changed).unwrap();
    let error = resolve(ID, &setup.options()).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Hub(hub::Error::HashMismatch { .. })),
        "{text}"
    );
    assert!(
        text.contains(&sha(&weights())) && text.contains(&sha(&changed)),
        "{text}"
    );
    assert!(text.contains("checksums.toml"), "{text}");

    // As the message advises.
    let Error::Hub(hub::Error::HashMismatch { path, .. }) = error else {
        unreachable!()
    };
    fs::remove_file(path).unwrap();
    assert_eq!(
        resolve(ID, &setup.options()).unwrap().sha256,
        sha(&weights())
    );
}

#[test]
fn a_branch_that_moves_stays_at_the_commit_of_first_use() {
    let setup = Setup::new(Setup::hub());
    resolve(ID, &setup.options()).unwrap();
    fs::remove_dir_all(setup.home.path().join("hub")).unwrap();
    setup.server.change(|hub| {
        let old = hub.weights.clone();
        *hub = Hub {
            commit: "f".repeat(40),
            weights: old,
            ..Setup::hub()
        };
    });
    let located = resolve(ID, &setup.options()).unwrap();
    assert!(
        located.origin.to_string().contains(COMMIT),
        "{}",
        located.origin
    );

    // The same commit with other bytes is refused before it reaches its place.
    fs::remove_dir_all(setup.home.path().join("hub")).unwrap();
    setup
        .server
        .change(|hub| *hub.weights.last_mut().unwrap() ^= 1);
    let error = resolve(ID, &setup.options()).unwrap_err();
    assert!(
        matches!(error, Error::Hub(hub::Error::HashMismatch { .. })),
        "{error}"
    );
}

#[test]
fn refusals_say_which_key_is_needed() {
    let setup = Setup::new(Hub {
        token: Some("hf_right".into()),
        ..Setup::hub()
    });
    let error = resolve(ID, &setup.options()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Hub(hub::Error::Denied {
                status: 401,
                token_sent: false,
                ..
            })
        ),
        "{error}"
    );
    assert!(error.to_string().contains("set HF_TOKEN"), "{error}");

    let mut options = setup.options();
    options.hub.token = Some("hf_wrong".into());
    let error = resolve(ID, &options).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Hub(hub::Error::Denied {
                token_sent: true,
                ..
            })
        ),
        "{error}"
    );
    assert!(!error.to_string().contains("hf_wrong"), "{error}");

    options.hub.token = Some("hf_right".into());
    resolve(ID, &options).unwrap();
}

#[test]
fn the_token_stays_with_the_hub_when_it_redirects_to_its_storage() {
    let storage = Server::start(Setup::hub());
    let setup = Setup::new(Hub {
        token: Some("hf_right".into()),
        storage: Some(storage.url.clone()),
        ..Setup::hub()
    });
    let mut options = setup.options();
    options.hub.token = Some("hf_right".into());
    let located = resolve(ID, &options).unwrap();
    assert_eq!(fs::read(path(&located.weights)).unwrap(), weights());
    let asked = storage.requests();
    assert!(
        !asked.is_empty() && asked.iter().all(|r| r.header("authorization").is_none()),
        "{asked:?}"
    );
    assert!(
        setup
            .server
            .requests()
            .iter()
            .all(|r| r.header("authorization").is_some())
    );
}

#[test]
fn what_is_missing_is_named() {
    let setup = Setup::new(Setup::hub());
    let mut file = setup.options();
    file.file = Some("other.safetensors".into());
    let mut revision = setup.options();
    revision.revision = Some("v9".into());
    for (id, options, missing) in [
        ("org/other", setup.options(), "repository does not exist"),
        (ID, revision, "no such revision"),
        (ID, file, "holds no such file"),
    ] {
        let error = resolve(id, &options).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Hub(hub::Error::NotFound { .. })),
            "{text}"
        );
        let asked = options
            .revision
            .as_deref()
            .unwrap_or(if missing.contains("file") {
                COMMIT
            } else {
                "main"
            });
        assert!(
            text.contains(missing) && text.contains(id) && text.contains(asked),
            "{text}"
        );
    }
    let mut pickle = setup.options();
    pickle.file = Some("pytorch_model.bin".into());
    assert!(matches!(
        resolve(ID, &pickle).unwrap_err(),
        Error::Pickle { .. }
    ));
}

#[test]
fn without_network_a_warm_cache_works_and_a_cold_one_says_what_to_do() {
    let setup = Setup::new(Setup::hub());
    let gone = "http://127.0.0.1:1".to_owned();
    let mut options = setup.options();
    options.hub.endpoint = gone;
    let error = resolve(ID, &options).unwrap_err();
    assert!(
        matches!(error, Error::Hub(hub::Error::Network { .. })),
        "{error}"
    );
    assert!(
        error.to_string().contains("HF_HUB_OFFLINE=1") && error.to_string().contains("path"),
        "{error}"
    );

    let error = resolve(ID, &setup.offline()).unwrap_err();
    assert!(
        matches!(error, Error::Hub(hub::Error::Offline { .. })),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("config.json of org/tiny-vit@main"),
        "{error}"
    );
    assert!(setup.server.requests().is_empty(), "offline means offline");

    resolve(ID, &setup.options()).unwrap();
    // A cache that Python filled has references but no record of ours.
    fs::remove_dir_all(setup.home.path().join("candlewick")).unwrap();
    assert_eq!(resolve(ID, &options).unwrap().sha256, sha(&weights()));
    resolve(ID, &setup.offline()).unwrap();
}

#[test]
fn several_at_once_do_not_disturb_each_other() {
    let setup = Setup::new(Hub {
        cut_after: Some(70_000),
        ..Setup::hub()
    });
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| resolve(ID, &setup.options()).unwrap().sha256))
            .collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), sha(&weights()));
        }
    });
    let first = setup
        .server
        .ranges("model.safetensors")
        .iter()
        .filter(|r| r.is_none())
        .count();
    assert_eq!(first, 1, "one downloads, the others wait");
}

#[test]
fn a_busy_server_is_asked_again_and_a_broken_one_is_named() {
    let setup = Setup::new(Hub {
        busy: 2,
        ..Setup::hub()
    });
    resolve(ID, &setup.options()).unwrap();
    let setup = Setup::new(Hub {
        busy: usize::MAX,
        ..Setup::hub()
    });
    let error = resolve(ID, &setup.options()).unwrap_err();
    assert!(
        matches!(error, Error::Hub(hub::Error::Status { status: 503, .. })),
        "{error}"
    );
}
