//! A prompt module of one's own: eight free tokens at the input of the first three blocks, the same for every
//! image. Head, loss, optimiser, task growth and saving come from `Prompted`.
//!
//! `cargo run --release -p candlewick-examples --example custom_prompt`

use std::error::Error;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Cue, Init, Injection, OptimizerKind, Params, Pool, Position, Prompt, Prompted,
    Result, RunOptions, Site, Span, Tokens, Train, run::run,
};
use candlewick_examples::{tasks, vit_micro};

struct FreeTokens {
    blocks: Vec<Tensor>, // one (1, 8, D) per block
}

impl FreeTokens {
    fn new(backbone: &dyn Backbone, params: &mut Params) -> Result<Self> {
        let shape = [1, 8, backbone.spec().dim];
        let init = Init::Uniform {
            low: -0.1,
            high: 0.1,
        };
        let blocks = (0..3).map(|i| params.create(&format!("tokens.{i}"), &shape, init));
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
        })
    }
}

impl Prompt for FreeTokens {
    fn inject(&self, site: Site, tokens: &Tensor, _: &Cue) -> Result<Injection> {
        let Site::Block(i) = site else {
            return Ok(Injection::default());
        };
        let Some(own) = self.blocks.get(i) else {
            return Ok(Injection::default());
        };
        let (_, p, d) = own.dims3()?;
        let values = own.expand((tokens.dim(0)?, p, d))?;
        let tokens = Some(Tokens {
            values,
            span: Span::ThisBlock,
            position: Position::None,
        });
        Ok(Injection {
            tokens,
            ..Default::default()
        })
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let (backbone, preprocess) = vit_micro()?;
    let stream = tasks(&candlewick_data::demo()?, 25, &preprocess)?;
    let train = Train {
        clip: Some(1.0),
        ..Train::new(2, 16, OptimizerKind::Adam, 0.003)
    };
    let mut method = Prompted::new(backbone, Pool::Cls, train, 1, FreeTokens::new)?;
    let options = RunOptions {
        seed: 1,
        eval_batch: 32,
    };
    let outcome = run(&mut method, &stream, options, &mut ())?;
    println!(
        "accuracy after each task: {:.2?} %",
        outcome.accuracy.micro_curve()
    );
    Ok(())
}
