//! The law of resuming where the other laws do not reach, and that it has teeth.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Cue, Init, Injection, Method, Params, Pool, Position, Prompt, Prompted, Result,
    Session, Site, Span, TaskInfo, Tokens,
};
use candlewick_methods::{SimpleCil, conformance};

use crate::lab::{micro, odd_stream, quick};

/// A class that comes again in another domain: its sum must be there, its mean is not enough.
#[test]
fn means_of_classes_that_come_again_are_resumed() {
    let mut stream = odd_stream(false);
    stream.tasks.truncate(1);
    let mut again = stream.tasks[0].clone();
    again.info.index = 1;
    again.train = again.test.clone();
    stream.tasks.push(again);
    let backbone = micro();
    let build =
        || -> Result<Box<dyn Method>> { Ok(Box::new(SimpleCil {}.build(backbone.clone(), 16))) };
    conformance::resuming(&build, &stream).unwrap();
}

/// A token that grows with the steps of the task, and says so or not.
struct Counting {
    scale: Tensor,
    steps: AtomicU64,
    forgets: bool,
}

impl Prompt for Counting {
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        if site != Site::Embed {
            return Ok(Injection::default());
        }
        let steps = match cue.train {
            true => self.steps.fetch_add(1, Ordering::Relaxed),
            false => 0,
        };
        let (b, _, dim) = tokens.dims3()?;
        let values = (&self.scale * steps as f64)?.broadcast_as((b, 1, dim))?;
        let tokens = Some(Tokens {
            values,
            span: Span::ToTheEnd,
            position: Position::None,
        });
        Ok(Injection {
            tokens,
            ..Injection::default()
        })
    }

    fn begin_task(&mut self, _: &TaskInfo, _: &mut Params) -> Result<()> {
        self.steps = AtomicU64::new(0);
        Ok(())
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if !self.forgets {
            session.put_count("steps", self.steps.load(Ordering::Relaxed))?;
        }
        Ok(session)
    }

    fn resume(&mut self, mut session: Session) -> Result<()> {
        if !self.forgets {
            self.steps = AtomicU64::new(session.take_count("steps")?);
        }
        session.end()
    }
}

#[test]
fn a_counter_that_is_forgotten_is_caught() {
    let backbone = micro();
    let weights = backbone.weights().clone();
    let check = |forgets: bool| {
        let build = || -> Result<Box<dyn Method>> {
            let counting = |backbone: &dyn Backbone, params: &mut Params| {
                let dim = backbone.spec().dim;
                Ok(Counting {
                    scale: params.create("scale", &[1, 1, dim], Init::Normal { std: 1.0 })?,
                    steps: AtomicU64::new(0),
                    forgets,
                })
            };
            let method = Prompted::new(backbone.clone(), Pool::Cls, quick(), 1, counting)?;
            Ok(Box::new(method))
        };
        conformance::check(&build, &odd_stream(false), &weights)
    };
    check(false).unwrap();
    let text = check(true).unwrap_err().to_string();
    assert!(text.contains("taken up behind the step before"), "{text}");
}
