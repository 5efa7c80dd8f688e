//! What a run needs besides what was learned to go on inside a task.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::method::State;

/// Named tensors and counters that belong to the training under way and not to what it leaves: moments of optimisers,
/// how many random draws were made, copies of models, sums of statistics.
///
/// Whoever takes up from a session takes its entries out one by one and [`end`](Self::end)s it, so that an entry that
/// nobody reads is an error. Names with dots make parts: what one part of a method puts under its own names is kept
/// apart by [`put_part`](Self::put_part).
///
/// A tensor that is put shares its values with its owner, who may go on to change them; a session is written or
/// copied before that. Whoever takes one makes a copy if it will be changed in place.
#[derive(Debug, Clone, Default)]
pub struct Session(State);

impl Session {
    /// Nothing: no task is under way.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a tensor.
    pub fn put(&mut self, name: &str, tensor: Tensor) {
        self.0.insert(name.to_owned(), tensor);
    }

    /// Adds a counter; it is kept as an i64 of the same bits.
    pub fn put_count(&mut self, name: &str, count: u64) -> Result<()> {
        self.put(name, Tensor::new(count as i64, &Device::Cpu)?);
        Ok(())
    }

    /// Adds all entries of `part` under `name.`.
    pub fn put_part(&mut self, name: &str, part: Self) {
        for (entry, tensor) in part.0 {
            self.0.insert(format!("{name}.{entry}"), tensor);
        }
    }

    /// Takes a tensor out; an error where there is none.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        self.0.remove(name).ok_or_else(|| Error::State {
            problem: format!("`{name}` is missing in the saved session"),
        })
    }

    /// Takes a tensor of this shape out.
    pub fn take_shaped(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.take(name)?;
        match tensor.dims() == shape {
            true => Ok(tensor),
            false => Err(Error::State {
                problem: format!(
                    "`{name}` of the saved session has shape {:?}, expected {shape:?}",
                    tensor.dims()
                ),
            }),
        }
    }

    /// Takes a counter out.
    pub fn take_count(&mut self, name: &str) -> Result<u64> {
        Ok(self.take_shaped(name, &[])?.to_scalar::<i64>()? as u64)
    }

    /// Takes out what was put as a part of this name; empty where nothing was.
    pub fn take_part(&mut self, name: &str) -> Self {
        let start = format!("{name}.");
        let (part, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(entry, _)| entry.starts_with(&start));
        self.0 = rest;
        let part: State = part;
        let inner = |(entry, tensor): (String, Tensor)| (entry[start.len()..].to_owned(), tensor);
        Self(part.into_iter().map(inner).collect())
    }

    /// That nothing is left.
    pub fn end(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::State {
                problem: format!("`{name}` of the saved session belongs to no part of this method"),
            }),
        }
    }

    /// All entries by name.
    pub fn tensors(&self) -> &State {
        &self.0
    }
}

impl From<State> for Session {
    fn from(tensors: State) -> Self {
        Self(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_taken_and_what_is_left_is_named() -> Result<()> {
        let mut inner = Session::new();
        inner.put_count("n", u64::MAX)?;
        inner.put("w", Tensor::new(&[1f64, 2.0], &Device::Cpu)?);
        let mut session = Session::new();
        session.put_count("n", 3)?;
        session.put_part("a", inner);
        assert_eq!(
            session.tensors().keys().collect::<Vec<_>>(),
            ["a.n", "a.w", "n"]
        );
        let mut inner = session.take_part("a");
        assert_eq!(inner.take_count("n")?, u64::MAX);
        assert_eq!(session.take_count("n")?, 3);
        let text = |error: Error| error.to_string();
        let shape = inner.clone().take_shaped("w", &[3]).map_err(text);
        assert!(shape.is_err_and(|t| t.contains("shape [2], expected [3]")));
        assert!(
            session
                .take("n")
                .map_err(text)
                .is_err_and(|t| t.contains("`n` is missing"))
        );
        assert!(session.end().is_ok());
        assert!(inner.end().map_err(text).is_err_and(|t| t.contains("`w`")));
        Ok(())
    }
}
