//! Names that mean something to a format do not break it.

use candlewick_compare::{Comparison, format};

use crate::lab::{changed, entry, report};

const NASTY: &str = "a|b_50% <script>alert(\"x\")</script> & 'c', \\d {e} $f# ~^ [g] *h*\nnext";

fn nasty() -> Comparison {
    let mut other = changed(|r| {
        r.fingerprint.backbone = NASTY.into();
        r.fingerprint.weights = "ab".repeat(32);
        r.fingerprint.seed = 2;
    });
    other.method = NASTY.into();
    Comparison::new(vec![entry("plain", report(50.0)), entry(NASTY, other)]).unwrap()
}

#[test]
fn markdown_keeps_its_columns() {
    let text = format::markdown(&nasty());
    let rows: Vec<&str> = text
        .lines()
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(rows.len(), 4, "{text}");
    let columns = |row: &&str| {
        let escaped = row.matches("\\|").count();
        row.matches('|').count() - escaped
    };
    let counts: Vec<usize> = rows.iter().map(columns).collect();
    assert_eq!(counts, [10; 4], "{text}");
    assert!(!text.contains("<script"), "{text}");
    assert!(
        text.contains("a\\|b\\_50%") || text.contains("a\\|b_50%"),
        "{text}"
    );
}

#[test]
fn csv_is_read_back_as_it_was() {
    let text = format::csv(&nasty()).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let head = reader.headers().unwrap().clone();
    let at = |name: &str| head.iter().position(|h| h == name).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(&rows[1][at("result")], NASTY);
    assert_eq!(&rows[1][at("weights")], "ab".repeat(32));
    assert_eq!(&rows[0][at("last_accuracy_micro")], "50");
    assert_eq!(&rows[0][at("last_accuracy_micro_marks")], "a");
    assert_eq!(&rows[1][at("last_accuracy_micro_marks")], "b");
    assert_eq!(&rows[1][at("last_accuracy_micro_std")], "");
    let numerics = candlewick_core::report::NUMERICS.to_string();
    assert_eq!(&rows[1][at("numerics")], numerics);
}

#[test]
fn latex_has_nothing_that_it_would_read() {
    let text = format::latex(&nasty());
    assert!(
        text.contains("\\toprule") && text.contains("\\midrule") && text.contains("\\bottomrule")
    );
    let name = "a\\textbar{}b\\_50\\% \\textless{}script\\textgreater{}alert(\"x\")\\textless{}/script\\textgreater{} \\& 'c', \
                \\textbackslash{}d \\{e\\} \\$f\\# \\textasciitilde{}\\textasciicircum{} {[}g{]} *h* next";
    assert!(text.contains(name), "{text}");
    assert!(text.contains("50.00\\textsuperscript{b}"), "{text}");
    assert!(text.contains("last\\_accuracy\\_micro"), "{text}");
    // As many columns as the head says, in every row.
    let body = text.split("\\toprule\n").nth(1).unwrap();
    let rows = body.lines().filter(|line| line.ends_with(" \\\\"));
    let counts: Vec<usize> = rows.map(|row| row.matches(" & ").count()).collect();
    assert_eq!(counts, [8; 3], "{text}");
}

#[test]
fn html_is_a_fragment_with_nothing_live_in_it() {
    let text = format::html(&nasty());
    assert!(text.starts_with("<div class=\"cw-compare\">") && text.ends_with("</div>\n"));
    for part in [
        "<html", "<script", "<style", "onclick", " id=", "<a ", "http",
    ] {
        assert!(!text.contains(part), "{part} in {text}");
    }
    assert!(
        text.contains(
            "a|b_50% &lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#39;c&#39;"
        ),
        "{text}"
    );
    for part in [
        "<caption>",
        "<th scope=\"col\">",
        "<th scope=\"row\">",
        "<sup class=\"cw-mark\">b</sup>",
        "<dl class=\"cw-marks\">",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    // Every class is ours, every tag that is opened is closed, and in order.
    for class in text.split("class=\"").skip(1) {
        let names = class.split('"').next().unwrap();
        assert!(
            names.split(' ').all(|name| name.starts_with("cw-")),
            "{names}"
        );
    }
    let mut open: Vec<&str> = Vec::new();
    for tag in text.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{text}"),
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_lone_row_and_none_are_written() {
    for n in [0, 1] {
        let entries = (0..n).map(|_| entry("a", report(50.0))).collect();
        let comparison = Comparison::new(entries).unwrap();
        assert!(comparison.is_plain());
        for text in [
            format::markdown(&comparison),
            format::latex(&comparison),
            format::html(&comparison),
            format::csv(&comparison).unwrap(),
        ] {
            assert_eq!(
                text.matches("50.0").count() > 0,
                n == 1 && !text.starts_with("row,"),
                "{text}"
            );
            assert!(!text.contains("omparable"), "{text}");
        }
    }
}
