//! The table of switches against the methods that have them.

use candlewick_methods::{COMPAT, METHODS, MethodConfig};
use toml::{Table, Value};

/// Settings of every method without a switch.
pub fn plain(method: &str) -> Table {
    let text = match method {
        "vpt" => "depth = \"deep\"\nlength = 2",
        "coda" => "blocks = [0, 1]\ncomponents = 2\nlength = 2",
        "dap" => "length = 2\nembedding = 4\npull = 0.1",
        "dualprompt" => {
            "g_blocks = [0]\ng_length = 2\ne_blocks = [1]\ne_length = 2\npull = 0.1\n\
             prompt_init = [-1.0, 1.0]\nkey_init = [-1.0, 1.0]"
        }
        "l2p" => {
            "prompts = 4\nlength = 2\ntop_k = 2\npull = 0.1\nprompt_init = \"jax\"\nkey_init = \"jax\""
        }
        "ease" => "bottleneck = 2",
        "esn" => "prompts = 2",
        "lae" => "freeze_epochs = 1\nmodule = { kind = \"vpt-deep\", length = 2 }",
        "mos" => {
            "bottleneck = 2\nalignment = { epochs = 1, samples = 4, lr = 0.01, shrink = \"none\" }"
        }
        "random-prompt" => "length = 2",
        "linear" | "simplecil" | "joint-linear" | "joint-ridge" | "continual-clip" => "",
        "coop" => "length = 2",
        "promptfusion" => {
            "length = 2\nimage_prompts = 2\nbooster_prompts = 2\nmemory = { per_class = 2, choice = \"herding\" }\n\
             gate = { hidden = 4, temperature = 3.0, open = 0.4, open_weight = 0.7, keep_weight = 0.1 }"
        }
        "proof" => "contexts = 2\nmemory = { per_class = 2, choice = \"herding\" }",
        "zscl" => "average_every = 2\nconsolidation = 0.1\nlabel_smoothing = 0.1",
        "aper" => "tuning = { kind = \"vpt-deep\", length = 2 }",
        "fecam" => "shrinkage = [100.0, 0.0]\ntuning = { kind = \"vpt-deep\", length = 2 }",
        "knn" => "k = 5\ndistance = \"cosine\"\nweights = \"distance\"",
        "nearest-mean" => "distance = \"cosine\"",
        "finetune" | "joint" => "",
        "replay" => "memory = { total = 20, choice = \"herding\" }",
        "slca" => {
            "backbone_lr = 0.01\nalignment = { epochs = 2, samples = 16, lr = 0.01, logit_norm = 0.1 }"
        }
        "cofima" => {
            "backbone_lr = 0.01\nmerge = { rule = \"fisher\", alpha = 0.5, clip = 1e-4 }\n\
             alignment = { epochs = 2, samples = 16, lr = 0.01, logit_norm = 0.1 }"
        }
        "ranpac" => "projection = 100\ntuning = { kind = \"vpt-shallow\", length = 2 }",
        other => panic!("add the settings of {other}"),
    };
    text.parse().unwrap()
}

pub fn read(method: &str, settings: Table) -> MethodConfig {
    MethodConfig::read(method, Value::Table(settings))
        .unwrap()
        .unwrap()
}

#[test]
fn every_switch_of_the_table_is_recorded_under_its_name() {
    for entry in COMPAT {
        let (key, value) = entry.switch.split_once('=').unwrap();
        let value = match value {
            "true" => Value::Boolean(true),
            text => Value::String(text.into()),
        };
        let mut settings = plain(entry.method);
        match key.split_once('.') {
            None => settings.insert(key.into(), value),
            Some((table, key)) => {
                let table = settings[table].as_table_mut().unwrap();
                table.insert(key.into(), value)
            }
        };
        let config = read(entry.method, settings);
        let name = format!("{}.{}", entry.method, entry.switch);
        assert_eq!(config.compat(), [name]);
        assert!(!entry.what.is_empty() && entry.source.contains(':'));
    }
}

#[test]
fn no_method_departs_unasked() {
    for method in METHODS {
        let config = read(method.name, plain(method.name));
        assert_eq!(config.about(), *method);
        assert_eq!(config.compat(), [""; 0]);
    }
    assert!(METHODS.is_sorted_by_key(|m| m.name));
    assert!(COMPAT.is_sorted_by_key(|c| (c.method, c.switch)));
}

/// What a run records of its method reads back the same.
#[test]
fn settings_survive_being_written_out() {
    for method in METHODS {
        let config = read(method.name, plain(method.name));
        let mut table = Table::try_from(&config).unwrap();
        assert_eq!(
            table.remove("name"),
            Some(Value::String(method.name.into()))
        );
        assert_eq!(read(method.name, table), config);
    }
}
