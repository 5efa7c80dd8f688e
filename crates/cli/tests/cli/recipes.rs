//! The tables of published recipes, whole, on an ImageNet-R of small pictures.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candlewick_methods::METHODS;
use serde_json::Value;

use crate::lab::{Lab, Said};

/// The 200 class folders of ImageNet-R, WordNet's numbers, as `GT-RIPL/CODA-Prompt:dataloaders/splits` lists them.
const FOLDERS: &str = "\
    n01443537 n01484850 n01494475 n01498041 n01514859 n01518878 n01531178 n01534433 n01614925 n01616318 n01630670 n01632777 \
    n01644373 n01677366 n01694178 n01748264 n01770393 n01774750 n01784675 n01806143 n01820546 n01833805 n01843383 n01847000 \
    n01855672 n01860187 n01882714 n01910747 n01944390 n01983481 n01986214 n02007558 n02009912 n02051845 n02056570 n02066245 \
    n02071294 n02077923 n02085620 n02086240 n02088094 n02088238 n02088364 n02088466 n02091032 n02091134 n02092339 n02094433 \
    n02096585 n02097298 n02098286 n02099601 n02099712 n02102318 n02106030 n02106166 n02106550 n02106662 n02108089 n02108915 \
    n02109525 n02110185 n02110341 n02110958 n02112018 n02112137 n02113023 n02113624 n02113799 n02114367 n02117135 n02119022 \
    n02123045 n02128385 n02128757 n02129165 n02129604 n02130308 n02134084 n02138441 n02165456 n02190166 n02206856 n02219486 \
    n02226429 n02233338 n02236044 n02268443 n02279972 n02317335 n02325366 n02346627 n02356798 n02363005 n02364673 n02391049 \
    n02395406 n02398521 n02410509 n02423022 n02437616 n02445715 n02447366 n02480495 n02480855 n02481823 n02483362 n02486410 \
    n02510455 n02526121 n02607072 n02655020 n02672831 n02701002 n02749479 n02769748 n02793495 n02797295 n02802426 n02808440 \
    n02814860 n02823750 n02841315 n02843684 n02883205 n02906734 n02909870 n02939185 n02948072 n02950826 n02951358 n02966193 \
    n02980441 n02992529 n03124170 n03272010 n03345487 n03372029 n03424325 n03452741 n03467068 n03481172 n03494278 n03495258 \
    n03498962 n03594945 n03602883 n03630383 n03649909 n03676483 n03710193 n03773504 n03775071 n03888257 n03930630 n03947888 \
    n04086273 n04118538 n04133789 n04141076 n04146614 n04147183 n04192698 n04254680 n04266014 n04275548 n04310018 n04325704 \
    n04347754 n04389033 n04409515 n04465501 n04487394 n04522168 n04536866 n04552348 n04591713 n07614500 n07693725 n07695742 \
    n07697313 n07697537 n07714571 n07714990 n07718472 n07720875 n07734744 n07742313 n07745940 n07749582 n07753275 n07753592 \
    n07768694 n07873807 n07880968 n07920052 n09472597 n09835506 n10565667 n12267677";

/// Images of a folder: the last is for testing where it comes divided, and one is held where it does not. MOS asks for two to
/// train on.
const IMAGES: usize = 3;

/// What makes a table quick: it reaches all rows alike. The tasks are two.
const QUICK: [&str; 17] = [
    "seeds=[1]",
    // Published are prompts in the first five blocks. Four patches of an image are left.
    "base.backbone={name=\"vit-micro\",depth=5}",
    "base.preprocess={resize=18,crop=16}",
    "replace.stream.increment=100",
    "replace.train.epochs=1",
    "replace.train.batch=100",
    "replace.method.length=2",
    "replace.method.projection=100",
    "replace.method.prompts=10",
    "replace.method.e_length=2",
    // Of DAP; the other methods list their blocks, and have them.
    "replace.method.blocks=2",
    "replace.method.freeze_epochs=0",
    "replace.method.alignment.epochs=1",
    "replace.method.alignment.samples=4",
    "replace.method.tuning.length=2",
    "replace.method.k=3",
    // Of FeCAM: two images have little covariance.
    "replace.method.shrinkage=[10.0,0.0]",
];

/// Pictures of the data set inside the program, under other names: `given`, with `train` and `test`, and `whole`.
fn imagenet_r(lab: &Lab) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji-r-mini");
    let sorted = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        let paths: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.into_iter().collect()
    };
    let classes = sorted(root.join("train"));
    for (i, id) in FOLDERS.split_whitespace().enumerate() {
        // A class has nine or eight pictures; four folders share them.
        let class = classes[i % classes.len()].file_name().unwrap();
        let parts = ["train", "test"].map(|part| sorted(root.join(part).join(class)));
        let files = parts.concat();
        let first = i / classes.len() * (IMAGES - 1);
        for k in 0..IMAGES {
            let bytes = fs::read(&files[(first + k) % files.len()]).unwrap();
            let part = if k + 1 < IMAGES { "train" } else { "test" };
            lab.write(&format!("given/{part}/{id}/{k}.png"), &bytes);
            lab.write(&format!("whole/{id}/{k}.png"), &bytes);
        }
    }
}

fn table(lab: &Lab, flavour: &str, data: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/sweeps");
    let path = path.join(format!("{flavour}-imagenet-r.toml"));
    let path = path.to_str().unwrap();
    let data = format!("base.data={data}");
    let mut args = vec!["sweep", path, "--out", flavour, "--set", &data];
    args.extend(QUICK.iter().flat_map(|set| ["--set", *set]));
    // Seconds; minutes on a machine that builds meanwhile.
    let mut command = lab.command();
    let command = command.args(&args).timeout(Duration::from_secs(1800));
    let said = Said::of(command.output().unwrap());
    assert_eq!(said.code, Some(0), "{flavour}: {}", said.err);
    lab.json(&format!("{flavour}/sweep.json"))
}

fn all<'a>(table: &'a Value, key: &str) -> BTreeSet<&'a str> {
    let rows = table["rows"].as_array().unwrap();
    rows.iter().map(|row| row[key].as_str().unwrap()).collect()
}

#[test]
fn every_method_runs_as_published_and_on_equal_terms() {
    let lab = Lab::new();
    imagenet_r(&lab);
    let paper = table(&lab, "paper", "{path=\"given\"}");
    let fair = table(&lab, "fair", "{path=\"whole\",split={kind=\"stratified\"}}");
    // Those that read class names need a CLIP, and have a sweep of their own.
    let texts = ["continual-clip", "coop", "promptfusion", "proof", "zscl"];
    let methods = METHODS.iter().map(|method| method.name);
    let methods: BTreeSet<&str> = methods.filter(|name| !texts.contains(name)).collect();
    for table in [&paper, &fair] {
        assert_eq!(all(table, "method"), methods);
        for row in table["rows"].as_array().unwrap() {
            let metrics = row["metrics"].as_array().unwrap();
            let last = metrics.iter().find(|m| m["name"] == "last_accuracy_micro");
            let last = last.unwrap()["mean"].as_f64().unwrap();
            assert!((0.0..=100.0).contains(&last), "{row}");
            // Of 200 classes, chance is half a percent.
            assert!(row["method"] != "simplecil" || last > 2.0, "{row}");
        }
    }
    // Weights and pixels are the same here; the orders of classes are those of the papers, and part the rows.
    let groups = all(&paper, "group");
    assert!(
        groups.contains("vit-micro, 2 tasks, numpy's order 1993"),
        "{groups:?}"
    );
    assert!(
        groups.contains("vit-micro, 2 tasks, natural order"),
        "{groups:?}"
    );
    // On equal terms every row makes a pair with every other.
    assert_eq!(all(&fair, "group"), BTreeSet::from(["vit-micro"]));
    let rows = fair["rows"].as_array().unwrap().len();
    let pairs = fair["pairs"].as_array().unwrap().len();
    assert_eq!(pairs, rows * (rows - 1) / 2 * 5);
}
