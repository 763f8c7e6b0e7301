//! Fine-tuned checkpoints of the reference as adapters: both variants, every kind, merged LoRA,
//! second names, and what is refused. The files are made here in the layout of `torch.save`.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use scpeft_checkpoint::peft::{AdapterSettings, Placement, Target, from_file_layout};
use scpeft_checkpoint::published::scpeft::{
    Assumptions, Extraction, Survey, Variant, extract, is_fine_tuned, whole_model,
};
use scpeft_checkpoint::{Error, HostTensor, ScgptDirectory, TensorFile, read_adapter};
use support::model::{D, LAYERS, Model, block};

/// A published backbone and a fine-tuned file beside it.
struct Case {
    dir: tempfile::TempDir,
    file: TensorFile,
    backbone: ScgptDirectory,
}

fn case(model: &Model) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let backbone = Model::backbone().publish(&dir.path().join("backbone"));
    let file = model.save(&dir.path().join("model.pt"));
    Case {
        backbone: ScgptDirectory::open(&backbone).unwrap(),
        file: TensorFile::open(&file).unwrap(),
        dir,
    }
}

impl Case {
    fn extract(&self) -> Result<Extraction<'_>, Error> {
        self.extract_with(&Assumptions::default())
    }

    fn extract_with(&self, assumed: &Assumptions) -> Result<Extraction<'_>, Error> {
        extract(&Survey::of(&self.file)?, &self.backbone, assumed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn kept(extraction: &Extraction<'_>) -> IndexMap<String, HostTensor<'static>> {
    extraction
        .tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.clone().into_owned()))
        .collect()
}

/// Asserts that exactly these tensors were kept: our name, name in the model.
fn assert_kept(extraction: &Extraction<'_>, model: &Model, expected: &[(String, String)]) {
    let kept = kept(extraction);
    let mut names: Vec<&String> = kept.keys().collect();
    let mut wanted: Vec<&String> = expected.iter().map(|(ours, _)| ours).collect();
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted);
    for (ours, theirs) in expected {
        assert_eq!(&kept[ours], model.get(theirs), "{ours}");
    }
}

fn bottleneck(ours: &str, theirs: &str) -> Vec<(String, String)> {
    ["1.weight", "1.bias", "2.weight", "2.bias"]
        .map(|end| (format!("{ours}.fc{end}"), format!("{theirs}{end}")))
        .to_vec()
}

fn same(names: &[&str]) -> Vec<(String, String)> {
    names
        .iter()
        .map(|n| ((*n).to_owned(), (*n).to_owned()))
        .collect()
}

const HEAD: [&str; 2] = ["cls_decoder.out_layer.weight", "cls_decoder.out_layer.bias"];

fn library() -> Model {
    (0..2)
        .fold(Model::fine_tuned(), |model, layer| {
            model
                .with_bottleneck(&block(layer, "space_adapter.fc"), 2)
                .with(&block(layer, "adapter_embeddings"), &[1, 3, D])
                .with_lora(layer, 2)
        })
        .with_bottleneck("value_encoder.adapter.fc", 4)
}

#[test]
fn the_library_s_four_kinds_come_out_under_our_names_with_their_settings() {
    let model = library();
    let case = case(&model);
    let survey = Survey::of(&case.file).unwrap();
    assert_eq!(survey.variant(), Variant::Library);
    assert!(is_fine_tuned(&case.file));
    let extraction = case.extract().unwrap();
    let layers = vec![0, 1];
    assert_eq!(
        extraction.adapters,
        [
            AdapterSettings::Lora {
                layers: layers.clone(),
                r: 2,
                lora_alpha: 1.0,
                targets: vec![Target::Q, Target::V],
                train_qkv_bias: false,
                separate: false,
                naming: scpeft_checkpoint::peft::Naming::Bert,
            },
            AdapterSettings::Encoder {
                layers: layers.clone(),
                mlp_ratio: 0.25,
                skip_connect: true,
                placement: Placement::AfterNorm,
            },
            AdapterSettings::Prefix {
                layers,
                token_nums: 3,
            },
            AdapterSettings::Token {
                mlp_ratio: 0.5,
                skip_connect: true,
            },
        ]
    );
    assert_eq!(
        (extraction.task, &extraction.heads[..]),
        ("identification", &["cls_decoder".to_owned()][..])
    );
    let mut expected = same(&HEAD);
    for layer in 0..2 {
        let at = |name: &str| block(layer, name);
        expected.extend(bottleneck(&at("space_adapter"), &at("space_adapter.fc")));
        for name in [
            "adapter_embeddings",
            "self_attn.Wqkv.lora_A",
            "self_attn.Wqkv.lora_B",
        ] {
            expected.push((at(name), at(name)));
        }
    }
    expected.extend(bottleneck(
        "value_encoder.adapter",
        "value_encoder.adapter.fc",
    ));
    assert_kept(&extraction, &model, &expected);

    let out = case.path("adapter");
    extraction.write(&out, &case.backbone).unwrap();
    let (config, stored) = read_adapter(&out).unwrap();
    assert_eq!(config.peft_type, "SCPEFT_MULTI");
    let record = config.scpeft.unwrap();
    assert_eq!(record.backbone_fingerprint, case.backbone.fingerprint());
    assert_eq!(record.converted_from.unwrap(), "scPEFT (library) model.pt");
    let ours = from_file_layout(&record.adapters, stored).unwrap();
    let written = kept(&extraction);
    assert_eq!(ours.len(), written.len());
    for (name, tensor) in &written {
        assert_eq!(&ours[name], tensor, "{name}");
    }
    let again = extraction.write(&out, &case.backbone);
    assert!(matches!(again, Err(Error::Exists { .. })));
}

#[test]
fn the_paper_s_names_of_every_kind_become_ours() {
    let model = Model::fine_tuned()
        .with_bottleneck(&block(0, "Space_Adapter.D_fc"), 2)
        .with_bottleneck(&block(1, "Space_Adapter.D_fc"), 4)
        .with_bottleneck(&block(0, "MLP_Adapter.D_fc"), 2)
        .with_bottleneck("value_encoder.Space_Adapter.D_fc", 2)
        .with(&block(2, "prompt_embeddings"), &[1, 5, D])
        .wrapped(0, "Wqkv.")
        .with(&block(0, "self_attn.Wqkv.hra_u"), &[D, 3])
        .wrapped(1, "Wqkv.OFT.")
        .with(&block(1, "self_attn.Wqkv.R"), &[4, 2, 2]);
    let case = case(&model);
    assert_eq!(Survey::of(&case.file).unwrap().variant(), Variant::Paper);
    let extraction = case.extract().unwrap();
    let encoder = |layer, mlp_ratio| AdapterSettings::Encoder {
        layers: vec![layer],
        mlp_ratio,
        skip_connect: true,
        placement: Placement::AfterNorm,
    };
    assert_eq!(
        extraction.adapters,
        [
            AdapterSettings::Hra {
                layers: vec![0],
                r: 3
            },
            AdapterSettings::Oft {
                layers: vec![1],
                blocks: 4
            },
            encoder(0, 0.25),
            encoder(1, 0.5),
            AdapterSettings::Mlp {
                layers: vec![0],
                mlp_ratio: 0.25,
                scale: 0.5
            },
            AdapterSettings::Prefix {
                layers: vec![2],
                token_nums: 5
            },
            AdapterSettings::Token {
                mlp_ratio: 0.25,
                skip_connect: true
            },
        ]
    );
    let mut expected = same(&HEAD);
    expected.extend(bottleneck(
        &block(0, "space_adapter"),
        &block(0, "Space_Adapter.D_fc"),
    ));
    expected.extend(bottleneck(
        &block(1, "space_adapter"),
        &block(1, "Space_Adapter.D_fc"),
    ));
    expected.extend(bottleneck(
        &block(0, "mlp_adapter"),
        &block(0, "MLP_Adapter.D_fc"),
    ));
    expected.extend(bottleneck(
        "value_encoder.adapter",
        "value_encoder.Space_Adapter.D_fc",
    ));
    expected.push((
        block(2, "adapter_embeddings"),
        block(2, "prompt_embeddings"),
    ));
    expected.extend(same(&[
        &block(0, "self_attn.Wqkv.hra_u"),
        &block(1, "self_attn.Wqkv.R"),
    ]));
    assert_kept(&extraction, &model, &expected);
    assert_eq!(extraction.skipped["second names of tensors"].tensors, 4);
}

fn lora() -> Model {
    (0..2).fold(Model::fine_tuned(), |model, layer| {
        model.with_lora(layer, 2)
    })
}

#[test]
fn a_merged_projection_is_recognised_and_not_stored() {
    let plain = case(&lora());
    let merged = case(&lora().merged(0, 2, 1.0).merged(1, 2, 1.0));
    let (before, after) = (plain.extract().unwrap(), merged.extract().unwrap());
    assert_eq!(kept(&before), kept(&after));
    assert!(before.notes[0].contains("lora_alpha is not in the file: 1 is taken, on q, v"));
    assert!(
        after.notes[0].contains("layers [0, 1] were saved with LoRA's update added"),
        "{:?}",
        after.notes
    );
    after.write(&merged.path("out"), &merged.backbone).unwrap();
    let (config, _) = read_adapter(&merged.path("out")).unwrap();
    assert_eq!((config.peft_type.as_str(), config.r), ("LORA", Some(4)));
    assert_eq!(config.layers_to_transform, Some(vec![0, 1]));
    assert_eq!(config.bias.as_deref(), Some("none"));
}

#[test]
fn a_merged_projection_tells_its_scale() {
    let case = case(&lora().merged(1, 2, 3.0));
    let error = case.extract().unwrap_err();
    let Error::LoraScale {
        name,
        found,
        assumed,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(name, &block(1, "self_attn.in_proj_weight"));
    assert!((found - 3.0).abs() < 1e-4 && *assumed == 1.0, "{error}");
    let given = Assumptions {
        lora_alpha: 3.0,
        ..Assumptions::default()
    };
    let extraction = case.extract_with(&given).unwrap();
    let AdapterSettings::Lora { lora_alpha, .. } = &extraction.adapters[0] else {
        panic!("{:?}", extraction.adapters);
    };
    assert_eq!(*lora_alpha, 3.0);
    let key = Assumptions {
        lora_alpha: 3.0,
        targets: Some(vec![Target::Q, Target::K]),
        ..Assumptions::default()
    };
    let error = case.extract_with(&key).unwrap_err();
    assert!(matches!(error, Error::NotAnAdapter { .. }), "{error:?}");
}

#[test]
fn rounding_of_merging_and_unmerging_is_no_training() {
    let model = lora().changed(&block(0, "self_attn.Wqkv.weight"), |i, x| {
        x + if i % 2 == 0 { 3e-7 } else { -3e-7 }
    });
    let case = case(&model);
    let extraction = case.extract().unwrap();
    assert!(
        extraction.notes[0].contains("is not in the file"),
        "{:?}",
        extraction.notes
    );
}

#[test]
fn a_trained_bias_is_stored_for_all_lora_layers() {
    let model = lora().changed(&block(1, "self_attn.Wqkv.bias"), |_, x| x + 0.01);
    let case = case(&model);
    let extraction = case.extract().unwrap();
    let AdapterSettings::Lora { train_qkv_bias, .. } = &extraction.adapters[0] else {
        panic!("{:?}", extraction.adapters);
    };
    assert!(train_qkv_bias);
    let kept = kept(&extraction);
    for layer in 0..2 {
        let bias = &kept[&block(layer, "self_attn.in_proj_bias")];
        assert_eq!(bias, model.get(&block(layer, "self_attn.Wqkv.bias")));
    }
    assert!(!kept.contains_key(&block(2, "self_attn.in_proj_bias")));
}

#[test]
fn a_fully_trained_file_is_no_adapter_but_a_backbone() {
    let model = Model::fine_tuned()
        .with_bottleneck(&block(0, "space_adapter.fc"), 2)
        .changed(&block(2, "linear1.weight"), |_, x| x * 1.001)
        .changed(
            "encoder.embedding.weight",
            |i, x| if i == 3 { x + 0.1 } else { x },
        )
        .changed(&block(2, "self_attn.in_proj_bias"), |_, x| x - 0.1);
    let case = case(&model);
    let error = case.extract().unwrap_err();
    let Error::NotAnAdapter { tensors, .. } = &error else {
        panic!("{error:?}");
    };
    let expected = [
        "encoder.embedding.weight".to_owned(),
        block(2, "self_attn.in_proj_bias"),
        block(2, "linear1.weight"),
    ];
    assert_eq!(tensors, &expected);
    assert!(
        error.to_string().contains("`--full` keeps the whole model"),
        "{error}"
    );
    let survey = Survey::of(&case.file).unwrap();
    let whole = whole_model(&survey, &case.backbone).unwrap();
    assert_eq!(whole.len(), model.tensors.len());
    for (name, tensor) in &whole {
        assert_eq!(tensor, model.get(name), "{name}");
    }
}

#[test]
fn a_bias_that_differs_without_lora_and_a_value_encoder_are_trained_weights() {
    let name = "value_encoder.linear2.weight";
    let model = Model::fine_tuned().changed(name, |_, x| x + 0.1);
    let error = case(&model).extract().unwrap_err();
    assert!(
        matches!(&error, Error::NotAnAdapter { tensors, .. } if tensors == &[name]),
        "{error:?}"
    );
    // A perturbation model trains its value encoder as a whole.
    let perturbation = case(&model.with("pert_encoder.weight", &[3, D]));
    let extraction = perturbation.extract().unwrap();
    assert_eq!(extraction.task, "perturbation");
    assert_eq!(
        extraction.heads,
        ["value_encoder", "cls_decoder", "pert_encoder"]
    );
    let kept = kept(&extraction);
    assert_eq!(
        kept.keys()
            .filter(|n| n.starts_with("value_encoder."))
            .count(),
        6
    );
}

#[test]
fn batch_norms_are_kept_and_heads_of_the_backbone_are_not() {
    let mut model = Model::fine_tuned()
        .with("dsbn.bns.0.running_mean", &[D])
        .with("grad_reverse_discriminator.out_layer.weight", &[2, D]);
    let count = HostTensor::from_i64(vec![], &[70]);
    model
        .tensors
        .push(("dsbn.bns.0.num_batches_tracked".to_owned(), count.clone()));
    let plain = case(&model);
    let extraction = plain.extract().unwrap();
    assert_eq!(extraction.task, "batch-correction");
    assert_eq!(
        extraction.heads,
        ["cls_decoder", "dsbn", "grad_reverse_discriminator"]
    );
    assert_eq!(kept(&extraction)["dsbn.bns.0.num_batches_tracked"], count);
    assert_eq!(extraction.skipped["head decoder, as published"].tensors, 2);
    let trained = case(&model.changed("decoder.fc.0.bias", |_, x| x + 1.0));
    let extraction = trained.extract().unwrap();
    assert!(extraction.heads.contains(&"decoder".to_owned()));
    assert!(
        kept(&extraction).contains_key("decoder.fc.0.weight"),
        "a head is kept whole"
    );
}

#[test]
fn second_names_must_agree() {
    let mut model = lora();
    let wrapped = block(0, "self_attn.Wqkv.weight");
    let usual = block(0, "self_attn.in_proj_weight");
    model.aliases.retain(|(name, _)| *name != usual);
    let other = support::model::map(
        model.get(&wrapped),
        |i, x| if i == 5 { x + 1e-3 } else { x },
    );
    model.tensors.push((usual.clone(), other));
    let error = case(&model).extract().unwrap_err();
    assert!(
        matches!(&error, Error::Ambiguous { first, second, name, .. }
            if *first == wrapped && *second == usual && *name == usual),
        "{error:?}"
    );
}

#[test]
fn unknown_names_are_reported_and_mixed_variants_refused() {
    let odd = block(0, "space_adapter.gate.weight");
    let model = Model::fine_tuned()
        .with_bottleneck(&block(0, "space_adapter.fc"), 2)
        .with(&odd, &[D])
        .with("flag_encoder.weight", &[2, D]);
    let unknown = case(&model);
    let text = unknown.extract().unwrap().to_string();
    for name in [odd.as_str(), "flag_encoder.weight"] {
        assert!(text.contains(&format!("unknown: {name}")), "{text}");
    }
    let mixed = case(&model.with(&block(0, "prompt_embeddings"), &[1, 2, D]));
    let error = mixed.extract().unwrap_err();
    assert!(
        matches!(&error, Error::Content { reason, .. } if reason.contains("of the paper variant")),
        "{error:?}"
    );
}

#[test]
fn adapters_that_are_incomplete_or_of_impossible_shape_are_named() {
    let whole = Model::fine_tuned().with_bottleneck(&block(1, "space_adapter.fc"), 2);
    let bias = block(1, "space_adapter.fc2.bias");
    let factors = |a: &[usize], b: &[usize]| {
        Model::fine_tuned()
            .with(&block(0, "self_attn.Wqkv.lora_A"), a)
            .with(&block(0, "self_attn.Wqkv.lora_B"), b)
    };
    let at =
        |layer, name: &str, shape: &[usize]| Model::fine_tuned().with(&block(layer, name), shape);
    for (model, expected) in [
        (
            whole.clone().without(&bias),
            "encoder adapter of layer 1: has no `fc2.bias`",
        ),
        (
            whole.without(&bias).with(&bias, &[3]),
            "`fc2.bias` is [3], expected [8]",
        ),
        (
            factors(&[3, D], &[2 * D, 2]),
            "`lora_A` is [3, 8], expected [4, 8]",
        ),
        (factors(&[8, D], &[4 * D, 2]), "`lora_B` is [32, 2]"),
        (
            at(0, "self_attn.Wqkv.lora_A", &[2, D]),
            "lora adapter of layer 0: has no `lora_B`",
        ),
        (at(0, "adapter_embeddings", &[3, D]), "expected [1, T, 8]"),
        (at(0, "self_attn.Wqkv.hra_u", &[2, D]), "expected [8, r]"),
        (
            at(0, "self_attn.Wqkv.R", &[3, 2, 2]),
            "expected [n, 8/n, 8/n]",
        ),
        (
            at(LAYERS, "adapter_embeddings", &[1, 2, D]),
            "in layer 3, the backbone has layers 0 to 2",
        ),
    ] {
        let error = case(&model).extract().unwrap_err();
        assert!(
            matches!(&error, Error::Content { reason, .. } if reason.contains(expected)),
            "expected `{expected}`, got {error:?}"
        );
    }
}

#[test]
fn a_file_without_anything_new_is_refused() {
    let error = case(&Model::backbone()).extract().unwrap_err();
    assert!(
        matches!(&error, Error::Content { reason, .. } if reason.contains("no adapter and no head")),
        "{error:?}"
    );
    let heads = case(&Model::fine_tuned());
    assert!(!is_fine_tuned(&heads.file));
    let extraction = heads.extract().unwrap();
    assert!(extraction.adapters.is_empty());
    extraction
        .write(&heads.path("out"), &heads.backbone)
        .unwrap();
    let read = |path: &Path| read_adapter(path).unwrap().0.peft_type;
    assert_eq!(read(&heads.path("out")), "SCPEFT_HEAD");
}
