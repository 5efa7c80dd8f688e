//! Numbers for people, with the number for programs beside them.

use maud::{Markup, html};

/// A no-break space, so that a number stays on its line.
const GAP: char = '\u{202f}';

/// Two digits behind the point; the whole number is in the markup.
pub fn percent(value: f64) -> Markup {
    match value.is_finite() {
        true => html! { data value=(value) { (fixed(value, 2)) } },
        false => html! { "not defined" },
    }
}

/// One digit, for narrow cells.
pub fn tenth(value: f64) -> Markup {
    html! { data value=(value) { (fixed(value, 1)) } }
}

/// With a true minus sign, and no minus before a zero.
pub fn fixed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| b == b'0' || b == b'.') => rest.to_owned(),
        Some(rest) => format!("\u{2212}{rest}"),
        None => text,
    }
}

/// A count in groups of three.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(GAP);
        }
        text.push(digit);
    }
    text
}

/// A count with its noun, in the plural unless there is one.
pub fn of(value: usize, noun: &str) -> String {
    let number = count(value as u64);
    match (value, noun.strip_suffix('y')) {
        (1, _) => format!("{number} {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ if noun.ends_with('s') => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

/// Seconds as a person says them.
pub fn seconds(value: f64) -> String {
    let (whole, minutes) = (value.round() as u64, (value / 60.0).round() as u64);
    match value {
        v if v < 10.0 => format!("{v:.2}{GAP}s"),
        v if v < 120.0 => format!("{v:.1}{GAP}s"),
        v if v < 7200.0 => format!("{}{GAP}min {}{GAP}s", whole / 60, whole % 60),
        _ => format!("{}{GAP}h {}{GAP}min", minutes / 60, minutes % 60),
    }
}

/// 1 MB = 10⁶ bytes.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1}{GAP}MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_they_are_written_by_hand() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_223_040), "1\u{202f}223\u{202f}040");
        assert_eq!(fixed(-13.754, 2), "\u{2212}13.75");
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(
            [
                of(1, "class"),
                of(2, "class"),
                of(5, "task"),
                of(0, "entry")
            ],
            ["1 class", "2 classes", "5 tasks", "0 entries"]
        );
        assert_eq!(seconds(8.594), "8.59\u{202f}s");
        assert_eq!(seconds(125.2), "2\u{202f}min 5\u{202f}s");
        assert_eq!(seconds(3599.9), "60\u{202f}min 0\u{202f}s");
        assert_eq!(percent(66.0).0, r#"<data value="66">66.00</data>"#);
        assert_eq!(percent(f64::NAN).0, "not defined");
    }
}
