//! Targets for Prometheus, over HTTP (`/sd`) and as a file (`targets.json`): one for each rank that
//! has said on which port it serves its metrics.

use crate::state::{Folder, RankFacts, Summary};
use serde_json::{Value, json};

/// The targets as Prometheus reads them.
pub(super) fn targets(folder: &Folder, ranks: &[RankFacts]) -> String {
    let name = Summary::of(folder).name;
    let bind = folder
        .settings
        .iter()
        .find(|setting| setting.section == "metrics" && setting.key == "bind")
        .and_then(|setting| setting.value.as_deref())
        .map(|value| value.trim_matches('"'));
    let one_host = ranks.iter().all(|rank| rank.host == ranks[0].host);
    let targets: Vec<Value> = ranks
        .iter()
        .filter(|rank| rank.end.is_none())
        .filter_map(|rank| {
            let host = address(&rank.host, bind, one_host);
            Some(json!({
                "targets": [format!("{host}:{}", rank.metrics_port?)],
                "labels": {"run": name, "rank": rank.rank.to_string(), "node": rank.host},
            }))
        })
        .collect();
    Value::Array(targets).to_string()
}

/// Where a rank is reached: ranks that serve this machine alone are reached on this machine.
fn address(host: &str, bind: Option<&str>, one_host: bool) -> String {
    let local = bind.is_none_or(|bind| bind == "localhost" || bind.starts_with("127."));
    if local && one_host {
        return "127.0.0.1".to_owned();
    }
    if bind == Some("::1") && one_host {
        return "[::1]".to_owned();
    }
    host.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn rank(rank: u32, host: &str, metrics_port: Option<u16>) -> RankFacts {
        RankFacts {
            host: host.into(),
            metrics_port,
            ..RankFacts::unheard(rank)
        }
    }

    #[test]
    fn each_rank_that_serves_metrics_is_a_target() {
        let dir = tempfile::tempdir().unwrap();
        let config = "[run]\nname = \"lung\" # f\n[metrics]\nbind = \"0.0.0.0\" # f\n";
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut folder = Folder::new(dir.path());
        assert_eq!(targets(&folder, &[]), "[]");
        let mut gone = rank(2, "n2", Some(9465));
        gone.end = Some(crate::state::RankEnd {
            code: 0,
            signal: None,
            cause: None,
            last_lines: Vec::new(),
            first: false,
        });
        let ranks = [
            rank(0, "n1", Some(9464)),
            rank(1, "n2", Some(40_001)),
            rank(3, "n2", None),
            gone,
        ];
        folder.look();
        assert_eq!(
            targets(&folder, &ranks),
            "[{\"targets\":[\"n1:9464\"],\"labels\":{\"run\":\"lung\",\"rank\":\"0\",\"node\":\"n1\"}},\
             {\"targets\":[\"n2:40001\"],\"labels\":{\"run\":\"lung\",\"rank\":\"1\",\"node\":\"n2\"}}]"
        );
        let alone = Folder::new(Path::new("/nonexistent/r"));
        assert!(targets(&alone, &ranks[..1]).contains("\"127.0.0.1:9464\""));
        assert!(targets(&alone, &ranks[..2]).contains("\"n1:9464\""));
    }
}
