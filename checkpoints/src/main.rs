//! `scpeft-checkpoint`: looks into, verifies and converts weights on disk.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use scpeft_checkpoint::Error;
use scpeft_checkpoint::peft::Target;
use scpeft_checkpoint::published::scpeft::Assumptions;
use scpeft_protocol::exit;

mod convert;
mod from_scpeft;
mod inspect;
mod scfoundation;

/// Look into, verify and convert backbone weights, adapters and run checkpoints.
#[derive(Debug, Parser)]
#[command(name = "scpeft-checkpoint", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the tensors of PATH with types, shapes and totals, and what else is known about it.
    #[command(after_help = exit::HELP)]
    Inspect {
        /// A checkpoint, adapter or published directory, a run directory, or a .safetensors or
        /// torch.save file.
        path: PathBuf,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Check that PATH is complete and undamaged: hashes of a checkpoint, checksums of a
    /// torch.save file, headers and agreement of the files of a backbone or adapter.
    #[command(after_help = exit::HELP)]
    Verify {
        /// As for `inspect`; of a run directory every checkpoint is verified.
        path: PathBuf,
    },
    /// Convert a tensor file to safetensors, a published directory to one with model.safetensors
    /// and converted names (of a Geneformer also with its dictionaries), the weights of an scBERT and
    /// the genes of its panel or one model of scFoundation's models.ckpt to such a directory, or a
    /// fine-tuned checkpoint of the scPEFT reference to an adapter.
    #[command(after_help = exit::HELP)]
    Convert {
        /// A torch.save or safetensors file, or a published directory.
        #[arg(
            required_unless_present = "from_scpeft",
            conflicts_with = "from_scpeft"
        )]
        input: Option<PathBuf>,
        /// The file or directory to create; it must not exist.
        #[arg(required_unless_present = "from_scpeft")]
        output: Option<PathBuf>,
        #[command(flatten)]
        dictionaries: Dictionaries,
        #[command(flatten)]
        scfoundation: Box<scfoundation::Choice>,
        #[command(flatten)]
        conversion: Conversion,
    },
    /// Write the backbone of a run that trained all parameters as a published directory; of a run on an
    /// scBERT the whole model, adapters and all, as one file with the names of the scPEFT reference.
    #[command(after_help = exit::HELP)]
    Export {
        /// The run directory; its best checkpoint is taken, or the newest if none is marked best.
        #[arg(
            long,
            required_unless_present = "checkpoint",
            conflicts_with = "checkpoint"
        )]
        run: Option<PathBuf>,
        /// A checkpoint directory inside a run directory.
        #[arg(long)]
        checkpoint: Option<PathBuf>,
        /// The directory, or the file, to create; it must not exist.
        #[arg(long)]
        output: PathBuf,
    },
}

/// The dictionaries of genes of a Geneformer, published as pickles apart from the weights, and the
/// panel of an scBERT. Those that lie beside the weights need not be named.
#[derive(Debug, Args)]
struct Dictionaries {
    /// Of a Geneformer: token_dictionary….pkl.
    #[arg(long, value_name = "PICKLE", conflicts_with = "from_scpeft")]
    tokens: Option<PathBuf>,
    /// Of a Geneformer: gene_median_dictionary….pkl.
    #[arg(long, value_name = "PICKLE", conflicts_with = "from_scpeft")]
    medians: Option<PathBuf>,
    /// Of a Geneformer of the second generation: ensembl_mapping_dict….pkl.
    #[arg(long, value_name = "PICKLE", conflicts_with = "from_scpeft")]
    ensembl_map: Option<PathBuf>,
    /// Of an scBERT: a text with the genes of its panel in their order, one a line.
    #[arg(long, value_name = "TEXT", conflicts_with = "from_scpeft")]
    panel: Option<PathBuf>,
}

impl Dictionaries {
    fn given(&self) -> anyhow::Result<convert::GivenPickles> {
        let named = |path: &Option<PathBuf>| {
            let path = path.as_deref().map(existing).transpose();
            path.map(|path| path.map(Path::to_owned))
        };
        Ok(convert::GivenPickles {
            tokens: named(&self.tokens)?,
            medians: named(&self.medians)?,
            other_names: named(&self.ensembl_map)?,
            panel: named(&self.panel)?,
        })
    }
}

/// `convert --from-scpeft`.
#[derive(Debug, Args)]
struct Conversion {
    /// A fine-tuned model.pt or best_model.pt of the scPEFT library or the scripts of its paper.
    #[arg(long, value_name = "FILE", requires_all = ["backbone", "into"])]
    from_scpeft: Option<PathBuf>,
    /// The published directory that the file was trained from.
    #[arg(long, value_name = "DIR", requires = "from_scpeft")]
    backbone: Option<PathBuf>,
    /// The adapter directory to create; it must not exist.
    #[arg(long = "output", value_name = "ADAPTER_DIR", requires = "from_scpeft")]
    into: Option<PathBuf>,
    /// LoRA's lora_alpha, which the file does not hold.
    #[arg(long, value_name = "ALPHA", default_value_t = 1.0, value_parser = positive)]
    lora_alpha: f64,
    /// The parts that LoRA updates, of q, k and v, where they are not the reference's q,v.
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = target)]
    lora_targets: Option<Vec<Target>>,
    /// The bottlenecks were trained without their skip connection.
    #[arg(long)]
    no_skip_connect: bool,
    /// Keep the whole model, as a backbone directory: for files that trained every parameter.
    #[arg(long, requires = "from_scpeft")]
    full: bool,
}

impl Conversion {
    fn assumptions(&self) -> Assumptions {
        let mut targets = self.lora_targets.clone();
        if let Some(targets) = &mut targets {
            targets.sort_unstable();
            targets.dedup();
        }
        Assumptions {
            lora_alpha: self.lora_alpha,
            targets,
            skip_connect: !self.no_skip_connect,
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn target(text: &str) -> Result<Target, String> {
    let found = Target::ALL.into_iter().find(|t| t.to_string() == text);
    found.ok_or_else(|| "expected q, k or v".to_owned())
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return code(if error.use_stderr() {
                exit::CONFIG
            } else {
                exit::OK
            });
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    match run(cli.command) {
        Ok(()) => code(exit::OK),
        Err(error) => {
            eprintln!("error: {error:#}");
            code(exit_code(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Inspect { path, json } => {
            let found = inspect::inspect(existing(&path)?)?;
            let text = if json {
                format!("{:#}\n", found.to_json())
            } else {
                found.to_string()
            };
            print(&text)
        }
        Command::Verify { path } => print(&inspect::verify(existing(&path)?)?),
        Command::Convert {
            input,
            output,
            dictionaries,
            scfoundation,
            conversion,
        } => {
            let text = match (input, output, &conversion) {
                (Some(input), Some(output), _) => {
                    let given = dictionaries.given()?;
                    convert::convert(existing(&input)?, &output, given, &scfoundation)?
                }
                (
                    _,
                    _,
                    Conversion {
                        from_scpeft: Some(file),
                        backbone: Some(backbone),
                        into: Some(into),
                        ..
                    },
                ) => {
                    let (file, backbone) = (existing(file)?, existing(backbone)?);
                    if conversion.full {
                        from_scpeft::whole(file, backbone, into)?
                    } else {
                        from_scpeft::adapter(file, backbone, into, &conversion.assumptions())?
                    }
                }
                _ => unreachable!("the command line requires one of the two"),
            };
            print(&text)
        }
        Command::Export {
            run,
            checkpoint,
            output,
        } => {
            let checkpoint = match (checkpoint, run) {
                (Some(checkpoint), _) => checkpoint,
                (None, Some(run)) => convert::choose_checkpoint(existing(&run)?)?,
                (None, None) => unreachable!("the command line requires one of the two"),
            };
            print(&convert::export(existing(&checkpoint)?, &output)?)
        }
    }
}

/// A path named on the command line must exist: that it does not is the caller's mistake.
fn existing(path: &Path) -> anyhow::Result<&Path> {
    if path.exists() {
        return Ok(path);
    }
    Err(anyhow::Error::new(UsageError).context(format!("`{}` does not exist", path.display())))
}

/// Marks an error as one of the command line.
#[derive(Debug, thiserror::Error)]
#[error("nothing was done")]
struct UsageError;

fn exit_code(error: &anyhow::Error) -> i32 {
    if error.is::<UsageError>() {
        return exit::CONFIG;
    }
    match error.downcast_ref::<Error>() {
        Some(Error::Exists { .. }) => exit::CONFIG,
        Some(_) => exit::WEIGHTS,
        None => exit::INTERNAL,
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).expect("exit codes fit into a byte"))
}

/// Writes to standard output; a reader that stopped reading (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
