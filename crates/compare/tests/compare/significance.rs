//! Tests between rows, against other programs and by hand.

use candlewick_compare::{Counts, Kind, Test, curve, format, holm, mcnemar};

use crate::lab::{Lab, changed, report};

/// `scipy.stats.binomtest(b, b + c, 0.5).pvalue` of SciPy 1.16; of no discordant image, 1.
#[test]
fn mcnemar_is_scipys_binomial_test() {
    let cases = [
        (0, 0, 1.0),
        (5, 1, 0.21875),
        (1, 5, 0.21875),
        (10, 10, 1.0),
        (25, 8, 0.004551384132355452),
        (121, 59, 4.4344492637551645e-06),
        (3, 17, 0.0025768280029296875),
        (400, 350, 0.07350777405843484),
        (0, 20, 1.9073486328125e-06),
        (2000, 1800, 0.0012427867782632013),
    ];
    for (b, c, expected) in cases {
        let p = mcnemar(b, c);
        assert!(
            (p - expected).abs() < 1e-9 * expected,
            "{b} {c}: {p} is not {expected}"
        );
    }
}

/// R: `p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")` is 0.03, 0.06, 0.06, 0.02.
#[test]
fn holm_by_hand() {
    let close = |p: &[f64], expected: &[f64]| {
        let found = holm(p);
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{found:?}");
        }
    };
    close(&[0.01, 0.04, 0.03, 0.005], &[0.03, 0.06, 0.06, 0.02]);
    close(&[0.5, 0.9], &[1.0, 1.0]);
    close(&[0.2], &[0.2]);
    close(&[], &[]);
}

fn mcnemars(tests: &[Test]) -> Vec<(usize, usize, Option<u64>, Counts)> {
    let one = |test: &Test| match &test.kind {
        Kind::McNemar { seed, counts } => Some((test.a, test.b, *seed, *counts)),
        Kind::Permutation { .. } => None,
    };
    tests.iter().filter_map(one).collect()
}

#[test]
fn images_that_one_run_alone_got_right_are_counted() {
    let lab = Lab::new();
    lab.run("a", &report(75.0), "++++++++----");
    lab.run("b", &report(50.0), "+------++---");
    lab.run("c", &report(25.0), "+++++++++++-");
    lab.run(
        "other",
        &changed(|r| r.fingerprint.split = "ab".repeat(32)),
        "++++++++----",
    );
    let comparison = lab.compare(&["a", "b", "c", "other"]);
    let counts = |n, b, c| Counts { n, b, c };
    assert_eq!(
        mcnemars(&comparison.tests),
        [
            (0, 1, None, counts(12, 6, 1)),
            (0, 2, None, counts(12, 0, 3)),
            (1, 2, None, counts(12, 0, 8)),
        ]
    );
    let p: Vec<f64> = comparison.tests.iter().map(|test| test.p).collect();
    for (p, expected) in p.iter().zip([0.125, 0.25, 0.0078125]) {
        assert!((p - expected).abs() < 1e-12, "{p}");
    }
    let corrected: Vec<f64> = comparison.tests.iter().map(|test| test.holm).collect();
    assert_eq!(corrected, holm(&p));
    // A pair that may not be compared is not tested, and that is said.
    assert_eq!(comparison.untested.len(), 3);
    assert!(
        comparison.untested[0].contains("1 and 4: split differ"),
        "{:?}",
        comparison.untested
    );
    let text = format::markdown(&comparison);
    assert!(
        text.contains("b = 6, c = 1") && text.contains("McNemar, n = 12"),
        "{text}"
    );
    assert!(text.contains("not tested, rows 1 and 4"), "{text}");
}

/// A folder of three seeds.
fn seeds(lab: &Lab, name: &str, values: [f64; 3]) {
    for (seed, value) in (1..).zip(values) {
        let mut report = report(value);
        report.fingerprint.seed = seed;
        report.fingerprint.class_order = format!("{seed}{seed}").repeat(32);
        lab.run(&format!("{name}/seed-{seed}"), &report, "++--");
    }
    lab.write(
        &format!("{name}/summary.json"),
        "{\"method\": \"m\", \"seeds\": [1, 2, 3], \"metrics\": {}}",
    );
}

#[test]
fn over_seeds_the_sweeps_paired_test_is_taken() {
    let lab = Lab::new();
    seeds(&lab, "a", [51.0, 52.0, 54.0]);
    seeds(&lab, "b", [50.0, 54.0, 50.0]);
    seeds(&lab, "c", [40.0, 41.0, 42.0]);
    let comparison = lab.compare(&["a", "b", "c"]);
    assert_eq!(comparison.entries[0].seeds, Some(3));
    let cell = comparison.entries[0].cell("last_accuracy_micro").unwrap();
    assert!((cell.mean - 157.0 / 3.0).abs() < 1e-9);
    let average = |test: &&Test| matches!(&test.kind, Kind::Permutation { metric, .. } if metric == "average_incremental_accuracy");
    let tests: Vec<&Test> = comparison.tests.iter().filter(average).collect();
    // By hand: differences 1, -2, 4 are reached by 6 of 8 ways to swap; those of one sign by 2.
    let p: Vec<f64> = tests.iter().map(|test| test.p).collect();
    assert_eq!(p, [0.75, 0.25, 0.25]);
    let corrected: Vec<f64> = tests.iter().map(|test| test.holm).collect();
    assert_eq!(corrected, [0.75, 0.75, 0.75]);
    let Kind::Permutation {
        difference,
        std,
        seeds,
        ..
    } = &tests[0].kind
    else {
        panic!("{:?}", tests[0].kind)
    };
    assert!((difference - 1.0).abs() < 1e-9 && (std - 3.0).abs() < 1e-9 && *seeds == 3);
    // McNemar seed by seed.
    let by_seed = mcnemars(&comparison.tests);
    assert_eq!(by_seed.len(), 3 * 3);
    assert_eq!(by_seed[2].2, Some(3));

    // The curves of the others above the first, seed by seed.
    let (base, curves) = curve::curves(&comparison).unwrap();
    assert_eq!((base, curves.len(), curves[0].seeds), (0, 2, 3));
    for t in 0..3 {
        assert!((curves[0].mean[t] + 1.0).abs() < 1e-9 && (curves[0].std[t] - 3.0).abs() < 1e-9);
    }
    let svg = curve::svg(&comparison).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.matches("<polygon").count() == 2,
        "{svg}"
    );
}

#[test]
fn no_curve_of_what_may_not_be_compared() {
    let lab = Lab::new();
    lab.run("a", &report(75.0), "");
    lab.run(
        "b",
        &changed(|r| r.fingerprint.weights = "ab".repeat(32)),
        "",
    );
    let comparison = lab.compare(&["a", "b"]);
    assert_eq!(curve::curves(&comparison), None);
    let text = curve::svg(&comparison).unwrap_err().to_string();
    assert!(
        text.contains("no run may be compared with the first"),
        "{text}"
    );
}

#[test]
fn predictions_that_are_missing_or_of_other_images() {
    let lab = Lab::new();
    lab.run("a", &report(75.0), "+++-");
    lab.run("b", &report(50.0), "");
    let comparison = lab.compare(&["a", "b"]);
    assert!(comparison.tests.is_empty());
    assert!(
        comparison.untested[0].contains("no predictions.csv"),
        "{:?}",
        comparison.untested
    );

    let fails = |name: &str| {
        let entries = ["a", name].iter().flat_map(|n| lab.read(n)).collect();
        candlewick_compare::Comparison::new(entries)
            .unwrap_err()
            .to_string()
    };
    lab.run("c", &report(50.0), "+++-+");
    let text = fails("c");
    assert!(
        text.contains("c/predictions.csv") && text.contains("`test/cat/4.png`"),
        "{text}"
    );
    lab.run("d", &report(50.0), "+++-");
    lab.write(
        "d/predictions.csv",
        "image,class,predicted,score\nx,cat,cat,1\nx,cat,cat,1\n",
    );
    assert!(fails("d").contains("`x` is there twice"), "{}", fails("d"));
    lab.write("d/predictions.csv", "image,klass\nx,cat\n");
    assert!(
        fails("d").contains("d/predictions.csv: not the predictions of a run"),
        "{}",
        fails("d")
    );
    lab.write("d/predictions.csv", "image,class,predicted,score\n");
    assert!(fails("d").contains("holds no prediction"), "{}", fails("d"));
    lab.write(
        "d/predictions.csv",
        b"image,class,predicted,score\n\xff,cat,cat,1\n",
    );
    assert!(fails("d").contains("d/predictions.csv"), "{}", fails("d"));
}
