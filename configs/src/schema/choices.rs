//! The names that keys choose from.

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::field::{Field, Mismatch, choice};

choice! {
    /// Where the tensors live.
    DeviceChoice {
        /// CUDA when the libtorch build and the machine have it, otherwise the CPU.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// CUDA; an error when there is none.
        Cuda = "cuda",
    }
}

choice! {
    /// What sums gradients over ranks.
    Transport {
        /// NCCL on GPUs where every rank has it, otherwise MPI.
        Auto = "auto",
        /// MPI, through host memory.
        Mpi = "mpi",
        /// NCCL; an error where a rank has none.
        Nccl = "nccl",
    }
}

choice! {
    /// Which name of a gene is looked up in the backbone's vocabulary.
    GeneKey {
        /// The one that finds more genes.
        Auto = "auto",
        /// The gene symbol.
        Symbol = "symbol",
        /// The Ensembl id.
        Ensembl = "ensembl",
    }
}

choice! {
    /// Backbone architectures.
    Architecture {
        /// scGPT: gene and value embeddings, post-norm transformer blocks.
        Scgpt = "scgpt",
        /// Geneformer: a BERT encoder over genes in order of their expression.
        Geneformer = "geneformer",
        /// scFoundation: an encoder over expressed genes and their values.
        Scfoundation = "scfoundation",
        /// scBERT: a Performer over all genes of a panel.
        Scbert = "scbert",
    }
}

choice! {
    /// The keys of an attention with random features that share their maximum.
    KeyMax {
        /// Those of a cell.
        Cell = "cell",
        /// Those of all cells of a micro-batch, as in the published code.
        Batch = "batch",
    }
}

choice! {
    /// What becomes of a value before it is cut off to the number of a bin.
    BinScale {
        /// log2(1 + x) of counts scaled to 10,000.
        Log2 = "log2",
        /// Counts scaled to 10,000.
        Scaled = "scaled",
        /// The values as they are.
        AsTheyAre = "as-they-are",
    }
}

choice! {
    /// The layer whose states a cell embedding is made of.
    CellLayer {
        /// The last.
        Last = "last",
        /// The one before it.
        SecondToLast = "second-to-last",
    }
}

choice! {
    /// What trains beside adapters and classifier.
    FreezeRule {
        /// The pooler, and with LoRA all biases of the projection (scBERT: of query and value).
        Tutorial = "tutorial",
        /// No pooler, and with LoRA no bias of the key (scBERT: with LoRA whole weights too).
        Scripts = "scripts",
    }
}

choice! {
    /// Where in a layer the bottleneck of `encoder` acts.
    Placement {
        /// On the output of the first norm.
        AfterNorm = "after-norm",
        /// On what the attention heads found, before it is projected.
        Context = "context",
        /// On the projected output of the attention, before the residual sum.
        AttentionOutput = "attention-output",
    }
}

choice! {
    /// Which ranks share the frozen layers of the backbone.
    Shard {
        /// None: each rank has them all.
        None = "none",
        /// The ranks of a machine.
        Node = "node",
        /// All ranks.
        World = "world",
    }
}

choice! {
    /// How the frozen layers of the backbone are kept while they are not used.
    Storage {
        /// As they are used.
        Full = "full",
        /// 8 bits for each weight of a matrix, and a scale for each output channel.
        Int8 = "int8",
    }
}

choice! {
    /// How a backbone without a weights directory gets its weights.
    Init {
        /// Drawn from the seed.
        Random = "random",
    }
}

choice! {
    /// Adapter kinds.
    AdapterKind {
        /// No adapter.
        None = "none",
        /// A bottleneck after the attention half of each chosen layer.
        Encoder = "encoder",
        /// Low-rank updates of the packed query, key and value projection.
        Lora = "lora",
        /// A bottleneck on the embedding: of values in scGPT, as a whole in the others.
        Token = "token",
        /// Trainable hidden states after `<cls>`.
        Prefix = "prefix",
        /// `encoder` and `token` together.
        Hybrid = "hybrid",
        /// A bottleneck in parallel with the feed-forward half of each chosen layer.
        Mlp = "mlp",
        /// Householder reflections of the query, key and value projection.
        Hra = "hra",
        /// Block-diagonal rotations of the query, key and value projection.
        Oft = "oft",
    }
}

choice! {
    /// Rules that choose layers without naming them.
    LayerRule {
        /// The first half of the layers (rounded down).
        FirstHalf = "first-half",
        /// Every layer.
        All = "all",
    }
}

choice! {
    /// Parts of the packed attention projection.
    Target {
        /// Query.
        Q = "q",
        /// Key.
        K = "k",
        /// Value.
        V = "v",
    }
}

choice! {
    /// Where the log of a run goes besides `metrics.jsonl`.
    SinkKind {
        /// `metrics.csv`: one line per value.
        Csv = "csv",
        /// Event files for TensorBoard.
        Tensorboard = "tensorboard",
    }
}

choice! {
    /// What is learned.
    TaskKind {
        /// Cell-type identification from a labelled obs column.
        Identification = "identification",
        /// Prediction of masked expression values; needs no labels.
        MaskedExpression = "masked-expression",
        /// Masked expression that is told the batch of a cell and learns to forget it.
        BatchCorrection = "batch-correction",
    }
}

choice! {
    /// How gene and cell embedding meet in the prediction from the cell embedding.
    MvcStyle {
        /// Inner product of a projected gene query with the cell.
        InnerProduct = "inner-product",
        /// The same without a gradient into the gene embeddings.
        InnerProductDetached = "inner-product-detached",
        /// A small network on both, side by side.
        ConcatQuery = "concat-query",
        /// A small network on their sum.
        SumQuery = "sum-query",
    }
}

choice! {
    /// Number formats.
    Precision {
        /// f32 everywhere.
        F32 = "f32",
        /// Frozen weights and activations in bf16; trainable tensors, norms and losses in f32.
        Bf16 = "bf16",
    }
}

choice! {
    /// What an expression value becomes.
    ValueStyle {
        /// The number goes through two linear layers and a norm.
        Continuous = "continuous",
        /// Each bin has its own embedding.
        Category = "category",
        /// The gene embedding times the number.
        Scaling = "scaling",
    }
}

choice! {
    /// What stands for a cell.
    CellStyle {
        /// The state of the `<cls>` token.
        Cls = "cls",
        /// The mean over all tokens.
        AveragePool = "average-pool",
        /// The sum weighted by the values, of length 1.
        WeightedPool = "weighted-pool",
        /// The mean over all positions, padding included, as in the published code.
        AveragePoolPadded = "average-pool-padded",
        /// The weighted sum over all positions, padding included, as in the published code.
        WeightedPoolPadded = "weighted-pool-padded",
        /// The largest of each feature over all tokens.
        MaxPool = "max-pool",
        /// The largest over all positions, padding included, as in the published code.
        MaxPoolPadded = "max-pool-padded",
        /// The last two tokens, and the largest and the mean over all others, side by side.
        AllPool = "all-pool",
        /// The same over all positions, padding included, as in the published code.
        AllPoolPadded = "all-pool-padded",
    }
}

choice! {
    /// The norm between embedding and layers.
    EmbeddingNorm {
        /// None.
        None = "none",
        /// Batch norm with weight and bias.
        Batch = "batch",
        /// A batch norm for each value of `data.batch`.
        Domain = "domain",
    }
}

choice! {
    /// Which training cells an epoch draws.
    Sampler {
        /// Every cell once.
        Uniform = "uniform",
        /// As many cells as there are, drawn with replacement, each class equally often.
        ClassBalanced = "class-balanced",
        /// Every cell once, each batch with the values of a column in their proportions.
        Stratified = "stratified",
        /// As many cells as there are, drawn with replacement, in proportion to a column of weights.
        Weighted = "weighted",
    }
}

choice! {
    /// What is done about damaged cells of the corpus.
    Corrupt {
        /// The first one ends the run.
        Fail = "fail",
        /// They are left out, counted and listed.
        Skip = "skip",
    }
}

choice! {
    /// Which parameters are trained.
    Trainable {
        /// The adapters and the head of the task.
        Adapter = "adapter",
        /// The head of the task alone.
        Head = "head",
        /// Everything: pretraining, or full fine-tuning.
        All = "all",
    }
}

choice! {
    /// Weights of the classes in the identification loss.
    ClassWeights {
        /// All equal.
        None = "none",
        /// Inversely proportional to the class's share of the training cells.
        InverseFrequency = "inverse-frequency",
        /// `(1 - share)^2`, from the shares of the training cells.
        SquaredComplement = "squared-complement",
        /// The same from the shares of all cells of the corpus, test cells included, as in the
        /// published code: to compare with its figures only.
        SquaredComplementOfAll = "squared-complement-of-all",
    }
}

choice! {
    /// Optimizers.
    Optimizer {
        /// Adam; weight decay is added to the gradient.
        Adam = "adam",
        /// AdamW; weight decay is decoupled from the gradient.
        AdamW = "adamw",
    }
}

choice! {
    /// Learning-rate schedules after the warm-up.
    Schedule {
        /// Stays at `lr`.
        Constant = "constant",
        /// Multiplied by `step_gamma` after each epoch.
        Step = "step",
        /// In a straight line from `lr` to `min_lr_ratio * lr` at the last step.
        Linear = "linear",
        /// Stays at `lr`, then falls in a straight line over the last `decay_steps`.
        Wsd = "wsd",
        /// Cosine from `lr` to `min_lr_ratio * lr` at the last step.
        Cosine = "cosine",
    }
}

choice! {
    /// The validation metric that selects the best checkpoint.
    Select {
        /// `loss`.
        Auto = "auto",
        /// Lowest validation loss.
        Loss = "loss",
        /// Highest macro F1 (identification only).
        MacroF1 = "macro_f1",
        /// Highest balanced accuracy (identification only).
        BalancedAccuracy = "balanced_accuracy",
    }
}
