//! Goal: every mistake is reported at once, at its place, with the remedy; good files resolve to
//! what they say and keep their origins. Method: small texts, asserted messages.

use std::path::{Path, PathBuf};

use scpeft_config::{
    AdapterKind, AdapterKinds, Config, ConfigErrors, LayerRule, Layers, Origin, Resolved, Select,
    Target, Vocab, resolve,
};

const GOOD: &str = r#"[run]
dir = "runs/a"

[data]
corpus = "corpus"
label = "cell_type"

[backbone]
init = "random"

[backbone.shape]
d_model = 64
n_heads = 4

[adapter]
kind = "lora"
layers = [2, 0]
targets = ["q", "k"]
"#;

fn parse(text: &str, overrides: &[&str]) -> Result<Resolved, ConfigErrors> {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    resolve(Some((Path::new("a.toml"), text)), &overrides)
}

/// The only error of a good file with these overrides.
fn error(overrides: &[&str]) -> String {
    let errors = parse(GOOD, overrides).expect_err("must be refused");
    assert_eq!(errors.errors.len(), 1, "{errors}");
    errors.to_string()
}

#[test]
fn values_come_from_overrides_then_the_file_then_defaults() {
    let resolved = parse(
        GOOD,
        &["train.lr=3e-4", "backbone.shape.n_heads=8", "train.lr=1"],
    )
    .unwrap();
    let config = &resolved.config;
    assert_eq!(config.train.lr.to_bits(), 1.0_f64.to_bits());
    assert_eq!(
        (config.backbone.shape.d_model, config.backbone.shape.n_heads),
        (64, 8)
    );
    assert_eq!(config.backbone.shape.n_layers, 12);
    assert_eq!(config.adapter.kind, AdapterKinds::one(AdapterKind::Lora));
    assert_eq!(config.adapter.layers, Layers::List(vec![2, 0]));
    assert_eq!(config.adapter.targets, [Target::Q, Target::K]);
    assert_eq!(config.run.name, "a");
    let origin = |key: &str| resolved.origins[key].clone();
    assert_eq!(origin("train.lr"), Origin::Override);
    assert_eq!(origin("backbone.shape.n_heads"), Origin::Override);
    assert_eq!(
        origin("backbone.shape.d_model"),
        Origin::File {
            path: PathBuf::from("a.toml"),
            line: 12
        }
    );
    assert_eq!(
        origin("run.dir"),
        Origin::File {
            path: PathBuf::from("a.toml"),
            line: 2
        }
    );
    assert_eq!(origin("train.epochs"), Origin::Default);
}

#[test]
fn overrides_may_be_bare_strings_lists_and_tables() {
    let config = parse(
        GOOD,
        &[
            "run.dir=runs/b c",
            "run.name=\"7\"",
            "adapter.layers=all",
            "adapter.targets=['v']",
            "backbone.shape={d_model=32, n_heads=2}",
            "backbone.vocab=v.json",
            "data.normalize_total=1",
        ],
    )
    .unwrap()
    .config;
    assert_eq!(config.run.dir, Path::new("runs/b c"));
    assert_eq!(config.run.name, "7");
    assert_eq!(config.adapter.layers, Layers::Rule(LayerRule::All));
    assert_eq!(config.adapter.targets, [Target::V]);
    assert_eq!(config.backbone.shape.d_model, 32);
    assert_eq!(config.backbone.vocab, Vocab::Path("v.json".into()));
    assert_eq!(config.data.normalize_total, Some(1.0));
}

#[test]
fn all_mistakes_are_reported_together_in_the_order_of_the_file() {
    let text = r#"
[run]
dir = "runs/a"
sed = 3
[trian]
lr = 1
[data]
corpus = "c"
[backbone]
path = "b"
[adapter]
kind = "lorra"
[train]
lr = "fast"
batch_cells = 10
micro_batch_cells = 4
"#;
    let message = parse(text, &["train.beta1=1", "select=auto"])
        .unwrap_err()
        .to_string();
    let expected = "8 errors in the configuration
- a.toml:4: unknown key `run.sed`
  help: did you mean `seed`?
- a.toml:5: unknown section `[trian]`
  help: did you mean `[train]`?
- a.toml:12: `adapter.kind` must be `none` or `encoder` or `lora` or `token` or `prefix` or `hybrid` or `mlp` or `hra` or `oft` or `drug` or a list of them, got the string `\"lorra\"`
  help: did you mean `lora`?
- a.toml:14: `train.lr` must be a number, got the string `\"fast\"`
- a.toml:16: `train.micro_batch_cells` (4) does not divide `train.batch_cells` (10)
  help: choose a divisor
- --set select=auto: unknown key `select`
  help: `select` belongs to `[train]`
- --set train.beta1=1: `train.beta1` must be >= 0 and < 1, got `1`
- `data.label` is required: identification learns the values of an obs column
  help: add `label = \"COLUMN\"` under `[data]`, or set `task.kind = \"masked-expression\"`";
    assert_eq!(message, expected);
}

#[test]
fn syntax_errors_name_the_line() {
    let message = parse("[run]\ndir = \n", &[]).unwrap_err().to_string();
    assert!(message.contains("a.toml:2: not valid TOML"), "{message}");
    let message = parse("[run]\ndir = \"a\"\ndir = \"b\"\n", &[])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("a.toml:3: not valid TOML") && message.contains("dup"),
        "{message}"
    );
}

#[test]
fn an_empty_configuration_lists_what_is_required() {
    let message = resolve(None, &[]).unwrap_err().to_string();
    for key in ["run.dir", "data.corpus", "data.label", "backbone.path"] {
        assert!(
            message.contains(&format!("`{key}` is required")),
            "{message}"
        );
    }
}

#[test]
fn misplaced_values_are_named() {
    for (overrides, expected) in [
        (
            vec!["train"],
            "override `train` must have the form `section.key=value`",
        ),
        (vec!["train.=1"], "must have the form"),
        (vec!["train=1"], "`train` must be a section, got `1`"),
        (
            vec!["train.lrr=1"],
            "unknown key `train.lrr`\nhelp: did you mean `lr`?",
        ),
        (
            vec!["train.dropout=0.1"],
            "`dropout` belongs to `[backbone]`",
        ),
        (
            vec!["train.xyzzy=0.1"],
            "help: `[train]` has epochs, max_steps,",
        ),
        (
            vec!["xyzzy=1"],
            "help: keys live in sections: [run], [data],",
        ),
        (
            vec!["train.epochs=-1"],
            "`train.epochs` must be a whole number >= 0, got `-1`",
        ),
        (
            vec!["metrics.port=70000"],
            "`metrics.port` must be a whole number from 0 to 65535",
        ),
        (
            vec!["train.drop_last=1"],
            "`train.drop_last` must be `true` or `false`, got `1`",
        ),
        (
            vec!["adapter.layers=some"],
            "or a list of layer indices such as `[0, 2]`",
        ),
        (
            vec!["adapter.targets=['w']"],
            "must be a list, each item `q` or `k` or `v`",
        ),
        (
            vec!["train.select=macro-f1"],
            "help: did you mean `macro_f1`?",
        ),
        (vec!["adapter.layers=[-1]"], "`adapter.layers` must be"),
    ] {
        let message = error(&overrides);
        assert!(message.contains(expected), "{overrides:?}: {message}");
    }
}

#[test]
fn values_out_of_range_are_named() {
    for (set, expected) in [
        (
            "train.lr=0",
            "`train.lr` must be a finite number > 0, got `0`",
        ),
        ("train.lr=nan", "a finite number > 0, got `NaN`"),
        ("train.lr=inf", "a finite number > 0"),
        ("train.epochs=0", "must be >= 1, got `0`"),
        ("train.max_steps=0", "must be >= 1"),
        ("train.batch_cells=0", "must be >= 1"),
        ("train.micro_batch_cells=0", "must be >= 1"),
        ("train.beta2=1.0", ">= 0 and < 1"),
        ("train.eps=0", "> 0"),
        ("train.weight_decay=-1", ">= 0"),
        ("train.step_gamma=0", "> 0 and <= 1"),
        ("train.min_lr_ratio=1.5", ">= 0 and <= 1"),
        ("train.clip_norm=-1", ">= 0"),
        ("train.ema_decay=1", ">= 0 and < 1"),
        ("train.non_finite_limit=0", ">= 1"),
        ("data.max_len=1", ">= 2"),
        ("data.mask_ratio=1", ">= 0 and < 1"),
        ("data.normalize_total=0", "> 0"),
        ("data.shuffle_window=0", ">= 1"),
        ("data.loader_threads=0", "1 to 1024"),
        ("run.threads=100000", "0 to 1024"),
        ("data.prefetch_steps=0", ">= 1"),
        ("data.split_column=''", "a non-empty string"),
        ("data.label=''", "a non-empty string"),
        ("run.dir=''", "a non-empty string"),
        ("data.corpus=''", "a non-empty string"),
        ("backbone.dropout=1", "< 1"),
        ("backbone.attention_dropout=-0.1", ">= 0"),
        ("backbone.shape.n_bins=1", ">= 2"),
        ("backbone.shape.n_heads=0", ">= 1"),
        ("backbone.shape.n_layers_cls=0", ">= 1"),
        ("adapter.r=0", ">= 1"),
        ("adapter.lora_alpha=0", "> 0"),
        ("adapter.mlp_ratio=9", "<= 8"),
        ("adapter.targets=[]", "a list of different targets"),
        ("adapter.targets=['q', 'q']", "a list of different targets"),
        ("adapter.layers=[1, 1]", "a list of different layers"),
        ("checkpoint.keep_last=0", ">= 1"),
        (
            "checkpoint.mirror=runs/one",
            "an address such as `s3://bucket/path`",
        ),
        ("log.every_steps=0", ">= 1"),
        ("metrics.bind=localhost", "an IP address, got `localhost`"),
    ] {
        let message = error(&[set]);
        let key = set.split('=').next().unwrap();
        assert!(
            message.contains(&format!("--set {set}: `{key}` must be")),
            "{message}"
        );
        assert!(message.contains(expected), "{set}: {message}");
    }
}

#[test]
fn values_that_do_not_fit_each_other_are_named_with_the_remedy() {
    for (overrides, expected) in [
        (
            vec!["train.ema_evaluate=false"],
            "`train.ema_evaluate` has no effect without `train.ema_decay`",
        ),
        (
            vec!["backbone.path=b"],
            "`backbone.path` and `backbone.init` exclude each other",
        ),
        (
            vec!["backbone.shape.n_heads=5"],
            "(64) is not a multiple of `n_heads` (5)\nhelp: the next multiple is 65",
        ),
        (
            vec!["adapter.layers=[12]"],
            "names layer 12, but the backbone has 12 layers",
        ),
        (
            vec!["adapter.layers=first-half", "backbone.shape.n_layers=1"],
            "chooses no layer",
        ),
        (
            vec!["adapter.kind=encoder", "adapter.mlp_ratio=0.001"],
            "leaves no width",
        ),
        (
            vec!["adapter.kind=none"],
            "set `adapter.kind = \"lora\"` or `\"encoder\"`, or",
        ),
        (
            vec!["task.trainable=all"],
            "`adapter.kind` is `lora`, but `task.trainable` is `all`",
        ),
        (
            vec!["task.kind=masked-expression"],
            "`data.mask_ratio` is 0",
        ),
        (
            vec!["task.mvc=true"],
            "`task.mvc` belongs to masked expression",
        ),
        (
            vec!["data.train=valid"],
            "`data.valid` and `data.train` are both `valid`",
        ),
        (
            vec!["data.sampler=weighted"],
            "`data.sampler = \"weighted\"` needs a column of weights",
        ),
        (
            vec!["data.weight_by=w"],
            "`data.weight_by` has no effect without `data.sampler = \"weighted\"`",
        ),
        (
            vec!["data.sampler=stratified"],
            "needs a column whose proportions each batch keeps",
        ),
        (vec!["run.dir=.."], "set `run.name`"),
        (
            vec![
                "task.kind=masked-expression",
                "data.mask_ratio=0.4",
                "train.select=macro_f1",
            ],
            "`train.select` is `macro_f1`, which needs classes",
        ),
        (
            vec![
                "task.kind=masked-expression",
                "data.mask_ratio=0.4",
                "task.class_weights=inverse-frequency",
            ],
            "no effect without classes",
        ),
    ] {
        let message = error(&overrides);
        assert!(message.contains(expected), "{overrides:?}: {message}");
        assert!(message.contains("\nhelp: "), "{message}");
    }
}

#[test]
fn a_published_backbone_brings_its_own_shape_and_vocabulary() {
    let text = GOOD.replace("init = \"random\"", "path = \"b\"");
    let message = parse(&text, &["backbone.vocab=v.json"])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("a.toml:12: `[backbone.shape]` has no effect"),
        "{message}"
    );
    assert!(
        message.contains("`backbone.vocab` has no effect"),
        "{message}"
    );
    let text = text.replace("[backbone.shape]\nd_model = 64\nn_heads = 4\n", "");
    let resolved = parse(&text, &["adapter.layers=[99]"]).unwrap();
    assert!(!resolved.to_toml().contains("[backbone.shape]"));
    assert!(!resolved.origins.contains_key("backbone.vocab"));
}

#[test]
fn layers_resolve_against_a_backbone() {
    let rule = |rule| Layers::Rule(rule).indices(5);
    assert_eq!(rule(LayerRule::FirstHalf), Ok(vec![0, 1]));
    assert_eq!(rule(LayerRule::All), Ok(vec![0, 1, 2, 3, 4]));
    assert_eq!(Layers::List(vec![4, 0]).indices(5), Ok(vec![0, 4]));
    assert_eq!(Layers::List(vec![7, 0, 5]).indices(5), Err(vec![7, 5]));
}

#[test]
fn the_resolved_text_shows_every_key_with_its_origin() {
    let text = parse(GOOD, &["train.lr=0.5"]).unwrap().to_toml();
    for line in [
        "dir = \"runs/a\" # a.toml:2",
        "lr = 0.5 # --set",
        "epochs = 10 # default",
        "# max_steps is unset # default",
        "layers = [2, 0] # a.toml:17",
        "[backbone.shape]",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "`{line}` is not in\n{text}"
        );
    }
}

#[test]
fn a_config_survives_json() {
    let config = parse(GOOD, &["train.select=macro_f1", "backbone.vocab=v"])
        .unwrap()
        .config;
    assert_eq!(config.train.select, Select::MacroF1);
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
}

#[test]
fn the_manual_has_every_section_and_documents_every_key() {
    let manual = scpeft_config::manual();
    let resolved = parse(GOOD, &[]).unwrap();
    for key in resolved.origins.keys() {
        let (section, leaf) = key.rsplit_once('.').unwrap();
        let at = manual.find(&format!("[{section}]\n")).expect(section);
        assert!(
            manual[at..].contains(&format!("\n  {leaf}\n     ")),
            "{key}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let message = scpeft_config::load(Path::new("no/such.toml"), &[])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("cannot read the configuration file `no/such.toml`"),
        "{message}"
    );
}

#[test]
fn the_presets_resolve() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("presets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let resolved = scpeft_config::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            resolved.config.backbone.path.is_some(),
            "{}",
            path.display()
        );
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "geneformer-identification-encoder.toml",
            "geneformer-identification-lora.toml",
            "scbert-identification-encoder.toml",
            "scbert-identification-lora.toml",
            "scbert-identification-token.toml",
            "scfoundation-identification-encoder.toml",
            "scfoundation-identification-lora.toml",
            "scgpt-batch-correction.toml",
            "scgpt-identification-encoder.toml",
            "scgpt-identification-hybrid.toml",
            "scgpt-identification-lora.toml",
            "scgpt-masked-expression.toml",
            "scgpt-perturbation-drug.toml"
        ]
    );
}
