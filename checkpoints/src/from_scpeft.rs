//! `convert --from-scpeft`: fine-tuned checkpoints of the reference as adapters or backbones.

use std::path::Path;

use scpeft_checkpoint::peft::{AdapterSettings, ScpeftRecord};
use scpeft_checkpoint::published::scbert;
use scpeft_checkpoint::published::scpeft::{self, Assumptions, Survey};
use scpeft_checkpoint::{
    AdapterConfig, Error, ScbertDirectory, ScgptDirectory, TensorFile, fsx, write_adapter,
};

/// Writes the adapters and heads of `file` as an adapter directory; returns what to tell the user.
pub(crate) fn adapter(
    file: &Path,
    backbone: &Path,
    output: &Path,
    assumed: &Assumptions,
) -> Result<String, Error> {
    fsx::refuse_existing(output)?;
    if backbone.join(scbert::CONFIG).exists() {
        return scbert_adapter(file, backbone, output);
    }
    let backbone = ScgptDirectory::open(backbone)?;
    let file = TensorFile::open(file)?;
    file.verify()?;
    let survey = Survey::of(&file)?;
    let extraction = scpeft::extract(&survey, &backbone, assumed)?;
    extraction.write(output, &backbone)?;
    Ok(format!(
        "{}: {} tensors out of {} ({})\n{extraction}",
        output.display(),
        extraction.tensors.len(),
        file.path().display(),
        survey.variant(),
    ))
}

/// As [`adapter`], of an scBERT.
fn scbert_adapter(file: &Path, backbone: &Path, output: &Path) -> Result<String, Error> {
    let backbone = ScbertDirectory::open(backbone)?;
    let file = TensorFile::open(file)?;
    file.verify()?;
    let tuned = scbert::tuned::extract(&file, &backbone)?;
    let record = ScpeftRecord {
        backbone_fingerprint: backbone.fingerprint(),
        converted_from: Some(file.path().display().to_string()),
        ..ScpeftRecord::default()
    };
    let heads = vec!["to_out".to_owned()];
    let kinds: Vec<&str> = tuned.adapters.iter().map(AdapterSettings::kind).collect();
    let kinds = kinds.join(", ");
    let config = AdapterConfig::of_adapters(tuned.adapters, heads, record)?;
    let tensors: Vec<_> = tuned.tensors.into_iter().collect();
    write_adapter(output, &config, &tensors)?;
    Ok(format!(
        "{}: {} tensors out of {}: adapters {kinds}\n",
        output.display(),
        tensors.len(),
        file.path().display(),
    ))
}

/// Writes the whole model of `file` as a backbone directory with the arguments and the vocabulary of
/// `backbone`; returns what to tell the user.
pub(crate) fn whole(file: &Path, backbone: &Path, output: &Path) -> Result<String, Error> {
    fsx::refuse_existing(output)?;
    let backbone = ScgptDirectory::open(backbone)?;
    let file = TensorFile::open(file)?;
    file.verify()?;
    let survey = Survey::of(&file)?;
    let tensors = scpeft::whole_model(&survey, &backbone)?;
    ScgptDirectory::write(output, backbone.args(), backbone.vocabulary(), &tensors)?;
    let written = ScgptDirectory::open(output)?;
    let mut text = format!(
        "{}: {} tensors, fingerprint {}\n",
        output.display(),
        tensors.len(),
        written.fingerprint()
    );
    if scpeft::is_fine_tuned(&file) {
        text += "  note: the file has adapters: their tensors are kept, but a backbone does not apply them\n";
    }
    Ok(text)
}
