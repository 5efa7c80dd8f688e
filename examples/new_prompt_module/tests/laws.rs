//! The laws of candlewick's own methods, held to this one, and to one that breaks them.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

use candle_core::Tensor;
use candlewick_core::{
    Cue, Init, Injection, Method, Pool, Position, Prompt, Prompted, Result, Site, Span, Tokens,
    View,
};
use candlewick_methods::conformance;
use candlewick_new_prompt_module::{setup, steered};

/// Tasks of four, one and three classes.
const SIZES: [usize; 3] = [4, 1, 3];

#[test]
fn steered_tokens_keep_the_laws() {
    let (backbone, preprocess) = setup::backbone(2).unwrap();
    let stream = setup::stream(&SIZES, &preprocess).unwrap();
    let train = setup::train(2).unwrap();
    let weights = backbone.weights().clone();
    let build = || -> Result<Box<dyn Method>> {
        let method = steered::method(backbone.clone(), train.clone(), 1)?;
        Ok(Box::new(method))
    };
    conformance::check(&build, &stream, &weights).unwrap();
}

#[test]
fn steered_tokens_have_the_gradients_of_their_loss() {
    let (backbone, preprocess) = setup::backbone(2).unwrap();
    let stream = setup::stream(&SIZES, &preprocess).unwrap();
    let mut method = steered::method(backbone, setup::train(1).unwrap(), 1).unwrap();
    method.begin_task(&stream.tasks[0].info).unwrap();
    let mut batches = stream.tasks[0].train.batches(View::Plain, 4);
    let batch = batches.next().unwrap().unwrap();
    conformance::gradients(&|| method.loss(&batch), method.params(), &[]).unwrap();
}

/// What must not be done: its token is the mean over the images of the batch.
struct Neighbours {
    scale: Tensor,
}

impl Prompt for Neighbours {
    fn inject(&self, site: Site, tokens: &Tensor, _: &Cue) -> Result<Injection> {
        if site != Site::Embed {
            return Ok(Injection::default());
        }
        let (b, _, dim) = tokens.dims3()?;
        let mean = tokens.mean_keepdim(0)?.mean_keepdim(1)?;
        let values = mean.broadcast_mul(&self.scale)?.expand((b, 1, dim))?;
        let tokens = Some(Tokens {
            values,
            span: Span::ToTheEnd,
            position: Position::None,
        });
        Ok(Injection {
            tokens,
            ..Default::default()
        })
    }
}

#[test]
fn a_prompt_that_looks_at_its_neighbours_is_caught() {
    let (backbone, preprocess) = setup::backbone(2).unwrap();
    let stream = setup::stream(&SIZES, &preprocess).unwrap();
    let train = setup::train(1).unwrap();
    let weights = backbone.weights().clone();
    let build = || -> Result<Box<dyn Method>> {
        let init = Init::Uniform {
            low: 5.0,
            high: 10.0,
        };
        let method = Prompted::new(
            backbone.clone(),
            Pool::Cls,
            train.clone(),
            1,
            |backbone, params| {
                let scale = params.create("scale", &[1, 1, backbone.spec().dim], init)?;
                Ok(Neighbours { scale })
            },
        )?;
        Ok(Box::new(method))
    };
    let broken = conformance::check(&build, &stream, &weights).unwrap_err();
    let text = broken.to_string();
    assert!(text.contains("in a batch of 1, "), "{text}");
}

/// The README explains every line: its Rust, put together, is the module.
#[test]
fn the_readme_has_the_module_as_it_is() {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim_end).filter(|l| !l.is_empty());
        lines.map(str::to_owned).collect()
    };
    let readme = include_str!("../README.md");
    let blocks: String = readme
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    let module = include_str!("../src/steered.rs");
    let code: Vec<String> = lines(module)
        .into_iter()
        .filter(|line| !line.starts_with("//!"))
        .collect();
    assert_eq!(lines(&blocks), code);
    assert!(lines(module).len() < 60);
}
