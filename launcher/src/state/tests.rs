use super::*;
use std::path::Path;

/// A run directory with these files, looked at once.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut folder = Folder::new(dir.path());
    folder.look();
    (dir, folder)
}

const WATCHED: Option<Watched> = Some(Watched {
    world_size: 2,
    stop_requested: false,
    controls: true,
});
const STOPPING: Option<Watched> = Some(Watched {
    world_size: 2,
    stop_requested: true,
    controls: true,
});

fn doing(section: Section) -> RankFacts {
    let mut facts = RankFacts::unheard(0);
    facts.section = Some(section);
    (facts.heard, facts.since) = (100.0, 100.0);
    facts
}

fn phase_of(events: &str, ranks: &[RankFacts], watched: Option<Watched>) -> Phase {
    let (_dir, folder) = folder(&[("events.jsonl", events)]);
    RunState::new(&folder, ranks, watched, &mut Pace::default(), 100.0).phase
}

#[test]
fn the_phase_follows_from_events_ranks_and_who_watches() {
    let start = "{\"time\":1,\"kind\":\"start\",\"ranks\":2}\n";
    let then = |kind: &str| format!("{start}{{\"time\":2,\"kind\":\"{kind}\"}}\n");
    for (kind, live, dead) in [
        ("done", Phase::Done, Phase::Done),
        ("stop", Phase::Stopped, Phase::Stopped),
        ("failure", Phase::Failed, Phase::Failed),
        ("give-up", Phase::Failed, Phase::Failed),
        ("restart", Phase::Pausing, Phase::Lost),
        ("something-new", Phase::Starting, Phase::Lost),
    ] {
        assert_eq!(phase_of(&then(kind), &[], WATCHED), live, "{kind}");
        assert_eq!(phase_of(&then(kind), &[], None), dead, "{kind}");
    }
    for (section, expected) in [
        (Section::Setup, Phase::Starting),
        (Section::Collective, Phase::Training),
        (Section::Eval, Phase::Evaluating),
        (Section::Checkpoint, Phase::Saving),
    ] {
        assert_eq!(phase_of(start, &[doing(section)], WATCHED), expected);
    }
    let silent = [RankFacts::unheard(0)];
    assert_eq!(phase_of(start, &silent, WATCHED), Phase::Running);
    assert_eq!(phase_of(start, &silent, STOPPING), Phase::Draining);
    assert_eq!(phase_of(&then("stop"), &silent, STOPPING), Phase::Stopped);
}

#[test]
fn a_run_without_a_launcher_is_told_from_its_record() {
    for (status, expected) in [
        ("done", Phase::Done),
        ("preempted", Phase::Stopped),
        ("running", Phase::Lost),
    ] {
        let record = format!("{{\"status\":\"{status}\",\"seconds\":7.5,\"steps\":9}}");
        let (_dir, folder) = folder(&[("run.json", &record)]);
        let state = RunState::new(&folder, &[], None, &mut Pace::default(), 100.0);
        assert_eq!(state.phase, expected);
        assert_eq!(state.progress.elapsed_seconds, Some(7.5));
        assert_eq!(state.progress.step, 9);
    }
}

#[test]
fn a_run_without_a_launcher_is_at_work_while_it_writes() {
    let files = [
        ("run.json", "{\"status\":\"running\"}"),
        ("metrics.jsonl", "{\"step\":1,\"loss\":1}\n"),
    ];
    let (_dir, folder) = folder(&files);
    let written = folder.written.unwrap();
    for (now, expected) in [
        (written + 5.0, Phase::Running),
        (written + 500.0, Phase::Lost),
    ] {
        let state = RunState::new(&folder, &[], None, &mut Pace::default(), now);
        assert_eq!(state.phase, expected);
    }
}

#[test]
fn a_failure_is_shown_with_the_last_lines_until_the_run_goes_on() {
    let failure = "{\"time\":1,\"kind\":\"start\",\"ranks\":2}\n\
                   {\"time\":5,\"kind\":\"failure\",\"code\":3,\"rank\":1,\"host\":\"n2\",\
                   \"cause\":\"the corpus\"}\n";
    let mut culprit = doing(Section::Data);
    culprit.end = Some(RankEnd {
        code: 3,
        signal: None,
        cause: None,
        last_lines: vec!["error: no corpus".into()],
        first: true,
    });
    let (_dir, ended) = folder(&[("events.jsonl", failure)]);
    let ranks = [culprit];
    let state = RunState::new(&ended, &ranks, None, &mut Pace::default(), 100.0);
    let shown = state.failure.unwrap();
    assert_eq!((shown.rank, shown.host.as_deref()), (Some(1), Some("n2")));
    assert_eq!(shown.last_lines, ["error: no corpus"]);
    assert!(
        shown
            .meaning
            .unwrap()
            .starts_with("the corpus or an input file")
    );
    assert_eq!(state.progress.elapsed_seconds, Some(4.0));
    let again = format!(
        "{failure}{{\"time\":6,\"kind\":\"restart\"}}\n{{\"time\":7,\"kind\":\"start\"}}\n"
    );
    let (_dir, again) = folder(&[("events.jsonl", &again)]);
    let state = RunState::new(&again, &ranks[..0], WATCHED, &mut Pace::default(), 100.0);
    assert_eq!((state.failure, state.restarts), (None, 1));
}

#[test]
fn progress_has_an_end_in_sight_while_the_run_moves() {
    let (_dir, folder) = folder(&[("events.jsonl", "{\"time\":90,\"kind\":\"start\"}\n")]);
    let mut pace = Pace::default();
    let mut rank = doing(Section::Forward);
    rank.planned_steps = 100;
    let mut at = |now: f64, step: u64| {
        rank.step = step;
        let ranks = [rank.clone()];
        RunState::new(&folder, &ranks, WATCHED, &mut pace, now).progress
    };
    assert_eq!(at(100.0, 10).eta_seconds, None);
    let later = at(110.0, 30);
    assert_eq!(later.steps_per_second, Some(2.0));
    assert_eq!(
        (later.eta_seconds, later.planned_steps),
        (Some(35.0), Some(100))
    );
    assert_eq!(later.elapsed_seconds, Some(20.0));
}

#[test]
fn checkpoints_and_times_are_shown_with_what_points_to_them() {
    let manifest = "{\"files\":{},\"score\":{\"metric\":\"macro_f1\",\"value\":0.5}}";
    let metrics = "{\"step\":1,\"data_seconds\":1,\"collective_seconds\":2,\"step_seconds\":10}\n\
                   {\"step\":2,\"data_seconds\":1,\"collective_seconds\":2,\"step_seconds\":10}\n";
    let (_dir, folder) = folder(&[
        ("checkpoints/step-00000002/manifest.json", manifest),
        ("checkpoints/step-00000004/manifest.json", manifest),
        ("LATEST", "step-00000004\n"),
        ("BEST", "step-00000002\n"),
        ("metrics.jsonl", metrics),
    ]);
    let state = RunState::new(&folder, &[], None, &mut Pace::default(), 100.0);
    let seen: Vec<_> = (state.checkpoints.iter())
        .map(|row| (row.checkpoint.step, row.is_latest, row.is_best))
        .collect();
    assert_eq!(seen, [(4, true, false), (2, false, true)]);
    assert_eq!(state.summary.best_value, Some(0.5));
    let seen: Vec<_> = state
        .sections
        .iter()
        .map(|s| (s.section, s.seconds))
        .collect();
    assert_eq!(
        seen,
        [("data", 2.0), ("forward", 14.0), ("collective", 4.0)]
    );
}

#[test]
fn nothing_secret_is_served() {
    let (_dir, folder) = folder(&[
        (
            "run.json",
            "{\"data\":{\"corpus\":\"https://user:hunter22@host/cells\"},\"starts\":[{\"argv\":\
             [\"t\",\"--set\",\"data.corpus=https://h/c?sig=hunter22\",\"--key=hunter22!\"]}]}",
        ),
        (
            "config.toml",
            "[data]\ncorpus = \"https://user:hunter22@host/c\" # --set\nsecret_key = \"hunter22\" # x\n",
        ),
        (
            "events.jsonl",
            "{\"time\":1,\"kind\":\"failure\",\"cause\":\"get https://user:hunter22@host/c\"}\n",
        ),
    ]);
    let environment = [("MY_SECRET".to_owned(), "hunter22!".to_owned())];
    let redactor = Redactor::new(environment);
    let state = RunState::new(&folder, &[], None, &mut Pace::default(), 100.0);
    let json = state.json(&redactor);
    assert!(!json.contains("hunter22"), "{json}");
    assert!(json.contains("https://[hidden]@host/cells"), "{json}");
}

#[test]
fn the_state_of_a_thousand_ranks_is_a_few_hundred_bytes_of_each() {
    let ranks: Vec<RankFacts> = (0..1000)
        .map(|rank| {
            let mut facts = doing(Section::Forward);
            facts.rank = rank;
            facts.host = format!("node{:03}", rank / 8);
            facts.device = format!("cuda:{}", rank % 8);
            facts.section_seconds[2] = 100.0 + f64::from(rank % 7);
            facts
        })
        .collect();
    let folder = Folder::new(Path::new("/nonexistent"));
    let watched = Some(Watched {
        world_size: 1000,
        stop_requested: false,
        controls: true,
    });
    let redactor = Redactor::new([("A_SECRET".to_owned(), "0123456789".to_owned())]);
    let state = RunState::new(&folder, &ranks, watched, &mut Pace::default(), 100.0);
    let bytes = state.json(&redactor).len();
    assert!((100_000..1_000_000).contains(&bytes), "{bytes} bytes");
}
