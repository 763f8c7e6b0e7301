//! Tokenisers over the cells of a corpus of one's own, with real dictionaries: how many genes of the
//! corpus and how much of what its cells express is known, how long cells get, and cells per second of
//! processor time.
//!
//! `cargo bench --bench real_tokens -- CORPUS [--geneformer DIR] [--scbert GENES]`: `DIR` holds the
//! pickles of a Geneformer, `GENES` is a text with the panel of an scBERT. Prints a Markdown table;
//! without a corpus it says so and ends.

use std::collections::HashMap;
use std::path::Path;

use scpeft_checkpoint::published::geneformer::genes::{GeneDictionaries, Pickles};
use scpeft_checkpoint::published::scbert::read_genes;
use scpeft_data::tokenize::{Cell, CellKey, Tokens};
use scpeft_data::{
    BinScale, Block, Corpus, GeneKey, PanelTokenizer, RankDictionary, RankTokenizer, Tokenizer,
};

/// Longest sequence: the positions of the second generation.
const MAX_LEN: usize = 4096;
/// Tokens of the published scBERT.
const SCBERT_TOKENS: usize = 7;
/// Cells are tokenised until so much processor time has gone by.
const SECONDS: f64 = 2.0;

/// Seconds that the first thread of this process, the only one that works, has run.
fn ran() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("Linux with schedstat");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    nanoseconds.expect("a number") as f64 / 1e9
}

fn geneformer(dir: &Path, corpus: &Corpus) -> RankTokenizer {
    let pickles = Pickles::find(dir, None, None, None).expect("the pickles");
    let genes = GeneDictionaries::from_pickles(&pickles).expect("dictionaries");
    let tokens = genes.tokens().iter().map(|(t, &id)| (t.clone(), id as i32));
    let medians = genes.medians().iter().map(|(g, &m)| (g.clone(), m));
    let others: HashMap<String, String> = genes.other_names().clone().into_iter().collect();
    let dictionary = RankDictionary::new(tokens.collect(), medians.collect(), others);
    let dictionary = dictionary.expect("a dictionary");
    let (genes, kind) = (corpus.genes(), corpus.value_kind());
    RankTokenizer::new(&dictionary, genes, GeneKey::Auto, kind, MAX_LEN).expect("known genes")
}

fn scbert(list: &Path, corpus: &Corpus) -> PanelTokenizer {
    let panel = read_genes(list).expect("a panel");
    let (genes, kind) = (corpus.genes(), corpus.value_kind());
    let (key, scale) = (GeneKey::Auto, BinScale::Log2);
    PanelTokenizer::new(&panel, SCBERT_TOKENS, genes, key, kind, scale).expect("known genes")
}

/// All cells of a corpus in memory.
fn blocks(corpus: &Corpus) -> Vec<Block> {
    let groups = 0..corpus.row_groups().len();
    groups
        .map(|group| corpus.read_block(group, None).expect("cells"))
        .collect()
}

fn report(name: &str, matched: usize, genes: usize, tokenizer: &dyn Tokenizer, blocks: &[Block]) {
    let mut worker = tokenizer.worker();
    let mut out = Tokens::default();
    let (mut cells, mut longest, mut tokens, mut empty) = (0_u64, 0, 0, 0_u64);
    let begun = ran();
    let mut passes = 0_u64;
    while ran() - begun < SECONDS {
        passes += 1;
        for block in blocks {
            for row in 0..block.rows() {
                let (genes, values) = block.cell(row);
                out.clear();
                let key = CellKey::new(cells, 0, 0);
                let some = worker.tokenize(Cell { genes, values }, key, &mut out);
                empty += u64::from(!some);
                longest = longest.max(out.ids.len());
                tokens += out.ids.len();
                cells += 1;
            }
        }
    }
    let rate = cells as f64 / (ran() - begun);
    println!(
        "| {name} | {matched} of {genes} | {} | {:.0} | {longest} | {} | {rate:.0} |",
        cells / passes,
        tokens as f64 / cells as f64,
        empty / passes,
    );
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let Some(corpus) = args.first().filter(|a| !a.starts_with("--")) else {
        println!("name a corpus: `cargo bench --bench real_tokens -- CORPUS`");
        return;
    };
    let corpus = Corpus::open(Path::new(corpus)).expect("a corpus");
    let value = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).map(Path::new)
    };
    let genes = corpus.genes().len();
    let blocks = blocks(&corpus);
    println!(
        "| tokeniser | genes known | cells | mean length | longest | cells without a known gene | cells/s |"
    );
    println!("|---|---|---|---|---|---|---|");
    if let Some(dir) = value("--geneformer") {
        let tokenizer = geneformer(dir, &corpus);
        let matched = tokenizer.overlap().matched;
        report("Geneformer", matched, genes, &tokenizer, &blocks);
    }
    if let Some(list) = value("--scbert") {
        let tokenizer = scbert(list, &corpus);
        let matched = tokenizer.overlap().matched;
        report("scBERT", matched, genes, &tokenizer, &blocks);
    }
}
