//! `convert --from-scpeft`: fine-tuned checkpoints of the reference as adapters or backbones.

use std::path::Path;

use scpeft_checkpoint::published::scpeft::{self, Assumptions, Survey};
use scpeft_checkpoint::{Error, ScgptDirectory, TensorFile, fsx};

/// Writes the adapters and heads of `file` as an adapter directory; returns what to tell the user.
pub(crate) fn adapter(
    file: &Path,
    backbone: &Path,
    output: &Path,
    assumed: &Assumptions,
) -> Result<String, Error> {
    fsx::refuse_existing(output)?;
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
