//! What the process says of itself, on stderr: lines for people at a terminal, one flat JSON object a line elsewhere.
//!
//! `MUSTELA_LOG` says how much, as directives of [`EnvFilter`]; `info` without it. At `info` a service tells what it decided and what
//! went wrong. At `debug` it tells the way of each batch, in spans: `request` (`decode` in it), `commit`, `step`, `checkpoint`,
//! `decision`, `predict`. No span reaches from a request into the step that learns its rows: the driver pulls, and a step has rows of
//! many requests. What ties them together is the number of the rows in the stream: `first_sequence` and `sequence` are the first and
//! the last one of a post and of a step, and `sequence` is how far a checkpoint or an answer reaches. So a row's way is found by
//! searching for its number.
//!
//! With the feature `otel` the same spans go to a collector as well.

mod json;
#[cfg(feature = "otel")]
pub(crate) mod otel;

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

use crate::config::LogFormat;

/// The variable of the environment that says how much is told.
const FILTER: &str = "MUSTELA_LOG";

/// The end of the telling.
#[derive(Debug)]
#[must_use]
pub struct Tracing {
    #[cfg(feature = "otel")]
    exporter: Option<otel::Exporter>,
}

impl Tracing {
    /// Waits a moment until what was told is where it is to go.
    pub fn end(self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = self.exporter {
            exporter.end();
        }
    }
}

/// Has everything told from here on. Where somebody listens already, a test for instance, nothing is changed.
pub fn init(format: LogFormat) -> Tracing {
    let (filter, misread) = match filter() {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let human = match format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let subscriber = tracing_subscriber::registry().with(lines(human).with_filter(filter));
    #[cfg(feature = "otel")]
    let (layer, exporter, refused) = otel::layer();
    #[cfg(feature = "otel")]
    let subscriber = subscriber.with(layer);
    // Somebody who listens already goes on.
    if subscriber.try_init().is_ok() && !human {
        // A panic is a line like any other to whoever collects them.
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
    }
    if let Some(error) = misread {
        tracing::warn!(%error, "{FILTER} cannot be read; `info` holds");
    }
    #[cfg(feature = "otel")]
    if let Some(reason) = refused {
        tracing::warn!(reason, "no spans are sent");
    }
    Tracing {
        #[cfg(feature = "otel")]
        exporter,
    }
}

fn filter() -> Result<EnvFilter, ParseError> {
    // A variable that is not there, or no text, says nothing.
    let told = std::env::var(FILTER).unwrap_or_default();
    if told.is_empty() { Ok(EnvFilter::new("info")) } else { told.parse() }
}

fn lines(human: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = fmt::layer().with_writer(io::stderr);
    if human {
        lines.with_ansi(io::stderr().is_terminal()).boxed()
    } else {
        lines.fmt_fields(fmt::format::JsonFields::new()).event_format(json::Flat).boxed()
    }
}
