//! COMMAND DOCS.

use super::syntax::{self, Argument, Kind};
use crate::protocol::resp::{self, Proto};
use crate::redis::table::{self, Spec};

/// Of the commands of these names, and of all without any. Names that are not known are left out.
pub(super) fn docs(out: &mut Vec<u8>, wanted: &[&[u8]], proto: Proto) {
    let specs: Vec<&Spec> = match wanted {
        [] => table::supported().collect(),
        _ => wanted.iter().filter_map(|name| super::find_whole(name)).collect(),
    };
    resp::map(out, specs.len(), proto);
    for spec in specs {
        entry(out, spec, proto);
    }
}

fn entry(out: &mut Vec<u8>, spec: &Spec, proto: Proto) {
    resp::bulk(out, spec.name.as_bytes());
    let arguments = syntax::arguments(spec.syntax, spec.keys.len());
    let optional = [!arguments.is_empty(), !spec.subcommands.is_empty()];
    let replaced = if spec.replaced.is_some() { 3 } else { 0 };
    resp::map(out, 4 + replaced + optional.into_iter().filter(|there| *there).count(), proto);
    field(out, "summary", spec.summary);
    field(out, "since", spec.since);
    field(out, "group", spec.group.name());
    field(out, "complexity", spec.complexity);
    if let Some((since, by)) = spec.replaced {
        resp::bulk(out, b"doc_flags");
        resp::set(out, 1, proto);
        resp::simple(out, "deprecated");
        field(out, "deprecated_since", since);
        field(out, "replaced_by", by);
    }
    nested(out, &arguments, proto);
    if !spec.subcommands.is_empty() {
        resp::bulk(out, b"subcommands");
        resp::map(out, spec.subcommands.len(), proto);
        for sub in spec.subcommands {
            entry(out, sub, proto);
        }
    }
}

fn field(out: &mut Vec<u8>, name: &str, text: &str) {
    resp::bulk(out, name.as_bytes());
    resp::bulk(out, text.as_bytes());
}

/// The field of arguments, if there are any.
fn nested(out: &mut Vec<u8>, arguments: &[Argument], proto: Proto) {
    if arguments.is_empty() {
        return;
    }
    resp::bulk(out, b"arguments");
    resp::array(out, arguments.len());
    for one in arguments {
        argument(out, one, proto);
    }
}

fn argument(out: &mut Vec<u8>, argument: &Argument, proto: Proto) {
    let flags: Vec<&str> = [(argument.optional, "optional"), (argument.multiple, "multiple")]
        .into_iter()
        .filter_map(|(holds, name)| holds.then_some(name))
        .collect();
    let key_spec = if let Kind::Key(index) = argument.kind { Some(index) } else { None };
    let optional =
        [key_spec.is_some(), argument.token.is_some(), !flags.is_empty(), !argument.parts.is_empty()];
    resp::map(out, 2 + optional.into_iter().filter(|there| *there).count(), proto);
    field(out, "name", &argument.name);
    field(out, "type", argument.kind.name());
    if let Some(index) = key_spec {
        resp::bulk(out, b"key_spec_index");
        resp::integer(out, index as i64);
    }
    if let Some(token) = argument.token {
        field(out, "token", token);
    }
    if !flags.is_empty() {
        resp::bulk(out, b"flags");
        super::names(out, flags.len(), flags.into_iter(), "", proto);
    }
    nested(out, &argument.parts, proto);
}
