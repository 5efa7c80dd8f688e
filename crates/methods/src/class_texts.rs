//! What classes are called, as points of the joint space of a CLIP.
//!
//! ```text
//! u_c = unit(mean over templates of unit(text("a photo of a {c}.")))          (E)
//! z_c(x) = exp(s) · unit(image(x)) · u_c
//! ```
//!
//! The ensemble is that of Radford et al. 2021 (`openai/CLIP:notebooks/Prompt_Engineering_for_ImageNet.ipynb`). A class is encoded when
//! it arrives and stays as it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use candlewick_core::language::unit;
use candlewick_core::{Backbone, Error, Language, Result, State, TaskInfo};

use crate::templates::Templates;

/// The text tower of a backbone; an error where there is none.
pub fn language(backbone: &dyn Backbone) -> Result<Arc<dyn Language>> {
    backbone.language().ok_or_else(|| {
        Error::setting(
            "backbone",
            "has no text tower, which this method reads class names with; take a CLIP, such as \"clip-micro\" or \"clip-vit-base-patch16\"",
        )
    })
}

/// That a task brings its classes behind the `known` ones, and a name for each.
pub(crate) fn arrive(task: &TaskInfo, known: usize) -> Result<()> {
    match task.classes.start == known && task.names.len() == task.classes.len() {
        true => Ok(()),
        false => Err(Error::State {
            problem: format!(
                "task {} brings classes {:?} with {} names, and {known} are known; a method that reads class names needs one for each class, in order of arrival",
                task.index + 1,
                task.classes,
                task.names.len()
            ),
        }),
    }
}

/// Where what was learned of texts is saved.
const TEXTS: &str = "texts";

/// Texts of all classes that arrived.
pub struct ClassTexts {
    language: Arc<dyn Language>,
    templates: Templates,
    /// `(classes, E)`, of length 1.
    rows: Option<Tensor>,
    /// Those of tasks that have not come, by the names of their classes.
    ahead: Mutex<BTreeMap<Vec<String>, Tensor>>,
}

impl ClassTexts {
    /// No class yet.
    pub fn new(language: Arc<dyn Language>, templates: Templates) -> Self {
        Self {
            language,
            templates,
            rows: None,
            ahead: Mutex::default(),
        }
    }

    /// The text tower.
    pub fn language(&self) -> &Arc<dyn Language> {
        &self.language
    }

    /// Makes room for the classes of a task that are new. Each is encoded once.
    pub fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        let known = self.classes()?;
        if task.classes.end <= known {
            return Ok(());
        }
        arrive(task, known)?;
        let names = &task.names;
        let new = ensembles(self.language.as_ref(), &self.templates, names)?;
        self.rows = Some(match &self.rows {
            Some(rows) => Tensor::cat(&[rows, &new], 0)?,
            None => new,
        });
        Ok(())
    }

    /// How many classes arrived.
    pub fn classes(&self) -> Result<usize> {
        Ok(match &self.rows {
            Some(rows) => rows.dim(0)?,
            None => 0,
        })
    }

    /// `(classes, E)`, each of length 1.
    pub fn rows(&self) -> Result<&Tensor> {
        self.rows.as_ref().ok_or_else(Error::no_task)
    }

    /// Scores `(B, classes)` of features of the backbone.
    pub fn scores(&self, features: &Tensor) -> Result<Tensor> {
        cosines(self.language.as_ref(), features, self.rows()?)
    }

    /// Scores `(B, classes of the task)`, also of a task that has not come, by what its classes are called.
    pub fn task_scores(&self, features: &Tensor, task: &TaskInfo) -> Result<Option<Tensor>> {
        let known = self.classes()?;
        if task.classes.end <= known {
            let rows = self
                .rows()?
                .narrow(0, task.classes.start, task.classes.len())?;
            return Ok(Some(cosines(self.language.as_ref(), features, &rows)?));
        }
        if task.names.len() != task.classes.len() {
            return Ok(None);
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = match ahead.get(&task.names) {
            Some(rows) => rows.clone(),
            None => {
                let rows = ensembles(self.language.as_ref(), &self.templates, &task.names)?;
                ahead.insert(task.names.clone(), rows.clone());
                rows
            }
        };
        Ok(Some(cosines(self.language.as_ref(), features, &rows)?))
    }

    /// Adds the texts to what is saved.
    pub fn save(&self, state: &mut State) {
        if let Some(rows) = &self.rows {
            state.insert(TEXTS.into(), rows.clone());
        }
    }

    /// Takes them out of what was saved; as many classes as were grown.
    pub fn load(&mut self, state: &mut State) -> Result<()> {
        let saved = state.remove(TEXTS);
        match (&self.rows, saved) {
            (None, None) => Ok(()),
            (Some(rows), Some(saved)) if rows.shape() == saved.shape() => {
                self.rows = Some(saved.to_device(rows.device())?);
                Ok(())
            }
            (rows, saved) => Err(Error::State {
                problem: format!(
                    "`{TEXTS}` has shape {:?}, expected {:?}",
                    saved.map(|t| t.dims().to_vec()),
                    rows.as_ref().map(|t| t.dims().to_vec())
                ),
            }),
        }
    }
}

/// `exp(s) · unit(images(features)) · textsᵀ`; `texts` `(C, E)` are of length 1.
pub fn cosines(language: &dyn Language, features: &Tensor, texts: &Tensor) -> Result<Tensor> {
    let images = unit(&language.images(features)?)?;
    let logits = images.matmul(&texts.t()?)?;
    Ok(logits.broadcast_mul(&language.scale()?)?)
}

/// `unit(mean over templates of unit(text))` of each name, `(n, E)`, detached.
pub fn ensembles(
    language: &dyn Language,
    templates: &Templates,
    names: &[String],
) -> Result<Tensor> {
    let texts: Vec<String> = names.iter().flat_map(|n| templates.about(n)).collect();
    let each = unit(&language.encode(&texts)?)?;
    let (n, dim) = (names.len(), language.spec().dim);
    let mean = each.reshape((n, texts.len() / n.max(1), dim))?.mean(1)?;
    Ok(unit(&mean)?.detach())
}
