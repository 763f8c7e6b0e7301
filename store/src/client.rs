//! Addresses and clients.

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path as Location;
use object_store::{ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::{Position, Url};

/// A store that is named or set up in a way that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}\nhelp: {help}")]
pub struct Misuse {
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub help: String,
}

impl Misuse {
    fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

/// A folder of a store.
#[derive(Debug)]
pub struct Client {
    /// The store. It does not retry by itself.
    pub store: Box<dyn ObjectStore>,
    /// Where the folder lies in it.
    pub folder: Location,
    /// Whether it can tell which files it has: web servers cannot.
    pub lists: bool,
}

/// The URL that `text` is; `None` for a path of the file system.
///
/// # Errors
/// When it is neither, or of a kind that nothing is known of.
pub fn parse(text: &str) -> Result<Option<Url>, Misuse> {
    if !text.contains("://") {
        return Ok(None);
    }
    let fail = |problem: String| {
        Misuse::new(
            format!("`{text}`: {problem}"),
            "use a folder, or s3://bucket/path, gs://bucket/path, az://container/path, https://host/path",
        )
    };
    let url = Url::parse(text).map_err(|e| fail(format!("is no URL: {e}")))?;
    match url.scheme() {
        "file" => return Ok(None),
        "s3" | "s3a" | "gs" | "az" | "abfs" | "abfss" | "http" | "https" => {}
        other => return Err(fail(format!("nothing is known of `{other}://`"))),
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fail("a query or fragment has no place here".to_owned()));
    }
    Ok(Some(url))
}

/// Makes the client of a folder. `settings` are named as the variables that set them
/// (`aws_endpoint_url`) and win over the environment; those of other kinds of stores are left alone.
///
/// # Errors
/// When the address or a setting cannot be used.
pub fn open(url: &Url, settings: &[(String, String)]) -> Result<Client, Misuse> {
    let fail = |e: object_store::Error| {
        Misuse::new(
            format!("`{url}` cannot be opened: {e}"),
            "check the URL and the AWS_*, GOOGLE_* or AZURE_* variables",
        )
    };
    let (scheme, folder) =
        ObjectStoreScheme::parse(url).map_err(|e| fail(object_store::Error::from(e)))?;
    Ok(Client {
        store: build(&scheme, url, settings)?.map_err(fail)?,
        folder,
        lists: scheme != ObjectStoreScheme::Http,
    })
}

fn build(
    scheme: &ObjectStoreScheme,
    url: &Url,
    settings: &[(String, String)],
) -> Result<object_store::Result<Box<dyn ObjectStore>>, Misuse> {
    macro_rules! configured {
        ($builder:expr, $url:expr) => {{
            let builder = $builder.with_url($url.to_string()).with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            });
            let builder = settings.iter().fold(builder, |builder, (key, value)| {
                match key.to_ascii_lowercase().parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                }
            });
            builder.build().map(boxed)
        }};
    }
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            endpoint_may_be_used(settings)?;
            configured!(AmazonS3Builder::from_env(), url)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            configured!(GoogleCloudStorageBuilder::from_env(), url)
        }
        ObjectStoreScheme::MicrosoftAzure => configured!(MicrosoftAzureBuilder::from_env(), url),
        _ => {
            let client = ClientOptions::new().with_allow_http(url.scheme() == "http");
            let builder = HttpBuilder::new().with_client_options(client);
            configured!(builder, &url[..Position::BeforePath])
        }
    })
}

fn boxed<S: ObjectStore>(store: S) -> Box<dyn ObjectStore> {
    Box::new(store)
}

/// Says at once what the client would say only after all its tries.
fn endpoint_may_be_used(settings: &[(String, String)]) -> Result<(), Misuse> {
    let setting = |name: &str| {
        let mut set = settings.iter();
        let set = set.find(|(key, _)| key.eq_ignore_ascii_case(name));
        set.map(|(_, value)| value.clone())
            .or_else(|| std::env::var(name).ok())
    };
    let plain = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .into_iter()
        .find(|name| setting(name).is_some_and(|url| url.starts_with("http://")));
    let allowed = setting("AWS_ALLOW_HTTP").is_some_and(|text| {
        matches!(
            text.to_lowercase().as_str(),
            "1" | "true" | "on" | "yes" | "y"
        )
    });
    match plain {
        Some(name) if !allowed => Err(Misuse::new(
            format!("{name} names an endpoint without encryption, which is not allowed by default"),
            "set AWS_ALLOW_HTTP=true, or use an https:// endpoint",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        assert!(parse("data/corpus").unwrap().is_none());
        assert!(parse("file:///data/corpus").unwrap().is_none());
        assert_eq!(parse("s3://bucket/a/b").unwrap().unwrap().scheme(), "s3");
        let message = parse("ftp://host/x").unwrap_err().to_string();
        assert!(
            message.contains("nothing is known of `ftp://`"),
            "{message}"
        );
        assert!(parse("https://host/x?token=1").is_err());
    }
}
