//! The Prometheus metrics of a rank: atomics filled by the loop, served by a thread of their own.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{CounterVec, GaugeVec, HistogramVec};
use prometheus::{Encoder, HistogramOpts, Opts, Registry, TextEncoder};
use scpeft_protocol::metrics::{CATALOGUE, Kind, Metric};

/// Bucket bounds of step times: 10 ms to about 80 s, by factors of 2.
const STEP_SECONDS_FIRST: f64 = 0.01;
/// Stalls are shorter: 1 ms to about 8 s.
const STALL_SECONDS_FIRST: f64 = 0.001;
const STEP_SECONDS_BUCKETS: usize = 14;
/// Collectives: 10 us to about 84 s.
const COLLECTIVE_SECONDS_FIRST: f64 = 1e-5;
const COLLECTIVE_SECONDS_BUCKETS: usize = 24;

/// All metrics of the catalogue, registered.
#[derive(Debug)]
pub struct Exporter {
    registry: Registry,
    gauges: HashMap<&'static str, GaugeVec>,
    counters: HashMap<&'static str, CounterVec>,
    histograms: HashMap<&'static str, HistogramVec>,
}

impl Exporter {
    /// Registers the catalogue.
    ///
    /// # Errors
    /// Only when the catalogue holds an invalid name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let mut exporter = Self {
            registry: registry.clone(),
            gauges: HashMap::new(),
            counters: HashMap::new(),
            histograms: HashMap::new(),
        };
        for metric in CATALOGUE {
            let opts = Opts::new(metric.name, metric.help);
            match metric.kind {
                Kind::Gauge => {
                    let gauge = GaugeVec::new(opts, metric.labels)?;
                    registry.register(Box::new(gauge.clone()))?;
                    exporter.gauges.insert(metric.name, gauge);
                }
                Kind::Counter => {
                    let counter = CounterVec::new(opts, metric.labels)?;
                    registry.register(Box::new(counter.clone()))?;
                    exporter.counters.insert(metric.name, counter);
                }
                Kind::Histogram => {
                    let (first, count) = buckets(metric);
                    let buckets = prometheus::exponential_buckets(first, 2.0, count)?;
                    let histogram = HistogramVec::new(
                        HistogramOpts::new(metric.name, metric.help).buckets(buckets),
                        metric.labels,
                    )?;
                    if metric.labels.is_empty() {
                        // Shown from the start, with nothing in it.
                        histogram.with_label_values::<&str>(&[]);
                    }
                    registry.register(Box::new(histogram.clone()))?;
                    exporter.histograms.insert(metric.name, histogram);
                }
            }
        }
        // Memory, CPU time, threads and files of this process, read from /proc by the scraper's thread.
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process))?;
        Ok(exporter)
    }

    /// Sets a gauge.
    pub fn set(&self, metric: &Metric, labels: &[&str], value: f64) {
        self.gauges[metric.name]
            .with_label_values(labels)
            .set(value);
    }

    /// Sets a gauge to the present Unix time.
    pub fn set_now(&self, metric: &Metric) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        self.set(metric, &[], now);
    }

    /// Adds to a counter; negative amounts count as nothing.
    pub fn add(&self, metric: &Metric, labels: &[&str], amount: f64) {
        self.counters[metric.name]
            .with_label_values(labels)
            .inc_by(amount.max(0.0));
    }

    /// Adds an observation to a histogram without labels.
    pub fn observe(&self, metric: &Metric, value: f64) {
        self.observe_labelled(metric, &[], value);
    }

    /// Adds an observation to a histogram.
    pub fn observe_labelled(&self, metric: &Metric, labels: &[&str], value: f64) {
        self.histograms[metric.name]
            .with_label_values(labels)
            .observe(value);
    }

    /// The exposition in Prometheus's text format.
    ///
    /// # Errors
    /// Only when a metric cannot be encoded.
    pub fn text(&self) -> prometheus::Result<String> {
        encode(&self.registry)
    }

    /// Serves `/metrics` and `/healthz` on `address` from a thread of its own, and returns the
    /// address in use. A port that is taken is replaced by a free one.
    ///
    /// # Errors
    /// When no port can be bound at all.
    pub fn serve(&self, host: &str, port: u16) -> std::io::Result<std::net::SocketAddr> {
        let server = tiny_http::Server::http((host, port))
            .or_else(|_| tiny_http::Server::http((host, 0)))
            .map_err(std::io::Error::other)?;
        let address = server
            .server_addr()
            .to_ip()
            .ok_or_else(|| std::io::Error::other("no IP address"))?;
        let registry = self.registry.clone();
        std::thread::Builder::new()
            .name("scpeft-metrics".into())
            .spawn(move || {
                for request in server.incoming_requests() {
                    let (status, body) = match request.url() {
                        "/metrics" => encode(&registry)
                            .map_or_else(|e| (500, e.to_string()), |text| (200, text)),
                        "/healthz" => (200, "ok\n".to_owned()),
                        _ => (404, "see /metrics\n".to_owned()),
                    };
                    let header = tiny_http::Header::from_bytes(
                        "Content-Type",
                        "text/plain; version=0.0.4; charset=utf-8",
                    );
                    let mut response =
                        tiny_http::Response::from_string(body).with_status_code(status);
                    if let Ok(header) = header {
                        response = response.with_header(header);
                    }
                    // A scraper that went away is no concern of the run.
                    let _ = request.respond(response);
                }
            })?;
        Ok(address)
    }
}

/// The first bound of a histogram's buckets, and how many there are, each twice the one before.
fn buckets(metric: &Metric) -> (f64, usize) {
    use scpeft_protocol::metrics::{CHECKPOINT_STALL, COLLECTIVE_SECONDS};
    if metric.name == COLLECTIVE_SECONDS.name {
        (COLLECTIVE_SECONDS_FIRST, COLLECTIVE_SECONDS_BUCKETS)
    } else if metric.name == CHECKPOINT_STALL.name {
        (STALL_SECONDS_FIRST, STEP_SECONDS_BUCKETS)
    } else {
        (STEP_SECONDS_FIRST, STEP_SECONDS_BUCKETS)
    }
}

fn encode(registry: &Registry) -> prometheus::Result<String> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_protocol::metrics::{self, PROCESS};

    #[test]
    fn the_exposition_holds_what_was_set() {
        let exporter = Exporter::new().unwrap();
        exporter.set(&metrics::STEP, &[], 7.0);
        exporter.set(&metrics::LOSS, &["train"], 0.25);
        exporter.add(&metrics::CELLS, &[], 32.0);
        exporter.observe(&metrics::STEP_SECONDS, 0.03);
        let text = exporter.text().unwrap();
        for line in [
            "# TYPE scpeft_step gauge",
            "scpeft_step 7",
            "scpeft_loss{split=\"train\"} 0.25",
            "scpeft_cells_total 32",
            "scpeft_step_seconds_bucket{le=\"0.04\"} 1",
            "scpeft_step_seconds_bucket{le=\"0.02\"} 0",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "`{line}` is not in\n{text}"
            );
        }
    }

    #[test]
    fn the_process_is_described_under_the_names_of_the_catalogue() {
        let text = Exporter::new().unwrap().text().unwrap();
        let mut found: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.starts_with("process_"))
            .collect();
        let mut expected = PROCESS.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
