//! The page: one file that asks nothing of anybody.

use std::fmt::Write;

use super::Part;
use crate::failure::Result;
use crate::picture::{Mark, Picture, escape};

/// Pictures with more points are shown as pixels: a page with a million shapes does not open.
const POINTS: usize = 4000;

const STYLE: &str = ":root{color-scheme:light}\
body{font:16px/1.5 system-ui,Roboto,Helvetica,Arial,sans-serif;max-width:76rem;margin:0 auto;padding:1rem;color:#222;background:#fff}\
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.25rem;margin:2rem 0 .5rem;border-bottom:1px solid #ddd}\
nav a{margin-right:1rem}a{color:#005a9c}\
.wide{overflow-x:auto;max-width:100%}\
table{border-collapse:collapse;margin:.8rem 0;font-size:.875rem}\
th,td{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}\
th.text,td.text{text-align:left;white-space:normal;min-width:6rem;overflow-wrap:break-word}\
figure{display:inline-block;margin:.5rem 1rem .5rem 0;max-width:100%;vertical-align:top}\
figure svg,figure img{max-width:100%;height:auto;display:block}\
figcaption{font-size:.8rem;color:#555}\
pre{font-size:.8rem;overflow-x:auto;background:#f6f6f6;padding:.8rem}\
details{margin:.8rem 0}summary{cursor:pointer;padding:.3rem 0}\
@media print{body{max-width:none;font-size:10pt;padding:0}nav,details{display:none}figure,tr{break-inside:avoid}h2{break-after:avoid}.wide{overflow:visible}}";

/// The page.
///
/// # Errors
/// Only if a picture is too large for the memory.
pub(super) fn html(title: &str, parts: &[Part]) -> Result<String> {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{0}</title><style>{STYLE}</style></head><body><main><h1>{0}</h1>",
        escape(title)
    );
    let headings: Vec<&String> = parts
        .iter()
        .filter_map(|p| match p {
            Part::Heading(text) => Some(text),
            _ => None,
        })
        .collect();
    if headings.len() > 1 {
        page.push_str("<nav>");
        for (i, text) in headings.iter().enumerate() {
            let _ = write!(page, "<a href=\"#part-{i}\">{}</a>", escape(text));
        }
        page.push_str("</nav>");
    }
    let mut next = 0;
    for part in parts {
        match part {
            Part::Heading(text) => {
                let _ = write!(page, "<h2 id=\"part-{next}\">{}</h2>", escape(text));
                next += 1;
            }
            Part::Text(text) => {
                let _ = write!(page, "<p>{}</p>", escape(text));
            }
            Part::Picture(stem, picture) => figure(&mut page, stem, picture)?,
            Part::Table(stem, sheet, most) => {
                page.push_str(&sheet.html(*most));
                let _ = write!(
                    page,
                    "<p><small>tables/{0}.csv, tables/{0}.parquet</small></p>",
                    escape(stem)
                );
            }
            Part::Folded(name, text) => {
                let _ = write!(
                    page,
                    "<details><summary>{}</summary><pre>{}</pre></details>",
                    escape(name),
                    escape(text)
                );
            }
        }
    }
    page.push_str("</main></body></html>\n");
    Ok(page)
}

fn figure(page: &mut String, stem: &str, picture: &Picture) -> Result<()> {
    let points: usize = picture
        .marks
        .iter()
        .map(|m| match m {
            Mark::Points { points, .. } => points.len(),
            _ => 0,
        })
        .sum();
    page.push_str("<figure>");
    if points > POINTS {
        let _ = write!(
            page,
            "<img alt=\"{}\" width=\"{}\" height=\"{}\" src=\"data:image/png;base64,{}\">",
            escape(&picture.title),
            picture.width.ceil(),
            picture.height.ceil(),
            base64(&picture.png()?)
        );
    } else {
        page.push_str(picture.svg().trim_end());
    }
    let stem = escape(stem);
    let _ = write!(
        page,
        "<figcaption>figures/{stem}.svg, figures/{stem}.png</figcaption></figure>"
    );
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            if i <= group.len() {
                out.push(DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char);
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_as_text() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn names_cannot_leave_their_place_and_nothing_is_fetched() {
        let parts = [
            Part::Heading("<script>alert(1)</script>".into()),
            Part::Folded("a".into(), "</pre><img src=http://x>".into()),
        ];
        let page = html("</title>", &parts).unwrap();
        assert!(
            !page.contains("<script>")
                && !page.contains("<img src=http")
                && !page.contains("</title></title>")
        );
        assert!(!page.contains("http://") || page.contains("&lt;img src=http://x&gt;"));
    }
}
