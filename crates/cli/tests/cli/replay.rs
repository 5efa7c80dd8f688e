//! A method that keeps images says so.

use crate::lab::{CLASSES, Lab, TRAIN};

#[test]
fn a_run_says_how_many_images_it_keeps_and_counts_them() {
    let lab = Lab::new();
    let recipe = lab.text("linear.toml").replace(
        "name = \"linear\"",
        "name = \"replay\"\npart = \"head\"\nmemory = { total = 9, choice = \"herding\" }",
    );
    lab.write("replay.toml", recipe);
    let said = lab.run("replay", "kept", "--set train.epochs=2");
    assert!(
        said.out
            .contains("exemplars    6 past images kept (9 in all, herding)"),
        "{}",
        said.out
    );
    let report = lab.json("kept/report.json");
    assert_eq!(report["exemplars"]["rule"], "9 in all, herding");
    // 9 by 2, 4 and 6 classes.
    assert_eq!(report["exemplars"]["images"], serde_json::json!([8, 8, 6]));
    let new = (CLASSES.len() * TRAIN) as u64;
    assert_eq!(report["cost"]["images_trained"], 2 * (new + 8 + 8));
    let page = lab.text("kept/report.html");
    assert!(page.contains("6 (9 in all, herding)"));
    lab.run("linear", "none", "");
    assert_eq!(lab.json("none/report.json").get("exemplars"), None);
    let said = lab.say("methods");
    let row = said.out.lines().find(|line| line.contains("| replay"));
    assert!(row.unwrap().contains("as memory says"), "{}", said.out);
    lab.refused(
        "replay.toml --set method.memory.total=0",
        &["method.memory.total"],
    );
}
