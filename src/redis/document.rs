//! The table of commands as README.md shows it.

use crate::redis::table::{self, Group, Spec, Support};

/// The table in Markdown: a row for each group of commands that are as in Redis, then one for each difference,
/// then one for each reason why commands are absent. HELP of a container goes without saying.
pub fn markdown() -> String {
    let mut text = String::from("| group | command | support | note |\n|---|---|---|---|\n");
    let known = || table::supported().flat_map(with_subcommands);
    let there =
        gathered(known().filter(|spec| stands_for_itself(spec)).filter_map(|spec| match spec.support {
            Support::Full => Some((spec.group, "", spec.name)),
            _ => None,
        }));
    let different = gathered(known().filter_map(|spec| match spec.support {
        Support::Differs(how) => Some((spec.group, how, spec.name)),
        _ => None,
    }));
    let absent = gathered(table::absent().filter_map(|spec| match spec.support {
        Support::Absent(reason) => Some((spec.group, reason, spec.name)),
        _ => None,
    }));
    for (support, rows) in [("as in Redis", there), ("differs", different), ("absent", absent)] {
        for row in rows {
            row.write(&mut text, support);
        }
    }
    text
}

fn with_subcommands(spec: &'static Spec) -> impl Iterator<Item = &'static Spec> {
    std::iter::once(spec).chain(spec.subcommands)
}

/// Whether it is more than a container, whose subcommands are listed, or the help of one.
fn stands_for_itself(spec: &Spec) -> bool {
    let is_container = !spec.subcommands.is_empty() && spec.name != "command";
    !is_container && spec.own_name() != "help"
}

/// Commands of one group of which the same is to be said.
struct Row {
    group: Group,
    note: &'static str,
    names: Vec<&'static str>,
}

/// Rows, and names in them, in the order in which they come.
fn gathered(all: impl Iterator<Item = (Group, &'static str, &'static str)>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (group, note, name) in all {
        match rows.iter_mut().find(|row| (row.group, row.note) == (group, note)) {
            Some(row) => row.names.push(name),
            None => rows.push(Row { group, note, names: vec![name] }),
        }
    }
    rows
}

impl Row {
    fn write(&self, text: &mut String, support: &str) {
        let names: Vec<String> = self.names.iter().map(|name| shown(name)).collect();
        text.push_str(&format!(
            "| {} | {} | {support} | {} |\n",
            self.group.name(),
            names.join(" "),
            self.note
        ));
    }
}

fn shown(name: &str) -> String {
    format!("`{}`", name.replace('|', " ").to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const BEGIN: &str = "<!-- commands: begin -->\n";
    const END: &str = "<!-- commands: end -->";

    /// ATLASKV_WRITE_README=1 writes it instead.
    #[test]
    fn the_readme_has_the_table_of_commands() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = fs::read_to_string(path).expect("README.md can be read");
        let (before, rest) = readme.split_once(BEGIN).expect("README.md has the mark where the table begins");
        let (there, after) = rest.split_once(END).expect("README.md has the mark where the table ends");
        if std::env::var("ATLASKV_WRITE_README").is_ok_and(|value| value == "1") {
            let written = format!("{before}{BEGIN}{}{END}{after}", markdown());
            return fs::write(path, written).expect("README.md can be written");
        }
        assert!(there == markdown(), "run: ATLASKV_WRITE_README=1 cargo test --lib the_readme_has");
    }

    #[test]
    fn every_command_stands_in_one_row() {
        let text = markdown();
        for spec in table::supported().flat_map(with_subcommands).chain(table::absent()) {
            let rows = text.lines().filter_map(|line| line.split(" | ").nth(1));
            let rows = rows.filter(|names| format!(" {names} ").contains(&format!(" {} ", shown(spec.name))));
            let is_expected = stands_for_itself(spec) || matches!(spec.support, Support::Differs(_));
            assert_eq!(rows.count(), usize::from(is_expected), "{}", spec.name);
        }
    }
}
