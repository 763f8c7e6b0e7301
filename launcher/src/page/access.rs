//! Who may look and who may ask.
//!
//! Looking takes nothing but a request that names this server: a page of another site whose name
//! was made to lead here (DNS rebinding) says that name and is refused. Asking takes a POST with the
//! token of the run, from this page or from no page at all, and not too often.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use scpeft_protocol::heartbeat::tokens_match;
use std::net::IpAddr;
use std::time::Instant;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It names another server.
    Host,
    /// It comes from a page of another site.
    Origin,
    /// It has no token.
    NoToken,
    /// It has a wrong one.
    Token,
    /// There have been too many.
    TooMany,
}

impl Refusal {
    /// HTTP status and what to say.
    pub(super) fn answer(self) -> (u16, &'static str) {
        match self {
            Self::Host => (
                421,
                "this server goes by its address, `localhost` or its host name alone",
            ),
            Self::Origin => (403, "pages of other sites may not ask for anything"),
            Self::NoToken => (
                401,
                "the token is missing: open the link that scpeft-launch printed, or take it from `page-token` in the run directory",
            ),
            Self::Token => (403, "wrong token: it is another one for every launch"),
            Self::TooMany => (429, "too many requests: wait some seconds"),
        }
    }
}

/// Whether the host of a request is one that nobody else can claim: an address, `localhost`, or the
/// name of this machine.
pub(super) fn check_host(headers: &HeaderMap, own_name: &str) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::Host);
    };
    let name = host.to_str().ok().and_then(name_of).ok_or(Refusal::Host)?;
    let ours = name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(own_name);
    if ours { Ok(()) } else { Err(Refusal::Host) }
}

/// The name in `name`, `name:port`, `[address]` or `[address]:port`.
fn name_of(authority: &str) -> Option<&str> {
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        },
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    (!name.is_empty() && digits.chars().all(|c| c.is_ascii_digit())).then_some(name)
}

/// Whether a request comes from our own page, or from no page at all.
fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get(HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(Refusal::Origin);
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let authority = origin.to_str().ok().and_then(|o| o.strip_prefix("http://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    match (authority, host) {
        (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(Refusal::Origin),
    }
}

/// Counts how often something may happen.
#[derive(Debug)]
struct Allowance {
    left: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Allowance {
    fn new(most: f64, per_second: f64, now: Instant) -> Self {
        Self {
            left: most,
            most,
            per_second,
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.most);
        self.at = now;
        let granted = self.left >= 1.0;
        if granted {
            self.left -= 1.0;
        }
        granted
    }
}

/// Stands before everything that changes the run.
#[derive(Debug)]
pub(super) struct Gate {
    token: String,
    granted: Allowance,
    refused: Allowance,
}

impl Gate {
    /// One for this token.
    pub(super) fn new(token: String, now: Instant) -> Self {
        Self {
            token,
            // Two hasty clicks are fine, a stuck key is not.
            granted: Allowance::new(3.0, 0.5, now),
            // Apart from those, so that guessing does not keep the owner out.
            refused: Allowance::new(10.0, 0.5, now),
        }
    }

    /// Lets a request pass or says why not.
    pub(super) fn pass(&mut self, headers: &HeaderMap, now: Instant) -> Result<(), Refusal> {
        check_origin(headers)?;
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        let right = given.is_some_and(|given| tokens_match(given, &self.token));
        let allowance = if right {
            &mut self.granted
        } else {
            &mut self.refused
        };
        match (allowance.take(now), given) {
            (false, _) => Err(Refusal::TooMany),
            (true, _) if right => Ok(()),
            (true, None) => Err(Refusal::NoToken),
            (true, Some(_)) => Err(Refusal::Token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use std::time::Duration;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_names_that_nobody_else_can_claim_are_answered() {
        for good in [
            "127.0.0.1:8717",
            "localhost:9000",
            "LOCALHOST",
            "[::1]:8717",
            "10.0.0.3:80",
            "node7:8717",
        ] {
            assert_eq!(
                check_host(&headers(&[("host", good)]), "node7"),
                Ok(()),
                "{good}"
            );
        }
        for bad in [
            "evil.example:8717",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8717",
            "node7.evil.example",
            "",
            ":80",
            "[::1",
            "localhost:80:80",
            "localhost:x",
        ] {
            let refused = check_host(&headers(&[("host", bad)]), "node7");
            assert_eq!(refused, Err(Refusal::Host), "{bad}");
        }
        assert!(check_host(&headers(&[]), "node7").is_err());
        let twice = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert!(check_host(&twice, "node7").is_err());
    }

    #[test]
    fn only_our_own_page_or_no_page_may_ask() {
        let with = |pairs: &[(&str, &str)]| {
            check_origin(&headers(&[&[("host", "localhost:8717")], pairs].concat()))
        };
        assert_eq!(with(&[]), Ok(()));
        assert_eq!(with(&[("origin", "http://localhost:8717")]), Ok(()));
        for origin in [
            "http://evil.example",
            "http://localhost:9999",
            "http://localhost",
            "https://localhost:8717",
            "null",
        ] {
            assert_eq!(
                with(&[("origin", origin)]),
                Err(Refusal::Origin),
                "{origin}"
            );
        }
        assert_eq!(
            with(&[("sec-fetch-site", "cross-site")]),
            Err(Refusal::Origin)
        );
        assert_eq!(
            with(&[("sec-fetch-site", "same-site")]),
            Err(Refusal::Origin)
        );
    }

    #[test]
    fn the_token_opens_and_guessing_does_not_keep_its_owner_out() {
        let begun = Instant::now();
        let mut gate = Gate::new("0123456789abcdef".into(), begun);
        let right = headers(&[("authorization", "Bearer 0123456789abcdef")]);
        let wrong = headers(&[("authorization", "Bearer 0123456789abcdeX")]);
        assert_eq!(gate.pass(&headers(&[]), begun), Err(Refusal::NoToken));
        for _ in 0..9 {
            assert_eq!(gate.pass(&wrong, begun), Err(Refusal::Token));
        }
        assert_eq!(gate.pass(&wrong, begun), Err(Refusal::TooMany));
        for _ in 0..3 {
            assert_eq!(gate.pass(&right, begun), Ok(()));
        }
        assert_eq!(gate.pass(&right, begun), Err(Refusal::TooMany));
        assert_eq!(gate.pass(&right, begun + Duration::from_secs(2)), Ok(()));
        let foreign = [
            ("host", "h:1"),
            ("origin", "http://e"),
            ("authorization", "Bearer 0123456789abcdef"),
        ];
        let later = begun + Duration::from_mins(1);
        assert_eq!(gate.pass(&headers(&foreign), later), Err(Refusal::Origin));
    }
}
