//! What ranks do for each other besides training: they check the transport, say where they run, count what
//! they send, and tell the launcher.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scpeft_protocol::heartbeat::{
    ADDRESS_VARIABLE, Beat, Command as Asked, Hello, Lines, Message, Role, TOKEN_VARIABLE, decode,
    encode,
};
use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, assert_refused, logged_lines, metrics, rank_pids, set, signal, text, wait, wait_until,
};
use serde_json::Value;

/// Trained scalars of [`Lab`]'s model: 448 of LoRA, 96 biases, 723 of the head.
const TRAINED: u64 = 1_267;
/// What rides behind their gradients: contrastive loss, cells, two flags, one term.
const TAIL: u64 = 5;

#[test]
fn a_step_sends_the_gradients_of_what_trains_their_tail_and_a_count_and_nothing_else() {
    let lab = Lab::new(&Plan::default());
    let run = lab.path("run");
    let output = lab
        .command(2, &set(&["train.max_steps=4"]))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = metrics(&run);
    let steps: Vec<_> = lines
        .iter()
        .filter(|line| line["kind"] == "train")
        .collect();
    assert_eq!(steps.len(), 4);
    // One f64 of the only term's count comes before the gradients.
    let expected = 4 * (TRAINED + TAIL) + 8;
    for step in steps {
        assert_eq!(step["collective_bytes"].as_f64(), Some(expected as f64));
        let score = step["straggler_score"].as_f64().unwrap();
        assert!(score > 0.0 && score <= 1.0, "{step}");
        assert!([0.0, 1.0].contains(&step["slowest_rank"].as_f64().unwrap()));
    }
    let said = text(&output.stderr);
    let checked = said
        .matches("all-reduce of 2 ranks: sum checked, 4.0 MiB")
        .count();
    assert_eq!(checked, 1, "{said}");
    let places = said.lines().find(|line| line.contains("host `")).unwrap();
    assert!(
        places.contains("rank 0 on cpu (1 thread(s)") && places.contains(", rank 1 on cpu"),
        "{places}"
    );
}

#[test]
fn a_transport_that_sums_wrongly_is_refused_before_anything_depends_on_it() {
    let lab = Lab::new(&Plan::default());
    let library = lab.path("wrong_sum.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("mpi/wrong_sum.c");
    let status = Command::new("mpicc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .status()
        .expect("mpicc");
    assert!(status.success());
    let output = lab
        .command(2, &[])
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    let words = [
        "rank 1",
        "wrong sum in 1 element(s), the first at 17: expected 7, found 8",
        "help:",
    ];
    assert_refused(&output, 75, &words);
    assert!(!lab.path("run/checkpoints").exists());
}

#[test]
fn processes_that_nothing_connects_are_refused() {
    let lab = Lab::new(&Plan::default());
    let unconnected = lab
        .command(1, &[])
        .env("SLURM_STEP_NUM_TASKS", "2")
        .output()
        .unwrap();
    assert_refused(&unconnected, 2, &["2 tasks without MPI", "srun --mpi=pmix"]);
    let foreign = lab
        .command(1, &[])
        .env("OMPI_COMM_WORLD_RANK", "0")
        .env("OMPI_COMM_WORLD_SIZE", "4")
        .output()
        .unwrap();
    assert_refused(
        &foreign,
        2,
        &["mpirun started 4 ranks, MPI connects 1", "help:"],
    );
    assert!(!lab.path("run").exists());
}

#[test]
fn a_rank_that_is_bound_to_too_few_cores_is_warned() {
    let lab = Lab::new(&Plan::default());
    let program = scpeft_tests::binary("scpeft-train");
    let output = Command::new("taskset")
        .args(["-c", "0"])
        .arg(program)
        .arg("--config")
        .arg(&lab.config)
        .args(set(&["train.max_steps=1"]))
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for word in ["rank 0: bound to 1 of ", "help: `mpirun --bind-to none`"] {
        assert!(said.contains(word), "`{word}` is not in\n{said}");
    }
}

/// What ranks have said, and a way to answer them.
#[derive(Default)]
struct Heard {
    hellos: BTreeMap<u32, Hello>,
    beats: BTreeMap<u32, Vec<Beat>>,
    ends: BTreeMap<u32, i32>,
    voices: BTreeMap<u32, UnixStream>,
}

/// Listens as a launcher does.
fn listen(path: &Path) -> Arc<Mutex<Heard>> {
    let heard = Arc::new(Mutex::new(Heard::default()));
    let (listener, shared) = (UnixListener::bind(path).unwrap(), Arc::clone(&heard));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || follow(stream, &shared));
        }
    });
    heard
}

fn follow(mut stream: UnixStream, heard: &Mutex<Heard>) {
    let (mut lines, mut buffer, mut rank) = (Lines::default(), [0; 4096], 0);
    while let Ok(got @ 1..) = stream.read(&mut buffer) {
        lines.push(&buffer[..got]);
        while let Some(line) = lines.next_line().unwrap() {
            let mut heard = heard.lock().unwrap();
            match decode::<Message>(line).unwrap() {
                Message::Hello(hello) => {
                    rank = hello.rank;
                    heard.voices.insert(rank, stream.try_clone().unwrap());
                    heard.hellos.insert(rank, hello);
                }
                Message::Beat(beat) => heard.beats.entry(rank).or_default().push(beat),
                Message::Bye(bye) => {
                    heard.ends.insert(rank, bye.code);
                }
            }
        }
    }
}

impl Heard {
    fn step(&self, rank: u32) -> u64 {
        let last = self.beats.get(&rank).and_then(|beats| beats.last());
        last.map_or(0, |beat| beat.step)
    }

    fn ask(&mut self, rank: u32, command: Asked) {
        let voice = self.voices.get_mut(&rank).unwrap();
        voice.write_all(encode(&command).as_bytes()).unwrap();
    }
}

#[test]
fn ranks_tell_the_launcher_where_they_are_and_do_what_it_asks_of_any_of_them() {
    // Epochs of 300 steps, so that no checkpoint comes by itself before the one that is asked for.
    let lab = Lab::new(&Plan {
        cells: 6_000,
        row_group_cells: 1_000,
        ..Plan::default()
    });
    let socket = lab.path("ear");
    let heard = listen(&socket);
    let mut child = lab
        .command(2, &set(&["train.epochs=1000", "log.every_steps=50"]))
        .env(ADDRESS_VARIABLE, format!("unix:{}", socket.display()))
        .env(TOKEN_VARIABLE, "secret")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let run = lab.path("run");
    wait_until("both ranks are at work", || {
        let heard = heard.lock().unwrap();
        heard.step(0) >= 2 && heard.step(1) >= 2
    });
    heard.lock().unwrap().ask(1, Asked::Save);
    wait_until("the checkpoint that rank 1 was asked for is there", || {
        run.join("LATEST").exists()
    });
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    let saved: u64 = latest.trim().trim_start_matches("step-").parse().unwrap();
    assert!(!saved.is_multiple_of(300), "{saved}");
    wait_until("rank 0 tells of the checkpoint", || {
        let heard = heard.lock().unwrap();
        heard.beats[&0].last().unwrap().checkpoint_step == Some(saved)
    });
    heard.lock().unwrap().ask(0, Asked::Drain);
    assert_eq!(wait(&mut child).code(), Some(85));
    wait_until("both ranks have said goodbye", || {
        heard.lock().unwrap().ends.len() == 2
    });

    let heard = heard.lock().unwrap();
    assert_eq!(heard.ends, BTreeMap::from([(0, 85), (1, 85)]));
    for rank in [0, 1] {
        let hello = &heard.hellos[&rank];
        assert_eq!((hello.role, hello.world_size), (Role::Rank, 2));
        assert_eq!((hello.local_rank, hello.device.as_str()), (rank, "cpu"));
        assert_eq!(hello.token, "secret");
        assert_eq!(hello.run_dir.as_deref(), run.to_str());
        let beats = &heard.beats[&rank];
        assert!(beats.is_sorted_by_key(|beat| beat.step));
        let beat = beats.iter().rfind(|beat| beat.step > 0).unwrap();
        assert_eq!(beat.planned_steps, 300_000);
        assert!(beat.memory_bytes > 10 << 20, "{beat:?}");
        assert!(beat.section_seconds.iter().sum::<f64>() > 0.1, "{beat:?}");
        assert_eq!(beat.loss.is_some(), rank == 0, "{beat:?}");
        assert_eq!(beat.cells_per_second.is_some(), rank == 0, "{beat:?}");
    }
}

/// A model whose steps take some ten milliseconds, most of it computing.
const LONGER_STEPS: [&str; 4] = [
    "backbone.shape.d_model=128",
    "backbone.shape.d_hid=512",
    "train.batch_cells=24",
    "train.micro_batch_cells=3",
];

/// A rank that gets a quarter of the time of the other, whichever it is.
#[test]
fn the_rank_that_is_held_up_is_the_one_that_the_score_names() {
    let lab = Lab::new(&Plan::default());
    for slow in [1, 0] {
        let run = lab.path(&format!("slow-{slow}"));
        let dir = format!("run.dir={}", run.display());
        let more = ["train.epochs=10000", "log.every_steps=4", dir.as_str()];
        let settings = [&LONGER_STEPS[..], &more].concat();
        let mut child = lab.command(2, &set(&settings)).spawn().unwrap();
        wait_until("the run is under way", || logged_lines(&run) >= 3);
        let pid = rank_pids(&run)[slow];
        let before = logged_lines(&run);
        wait_until("enough has been compared", || {
            signal(pid, "STOP");
            std::thread::sleep(Duration::from_millis(30));
            signal(pid, "CONT");
            std::thread::sleep(Duration::from_millis(10));
            logged_lines(&run) >= before + 16
        });
        signal(child.id(), "USR1");
        assert_eq!(wait(&mut child).code(), Some(85));
        let lines = metrics(&run);
        let compared: Vec<(f64, f64)> = lines[before + 1..before + 16]
            .iter()
            .filter(|line| line["kind"] == "train")
            .map(|line| {
                let number = |key: &str| line[key].as_f64().unwrap();
                (number("slowest_rank"), number("straggler_score"))
            })
            .collect();
        let named = compared.iter().filter(|(rank, _)| *rank == slow as f64);
        let scores: Vec<f64> = named.map(|(_, score)| *score).collect();
        assert!(10 * scores.len() >= 9 * compared.len(), "{compared:?}");
        // Two ranks, one of them four times as slow: (1 + 4) / 2 / 4 = 0.625.
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        assert!((0.5..0.85).contains(&mean), "{compared:?}");
    }
}

/// Name, begin and end in microseconds, and arguments of a span of the trace.
type Span = (String, u64, u64, Value);

/// The spans of a rank, in order of their begin, the outer ones first.
fn spans(trace: &Value, rank: u64) -> Vec<Span> {
    let events = trace["traceEvents"].as_array().unwrap().iter();
    let own = events.filter(|e| e["ph"] == "X" && e["pid"] == rank);
    let mut spans: Vec<Span> = own
        .map(|e| {
            let (begin, length) = (e["ts"].as_u64().unwrap(), e["dur"].as_u64().unwrap());
            let name = e["name"].as_str().unwrap().to_owned();
            (name, begin, begin + length, e["args"].clone())
        })
        .collect();
    spans.sort_by_key(|(_, begin, end, _)| (*begin, std::cmp::Reverse(*end)));
    spans
}

#[test]
fn the_trace_of_a_few_steps_nests_and_adds_up_on_every_rank() {
    let lab = Lab::new(&Plan::default());
    // Three steps an epoch: between the third and the fourth lies an evaluation with its checkpoint.
    let more = [
        "train.epochs=3",
        "log.trace_steps=5",
        "log.trace_after=1",
        "backbone.shard=world",
    ];
    let run = lab.train(2, "run", &set(&[&LONGER_STEPS[..], &more].concat()));
    let text = std::fs::read_to_string(run.join("trace.json")).unwrap();
    let trace: Value = serde_json::from_str(&text).unwrap();
    let seconds: BTreeMap<u64, f64> = metrics(&run)
        .iter()
        .filter(|line| line["kind"] == "train")
        .map(|line| {
            let step = line["step"].as_u64().unwrap();
            (step, line["step_seconds"].as_f64().unwrap())
        })
        .collect();
    for rank in [0, 1] {
        let spans = spans(&trace, rank);
        let inside = |a: &Span, b: &Span| a.1 >= b.1 && a.2 <= b.2;
        for (i, a) in spans.iter().enumerate() {
            let apart = |b: &Span| b.1 >= a.2;
            assert!(
                spans[i + 1..].iter().all(|b| apart(b) || inside(b, a)),
                "{a:?}"
            );
        }
        let steps: Vec<&Span> = spans.iter().filter(|s| s.0 == "step").collect();
        let numbers = steps.iter().map(|s| s.3["step"].as_u64().unwrap());
        assert_eq!(numbers.collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        let (mut whole, mut parts) = (0, 0);
        for step in steps {
            let number = step.3["step"].as_u64().unwrap();
            let own: Vec<&Span> = spans
                .iter()
                .filter(|s| s.0 != "step" && inside(s, step))
                .collect();
            let count = |name: &str| own.iter().filter(|s| s.0 == name).count();
            // Eight micro-batches of three cells, two ranks.
            let found = ["data", "forward", "backward", "optimizer"].map(count);
            assert_eq!(found, [1, 4, 4, 1], "{own:?}");
            assert_eq!(count("all_reduce_f32"), 1);
            assert!(count("all_gather") > 0, "{own:?}");
            let outer = |s: &&&Span| !own.iter().any(|o| *o != **s && inside(s, o));
            let outermost = own.iter().filter(outer);
            parts += outermost.map(|s| s.2 - s.1).sum::<u64>();
            whole += step.2 - step.1;
            let measured = 1e6 * seconds[&number];
            let lasted = (step.2 - step.1) as f64;
            assert!(
                rank != 0 || lasted > measured - 500.0,
                "{lasted} {measured}"
            );
        }
        assert!(
            parts <= whole && 10 * parts >= 8 * whole,
            "{parts} of {whole} us"
        );
        let others = |name: &str| spans.iter().filter(|s| s.0 == name).count();
        assert_eq!([others("eval"), others("checkpoint")], [1, 1]);
    }
    // A trace is asked for, not left behind by every run.
    let quiet = lab.train(1, "quiet", &set(&["train.epochs=1"]));
    assert!(!quiet.join("trace.json").exists());
}
