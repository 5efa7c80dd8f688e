//! Class orders, task sizes and labels against stored results of numpy, Python and published loaders.

use std::borrow::Cow;
use std::fs;
use std::sync::Arc;

use candlewick_core::{Scenario, Stream, View};
use candlewick_data::order::{Mt19937, numpy_permutation, python_shuffle};
use candlewick_data::{
    ClassIncremental, DEMO_ATTRIBUTION, Domain, Error, Interpolation, Loader, MemoryImage,
    MemorySource, OnCorrupt, Order, Parts, Preprocess, Source, class_incremental, demo,
    domain_incremental,
};
use serde_json::Value;

use crate::fixture;
use crate::loading::settings;

fn protocol(key: &str) -> Value {
    let text = fs::read_to_string(fixture("protocol.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[key].clone()
}

fn numbers(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as usize)
        .collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// `counts[class]` images of each class in both parts, without pixels.
fn parts(counts: &[usize]) -> Parts {
    let classes: Vec<String> = (0..counts.len()).map(|i| format!("c{i:03}")).collect();
    let part = |part: &str| -> Arc<dyn Source> {
        let mut images = Vec::new();
        for (label, count) in counts.iter().enumerate() {
            for i in 0..*count {
                let name = format!("{part}/c{label:03}/{i}");
                images.push(MemoryImage {
                    name,
                    label,
                    bytes: Cow::Borrowed(b""),
                });
            }
        }
        Arc::new(MemorySource::new(classes.clone(), images).unwrap())
    };
    Parts {
        train: part("train"),
        test: part("test"),
    }
}

fn stream(parts: &Parts, spec: &ClassIncremental) -> Result<Stream, Error> {
    class_incremental(
        parts,
        spec,
        &Loader::new(&settings(), 1, OnCorrupt::Stop).unwrap(),
    )
}

#[test]
fn generators_and_orders_are_numpys_and_pythons() {
    for case in protocol("numpy_mt19937_first_uint32").as_array().unwrap() {
        let mut generator = Mt19937::numpy(number(&case["seed"]) as u32);
        for value in numbers(&case["values"]) {
            assert_eq!(generator.next_u32() as usize, value);
        }
    }
    for case in protocol("python_mt19937_first_uint32").as_array().unwrap() {
        let mut generator = Mt19937::python(case["seed"].as_u64().unwrap());
        for value in numbers(&case["values"]) {
            assert_eq!(
                generator.next_u32() as usize,
                value,
                "seed {}",
                case["seed"]
            );
        }
    }
    let orders = protocol("numpy_legacy_permutation");
    assert!(!orders.as_array().unwrap().is_empty());
    for case in orders.as_array().unwrap() {
        let order = numpy_permutation(number(&case["seed"]) as u32, number(&case["n"]));
        assert_eq!(order, numbers(&case["permutation"]));
    }
    assert_eq!(numpy_permutation(1993, 100)[..5], [68, 56, 78, 8, 23]);
    let orders = protocol("python_random_shuffle");
    assert!(!orders.as_array().unwrap().is_empty());
    for case in orders.as_array().unwrap() {
        assert_eq!(
            python_shuffle(case["seed"].as_u64().unwrap(), number(&case["n"])),
            numbers(&case["shuffled"])
        );
    }
}

#[test]
fn task_sizes_are_those_of_the_protocol() {
    let cases = protocol("task_splits");
    assert!(!cases.as_array().unwrap().is_empty());
    for case in cases.as_array().unwrap() {
        let spec = ClassIncremental {
            first: number(&case["init_cls"]),
            increment: Some(number(&case["increment"])),
            ..Default::default()
        };
        assert_eq!(
            spec.task_sizes(number(&case["n_classes"])).unwrap(),
            numbers(&case["sizes"]),
            "{}",
            case["name"]
        );
    }
}

#[test]
fn labels_follow_the_order_and_tasks_are_consecutive() {
    let case = protocol("class_order_example");
    let classes = number(&case["n_classes"]);
    let parts = parts(&vec![2; classes]);
    let spec = ClassIncremental {
        first: 50,
        increment: Some(10),
        order: Order::Numpy(number(&case["seed"]) as u32),
        ..Default::default()
    };
    let stream = stream(&parts, &spec).unwrap();
    assert_eq!(
        stream
            .tasks
            .iter()
            .map(|task| task.info.classes.len())
            .collect::<Vec<_>>(),
        numbers(&case["sizes"])
    );
    let per_task = case["original_labels_per_task"].as_array().unwrap();
    for (task, originals) in stream.tasks.iter().zip(per_task) {
        let expected: Vec<String> = numbers(originals)
            .iter()
            .map(|c| format!("c{c:03}"))
            .collect();
        assert_eq!(stream.class_names[task.info.classes.clone()], expected);
        assert_eq!(task.info.train_len, 2 * expected.len());
        let labels: Vec<u32> = task
            .info
            .classes
            .clone()
            .flat_map(|label| [label as u32; 2])
            .collect();
        assert_eq!(task.train.labels(), labels);
    }
    for (original, label) in numbers(&case["remapped_label_of_original"])
        .into_iter()
        .enumerate()
    {
        assert_eq!(stream.class_names[label], format!("c{original:03}"));
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_key() {
    let message = |spec: ClassIncremental| spec.task_sizes(10).unwrap_err().to_string();
    let sizes = |sizes: &[usize]| ClassIncremental {
        sizes: Some(sizes.to_vec()),
        ..Default::default()
    };
    let steps = |first, increment| ClassIncremental {
        first,
        increment,
        ..Default::default()
    };
    assert_eq!(sizes(&[4, 1, 5]).task_sizes(10).unwrap(), [4, 1, 5]);
    assert_eq!(
        message(sizes(&[4, 5])),
        "setting `sizes`: add up to 9, but the data set has 10 classes"
    );
    assert!(message(sizes(&[usize::MAX, 2])).contains("far too many"));
    assert_eq!(
        message(sizes(&[10, 0])),
        "setting `sizes`: task 1 would have no classes; expected at least 1"
    );
    assert!(message(steps(0, None)).starts_with("setting `increment`: missing"));
    assert!(message(steps(0, Some(0))).starts_with("setting `increment`: expected at least 1"));
    assert_eq!(
        message(steps(11, Some(2))),
        "setting `first`: the first task takes 11 classes, but the data set has 10"
    );
    assert!(
        message(steps(0, Some(11))).starts_with("setting `increment`: the first task takes 11")
    );
    assert!(
        message(ClassIncremental {
            increment: Some(5),
            ..sizes(&[5, 5])
        })
        .contains("excludes `increment`")
    );
    assert!(
        message(ClassIncremental {
            first: 5,
            ..sizes(&[5, 5])
        })
        .contains("excludes `first`")
    );
    assert_eq!(steps(10, Some(3)).task_sizes(10).unwrap(), [10]);
}

#[test]
fn parts_and_orders_that_do_not_fit_are_refused() {
    let error = |parts: &Parts, spec| stream(parts, &spec).err().unwrap().to_string();
    let two = ClassIncremental {
        increment: Some(2),
        ..Default::default()
    };
    let mixed = Parts {
        train: parts(&[1, 1]).train,
        test: parts(&[1, 1, 1]).test,
    };
    assert!(error(&mixed, two.clone()).starts_with("class `c002` is in `test` but not in `train`"));
    let short = ClassIncremental {
        order: Order::Positions(vec![0]),
        ..two.clone()
    };
    assert!(
        error(&parts(&[1, 1]), short).contains("must hold each of the 2 classes once, found 1")
    );
    let empty = ClassIncremental {
        increment: Some(1),
        ..two
    };
    assert_eq!(
        error(&parts(&[1, 0]), empty),
        "setting `sizes`: task 1 has no training images"
    );
}

#[test]
fn ids_are_unique_over_the_stream_and_stable() {
    let spec = ClassIncremental {
        increment: Some(25),
        order: Order::Python(1),
        ..Default::default()
    };
    let settings = Preprocess {
        resize: None,
        crop: Some(1),
        interpolation: Interpolation::Bilinear,
        ..settings()
    };
    let parts = demo().unwrap();
    let stream = class_incremental(
        &parts,
        &spec,
        &Loader::new(&settings, 2, OnCorrupt::Stop).unwrap(),
    )
    .unwrap();
    let mut seen = vec![None; 432];
    for task in &stream.tasks {
        for (split, source, first) in [
            (&task.train, &parts.train, 0),
            (&task.test, &parts.test, 332),
        ] {
            let mut index = 0;
            assert_eq!(split.image_name(999), "image 999 of another split");
            for batch in split.batches(View::Plain, 64) {
                let batch = batch.unwrap();
                assert!(batch.plain);
                for (id, label) in batch.ids.iter().zip(&batch.labels) {
                    let id = *id as usize;
                    assert_eq!(split.image_name(id as u64), source.name(id - first));
                    assert_eq!(
                        stream.class_names[*label as usize],
                        source.classes()[source.label(id - first)]
                    );
                    assert_eq!(seen[id].replace(*label), None);
                    index += 1;
                }
            }
            assert_eq!(index, split.len());
        }
    }
    assert!(seen.iter().all(Option::is_some));
}

#[test]
fn the_demo_is_whole_and_names_its_artists() {
    let parts = demo().unwrap();
    parts.expect_images([332, 100], "the demo").unwrap();
    assert_eq!(parts.train.classes().len(), 50);
    assert_eq!(parts.train.classes(), parts.test.classes());
    assert!(parts.train.classes().is_sorted());
    for source in [&parts.train, &parts.test] {
        for index in 0..source.len() {
            assert_eq!(source.rgb(index).unwrap().dimensions(), (112, 112));
            let name = source.name(index);
            let rendition = name.rsplit('/').next().unwrap().trim_end_matches(".png");
            assert!(
                DEMO_ATTRIBUTION.contains(&format!("| {rendition} |")),
                "{name}"
            );
        }
    }
    for class in 0..50 {
        assert_eq!(
            (0..100).filter(|i| parts.test.label(*i) == class).count(),
            2
        );
    }
}

#[test]
fn domains_are_taken_from_names() {
    for (name, file, folder) in [
        ("train/cat/noto-v1.png", "noto-v1", "cat"),
        ("train/cat/sketch/1.2.png", "1.2", "sketch"),
        ("bare", "bare", ""),
    ] {
        assert_eq!(Domain::File.of(name), file);
        assert_eq!(Domain::Folder.of(name), folder);
    }
    let parts = demo().unwrap();
    // No pixel is needed to see who is in it.
    let loader = Loader::new(&settings(), 1, OnCorrupt::Stop).unwrap();
    let loader = loader.without_pixels();
    let order = Order::Numpy(1993);
    let stream = domain_incremental(&parts, Domain::File, &order, &loader).unwrap();
    let Scenario::DomainIncremental(domains) = &stream.scenario else {
        panic!("{:?}", stream.scenario)
    };
    let mut sorted = domains.clone();
    sorted.sort();
    assert_eq!(sorted.len(), 9);
    assert_ne!(&sorted, domains);
    assert_eq!(stream.class_names, parts.train.classes());
    let mut ids = std::collections::BTreeSet::new();
    for (task, domain) in stream.tasks.iter().zip(domains) {
        assert_eq!(task.info.classes, 0..50);
        for split in [&task.train, &task.test] {
            for batch in split.batches(View::Plain, 16) {
                let batch = batch.unwrap();
                for (id, label) in batch.ids.iter().zip(&batch.labels) {
                    let name = split.image_name(*id);
                    assert!(name.ends_with(&format!("/{domain}.png")), "{name}");
                    let class = &stream.class_names[*label as usize];
                    assert!(name.contains(&format!("/{class}/")), "{name}: {class}");
                    assert!(ids.insert(*id), "{name} twice");
                }
            }
        }
    }
    assert_eq!(ids.len(), parts.train.len() + parts.test.len());
    let wrong = domain_incremental(&parts, Domain::File, &Order::Positions(vec![0]), &loader);
    assert!(wrong.is_err());
}

#[test]
fn without_pixels_a_batch_has_everything_else() {
    let parts = demo().unwrap();
    let loader = Loader::new(&settings(), 1, OnCorrupt::Skip).unwrap();
    let spec = ClassIncremental {
        increment: Some(25),
        ..ClassIncremental::default()
    };
    let left_out = parts.train.name(3);
    let full = class_incremental(&parts, &spec, &loader).unwrap();
    let bare = class_incremental(&parts, &spec, &loader.without_pixels()).unwrap();
    for view in [View::Plain, View::Train { seed: 1, epoch: 2 }] {
        let full = full.tasks[0].train.batches(view, 7).map(Result::unwrap);
        let bare = bare.tasks[0].train.batches(view, 7).map(Result::unwrap);
        for (full, bare) in full.zip(bare) {
            assert_eq!(bare.images.dims(), [bare.len(), 3, 0, 0]);
            assert_eq!((full.ids, full.labels), (bare.ids, bare.labels));
            assert_eq!(full.plain, bare.plain);
        }
    }
    loader.leave_out(&left_out);
    let ids = bare.tasks[0]
        .train
        .batches(View::Plain, 7)
        .flat_map(|b| b.unwrap().ids);
    let ids: Vec<u64> = ids.collect();
    assert_eq!(ids.len(), bare.tasks[0].train.len() - 1);
    assert!(!ids.contains(&3));
}

#[test]
fn a_picture_is_known_by_its_content() {
    let parts = demo().unwrap();
    let joined = parts.joined();
    assert_eq!(joined.len(), parts.train.len() + parts.test.len());
    let first_test = parts.train.len();
    assert_eq!(joined.name(first_test), parts.test.name(0));
    assert_eq!(
        joined.content(first_test).unwrap(),
        parts.test.content(0).unwrap()
    );
    assert_eq!(joined.label(first_test), parts.test.label(0));
    let all: std::collections::BTreeSet<[u8; 32]> = (0..joined.len())
        .map(|i| joined.content(i).unwrap())
        .collect();
    assert_eq!(all.len(), joined.len());
}
