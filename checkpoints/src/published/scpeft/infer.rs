//! Kinds, layers and sizes of the adapters of a file, from names and shapes.

use std::collections::BTreeMap;

use super::names::Part;
use super::{Assumptions, Survey};
use crate::error::{Error, Result};
use crate::peft::{AdapterSettings, Placement, Target, settings};

/// Where an adapter sits; the value encoder comes last.
type Place = (Part, Option<usize>);

/// The shapes of one adapter's tensors, by the end of their names.
type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// The adapters of a file, one entry for all layers of a kind that have the same settings.
pub(super) fn adapters(survey: &Survey<'_>, assumed: &Assumptions) -> Result<Vec<AdapterSettings>> {
    let mut places: BTreeMap<Place, Shapes<'_>> = BTreeMap::new();
    for (name, part, layer, shape) in survey.adapter_tensors() {
        places
            .entry((part, layer))
            .or_default()
            .insert(end_of(name), shape);
    }
    let mut list: Vec<AdapterSettings> = Vec::new();
    for ((part, layer), shapes) in places {
        let one = settings_of(survey, assumed, part, &shapes).map_err(|reason| {
            let place = layer.map_or("the value encoder".to_owned(), |i| format!("layer {i}"));
            let reason = format!("{} adapter of {place}: {reason}", part.name());
            Error::content(survey.file.path(), reason)
        })?;
        let same = list.iter_mut().find(|known| {
            let mut bare = (**known).clone();
            if let Some(layers) = bare.layers_mut() {
                layers.clear();
            }
            bare == one
        });
        let entry = match same {
            Some(known) => known,
            None => {
                list.push(one);
                list.last_mut().expect("one was pushed")
            }
        };
        if let (Some(layers), Some(layer)) = (entry.layers_mut(), layer) {
            layers.push(layer);
        }
    }
    Ok(list)
}

/// What tells the tensors of one adapter apart: `fc1.weight` and its like, or the last part.
fn end_of(name: &str) -> &str {
    match name.rfind(".fc") {
        Some(at) => &name[at + 1..],
        None => name.rsplit('.').next().unwrap_or(name),
    }
}

/// The settings of one adapter, without its layer.
fn settings_of(
    survey: &Survey<'_>,
    assumed: &Assumptions,
    part: Part,
    shapes: &Shapes<'_>,
) -> Result<AdapterSettings, String> {
    let d = survey.d_model;
    let shape = |end: &str| {
        shapes
            .get(end)
            .copied()
            .ok_or_else(|| format!("has no `{end}`"))
    };
    let layers = Vec::new();
    let skip_connect = assumed.skip_connect;
    Ok(match part {
        Part::Encoder => AdapterSettings::Encoder {
            layers,
            mlp_ratio: ratio(shapes, d)?,
            skip_connect,
            placement: Placement::AfterNorm,
        },
        Part::Token => AdapterSettings::Token {
            mlp_ratio: ratio(shapes, d)?,
            skip_connect,
        },
        Part::Mlp => AdapterSettings::Mlp {
            layers,
            mlp_ratio: ratio(shapes, d)?,
            scale: 0.5,
        },
        Part::Prefix => match shape("adapter_embeddings")? {
            &[1, token_nums, width] if width == d && token_nums > 0 => {
                AdapterSettings::Prefix { layers, token_nums }
            }
            found => {
                return Err(unexpected(
                    "adapter_embeddings",
                    found,
                    &format!("[1, T, {d}]"),
                ));
            }
        },
        Part::Lora => lora(shape("lora_A")?, shape("lora_B")?, d, assumed)?,
        Part::Hra => match shape("hra_u")? {
            &[rows, r] if rows == d && r > 0 => AdapterSettings::Hra { layers, r },
            found => return Err(unexpected("hra_u", found, &format!("[{d}, r]"))),
        },
        Part::Oft => match shape("R")? {
            &[blocks, rows, columns]
                if rows == columns && blocks > 0 && blocks.checked_mul(rows) == Some(d) =>
            {
                AdapterSettings::Oft { layers, blocks }
            }
            found => return Err(unexpected("R", found, &format!("[n, {d}/n, {d}/n]"))),
        },
    })
}

fn unexpected(name: &str, found: &[usize], expected: &str) -> String {
    format!("`{name}` is {found:?}, expected {expected}")
}

/// The ratio of a bottleneck, all four tensors of which must fit.
fn ratio(shapes: &Shapes<'_>, d: usize) -> Result<f64, String> {
    let shape = |end: &str| shapes.get(end).copied();
    let h = match shape("fc1.weight") {
        Some(&[h, columns]) if columns == d && h > 0 => h,
        Some(found) => return Err(unexpected("fc1.weight", found, &format!("[h, {d}]"))),
        None => return Err("has no `fc1.weight`".to_owned()),
    };
    for (end, expected) in [
        ("fc1.bias", vec![h]),
        ("fc2.weight", vec![d, h]),
        ("fc2.bias", vec![d]),
    ] {
        match shape(end) {
            Some(found) if found == expected => {}
            Some(found) => return Err(unexpected(end, found, &format!("{expected:?}"))),
            None => return Err(format!("has no `{end}`")),
        }
    }
    Ok(settings::mlp_ratio(h, d))
}

fn lora(
    a: &[usize],
    b: &[usize],
    d: usize,
    assumed: &Assumptions,
) -> Result<AdapterSettings, String> {
    let (r, parts) = match *b {
        [rows, r] if r > 0 && rows > 0 && rows % d == 0 && rows / d <= 3 => (r, rows / d),
        _ => {
            return Err(unexpected(
                "lora_B",
                b,
                &format!("[n * {d}, r] for n parts of 3"),
            ));
        }
    };
    if *a != [r * parts, d] {
        return Err(unexpected("lora_A", a, &format!("{:?}", [r * parts, d])));
    }
    let targets = match &assumed.targets {
        Some(targets) if targets.len() == parts => targets.clone(),
        Some(targets) => {
            return Err(format!(
                "updates {parts} of query, key and value, but {} are named",
                targets.len()
            ));
        }
        None => match parts {
            1 => vec![Target::Q],
            2 => vec![Target::Q, Target::V],
            _ => Target::ALL.to_vec(),
        },
    };
    Ok(AdapterSettings::Lora {
        layers: Vec::new(),
        r,
        lora_alpha: assumed.lora_alpha,
        targets,
        train_qkv_bias: false,
        separate: false,
        naming: crate::peft::Naming::Bert,
    })
}
