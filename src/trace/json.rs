//! A message as one flat JSON object: `timestamp`, `level`, `target`, `message`, `span` (where there is one), then the message's fields
//! and those of the spans around it, in alphabetical order. Of two fields of one name the inner one is told.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// What a line says in any case. Fields have other names.
const HEAD: [&str; 5] = ["timestamp", "level", "target", "message", "span"];

/// Writes messages in this form.
pub(super) struct Flat;

#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'static str,
    target: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<&'static str>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl<S> FormatEvent<S, JsonFields> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(&self, context: &FmtContext<'_, S, JsonFields>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut told = Told::default();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>().map_or("", |fields| fields.fields.as_str());
            if let Ok(fields) = serde_json::from_str::<Map<String, Value>>(fields) {
                told.fields.extend(fields);
            }
        }
        event.record(&mut told);
        let Told { message, mut fields } = told;
        fields.retain(|name, _| !HEAD.contains(&name.as_str()));
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let line = Line {
            timestamp,
            level: event.metadata().level().as_str(),
            target: event.metadata().target(),
            message,
            span: context.lookup_current().map(|span| span.name()),
            fields,
        };
        let line = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

/// What a message says.
#[derive(Default)]
struct Told {
    message: String,
    fields: Map<String, Value>,
}

impl Told {
    fn note(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name().to_owned(), value);
    }
}

impl Visit for Told {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is not finite; null is it.
        self.note(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.note(field, value.into());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::{debug_span, info};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is written while `tell` runs.
    fn written(tell: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let lines = tracing_subscriber::fmt::layer().fmt_fields(JsonFields::new()).event_format(Flat);
        let lines = lines.with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), tell);
        let bytes = page.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_flat_and_its_head_comes_first() {
        let text = written(|| {
            let outer = debug_span!("outer", model = "m", sequence = 7u64, status = tracing::field::Empty).entered();
            outer.record("status", 202u64);
            let _inner = debug_span!("inner", sequence = 8u64).entered();
            let error = std::io::Error::other("a \"word\"\nand more");
            info!(rows = 3usize, loss = f64::NAN, share = 0.5, target = "elsewhere", done = true, %error, "it {}", "ended");
        });
        assert_eq!(text.lines().count(), 1);
        assert!(text.starts_with(r#"{"timestamp":"2"#), "{text}");
        let (_, rest) = text.trim_end().split_once(r#"Z","#).unwrap();
        assert_eq!(
            rest,
            r#""level":"INFO","target":"mustela::trace::json::tests","message":"it ended","span":"inner","done":true,"error":"a \"word\"\nand more","loss":null,"model":"m","rows":3,"sequence":8,"share":0.5,"status":202}"#
        );
    }

    #[test]
    fn a_line_outside_of_spans_has_none() {
        let text = written(|| info!("draining"));
        assert!(text.ends_with("\"message\":\"draining\"}\n"), "{text}");
    }
}
