//! The page in a real browser, and its targets in a real Prometheus, over a run of real processes.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also in its helpers, a panic is the report"
)]

mod browser;
mod prometheus;
mod stage;

use browser::Browser;
use scpeft_protocol::heartbeat::Command as Asked;
use stage::{Stage, is_private, kill, wait_until};
use std::path::Path;
use std::process::{Command, Stdio};

const CHECKS: &str = include_str!("checks.js");

/// Whoever wants to look sets this to a folder.
const PICTURES: &str = "SCPEFT_PAGE_PICTURES";

/// Looks at the page at desktop and phone width, light and dark.
fn inspect(browser: &mut Browser, name: &str) {
    for (width, height) in [(1280, 1900), (360, 740)] {
        for scheme in ["light", "dark"] {
            browser.look(width, height, scheme);
            // Charts are drawn anew for another width.
            browser.until("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))");
            let wrong = browser.value(CHECKS);
            assert_eq!(wrong, serde_json::json!([]), "{name}, {width} {scheme}");
            if let Some(folder) = std::env::var_os(PICTURES) {
                let file = format!("{name}-{width}-{scheme}.png");
                browser.picture(&Path::new(&folder).join(file));
            }
        }
    }
    browser.look(1280, 1900, "light");
}

fn assert_quiet(browser: &Browser, url: &str) {
    assert!(
        browser.complaints().is_empty(),
        "{:#?}",
        browser.complaints()
    );
    let requested = browser.requested();
    assert!(requested.len() > 2, "{requested:?}");
    for request in requested {
        assert!(
            request.starts_with(url) || request == "data:,",
            "{request}, not below {url}"
        );
    }
}

#[test]
fn a_run_is_watched_saved_and_stopped_from_the_page() {
    let stage = Stage::new();
    let mut running = stage.start();
    let (url, token) = stage.page();
    let said = std::fs::read_to_string(stage.path("stderr")).unwrap();
    assert!(said.contains(&format!("page: {url}\n")), "{said}");
    assert!(!said.contains(&token), "stderr is a file, not a terminal");
    assert!(is_private(&stage.path("run/page-token")));
    let beaters = [stage.beater(0, None), stage.beater(1, None)];

    let mut browser = Browser::start();
    browser.look(1280, 1900, "light");
    browser.open(&format!("{url}#token={token}"));
    browser.until("document.getElementById('phase')?.textContent === 'Training'");
    browser.until("document.querySelectorAll('#ranks tbody tr').length === 2");
    browser.until("document.getElementById('log').textContent.includes('hello from rank 0')");
    assert_eq!(browser.value("location.hash"), "");
    assert_eq!(browser.text("name"), "<b>lung</b>");
    assert!(
        browser
            .text("about")
            .contains("LoRA on scGPT · cell-type identification · 48,210 training cells")
    );
    assert!(
        browser.text("steps").contains("80 of 200"),
        "{}",
        browser.text("steps")
    );
    let ranks = browser.text("ranks");
    for word in [
        "node1",
        "cuda:0",
        "cuda:1",
        "Computing",
        "3.0 GiB",
        "at work",
    ] {
        assert!(ranks.contains(word), "{word}: {ranks}");
    }
    assert!(browser.text("checkpoints").contains("newest"));
    assert!(browser.text("events").contains("Started on 2 ranks"));
    assert!(
        browser
            .text("settings")
            .contains("https://[hidden]@store/cells")
    );
    browser.until("document.getElementById('plan').innerText.includes('3.4 GiB')");
    assert!(browser.text("plan").contains("1,326,866"));
    assert_eq!(
        browser.value("document.querySelectorAll('#charts polyline').length"),
        4
    );
    let whole = browser
        .value("document.documentElement.outerHTML")
        .to_string();
    assert!(!whole.contains("swordfish") && !whole.contains(&token));
    assert_eq!(browser.value("window.injected"), serde_json::Value::Null);
    inspect(&mut browser, "live");
    walk_by_keyboard(&mut browser);

    browser.value("document.getElementById('save').click()");
    inspect(&mut browser, "dialog");
    browser.press("Enter");
    browser.press("Tab");
    browser.until("document.getElementById('dialog').open === false");
    assert_eq!(beaters[0].take_command(), None, "the first button cancels");
    browser.value(
        "document.getElementById('save').click(); document.getElementById('dialog-yes').click()",
    );
    browser.until("document.getElementById('notice').textContent.startsWith('Done: a checkpoint')");
    let mut asked = None;
    wait_until("rank 0 is asked to save", || {
        asked = asked.or(beaters[0].take_command());
        asked.is_some()
    });
    assert_eq!(
        (asked, beaters[1].take_command()),
        (Some(Asked::Save), None)
    );

    assert_quiet(&browser, &url);
    browser.value(
        "document.getElementById('drain').click(); document.getElementById('dialog-yes').click()",
    );
    browser.until("document.getElementById('phase').textContent === 'Stopped on request'");
    assert_eq!(running.end(), Some(85));
    browser.until("document.getElementById('notice').textContent.startsWith('The run has ended')");
    for name in ["launcher.json", "page-token"] {
        assert!(!stage.run_dir().join(name).exists(), "{name}");
    }
}

/// Everything that can be used is reached with Tab, in order, and shows that it is.
fn walk_by_keyboard(browser: &mut Browser) {
    browser.value("document.activeElement.blur(); scrollTo(0, 0)");
    let mut reached = Vec::new();
    for _ in 0..40 {
        browser.press("Tab");
        let at = browser.value(
            "(() => { const at = document.activeElement; if (at === document.body) return null; \
             const ring = getComputedStyle(at).outlineStyle; \
             return `${at.id || at.className || at.tagName} ${ring}`; })()",
        );
        let Some(at) = at.as_str().map(str::to_owned) else {
            break;
        };
        assert!(!at.ends_with(" none"), "no focus ring: {at}");
        reached.push(at.split(' ').next().unwrap().to_owned());
    }
    for id in [
        "skip", "save", "drain", "theme", "log-rank", "log", "defaults", "settings",
    ] {
        assert!(reached.iter().any(|at| at == id), "{id}: {reached:?}");
    }
    // A curve is read with the arrow keys.
    browser.value("document.querySelector('#charts .chart > svg').focus()");
    browser.press("ArrowLeft");
    let reading = browser.value("document.querySelector('#charts .reading').textContent");
    assert!(
        reading.as_str().unwrap().contains("at step 79"),
        "{reading}"
    );
    browser.value("document.activeElement.blur()");
}

#[test]
fn after_the_end_the_page_names_the_rank_that_failed_first() {
    let stage = Stage::new();
    let mut running = stage.start();
    let beaters = [stage.beater(0, None), stage.beater(1, None)];
    let mut browser = Browser::start();
    let (url, _) = stage.page();
    browser.look(1280, 1900, "light");
    browser.open(&url);
    browser.until("document.getElementById('phase')?.textContent === 'Training'");
    // Without the token the page asks for it, and the run is unharmed by a wrong one.
    browser.value("document.getElementById('drain').click()");
    assert!(browser.text("dialog").contains("page-token"));
    browser.value("document.getElementById('token').value = 'f00'; document.getElementById('dialog-yes').click()");
    browser
        .until("document.getElementById('notice').textContent.startsWith('Refused: wrong token')");
    assert!(running.child.try_wait().unwrap().is_none());
    kill("-KILL", stage.pid(1));
    assert_eq!(running.end(), Some(137));
    drop(beaters);

    let (_viewing, url) = stage.view();
    browser.open("about:blank");
    browser.until("location.href === 'about:blank'");
    browser.forget();
    browser.open(&url);
    browser.until("document.getElementById('phase')?.textContent === 'Failed'");
    let failure = browser.text("failure");
    assert!(failure.starts_with("Rank 1 on "), "{failure}");
    assert!(
        failure.contains("signal 9") && failure.contains("hello from rank 1"),
        "{failure}"
    );
    let first = browser.value("document.querySelector('#ranks tbody tr').innerText");
    assert!(
        first
            .as_str()
            .unwrap()
            .starts_with("Rank 1\tfailed first (signal 9)"),
        "{first}"
    );
    assert!(!browser.text("failure").contains("swordfish"));
    browser.until("document.getElementById('log').textContent.includes('hello from rank 1')");
    assert_eq!(
        browser.value("document.getElementById('save').hidden"),
        true
    );
    inspect(&mut browser, "failed");
    assert_quiet(&browser, &url);

    // A script that somebody smuggles in does not run, and nothing can be sent elsewhere.
    browser.value(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.injected = 1'})); \
         document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.injected = 1\">')",
    );
    assert_eq!(browser.value("window.injected"), serde_json::Value::Null);
    let sent = browser
        .value("fetch('http://127.0.0.1:9/', {mode: 'no-cors'}).then(() => 'sent', (e) => e.name)");
    assert_eq!(sent, "TypeError");
}

#[test]
fn what_cannot_be_served_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let launch = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_scpeft-launch"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let empty = folder.path().to_str().unwrap();
    for (arguments, expected) in [
        (
            &["view", "/nonexistent"][..],
            "`/nonexistent` is no run directory: it does not exist\nhelp: ",
        ),
        (
            &["view", empty],
            "it has neither `run.json` nor `events.jsonl`",
        ),
        (
            &["-n", "1", "--listen", "nonsense", "--", "true"],
            "expected `HOST:PORT`",
        ),
    ] {
        let (code, said) = launch(arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    std::fs::write(folder.path().join("run.json"), "{}").unwrap();
    let (code, said) = launch(&["view", empty, "--listen", "192.0.2.1:80"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("cannot serve the page on `192.0.2.1:80`"),
        "{said}"
    );
}
