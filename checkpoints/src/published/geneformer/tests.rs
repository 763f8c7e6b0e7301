use indexmap::IndexMap;

use super::*;
use crate::tensor::HostTensor;

fn config() -> GeneformerConfig {
    serde_json::from_str(
        r#"{"model_type": "bert", "vocab_size": 4, "hidden_size": 2, "num_hidden_layers": 1,
            "num_attention_heads": 1, "intermediate_size": 3, "hidden_act": "relu",
            "max_position_embeddings": 5, "id2label": {"0": "LABEL_0"}}"#,
    )
    .unwrap()
}

fn genes() -> GeneDictionaries {
    let tokens = [("<pad>", 0), ("<mask>", 1), ("ENSG1", 2), ("ENSG2", 3)];
    GeneDictionaries::new(
        tokens.map(|(t, id)| (t.to_owned(), id)).into(),
        [("ENSG1".to_owned(), 0.1 + 0.2), ("ENSG2".to_owned(), 634.3)].into(),
        [("old".to_owned(), "ENSG1".to_owned())].into(),
        Path::new("x"),
    )
    .unwrap()
}

fn tensors() -> Vec<(String, HostTensor<'static>)> {
    wanted_shapes(&config())
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
            (name, HostTensor::from_f32(shape, &values))
        })
        .collect()
}

#[test]
fn a_directory_reads_back_as_it_was_written_to_the_last_digit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backbone");
    let mut all = tensors();
    let words = all[0].1.clone();
    all.push((TIED[0].0.to_owned(), words));
    all.push((
        POSITION_IDS.to_owned(),
        HostTensor::from_f32(vec![1], &[0.0]),
    ));
    GeneformerDirectory::write(&path, &config(), &genes(), &all).unwrap();
    let opened = GeneformerDirectory::open(&path).unwrap();
    opened.require_complete().unwrap();
    assert_eq!(opened.config(), &config());
    assert_eq!(opened.genes(), &genes());
    // The tied matrix and the positions are no tensors of the model.
    assert_eq!(opened.weights().tensors().count(), all.len() - 2);
    assert!(Weights::get(&opened, TIED[0].0).is_none());
    assert_eq!(Weights::get(&opened, WORDS).unwrap(), all[0].1);
    let again = GeneformerDirectory::write(&path, &config(), &genes(), &all);
    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
}

#[test]
fn files_that_do_not_belong_together_are_told_apart_by_their_generation() {
    let dir = tempfile::tempdir().unwrap();
    let message = |config: &GeneformerConfig, all: &[(String, HostTensor<'_>)], name: &str| {
        let path = dir.path().join(name);
        GeneformerDirectory::write(&path, config, &genes(), all).unwrap();
        GeneformerDirectory::open(&path).unwrap_err().to_string()
    };
    let mut other = config();
    other.vocab_size = 25_426;
    let mut all = tensors();
    let rows = vec![25_426, 2];
    all[0].1 = HostTensor::from_f32(rows, &vec![0.5; 2 * 25_426]);
    let text = message(&other, &all, "first");
    assert!(
        text.contains("4 tokens, the model 25426 (first generation: V1-10M)")
            && text.contains("scpeft-checkpoint convert"),
        "{text}"
    );
    let text = message(&other, &tensors(), "rows");
    assert!(
        text.contains("is [4, 2], but config.json makes it [25426, 2]"),
        "{text}"
    );
    let mut all = tensors();
    all.push((
        TIED[0].0.to_owned(),
        HostTensor::from_f32(vec![4, 2], &[9.0; 8]),
    ));
    let text = message(&config(), &all, "untied");
    assert!(text.contains("both stand for"), "{text}");
    let incomplete = dir.path().join("incomplete");
    GeneformerDirectory::write(&incomplete, &config(), &genes(), &tensors()[..3]).unwrap();
    let opened = GeneformerDirectory::open(&incomplete).unwrap();
    let text = opened.require_complete().unwrap_err().to_string();
    assert!(
        text.contains("bert.encoder.layer.0.attention.self.query.weight"),
        "{text}"
    );
}

#[test]
fn other_architectures_and_missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        GeneformerDirectory::open(dir.path())
            .unwrap_err()
            .to_string()
    };
    std::fs::write(dir.path().join("args.json"), "{}").unwrap();
    let text = open();
    assert!(
        text.contains("an scGPT backbone") && text.contains("backbone.architecture = \"scgpt\""),
        "{text}"
    );
    let write = |key: &str, value: serde_json::Value| {
        let mut json = serde_json::to_value(config()).unwrap();
        json[key] = value;
        std::fs::write(dir.path().join(CONFIG), json.to_string()).unwrap();
    };
    for (key, value, expected) in [
        ("model_type", "gpt2".into(), "`model_type` is `gpt2`"),
        ("hidden_act", "silu".into(), "`relu` or `gelu`"),
        (
            "position_embedding_type",
            "relative_key".into(),
            "`absolute`",
        ),
        ("num_attention_heads", 3.into(), "hidden_size a multiple"),
        ("num_hidden_layers", 0.into(), "num_hidden_layers 0"),
        ("vocab_size", "many".into(), "vocab_size"),
    ] {
        write(key, value);
        let text = open();
        assert!(
            text.contains(expected) || text.contains("invalid type"),
            "{text}"
        );
    }
    write("hidden_act", "gelu".into());
    assert!(open().contains("model.safetensors or pytorch_model.bin"));
    write_safetensors(&dir.path().join(WEIGHTS[0]), &tensors()).unwrap();
    let text = open();
    assert!(
        text.contains("token_dictionary.json") && text.contains("--medians"),
        "{text}"
    );
}

#[test]
fn dictionaries_that_make_no_sense_are_refused() {
    let refused = |tokens: &[(&str, usize)], medians: &[(&str, f64)]| {
        GeneDictionaries::new(
            tokens.iter().map(|&(t, id)| (t.to_owned(), id)).collect(),
            medians.iter().map(|&(g, m)| (g.to_owned(), m)).collect(),
            IndexMap::new(),
            Path::new("x"),
        )
        .unwrap_err()
        .to_string()
    };
    let good = [("<pad>", 0), ("<mask>", 1), ("A", 2)];
    let text = refused(&[("<pad>", 0), ("<mask>", 1), ("A", 3)], &[("A", 1.0)]);
    assert!(text.contains("`A` has id 3 where 2 is due"), "{text}");
    let text = refused(&[("<pad>", 0), ("A", 1)], &[("A", 1.0)]);
    assert!(text.contains("has no token `<mask>`"), "{text}");
    let text = refused(&good, &[("A", f64::NAN)]);
    assert!(text.contains("median of `A` is NaN"), "{text}");
    let text = refused(&good, &[("B", 1.0)]);
    assert!(text.contains("such as `A`, medians of `B`"), "{text}");
}
