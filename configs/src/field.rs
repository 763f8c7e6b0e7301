//! How one value is read from TOML and written back, and the macros that declare sections and
//! choices so that struct, defaults, key list, reader and manual cannot drift apart.

use std::path::PathBuf;

use toml::Value;

/// Why a value was not accepted: what it must be, and the names it is chosen from, if any.
pub(crate) struct Mismatch {
    pub(crate) expected: String,
    pub(crate) choices: Vec<&'static str>,
}

impl Mismatch {
    pub(crate) fn new(expected: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            choices: Vec::new(),
        }
    }
}

/// A type that a key of the configuration can have.
pub(crate) trait Field: Sized {
    /// Reads the value.
    fn parse(value: &Value) -> Result<Self, Mismatch>;
    /// Writes it back; `None` when it is unset.
    fn render(&self) -> Option<Value>;
}

impl Field for bool {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        value
            .as_bool()
            .ok_or_else(|| Mismatch::new("`true` or `false`"))
    }
    fn render(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

impl Field for f64 {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        match value {
            Value::Float(x) => Ok(*x),
            Value::Integer(x) => Ok(*x as f64),
            _ => Err(Mismatch::new("a number")),
        }
    }
    fn render(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

macro_rules! integer_field {
    ($($ty:ty => $expected:literal),*) => {$(
        impl Field for $ty {
            fn parse(value: &Value) -> Result<Self, Mismatch> {
                value
                    .as_integer()
                    .and_then(|x| <$ty>::try_from(x).ok())
                    .ok_or_else(|| Mismatch::new($expected))
            }
            fn render(&self) -> Option<Value> {
                Some(Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX)))
            }
        }
    )*};
}

integer_field! {
    usize => "a whole number >= 0",
    u64 => "a whole number >= 0",
    u16 => "a whole number from 0 to 65535"
}

impl Field for String {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| Mismatch::new("a string"))
    }
    fn render(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}

impl Field for PathBuf {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        value
            .as_str()
            .map(PathBuf::from)
            .ok_or_else(|| Mismatch::new("a path in quotes"))
    }
    fn render(&self) -> Option<Value> {
        Some(Value::String(self.to_string_lossy().into_owned()))
    }
}

impl<T: Field> Field for Option<T> {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        T::parse(value).map(Some)
    }
    fn render(&self) -> Option<Value> {
        self.as_ref().and_then(T::render)
    }
}

impl<T: Field> Field for Vec<T> {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        let list = |inner: &str| format!("a list, each item {inner}");
        let items = value.as_array().ok_or_else(|| Mismatch::new("a list"))?;
        items
            .iter()
            .map(T::parse)
            .collect::<Result<_, _>>()
            .map_err(|e| Mismatch {
                expected: list(&e.expected),
                choices: e.choices,
            })
    }
    fn render(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::render).collect()))
    }
}

/// A section of the file: the keys it has, and how it is read and written.
pub(crate) trait Section: Sized {
    /// Its dotted name.
    const PATH: &'static str;
    /// Keys with the lines of their documentation.
    const KEYS: &'static [(&'static str, &'static [&'static str])];
    /// Reads all keys, noting every mistake in the reader.
    fn read(reader: &mut crate::resolve::Reader) -> Self;
    /// Calls `visit` for this section and those inside it with the path and the rendered values.
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Vec<(&'static str, Option<Value>)>));
}

/// Declares a set of names that a key chooses from.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[doc = $doc])+ #[serde(rename = $text)] $variant),* }

        impl $name {
            /// Every choice.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name as written in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Field for $name {
            fn parse(value: &Value) -> Result<Self, Mismatch> {
                match value.as_str() {
                    $(Some($text) => Ok(Self::$variant),)*
                    _ => Err(Mismatch {
                        expected: [$(concat!("`", $text, "`")),*].join(" or "),
                        choices: vec![$($text),*],
                    }),
                }
            }
            fn render(&self) -> Option<Value> {
                Some(Value::String(self.as_str().to_owned()))
            }
        }
    };
}

/// Declares a section: struct, defaults, key list with documentation, reader and writer.
macro_rules! section {
    (
        $(#[$meta:meta])* $name:ident at $path:literal {
            $($(#[doc = $doc:literal])+ $field:ident: $ty:ty = $default:expr;)*
            $(inside { $(#[doc = $subdoc:literal])+ $sub:ident: $subty:ty; })?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)*
            $($(#[doc = $subdoc])+ pub $sub: $subty,)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($sub: <$subty>::default(),)?
                }
            }
        }

        impl Section for $name {
            const PATH: &'static str = $path;
            const KEYS: &'static [(&'static str, &'static [&'static str])] =
                &[$((stringify!($field), &[$($doc),+])),*];

            fn read(reader: &mut Reader) -> Self {
                Self {
                    $($field: reader.take(concat!($path, ".", stringify!($field)), || $default),)*
                    $($sub: <$subty as Section>::read(reader),)?
                }
            }

            fn visit(
                &self,
                visit: &mut dyn FnMut(&'static str, Vec<(&'static str, Option<Value>)>),
            ) {
                visit($path, vec![$((stringify!($field), self.$field.render())),*]);
                $(self.$sub.visit(visit);)?
            }
        }
    };
}

pub(crate) use {choice, section};
