//! `--dry-run`: what a run would do, before anything is downloaded or trained.

use anyhow::Result;
use candlewick_core::{Scenario, Spec};

use crate::backbone::Outlook;
use crate::precision::Precision;
use crate::prepare::Plan;
use crate::table;
use crate::watch::megabytes;

pub fn text(plan: &Plan, outlook: &Outlook) -> Result<String> {
    let mut text = String::new();
    let about = plan.method.about();
    text += &format!("method    {}: {}\n", about.name, about.what);
    let recipe = &plan.recipe;
    text += &format!(
        "precision {} on {}\n",
        recipe.precision.name(),
        recipe.device
    );
    text += &format!(
        "backbone  {}: {}\n",
        recipe.backbone.label(),
        place(outlook)
    );
    match plan.spec(outlook)? {
        Some(spec) => {
            text += &format!(
                "          depth {}, width {}, {} heads, patch {}, {} px: {} tokens, {:.1} M parameters\n",
                spec.depth,
                spec.dim,
                spec.heads,
                spec.patch_size,
                spec.image_size,
                spec.tokens(),
                spec.parameters as f64 / 1e6
            );
            let second = plan.booster_spec(outlook)?;
            if let (Some(booster), Some(table)) = (&outlook.booster, &recipe.booster) {
                text += &format!("booster   {}: {}\n", table.label(), place(booster));
            }
            text += &match plan.trainable(&spec, outlook)? {
                None => "trainable parameters are known once all weights are here\n".to_owned(),
                Some(n) => format!("trainable {n} parameters after the last task\n"),
            };
            let second = second.map_or(0, |spec| memory(plan, &spec));
            let bytes = memory(plan, &spec) + second;
            text += &format!("memory    about {}\n", megabytes(bytes));
        }
        None => {
            text += "          its sizes are known once it is here: candlewick backbones pull\n";
        }
    }
    let domains: &[String] = match &plan.stream.scenario {
        Scenario::DomainIncremental(names) | Scenario::MultiDomain(names) => names,
        _ => &[],
    };
    let rows = plan.stream.tasks.iter().map(|task| {
        let info = &task.info;
        let mut row = vec![(info.index + 1).to_string()];
        row.extend(domains.get(info.index).cloned());
        row.extend([
            info.classes.len().to_string(),
            info.train_len.to_string(),
            info.test_len.to_string(),
            preview(&plan.stream.class_names[info.classes.clone()]),
        ]);
        row
    });
    let mut head = vec!["task"];
    head.extend(match plan.stream.scenario {
        Scenario::DomainIncremental(_) => Some("domain"),
        Scenario::MultiDomain(_) => Some("data set"),
        _ => None,
    });
    head.extend(["classes", "train images", "test images", "first classes"]);
    text += &format!("\n{}", table::list(&head, rows));
    let total = |f: fn(&candlewick_core::TaskInfo) -> usize| -> usize {
        plan.stream.tasks.iter().map(|t| f(&t.info)).sum()
    };
    text += &format!(
        "{} classes, {} training and {} test images in all\n",
        plan.stream.classes(),
        total(|t| t.train_len),
        total(|t| t.test_len)
    );
    Ok(text)
}

fn place(outlook: &Outlook) -> String {
    match &outlook.located {
        Some(located) => format!("here ({})", located.origin),
        None => "not here, would be fetched".to_owned(),
    }
}

fn preview(names: &[String]) -> String {
    let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    match names.len() > 3 {
        true => format!("{shown}, ..."),
        false => shown,
    }
}

/// Bytes that a run will have in use at its height: weights, the tensors alive in a forward pass or kept for a
/// backward one, decoded images waiting, and remembered features.
fn memory(plan: &Plan, spec: &Spec) -> u64 {
    let f32s = |n: usize| 4 * n as u64;
    let weights = f32s(spec.parameters);
    let prompts = 32; // room for prompts of the usual length
    let tokens = spec.tokens() + prompts;
    let (d, scores) = (spec.dim, spec.heads * tokens * tokens);
    // Alive at once in a plain block: residual, norm, qkv and its split, scores twice; or the MLP.
    let alive = (tokens * 8 * d + 2 * scores).max(tokens * (2 * d + 3 * spec.mlp_dim));
    let looking = f32s(plan.recipe.data.eval_batch * alive);
    // Kept by every block for the backward pass, or by one at a time.
    let block = tokens * (24 * d + 4 * spec.mlp_dim) + 5 * scores;
    let whole = plan.method.trains_backbone();
    let kept = match whole && plan.recipe.checkpoint_activations {
        true => spec.depth * tokens * d + block,
        false => spec.depth * block,
    };
    let training = match &plan.recipe.train {
        Some(train) if plan.method.about().name != "linear" => f32s(train.batch * kept),
        _ => 0,
    };
    let images: usize = plan
        .stream
        .tasks
        .iter()
        .map(|t| t.info.train_len + t.info.test_len)
        .sum();
    // In bf16 the blocks have a copy of half the size, and one for the backward.
    let copies = match plan.recipe.precision {
        Precision::Bf16 if training > 0 => weights,
        Precision::Bf16 => weights / 2,
        _ => 0,
    };
    let waiting = f32s(3 * plan.recipe.data.eval_batch * 3 * spec.image_size * spec.image_size);
    // A backbone that trains is there once more, with a gradient and a moment of each weight.
    let trained = if whole { 3 * weights } else { 0 };
    let own = plan.memory(d);
    weights + copies + trained + looking.max(training) + waiting + f32s(images * d) + own
}
