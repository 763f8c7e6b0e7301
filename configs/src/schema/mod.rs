//! The schema: one struct per section. The field documentation is the reference manual and is
//! what [`manual`](crate::manual) prints.

mod choices;
mod values;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::field::{Field, Section, section};
use crate::resolve::Reader;

pub use choices::{
    AdapterKind, Architecture, BinScale, CellLayer, CellStyle, ClassWeights, Corrupt, DeviceChoice,
    EmbeddingNorm, FreezeRule, GeneKey, Init, KeyMax, LayerRule, MvcStyle, Optimizer, Placement,
    Precision, Sampler, Schedule, Select, Shard, SinkKind, Storage, Target, TaskKind, Trainable,
    Transport, ValueStyle,
};
pub use values::{AdapterKinds, Layers, TargetDepth, Vocab};

section! {
    /// `[run]`: where the run lives and how it uses the machine.
    RunSection at "run" {
        /// The run directory: configuration, log, checkpoints, predictions. Required. Relative
        /// paths, here and in every other key, start at the current directory, not at the file.
        dir: PathBuf = PathBuf::new();
        /// Name of the run in logs, metrics and pictures. Default: the last part of `dir`.
        name: String = String::new();
        /// Seed of everything random: initialisation, order of cells, masking, dropout.
        /// Default 0; any whole number from 0 to 2^63-1.
        seed: u64 = 0;
        /// `auto` (CUDA when there is one), `cpu` or `cuda`. Default `auto`.
        device: DeviceChoice = DeviceChoice::Auto;
        /// What sums gradients over ranks: `auto` (NCCL where every rank has a GPU and the library,
        /// otherwise MPI), `mpi` or `nccl`. Default `auto`. NCCL has not been run on a GPU in this version.
        transport: Transport = Transport::Auto;
        /// `f32`, or `bf16`: frozen weights and activations in bf16, everything that trains, norms
        /// and losses in f32. Default `f32`. bf16 halves memory, and time where the hardware has
        /// it (AMX on CPUs, tensor cores).
        precision: Precision = Precision::F32;
        /// Run adapted layers a second time in the backward pass instead of keeping what it needs.
        /// Default `false`. Costs about a third more time; memory no longer grows with the layers.
        recompute: bool = false;
        /// CPU threads of each rank. Default 0: the cores divided by the ranks on the machine.
        threads: usize = 0;
        /// Insist on the same bits from the same run: libtorch uses deterministic algorithms alone and
        /// fails where it has none, the gradients of the first step are computed twice and compared, on a
        /// GPU `CUBLAS_WORKSPACE_CONFIG` must be `:4096:8` or `:16:8`, and a resumption needs the ranks,
        /// threads and kind of device of the checkpoint. Default `false`. Somewhat slower. NCCL's order of
        /// additions is not looked at.
        deterministic: bool = false;
    }
}

section! {
    /// `[data]`: the corpus, its columns and how cells become batches.
    DataSection at "data" {
        /// The corpus directory made by `scpeft-data import`. Required.
        corpus: PathBuf = PathBuf::new();
        /// The obs column with the label to predict. Required for identification, unset otherwise.
        label: Option<String> = None;
        /// The obs column with the batch (donor, assay, plate) of a cell. Required for
        /// `task.kind = "batch-correction"` and for `backbone.norm = "domain"`. Default: unset.
        batch: Option<String> = None;
        /// `uniform` (every training cell once an epoch), `stratified` (the same, and each batch has
        /// the values of `data.stratify_by` in their proportions) or `class-balanced` (drawn with
        /// replacement, every label equally often; needs `data.label`) or `weighted` (drawn with
        /// replacement, in proportion to `data.weight_by`). Default `uniform`.
        sampler: Sampler = Sampler::Uniform;
        /// The obs column of `data.sampler = "stratified"`. Default: unset.
        stratify_by: Option<String> = None;
        /// The obs column of numbers that says how often `data.sampler = "weighted"` draws a cell: one
        /// of weight 2 comes twice as often as one of weight 1, one of weight 0 never. Default: unset.
        weight_by: Option<String> = None;
        /// The obs column that says which split a cell belongs to. Default `split`.
        split_column: String = "split".to_owned();
        /// Value of `split_column` for training cells. Default `train`.
        train: String = "train".to_owned();
        /// Value of `split_column` for validation cells. Default `valid`.
        valid: String = "valid".to_owned();
        /// Value of `split_column` for test cells, used by predict. Default `test`.
        test: String = "test".to_owned();
        /// Which gene name is looked up in the vocabulary: `auto`, `symbol` or `ensembl`.
        /// Default `auto`: the one that finds more genes.
        gene_key: GeneKey = GeneKey::Auto;
        /// Longest token sequence of a cell, the `<cls>` token included; longer cells are
        /// sampled down once per run. Default 1200; at least 2. Memory of attention grows
        /// with its square.
        max_len: usize = 1200;
        /// Feed genes with a count of zero too. Default `false`. Sequences become as long as the
        /// gene table allows.
        include_zero_genes: bool = false;
        /// Share of a cell's values that are masked. Default 0; from 0 up to but excluding 1;
        /// must be above 0 for masked expression and 0 for identification.
        mask_ratio: f64 = 0.0;
        /// Scale each cell to this total before binning. Default: 10000 for a corpus of counts,
        /// off for log-normalised values. Must be above 0.
        normalize_total: Option<f64> = None;
        /// Take log(1+x) after scaling. Default: on for counts, off for log-normalised values.
        log1p: Option<bool> = None;
        /// scFoundation only: two more tokens, how deep a cell was sequenced (S, the log10 of its counts)
        /// and how deep it should have been (T): `t4` (T is 4 for every cell), `f2` (twice its counts)
        /// or `a1` (S + 1), or other numbers. Default: unset, no such tokens, as in the reference's
        /// annotation; its cell embeddings have them, with `t4`.
        target_depth: Option<TargetDepth> = None;
        /// scBERT only: what becomes of a value before it is cut off to the number of its bin. `log2`:
        /// log2(1 + x) of counts scaled to 10,000 over the genes of the panel, as in pretraining.
        /// `scaled`: without the logarithm. `as-they-are`: nothing, as the published scripts of
        /// adapters do. Default `log2`.
        bin_scale: BinScale = BinScale::Log2;
        /// Row groups whose cells are shuffled together. Default 8; at least 1. A larger window
        /// mixes better and holds more rows in memory.
        shuffle_window: usize = 8;
        /// Put cells of like length into the same batch. Default `false`. Saves padding where lengths
        /// differ; batches are less random: the cells of one have one length.
        length_buckets: bool = false;
        /// What happens on a damaged cell or row group: `fail`, or `skip`, which leaves it out, counts
        /// it and lists it in `skipped-cells.jsonl` of the run. Default `fail`.
        corrupt: Corrupt = Corrupt::Fail;
        /// Threads that read and tokenise, per rank. Default 1; at least 1. Where the corpus lies in
        /// an object store there are two more, which wait for it.
        loader_threads: usize = 1;
        /// Batches prepared ahead of the step. Default 4; at least 1.
        prefetch_steps: usize = 4;
    }
}

section! {
    /// `[backbone.shape]`: sizes of a randomly initialised backbone. With `backbone.path` they
    /// come from its `args.json`.
    Shape at "backbone.shape" {
        /// Width of the hidden states. Default 512; a multiple of `n_heads`.
        d_model: usize = 512;
        /// Attention heads. Default 8.
        n_heads: usize = 8;
        /// Width of the feed-forward layer. Default 512.
        d_hid: usize = 512;
        /// Transformer layers. Default 12.
        n_layers: usize = 12;
        /// Linear layers of the classification head, the output layer included. Default 3.
        n_layers_cls: usize = 3;
        /// Width of a head of scBERT, which need not divide `d_model`. Default 64.
        d_head: usize = 64;
        /// Random features of a head of scBERT. Default: `d_head` times its logarithm, rounded down.
        n_features: Option<usize> = None;
        /// Bins that expression values are sorted into, the zero bin included. Default 51; at
        /// least 2.
        n_bins: usize = 51;
        /// What an expression value becomes: `continuous`, `category` or `scaling`. Default
        /// `continuous`, as in the published checkpoints.
        value_style: ValueStyle = ValueStyle::Continuous;
    }
}

section! {
    /// `[backbone]`: the model that is adapted.
    BackboneSection at "backbone" {
        /// The architecture: `scgpt`, `geneformer`, `scbert` or `scfoundation`. Default `scgpt`.
        architecture: Architecture = Architecture::Scgpt;
        /// A directory with weights and what belongs to them: `args.json` and `vocab.json` of scGPT;
        /// `config.json` and dictionaries of genes of Geneformer, `scbert.json` and `genes.txt` of
        /// scBERT, `scfoundation.json` and `genes.tsv` of scFoundation, as `scpeft-checkpoint convert`
        /// writes them. Give either this or `init`.
        path: Option<PathBuf> = None;
        /// `random`: start from weights drawn from the seed, to pretrain a backbone.
        init: Option<Init> = None;
        /// With `init = "random"`: `corpus` takes the vocabulary from the gene table of the
        /// corpus, anything else is the path of a `vocab.json` (of Geneformer: of a directory with
        /// its dictionaries; of scBERT: of a text with the genes of its panel, one a line; of
        /// scFoundation: of its list of genes). Default `corpus`.
        vocab: Vocab = Vocab::Corpus;
        /// Dropout inside the blocks and the value encoder. Default 0.2; from 0 up to but
        /// excluding 1.
        dropout: f64 = 0.2;
        /// Dropout on attention probabilities. Default: as `dropout` on CUDA, whose fused kernel
        /// has it, and 0 on the CPU, whose fused kernel does not: above 0 each layer there computes
        /// and keeps heads x length x length probabilities, at 2.5 times the time and twice the
        /// memory of a step with 512 tokens. The start-up line says which it is.
        attention_dropout: Option<f64> = None;
        /// scFoundation only: dropout inside the classifier of `max-pool`. Default 0.5, as published;
        /// from 0 up to but excluding 1.
        head_dropout: Option<f64> = None;
        /// Which ranks share the frozen layers: `none` (each rank has all of them), `node` (the
        /// ranks of a machine) or `world` (all ranks). Default `none`. A rank of N holds 1/N of
        /// each layer, and while a layer is used that layer and the next; layers are gathered
        /// twice per micro-batch and recomputed in the backward pass, as with `run.recompute`, with
        /// the same bits. Embeddings and heads stay whole.
        shard: Shard = Shard::None;
        /// How the matrices of frozen layers are kept while they are not used: `full`, or `int8`, 8
        /// bits for each weight and a scale for each output channel, unpacked a layer at a time just
        /// before it is used and recomputed in the backward pass, as with `run.recompute`. Default
        /// `full`. A weight is off by at most 1/254 of the largest of its channel.
        storage: Storage = Storage::Full;
        /// What stands for a cell: `cls`, `average-pool` or `weighted-pool`, over its tokens; of
        /// scFoundation `max-pool` or `all-pool` (the last two tokens, which are the read depths where
        /// `data.target_depth` is set, and the largest and the mean over all others). Those that end in
        /// `-padded` count padding as the published code does: a cell's embedding then depends on the
        /// longest cell beside it. Default `cls`.
        cell_style: CellStyle = CellStyle::Cls;
        /// The layer whose states it is made of: `last` or `second-to-last` (Geneformer only, its
        /// published default). Default `last`.
        cell_layer: CellLayer = CellLayer::Last;
        /// What trains beside adapters and classifier. Geneformer: `tutorial`: the pooler, which
        /// starts random, and with LoRA the biases of query, key and value; `scripts`: no pooler, and
        /// not the bias of the key. scBERT: `tutorial`: nothing; `scripts`: with LoRA the whole weights
        /// that it updates. Default `tutorial`.
        freeze_rule: FreezeRule = FreezeRule::Tutorial;
        /// scBERT only: the keys that share the maximum which random features are taken below. `cell`:
        /// those of a cell, so that a cell's result does not depend on the cells beside it; for one
        /// cell at a time, as the authors evaluate, this is what they compute. `batch`: those of the
        /// micro-batch, as their code computes for more. Default `cell`.
        key_max: KeyMax = KeyMax::Cell;
        /// scBERT only: steps after which random features are drawn anew, from the seed and the number
        /// of the step. Default 0: never, as suits features that the frozen weights were trained with.
        /// The published code draws them after every 1,000 forward passes.
        redraw_steps: u64 = 0;
        /// The norm between embedding and layers: `none`, `batch` or `domain`, the last with
        /// `data.batch` and `train.micro_batch_cells`. Default `none`. Its running statistics are
        /// saved with the adapter.
        norm: EmbeddingNorm = EmbeddingNorm::None;
        inside {
            /// Sizes, for `init = "random"` only.
            shape: Shape;
        }
    }
}

section! {
    /// `[adapter]`: the small trainable parts put into the frozen backbone.
    AdapterSection at "adapter" {
        /// One of `none`, `encoder` (bottleneck), `lora`, `token` (bottleneck on the values),
        /// `prefix`, `hybrid` (`encoder` and `token`), `mlp` (bottleneck beside the feed-forward
        /// half), `hra`, `oft`, or a list such as `["encoder", "prefix"]`. Default `none`.
        kind: AdapterKinds = AdapterKinds::one(AdapterKind::None);
        /// `first-half`, `all` or a list of layer indices such as `[0, 2]`. Default `first-half`.
        /// Layers below the first adapter need no backward pass.
        layers: Layers = Layers::Rule(LayerRule::FirstHalf);
        /// Layers of the `mlp` adapter. Default: as `layers`.
        mlp_layers: Option<Layers> = None;
        /// Rank of LoRA; number of reflections of `hra`, then even. Default 8; at least 1.
        r: usize = 8;
        /// LoRA updates are scaled by `lora_alpha / r`. Default 1; above 0.
        lora_alpha: f64 = 1.0;
        /// Parts of the attention projection that LoRA updates: `q`, `k`, `v`.
        /// Default `["q", "v"]`.
        targets: Vec<Target> = vec![Target::Q, Target::V];
        /// Train the bias of the attention projection in LoRA layers as well. Default `true`.
        train_qkv_bias: bool = true;
        /// Width of the bottlenecks as a share of `d_model`, rounded down. Default 0.25; above 0
        /// and at most 8. The published default of `token` on its own is 1.
        mlp_ratio: f64 = 0.25;
        /// Where the bottleneck of `encoder` acts: `after-norm` (after the first norm of a layer),
        /// `context` (on what the attention heads found) or `attention-output` (on its projection, before
        /// the residual sum; where scPEFT has it in scFoundation). Default `after-norm`.
        placement: Placement = Placement::AfterNorm;
        /// Weight of the `mlp` adapter's output. Default 0.5; above 0.
        mlp_scale: f64 = 0.5;
        /// Length of the `prefix`. Default 8; at least 1. Attention sees that many more tokens.
        token_nums: usize = 8;
        /// Add the input of the bottleneck to its output. Default `true`.
        skip_connect: bool = true;
        /// Start the bottleneck at zero, so that training starts at the pretrained function.
        /// Default `false`: the usual linear initialisation, as in the reference.
        zero_init: bool = false;
    }
}

section! {
    /// `[task]`: what is learned and which parameters learn it.
    TaskSection at "task" {
        /// `identification`, `masked-expression` or `batch-correction`. Default `identification`.
        kind: TaskKind = TaskKind::Identification;
        /// `adapter` (adapters and head), `head` or `all`. Default `adapter`.
        trainable: Trainable = Trainable::Adapter;
        /// `none`, `inverse-frequency`, `squared-complement` (`(1 - share)^2`, the published rule,
        /// from training cells) or `squared-complement-of-all` (from all cells of the corpus, which
        /// leaks the test cells' labels, as the published code does: for comparison only);
        /// identification only. Default `none`.
        class_weights: ClassWeights = ClassWeights::None;
        /// Add the loss that predicts masked values from the cell embedding; not for
        /// identification. Default `false`.
        mvc: bool = false;
        /// How gene and cell embedding meet in it: `inner-product`, `inner-product-detached`,
        /// `concat-query` or `sum-query`. Default `inner-product`.
        mvc_style: MvcStyle = MvcStyle::InnerProduct;
        /// Also model whether a value is zero; not for identification. Default `false`.
        explicit_zero: bool = false;
        /// Weight of the elastic similarity of cell embeddings. Default 0 = off; published 10.
        /// Within a micro-batch.
        ecs_weight: f64 = 0.0;
        /// Similarity that it draws pairs of cells to or away from. Default 0.3; from 0 to 1.
        ecs_threshold: f64 = 0.3;
        /// Weight of the contrast between two passes over the cells of a global batch. Default
        /// 0 = off; published 10. Costs three more forward passes.
        cce_weight: f64 = 0.0;
        /// Weight of the adversarial discriminator of batches; batch correction only. Default 1;
        /// 0 = off.
        dab_weight: f64 = 1.0;
    }
}

section! {
    /// `[train]`: the optimisation.
    TrainSection at "train" {
        /// Passes over the training cells. Default 10; at least 1.
        epochs: u64 = 10;
        /// Stop after this many optimizer steps even if epochs remain. Default: unset.
        max_steps: Option<u64> = None;
        /// Cells of a global batch, over all ranks. Default 32; a multiple of the ranks.
        batch_cells: usize = 32;
        /// Cells that a rank runs at once; gradients accumulate up to its share of the batch.
        /// Divides `batch_cells`. Default: the whole share. Smaller needs less memory.
        micro_batch_cells: Option<usize> = None;
        /// Tokens that a rank runs at once, padding included: micro-batches of as many cells of like
        /// length as fit, in place of `micro_batch_cells`. Default: unset; at least `data.max_len`.
        micro_batch_tokens: Option<usize> = None;
        /// Leave out the last, smaller batch of an epoch. Default `false`.
        drop_last: bool = false;
        /// `adam` or `adamw`. Default `adam`.
        optimizer: Optimizer = Optimizer::Adam;
        /// Learning rate after warm-up. Default 1e-4; above 0.
        lr: f64 = 1e-4;
        /// Decay of the first moment. Default 0.9; from 0 up to but excluding 1.
        beta1: f64 = 0.9;
        /// Decay of the second moment. Default 0.999; from 0 up to but excluding 1.
        beta2: f64 = 0.999;
        /// Added to the root of the second moment. Default 1e-8; above 0.
        eps: f64 = 1e-8;
        /// Weight decay. Default 0; at least 0.
        weight_decay: f64 = 0.0;
        /// `constant`, `step`, `linear`, `cosine` or `wsd` (warm-up, stable, decay). Default
        /// `constant`.
        schedule: Schedule = Schedule::Constant;
        /// Factor of the `step` schedule, once per epoch. Default 0.9; above 0, at most 1.
        step_gamma: f64 = 0.9;
        /// Steps over which the learning rate rises linearly from 0. Default 0.
        warmup_steps: u64 = 0;
        /// Last steps over which `wsd` falls. Default 0: a tenth of the planned steps.
        decay_steps: u64 = 0;
        /// Where `linear`, `cosine` and `wsd` end, as a share of `lr`. Default 0; from 0 to 1.
        min_lr_ratio: f64 = 0.0;
        /// Largest global gradient norm; longer gradients are scaled down. Default 1; 0 = off.
        clip_norm: f64 = 1.0;
        /// Keep a moving average of everything that trains: a weighted mean of its values after each
        /// update, those k updates ago weighing `ema_decay`^k. Default 0 = off; below 1, for example
        /// 0.999. Training itself is the same with and without.
        ema_decay: f64 = 0.0;
        /// With `ema_decay`: evaluate the averages, pick the best checkpoint by them, and put them
        /// into the adapter directories, which predictions and other programs read. Default `true`;
        /// `false` only keeps them in `trainer.safetensors`.
        ema_evaluate: bool = true;
        /// Stop after this many epochs without a better validation metric. Default 0 = off.
        early_stop_patience: u64 = 0;
        /// The metric that picks the best checkpoint: `loss`, `macro_f1`, `balanced_accuracy`, or
        /// `auto`: the squared error of masked values for batch correction, else the loss.
        /// Default `auto`.
        select: Select = Select::Auto;
        /// Consecutive steps with non-finite gradients that are skipped before the run stops.
        /// Default 10; at least 1.
        non_finite_limit: u64 = 10;
    }
}

section! {
    /// `[checkpoint]`: when state is saved and how much of it is kept.
    CheckpointSection at "checkpoint" {
        /// Steps between checkpoints. Default 0: after each epoch.
        every_steps: u64 = 0;
        /// Newest checkpoints kept. Default 2; at least 1.
        keep_last: usize = 2;
        /// Best checkpoints kept besides, by `train.select`; those of evaluations alone can be. The
        /// very best always stays. Default 1; at least 1.
        keep_best: usize = 1;
        /// Checkpoints whose step is a multiple of this are kept for good. Default 0 = off.
        keep_every_steps: u64 = 0;
        /// Saves in a row that may fail, on a full disk for instance, before the run ends; until then
        /// it goes on with the checkpoints it has. Default 3; at least 1.
        max_failures: u64 = 3;
        /// An address in an object store, such as `s3://bucket/runs/one`, where the newest and the best
        /// checkpoint are kept as well, for machines that may be lost. `--resume` fetches them where the
        /// run directory has nothing newer. The store may be down for a while: it is tried again with
        /// growing pauses, but a run ends well only when the mirror has its last checkpoint.
        /// Default: unset.
        mirror: Option<String> = None;
    }
}

section! {
    /// `[log]`: progress on the terminal and in `metrics.jsonl`.
    LogSection at "log" {
        /// Steps between two lines of the log. Default 10; at least 1.
        every_steps: u64 = 10;
        /// Where the log is written besides `metrics.jsonl`: `csv` (`metrics.csv`, one line per value)
        /// and `tensorboard` (event files under `tensorboard/`). Default `[]`.
        sinks: Vec<SinkKind> = Vec::new();
        /// Steps of which `trace.json` shows what each rank did when, evaluations and checkpoints between
        /// them included, for https://ui.perfetto.dev or `chrome://tracing`. Default 0 = no trace; at most
        /// 1000.
        trace_steps: u64 = 0;
        /// Steps of a start or resumption before the first one that is traced. Default 2: what is done
        /// once is over by then.
        trace_after: u64 = 2;
    }
}

section! {
    /// `[metrics]`: the Prometheus endpoint of each rank.
    MetricsSection at "metrics" {
        /// Port of the first rank of a machine; local rank r listens on port + r. Default 9464;
        /// 0 = off.
        port: u16 = 9464;
        /// Address to listen on. Default `127.0.0.1`, this machine only; `0.0.0.0` for all.
        bind: String = "127.0.0.1".to_owned();
    }
}

section! {
    /// `[watchdog]`: how many seconds each section of a run may go without progress before the rank
    /// writes a flight record and ends the job with exit code 75. 0 turns a deadline off. Each
    /// micro-batch counts as progress.
    WatchdogSection at "watchdog" {
        /// Before the first step: corpus, weights, resumption. Default 900; whole seconds, 0 = off.
        setup: u64 = 900;
        /// Waiting for the loader. Default 300.
        data: u64 = 300;
        /// Forward and backward of one micro-batch. Default 600.
        forward: u64 = 600;
        /// Waiting in a collective for ranks that make no progress. Default 600. A rank that is in
        /// `setup`, `eval` or `checkpoint` has the deadline of that section instead, where it runs
        /// on the same host. Over several hosts choose it longer than a checkpoint takes.
        collective: u64 = 600;
        /// Clipping, update and log of a step. Default 120.
        optimizer: u64 = 120;
        /// One micro-batch of an evaluation. Default 1800.
        eval: u64 = 1800;
        /// Saving a checkpoint, and the end of the run. Default 600.
        checkpoint: u64 = 600;
    }
}

/// The whole configuration of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the run lives.
    pub run: RunSection,
    /// The corpus and its batches.
    pub data: DataSection,
    /// The model that is adapted.
    pub backbone: BackboneSection,
    /// The adapters.
    pub adapter: AdapterSection,
    /// What is learned.
    pub task: TaskSection,
    /// The optimisation.
    pub train: TrainSection,
    /// Saving.
    pub checkpoint: CheckpointSection,
    /// Logging.
    pub log: LogSection,
    /// The Prometheus endpoint.
    pub metrics: MetricsSection,
    /// Deadlines.
    pub watchdog: WatchdogSection,
}
