//! Rules, alerts and dashboards: `promtool` accepts and tests them, they name only what exists, and
//! the documentation lists what is exported.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

use scpeft_protocol::metrics::CATALOGUE;
use scpeft_tests::monitoring::{deploy, exported_names, names_in, queries, values_of};
use scpeft_tests::train::text;

const RULE_FILES: [&str; 2] = ["recording.yml", "alerts.yml"];
const DASHBOARDS: [&str; 2] = ["run.json", "fleet.json"];

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(deploy("prometheus"))
        .output()
        .expect("promtool; `make setup-test` installs it");
    assert!(
        output.status.success(),
        "promtool {arguments:?}\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap()
}

#[test]
fn promtool_accepts_the_configuration_and_every_rule_passes_its_cases() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "rules", RULE_FILES[0], RULE_FILES[1]]);
    promtool(&["test", "rules", "tests/recording.yml", "tests/alerts.yml"]);
}

#[test]
fn every_rule_has_a_case_and_every_alert_says_what_to_do() {
    let recording = read("prometheus/recording.yml");
    let cases = names_in(&read("prometheus/tests/recording.yml"));
    let records = values_of(&recording, "- record: ");
    assert!(records.len() >= 15, "{records:?}");
    for record in &records {
        assert!(cases.contains(record), "no case for `{record}`");
    }
    let alerts = read("prometheus/alerts.yml");
    let cases = read("prometheus/tests/alerts.yml");
    let names = values_of(&alerts, "- alert: ");
    assert!(names.len() >= 12, "{names:?}");
    for block in alerts.split("- alert: ").skip(1) {
        let name = block.lines().next().unwrap();
        assert!(
            cases.contains(&format!("alertname=\"{name}\"")),
            "no case for `{name}`"
        );
        for part in ["expr:", "severity: ", "summary: \"", "action: \""] {
            assert!(block.contains(part), "`{name}` has no `{part}`");
        }
    }
}

#[test]
fn rules_and_dashboards_name_only_what_exists() {
    let recording = read("prometheus/recording.yml");
    let mut known = exported_names();
    known.extend(values_of(&recording, "- record: "));
    let check = |what: &str, text: &str| {
        for name in names_in(text) {
            assert!(known.contains(&name), "{what}: no metric or rule `{name}`");
        }
    };
    check("recording.yml", &recording);
    for block in read("prometheus/alerts.yml").split("- alert: ") {
        let expression = block.split("annotations:").next().unwrap();
        check("alerts.yml", expression);
    }
    for file in DASHBOARDS {
        let found = queries(&deploy(&format!("grafana/dashboards/{file}")));
        assert!(found.panels.len() >= 15, "{file}");
        for query in found
            .panels
            .iter()
            .map(|(_, query)| query)
            .chain(&found.annotations)
            .chain(&found.variables)
        {
            check(file, query);
        }
    }
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let readme = std::fs::read_to_string(deploy("../README.md")).unwrap();
    let table = readme
        .split("| metrics, each with the prefix `scpeft_` |")
        .nth(1)
        .expect("the table of metrics");
    let mut listed = BTreeSet::new();
    for row in table.lines().skip(2).take_while(|l| l.starts_with('|')) {
        let names = row.split('|').nth(1).unwrap();
        listed.extend(names.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    let exported: BTreeSet<String> = CATALOGUE
        .iter()
        .filter_map(|metric| {
            let name = metric.name.strip_prefix("scpeft_")?;
            Some(match metric.labels {
                [] => name.to_owned(),
                _ if name == "run_info" => name.to_owned(),
                labels => format!("{name}{{{}}}", labels.join(",")),
            })
        })
        .collect();
    assert_eq!(listed, exported);
}
