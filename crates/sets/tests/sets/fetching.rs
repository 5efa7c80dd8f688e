//! Fetching from a Hub and from plain addresses on loopback, and what `check` says of what arrived.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use candlewick_hub::HubConfig;
use candlewick_sets::{Card, Fetched, check, fetch, open_card};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::server::{COMMIT, Files, Server};
use crate::{fixture, pack, pictures};

struct Setup {
    dir: TempDir,
    server: Server,
    card: Card,
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

impl Setup {
    /// A Hub with the shards, and the same images as a tar beside it.
    fn new() -> Self {
        let mut repo = BTreeMap::from([("README.md".to_owned(), b"# x".to_vec())]);
        for entry in fs::read_dir(fixture("hub/data")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            repo.insert(format!("data/{name}"), fs::read(&path).unwrap());
        }
        let tar = pack::tar(&pictures());
        let server = Server::start(Files {
            repos: BTreeMap::from([("org/pictures".to_owned(), repo)]),
            plain: BTreeMap::from([("/pictures.tar".to_owned(), tar.clone())]),
            ..Files::default()
        });
        let text = format!(
            r#"
            name = "pictures"
            about = "pictures"
            classes = 4
            images = [16, 8]
            licence = "various"
            paper = "none"
            page = "none"
            divided = "as it comes"
            class_names = "in the table"
            [[source]]
            name = "hub"
            about = "shards"
            hub = {{ repo = "org/pictures", revision = "main", files = ["data/*.parquet"] }}
            [[source]]
            name = "tar"
            about = "a tar"
            [[source.file]]
            name = "pictures.tar"
            url = "{}/pictures.tar"
            size = {}
            sha256 = "{}"
            [[source]]
            name = "drive"
            about = "a folder"
            by_hand = "download pictures.zip from the authors' drive"
            "#,
            server.url,
            tar.len(),
            sha(&tar)
        );
        Self {
            dir: TempDir::new().unwrap(),
            server,
            card: toml::from_str(&text).unwrap(),
        }
    }

    fn hub(&self) -> HubConfig {
        let mut hub = HubConfig::at(self.dir.path().join("home"));
        hub.endpoint.clone_from(&self.server.url);
        hub.retry_wait = Duration::from_millis(1);
        hub
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data/pictures")
    }

    fn fetch(&self, source: Option<&str>) -> candlewick_sets::Result<Fetched> {
        fetch(&self.card, source, &self.data(), &self.hub(), None)
    }
}

fn problems(card: &Card, folder: &Path) -> String {
    check(card, folder, None).unwrap().problems.join("\n")
}

#[test]
fn shards_of_a_repository_arrive_and_are_pinned() {
    let setup = Setup::new();
    let fetched = setup.fetch(None).unwrap();
    assert_eq!(fetched.source, "hub");
    let names: Vec<&str> = fetched
        .files
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet"
        ]
    );
    let parts = open_card(&setup.card, &setup.data(), None, true).unwrap();
    assert_eq!((parts.train.len(), parts.test.len()), (16, 8));
    let record = fs::read_to_string(setup.data().join("checksums.toml")).unwrap();
    assert!(
        record.contains(COMMIT) && record.contains("org/pictures@main/data/test"),
        "{record}"
    );
    let findings = check(&setup.card, &setup.data(), None).unwrap();
    assert!(findings.problems.is_empty(), "{findings:?}");
    assert!(
        findings
            .fine
            .iter()
            .any(|l| l.contains("16 images to train on and 8")),
        "{findings:?}"
    );

    // Nothing is asked again, and without network everything is as it was.
    let before = setup.server.requests().len();
    assert_eq!(setup.fetch(None).unwrap(), fetched);
    assert_eq!(setup.server.requests().len(), before);
    let mut offline = setup.hub();
    offline.offline = true;
    assert_eq!(
        fetch(&setup.card, None, &setup.data(), &offline, None).unwrap(),
        fetched
    );

    // A shard that is damaged later is told by its recorded digest.
    let shard = setup.data().join(names[0]);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[1000] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    let said = setup.fetch(None).unwrap_err().to_string();
    assert!(
        said.contains("SHA-256 is") && said.contains("checksums.toml"),
        "{said}"
    );
    assert!(problems(&setup.card, &setup.data()).contains("SHA-256 is"));

    // A shard that is gone is said to be missing, and fetched again.
    fs::remove_file(&shard).unwrap();
    let said = open_card(&setup.card, &setup.data(), None, true)
        .err()
        .unwrap()
        .to_string();
    assert!(
        said.contains("data/test-00000-of-00001.parquet is missing"),
        "{said}"
    );
    assert!(said.contains("candlewick data fetch pictures"), "{said}");
    setup.fetch(None).unwrap();
    open_card(&setup.card, &setup.data(), None, true).unwrap();
}

#[test]
fn the_repository_and_the_tar_are_the_same_set() {
    let setup = Setup::new();
    setup.fetch(Some("hub")).unwrap();
    let shards = open_card(&setup.card, &setup.data(), None, true).unwrap();
    let other = setup.dir.path().join("other");
    fetch(&setup.card, Some("tar"), &other, &setup.hub(), None).unwrap();
    let tar = open_card(&setup.card, &other, None, true).unwrap();
    assert_eq!(shards.train.fingerprint(), tar.train.fingerprint());
    assert_eq!(shards.test.fingerprint(), tar.test.fingerprint());
    let findings = check(&setup.card, &other, None).unwrap();
    assert!(findings.problems.is_empty(), "{findings:?}");
    assert!(
        findings
            .fine
            .iter()
            .any(|l| l.contains("SHA-256 as published")),
        "{findings:?}"
    );
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let setup = Setup::new();
    setup.server.change(|files| files.cut_after = Some(30_000));
    setup.fetch(Some("tar")).unwrap();
    let gets: Vec<String> = setup
        .server
        .requests()
        .into_iter()
        .filter(|line| line.starts_with("GET /pictures.tar"))
        .collect();
    assert!(gets.len() > 2 && gets[1].ends_with(" 30000"), "{gets:?}");
    let left: Vec<_> = fs::read_dir(setup.data())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("incomplete"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn other_bytes_than_stated_are_not_kept() {
    let setup = Setup::new();
    setup.server.change(|files| {
        let tar = files.plain.get_mut("/pictures.tar").unwrap();
        let last = tar.len() / 2;
        tar[last] ^= 1;
    });
    let said = setup.fetch(Some("tar")).unwrap_err().to_string();
    assert!(said.contains("the card pictures says"), "{said}");
    assert!(!setup.data().join("pictures.tar").exists());

    setup.server.change(|files| files.lies = true);
    let said = setup.fetch(Some("hub")).unwrap_err().to_string();
    assert!(said.contains("the Hub's ETag says"), "{said}");
    assert!(
        !setup
            .data()
            .join("data/test-00000-of-00001.parquet")
            .exists()
    );

    // A digest in MD5 is held as well; that of other bytes refuses.
    let mut card = setup.card.clone();
    card.sources[1].files[0].sha256 = None;
    card.sources[1].files[0].md5 = Some("0".repeat(32));
    let said = fetch(&card, Some("tar"), &setup.data(), &setup.hub(), None).unwrap_err();
    assert!(said.to_string().contains("MD5 is"), "{said}");

    // Put there by hand, it is held against the same digests.
    pack::write(&setup.data().join("pictures.tar"), b"something else");
    let said = setup.fetch(Some("tar")).unwrap_err().to_string();
    assert!(said.contains("the card pictures says"), "{said}");
}

#[test]
fn what_a_program_cannot_fetch_is_said_and_taken_where_it_is_put() {
    let setup = Setup::new();
    let said = setup.fetch(Some("drive")).unwrap_err().to_string();
    let folder = setup.data().display().to_string();
    for part in [
        "cannot be fetched by a program",
        "download pictures.zip",
        &folder,
        "data check",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let said = setup.fetch(Some("nowhere")).unwrap_err().to_string();
    assert!(
        said.contains("no source 'nowhere'; it has hub, tar, drive"),
        "{said}"
    );

    let said = open_card(&setup.card, &setup.data(), None, true)
        .err()
        .unwrap()
        .to_string();
    assert!(
        said.contains("is not there; run `candlewick data fetch pictures`"),
        "{said}"
    );
    assert!(problems(&setup.card, &setup.data()).contains("download pictures.zip"));

    // As it is, and unpacked.
    pack::write(&setup.data().join("any-name.zip"), &pack::zip(&pictures()));
    let zip = open_card(&setup.card, &setup.data(), None, true).unwrap();
    fs::remove_file(setup.data().join("any-name.zip")).unwrap();
    pack::folder(&setup.data(), &pictures());
    let folder = open_card(&setup.card, &setup.data(), None, true).unwrap();
    assert_eq!(zip.train.fingerprint(), folder.train.fingerprint());
    assert!(problems(&setup.card, &setup.data()).is_empty());

    // One image less.
    let (name, _) = pictures().remove(20);
    fs::remove_file(setup.data().join(&name)).unwrap();
    let said = problems(&setup.card, &setup.data());
    assert!(
        said.contains("pictures has 8 test images, found 7"),
        "{said}"
    );
    let said = open_card(&setup.card, &setup.data(), None, true)
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("8 test images, found 7"), "{said}");
    open_card(&setup.card, &setup.data(), None, false).unwrap();

    // The same bytes elsewhere.
    let picture = pictures().remove(0);
    pack::write(&setup.data().join(&name), &picture.1);
    let findings = check(&setup.card, &setup.data(), None).unwrap();
    assert!(findings.problems.is_empty(), "{findings:?}");
    assert!(
        findings.notes.iter().any(|l| l.contains("byte for byte")),
        "{findings:?}"
    );
}

#[test]
fn refusals_of_the_hub_name_the_repository() {
    let mut setup = Setup::new();
    setup
        .server
        .change(|files| files.token = Some("hf_x".into()));
    let said = setup.fetch(None).unwrap_err().to_string();
    assert!(said.contains("HF_TOKEN"), "{said}");
    let mut hub = setup.hub();
    hub.token = Some("hf_x".into());
    fetch(&setup.card, None, &setup.data(), &hub, None).unwrap();

    setup.server.change(|files| files.token = None);
    let fresh = setup.dir.path().join("fresh");
    let place = setup.card.sources[0].hub.as_mut().unwrap();
    place.files = vec!["no/*.parquet".into()];
    let said = fetch(&setup.card, None, &fresh, &setup.hub(), None)
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("org/pictures@main holds no files like no/*.parquet"),
        "{said}"
    );
    let place = setup.card.sources[0].hub.as_mut().unwrap();
    place.repo = "org/else".into();
    let said = fetch(&setup.card, None, &fresh, &setup.hub(), None)
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("does not exist") && said.contains("org/else"),
        "{said}"
    );
    let mut offline = setup.hub();
    offline.offline = true;
    let said = fetch(&setup.card, None, &fresh, &offline, None)
        .unwrap_err()
        .to_string();
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
}
