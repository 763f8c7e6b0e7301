//! The page itself: HTML, style and script in one answer, and the policy that lets nothing else in.

const HTML: &str = include_str!("assets/page.html");
const STYLE: &str = include_str!("assets/page.css");
const SCRIPTS: [&str; 4] = [
    include_str!("assets/format.js"),
    include_str!("assets/chart.js"),
    include_str!("assets/parts.js"),
    include_str!("assets/page.js"),
];

/// The page with this nonce on its style and script.
pub(super) fn page(nonce: &str) -> String {
    HTML.replace("{{nonce}}", nonce)
        .replace("{{style}}", STYLE)
        .replace("{{script}}", &SCRIPTS.concat())
}

/// What the page may do: run its own script and style, ask this server, and nothing else.
pub(super) fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_names_nothing_outside() {
        let page = page("abc");
        assert!(!page.contains("{{") && page.matches("nonce=\"abc\"").count() == 2);
        // The one URL is the name space of SVG, which is never fetched.
        let rest = page.replace("http://www.w3.org/2000/svg", "");
        for word in [
            "http://",
            "https://",
            "src=\"",
            "@import",
            "url(",
            " style=",
            " onclick=",
        ] {
            assert!(!rest.contains(word), "{word}");
        }
    }
}
