//! A real Prometheus finds the ranks of a run through the launcher.

use crate::stage::{Stage, wait_until};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves the step of a rank on a free port, as the exporter of the trainer does.
fn metrics_of(rank: u32) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in head.map_while(Result::ok) {
                if line.is_empty() {
                    break;
                }
            }
            let body = format!("# TYPE scpeft_step gauge\nscpeft_step {}\n", 80 + rank);
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
            let _ = write!(
                stream,
                "{head}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}

fn get(port: u16, path: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn a_real_prometheus_finds_the_ranks_over_http_and_in_the_file() {
    let stage = Stage::new();
    let _running = stage.start();
    let ports = [metrics_of(0), metrics_of(1)];
    let _beaters: Vec<_> = (0..2)
        .map(|rank| stage.beater(rank, Some(ports[rank as usize])))
        .collect();
    let (url, _) = stage.page();
    let targets = stage.run_dir().join("targets.json");
    let config = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n\
         - job_name: http\n  http_sd_configs: [{{url: \"{url}sd\", refresh_interval: 500ms}}]\n\
         - job_name: file\n  file_sd_configs: [{{files: [\"{}\"], refresh_interval: 500ms}}]\n",
        targets.display()
    );
    let file = stage.path("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            stage.path("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=error")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus; `make setup-test` installs it");
    let _server = Server(server);

    let mut found = Vec::new();
    let expected: Vec<_> = ["file", "http"]
        .into_iter()
        .flat_map(|job| (0..2).map(move |rank| (job.to_owned(), rank.to_string(), ports[rank])))
        .map(|(job, rank, port)| {
            let value = (80 + rank.parse::<u32>().unwrap()).to_string();
            (
                job,
                rank,
                format!("127.0.0.1:{port}"),
                "<b>lung</b>".to_owned(),
                "node1".to_owned(),
                value,
            )
        })
        .collect();
    wait_until("Prometheus has scraped both ranks both ways", || {
        let answer = get(port, "/api/v1/query?query=scpeft_step").unwrap_or_default();
        let series = answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        found = series
            .iter()
            .map(|one| {
                let label =
                    |name: &str| one["metric"][name].as_str().unwrap_or_default().to_owned();
                let value = one["value"][1].as_str().unwrap_or_default().to_owned();
                (
                    label("job"),
                    label("rank"),
                    label("instance"),
                    label("run"),
                    label("node"),
                    value,
                )
            })
            .collect();
        found.sort();
        found.len() == expected.len()
    });
    assert_eq!(found, expected);
}
