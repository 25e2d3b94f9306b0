//! How often clients were told which errors, as INFO tells it.

use std::cell::Cell;

use crate::metrics::Metrics;

/// By what error replies begin with: the field of INFO, and the counter. What begins otherwise counts as the first.
const KINDS: [(&str, &str); 9] = [
    ("errorstat_ERR", "errors_err"),
    ("errorstat_CROSSSLOT", "errors_crossslot"),
    ("errorstat_EXECABORT", "errors_execabort"),
    ("errorstat_MISCONF", "errors_misconf"),
    ("errorstat_MOVED", "errors_moved"),
    ("errorstat_NOPROTO", "errors_noproto"),
    ("errorstat_OOM", "errors_oom"),
    ("errorstat_TRYAGAIN", "errors_tryagain"),
    ("errorstat_WRONGPASS", "errors_wrongpass"),
];

fn cell<'a>(metrics: &'a Metrics, kind: &[u8]) -> &'a Cell<u64> {
    match kind {
        b"CROSSSLOT" => &metrics.errors_crossslot,
        b"EXECABORT" => &metrics.errors_execabort,
        b"MISCONF" => &metrics.errors_misconf,
        b"MOVED" => &metrics.errors_moved,
        b"NOPROTO" => &metrics.errors_noproto,
        b"OOM" => &metrics.errors_oom,
        b"TRYAGAIN" => &metrics.errors_tryagain,
        b"WRONGPASS" => &metrics.errors_wrongpass,
        _ => &metrics.errors_err,
    }
}

/// Counts a reply, if it is an error. Those within an array are not.
pub(super) fn count(metrics: &Metrics, reply: &[u8]) {
    let [b'-', text @ ..] = reply else { return };
    let end = text.iter().position(|byte| matches!(byte, b' ' | b'\r'));
    Metrics::add(cell(metrics, &text[..end.unwrap_or(text.len())]), 1);
}

/// The fields of INFO about errors that were told, and how often, from what `counter` says of counters by their names.
pub(super) fn told(counter: impl Fn(&str) -> u64) -> impl Iterator<Item = (&'static str, u64)> {
    KINDS.into_iter().map(move |(field, name)| (field, counter(name))).filter(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_counter_of_its_name() {
        let metrics = Metrics::default();
        for (field, name) in KINDS {
            let kind = field.trim_start_matches("errorstat_");
            count(&metrics, format!("-{kind} something\r\n").as_bytes());
            let now = metrics.snapshot();
            let value = now.iter().find(|(other, _)| *other == name).map(|(_, value)| value);
            assert_eq!(value, Some(1), "{name}");
        }
        [&b"+OK\r\n"[..], b"$1\r\n-\r\n", b""].iter().for_each(|reply| count(&metrics, reply));
        [&b"-STRANGE\r\n"[..], b"-"].iter().for_each(|reply| count(&metrics, reply));
        let now = metrics.snapshot();
        let counter = |name: &str| now.iter().find(|(other, _)| *other == name).map_or(0, |(_, value)| value);
        assert_eq!(told(counter).map(|(_, count)| count).sum::<u64>(), KINDS.len() as u64 + 2);
        assert_eq!(told(counter).find(|(_, count)| *count > 1), Some(("errorstat_ERR", 3)));
    }
}
