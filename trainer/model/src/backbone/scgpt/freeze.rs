use super::Purpose;

/// First parts of the names of what trains for a purpose beside the adapters: the heads, and for
/// perturbations the value encoder (scPEFT).
pub(super) fn trained(purpose: Purpose) -> &'static [&'static str] {
    match purpose {
        Purpose::Identification => &["cls_decoder."],
        Purpose::BatchCorrection => &[
            "decoder.",
            "mvc_decoder.",
            "grad_reverse_discriminator.",
            "batch_encoder.",
        ],
        Purpose::Population => &["decoder.", "mvc_decoder."],
        Purpose::Perturbation => &["decoder.", "value_encoder.", "pert_encoder."],
        Purpose::Treatment => &[],
        Purpose::TreatmentWithDecoder => &["decoder."],
    }
}
