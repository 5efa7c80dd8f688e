//! The event files of a run, read back field by field.

use std::collections::BTreeMap;

use crate::lab::Lab;

/// A field of a message: its number, and its bytes or its value.
enum Field<'a> {
    Bytes(&'a [u8]),
    Number(u64),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Bytes(take(&mut bytes, 8)),
            2 => {
                let n = varint(&mut bytes);
                Field::Bytes(take(&mut bytes, n as usize))
            }
            5 => Field::Bytes(take(&mut bytes, 4)),
            kind => panic!("a field of kind {kind}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

/// A sum of CRC-32C made bit by bit, masked.
fn masked(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

type Scalars = BTreeMap<String, Vec<(u64, f32)>>;

/// Values by name with their steps, and the steps at which a session starts anew.
fn read(mut bytes: &[u8]) -> (Scalars, Vec<u64>) {
    let (mut scalars, mut starts) = (Scalars::new(), Vec::new());
    let mut first = true;
    while !bytes.is_empty() {
        let length = take(&mut bytes, 8);
        assert_eq!(take(&mut bytes, 4), masked(length));
        let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let event = take(&mut bytes, n);
        assert_eq!(take(&mut bytes, 4), masked(event));
        let (mut step, mut version) = (0, None);
        for (number, field) in fields(event) {
            match (number, field) {
                (1, Field::Bytes(time)) => {
                    let time = f64::from_le_bytes(time.try_into().unwrap());
                    assert!(time > 1.6e9, "{time} is no time of day");
                }
                (2, Field::Number(n)) => step = n,
                (3, Field::Bytes(text)) => version = Some(text),
                (5, Field::Bytes(summary)) => {
                    for (_, value) in fields(summary) {
                        let Field::Bytes(value) = value else {
                            panic!("no value")
                        };
                        let [(1, Field::Bytes(tag)), (2, Field::Bytes(scalar))] = fields(value)[..]
                        else {
                            panic!("a value has a tag and a number")
                        };
                        let tag = String::from_utf8(tag.to_vec()).unwrap();
                        let scalar = f32::from_le_bytes(scalar.try_into().unwrap());
                        scalars.entry(tag).or_default().push((step, scalar));
                    }
                }
                (7, Field::Bytes(_)) => starts.push(step),
                (number, _) => panic!("field {number}"),
            }
        }
        let expected = first.then_some(b"brain.Event:2".as_slice());
        assert_eq!(version, expected);
        first = false;
    }
    (scalars, starts)
}

#[test]
fn losses_and_accuracies_are_read_back_as_they_are_in_the_report() {
    let lab = Lab::new();
    let files = |lab: &Lab| -> Vec<String> { lab.names("run/tensorboard").into_iter().collect() };
    lab.run("l2p", "run", "--tensorboard --set train.epochs=4");
    let before = files(&lab);
    lab.run(
        "l2p",
        "run",
        "--tensorboard --set train.epochs=4 --overwrite",
    );
    let names = files(&lab);
    assert_eq!(
        (before.len(), names.len()),
        (1, 1),
        "an old file is left: {names:?}"
    );
    assert!(names[0].starts_with("events.out.tfevents."), "{names:?}");
    let (scalars, starts) = read(&lab.read(&format!("run/tensorboard/{}", names[0])));
    assert!(starts.is_empty());

    let report = lab.json("run/report.json");
    let curve = |name: &str| -> Vec<(u64, f32)> {
        let values = report["session_accuracy"][name].as_array().unwrap().iter();
        (1..)
            .zip(values.map(|v| v.as_f64().unwrap() as f32))
            .collect()
    };
    assert_eq!(scalars["accuracy/micro"], curve("micro"));
    assert_eq!(scalars["accuracy/macro"], curve("macro"));
    let matrix = report["accuracy_matrix"].as_array().unwrap();
    for i in 0..3 {
        let column = matrix.iter().enumerate().skip(i);
        let column: Vec<(u64, f32)> = column
            .map(|(t, row)| (t as u64 + 1, row[i].as_f64().unwrap() as f32))
            .collect();
        assert_eq!(scalars[&format!("task/{:03}", i + 1)], column);
    }
    let last = report["metrics"]["forgetting"].as_f64().unwrap() as f32;
    assert_eq!(scalars["forgetting"].last(), Some(&(3, last)));
    // Three steps an epoch, of which the first is read back, in four epochs of three tasks.
    let losses = &scalars["loss"];
    let steps: Vec<u64> = losses.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (0..12).map(|i| 3 * i + 1).collect::<Vec<_>>());
    assert!(losses.iter().all(|(_, loss)| loss.is_finite()));

    lab.run("l2p", "plain", "--set train.epochs=4");
    assert!(!lab.path("plain/tensorboard").exists());
    for file in ["report.json", "params.safetensors"] {
        assert!(lab.read(&format!("plain/{file}")) == lab.read(&format!("run/{file}")));
    }
}
