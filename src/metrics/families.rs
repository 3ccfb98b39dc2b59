//! How a family is put together for one scrape from what things say of themselves.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// What each has a series of its own for: models, streams.
pub(super) trait Named {
    /// The label that its name is the value of.
    const LABEL: &'static str;

    /// Its name.
    fn name(&self) -> &str;
}

/// A family with one value for each of them, or none.
pub(super) fn plain<T: Named>(
    kind: MetricType,
    name: &str,
    help: &str,
    of: &[T],
    value: impl Fn(&T) -> Option<f64>,
) -> MetricFamily {
    let metrics = of.iter().filter_map(|one| Some(metric(kind, vec![pair(T::LABEL, one.name())], value(one)?)));
    family(kind, name, help, metrics.collect())
}

/// A family with a second label, whose values come from a fixed set.
pub(super) fn labelled<T: Named>(
    kind: MetricType,
    name: &str,
    help: &str,
    label: &str,
    of: &[T],
    values: impl Fn(&T) -> Vec<(&'static str, f64)>,
) -> MetricFamily {
    let metrics = of.iter().flat_map(|one| {
        let pairs = values(one).into_iter();
        pairs.map(|(word, value)| metric(kind, vec![pair(T::LABEL, one.name()), pair(label, word)], value)).collect::<Vec<_>>()
    });
    family(kind, name, help, metrics.collect())
}

/// A family of one series without labels.
pub(super) fn single(kind: MetricType, name: &str, help: &str, value: f64) -> MetricFamily {
    family(kind, name, help, vec![metric(kind, Vec::new(), value)])
}

pub(super) fn family(kind: MetricType, name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

pub(super) fn metric(kind: MetricType, labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

pub(super) fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
