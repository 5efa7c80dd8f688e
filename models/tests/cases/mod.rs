//! Cards, plain addresses and paths.

use std::fs;

use candlewick_models::{Error, Origin, find, resolve, resolve_card};

use crate::server::{self, Hub};
use crate::{ID, Setup, path, sha, weights};

#[test]
fn a_card_pins_its_revision_and_its_hash() {
    // The server has other bytes than DINOv2's under DINOv2's name.
    let setup = Setup::new(Hub {
        id: "facebook/dinov2-small".into(),
        any_revision: true,
        ..Setup::hub()
    });
    let error = resolve("dinov2-small", &setup.options()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Hub(candlewick_hub::Error::HashMismatch { .. })
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("the card dinov2-small"),
        "{error}"
    );
    let card = find("dinov2-small").unwrap();
    let asked = setup.server.requests();
    assert!(
        asked.iter().all(|r| r.path.contains(card.revision())),
        "{asked:?}"
    );

    // Another revision is another file, of which the card says no hash.
    let located = resolve("dinov2-small@main", &setup.options()).unwrap();
    assert_eq!(located.card.revision(), "main");
    assert_eq!(located.card.image_size, Some(518));
}

#[test]
fn a_plain_address_is_fetched_resumed_and_pinned_too() {
    let setup = Setup::new(Hub {
        cut_after: Some(200_000),
        ..Setup::hub()
    });
    let url = format!("{}/{ID}/resolve/main/model.safetensors", setup.server.url);
    let mut card = find("vit_tiny_patch16_224.augreg_in21k").unwrap().clone();
    card.name = "from-a-url".into();
    (card.hub, card.revision, card.url) = (None, None, Some(url.clone()));

    let error = resolve_card(&card, &setup.offline()).unwrap_err();
    assert!(
        matches!(error, Error::Hub(candlewick_hub::Error::Offline { .. }))
            && error.to_string().contains(&url),
        "{error}"
    );
    let located = resolve_card(&card, &setup.options()).unwrap();
    assert_eq!(located.origin, Origin::Url(url));
    let file = setup
        .home
        .path()
        .join("candlewick/files/from-a-url/model.safetensors");
    assert_eq!(
        (path(&located.weights), fs::read(&file).unwrap()),
        (file.as_path(), weights())
    );
    assert_eq!(
        setup.server.ranges("model.safetensors"),
        [None, Some(200_000)]
    );
    resolve_card(&card, &setup.offline()).unwrap();

    // The publisher replaces the file: what was recorded at first use still holds.
    fs::remove_file(&file).unwrap();
    setup
        .server
        .change(|hub| *hub.weights.last_mut().unwrap() ^= 1);
    let error = resolve_card(&card, &setup.options()).unwrap_err();
    assert!(
        error.to_string().contains("checksums.toml") && !file.exists(),
        "{error}"
    );

    card.url = Some(format!("{}/nowhere", setup.server.url));
    let error = resolve_card(&card, &setup.options()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Hub(candlewick_hub::Error::Status { status: 404, .. })
        ) && error.to_string().contains("/nowhere"),
        "{error}"
    );
}

#[test]
fn paths_work_where_ids_do() {
    let setup = Setup::new(Setup::hub());
    let folder = setup.home.path().join("my-model");
    fs::create_dir(&folder).unwrap();
    let name = folder.to_str().unwrap().to_owned();
    let offline = setup.offline();

    let error = resolve(&name, &offline).unwrap_err().to_string();
    assert!(error.contains("found nothing"), "{error}");
    fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
    assert!(matches!(
        resolve(&name, &offline).unwrap_err(),
        Error::Pickle { .. }
    ));
    fs::write(folder.join("only.safetensors"), weights()).unwrap();
    let error = resolve(&name, &offline).unwrap_err();
    assert!(matches!(error, Error::NoConfig { .. }), "{error}");

    let mut with_card = setup.offline();
    with_card.card = Some("vit_base_patch16_224.augreg_in21k".into());
    let located = resolve(&name, &with_card).unwrap();
    assert_eq!((located.card.heads, located.card.hub), (Some(12), None));
    with_card.card = Some("vit-b16-imagenet21k-npz".into());
    assert!(matches!(
        resolve(&name, &with_card).unwrap_err(),
        Error::Format { .. }
    ));

    fs::write(folder.join("config.json"), server::CONFIG).unwrap();
    let located = resolve(&name, &offline).unwrap();
    assert_eq!(
        (located.card.heads, located.card.preprocess),
        (Some(3), None)
    );
    assert_eq!(located.sha256, sha(&weights()));
    let file = folder.join("only.safetensors");
    assert_eq!(
        resolve(file.to_str().unwrap(), &offline).unwrap().origin,
        Origin::Path(file)
    );

    let error = resolve("dinov2-smal", &offline).unwrap_err().to_string();
    assert!(
        error.contains("'dinov2-small'") && error.contains("organisation/name"),
        "{error}"
    );
    let error = resolve("my/model.safetensors", &offline).unwrap_err();
    assert!(
        matches!(error, Error::Unknown { .. }),
        "a missing file is no Hub id: {error}"
    );
}
