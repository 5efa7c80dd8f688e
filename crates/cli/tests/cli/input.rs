//! Recipes and data that are wrong: what is said about them.

use std::fs;

use crate::lab::Lab;

#[test]
fn a_missing_recipe() {
    let lab = Lab::new();
    lab.refused(
        "none.toml",
        &["none.toml", "No such file", "examples/recipes"],
    );
    assert!(!lab.path("refused").exists());
}

#[test]
fn a_recipe_that_is_not_toml() {
    let lab = Lab::new();
    lab.write("bad.toml", "seed = 1\n[data\n");
    lab.refused(
        "bad.toml",
        &["bad.toml", "TOML parse error at line 2", "[data"],
    );
}

#[test]
fn an_unknown_key() {
    let lab = Lab::new();
    let text = lab.text("linear.toml").replace("epochs", "epoch");
    lab.write("bad.toml", text);
    let parts = [
        "bad.toml",
        "unknown key `train.epoch`",
        "did you mean `epochs`",
    ];
    lab.refused("bad.toml", &parts);
}

#[test]
fn a_value_of_the_wrong_kind() {
    let lab = Lab::new();
    let set = "linear.toml --set train.batch=many";
    let said = lab.refused(set, &["linear.toml", "`train.batch`", "\"many\"", "usize"]);
    assert_eq!(said.err.matches("train.batch").count(), 1, "{}", said.err);
    let set = "l2p.toml --set method.top_k=many";
    let said = lab.refused(set, &["l2p.toml", "`method.top_k`", "\"many\"", "usize"]);
    assert_eq!(said.err.matches("top_k").count(), 1, "{}", said.err);
}

#[test]
fn a_key_that_is_missing() {
    let lab = Lab::new();
    let text = lab.text("linear.toml").replace("lr = 0.01", "");
    lab.write("bad.toml", text);
    lab.refused("bad.toml", &["bad.toml", "train", "missing", "`lr`"]);
}

#[test]
fn an_unknown_method() {
    let lab = Lab::new();
    let parts = [
        "linear.toml",
        "no method `lienar`",
        "did you mean `linear`",
        "`aper`, `coda`, `cofima`, `continual-clip`, `coop`, `dap`, `dualprompt`, `ease`, `esn`, `fecam`, `finetune`, `joint`, `joint-linear`, `joint-ridge`, `knn`, `l2p`, `lae`, `linear`, `mos`, `nearest-mean`, `promptfusion`, `proof`, `random-prompt`, `ranpac`, `replay`, `simplecil`, `slca`, `vpt`, `zscl`",
    ];
    lab.refused("linear.toml --set method.name=lienar", &parts);
}

#[test]
fn a_missing_data_folder() {
    let lab = Lab::new();
    let parts = [
        "pictures",
        "no such folder",
        "the root of the data set",
        "the working directory holds",
        "images/",
    ];
    lab.refused("linear.toml --set data.path=pictures", &parts);
    fs::rename(lab.path("images/test"), lab.path("images/held")).unwrap();
    let parts = [
        "images/test",
        "no such folder",
        "`test` or `val`",
        "held/",
        "train/",
    ];
    lab.refused("linear.toml", &parts);
}

#[test]
fn a_class_folder_without_images() {
    let lab = Lab::new();
    lab.write("images/train/zebra/notes.txt", "none yet");
    let parts = [
        "images/train/zebra",
        "without images",
        "add images",
        "remove",
    ];
    lab.refused("linear.toml", &parts);
}

#[test]
fn a_class_of_one_part_alone() {
    let lab = Lab::new();
    fs::remove_dir_all(lab.path("images/train/goat")).unwrap();
    let parts = [
        "`goat`",
        "is in `test` but not in `train`",
        "remove it from `test`",
    ];
    lab.refused("linear.toml", &parts);
}

#[test]
fn an_image_that_cannot_be_decoded() {
    let lab = Lab::new();
    // One is cut off, the other was never an image.
    let cut = first(&lab, "images/train/cat");
    let bytes = lab.read(&cut);
    lab.write(&cut, &bytes[..bytes.len() / 2]);
    let page = first(&lab, "images/test/star");
    lab.write(&page, "<html>not found</html>");
    for method in crate::lab::FEW {
        let said = lab.refused(&format!("{method}.toml --overwrite"), &["task 1 of 3"]);
        let damaged = said.err.contains(&cut) && said.err.contains("cannot be decoded");
        let foreign = said.err.contains(&page) && said.err.contains("not an image");
        assert!(damaged || foreign, "{}", said.err);
        assert!(lab.text("refused/log.txt").contains("stopped in task"));
    }

    let said = lab.run("l2p", "skip", "--set data.on_corrupt=skip");
    let report = lab.json("skip/report.json");
    assert_eq!(report["cost"]["images_skipped"], 2);
    assert_eq!(report["cost"]["images_trained"], 29);
    assert_eq!(lab.predictions("skip").len(), 23);
    assert!(
        said.out.contains("2 unreadable images left out"),
        "{}",
        said.out
    );
    for text in [&lab.text("skip/log.txt"), &said.err] {
        for image in [&cut, &page] {
            let name = image.trim_start_matches("images/");
            assert!(
                text.contains(&format!("left out, cannot be decoded: {name}")),
                "{text}"
            );
        }
    }
}

fn first(lab: &Lab, folder: &str) -> String {
    format!("{folder}/{}", lab.names(folder).first().unwrap())
}

#[test]
fn another_number_of_images_than_the_recipe_states() {
    let lab = Lab::new();
    let said = lab.say("run linear.toml --dry-run --set data.expected_images=[30,24]");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let parts = ["test part of images", "states 25", "found 24", "complete"];
    lab.refused("linear.toml --set data.expected_images=[30,25]", &parts);
    let parts = ["train part of emoji-r-mini", "states 1", "found "];
    lab.write(
        "demo.toml",
        lab.text("linear.toml")
            .replace("path = \"images\"", "name = \"emoji-r-mini\""),
    );
    lab.refused("demo.toml --set data.expected_images=[1,1]", &parts);
}

#[test]
fn a_training_table_where_it_does_not_belong() {
    let lab = Lab::new();
    let text = lab.text("linear.toml");
    lab.write("bad.toml", text.replace("\"linear\"", "\"simplecil\""));
    lab.refused(
        "bad.toml",
        &["bad.toml", "`train`", "simplecil", "remove the table"],
    );
    lab.write("bad.toml", text.split("[train]").next().unwrap());
    lab.refused(
        "bad.toml",
        &["bad.toml", "`train`", "`linear` trains", "epochs"],
    );
}

#[test]
fn a_device_this_build_does_not_have() {
    let lab = Lab::new();
    let parts = ["device", "found `tpu`", "\"cuda\""];
    lab.refused("linear.toml --set device=tpu", &parts);
    #[cfg(not(feature = "cuda"))]
    lab.refused(
        "linear.toml --set device=cuda:0",
        &["device", "`cuda:0`", "--features cuda", "device = \"cpu\""],
    );
}

#[test]
fn a_finished_run_is_not_written_over_unasked() {
    let lab = Lab::new();
    lab.run("simplecil", "done", "");
    let before = lab.read("done/report.json");
    let said = lab.say("run simplecil.toml --out done --set stream.order=natural");
    said.failed(&["done", "finished run", "--out", "--overwrite"]);
    assert!(lab.read("done/report.json") == before);
    lab.run(
        "simplecil",
        "done",
        "--overwrite --set stream.order=natural",
    );
    assert!(lab.read("done/report.json") != before);
}
