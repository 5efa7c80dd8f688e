//! Gradients of every method, by differences of its loss.

use candle_core::Tensor;
use candlewick_core::{Batch, Method, Params, Prompt, Prompted, Result, Stream, View};
use candlewick_methods::choice::BatchVote;
use candlewick_methods::vpt::{Depth, Start};
use candlewick_methods::{
    Aper, Coda, Dap, Draw, DualPrompt, L2p, RandomPrompt, Tuning, Vpt, conformance,
};

use crate::lab::{micro, micro_in, odd_stream, quick};
use crate::near::precisions;

const DRAW: Draw = Draw::Between([-0.5, 0.5]);

/// Three images of a task of the stream.
fn some(stream: &Stream, task: usize) -> Batch {
    let train = &stream.tasks[task].train;
    train.batches(View::Plain, 3).next().unwrap().unwrap()
}

/// In the first task and in the third, behind one of a single class.
fn hold<P: Prompt>(mut method: Prompted<P>, cut: &[&str]) {
    let stream = odd_stream(false);
    for (t, task) in stream.tasks.iter().enumerate().take(3) {
        method.begin_task(&task.info).unwrap();
        // A step, so that nothing is as it was drawn.
        let batch = some(&stream, t);
        method.observe(&batch).unwrap();
        if t != 1 {
            conformance::gradients(&|| method.loss(&batch), method.params(), cut).unwrap();
        }
    }
}

fn vpt(depth: Depth) -> Vpt {
    Vpt {
        depth,
        length: 2,
        init: Start::XavierUniform,
    }
}

#[test]
fn vpt_has_the_gradients_of_its_loss() {
    for depth in [Depth::Shallow, Depth::Deep] {
        hold(vpt(depth).build(micro(), quick(), 1).unwrap(), &[]);
    }
    let random = RandomPrompt { length: 2 };
    hold(random.build(micro(), quick(), 1).unwrap(), &[]);
}

#[test]
fn aper_on_prompts_has_the_gradients_of_its_loss() {
    let tuning = Tuning::VptDeep {
        length: 2,
        init: Start::XavierUniform,
    };
    let mut method = Aper { tuning }.build(micro(), quick(), 16, 1).unwrap();
    let stream = odd_stream(false);
    method.begin_task(&stream.tasks[0].info).unwrap();
    let batch = some(&stream, 0);
    let look = method.look();
    conformance::gradients(&|| look.loss(&batch), look.params().unwrap(), &[]).unwrap();
}

/// All prompts are taken, since a choice has no slope.
#[test]
fn l2p_has_the_gradients_of_its_loss() {
    let config = L2p {
        prompts: 3,
        length: 2,
        top_k: 3,
        pull: 0.5,
        prompt_init: DRAW,
        key_init: DRAW,
        layout: Default::default(),
        prompt_mask: false,
        batch_vote: BatchVote::Never,
    };
    hold(config.build(micro(), quick(), 1).unwrap(), &[]);
}

#[test]
fn dualprompt_has_the_gradients_of_its_loss() {
    let config = DualPrompt {
        g_blocks: vec![0],
        g_length: 2,
        e_blocks: vec![1],
        e_length: 3,
        pull: 0.5,
        prompt_init: DRAW,
        key_init: DRAW,
        batch_vote: BatchVote::Never,
        compat: None,
    };
    hold(config.build(micro(), quick(), 1).unwrap(), &[]);
}

/// Components of earlier tasks are constants.
#[test]
fn coda_has_the_gradients_of_its_loss() {
    let config = Coda {
        blocks: vec![0, 1],
        components: 2,
        length: 4,
        orthogonality: 0.1,
    };
    let old = ["a.0.", "a.1.", "k.0.", "k.1.", "p.0.", "p.1."];
    let stream = odd_stream(false);
    let mut method = config.build(micro(), quick(), 1).unwrap();
    for t in 0..3 {
        method.begin_task(&stream.tasks[t].info).unwrap();
        let batch = some(&stream, t);
        method.observe(&batch).unwrap();
        let cut = if t == 0 { &[][..] } else { &old[..] };
        if t != 1 {
            conformance::gradients(&|| method.loss(&batch), method.params(), cut).unwrap();
        }
    }
}

/// The norms of the two halves of `film` count as constants, and so does `down` behind the first task.
#[test]
fn dap_has_the_gradients_of_its_loss() {
    let config = Dap {
        length: 2,
        embedding: 4,
        pull: 0.5,
        blocks: None,
        init: Start::XavierUniform,
        batch_vote: BatchVote::Never,
        mask_logits: false,
    };
    let cut = ["blocks.0.film", "blocks.1.film", "embeddings."];
    let stream = odd_stream(false);
    let mut method = config.build(micro(), quick(), 1).unwrap();
    method.begin_task(&stream.tasks[0].info).unwrap();
    let batch = some(&stream, 0);
    conformance::gradients(&|| method.loss(&batch), method.params(), &cut).unwrap();
    let down = [
        "blocks.0.film",
        "blocks.1.film",
        "embeddings.",
        "blocks.0.down",
        "blocks.1.down",
    ];
    method.begin_task(&stream.tasks[1].info).unwrap();
    method.begin_task(&stream.tasks[2].info).unwrap();
    let batch = some(&stream, 2);
    conformance::gradients(&|| method.loss(&batch), method.params(), &down).unwrap();
}

/// The suite has teeth: a gradient that is scaled, and one that is cut.
#[test]
fn wrong_gradients_are_caught() {
    let mut params = Params::seeded(1, &candle_core::Device::Cpu);
    let init = candlewick_core::Init::Normal { std: 1.0 };
    let w = params.create("w", &[4], init).unwrap();
    let right = || -> Result<Tensor> { Ok(w.sqr()?.sum_all()?) };
    conformance::gradients(&right, &params, &[]).unwrap();
    let half = || -> Result<Tensor> { Ok((&w * w.detach())?.sum_all()?) };
    let cut = || -> Result<Tensor> { Ok((w.detach().sqr()?.sum_all()? + w.sum_all()? * 0.0)?) };
    for wrong in [&half as &dyn Fn() -> Result<Tensor>, &cut] {
        let text = conformance::gradients(wrong, &params, &[]).unwrap_err();
        assert!(text.to_string().contains("gradient of `w`"), "{text}");
    }
    conformance::gradients(&half, &params, &["w"]).unwrap();
    // What was moved is back where it was.
    conformance::gradients(&right, &params, &[]).unwrap();
}

#[test]
fn an_empty_prompt_is_the_plain_backbone() {
    let batch = some(&odd_stream(false), 0);
    for precision in precisions() {
        conformance::empty_prompt(micro_in(precision).as_ref(), &batch.images).unwrap();
    }
}
