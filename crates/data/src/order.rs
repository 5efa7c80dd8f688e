//! Class orders: natural, spelled out, or shuffled exactly as numpy's or Python's generator does it.

use std::collections::HashMap;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// The order in which classes arrive. In a recipe: `"natural"`, `{ numpy = 1993 }`, `{ python = 1 }`,
/// `[3, 1, 2, 0]` (positions in the natural order) or `["dog", "cat"]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Order {
    /// As the source lists them: folders by name.
    #[default]
    Natural,
    /// `numpy.random.RandomState(seed).permutation(classes)`, which is also what `numpy.random.seed(seed)`
    /// followed by `numpy.random.permutation(classes)` gives.
    Numpy(u32),
    /// `random.Random(seed).shuffle(list(range(classes)))` of Python 3.
    Python(u64),
    /// Each class once, by its position in the natural order.
    Positions(Vec<usize>),
    /// Each class once, by name.
    Names(Vec<String>),
}

impl Order {
    /// `resolved[label]` is the position in `classes` of the class that arrives as `label`.
    ///
    /// # Errors
    /// [`Error::Setting`] for `order`, when a spelled-out order names a class twice, not at all, or one
    /// that does not exist.
    pub fn resolve(&self, classes: &[String]) -> Result<Vec<usize>> {
        self.resolve_of(classes, ["class", "classes"])
    }

    /// The same of other things than classes; `what` says one and many of them in errors.
    pub(crate) fn resolve_of(&self, classes: &[String], what: [&str; 2]) -> Result<Vec<usize>> {
        let [one, many] = what;
        match self {
            Self::Natural => Ok((0..classes.len()).collect()),
            Self::Numpy(seed) => Ok(numpy_permutation(*seed, classes.len())),
            Self::Python(seed) => Ok(python_shuffle(*seed, classes.len())),
            Self::Positions(order) => complete(order.clone(), classes, what),
            Self::Names(names) => {
                let known: HashMap<&str, usize> = classes
                    .iter()
                    .enumerate()
                    .map(|(i, name)| (name.as_str(), i))
                    .collect();
                let order = names.iter().map(|name| {
                    known.get(name.as_str()).copied().ok_or_else(|| {
                        let first = classes.first().map_or("", String::as_str);
                        let problem = format!(
                            "names {one} `{name}`, which the data set does not have; it has {} {many}, \
                             the first is `{first}`",
                            classes.len()
                        );
                        Error::setting("order", problem)
                    })
                });
                complete(order.collect::<Result<_>>()?, classes, what)
            }
        }
    }
}

/// Passes an order on if it holds each of the classes exactly once.
fn complete(order: Vec<usize>, classes: &[String], [one, many]: [&str; 2]) -> Result<Vec<usize>> {
    let mut seen = vec![false; classes.len()];
    for class in &order {
        let problem = match seen.get_mut(*class) {
            Some(seen) if !*seen => {
                *seen = true;
                continue;
            }
            Some(_) => format!("holds {one} {class} (`{}`) twice", classes[*class]),
            None => format!(
                "holds {one} {class}, but there are only {} (they count from 0)",
                classes.len()
            ),
        };
        return Err(Error::setting("order", problem));
    }
    match seen.iter().position(|seen| !seen) {
        Some(missing) => {
            let problem = format!(
                "must hold each of the {} {many} once, found {}; {one} {missing} (`{}`) is missing",
                classes.len(),
                order.len(),
                classes[missing]
            );
            Err(Error::setting("order", problem))
        }
        None => Ok(order),
    }
}

impl Serialize for Order {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let (name, seed) = match self {
            Self::Numpy(seed) => ("numpy", u64::from(*seed)),
            Self::Python(seed) => ("python", *seed),
            Self::Natural => return serializer.serialize_str("natural"),
            Self::Positions(order) => return order.serialize(serializer),
            Self::Names(order) => return order.serialize(serializer),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(name, &seed)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(OrderVisitor)
    }
}

/// Written out, because serde's untagged enums cannot say what is wrong.
struct OrderVisitor;

impl<'de> Visitor<'de> for OrderVisitor {
    type Value = Order;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(
            "a class order: \"natural\", { numpy = SEED }, { python = SEED }, or a list of all class numbers \
             or of all class names",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Order, E> {
        match text {
            "natural" => Ok(Order::Natural),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Order, A::Error> {
        let order = match map.next_key::<String>()?.as_deref() {
            Some("numpy") => Order::Numpy(map.next_value()?),
            Some("python") => Order::Python(map.next_value()?),
            Some(other) => return Err(de::Error::unknown_field(other, &["numpy", "python"])),
            None => return Err(de::Error::invalid_length(0, &self)),
        };
        match map.next_key::<String>()? {
            None => Ok(order),
            Some(_) => Err(de::Error::custom(
                "a class order has one generator: `numpy` or `python`",
            )),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Order, A::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a class number or a class name")]
        enum Item {
            Position(usize),
            Name(String),
        }
        let (mut positions, mut names) = (Vec::new(), Vec::new());
        while let Some(item) = seq.next_element()? {
            match item {
                Item::Position(position) => positions.push(position),
                Item::Name(name) => names.push(name),
            }
        }
        match (positions.is_empty(), names.is_empty()) {
            (_, true) => Ok(Order::Positions(positions)),
            (true, false) => Ok(Order::Names(names)),
            (false, false) => Err(de::Error::custom(
                "a class order is of numbers or of names, not of both",
            )),
        }
    }
}

/// The Mersenne Twister with 32-bit words (Matsumoto and Nishimura 1998), as `mt19937ar.c` spells it.
pub struct Mt19937 {
    state: Vec<u32>,
    next: usize,
}

const WORDS: usize = 624;

impl Mt19937 {
    /// `init_genrand`: how numpy's `RandomState` takes a seed below 2^32.
    pub fn numpy(seed: u32) -> Self {
        let mut state = vec![seed; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { state, next: WORDS }
    }

    /// `init_by_array` of the seed's 32-bit words: how Python's `random.Random` takes an integer.
    pub fn python(seed: u64) -> Self {
        let key = match (seed as u32, (seed >> 32) as u32) {
            (low, 0) => vec![low],
            (low, high) => vec![low, high],
        };
        let mut generator = Self::numpy(19_650_218);
        let state = &mut generator.state;
        let mut i = 1;
        let mut advance = |state: &mut [u32], factor: u32, add: &dyn Fn(usize) -> u32| {
            let last = state[i - 1];
            state[i] = (state[i] ^ (last ^ (last >> 30)).wrapping_mul(factor)).wrapping_add(add(i));
            i += 1;
            if i == WORDS {
                state[0] = state[WORDS - 1];
                i = 1;
            }
        };
        for k in 0..WORDS {
            let j = k % key.len();
            advance(state, 1_664_525, &|_| key[j].wrapping_add(j as u32));
        }
        for _ in 1..WORDS {
            advance(state, 1_566_083_941, &|i| (i as u32).wrapping_neg());
        }
        state[0] = 0x8000_0000;
        generator
    }

    /// The next word.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            for i in 0..WORDS {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % WORDS] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

/// numpy's legacy `RandomState(seed).permutation(n)`: from the last index down, each is swapped with one drawn
/// from 0..=i by rejection of masked words. (`numpy/numpy:numpy/random/mtrand.pyx`)
pub fn numpy_permutation(seed: u32, n: usize) -> Vec<usize> {
    let mut generator = Mt19937::numpy(seed);
    permuted(n, |i| {
        let mask = u32::MAX
            .checked_shr((i as u32).leading_zeros())
            .unwrap_or(0);
        loop {
            let value = (generator.next_u32() & mask) as usize;
            if value <= i {
                return value;
            }
        }
    })
}

/// Python's `random.Random(seed).shuffle(list(range(n)))`: the same walk, each index drawn from the top bits of
/// a word, as many as i + 1 has. (`python/cpython:Lib/random.py`)
pub fn python_shuffle(seed: u64, n: usize) -> Vec<usize> {
    let mut generator = Mt19937::python(seed);
    permuted(n, |i| {
        let shift = (i as u32 + 1).leading_zeros();
        loop {
            let value = (generator.next_u32() >> shift) as usize;
            if value <= i {
                return value;
            }
        }
    })
}

fn permuted(n: usize, mut up_to: impl FnMut(usize) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, up_to(i));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct Recipe {
        order: Order,
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class{i}")).collect()
    }

    #[test]
    fn every_form_is_read_and_written_back() {
        let forms = [
            ("order = \"natural\"", Order::Natural),
            ("order = { numpy = 1993 }", Order::Numpy(1993)),
            (
                "order = { python = 5000000000 }",
                Order::Python(5_000_000_000),
            ),
            ("order = [2, 0, 1]", Order::Positions(vec![2, 0, 1])),
            (
                "order = [\"b\", \"a\"]",
                Order::Names(vec!["b".into(), "a".into()]),
            ),
        ];
        for (text, order) in forms {
            let read: Recipe = toml::from_str(text).unwrap();
            assert_eq!(read.order, order);
            let again: Recipe = toml::from_str(&toml::to_string(&read).unwrap()).unwrap();
            assert_eq!(again.order, order);
        }
    }

    #[test]
    fn a_wrong_form_is_named() {
        let message = |text: &str| toml::from_str::<Recipe>(text).unwrap_err().to_string();
        assert!(
            message("order = \"random\"")
                .contains("expected a class order: \"natural\", { numpy = SEED }")
        );
        assert!(
            message("order = { torch = 1 }")
                .contains("unknown field `torch`, expected `numpy` or `python`")
        );
        assert!(message("order = { numpy = 1, python = 2 }").contains("one generator"));
        assert!(message("order = [1, \"b\"]").contains("of numbers or of names, not of both"));
        assert!(message("order = { numpy = 4294967296 }").contains("4294967296"));
    }

    #[test]
    fn orders_must_hold_each_class_once() {
        let message = |order: Order| order.resolve(&names(3)).unwrap_err().to_string();
        assert_eq!(
            message(Order::Positions(vec![0, 1, 1])),
            "setting `order`: holds class 1 (`class1`) twice"
        );
        assert_eq!(
            message(Order::Positions(vec![0, 1])),
            "setting `order`: must hold each of the 3 classes once, found 2; class 2 (`class2`) is missing"
        );
        assert_eq!(
            message(Order::Positions(vec![0, 1, 3])),
            "setting `order`: holds class 3, but there are only 3 (they count from 0)"
        );
        assert_eq!(
            message(Order::Names(vec!["class0".into(), "klass1".into()])),
            "setting `order`: names class `klass1`, which the data set does not have; it has 3 classes, \
             the first is `class0`"
        );
        let order = Order::Names(vec!["class2".into(), "class0".into(), "class1".into()]);
        assert_eq!(order.resolve(&names(3)).unwrap(), [2, 0, 1]);
        assert_eq!(Order::Natural.resolve(&names(3)).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn no_classes_and_one_class_need_no_draw() {
        for n in [0, 1] {
            assert_eq!(numpy_permutation(1, n), (0..n).collect::<Vec<_>>());
            assert_eq!(python_shuffle(1, n), (0..n).collect::<Vec<_>>());
        }
    }
}
