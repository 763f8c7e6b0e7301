//! A report as one HTML file that needs nothing else: tables, pictures, and what is left out.

use std::fmt::Write;

use crate::study::{LeftOut, ModelReport, Report, Role};

/// Metrics that are shown first, with what is good.
const SHOWN: [(&str, &str, Good); 9] = [
    ("r2_mean_all", "R2 of mean profiles, all genes", Good::High),
    ("r2_mean_de", "R2 of mean profiles, top genes", Good::High),
    ("r2_delta_all", "R2 of changes", Good::High),
    ("pearson_delta_all", "Pearson of changes", Good::High),
    (
        "pearson_delta_vs_pertmean",
        "Pearson against the mean of conditions",
        Good::High,
    ),
    (
        "discrimination_score_l1",
        "Discrimination score (L1)",
        Good::High,
    ),
    ("overlap_at_N", "Overlap of changed genes", Good::High),
    ("mae_all", "Mean absolute error", Good::Low),
    ("edistance_euclid_pred_real", "Energy distance", Good::Low),
];
/// Metrics with a picture.
const PICTURES: [&str; 4] = [
    "r2_delta_all",
    "pearson_delta_all",
    "discrimination_score_l1",
    "overlap_at_N",
];

#[derive(Clone, Copy, PartialEq)]
enum Good {
    High,
    Low,
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:1rem 0;font-size:13px}\
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}\
th:first-child,td:first-child{text-align:left}\
tr.model td{font-weight:600;background:#eef4ff}tr.ceiling td{color:#777}\
figure{display:inline-block;margin:.5rem 1rem .5rem 0}figcaption{font-size:13px}";

/// The page.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("Responses to perturbations: {}", report.rule);
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style><h1>{0}</h1>\
<p>{1} conditions held out, {2} in training, {3} genes, seed {4}. Top genes: {5}.</p>",
        escape(&title),
        report.test,
        report.train,
        report.genes,
        report.seed,
        escape(&report.top_genes),
    );
    verdicts(&mut page, report);
    table(&mut page, report);
    for metric in PICTURES {
        picture(&mut page, report, metric);
    }
    everything(&mut page, report);
    left_out(&mut page, report);
    page.push_str("</html>\n");
    page
}

/// In words, where each model stands beside the best baseline.
fn verdicts(page: &mut String, report: &Report) {
    for model in report.models.iter().filter(|m| m.role == Role::Model) {
        let _ = write!(page, "<h2>{}</h2><ul>", escape(&model.model));
        for (metric, label, good) in SHOWN {
            let (Some(own), Some((name, best))) = (mean(model, metric), best(report, metric, good))
            else {
                continue;
            };
            let ahead = match good {
                Good::High => own > best,
                Good::Low => own < best,
            };
            let _ = write!(
                page,
                "<li>{label}: {own:.3}, {} the best baseline ({} with {best:.3})</li>",
                if ahead {
                    "better than"
                } else {
                    "not better than"
                },
                escape(name),
            );
        }
        page.push_str("</ul>");
    }
}

fn mean(model: &ModelReport, metric: &str) -> Option<f64> {
    model.metrics.get(metric).and_then(|summary| summary.mean)
}

fn best<'a>(report: &'a Report, metric: &str, good: Good) -> Option<(&'a str, f64)> {
    let baselines = report.models.iter().filter(|m| m.role == Role::Baseline);
    let scores = baselines.filter_map(|m| Some((m.model.as_str(), mean(m, metric)?)));
    scores.reduce(|a, b| {
        let better = match good {
            Good::High => b.1 > a.1,
            Good::Low => b.1 < a.1,
        };
        if better { b } else { a }
    })
}

fn class(role: Role) -> &'static str {
    match role {
        Role::Model => "model",
        Role::Baseline => "baseline",
        Role::Ceiling => "ceiling",
    }
}

/// Mean and standard error, or a dash where the score is not defined for any condition.
fn cell(model: &ModelReport, metric: &str) -> String {
    let summary = model.metrics.get(metric);
    match summary.and_then(|s| Some((s.mean?, s.standard_error))) {
        None => "&ndash;".into(),
        Some((mean, None)) => format!("{mean:.3}"),
        Some((mean, Some(error))) => format!("{mean:.3} &plusmn; {error:.3}"),
    }
}

fn table(page: &mut String, report: &Report) {
    page.push_str("<table><tr><th>mean &plusmn; standard error over conditions</th>");
    for (_, label, _) in SHOWN {
        let _ = write!(page, "<th>{label}</th>");
    }
    page.push_str("</tr>");
    for model in &report.models {
        let _ = write!(
            page,
            "<tr class=\"{}\"><td>{}</td>",
            class(model.role),
            escape(&model.model)
        );
        for (metric, ..) in SHOWN {
            let _ = write!(page, "<td>{}</td>", cell(model, metric));
        }
        page.push_str("</tr>");
    }
    page.push_str("</table><p>R2 of mean profiles flatters: a prediction that nothing changes scores high too. \
The last line is one half of the real cells against the other.</p>");
}

/// Bars of one metric, a model each, with standard errors; scores below zero are bars to the left.
fn picture(page: &mut String, report: &Report, metric: &str) {
    const ROW: f64 = 22.0;
    const LEFT: f64 = 190.0;
    const WIDTH: f64 = 260.0;
    let scores: Vec<(&ModelReport, f64, f64)> = (report.models.iter())
        .filter_map(|m| {
            let summary = m.metrics.get(metric)?;
            Some((m, summary.mean?, summary.standard_error.unwrap_or(0.0)))
        })
        .collect();
    let Some(&(_, label, _)) = SHOWN.iter().find(|(name, ..)| *name == metric) else {
        return;
    };
    let low = scores.iter().map(|s| s.1).fold(0.0, f64::min).max(-1.0);
    let high = scores.iter().map(|s| s.1).fold(1.0, f64::max);
    let x = |value: f64| LEFT + WIDTH * (value.clamp(low, high) - low) / (high - low);
    let height = ROW * scores.len() as f64 + 8.0;
    let _ = write!(
        page,
        "<figure><svg width=\"{0}\" height=\"{height}\" role=\"img\" font-size=\"12\">",
        LEFT + WIDTH + 60.0
    );
    for (i, (model, mean, error)) in scores.iter().enumerate() {
        let top = ROW * i as f64 + 4.0;
        let (from, to) = (x(mean.min(0.0)), x(mean.max(0.0)));
        let fill = match model.role {
            Role::Model => "#2f6fdf",
            Role::Baseline => "#9aa4b2",
            Role::Ceiling => "#d8c27a",
        };
        let middle = top + 8.0;
        let _ = write!(
            page,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
<rect x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"16\" fill=\"{fill}\"/>\
<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#222\"/>\
<text x=\"{}\" y=\"{}\">{mean:.2}</text>",
            LEFT - 6.0,
            top + 13.0,
            escape(&model.model),
            to - from,
            x(mean - error),
            x(mean + error),
            LEFT + WIDTH + 8.0,
            top + 13.0,
        );
    }
    let _ = write!(page, "</svg><figcaption>{label}</figcaption></figure>");
}

/// Every metric of every model, folded away.
fn everything(page: &mut String, report: &Report) {
    let Some(first) = report.models.first() else {
        return;
    };
    page.push_str("<details><summary>All metrics</summary><table><tr><th>metric</th>");
    for model in &report.models {
        let _ = write!(page, "<th>{}</th>", escape(&model.model));
    }
    page.push_str("</tr>");
    for metric in first.metrics.keys() {
        let _ = write!(page, "<tr><td>{}</td>", escape(metric));
        for model in &report.models {
            let _ = write!(page, "<td>{}</td>", cell(model, metric));
        }
        page.push_str("</tr>");
    }
    for metric in first.overall.keys() {
        let _ = write!(page, "<tr><td>{} (over conditions)</td>", escape(metric));
        for model in &report.models {
            let score = model.overall.get(metric).copied().flatten();
            let text = score.map_or("&ndash;".into(), |s| format!("{s:.3}"));
            let _ = write!(page, "<td>{text}</td>");
        }
        page.push_str("</tr>");
    }
    page.push_str("</table></details>");
}

fn left_out(page: &mut String, report: &Report) {
    if report.left_out.is_empty() {
        return;
    }
    page.push_str("<h2>Left out</h2><table><tr><th>what</th><th>why</th></tr>");
    for LeftOut { what, reason } in &report.left_out {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td></tr>",
            escape(what),
            escape(reason)
        );
    }
    page.push_str("</table>");
}

/// Names of drugs and genes may hold anything.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(escape("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
    }
}
