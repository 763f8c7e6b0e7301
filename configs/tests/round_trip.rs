//! Goal: the text that a run stores resolves to the configuration that ran, whatever its values.

use std::path::Path;

use proptest::prelude::*;
use scpeft_config::resolve;

proptest! {
    #[test]
    fn the_resolved_text_resolves_to_the_same_config(
        dir in "[^\\x00]{0,12}[a-z\"'\\\\#\n]",
        label in "\\PC{1,12}",
        seed in 0_i64..,
        lr in 1e-300_f64..1e300,
        total in proptest::option::of(1e-3_f64..1e9),
        batch in 1_usize..1000,
        layers in proptest::option::of(proptest::sample::subsequence(vec![0, 1, 2, 3, 9], 1..5)),
        published in any::<bool>(),
    ) {
        let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut overrides = vec![
            format!("run.dir={}", quote(&dir)),
            format!("run.name={}", quote(&label)),
            format!("data.label={}", quote(&label)),
            "data.corpus=c".to_owned(),
            format!("run.seed={seed}"),
            format!("train.lr={lr:e}"),
            format!("train.batch_cells={batch}"),
            "adapter.kind=encoder".to_owned(),
            if published { "backbone.path=b" } else { "backbone.init=random" }.to_owned(),
        ];
        if let Some(total) = total {
            overrides.push(format!("data.normalize_total={total:?}"));
        }
        if let Some(layers) = layers {
            overrides.push(format!("adapter.layers={layers:?}"));
        }
        let first = resolve(None, &overrides).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(first.config.train.lr.to_bits(), lr.to_bits());
        prop_assert_eq!(first.config.data.label.as_deref(), Some(label.as_str()));
        let text = first.to_toml();
        let again = resolve(Some((Path::new("x\ny.toml"), &text)), &[])
            .map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&again.config, &first.config);
        // Once more, now that origins name a file, whose name must not break the comments.
        let third = resolve(Some((Path::new("z.toml"), &again.to_toml())), &[])
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(third.config, first.config);
    }
}
