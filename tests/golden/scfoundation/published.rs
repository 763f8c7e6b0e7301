//! The published file: three models in one, each under its own prefix.

use scpeft_checkpoint::TensorFile;
use scpeft_checkpoint::published::scfoundation::{Published, models};
use scpeft_tests::{case, fixture};

use crate::golden::read;

#[test]
fn every_model_of_the_file_is_read_with_its_settings() {
    let dir = fixture("scfoundation", "checkpoint_format");
    let case = case(&dir);
    let file = TensorFile::open(&dir.join("models.ckpt")).unwrap();
    file.verify().unwrap();
    let mut found = models(&file);
    found.sort_unstable();
    assert_eq!(found, ["cell", "gene", "rde"]);
    for name in ["gene", "cell"] {
        let published = Published::of(&file, name).unwrap();
        let expected = read(&dir.join(format!("{name}.expected.safetensors")));
        let tensors = published.tensors(&file).unwrap();
        for (name, tensor) in &tensors {
            let values = scpeft_trainer::backbone::to_tensor(tensor).unwrap();
            assert!(values.equal(&expected[name]), "{name}");
        }
        // A counter of forward passes is no weight.
        assert_eq!(tensors.len() + published.skipped.len(), expected.len());
        assert_eq!(published.skipped.len(), 1, "{:?}", published.skipped);
        let config = published.config();
        let flat = &case["flattened_config"];
        assert_eq!(flat["seq_len"], config.seq_len);
        assert_eq!(flat["bin_num"], config.bin_num);
        assert_eq!(flat["bin_alpha"].as_f64().unwrap(), config.bin_alpha);
        assert_eq!(flat["pad_token_id"].as_f64().unwrap(), config.pad_token_id);
        assert_eq!(
            flat["mask_token_id"].as_f64().unwrap(),
            config.mask_token_id
        );
        for (key, value) in &config.others {
            assert_eq!(&flat[key], value, "{key}");
        }
        let decoder = config.decoder.as_ref().unwrap();
        for (stack, name) in [(&config.encoder, "encoder"), (decoder, "decoder")] {
            assert_eq!(flat[name]["hidden_dim"], stack.hidden_dim);
            assert_eq!(flat[name]["depth"], stack.depth);
            assert_eq!(flat[name]["heads"], stack.heads);
        }
    }
    let message = Published::of(&file, "genes").unwrap_err().to_string();
    assert!(
        message.contains("no model `genes`") && message.contains("--variant"),
        "{message}"
    );
}
