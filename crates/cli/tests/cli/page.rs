//! The page of a run: what is in it, and that a browser shows it as it should be.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::browser::Browser;
use crate::lab::{CLASSES, Lab};

/// Where its parts and those of other pages are.
fn embedded(page: &str) -> Value {
    let from = page.split_once(r#"id="reports">"#).unwrap().1;
    serde_json::from_str(from.split_once("</script>").unwrap().0).unwrap()
}

fn ids(page: &str) -> Vec<&str> {
    let pieces = page.split(" id=\"").skip(1);
    pieces
        .map(|piece| piece.split('"').next().unwrap())
        .collect()
}

#[test]
fn a_run_leaves_its_page_and_its_classes() {
    let lab = Lab::new();
    lab.run("l2p", "run", "");
    let page = lab.text("run/report.html");
    let report = lab.json("run/report.json");
    assert_eq!(embedded(&page)[0]["report"], report);
    assert!(page.starts_with("<!DOCTYPE html>"), "{}", &page[..40]);
    for part in ["Pool ", "Most confidently wrong", "data:image/jpeg;base64,"] {
        assert!(page.contains(part), "no {part:?}");
    }
    for word in ["http://", "https://", "url(", "@import", "src=\"/"] {
        let found: Vec<&str> = page
            .match_indices(word)
            .map(|(at, _)| &page[at..at + 40])
            .collect();
        // The name of a namespace is no address that is asked for.
        let names = found.iter().all(|at| at.contains("www.w3.org/2000/svg"));
        assert!(names, "{found:?}");
    }
    let ids = ids(&page);
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>().len(),
        ids.len(),
        "{ids:?}"
    );
    assert!(page.len() < 400_000, "{} bytes", page.len());

    // The accuracy of a task is the mean of its classes, which have as many test images each.
    let mut csv = csv::Reader::from_path(lab.path("run/classes.csv")).unwrap();
    let head: Vec<&str> = csv.headers().unwrap().iter().collect();
    assert_eq!(
        head,
        [
            "class",
            "task",
            "test_images",
            "after_1",
            "after_2",
            "after_3"
        ]
    );
    let rows: Vec<Vec<String>> = csv.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), CLASSES.len());
    for (t, row) in report["accuracy_matrix"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        for (i, accuracy) in row.as_array().unwrap().iter().enumerate() {
            let of_task = rows.iter().filter(|row| row[1] == (i + 1).to_string());
            let values: Vec<f64> = of_task.map(|row| row[3 + t].parse().unwrap()).collect();
            assert_eq!(values.len(), 2);
            assert!((values.iter().sum::<f64>() / 2.0 - accuracy.as_f64().unwrap()).abs() < 1e-9);
        }
        let later = rows
            .iter()
            .filter(|row| row[1].parse::<usize>().unwrap() > t + 1);
        assert!(later.clone().all(|row| row[3 + t].is_empty()));
    }

    // Made anew from the files it is the same, but for nothing.
    let said = lab.say("page run --out again.html");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(said.out, "The page is again.html\n");
    assert!(lab.text("again.html") == page);
    // Without the images they are named, and nothing else is lost.
    std::fs::rename(lab.path("images"), lab.path("elsewhere")).unwrap();
    assert_eq!(lab.say("page run --out named.html").code, Some(0));
    let named = lab.text("named.html");
    assert!(named.contains("named only") && !named.contains("data:image/jpeg"));
    assert_eq!(embedded(&named), embedded(&page));
}

#[test]
fn several_runs_share_a_page_that_says_whether_they_compare() {
    let lab = Lab::new();
    lab.run("simplecil", "one", "");
    lab.run("linear", "two", "");
    lab.run("simplecil", "other", "--set backbone.depth=1");
    let said = lab.say("page one two");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let page = lab.text("report.html");
    assert!(page.contains("Comparable: same weights"), "they compare");
    assert!(!page.contains("Not comparable"));
    let said = lab.say("page one other --out here.html");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let page = lab.text("here.html");
    assert!(page.contains("Not comparable") && page.contains("differ in depth"));
    let embedded = embedded(&page);
    for (n, run) in ["one", "other"].iter().enumerate() {
        assert_eq!(embedded[n]["name"], *run);
        assert_eq!(
            embedded[n]["report"],
            lab.json(&format!("{run}/report.json"))
        );
    }
    let ids = ids(&page);
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>().len(),
        ids.len(),
        "{ids:?}"
    );

    lab.run("simplecil", "many", "--seeds 1,2");
    assert!(lab.text("many/report.html").contains("seed-2"));
    let said = lab.say("page many one --out mixed.html");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(lab.text("mixed.html").contains("many/seed-1"));

    lab.say("page nowhere")
        .failed(&["nowhere", "no such run directory"]);
    lab.say("page one --out nowhere/x.html")
        .failed(&["nowhere", "no such folder"]);
    lab.write("broken/report.json", lab.read("one/report.json"));
    lab.write("broken/classes.csv", "class,task\na,x\n");
    lab.say("page broken").failed(&["broken", "classes.csv"]);
}

/// Names are data, whatever is in them.
#[test]
fn names_of_classes_cannot_leave_their_place() {
    let lab = Lab::new();
    let evil = "</script><img src=x onerror=alert(1)>&\"'";
    // A folder cannot have a slash in its name; a record can.
    lab.run("simplecil", "run", "");
    for file in ["report.json", "predictions.csv", "classes.csv"] {
        let text = lab.text(&format!("run/{file}"));
        let name = match file {
            "report.json" => serde_json::to_string(evil)
                .unwrap()
                .trim_matches('"')
                .to_owned(),
            _ => format!("\"{}\"", evil.replace('"', "\"\"")),
        };
        let text = match file {
            "report.json" => text.replace("\"cat\"", &format!("\"{name}\"")),
            _ => text
                .replace(",cat", &format!(",{name}"))
                .replace("\ncat,", &format!("\n{name},")),
        };
        lab.write(&format!("run/{file}"), text);
    }
    assert_eq!(lab.say("page run").code, Some(0));
    let page = lab.text("run/report.html");
    assert!(!page.contains("<img src=x"), "a name became markup");
    assert!(page.contains("&lt;/script&gt;&lt;img src=x"));
    assert_eq!(embedded(&page)[0]["report"], lab.json("run/report.json"));
    let Some(mut browser) = Browser::open() else {
        return;
    };
    browser.go(&format!("file://{}", lab.path("run/report.html").display()));
    assert_eq!(browser.complaints(), Vec::<&Value>::new());
    assert_eq!(
        browser.eval("document.querySelectorAll('img[src=x]').length"),
        0
    );
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} is not {b}");
}

/// The numbers of a page with one run, as the browser has them, against its report.
fn shows(browser: &mut Browser, report: &Value) {
    let metrics = browser.eval(
        "[...document.querySelectorAll('#summary [data-metric]')].map(e => \
         [e.dataset.metric, e.querySelector('data').value, e.querySelector('data').textContent])",
    );
    let metrics = metrics.as_array().unwrap();
    assert_eq!(metrics.len(), report["metrics"].as_object().unwrap().len());
    for metric in metrics {
        let [name, value, text] = [0, 1, 2].map(|i| metric[i].as_str().unwrap());
        let expected = report["metrics"][name].as_f64().unwrap();
        close(value.parse().unwrap(), expected);
        let text = text.replace('\u{2212}', "-");
        assert_eq!(
            text.parse::<f64>().unwrap(),
            format!("{expected:.2}").parse::<f64>().unwrap()
        );
    }
    let matrix = browser.eval(
        "[...document.querySelectorAll('[data-table=matrix] tbody tr')].map(r => \
         [...r.querySelectorAll('data')].map(d => Number(d.value)))",
    );
    let matrix = matrix.as_array().unwrap();
    let expected = report["accuracy_matrix"].as_array().unwrap();
    assert_eq!(matrix.len(), expected.len());
    for (row, expected) in matrix.iter().zip(expected) {
        let (row, expected) = (floats(row), floats(expected));
        assert_eq!(row.len(), expected.len());
        row.iter().zip(&expected).for_each(|(a, b)| close(*a, *b));
    }
    let curve = browser.eval(
        "[...document.querySelectorAll('#curve svg.wide .c0 .point')].map(p => Number(p.dataset.value))",
    );
    for (value, expected) in floats(&curve)
        .iter()
        .zip(floats(&report["session_accuracy"]["micro"]))
    {
        assert!(
            (value - expected).abs() < 0.005 + 1e-9,
            "{value}: {expected}"
        );
    }
    let embedded = browser.eval("document.getElementById('reports').textContent");
    let embedded: Value = serde_json::from_str(embedded.as_str().unwrap()).unwrap();
    assert_eq!(&embedded[0]["report"], report);
    let read = "JSON.parse(document.getElementById('reports').textContent)[0].report.method";
    assert_eq!(browser.eval(read), report["method"]);
}

/// Text whose contrast with what it stands on is below 4.5 to 1. Colours are read back from a canvas, so that any notation
/// will do.
const PALE: &str = r#"(() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => { pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); return [...pixel.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const ground = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || /^(SCRIPT|STYLE)$/.test(e.tagName) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgba(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(walk.currentNode.textContent.trim() + ": " + ratio.toFixed(2));
  }
  return bad;
})()"#;

/// How far things moved that a person was looking at.
const SHIFT: &str = "new Promise(done => { let sum = 0; \
    new PerformanceObserver(list => { for (const e of list.getEntries()) sum += e.value; }) \
    .observe({ type: 'layout-shift', buffered: true }); setTimeout(() => done(sum), 300); })";

#[test]
fn a_browser_shows_the_numbers_of_the_report_and_asks_nobody() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let lab = Lab::new();
    lab.run("l2p", "run", "");
    lab.run("linear", "two", "");
    assert_eq!(lab.say("page run two --out both.html").code, Some(0));
    for (file, alone) in [("run/report.html", true), ("both.html", false)] {
        let address = format!("file://{}", lab.path(file).display());
        for (width, scheme) in [
            (375, "light"),
            (375, "dark"),
            (1280, "light"),
            (1280, "dark"),
        ] {
            browser.screen(width, 900, scheme);
            browser.go(&address);
            let asked = browser.requests();
            let outside = asked
                .iter()
                .filter(|url| !url.starts_with("data:") && **url != address);
            assert_eq!(outside.collect::<Vec<_>>(), Vec::<&String>::new());
            assert_eq!(browser.complaints(), Vec::<&Value>::new(), "{file}");
            let shift = browser.eval(SHIFT).as_f64().unwrap();
            // A hundredth of the screen is seen by nobody.
            assert!(shift < 0.01, "{file} moves by {shift} at {width}");
            browser.eval("document.querySelectorAll('details').forEach(d => { d.open = true; })");
            assert_eq!(
                browser.eval(PALE),
                serde_json::json!([]),
                "{file} {scheme} {width}"
            );
            let wide = browser
                .eval("document.documentElement.scrollWidth")
                .as_u64()
                .unwrap();
            assert!(
                wide <= u64::from(width),
                "{file}: {wide} px on a screen of {width}"
            );
            if alone {
                shows(&mut browser, &lab.json("run/report.json"));
            }
        }
    }
}

#[test]
fn the_curve_is_read_by_keyboard_and_pointer() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let lab = Lab::new();
    lab.run("simplecil", "run", "");
    let micro = floats(&lab.json("run/report.json")["session_accuracy"]["micro"]);
    let tip = "(t => t.hidden ? '' : t.textContent)(document.querySelector('#curve .tip'))";
    for width in [375, 1280] {
        browser.screen(width, 900, "light");
        browser.go(&format!("file://{}", lab.path("run/report.html").display()));
        assert_eq!(browser.eval(tip), "");
        // One stop of the tabulator, wherever it is.
        let stops = "[...document.querySelectorAll('#curve .point')].filter(p => p.tabIndex === 0 && p.getClientRects().length).length";
        assert_eq!(browser.eval(stops), 1);
        let mut steps = 0;
        while browser.eval("document.activeElement.classList.contains('point')") != true {
            browser.press("Tab");
            steps += 1;
            assert!(steps < 60, "the tabulator never comes to the curve");
        }
        let value = |t: usize| format!("{:.2}", micro[t]);
        let says = |browser: &mut Browser, t: usize| {
            let text = browser.eval(tip);
            let text = text.as_str().unwrap();
            assert!(
                text.contains(&format!("classes seen {}", 2 * (t + 1))),
                "{text}"
            );
            assert!(text.contains(&value(t)), "{text}: {}", value(t));
            let label = browser.eval("document.activeElement.ariaLabel");
            assert!(label.as_str().unwrap().contains(&value(t)), "{label}");
        };
        says(&mut browser, 0);
        for (key, t) in [
            ("ArrowRight", 1),
            ("End", 2),
            ("ArrowLeft", 1),
            ("Home", 0),
            ("ArrowLeft", 0),
        ] {
            browser.press(key);
            says(&mut browser, t);
        }
        browser.press("Escape");
        assert_eq!(browser.eval(tip), "");
        browser.eval("document.activeElement.blur()");
        let middle = "(r => [r.x + r.width / 2, r.y + r.height / 2])([...document.querySelectorAll('#curve .point')]\
            .filter(p => p.getClientRects().length)[1].getBoundingClientRect())";
        browser.eval("document.querySelector('#curve').scrollIntoView({ behavior: 'instant' })");
        let at = floats(&browser.eval(middle));
        browser.point(at[0], at[1]);
        let text = browser.eval(tip);
        assert!(text.as_str().unwrap().contains(&value(1)), "{text}");
        browser.point(1.0, 1.0);
    }
}
