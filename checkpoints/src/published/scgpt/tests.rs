//! Backbone directories made here; the published form itself is tested against the fixture from
//! outside.

use super::*;

fn args() -> ScgptArgs {
    serde_json::from_str(
        r#"{"embsize": 2, "nheads": 1, "d_hid": 4, "nlayers": 1, "n_hvg": null, "MVC": true}"#,
    )
    .unwrap()
}

fn vocabulary() -> Vocabulary {
    let tokens = ["A", "B", PAD, CLS].map(str::to_owned).to_vec();
    Vocabulary::new(tokens, Path::new("vocab.json")).unwrap()
}

fn tensors() -> Vec<(String, HostTensor<'static>)> {
    let weight = |name: &str, shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|x: usize| x as f32)
            .collect();
        (
            name.to_owned(),
            HostTensor::from_f32(shape.to_vec(), &values),
        )
    };
    vec![
        weight("encoder.embedding.weight", &[4, 2]),
        weight("l.self_attn.Wqkv.weight", &[6, 2]),
    ]
}

#[test]
fn defaults_fill_absent_arguments_and_unknown_ones_are_kept() {
    let args = args();
    assert_eq!((args.n_layers_cls, args.n_bins), (3, 51));
    assert_eq!(
        (args.pad_value, args.mask_value, args.dropout),
        (-2.0, -1.0, 0.2)
    );
    let written: serde_json::Value = serde_json::to_value(&args).unwrap();
    assert_eq!(written["MVC"], true);
    assert!(written.as_object().unwrap().contains_key("n_hvg"));
}

#[test]
fn a_written_directory_opens_with_converted_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backbone");
    ScgptDirectory::write(&path, &args(), &vocabulary(), &tensors()).unwrap();
    let opened = ScgptDirectory::open(&path).unwrap();
    assert_eq!(
        (opened.args(), opened.vocabulary()),
        (&args(), &vocabulary())
    );
    let weight = opened.get("l.self_attn.in_proj_weight").unwrap();
    assert_eq!(weight, tensors()[1].1);
    assert_eq!(opened.get("l.self_attn.Wqkv.weight"), None);
    let again = ScgptDirectory::write(&path, &args(), &vocabulary(), &tensors());
    assert!(matches!(again, Err(Error::Exists { .. })));
}

#[test]
fn two_names_for_one_tensor_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors();
    let copy = (
        "l.self_attn._impl.Wqkv.weight".to_owned(),
        tensors[1].1.clone(),
    );
    let plain = (
        "l.self_attn.in_proj_weight".to_owned(),
        tensors[1].1.clone(),
    );
    tensors.extend([copy, plain]);
    let good = dir.path().join("good");
    ScgptDirectory::write(&good, &args(), &vocabulary(), &tensors).unwrap();
    assert_eq!(ScgptDirectory::open(&good).unwrap().tensors().count(), 2);
    tensors[3].1 = HostTensor::from_f32(vec![6, 2], &[7.0; 12]);
    let bad = dir.path().join("bad");
    ScgptDirectory::write(&bad, &args(), &vocabulary(), &tensors).unwrap();
    let message = ScgptDirectory::open(&bad).unwrap_err().to_string();
    assert!(
        message.contains("both stand for `l.self_attn.in_proj_weight`"),
        "{message}"
    );
}

#[test]
fn vocabularies_that_would_shift_genes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.json");
    for (text, expected) in [
        (
            r#"{"<pad>": 0, "<cls>": 1, "A": 3}"#,
            "ids must be 0 to 2 without gaps, but `A` has id 3",
        ),
        (
            r#"{"<pad>": 0, "<cls>": 1, "A": 1}"#,
            "`<cls>` and `A` both have id 1",
        ),
        (r#"{"<pad>": 0, "A": 1}"#, "has no token `<cls>`"),
        (r#"["A"]"#, "must map tokens to ids"),
        (r#"{"A": -1}"#, "must map tokens to ids"),
        ("{}", "has no token `<pad>`"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = Vocabulary::read(&path).unwrap_err().to_string();
        assert!(
            message.contains(expected),
            "expected `{expected}`, got `{message}`"
        );
    }
    std::fs::write(&path, vocabulary().to_json()).unwrap();
    assert_eq!(Vocabulary::read(&path).unwrap(), vocabulary());
    assert_eq!(vocabulary().id(CLS), Some(3));
}

#[test]
fn incomplete_and_mixed_directories_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| ScgptDirectory::open(path).unwrap_err().to_string();
    assert!(message(&dir.path().join("none")).contains("is not a directory"));
    assert!(message(dir.path()).contains("has no model.safetensors or best_model.pt"));
    let path = dir.path().join("b");
    let mut wrong = args();
    wrong.embsize = 4;
    ScgptDirectory::write(&path, &wrong, &vocabulary(), &tensors()).unwrap();
    let text = message(&path);
    assert!(
        text.contains("is [4, 2], but vocab.json and args.json make it [4, 4]"),
        "{text}"
    );
    std::fs::write(path.join("args.json"), r#"{"embsize": 3, "nheads": 2}"#).unwrap();
    assert!(
        message(&path).contains("missing field `d_hid`"),
        "{}",
        message(&path)
    );
    std::fs::write(
        path.join("args.json"),
        r#"{"embsize": 3, "nheads": 2, "d_hid": 1, "nlayers": 1}"#,
    )
    .unwrap();
    assert!(
        message(&path).contains("embsize a multiple of nheads"),
        "{}",
        message(&path)
    );
    std::fs::remove_file(path.join("args.json")).unwrap();
    assert!(message(&path).contains("has no args.json"));
}
