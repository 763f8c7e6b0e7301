//! What a SMILES says of a molecule: one canonical text, its ring scaffold, its fingerprint.
//!
//! The chemistry is `chematic`'s, which follows RDKit's: on the 377 SMILES of sciplex3's two tables canonical
//! SMILES, scaffolds and bits were the same. Its authors promise no more than that they check; do not mix
//! bits of this program with bits of RDKit in one model.

use chematic_fp::rdkit_morgan_ecfp4_bitvec;
use chematic_smiles::{
    RdkitSmilesParams, parse, rdkit_canonical_smiles, rdkit_murcko_scaffold, rdkit_smiles,
};

/// Bits of a fingerprint.
pub const BITS: usize = 2048;
/// The scaffold of molecules without a ring.
pub const ACYCLIC: &str = "acyclic";

/// A molecule as its SMILES describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Structure {
    /// Canonical SMILES, with stereochemistry.
    pub smiles: String,
    /// Canonical SMILES of the largest fragment without stereochemistry and isotopes: what salts and
    /// stereoisomers of a molecule share.
    pub skeleton: String,
    /// Canonical SMILES of the rings and of what links them (Bemis and Murcko 1996), of the largest
    /// fragment without stereochemistry; [`ACYCLIC`] without rings.
    pub scaffold: String,
    /// The bits that are set of the Morgan fingerprint of radius 2 (ECFP4) in [`BITS`] bits, ascending.
    pub bits: Vec<usize>,
}

impl Structure {
    /// Reads a SMILES. What follows it after a blank, as in CXSMILES, is left alone.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn of(smiles: &str) -> Result<Self, String> {
        let text = smiles.split_whitespace().next().unwrap_or_default();
        if text.is_empty() {
            return Err("is empty".into());
        }
        let molecule = parse(text).map_err(|e| e.to_string())?;
        let fingerprint = rdkit_morgan_ecfp4_bitvec(&molecule).map_err(|e| e.to_string())?;
        let flat = RdkitSmilesParams {
            isomeric: false,
            ..RdkitSmilesParams::default()
        };
        let flat = rdkit_smiles(&molecule, &flat).map_err(|e| e.to_string())?;
        let skeleton = largest(&flat)?;
        let core = parse(&skeleton).map_err(|e| e.to_string())?;
        let scaffold = rdkit_murcko_scaffold(&core).map_err(|e| e.to_string())?;
        Ok(Self {
            smiles: rdkit_canonical_smiles(&molecule).map_err(|e| e.to_string())?,
            scaffold: if scaffold.is_empty() {
                ACYCLIC.to_owned()
            } else {
                scaffold
            },
            skeleton,
            bits: (0..BITS).filter(|&bit| fingerprint.get(bit)).collect(),
        })
    }

    /// The fingerprint as numbers, 0 or 1.
    pub fn fingerprint(&self) -> Vec<f32> {
        let mut bits = vec![0.0; BITS];
        for &bit in &self.bits {
            bits[bit] = 1.0;
        }
        bits
    }
}

/// The fragment of most atoms; of equal ones the first in the order of their texts.
fn largest(smiles: &str) -> Result<String, String> {
    let mut best: Option<(usize, &str)> = None;
    for fragment in smiles.split('.') {
        let atoms = parse(fragment).map_err(|e| e.to_string())?.atom_count();
        let better =
            |(most, text): (usize, &str)| atoms > most || (atoms == most && fragment < text);
        if best.is_none_or(better) {
            best = Some((atoms, fragment));
        }
    }
    best.map(|(_, fragment)| fragment.to_owned())
        .ok_or_else(|| "has no atoms".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(smiles: &str) -> Structure {
        Structure::of(smiles).unwrap()
    }

    /// Values of RDKit 2026.09.1 (`MolToSmiles`, `GetScaffoldForMol`, `GetMorganGenerator(radius=2)`).
    #[test]
    fn texts_and_bits_are_those_of_the_reference() {
        let dmso = of("CS(C)=O");
        assert_eq!(dmso.smiles, "CS(C)=O");
        assert_eq!(dmso.scaffold, ACYCLIC);
        assert_eq!(dmso.bits, REFERENCE_DMSO);
        let aspirin = of("OC(=O)c1ccccc1OC(C)=O");
        assert_eq!(aspirin.smiles, "CC(=O)Oc1ccccc1C(=O)O");
        assert_eq!(aspirin.scaffold, "c1ccccc1");
        assert_eq!(aspirin.bits, REFERENCE_ASPIRIN);
        // Kekule and aromatic writing are one molecule.
        assert_eq!(of("CC(=O)OC1=CC=CC=C1C(O)=O"), aspirin);
    }

    #[test]
    fn salts_and_stereoisomers_share_a_skeleton() {
        let (left, right) = (of("C[C@H](N)C(=O)O"), of("C[C@@H](N)C(=O)O"));
        assert_ne!(left.smiles, right.smiles);
        assert_eq!(left.skeleton, right.skeleton);
        assert_eq!(of("C[C@H](N)C(=O)O.Cl").skeleton, left.skeleton);
        assert_ne!(of("CCC(N)C(=O)O").skeleton, left.skeleton);
    }

    #[test]
    fn what_stands_behind_a_blank_is_no_part_of_the_molecule() {
        assert_eq!(of("CC1=NN=CC=C1 |c:2,t:4|"), of("CC1=NN=CC=C1"));
    }

    #[test]
    fn what_is_no_molecule_says_why() {
        assert_eq!(Structure::of("  ").unwrap_err(), "is empty");
        for wrong in [
            "C1CC",
            "not a drug",
            "C(",
            "[Xx]",
            "c1cccc1",
            "C(C)(C)(C)(C)C",
        ] {
            assert!(Structure::of(wrong).is_err(), "{wrong}");
        }
    }

    const REFERENCE_DMSO: [usize; 6] = [427, 552, 589, 650, 1057, 1265];

    const REFERENCE_ASPIRIN: [usize; 24] = [
        389, 456, 650, 695, 807, 909, 1017, 1035, 1047, 1057, 1088, 1199, 1380, 1410, 1447, 1468,
        1616, 1729, 1750, 1775, 1873, 1917, 1970, 1991,
    ];
}
