//! Backbones that are not there, or not what they should be.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::lab::Lab;

fn shipped(file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/vit-micro");
    std::fs::read(folder.join(file)).unwrap()
}

/// A recipe for a backbone by path: no `name`, no `depth`.
fn recipe(lab: &Lab, backbone: &str) {
    let text = lab.text("linear.toml");
    let (head, tail) = text.split_once("[backbone]").unwrap();
    let (_, tail) = tail.split_once("[method]").unwrap();
    let text = format!("{head}[backbone]\n{backbone}\n[method]{tail}");
    lab.write("own.toml", text);
}

/// The shipped weights with one tensor turned on its side.
fn turned(tensor: &str) -> Vec<u8> {
    let bytes = shipped("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views: BTreeMap<String, TensorView<'_>> = file
        .iter()
        .map(|(name, view)| {
            let mut shape = view.shape().to_vec();
            if name == tensor {
                shape.reverse();
            }
            let view = TensorView::new(view.dtype(), shape, view.data()).unwrap();
            (name.to_owned(), view)
        })
        .collect();
    assert!(views.contains_key(tensor));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn weights_in_a_folder_are_those_of_the_card() {
    let lab = Lab::new();
    lab.write("own/model.safetensors", shipped("model.safetensors"));
    lab.write("own/config.json", shipped("config.json"));
    recipe(&lab, "path = \"own\"\ndepth = 2");
    lab.run("own", "own-run", "");
    lab.run("linear", "card-run", "");
    let hash =
        |run: &str| lab.json(&format!("{run}/report.json"))["fingerprint"]["weights"].clone();
    assert_eq!(hash("own-run"), hash("card-run"));
    let file = "params.safetensors";
    assert!(lab.read(&format!("own-run/{file}")) == lab.read(&format!("card-run/{file}")));
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let lab = Lab::new();
    lab.write("own/model.safetensors", turned("blocks.3.mlp.fc1.weight"));
    lab.write("own/config.json", shipped("config.json"));
    recipe(&lab, "path = \"own\"");
    let parts = [
        "own/model.safetensors",
        "1 tensor",
        "`blocks.3.mlp.fc1.weight` has shape [128, 512], expected [512, 128]",
    ];
    lab.refused("own.toml", &parts);
}

#[test]
fn half_a_weight_file() {
    let lab = Lab::new();
    let bytes = shipped("model.safetensors");
    lab.write("own/model.safetensors", &bytes[..bytes.len() / 2]);
    lab.write("own/config.json", shipped("config.json"));
    recipe(&lab, "path = \"own\"");
    let parts = [
        "own/model.safetensors",
        "expected a whole safetensors file",
        "found",
    ];
    lab.refused("own.toml", &parts);
}

#[test]
fn a_folder_without_weights() {
    let lab = Lab::new();
    lab.write("own/README.md", "to come");
    recipe(&lab, "path = \"own\"");
    let parts = ["own", "holds no weights", "model.safetensors", "README.md"];
    lab.refused("own.toml", &parts);
}

#[test]
fn weights_of_which_nothing_else_is_known() {
    let lab = Lab::new();
    lab.write("own/model.safetensors", shipped("model.safetensors"));
    recipe(&lab, "path = \"own\"");
    let parts = ["own/model.safetensors", "no config.json", "name the card"];
    lab.refused("own.toml", &parts);
    // The card says it.
    recipe(&lab, "path = \"own\"\ncard = \"vit-micro\"\ndepth = 2");
    let said = lab.say("run own.toml --dry-run");
    assert_eq!(said.code, Some(0), "{}", said.err);
    recipe(&lab, "path = \"own\"\ncard = \"vit-mirco\"");
    lab.refused("own.toml", &["'vit-mirco'", "did you mean 'vit-micro'"]);
}

#[test]
fn a_path_that_is_not_there() {
    let lab = Lab::new();
    recipe(&lab, "path = \"weights/own.safetensors\"");
    lab.refused(
        "own.toml",
        &["weights/own.safetensors", "no such file or folder"],
    );
}

#[test]
fn a_pickle_is_not_opened() {
    let lab = Lab::new();
    // By its name, and by its content under another name.
    lab.write("own/pytorch_model.bin", b"\x80\x02}q\x00.");
    recipe(&lab, "path = \"own\"");
    let parts = ["own/pytorch_model.bin", "Python pickle", "save_file"];
    lab.refused("own.toml", &parts);
    lab.write("own/model.safetensors", b"\x80\x02}q\x00.");
    let parts = ["own/model.safetensors", "Python pickle", "save_file"];
    lab.refused("own.toml", &parts);
}

#[test]
fn an_unknown_name() {
    let lab = Lab::new();
    let set = "linear.toml --set backbone.name=vit-mirco";
    lab.refused(set, &["'vit-mirco'", "did you mean 'vit-micro'"]);
    let set = "linear.toml --dry-run --set backbone.name=vit-mirco";
    lab.refused(set, &["'vit-mirco'", "did you mean 'vit-micro'"]);
}

#[test]
fn offline_without_the_file() {
    let lab = Lab::new();
    let card = "vit_tiny_patch16_224.augreg_in21k";
    for name in [card, "nobody/no-such-vit"] {
        let set = format!("linear.toml --set backbone.name={name}");
        let id = if name == card { "timm/vit_tiny" } else { name };
        let cache = lab.path("hf").display().to_string();
        let parts = [
            id,
            "not in the cache",
            &cache,
            "HF_HUB_OFFLINE",
            "give a path to it",
        ];
        lab.refused(&set, &parts);
    }
    assert_eq!(lab.names("hf").len(), 0, "something was put into the cache");
}

#[test]
fn a_hub_that_does_not_answer() {
    let lab = Lab::new();
    let output = lab
        .command()
        .env_remove("HF_HUB_OFFLINE")
        .args(["backbones", "pull", "vit_tiny_patch16_224.augreg_in21k"])
        .output()
        .unwrap();
    let said = crate::lab::Said::of(output);
    said.failed(&[
        "http://127.0.0.1:9/timm/vit_tiny",
        "cannot be reached",
        "HF_ENDPOINT",
    ]);
}

#[test]
fn a_crop_that_is_not_a_multiple_of_the_patch() {
    let lab = Lab::new();
    let set = "linear.toml --set preprocess.crop=60";
    lab.refused(
        set,
        &[
            "preprocess.crop: 60 px",
            "patch size 8",
            "set it to 56 or 64",
        ],
    );
    let set = "linear.toml --set preprocess.crop=0";
    lab.refused(set, &["`preprocess.crop`", "found 0"]);
}
