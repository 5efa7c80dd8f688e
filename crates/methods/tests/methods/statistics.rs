//! Methods on features alone: means, neighbours, and what is checked for all of them.

use candle_core::Tensor;
use candlewick_core::TaskInfo;
use candlewick_methods::knn::{KnnDistance, Weights};
use candlewick_methods::nearest_mean::{Distance, Nearest};
use candlewick_methods::{
    Classifier, JointLinear, JointRidge, Knn, MethodConfig, NearestMean, RanPac, Seen,
};

use crate::fecam::fecam;
use crate::given::{Tasks, eliminate, flat, near, predicted};
use crate::lab::{conforms, quick};
use crate::ranpac::ranpac;

fn means(distance: Distance) -> NearestMean {
    NearestMean {
        distance,
        shrinkage: None,
    }
}

fn nearest(tasks: &Tasks, distance: Distance, both: bool, last: usize) -> Nearest {
    let (dim, parts) = if both { (64, 2) } else { (32, 1) };
    let mut nearest = means(distance).classifier(dim, parts);
    for t in 0..=last {
        let task = tasks.task(t, both);
        nearest.grow(&task.info).unwrap();
        nearest.learn(task.seen()).unwrap();
    }
    nearest
}

#[test]
fn cosine_means_are_simplecils_and_apers() {
    let tasks = Tasks::new();
    let both = Tensor::cat(
        &[
            &tasks.all["in.test_features"],
            &tasks.all["aper.test_branch2"],
        ],
        1,
    );
    let both = flat(&both.unwrap());
    for (name, joined, test) in [("simplecil", false, tasks.test()), ("aper", true, both)] {
        for t in 0..3 {
            let nearest = nearest(&tasks, Distance::Cosine, joined, t);
            let scores = nearest.scores(&test).unwrap();
            near(
                name,
                &scores,
                &tasks.get(&format!("{name}.task{t}.logits")),
                1e-5,
            );
            let c = tasks.classes(t).end;
            assert_eq!(
                predicted(&scores, c),
                tasks.get(&format!("{name}.task{t}.pred"))
            );
        }
        let means = nearest(&tasks, Distance::Cosine, joined, 2)
            .means()
            .concat();
        near(
            name,
            &means,
            &tasks.get(&format!("{name}.prototypes")),
            1e-6,
        );
    }
}

/// What APER scores where its tuned feature is the frozen one.
#[test]
fn a_feature_beside_itself_has_the_cosines_of_one_bit_for_bit() {
    let tasks = Tasks::new();
    let doubled = |rows: &[f32]| -> Vec<f32> {
        let twice = rows.chunks(32).flat_map(|row| [row, row]);
        twice.flatten().copied().collect()
    };
    let mut one = means(Distance::Cosine).classifier(32, 1);
    let mut two = means(Distance::Cosine).classifier(64, 2);
    for t in 0..3 {
        let task = tasks.task(t, false);
        let rows = doubled(&task.rows);
        one.grow(&task.info).unwrap();
        two.grow(&task.info).unwrap();
        one.learn(task.seen()).unwrap();
        let seen = Seen {
            rows: &rows,
            dim: 64,
            ..task.seen()
        };
        two.learn(seen).unwrap();
    }
    let test = tasks.test();
    assert_eq!(
        one.scores(&test).unwrap(),
        two.scores(&doubled(&test)).unwrap()
    );
}

/// The other distances by their definitions: the covariance inverted by elimination.
#[test]
fn means_are_near_by_euclid_and_by_the_shared_covariance() {
    let tasks = Tasks::new();
    let test = tasks.test();
    let euclid = nearest(&tasks, Distance::Euclidean, false, 2);
    let maha = nearest(&tasks, Distance::Mahalanobis, false, 2);
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for t in 0..3 {
        let task = tasks.task(t, false);
        rows.extend(task.rows);
        labels.extend(task.labels);
    }
    let prototypes = tasks.get("simplecil.prototypes");
    let mean = |c: usize, j: usize| f64::from(prototypes[c * 32 + j]);
    let mut sigma = [[0f64; 32]; 32];
    for (row, &label) in rows.chunks(32).zip(&labels) {
        let delta: Vec<f64> = (0..32)
            .map(|j| f64::from(row[j]) - mean(label as usize, j))
            .collect();
        for i in 0..32 {
            for j in 0..32 {
                sigma[i][j] += delta[i] * delta[j] / labels.len() as f64;
            }
        }
    }
    for (i, row) in sigma.iter_mut().enumerate() {
        row.iter_mut().for_each(|v| *v *= 1.0 - 1e-4);
        row[i] += 1e-4;
    }
    let (mut want_euclid, mut want_maha) = (Vec::new(), Vec::new());
    for row in test.chunks(32) {
        for c in 0..10 {
            let delta: Vec<f64> = (0..32).map(|j| f64::from(row[j]) - mean(c, j)).collect();
            want_euclid.push(-delta.iter().map(|d| d * d).sum::<f64>() as f32);
            let solved = eliminate(sigma, &delta);
            want_maha.push(-delta.iter().zip(solved).map(|(d, s)| d * s).sum::<f64>() as f32);
        }
    }
    let got = euclid.scores(&test).unwrap();
    near("euclid", &got, &want_euclid, 1e-6);
    let found = maha.scores(&test).unwrap();
    near("mahalanobis", &found, &want_maha, 1e-4);
    assert_ne!(predicted(&got, 10), predicted(&found, 10));
}

#[test]
fn neighbours_vote_by_their_weights() {
    let rows = [1.0, 0.0, 0.0, 2.0, 0.0, 4.0, 3.0, 0.0];
    let labels = [0, 1, 1, 0];
    let info = TaskInfo {
        index: 0,
        classes: 0..2,
        names: Vec::new(),
        train_len: 4,
        test_len: 0,
    };
    let votes = |k, distance, weights, x: [f32; 2]| {
        let mut knn = Knn {
            k,
            distance,
            weights,
        }
        .classifier(2);
        knn.grow(&info).unwrap();
        let seen = Seen {
            task: &info,
            rows: &rows,
            labels: &labels,
            dim: 2,
        };
        knn.learn(seen).unwrap();
        knn.scores(&x).unwrap()
    };
    let (euclid, cosine) = (KnnDistance::Euclidean, KnnDistance::Cosine);
    near(
        "uniform",
        &votes(3, euclid, Weights::Uniform, [0.0, 0.0]),
        &[2.0 / 3.0, 1.0 / 3.0],
        1e-6,
    );
    // Distances 1, 2, 3 with labels 0, 1, 0.
    let sum = 1.0 + 0.5 + 1.0 / 3.0;
    let want = [(1.0 + 1.0 / 3.0) / sum, 0.5 / sum];
    near(
        "distance",
        &votes(3, euclid, Weights::Distance, [0.0, 0.0]),
        &want,
        1e-6,
    );
    near(
        "equal",
        &votes(4, euclid, Weights::Distance, [0.0, 2.0]),
        &[0.0, 1.0],
        1e-6,
    );
    // Cosines 1, 1, 0, 0.
    let far = (-1.0f32 / 0.07).exp();
    near(
        "softmax",
        &votes(4, cosine, Weights::Softmax, [5.0, 0.0]),
        &[1.0 / (1.0 + far), far / (1.0 + far)],
        1e-6,
    );
    assert_eq!(votes(9, cosine, Weights::Uniform, [5.0, 0.0]), [0.5, 0.5]);
}

/// All classes again and again, a few images at a time: means, scatters, sums and neighbours are those of all images at
/// once. Means are off by no more than their f32 neighbour, scatters by a rounding to f32 a domain.
#[test]
fn classes_that_come_again_are_merged() {
    let tasks = Tasks::new();
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for t in 0..3 {
        let task = tasks.task(t, false);
        rows.extend(task.rows);
        labels.extend(task.labels);
    }
    let n = labels.len();
    // Every seventh image is a domain, so that the last classes are missing in none but all are few.
    const DOMAINS: usize = 7;
    let cut = |domains: usize, d: usize| -> (Vec<f32>, Vec<u32>) {
        let here = (0..n).filter(|i| i % domains == d);
        let row = |i: usize| rows[i * 32..(i + 1) * 32].to_vec();
        (
            here.clone().flat_map(row).collect(),
            here.map(|i| labels[i]).collect(),
        )
    };
    fn learn<C: Classifier>(
        mut classifier: C,
        domains: usize,
        cut: impl Fn(usize, usize) -> (Vec<f32>, Vec<u32>),
    ) -> C {
        for d in 0..domains {
            let (rows, labels) = cut(domains, d);
            let info = TaskInfo {
                index: d,
                classes: 0..10,
                names: Vec::new(),
                train_len: labels.len(),
                test_len: 0,
            };
            classifier.grow(&info).unwrap();
            let seen = Seen {
                task: &info,
                rows: &rows,
                labels: &labels,
                dim: 32,
            };
            classifier.learn(seen).unwrap();
        }
        classifier
    }
    fn state(classifier: &impl Classifier) -> candlewick_core::State {
        let mut state = candlewick_core::State::new();
        classifier.save(&mut state).unwrap();
        state
    }
    let test = tasks.test();
    let close = |what: &str, once: &dyn Classifier, again: &dyn Classifier, bound: f32| {
        let (once, again) = (once.scores(&test).unwrap(), again.scores(&test).unwrap());
        assert_eq!(predicted(&once, 10), predicted(&again, 10), "{what}");
        near(what, &again, &once, bound);
    };

    for distance in [Distance::Euclidean, Distance::Cosine, Distance::Mahalanobis] {
        let once = learn(means(distance).classifier(32, 1), 1, cut);
        let again = learn(means(distance).classifier(32, 1), DOMAINS, cut);
        for (a, b) in once.means().concat().iter().zip(again.means().concat()) {
            let next = (a.to_bits() as i32 - b.to_bits() as i32).abs();
            assert!(next <= 1, "{a} {b}");
        }
        close(&format!("{distance:?}"), &once, &again, 1e-4);
        assert_eq!(
            flat(&state(&once)["counts"]),
            flat(&state(&again)["counts"])
        );
        if distance == Distance::Mahalanobis {
            let (once, again) = (
                flat(&state(&once)["scatter"]),
                flat(&state(&again)["scatter"]),
            );
            let largest = once.iter().fold(0f32, |m, v| m.max(v.abs()));
            let bound = DOMAINS as f32 * f32::EPSILON / 2.0 * largest;
            let far = once.iter().zip(&again).map(|(a, b)| (a - b).abs());
            assert!(far.fold(0f32, f32::max) <= bound);
        }
    }
    let config = fecam([1.0, 0.0], None);
    let once = learn(config.classifier(32), 1, cut);
    let again = learn(config.classifier(32), DOMAINS, cut);
    close("fecam", &once, &again, 1e-4);
    let of = |name: &str| (flat(&state(&once)[name]), flat(&state(&again)[name]));
    let (one, many) = of("scatters");
    let largest = one.iter().fold(0f32, |m, v| m.max(v.abs()));
    let bound = DOMAINS as f32 * f32::EPSILON / 2.0 * largest;
    let far = one.iter().zip(&many).map(|(a, b)| (a - b).abs());
    assert!(far.fold(0f32, f32::max) <= bound);

    let fixed = |projection: usize| RanPac {
        ridge: Some(10.0),
        ..ranpac(projection)
    };
    for projection in [0, 100] {
        let head = |domains| learn(fixed(projection).classifier(32, 3).unwrap(), domains, cut);
        close("ranpac", &head(1), &head(DOMAINS), 1e-3);
    }
    let knn = Knn {
        k: 5,
        distance: KnnDistance::Cosine,
        weights: Weights::Distance,
    };
    let neighbours = |domains| learn(knn.classifier(32), domains, cut);
    close("knn", &neighbours(1), &neighbours(DOMAINS), 1e-6);
    let ridge = JointRidge { ridge: Some(10.0) };
    let joint = |domains| learn(ridge.classifier(32, 3), domains, cut);
    close("joint-ridge", &joint(1), &joint(DOMAINS), 1e-3);
    // Overwritten, they would be those of the last domain.
    let last = learn(means(Distance::Cosine).classifier(32, 1), 1, |_, _| {
        cut(DOMAINS, DOMAINS - 1)
    });
    let all = learn(means(Distance::Cosine).classifier(32, 1), 1, cut);
    assert!(last.means() != all.means());
}

#[test]
fn statistics_keep_the_laws() {
    for config in [
        MethodConfig::NearestMean(means(Distance::Euclidean)),
        MethodConfig::NearestMean(means(Distance::Cosine)),
        MethodConfig::NearestMean(means(Distance::Mahalanobis)),
        MethodConfig::FeCam(fecam([1.0, 0.0], None)),
        MethodConfig::Knn(Knn {
            k: 5,
            distance: KnnDistance::Cosine,
            weights: Weights::Distance,
        }),
        MethodConfig::JointRidge(JointRidge { ridge: None }),
        MethodConfig::JointLinear(JointLinear {}),
    ] {
        conforms(config, false).unwrap();
    }
}

#[test]
fn settings_of_statistics_are_named() {
    let named = |config: MethodConfig, key: &str| {
        let text = config.check(None).unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    };
    let shrunk = |distance, shrinkage| {
        MethodConfig::NearestMean(NearestMean {
            distance,
            shrinkage: Some(shrinkage),
        })
    };
    named(shrunk(Distance::Mahalanobis, 0.0), "method.shrinkage");
    named(shrunk(Distance::Cosine, 0.1), "method.shrinkage");
    named(
        MethodConfig::RanPac(RanPac {
            ridge: Some(-1.0),
            ..ranpac(0)
        }),
        "method.ridge",
    );
    named(
        MethodConfig::FeCam(fecam([0.0, 0.0], None)),
        "method.shrinkage",
    );
    named(
        MethodConfig::FeCam(fecam([1.0, 2.0], None)),
        "method.shrinkage",
    );
    let knn = |k, distance, weights| {
        MethodConfig::Knn(Knn {
            k,
            distance,
            weights,
        })
    };
    named(knn(0, KnnDistance::Cosine, Weights::Uniform), "method.k");
    named(
        knn(1, KnnDistance::Euclidean, Weights::Softmax),
        "method.weights",
    );
    let text = MethodConfig::RanPac(ranpac(0))
        .check(Some(&quick()))
        .unwrap_err()
        .to_string();
    assert!(text.contains("remove the table"), "{text}");
}
